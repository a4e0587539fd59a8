//! The f32 engine against the oracle.

use std::sync::Arc;

use super::{Case, Comparison, Layout, compare, poison_padding, widen};
use crate::config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig, Rotary, Schedule};
use crate::cpu::Encoder;
use crate::cpu::oracle::{self, Rounding};
use crate::error::Result;
use crate::weights::{LayerWeights, random_activations, random_layers};

/// Stacks of two layers, as a user without a GPU runs them: all designs, schedules, activations, causal or not, full,
/// padded and packed batches, grouped heads, rotary embeddings, odd sizes.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let rotary = |dim, interleaved| Some(Rotary { dim, base: 1e4, interleaved });
    // With the key and value heads for four query heads, and the rotary embedding.
    let layouts = [
        (Layout::Full(1, 1), 4, None),
        (Layout::Full(2, 17), 2, rotary(20, false)),
        (Layout::Padded(67, vec![67, 0, 5]), 4, rotary(10, true)),
        (Layout::Padded(130, vec![129]), 1, None),
        (Layout::Packed(vec![33, 0, 1, 70]), 2, rotary(32, true)),
    ];
    for (i, design) in Design::ALL.into_iter().enumerate() {
        for (j, (layout, num_key_value_heads, rotary)) in layouts.iter().enumerate() {
            for causal in [false, true] {
                for schedule in crate::cpu::SCHEDULES.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
                    let (hidden_act, gated) = (HiddenAct::ALL[(i + j) % 4], (i + 2 * j) % 3 == 0);
                    let mask = if causal { " causal" } else { "" };
                    let gate = if gated { " gated" } else { "" };
                    let name = format!("cpu layer {design} {schedule} {hidden_act}{gate}{mask} {layout}");
                    let (layout, num_key_value_heads, rotary) = (layout.clone(), *num_key_value_heads, *rotary);
                    let seed = (i * 10 + j) as u64;
                    cases.push(Case::new(name, move || {
                        let base = LayerConfig::new(64 + 16 * j, 4, 200)?;
                        let layer =
                            LayerConfig { hidden_act, gated, causal, design, num_key_value_heads, rotary, ..base };
                        let shape = layout.shape()?;
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
    let layers = random_layers(&config, seed).collect();
    stack(config, Arc::new(layers), schedule, shape, seed)
}

/// The same of given weights; the activations are random.
///
/// # Errors
/// As [`check`].
pub fn stack(
    config: EncoderConfig,
    layers: Arc<Vec<LayerWeights>>,
    schedule: Schedule,
    shape: &BatchShape,
    seed: u64,
) -> Result<Comparison> {
    let h = config.layer.hidden_size;
    let mut x = random_activations(shape.rows(), h, seed);
    poison_padding(&mut x, shape, h);
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
