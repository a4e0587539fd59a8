//! Stacks of one block alone, as they are measured, against the oracle.

use std::sync::Arc;

use super::DTYPES;
use super::expected::Oracle;
use crate::config::{BatchShape, Design, EncoderConfig, LayerConfig, Rotary, Schedule};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::{Branch, Device, Encoder, EncoderWeights};
use crate::verify::{Case, Comparison, Layout};
use crate::weights::{LayerWeights, random_layers};

const BLOCKS: [(Branch, &str); 2] = [(Branch::Attention, "attention"), (Branch::Ffn, "FFN")];

/// Either block of both serial designs, with few and many rows, eager and as a graph; gates and rotary embeddings take turns.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let layouts = [Layout::Full(1, 1), Layout::Padded(67, vec![66, 0, 31]), Layout::Packed(vec![0, 65, 1, 130])];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (i, design) in [Design::SafPostNorm, Design::SafPreNorm].into_iter().enumerate() {
            for (block, block_name) in BLOCKS {
                for (j, layout) in layouts.iter().enumerate() {
                    let base = LayerConfig::new(128, 2, 328).expect("valid dimensions");
                    let rotary = Some(Rotary { dim: 16, base: 1e4, interleaved: false });
                    let odd = (i + j) % 2 == 1;
                    let layer = LayerConfig { design, gated: odd, rotary: rotary.filter(|_| odd), causal: odd, ..base };
                    for graph in [false, true] {
                        let how = if graph { "graph" } else { "eager" };
                        let rest = if odd { " gated rotary causal" } else { "" };
                        let name = format!("block {dtype} {block_name} of {design} {how}{rest} {layout}");
                        let (device, layer, layout) = (device.clone(), layer.clone(), layout.clone());
                        cases.push(Case::new(name, move || {
                            case(&device, dtype, &layer, block, graph, &layout.shape()?)
                        }));
                    }
                }
            }
        }
    }
    cases
}

fn case(
    device: &Device,
    dtype: Dtype,
    layer: &LayerConfig,
    block: Branch,
    graph: bool,
    shape: &BatchShape,
) -> Result<Comparison> {
    let config = EncoderConfig { layer: layer.clone(), num_hidden_layers: 3 };
    let layers: Vec<_> = random_layers(&config, 7).map(|layer| layer.rounded(dtype)).collect();
    let weights = Arc::new(EncoderWeights::upload(device, &config, dtype, &layers)?);
    let encoder = Encoder::new(&config, weights)?.only(block)?;
    Oracle::new(layers, dtype).check(&encoder, Schedule::Serial, graph, shape)
}

/// What the oracle takes for a block alone: the parallel design with one norm, which is the block's where the other branch gives nothing.
pub(super) fn parallel(config: &EncoderConfig) -> EncoderConfig {
    config.with_design(config.layer.design.parallel())
}

/// Weights with which that is so: the other branch's last product is zero, and the norm that the design uses is the block's.
pub(super) fn alone(layer: &LayerWeights, design: Design, block: Branch) -> LayerWeights {
    let mut layer = layer.clone();
    let norm = match block {
        Branch::Attention => {
            layer.w_2.fill(0.0);
            layer.b_2.fill(0.0);
            layer.ln_1.clone()
        }
        Branch::Ffn => {
            layer.w_o.fill(0.0);
            layer.b_o.fill(0.0);
            layer.ln_2.clone()
        }
    };
    if design.is_post_norm() {
        layer.ln_2 = norm;
    } else {
        layer.ln_1 = norm;
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::oracle::{self, Rounding};
    use crate::weights::random_activations;

    #[test]
    fn the_blocks_in_turn_are_the_serial_layer() {
        for design in [Design::SafPostNorm, Design::SafPreNorm] {
            let layer = LayerConfig { design, ..LayerConfig::new(32, 2, 72).unwrap() };
            let config = EncoderConfig { layer, num_hidden_layers: 1 };
            let layers: Vec<_> = random_layers(&config, 3).collect();
            let shape = BatchShape::new(2, 5).unwrap();
            let x: Vec<f64> = random_activations(shape.rows(), 32, 1).into_iter().map(f64::from).collect();
            let whole = oracle::encoder(&config, &layers, &x, &shape, Rounding::Exact).unwrap();
            let in_turn = BLOCKS.iter().fold(x.clone(), |x, &(block, _)| {
                let alone = [alone(&layers[0], design, block)];
                oracle::encoder(&parallel(&config), &alone, &x, &shape, Rounding::Exact).unwrap()
            });
            let error = whole.iter().zip(&in_turn).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-12, "{design}: {error}");
            assert!(whole.iter().zip(&x).any(|(a, b)| (a - b).abs() > 0.1), "{design}: nothing happened");
        }
    }
}
