//! The structs that C fills in, and the numbers in them.
#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::private_intra_doc_links,
    reason = "shapes in brackets, as the header has them, are no links"
)]

use std::ffi::c_void;

use cudarc::driver::sys::CUstream_st;

use super::handle::Outcome;
use super::status::{Failure, PafStatus};
use crate::config::{Design, HiddenAct, Schedule};
use crate::dtype::Dtype;
use crate::gpu::{Batch, BorrowedSequences, Device, ElementType, Location};

/// Element types. Activations, and a device's copy of the weights, are PAF_DTYPE_BF16 or PAF_DTYPE_F16.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafDtype {
    /// IEEE binary32: of weights that are given, never of activations.
    F32 = 1,
    /// bfloat16.
    Bf16 = 2,
    /// IEEE binary16.
    F16 = 3,
}

/// How a layer composes attention and feed-forward (FFN) blocks.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafDesign {
    /// a = LN1(x + Attn(x)); y = LN2(a + FFN(a))
    SafPostNorm = 1,
    /// y = LN2(x + Attn(x) + FFN(x))
    PafPostNorm = 2,
    /// a = x + Attn(LN1(x)); y = a + FFN(LN2(a))
    SafPreNorm = 3,
    /// n = LN1(x); y = x + Attn(n) + FFN(n)
    PafPreNorm = 4,
    /// y = x + Attn(LN1(x)) + FFN(LN2(x))
    PafPreNormTwo = 5,
}

/// Activation functions. Of a GEMM, 0 is none.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafHiddenAct {
    /// With erf.
    Gelu = 1,
    /// With tanh.
    GeluNew = 2,
    /// max(x, 0)
    Relu = 3,
    /// Of gates alone.
    Silu = 4,
}

/// In what order, on which streams, a layer's kernels are launched. Of a forward call, 0 is the encoder's plan.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafSchedule {
    /// Every kernel on the caller's stream: the only order of the serial designs.
    Serial = 1,
    /// Attention on one stream, FFN on the other, forked from the caller's and joined to it by events.
    TwoStream = 2,
    /// Wide products on the caller's stream.
    Fused = 3,
    /// A wide first product, then attention beside the FFN's second.
    Hybrid = 4,
}

/// Where weights are.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafMemory {
    /// In the host's memory.
    Host = 1,
    /// In the device's memory.
    Device = 2,
}

/// What an encoder is; names as in Hugging Face's config.json. Fields of 0 stand for what is said beside them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafEncoderConfig {
    /// sizeof(PafEncoderConfig)
    pub struct_size: usize,
    /// Width of the residual stream, a multiple of 8.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; 0: as many as query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; 0: hidden_size / num_attention_heads.
    pub head_dim: usize,
    /// Width of the FFN's inner layer, a multiple of 8.
    pub intermediate_size: usize,
    /// Equal layers.
    pub num_hidden_layers: usize,
    /// Most rows (tokens, padding included) that one forward call will have, at most 2^20.
    pub max_rows: usize,
    /// Of a head, how many dimensions are rotated by their positions; 0: none.
    pub rotary_dim: usize,
    /// Base of the rotation's angles; 0: 10000.
    pub rotary_base: f32,
    /// Not 0: pairs are neighbours (GPT-J), instead of halves (GPT-NeoX).
    pub rotary_interleaved: i32,
    /// Epsilon of the layer norms; 0: 1e-5.
    pub layer_norm_eps: f32,
    /// A PafHiddenAct: the FFN's activation, or with a gate the gate's.
    pub hidden_act: i32,
    /// Not 0: the FFN's inner layer is multiplied by a gate (SwiGLU).
    pub gated: i32,
    /// Not 0: a position attends to itself and to earlier ones alone.
    pub causal: i32,
    /// A PafDesign.
    pub design: i32,
    /// A PafDtype, of activations and of the encoder's copy of the weights: PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
}

/// Weights of one layer, row-major without gaps, matrices [out_features, in_features]. A bias or beta that is null is zeros, a gamma that
/// is null is ones. q = num_attention_heads * head_dim, kv = num_key_value_heads * head_dim.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafLayerWeights {
    /// sizeof(PafLayerWeights)
    pub struct_size: usize,
    /// A PafDtype, of all of them.
    pub dtype: i32,
    /// A PafMemory, of all of them.
    pub memory: i32,
    /// Query, key and value projections one above the other, [q + 2 kv, hidden_size].
    pub w_qkv: *const c_void,
    /// [q + 2 kv]
    pub b_qkv: *const c_void,
    /// Attention's output projection, [hidden_size, q].
    pub w_o: *const c_void,
    /// [hidden_size]
    pub b_o: *const c_void,
    /// The FFN's first product, [intermediate_size, hidden_size].
    pub w_1: *const c_void,
    /// [intermediate_size]
    pub b_1: *const c_void,
    /// The gate's projection, [intermediate_size, hidden_size]; null without a gate.
    pub w_gate: *const c_void,
    /// [intermediate_size]; null without a gate.
    pub b_gate: *const c_void,
    /// The FFN's second product, [hidden_size, intermediate_size].
    pub w_2: *const c_void,
    /// [hidden_size]
    pub b_2: *const c_void,
    /// LN1, [hidden_size] each. PAF_DESIGN_PAF_POST_NORM does not use it.
    pub ln_1_gamma: *const c_void,
    /// [hidden_size]
    pub ln_1_beta: *const c_void,
    /// LN2, [hidden_size] each. PAF_DESIGN_PAF_PRE_NORM does not use it.
    pub ln_2_gamma: *const c_void,
    /// [hidden_size]
    pub ln_2_beta: *const c_void,
}

/// Which rows of the activations are which sequences. Pointers are to the device's memory, which is read when the stream runs the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafBatch {
    /// sizeof(PafBatch)
    pub struct_size: usize,
    /// Number of sequences.
    pub batch: usize,
    /// Rows of each, padding included; of packed sequences, tokens of the longest, or more.
    pub seq_len: usize,
    /// 0: padded, batch * seq_len rows. Else the sequences are packed, one after the other, and this is the sum of their lengths.
    pub packed_rows: usize,
    /// [batch], valid tokens of each, 0 to seq_len. Null, if padded: all have seq_len. Rows of padding get no weight as keys, and become
    /// zeros in every output.
    pub lengths: *const i32,
    /// [batch], if packed: the row of each sequence's first token.
    pub first_rows: *const i32,
    /// [packed_rows], if packed: the position of each row in its sequence.
    pub positions: *const i32,
}

/// One forward call. Pointers but `batch` are to the device's memory, which belongs to the call until the stream has run it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafForward {
    /// sizeof(PafForward)
    pub struct_size: usize,
    /// The caller's stream; null is the legacy default stream.
    pub stream: *mut CUstream_st,
    /// Which rows are which sequences.
    pub batch: *const PafBatch,
    /// [rows, hidden_size], aligned to 16 bytes.
    pub x: *const c_void,
    /// [rows, hidden_size], aligned to 16 bytes. May be x.
    pub y: *mut c_void,
    /// Scratch memory, aligned to 256 bytes, apart from x and y. Nothing is kept there from one call to the next.
    pub workspace: *mut c_void,
    /// As many as paf_encoder_workspace_bytes says, or more.
    pub workspace_bytes: usize,
    /// A PafSchedule; 0: the encoder's plan.
    pub schedule: i32,
    /// 0
    pub reserved: i32,
}

/// One product: c = act(a * transposed(w) + bias), or a * transposed(w) + bias + residual, accumulated in fp32. k and n are multiples of 8.
/// Matrices are row-major without gaps; all pointers are aligned to 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafGemm {
    /// sizeof(PafGemm)
    pub struct_size: usize,
    /// The caller's stream.
    pub stream: *mut CUstream_st,
    /// PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
    /// A PafHiddenAct other than PAF_HIDDEN_ACT_SILU, or 0. Not together with a residual.
    pub activation: i32,
    /// Rows of a and c.
    pub m: usize,
    /// Rows of w, columns of c.
    pub n: usize,
    /// Columns of a and w.
    pub k: usize,
    /// [m, k]
    pub a: *const c_void,
    /// [n, k]
    pub w: *const c_void,
    /// [n], or null.
    pub bias: *const c_void,
    /// [m, n], or null.
    pub residual: *const c_void,
    /// [m, n]
    pub c: *mut c_void,
}

/// softmax(Q * transposed(K) / sqrt(head_dim)) * V of each sequence and each head. Matrices are aligned to 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafAttention {
    /// sizeof(PafAttention)
    pub struct_size: usize,
    /// The caller's stream.
    pub stream: *mut CUstream_st,
    /// Which rows are which sequences.
    pub batch: *const PafBatch,
    /// PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
    /// Not 0: a position attends to itself and to earlier ones alone.
    pub causal: i32,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of heads; 0: as many.
    pub key_value_heads: usize,
    /// 32, 64, 80, 96, 128 or 256.
    pub head_dim: usize,
    /// [rows, (heads + 2 key_value_heads) * head_dim]: all query heads, all key heads, all value heads.
    pub qkv: *const c_void,
    /// [rows, heads * head_dim]
    pub out: *mut c_void,
    /// fp32 [heads, rows], or null: natural logarithm of the softmax's denominator, minus infinity in rows of padding.
    pub log_sum_exp: *mut f32,
}

/// s = sum of up to three addends, and out = (s - mean) / sqrt(variance + eps) * gamma + beta of each row. All pointers are
/// aligned to 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafNorm {
    /// sizeof(PafNorm)
    pub struct_size: usize,
    /// The caller's stream.
    pub stream: *mut CUstream_st,
    /// Which rows are padding, and become zeros; null: none.
    pub batch: *const PafBatch,
    /// PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
    /// Added to the variance; 0: 1e-5.
    pub eps: f32,
    /// Rows: those of the batch, if there is one.
    pub rows: usize,
    /// Columns, a multiple of 8.
    pub hidden_size: usize,
    /// [rows, hidden_size] each; the second and third may be null.
    pub addends: [*const c_void; 3],
    /// Where s goes, [rows, hidden_size], or null. May be an addend.
    pub sum: *mut c_void,
    /// [hidden_size]
    pub gamma: *const c_void,
    /// [hidden_size]
    pub beta: *const c_void,
    /// [rows, hidden_size]
    pub out: *mut c_void,
}

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
    // No version has had less yet. When one appends a field, this stays what it is.
    if given < known {
        let text = format!("{}.struct_size is {given}, expected sizeof({}), {known}", T::NAME, T::NAME);
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
        assert!(read_of(0, 0).unwrap_err().text.contains("PafBatch.struct_size is 0"));
        // SAFETY: null is allowed.
        assert_eq!(unsafe { read::<PafBatch>(none.cast()) }.unwrap_err().status, PafStatus::InvalidArgument);
    }
}
