//! The C ABI: what `include/paf.h` declares. That header is made of this module, and its comments are these.
//!
//! Handles are numbers of a table, never addresses: one that was destroyed, or never was one, is found out, and nothing is freed under
//! a call that another thread is in. Structs begin with their size, so that a later version can append fields. No panic leaves an
//! entry. The thread's current context is the same after a call as before.
//!
//! From Rust, use [`gpu`](crate::gpu), which has all of this with types.

mod device;
mod encoder;
mod handle;
mod kernels;
mod read;
mod status;
mod structs;

use std::ffi::{c_char, c_void};

pub use device::*;
pub use encoder::*;
pub use handle::{PafDevice, PafEncoder};
pub use kernels::*;
pub use status::PafStatus;
pub use structs::*;

/// Version of this interface. Functions and fields are only ever added under one number; it changes when what was there changes.
pub const PAF_ABI_VERSION: u32 = 1;

/// The library's PAF_ABI_VERSION: to be compared with the header's before anything else is called.
#[unsafe(no_mangle)]
pub extern "C" fn paf_abi_version() -> u32 {
    PAF_ABI_VERSION
}

/// The library's version, "major.minor.patch". Never null; not to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn paf_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Copies what went wrong in the last call that failed with this handle, or, where the handle is null or not alive, in the last call
/// that failed on this thread; empty if none has. At most `bytes` bytes are written, the last one always 0.
/// Returns how many bytes the text takes with its 0, whatever `bytes` is; `buffer` may be null if `bytes` is 0.
///
/// # Safety
/// `buffer` has room for `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_last_error(handle: *const c_void, buffer: *mut c_char, bytes: usize) -> usize {
    let text = handle::last_error(handle);
    // SAFETY: the caller's promise, passed on.
    unsafe { copy_text(&text, buffer, bytes) }
}

/// Copies as much of `text` as fits, and a 0. Returns how many bytes it takes in all.
///
/// # Safety
/// `buffer`, if not null, has room for `bytes` bytes.
unsafe fn copy_text(text: &str, buffer: *mut c_char, bytes: usize) -> usize {
    if bytes > 0 && !buffer.is_null() {
        let copied = text.len().min(bytes - 1);
        // SAFETY: `copied` bytes and the 0 are at most `bytes`.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, copied);
            buffer.add(copied).write(0);
        }
    }
    text.len() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_to_the_buffer_and_end_with_a_zero() {
        for (bytes, expected) in [(1, "\0"), (3, "ab\0"), (4, "abc\0"), (5, "abc\0#")] {
            let mut buffer = [b'#'; 5];
            // SAFETY: the buffer is at least that long.
            assert_eq!(unsafe { copy_text("abc", buffer.as_mut_ptr().cast(), bytes) }, 4);
            assert_eq!(&buffer[..expected.len()], expected.as_bytes());
            assert!(buffer[expected.len()..].iter().all(|&byte| byte == b'#'), "{buffer:?}");
        }
        // SAFETY: nothing is written.
        assert_eq!(unsafe { copy_text("abc", std::ptr::null_mut(), 0) }, 4);
    }
}
