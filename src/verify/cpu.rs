//! The f32 engine against the oracle.

use std::sync::Arc;

use super::{Case, Comparison, compare, poison_padding, widen};
use crate::config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig, Schedule};
use crate::cpu::Encoder;
use crate::cpu::oracle::{self, Rounding};
use crate::error::Result;
use crate::weights::{LayerWeights, random_activations, random_layers};

/// Stacks of two layers, as a user without a GPU runs them: all designs, schedules, activations, causal or not, with and without padding, odd sizes.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: [(usize, usize, Option<Vec<usize>>); 4] =
        [(1, 1, None), (2, 17, None), (3, 67, Some(vec![67, 0, 5])), (1, 130, Some(vec![129]))];
    for (i, design) in Design::ALL.into_iter().enumerate() {
        for (j, (batch, seq_len, lengths)) in shapes.iter().enumerate() {
            for causal in [false, true] {
                for schedule in Schedule::ALL.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
                    let hidden_act = HiddenAct::ALL[(i + j) % 3];
                    let padding = if lengths.is_some() { " padded" } else { "" };
                    let mask = if causal { " causal" } else { "" };
                    let name = format!("cpu layer {design} {schedule} {hidden_act}{mask} {batch}x{seq_len}{padding}");
                    let lengths = lengths.clone();
                    let (batch, seq_len) = (*batch, *seq_len);
                    let seed = (i * 10 + j) as u64;
                    cases.push(Case::new(name, move || {
                        // Every other shape has one key and value head for all four query heads, or for two.
                        let num_key_value_heads = [4, 2, 4, 1][j];
                        let base = LayerConfig::new(64 + 16 * j, 4, 200)?;
                        let layer = LayerConfig { hidden_act, causal, design, num_key_value_heads, ..base };
                        let mut shape = BatchShape::new(batch, seq_len)?;
                        if let Some(lengths) = lengths.clone() {
                            shape = shape.with_lengths(lengths)?;
                        }
                        check(EncoderConfig { layer, num_hidden_layers: 2 }, schedule, &shape, seed)
                    }));
                }
            }
        }
    }
    cases
}

/// The stack of `config` on random weights and activations against the oracle.
///
/// # Errors
/// [`Error::Verification`](crate::Error::Verification) if the result is out of bounds; whatever running it gives.
pub fn check(config: EncoderConfig, schedule: Schedule, shape: &BatchShape, seed: u64) -> Result<Comparison> {
    let h = config.layer.hidden_size;
    let layers: Vec<LayerWeights> = random_layers(&config, seed).collect();
    let mut x = random_activations(shape.rows(), h, seed);
    poison_padding(&mut x, shape, h);
    let layers = Arc::new(layers);
    let encoder = Encoder::new(config, layers.clone())?;
    let mut workspace = encoder.workspace(shape)?;
    let mut y = vec![f32::NAN; x.len()];
    encoder.forward(schedule, shape, &x, &mut y, &mut workspace)?;
    let exact = oracle::encoder(encoder.config(), &layers, &widen(&x), shape, Rounding::Exact)?;
    against_f32(&y, &exact, h)
}

/// The engine has no naive twin in f32 to be measured by: in its place stands an error of 10⁻⁶ of each element, some ten
/// roundings of f32.
fn against_f32(y: &[f32], exact: &[f64], cols: usize) -> Result<Comparison> {
    let naive: Vec<f64> = exact.iter().map(|x| x * (1.0 + 1e-6)).collect();
    compare(y, exact, &naive, f64::from(f32::EPSILON), cols)
}
