//! A value that is made when it is first asked for, and again if that failed.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::Result;

/// What fails in a stream capture, or while memory is short, need not fail later: no error is kept.
#[derive(Debug)]
pub(super) struct Once<T> {
    made: OnceLock<T>,
    /// Held while one thread makes it.
    making: Mutex<()>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self { made: OnceLock::new(), making: Mutex::new(()) }
    }
}

impl<T> Once<T> {
    pub(super) fn get_or_try(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        // Nothing is half done if a thread has panicked here.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let made = make()?;
        Ok(self.made.get_or_init(|| made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn an_error_is_not_kept_and_a_value_is() {
        let once = Once::default();
        let failed = once.get_or_try(|| Err(Error::Verification("not now".into())));
        assert!(matches!(failed, Err(Error::Verification(_))));
        assert_eq!(*once.get_or_try(|| Ok(1)).unwrap(), 1);
        assert_eq!(*once.get_or_try(|| Ok(2)).unwrap(), 1);
    }
}
