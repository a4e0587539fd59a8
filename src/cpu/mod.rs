//! Transformer layers on the CPU, twice: [`oracle`], the f64 reference that every other implementation is checked
//! against, and [`Encoder`], the f32 engine for machines without a GPU; [`Model`] is a whole language model around one.
//!
//! The two share no arithmetic, so that an error in one shows as a difference.

mod attention;
mod engine;
mod model;
pub mod oracle;
pub(crate) mod product;

pub use engine::{Encoder, SCHEDULES, Workspace};
pub use model::{Model, Pooling};
#[cfg(feature = "cuda")]
pub(crate) use model::{no_head, no_pooler, zeros};

use crate::config::BatchShape;
use crate::error::{Error, Result};

/// Checks that a slice of `got` elements is a matrix of this shape with at least one element.
fn check_len(operation: &'static str, what: &'static str, got: usize, [rows, cols]: [usize; 2]) -> Result<()> {
    if rows.checked_mul(cols) != Some(got) || got == 0 {
        return Err(Error::mismatch(
            operation,
            what,
            format!("{got} elements"),
            format!("[{rows}, {cols}], not empty"),
        ));
    }
    Ok(())
}

/// Sets the padded rows of `values`, `[rows, width]`, to 0.
fn zero_padding<T: Copy + Default>(values: &mut [T], shape: &BatchShape, width: usize) {
    for padding in (0..shape.batch()).map(|i| shape.padding_of(i)) {
        values[padding.start * width..padding.end * width].fill(T::default());
    }
}
