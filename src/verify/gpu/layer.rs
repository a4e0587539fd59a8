//! Stacks of layers against the oracle.

use std::sync::Arc;

use super::expected::Oracle;
use super::{ACTIVATIONS, DTYPES};
use crate::config::{Design, EncoderConfig, HiddenAct, LayerConfig, Rotary, Schedule};
use crate::dtype::Dtype;
use crate::gpu::{Device, Encoder, EncoderWeights};
use crate::verify::{Case, Layout};
use crate::weights::random_layers;

/// Every design, schedule and way to launch, with every head width and layout of sequences; masks, activations, grouped
/// heads and rotary embeddings take turns. All of that also with a gate, but for head widths, which take turns then.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let layouts = [
        Layout::Full(1, 1),
        Layout::Full(2, 130),
        Layout::Padded(67, vec![66, 0, 31]),
        Layout::Packed(vec![0, 65, 1, 0, 130]),
    ];
    let dims: [(usize, usize); 6] = [(32, 4), (64, 2), (80, 3), (96, 3), (128, 2), (256, 2)]; // head_dim, heads
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (i, design) in Design::ALL.into_iter().enumerate() {
            for (j, layout) in layouts.iter().enumerate() {
                for (d, (head_dim, heads)) in dims.into_iter().enumerate() {
                    let hidden_act = ACTIVATIONS[(i + j + d) % 3];
                    // Half as many key and value heads; three have no half.
                    let fewer = if heads.is_multiple_of(2) { heads / 2 } else { 1 };
                    let base = LayerConfig::new(head_dim * heads, heads, 328).expect("valid dimensions");
                    let layer = LayerConfig {
                        design,
                        hidden_act,
                        causal: (i + j + d) % 2 == 1,
                        num_key_value_heads: if (i + j) % 2 == 0 { heads } else { fewer },
                        rotary: [
                            None,
                            Some(Rotary { dim: head_dim / 4, base: 1e4, interleaved: false }),
                            Some(Rotary { dim: head_dim, base: 5e5, interleaved: true }),
                        ][(i + 2 * j + d) % 3],
                        ..base
                    };
                    // SiLU every other time: other gates are rarer.
                    let gate = if (i + j) % 2 == 0 { HiddenAct::Silu } else { hidden_act };
                    let gated = LayerConfig { hidden_act: gate, gated: true, ..layer.clone() };
                    let layers = [Some(layer), (d == (i + 2 * j) % 6).then_some(gated)];
                    for layer in layers.iter().flatten() {
                        for schedule in Schedule::ALL.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
                            for graph in [false, true] {
                                cases.push(case(device, dtype, layer, schedule, graph, layout));
                            }
                        }
                    }
                }
            }
        }
    }
    cases
}

fn case(device: &Device, dtype: Dtype, layer: &LayerConfig, schedule: Schedule, graph: bool, layout: &Layout) -> Case {
    let LayerConfig {
        design,
        hidden_act,
        gated,
        head_dim,
        num_attention_heads,
        num_key_value_heads,
        causal,
        rotary,
        ..
    } = layer;
    let name = format!(
        "layer {dtype} {design} {schedule} {} {hidden_act}{}{} d{head_dim} heads {num_attention_heads}/{num_key_value_heads}{} \
         {layout}",
        if graph { "graph" } else { "eager" },
        if *gated { " gated" } else { "" },
        if *causal { " causal" } else { "" },
        rotary.map_or_else(String::new, |rotary| format!(" {}", super::rotary::name(&rotary))),
    );
    let (device, layer, layout) = (device.clone(), layer.clone(), layout.clone());
    Case::new(name, move || {
        let config = EncoderConfig { layer: layer.clone(), num_hidden_layers: 3 };
        let layers: Vec<_> = random_layers(&config, 7).map(|layer| layer.rounded(dtype)).collect();
        let weights = Arc::new(EncoderWeights::upload(&device, &config, dtype, &layers)?);
        Oracle::new(layers, dtype).check(&Encoder::new(&config, weights)?, schedule, graph, &layout.shape()?)
    })
}
