//! Devices.

use std::ptr::null_mut;

use cudarc::driver::sys::CUctx_st;

use super::handle::{Object, PafDevice, destroy, register, with_device, without_handle};
use super::read::dtype;
use super::status::{Failure, PafStatus};
use crate::gpu::{CurrentContext, Device, device_count};

/// Writes a handle of device `ordinal`, on its primary context, which the CUDA runtime uses, too.
///
/// # Safety
/// `device` is null or has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_device_open(ordinal: usize, device: *mut *mut PafDevice) -> PafStatus {
    // SAFETY: the caller's promise, passed on.
    unsafe { open(device, || Ok(Device::new(ordinal)?)) }
}

/// Writes a handle of the device of a context that the caller has, and keeps alive until the handle and everything made with it are
/// destroyed.
///
/// # Safety
/// `context` is null or a live CUcontext; `device` is null or has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_device_from_context(context: *mut CUctx_st, device: *mut *mut PafDevice) -> PafStatus {
    // SAFETY: the caller's promises, passed on.
    unsafe { open(device, || Ok(Device::from_context(context)?)) }
}

unsafe fn open(device: *mut *mut PafDevice, make: impl FnOnce() -> Result<Device, Failure>) -> PafStatus {
    without_handle(|| {
        // SAFETY: the caller's promise, passed on.
        let device = unsafe { output("device", device, null_mut())? };
        device_count()?; // finds the driver, without which there is no current context to ask for
        let _context = CurrentContext::keep();
        *device = register(Object::Device(make()?));
        Ok(())
    })
}

/// Where a result goes, `value` until it is there.
///
/// # Safety
/// `pointer` is null or has room for a `T`.
pub(super) unsafe fn output<'a, T>(name: &str, pointer: *mut T, value: T) -> Result<&'a mut T, Failure> {
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(Failure::invalid(format!("{name} is {pointer:?}, expected where to write it")));
    }
    // SAFETY: the caller's promise; written before it is read.
    unsafe {
        pointer.write(value);
        Ok(&mut *pointer)
    }
}

/// Has the driver load the kernels for a PafDtype, which else the first call that needs them does: inside a stream capture none can be
/// loaded. Making an encoder does this, too.
#[unsafe(no_mangle)]
pub extern "C" fn paf_device_prepare(device: *mut PafDevice, of: i32) -> PafStatus {
    with_device(device, |device| Ok(device.prepare(dtype(of)?)?))
}

/// Waits for everything that was launched on the device: where errors of kernels are reported. Not during a stream capture.
#[unsafe(no_mangle)]
pub extern "C" fn paf_device_synchronize(device: *mut PafDevice) -> PafStatus {
    with_device(device, |device| Ok(device.synchronize()?))
}

/// Ends the handle; null is no error. Does not wait: what was enqueued with it has to have run, and graphs that hold it are replayed no
/// more. Encoders made with it go on working.
#[unsafe(no_mangle)]
pub extern "C" fn paf_device_destroy(device: *mut PafDevice) -> PafStatus {
    destroy(device, |object| matches!(object, Object::Device(_)))
}
