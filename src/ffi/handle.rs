//! Handles, and what every call does around its own work: finding what a handle stands for, catching panics, keeping the text of what
//! went wrong, giving the thread its context back.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use super::encoder::EncoderState;
use super::status::{Failure, PafStatus};
use crate::gpu::{CurrentContext, Device};

/// A device with a context on it and its kernels. Any number of threads may use one at once.
pub struct PafDevice(());

/// A stack of layers on a device: weights, streams, a plan. One thread at a time may be in a call with one.
pub struct PafEncoder(());

pub(super) type Outcome<T = ()> = std::result::Result<T, Failure>;

pub(super) enum Object {
    Device(Device),
    Encoder(Box<Mutex<EncoderState>>),
}

struct Entry {
    object: Object,
    last_error: Arc<Mutex<String>>,
}

static LIVE: LazyLock<RwLock<HashMap<usize, Arc<Entry>>>> = LazyLock::new(RwLock::default);

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

fn find(handle: *const c_void) -> Option<Arc<Entry>> {
    // A panic while the table was locked has left it whole: entries are inserted and removed in one step.
    LIVE.read().unwrap_or_else(PoisonError::into_inner).get(&handle.addr()).cloned()
}

/// A handle that stands for `object` from now on.
pub(super) fn register<T>(object: Object) -> *mut T {
    // Never used again, and too small to be an address that could be taken for one.
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let entry = Arc::new(Entry { object, last_error: Arc::default() });
    LIVE.write().unwrap_or_else(PoisonError::into_inner).insert(number, entry);
    std::ptr::without_provenance_mut(number)
}

/// Ends a handle. What it stood for is dropped here, or when the last call that another thread is in with it returns.
pub(super) fn destroy<T>(handle: *mut T, is_kind: fn(&Object) -> bool) -> PafStatus {
    if handle.is_null() {
        return PafStatus::Ok;
    }
    guarded(None, || {
        let mut live = LIVE.write().unwrap_or_else(PoisonError::into_inner);
        let number = handle.addr();
        if !live.get(&number).is_some_and(|entry| is_kind(&entry.object)) {
            return Err(dead(handle.cast()));
        }
        let entry = live.remove(&number);
        drop(live);
        let _context = CurrentContext::keep();
        drop(entry);
        Ok(())
    })
}

fn dead(handle: *const c_void) -> Failure {
    let text = format!("{handle:?} is no handle of this kind: it was destroyed, or never made");
    Failure { status: PafStatus::InvalidHandle, text }
}

/// Runs `body`; what goes wrong in it is kept in `text` and for this thread.
fn guarded(text: Option<&Mutex<String>>, body: impl FnOnce() -> Outcome) -> PafStatus {
    // What a panic may have left half done is an encoder's state, whose lock it poisons, or the driver's.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return PafStatus::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Failure { status: PafStatus::Internal, text: format!("the library panicked: {text}") }
        }
    };
    if let Some(text) = text {
        text.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&failure.text);
    }
    // A thread that is ending may have none left.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = failure.text);
    failure.status
}

/// A call without a handle.
pub(super) fn without_handle(body: impl FnOnce() -> Outcome) -> PafStatus {
    guarded(None, body)
}

/// A call with a handle, of the kind that `body` finds in it.
fn with(handle: *const c_void, body: impl FnOnce(&Object) -> Option<Outcome>) -> PafStatus {
    let Some(entry) = find(handle) else {
        return guarded(None, || Err(dead(handle)));
    };
    let text = entry.last_error.clone();
    guarded(Some(&text), move || {
        let _context = CurrentContext::keep();
        // Where another thread has destroyed the handle meanwhile, what it stood for is dropped here, before the context is given back.
        let entry = entry;
        body(&entry.object).unwrap_or_else(|| Err(dead(handle)))
    })
}

/// A call with a device.
pub(super) fn with_device(handle: *const PafDevice, body: impl FnOnce(&Device) -> Outcome) -> PafStatus {
    with(handle.cast(), |object| match object {
        Object::Device(device) => Some(device.enter().map_err(Failure::from).and_then(|()| body(device))),
        Object::Encoder(_) => None,
    })
}

/// A call with an encoder, which no other thread is in a call with.
pub(super) fn with_encoder(handle: *const PafEncoder, body: impl FnOnce(&mut EncoderState) -> Outcome) -> PafStatus {
    with(handle.cast(), |object| match object {
        Object::Encoder(state) => Some(alone(state).and_then(|mut state| {
            state.enter()?;
            body(&mut state)
        })),
        Object::Device(_) => None,
    })
}

fn alone<T>(state: &Mutex<T>) -> Outcome<MutexGuard<'_, T>> {
    state.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Failure {
            status: PafStatus::Busy,
            text: "another thread is in a call with this encoder; paf_encoder_clone makes one for each thread".into(),
        },
        TryLockError::Poisoned(_) => Failure {
            status: PafStatus::Internal,
            text: "an earlier call with this encoder panicked; destroy it".into(),
        },
    })
}

/// The text of the last failure with a handle that is alive, else on this thread.
pub(super) fn last_error(handle: *const c_void) -> String {
    // The text alone is held: an entry that another thread destroys meanwhile is not to be dropped here.
    let live = LIVE.read().unwrap_or_else(PoisonError::into_inner);
    let text = live.get(&handle.addr()).map(|entry| entry.last_error.clone());
    drop(live);
    match text {
        Some(text) => text.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        None => LAST_ERROR.try_with(|last| last.borrow().clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_a_status_and_a_text() {
        for body in [|| panic!("a text"), || panic!("a {}", "text"), || std::panic::panic_any(7)] {
            assert_eq!(without_handle(body), PafStatus::Internal);
            let text = last_error(std::ptr::null());
            assert!(
                text.starts_with("the library panicked: ") && text.ends_with("a text") | text.ends_with("no message")
            );
        }
    }

    #[test]
    fn a_second_thread_is_turned_away_and_a_poisoned_state_is_never_used() {
        let state = Mutex::new(());
        let held = alone(&state).unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| alone(&state).map(drop).unwrap_err().status);
            assert_eq!(other.join().unwrap(), PafStatus::Busy);
        });
        drop(held);
        drop(alone(&state).unwrap());
        let panicking = || {
            let _held = alone(&state)?;
            panic!("inside a call")
        };
        assert_eq!(without_handle(panicking), PafStatus::Internal);
        assert_eq!(alone(&state).unwrap_err().status, PafStatus::Internal);
    }

    #[test]
    fn a_handle_that_is_no_longer_one_is_found_out() {
        let never = std::ptr::without_provenance_mut::<PafEncoder>(0x7fff_1234_5678);
        assert_eq!(with_encoder(never, |_| Ok(())), PafStatus::InvalidHandle);
        assert_eq!(destroy(never, |_| true), PafStatus::InvalidHandle);
        assert!(last_error(never.cast()).contains("0x7fff12345678"));
        assert_eq!(destroy(std::ptr::null_mut::<PafEncoder>(), |_| true), PafStatus::Ok);
    }
}
