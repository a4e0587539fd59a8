//! An estimate of the least time that a device's ceilings allow: for each block, and for a layer in both designs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::work::{Kernel, Layer};
use crate::measure::devices::Description;

/// What of a device, or of the order of kernels, a parallel layer's branches are predicted to take the longest for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The FLOPs of both, at the rate of the tensor cores.
    Flops,
    /// The bytes of both, at the bandwidth of memory.
    Bytes,
    /// Attention's kernels, each after the one before.
    Attention,
    /// The FFN's.
    Ffn,
}

impl Bound {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flops => "FLOPs of both",
            Self::Bytes => "bytes of both",
            Self::Attention => "attention's chain",
            Self::Ffn => "the FFN's chain",
        }
    }
}

/// The least times of one layer, µs, as estimated.
///
/// A kernel takes `t = max(FLOPs / rate, bytes / bandwidth)`, bytes being those of [`Layer`'s](super::Block) that go through memory:
/// weights, and matrices of activations that are larger than the L2 cache. For each wait of a kernel for another one
/// [`kernel_us`](Description::kernel_us) is added, the time from the begin of an empty kernel to that of the next; call that `c`. Then:
///
/// - a block, or SAF, is a chain: `Σ (t + c)` of its kernels;
/// - PAF's branches share the device: `max(Σ FLOPs / rate, Σ bytes / bandwidth, attention's Σ (t + c), the FFN's Σ (t + c))`, the first two
///   sums over the kernels of both, and then the join, `t + c`.
///
/// That is an estimate, not a strict bound: some of `c` may pass while the kernel before still has its `t`, and a bandwidth that was
/// measured by a copy may be below that of reading alone. No term is there for kernels that are too small to fill the device, tiles that
/// do not fit their matrix, power limits, or branches that get in each other's way: times are mostly longer, and the prediction never says
/// that PAF loses.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Predicted {
    /// The attention block alone.
    pub attention_us: f64,
    /// The FFN block alone.
    pub ffn_us: f64,
    /// `Σ t` of SAF's kernels.
    pub saf_work_us: f64,
    /// How many there are, each waiting for the one before.
    pub saf_kernels: usize,
    /// A layer of SAF: `saf_work_us` and the waits.
    pub saf_us: f64,
    /// `Σ FLOPs / rate` of PAF's branches.
    pub paf_flops_us: f64,
    /// `Σ bytes / bandwidth` of PAF's branches.
    pub paf_bytes_us: f64,
    /// Attention's branch alone, without a join.
    pub paf_attention_us: f64,
    /// The FFN's.
    pub paf_ffn_us: f64,
    /// Which of these four is the largest.
    pub paf_bound: Bound,
    /// Kernels of which each waits for the one before, in the longer branch and the join.
    pub paf_kernels: usize,
    /// PAF's join, with its wait.
    pub paf_join_us: f64,
    /// A layer of PAF: the largest of the four, and the join.
    pub paf_us: f64,
    /// `saf_us / paf_us`.
    pub saf_over_paf: f64,
    /// `(attention_us + ffn_us) / max(attention_us, ffn_us)`: SAF over PAF if each block had a device of its own, as the paper counts.
    pub saf_over_paf_apart: f64,
}

/// The terms of a prediction for that device, in words, a line each.
pub(super) fn terms(device: &Description) -> Vec<String> {
    let c = device.kernel_us;
    vec![
        format!(
            "a kernel: t = max(FLOPs / rate, bytes / bandwidth); a wait for another: c = {c:.2} µs, an empty kernel’s from its begin to the \
             next one’s"
        ),
        "bytes here: weights, and matrices of activations that are larger than the L2 cache".into(),
        "a block, SAF: Σ (t + c) over its kernels".into(),
        "PAF: max(FLOPs of both branches / rate, bytes of both / bandwidth, Σ (t + c) of attention’s, Σ (t + c) of the FFN’s), then t + c \
         of its join: branches that run at once share the device, in whatever order"
            .into(),
        "a device each: (A + F) / max(A, F) of the blocks’ times".into(),
        "not in it: kernels too small to fill the device, tiles that do not fit, power limits, branches in each other’s way"
            .into(),
        "an estimate of the least times, no strict bound: some of c may pass within the t before it, and a bandwidth that a copy measured \
         may be below that of reading alone"
            .into(),
    ]
}

/// Of a layer in the parallel design, and in the serial one that goes with it.
pub(super) fn of_layer(layer: &Layer, device: &Description) -> Predicted {
    let flops_us = |kernel: &Kernel| kernel.flops / device.flops_per_s * 1e6;
    let bytes_us = |kernel: &Kernel| kernel.memory_bytes(device.l2_bytes) / device.bytes_per_s * 1e6;
    let alone_us = |kernel: &Kernel| flops_us(kernel).max(bytes_us(kernel));
    let chain_us = |kernels: &mut dyn Iterator<Item = &Kernel>| -> f64 {
        kernels.map(|kernel| alone_us(kernel) + device.kernel_us).sum()
    };

    let saf = || layer.attention_block().chain(layer.ffn_block());
    let (saf_work_us, saf_kernels) = (saf().map(alone_us).sum::<f64>(), saf().count());
    let saf_us = saf_work_us + saf_kernels as f64 * device.kernel_us;
    let attention_us = chain_us(&mut layer.attention_block());
    let ffn_us = chain_us(&mut layer.ffn_block());

    let both = || layer.attention.iter().chain(&layer.ffn);
    let bounds = [
        (Bound::Flops, both().map(flops_us).sum::<f64>()),
        (Bound::Bytes, both().map(bytes_us).sum()),
        (Bound::Attention, chain_us(&mut layer.attention.iter())),
        (Bound::Ffn, chain_us(&mut layer.ffn.iter())),
    ];
    let [(_, paf_flops_us), (_, paf_bytes_us), (_, paf_attention_us), (_, paf_ffn_us)] = bounds;
    let (paf_bound, branches_us) =
        bounds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are four bounds");
    let paf_join_us = chain_us(&mut [&layer.parallel_join].into_iter());
    let paf_us = branches_us + paf_join_us;
    Predicted {
        attention_us,
        ffn_us,
        saf_work_us,
        saf_kernels,
        saf_us,
        paf_flops_us,
        paf_bytes_us,
        paf_attention_us,
        paf_ffn_us,
        paf_bound,
        paf_kernels: layer.attention.len().max(layer.ffn.len()) + 1,
        paf_join_us,
        paf_us,
        saf_over_paf: saf_us / paf_us,
        saf_over_paf_apart: (attention_us + ffn_us) / attention_us.max(ffn_us),
    }
}
