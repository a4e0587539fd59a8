//! What C has filled in, as Rust: copies of structs, numbers as enums, pointers as borrowed memory.

use super::handle::Outcome;
use super::status::{Failure, PafStatus};
use super::structs::{PafAttention, PafBatch, PafEncoderConfig, PafForward, PafGemm, PafLayerWeights, PafNorm};
use crate::config::{Design, HiddenAct, Schedule};
use crate::dtype::Dtype;
use crate::gpu::{Batch, BorrowedSequences, Device, ElementType, Location};

/// A struct that begins with its own size.
///
/// # Safety
/// The first field is a `usize`, all bits zero are a value, and any bits of its fields are.
pub(super) unsafe trait Struct: Copy {
    const NAME: &'static str;
}

macro_rules! structs {
    ($($name:ident),*) => {
        $(
            // SAFETY: numbers and pointers, the size first.
            unsafe impl Struct for $name {
                const NAME: &'static str = stringify!($name);
            }
        )*
    };
}
structs!(PafEncoderConfig, PafLayerWeights, PafBatch, PafForward, PafGemm, PafAttention, PafNorm);

/// No later version's struct will be larger.
const MOST_BYTES: usize = 4096;

/// A copy of what `pointer` leads to. A caller of a later version may have fields more, which have to be 0.
///
/// # Safety
/// `pointer` is null, or leads to as many bytes as the number says that it leads to.
pub(super) unsafe fn read<T: Struct>(pointer: *const T) -> Outcome<T> {
    let known = size_of::<T>();
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(Failure::invalid(format!("{} at {pointer:?}, expected the address of one", T::NAME)));
    }
    // SAFETY: the caller's promise; the size comes first.
    let given = unsafe { pointer.cast::<usize>().read() };
    // No version has had less yet: when one appends a field, the lower bound stays what it is. What was never set is found out, mostly,
    // before anything is read by it.
    if !(known..=MOST_BYTES).contains(&given) {
        let text = format!("{}.struct_size is {given}, expected sizeof({}), {known} here", T::NAME, T::NAME);
        return Err(Failure::invalid(text));
    }
    // SAFETY: the caller's promise, and that of the trait.
    let (value, rest) =
        unsafe { (pointer.read(), std::slice::from_raw_parts(pointer.cast::<u8>().add(known), given - known)) };
    if rest.iter().any(|&byte| byte != 0) {
        let text =
            format!("{} has {given} bytes, of which this version knows {known}, and the others are not 0", T::NAME);
        return Err(Failure { status: PafStatus::Unsupported, text });
    }
    Ok(value)
}

/// The numbers of every enum start at 1, in the order of what they stand for.
fn one_of<T: Copy>(what: &str, kind: &str, number: i32, all: &[T]) -> Outcome<T> {
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    let found = index.and_then(|index| all.get(index)).copied();
    found.ok_or_else(|| Failure::invalid(format!("{what} is {number}, expected a {kind}, 1 to {}", all.len())))
}

pub(super) fn dtype(number: i32) -> Outcome<Dtype> {
    match element_type(number)? {
        ElementType::Bf16 => Ok(Dtype::Bf16),
        ElementType::F16 => Ok(Dtype::F16),
        ElementType::F32 => Err(Failure::invalid("dtype is PAF_DTYPE_F32, expected PAF_DTYPE_BF16 or PAF_DTYPE_F16")),
    }
}

pub(super) fn element_type(number: i32) -> Outcome<ElementType> {
    one_of("dtype", "PafDtype", number, &[ElementType::F32, ElementType::Bf16, ElementType::F16])
}

pub(super) fn location(number: i32) -> Outcome<Location> {
    one_of("memory", "PafMemory", number, &[Location::Host, Location::Device])
}

pub(super) fn design(number: i32) -> Outcome<Design> {
    one_of("design", "PafDesign", number, &Design::ALL)
}

pub(super) fn hidden_act(number: i32) -> Outcome<HiddenAct> {
    one_of("activation", "PafHiddenAct", number, &HiddenAct::ALL)
}

pub(super) fn schedule(number: i32) -> Outcome<Schedule> {
    one_of("schedule", "PafSchedule", number, &Schedule::ALL)
}

/// `number`, or what 0 stands for.
pub(super) fn or<T: Copy + Default + PartialEq>(number: T, zero: T) -> T {
    if number == T::default() { zero } else { number }
}

/// The batch that a call names.
///
/// # Safety
/// As [`read`], and as [`Batch::from_raw`] asks of what the struct says.
pub(super) unsafe fn batch(device: &Device, pointer: *const PafBatch) -> Outcome<Batch> {
    // SAFETY: the caller's promise, passed on.
    let of = unsafe { read(pointer)? };
    let address = |pointer: *const i32| pointer.addr() as u64;
    let (batch, seq_len, lengths) = (of.batch, of.seq_len, address(of.lengths));
    let sequences = match of.packed_rows {
        0 => BorrowedSequences::Padded { batch, seq_len, lengths },
        rows => {
            let (first_rows, positions) = (address(of.first_rows), address(of.positions));
            BorrowedSequences::Packed { batch, seq_len, rows, lengths, first_rows, positions }
        }
    };
    // SAFETY: the caller's promise, passed on.
    Ok(unsafe { Batch::from_raw(device, sequences)? })
}

#[cfg(test)]
mod tests {
    use super::super::structs::{PafDesign, PafDtype, PafHiddenAct, PafMemory, PafSchedule};
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!(dtype(PafDtype::Bf16 as i32).unwrap(), Dtype::Bf16);
        assert_eq!(dtype(PafDtype::F16 as i32).unwrap(), Dtype::F16);
        assert_eq!(element_type(PafDtype::F32 as i32).unwrap(), ElementType::F32);
        assert_eq!(location(PafMemory::Host as i32).unwrap(), Location::Host);
        assert_eq!(location(PafMemory::Device as i32).unwrap(), Location::Device);
        for (number, expected) in [
            (PafDesign::SafPostNorm, Design::SafPostNorm),
            (PafDesign::PafPostNorm, Design::PafPostNorm),
            (PafDesign::SafPreNorm, Design::SafPreNorm),
            (PafDesign::PafPreNorm, Design::PafPreNorm),
            (PafDesign::PafPreNormTwo, Design::PafPreNormTwo),
        ] {
            assert_eq!(design(number as i32).unwrap(), expected);
        }
        for (number, expected) in [
            (PafHiddenAct::Gelu, HiddenAct::Gelu),
            (PafHiddenAct::GeluNew, HiddenAct::GeluNew),
            (PafHiddenAct::Relu, HiddenAct::Relu),
            (PafHiddenAct::Silu, HiddenAct::Silu),
        ] {
            assert_eq!(hidden_act(number as i32).unwrap(), expected);
        }
        for (number, expected) in [
            (PafSchedule::Serial, Schedule::Serial),
            (PafSchedule::TwoStream, Schedule::TwoStream),
            (PafSchedule::Fused, Schedule::Fused),
            (PafSchedule::Hybrid, Schedule::Hybrid),
        ] {
            assert_eq!(schedule(number as i32).unwrap(), expected);
        }
        for number in [i32::MIN, -1, 0, 6, i32::MAX] {
            assert!(design(number).unwrap_err().text.contains(&format!("design is {number}")));
        }
    }

    #[test]
    fn a_struct_of_another_size_is_taken_if_what_is_unknown_in_it_is_0() {
        #[repr(C)]
        struct Later {
            known: PafBatch,
            appended: u64,
        }
        let none = std::ptr::null();
        let known = PafBatch {
            struct_size: 0,
            batch: 2,
            seq_len: 7,
            packed_rows: 0,
            lengths: none,
            first_rows: none,
            positions: none,
        };
        // SAFETY: each struct has as many bytes as it says, or the reading ends at the number.
        let read_of = |struct_size, appended| unsafe {
            let later = Later { known: PafBatch { struct_size, ..known }, appended };
            read(&raw const later.known)
        };
        assert_eq!(read_of(size_of::<PafBatch>(), 5).unwrap().seq_len, 7);
        assert_eq!(read_of(size_of::<Later>(), 0).unwrap().seq_len, 7);
        assert_eq!(read_of(size_of::<Later>(), 5).unwrap_err().status, PafStatus::Unsupported);
        for never_set in [0, size_of::<PafBatch>() - 1, MOST_BYTES + 1, usize::MAX] {
            let failure = read_of(never_set, 0).unwrap_err();
            assert_eq!(failure.status, PafStatus::InvalidArgument);
            assert!(failure.text.contains(&format!("PafBatch.struct_size is {never_set}")), "{}", failure.text);
        }
        // SAFETY: null is allowed.
        assert_eq!(unsafe { read::<PafBatch>(none.cast()) }.unwrap_err().status, PafStatus::InvalidArgument);
    }
}
