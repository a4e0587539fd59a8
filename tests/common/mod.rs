//! What the CPU engine's tests share; not each of them uses all of it.
#![allow(dead_code)]

use paf_cuda::cpu::Encoder;
use paf_cuda::verify::{Comparison, compare};
use paf_cuda::{BatchShape, Result, Schedule};

/// f32 values as f64; exact.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// The engine's result, in memory that held NaN before.
pub fn run(encoder: &Encoder, schedule: Schedule, shape: &BatchShape, x: &[f32]) -> Result<Vec<f32>> {
    let mut y = vec![f32::NAN; x.len()];
    encoder.forward(schedule, shape, x, &mut y, &mut encoder.workspace(shape)?)?;
    Ok(y)
}

/// Holds the f32 engine to `exact`: the largest error at most 8 ε of the largest value, and the relative L2 error at
/// most 8 ε, for each layer.
///
/// There is no naive f32 implementation to measure by. A sum of k products in f32 is off by about √k·ε/2 of its
/// magnitude; the depths in these tests are below 600, and half a dozen operations follow each other.
pub fn check_f32(got: &[f32], exact: &[f64], encoder: &Encoder) -> Result<Comparison> {
    check_f32_rows(got, exact, encoder, encoder.config().layer.hidden_size)
}

/// The same where rows are `width` wide: of what is made of hidden states by one more product.
pub fn check_f32_rows(got: &[f32], exact: &[f64], encoder: &Encoder, width: usize) -> Result<Comparison> {
    // `compare` allows half of the epsilon it is given, on top of twice the error of an exact implementation.
    let epsilon = 16.0 * f64::from(f32::EPSILON) * encoder.config().num_hidden_layers as f64;
    compare(got, exact, exact, epsilon, width)
}
