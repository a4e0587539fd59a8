//! The heart: the order in which a layer's kernels are launched, and on which streams.
//!
//! ```text
//! serial       caller ──QKV──attention──Wo──W1──W2──join──▶
//!
//! two-stream   attention ──┬──QKV──attention──Wo──────┬──join──┬──▶ next layer
//!                   forked │                 ffn_done │        │ forked
//!              ffn         └──W1────────W2────────────┘        └──▶
//!
//! fused        caller ──[QKV|W1]──attention──[W2|Wo]──join──▶
//!
//! hybrid       attention ──[QKV|W1]──┬──attention──┬──Wo──join──▶ next layer
//!                             forked │    ffn_done │
//!              ffn                   └──W2─────────┘
//! ```
//!
//! `[QKV|W1]` is one product, of weights side by side along N; `[W2|Wo]` one along both Ks, which adds the residual too, so that
//! its join has but the norm to do; or, of few rows, one in parts of K, whose sums the join adds up. So may SAF's Wo and W2, each of
//! which a join follows, and `hybrid`'s Wo. Where the layer has rotary embeddings, the product rotates queries and keys as it finishes them;
//! where its kernel or tile cannot, another kernel does, in place, between it and attention.
//!
//! A gated FFN's first product makes the gate's columns beside the inner layer's (`W1` above means both), and one kernel more
//! multiplies them, in place, before the second product: after W1 on its stream; in `fused` before attention; in `hybrid`
//! beside it. It begins when the product has ended, and nothing after it on its stream begins before it has ended.
//!
//! The attention stream carries the layer from join to join; the FFN stream leaves it at `forked` and comes back at
//! `ffn_done`, before the residual add. Branches write disjoint scratch, so these two events a layer are all the ordering
//! there is. The caller's stream hands over at `start`, which also is the first layer's fork where no kernel precedes that, and takes back
//! at `finished`.
//!
//! On Hopper each kernel that follows another on its stream may begin before that one has ended (programmatic dependent launch):
//! it reads weights meanwhile, and waits before it reads anything else or writes. One that follows an event waits in full. Attention
//! after a wide product begins when Q, K and V are there, while that still makes the FFN's columns, and so runs beside both of the
//! FFN's products. In `fused` the product after it begins when the wide one has ended, or, of few rows in parts of K, is launched with
//! attention and waits for a count of that end: its weights then come as the wide product's blocks leave. Attention by halves, for more rows,
//! begins at that end alone, and the product after it as soon as its blocks have: each multiprocessor then has one of both.
//!
//! Tried on an H200 with RoBERTa-large, ms for 24 layers as a graph, and left:
//! - `fused` at 1 × 128, one run: its second product split in clusters of four 0.432, in four parts of K beside attention 0.411, in six
//!   0.413, in eight, which find no room beside it, 0.443. The wide first one in 64×64 tiles 0.431. Earlier: split eightfold 0.47 to
//!   0.56.
//! - At 1 × 512, one run: the second product as 128×64 in two parts with four stages, in the memory that attention leaves on every
//!   multiprocessor: 0.895. Another run: attention on 32 multiprocessors, in tiles of 256 queries, and 128×128 in three parts on the
//!   others: 0.857. Two more: attention of these from the moment on at which Q, K and V are there: 0.866 → 0.776, 0.872 → 0.781. A layer
//!   of the last, by stamps of the clock that all multiprocessors share (µs from the wide product's first block on; operands: the
//!   first are there): wide product operands 4.6, first round ends 11, second 18.4; attention operands 13.8 to 14.6, end 25.6; second
//!   product start 20.0, operands 21.8 to 22.5, end 31.7; join operands 32.5, end 34.8; next wide product start 35.3, operands 36.6. From
//!   the last block's end to the next kernel's operands is 1.5 to 3 µs each time: what a kernel takes longer in a layer than alone.
//! - The second product launched with attention, waiting for a count of the wide product's tiles: 0.781 → 0.802 at 1 × 512. Letting it
//!   begin before queries are rotated: no difference. On an H100, µs a layer, what is there now → that of any rows: pythia-1.4b 1 × 512
//!   91 → 98, since blocks then lie where the wide product's end first, each far from its neighbours. Against none at all, of up to
//!   256 rows: RoBERTa-large 1 × 128 19.6 → 17.4, 1 × 256 23.1 → 21.9, RoBERTa-base 15.2 → 14.5, pythia-1.4b 1 × 128 53.5 → 51.0 (a part
//!   of that by fewer instructions in the way of first loads: kernels/gemm_sm90.cu; all but the first before a consumer looked at the count). Attention, not the product, telling of the end:
//!   19.4. The next kernel begun when all A is asked for, instead of when the count has been seen: 0.4 more.
//! - QKV products alone counting for attention: SAF 0.671 → 0.708 at 1 × 128, 1.178 → 1.209 at 1 × 512, since attention needs all of them.
//! - Fewer tiles for those blocks of the second product that begin when attention leaves their multiprocessors: nothing.
//! - Norms of few rows kept apart by shared memory that they do not use, so that early blocks do not crowd: 0.476 against 0.455 then
//!   at 1 × 128, since they find no room beside a product; attention kept apart so gains, where it fills the card once.
//! - One kernel for a whole layer, or counts instead of kernels' ends: not built, since what is between kernels would grow. On an H100, in
//!   a chain of 200 kernels of 132 blocks, which copy 16 KB of what the one before wrote to shared memory and write 3 KB, each takes
//!   1.16 µs by programmatic dependent launch, 1.50 without it; 1.48 where blocks wait for a count of the blocks before, which are then
//!   of kernels that ran on; and 1.44 where one kernel does it all.
//! - `two-stream` with products that leave half of each multiprocessor to the other stream: 0.519 instead of 0.597 at 1 × 128, 0.975
//!   instead of 1.10 at 1 × 512, slower beyond (8 × 512: 6.5 instead of 4.7). Results would no longer be `serial`'s to the bit, and
//!   `fused` is ahead there.

mod block;
mod streams;

use streams::{Lane, Streams};

use super::attention::{self, Attention, AttentionVariant, Next};
use super::batch::Batch;
use super::device::Stream;
use super::encoder::{DeviceLayer, Encoder};
use super::gate::{self, Gate};
use super::gemm::{self, Counted, Early, First, Gemm, Meanwhile, Ready, Then};
use super::launch::Kernels;
use super::memory::Matrix;
use super::norm::{self, Join, NormOutput, Parts};
use super::observe::{self, Part};
use super::plan::{self, LayerProduct, Plan};
use super::rotary::{self, Rotation};
use super::workspace::{Branch, Counters, Scratch, Workspace};
use crate::config::{Design, LayerConfig, Schedule};
use crate::error::Result;

/// Enqueues all layers.
///
/// # Safety
/// Operands fit the configuration and stay live, unshared, until `caller` has run what is enqueued.
#[expect(clippy::too_many_arguments, reason = "the operands of one call, each used once")]
pub(super) unsafe fn forward(
    encoder: &Encoder,
    layers: &[DeviceLayer],
    caller: &Stream,
    plan: &Plan,
    batch: &Batch,
    x: Matrix,
    y: Matrix,
    workspace: &Workspace,
) -> Result<()> {
    let schedule = plan.schedule();
    let overlaps = workspace.overlap && plan::kernels_overlap(schedule, batch.shape().rows());
    let lane = |stream| Lane::new(stream, overlaps);
    let (one, other) = match schedule {
        Schedule::Serial | Schedule::Fused => (lane(caller), None),
        Schedule::TwoStream | Schedule::Hybrid => {
            (lane(&workspace.attention_stream), Some(lane(&workspace.ffn_stream)))
        }
    };
    let streams = Streams { attention: &one, ffn: other.as_ref().unwrap_or(&one), workspace };
    let config = &encoder.config().layer;
    let kernels = encoder.device().kernels(encoder.dtype())?;
    let scratch = workspace.scratch(batch.shape().rows());
    let attention = plan::attention_of(kernels, encoder.device(), config, plan, batch)?;
    let attention = Attention { qkv: scratch.qkv, out: scratch.context, ..attention };
    let variant = attention.variant.map_or_else(|| attention::planned(kernels, encoder.device(), &attention), Ok)?;
    let attention = Attention { variant: Some(variant), ..attention };
    let early = plan::early_attention(kernels, encoder.device(), config, plan, batch)?;
    let heads = config.num_attention_heads + config.num_key_value_heads;
    let rotation = workspace.rotary().map(|table| Rotation::new(table, batch.sequences(), heads, config.head_dim));
    let block = encoder.block();
    let counters = workspace.counters();
    let (layer, is_last) = (0, false);
    let run = Run {
        config,
        plan,
        kernels,
        batch,
        attention,
        early,
        rotation,
        scratch,
        counters,
        streams,
        block,
        layer,
        is_last,
    };
    let layers = &layers[..encoder.config().num_hidden_layers];
    observe::streams([(caller, "caller"), (&workspace.attention_stream, "attention"), (&workspace.ffn_stream, "ffn")]);
    observe::layer(0);
    let enqueue = || {
        run.streams.enter(caller)?;
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if !config.design.is_post_norm() {
                run.normalise_first(&layers[0], x)?;
            }
            for (i, layer) in layers.iter().enumerate() {
                // The residual stream lives in y from the first layer's end on: a join reads a row before it writes it.
                let from = if i == 0 { x } else { y };
                observe::layer(i);
                let next = layers.get(i + 1);
                let run = Run { layer: i, is_last: next.is_none(), ..run };
                match block {
                    None => run.layer(layer, next, from, y)?,
                    Some(block) => run.block(block, layer, next, from, y)?,
                }
            }
        }
        run.streams.leave(caller)
    };
    enqueue().inspect_err(|_| run.streams.give_up(caller))
}

/// What is the same for every layer of a call, and which one it is.
#[derive(Clone, Copy)]
struct Run<'a> {
    config: &'a LayerConfig,
    plan: &'a Plan,
    kernels: &'a Kernels,
    batch: &'a Batch,
    /// Its variant is chosen.
    attention: Attention,
    /// How it follows a wide product.
    early: Early,
    /// Of queries and keys, if they are rotated.
    rotation: Option<Rotation>,
    scratch: Scratch,
    counters: Counters,
    streams: Streams<'a>,
    /// Of each layer this alone.
    block: Option<Branch>,
    layer: usize,
    is_last: bool,
}

impl Run<'_> {
    /// One layer, from `x` to `y` (which may be one buffer). The pre-norm designs find their norms of x already made, by the
    /// layer before, and make those of `next`.
    unsafe fn layer(&self, layer: &DeviceLayer, next: Option<&DeviceLayer>, x: Matrix, y: Matrix) -> Result<()> {
        let Scratch { attention_out, ffn_out, normed_1, normed_2, .. } = self.scratch;
        let (attention, ffn) = (self.streams.attention, self.streams.ffn);
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            match self.config.design {
                // a = LN1(x + Attn(x)); y = LN2(a + FFN(a))
                Design::SafPostNorm => {
                    let a = normed_1;
                    let output = self.attention_branch(attention, layer, x, attention_out)?;
                    let sum = self.product_for_join(attention, LayerProduct::Wo, output, x)?;
                    self.join(sum, None, [Some(norm_1(layer, a)), None])?;
                    let second = self.ffn_branch(ffn, layer, a, ffn_out)?;
                    let sum = self.product_for_join(ffn, LayerProduct::W2, second, a)?;
                    self.join(sum, None, [Some(norm_2(layer, y)), None])
                }
                // y = LN2(x + Attn(x) + FFN(x))
                Design::PafPostNorm => {
                    let sum = self.branches(layer, [x, x], x, attention_out)?;
                    self.join(sum, None, [Some(norm_2(layer, y)), None])
                }
                // a = x + Attn(LN1(x)); y = a + FFN(LN2(a))
                Design::SafPreNorm => {
                    let a = attention_out;
                    let output = self.attention_branch(attention, layer, normed_1, a)?;
                    let sum = self.product_for_join(attention, LayerProduct::Wo, output, x)?;
                    self.join(sum, sum.parts.map(|_| a), [Some(norm_2(layer, normed_2)), None])?;
                    let second = self.ffn_branch(ffn, layer, normed_2, y)?;
                    let sum = self.product_for_join(ffn, LayerProduct::W2, second, a)?;
                    self.finish_pre_norm(sum, y, next)
                }
                // n = LN1(x); y = x + Attn(n) + FFN(n)   or   y = x + Attn(LN1(x)) + FFN(LN2(x))
                Design::PafPreNorm | Design::PafPreNormTwo => {
                    let n = if self.config.design == Design::PafPreNorm { normed_1 } else { normed_2 };
                    let sum = self.branches(layer, [normed_1, n], x, y)?;
                    self.finish_pre_norm(sum, y, next)
                }
            }
        }
    }

    /// Both branches of a parallel layer: Attn of the first input, FFN of the second, to be added to `x`. Schedules with wide
    /// products do that, into `sum`, which may be `x`, or leave parts of it.
    unsafe fn branches(&self, layer: &DeviceLayer, inputs: [Matrix; 2], x: Matrix, sum: Matrix) -> Result<Sum> {
        let Scratch { wide, context, attention_out, inner, ffn_out, .. } = self.scratch;
        let (attention, ffn) = (self.streams.attention, self.streams.ffn);
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            match self.plan.schedule() {
                Schedule::Serial | Schedule::TwoStream => {
                    self.streams.fork(self.kernels)?;
                    let output = self.attention_branch(attention, layer, inputs[0], attention_out)?;
                    self.product(attention, LayerProduct::Wo, output)?;
                    let second = self.ffn_branch(ffn, layer, inputs[1], ffn_out)?;
                    self.product(ffn, LayerProduct::W2, second)?;
                    self.streams.join()?;
                    Ok(Sum { addends: [Some(x), Some(attention_out), Some(ffn_out)], parts: None })
                }
                Schedule::Fused => {
                    // The FFN's part of K first: attention's time passes under it.
                    let both = Gemm::new(inner, layer.w_2, layer.b_out, Then::Bias, sum);
                    let second = Some((context, layer.w_o));
                    let (variant, sums) = (self.plan.product(LayerProduct::WideSecond), self.scratch.sums);
                    let both = Gemm { second, meanwhile: self.attention_takes()?, variant, sums, ..both };
                    let both = gemm::settled(self.kernels, attention.stream.device(), both)?;
                    let end = self.begins_with_attention(attention, &both).then_some(self.counters.done);
                    let made = self.first_products(attention, layer, inputs, wide, end)?;
                    // Before attention, so that what makes `inner` is still what ends before attention, or the rotation before it.
                    self.gate(attention)?;
                    let (next, first) = match made.counted.end {
                        Some(count) => (Next::AtOnce, First::Counted(count)),
                        None => (Next::WhenBeforeEnded, First::IsThere),
                    };
                    self.attend(attention, made, next)?;
                    self.product_for_join(attention, LayerProduct::WideSecond, Gemm { first, ..both }, x)
                }
                Schedule::Hybrid => {
                    let made = self.first_products(attention, layer, inputs, wide, None)?;
                    self.streams.fork(self.kernels)?;
                    self.attend(attention, made, Next::NearEnd)?;
                    // After the fork, and so after the whole wide product, of which it shares no column with attention.
                    self.gate(ffn)?;
                    let second = Gemm::new(inner, layer.w_2, layer.b_2, Then::Residual(x), ffn_out);
                    let second = Gemm { meanwhile: self.attention_takes()?, ..second };
                    self.product(ffn, LayerProduct::W2, second)?;
                    self.streams.join()?;
                    let output = Gemm::new(context, layer.w_o, layer.b_o, Then::Bias, sum);
                    self.product_for_join(attention, LayerProduct::Wo, output, ffn_out)
                }
            }
        }
    }

    /// `[qkv | first] = [n₁·Wqkvᵀ + bqkv | act(n₂·W1ᵀ + b1)]`, or, if there is a gate, without the activation: one product, if the
    /// kernel can take both inputs. `end`: where its end is to be counted, if it can.
    unsafe fn first_products(
        &self,
        lane: &Lane<'_>,
        layer: &DeviceLayer,
        inputs: [Matrix; 2],
        wide: Matrix,
        end: Option<u64>,
    ) -> Result<Qkv> {
        let Scratch { qkv, first, .. } = self.scratch;
        let [n_1, n_2] = inputs;
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            let both = Gemm::new(n_1, layer.w_wide, layer.b_qkv, self.then(qkv.cols), wide);
            let both = Gemm { early: self.early, ..both };
            if n_1 == n_2 {
                return self.qkv_product(lane, LayerProduct::WideFirst, both, end);
            }
            if gemm::takes_two_inputs(self.kernels) {
                let both = Gemm { beside: Some((n_2, qkv.cols)), ..both };
                return self.qkv_product(lane, LayerProduct::WideFirst, both, end);
            }
            self.product(lane, LayerProduct::W1, Gemm::new(n_2, layer.w_1, layer.b_1, self.then(0), first))?;
            let own = Gemm::new(n_1, layer.w_qkv, layer.b_qkv, Then::Bias, qkv);
            self.qkv_product(lane, LayerProduct::Qkv, own, None)
        }
    }

    /// Launches attention's branch but for its last product, which it returns: `out = (softmax(QKᵀ/√d)·V)·Woᵀ + bo`, with
    /// `[Q|K|V] = input·Wqkvᵀ + bqkv`.
    unsafe fn attention_branch(
        &self,
        lane: &Lane<'_>,
        layer: &DeviceLayer,
        input: Matrix,
        out: Matrix,
    ) -> Result<Gemm> {
        let Scratch { qkv, context, .. } = self.scratch;
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            let product = Gemm::new(input, layer.w_qkv, layer.b_qkv, Then::Bias, qkv);
            let made = self.qkv_product(lane, LayerProduct::Qkv, product, None)?;
            self.attend(lane, made, Next::NearEnd)?;
        }
        Ok(Gemm::new(context, layer.w_o, layer.b_o, Then::Bias, out))
    }

    /// `context = softmax(QKᵀ/√d)·V`, Q and K rotated by their positions if the layer does that.
    unsafe fn attend(&self, lane: &Lane<'_>, made: Qkv, next: Next) -> Result<()> {
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            if let Some(rotation) = &made.to_rotate {
                observe::next(Part::Rotation, || shape(&self.scratch.qkv));
                rotary::launch(self.kernels, lane.stream, self.scratch.qkv, rotation, lane.overlap())?;
            }
            let attention = Attention { overlap: lane.overlap(), next, ready: made.counted.columns, ..self.attention };
            observe::next(Part::Attention, || {
                let (of, config) = (self.batch.shape(), self.config);
                format!("{} × {} × {} × {}", of.batch(), config.num_attention_heads, of.seq_len(), config.head_dim)
            });
            attention::launch(self.kernels, lane.stream, &attention)
        }
    }

    /// Whether the product after attention is launched as soon as that is, and waits for a count of the wide product's end: of few rows.
    fn begins_with_attention(&self, lane: &Lane<'_>, gemm: &Gemm) -> bool {
        let of_attention = matches!(self.attention.variant, Some(AttentionVariant::Sm90 { half: false, .. }));
        let few = self.batch.shape().rows() <= plan::MAX_ROWS_ANYWHERE;
        lane.overlaps && !self.config.gated && few && of_attention && gemm.waits_for_count()
    }

    /// What attention has of the device while a product runs beside it.
    fn attention_takes(&self) -> Result<Meanwhile> {
        let device = self.streams.attention.stream.device();
        attention::takes(self.kernels, device, &self.attention)
    }

    /// Launches the FFN but for its last product, which it returns: `out = inner·W2ᵀ + b2`, with `inner = act(input·W1ᵀ + b1)`, or that
    /// with a gate.
    unsafe fn ffn_branch(&self, lane: &Lane<'_>, layer: &DeviceLayer, input: Matrix, out: Matrix) -> Result<Gemm> {
        let Scratch { first, inner, .. } = self.scratch;
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            self.product(lane, LayerProduct::W1, Gemm::new(input, layer.w_1, layer.b_1, self.then(0), first))?;
            self.gate(lane)?;
        }
        Ok(Gemm::new(inner, layer.w_2, layer.b_2, Then::Bias, out))
    }

    /// What follows the FFN's first product, whose columns begin there: a gate's activation is not the product's.
    fn then(&self, from: usize) -> Then {
        if self.config.gated { Then::Bias } else { Then::Activation(self.config.hidden_act, from) }
    }

    /// `inner = act(gate) ∘ inner layer`, over the gate in `first`, if there is one.
    unsafe fn gate(&self, lane: &Lane<'_>) -> Result<()> {
        if !self.config.gated {
            return Ok(());
        }
        lane.no_overlap();
        let Scratch { first, inner, .. } = self.scratch;
        observe::next(Part::Gate, || shape(&inner));
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            gate::launch(self.kernels, lane.stream, &Gate { act: self.config.hidden_act, both: first, out: inner })
        }
    }

    /// A product in the plan's way. `plan::candidates` knows the shapes and limits of all that are launched here.
    unsafe fn product(&self, lane: &Lane<'_>, product: LayerProduct, gemm: Gemm) -> Result<()> {
        let variant = self.plan.product(product);
        observe_next(product, &gemm);
        // SAFETY: the caller's promise (see `forward`), passed on; no kernel of a call writes weights or biases.
        unsafe { gemm::launch(self.kernels, lane.stream, &Gemm { variant, overlap: lane.overlap(), ..gemm }) }
    }

    /// A product whose first columns are Q, K and V, of which it rotates Q and K if the layer does that and the kernel can.
    ///
    /// With the wide one attention may begin while the FFN's columns are still being made; not with a kernel between the two on their
    /// stream: one that rotates, or the gate's where there is one stream.
    unsafe fn qkv_product(&self, lane: &Lane<'_>, product: LayerProduct, gemm: Gemm, end: Option<u64>) -> Result<Qkv> {
        let (variant, rotation, device) = (self.plan.product(product), self.rotation, lane.stream.device());
        let gemm = gemm::settled(self.kernels, device, Gemm { variant, rotation, ..gemm })?;
        let gemm = Gemm { overlap: lane.overlap(), ..gemm };
        observe_next(product, &gemm);
        let to_rotate = rotation.filter(|_| gemm.rotation.is_none());
        let beside = product == LayerProduct::WideFirst && self.attention.beside && to_rotate.is_none();
        let attention = Attention { overlap: lane.overlaps && beside, ..self.attention };
        // SAFETY: the caller's promise (see `forward`), passed on; no kernel of a call writes weights or biases.
        let counted = unsafe {
            let waits = attention::waits_for_count(self.kernels, device, &attention)?;
            let columns = waits.then_some((self.counters.ready, self.scratch.qkv.cols));
            let ready = Ready { columns, end, layer: self.layer, is_last: self.is_last };
            gemm::launch_counted(self.kernels, lane.stream, &gemm, ready)?
        };
        Ok(Qkv { to_rotate, counted })
    }

    /// The product plus `residual`, to be joined: in its C, or in parts where the planner finds that faster, if it is not settled yet.
    unsafe fn product_for_join(
        &self,
        lane: &Lane<'_>,
        product: LayerProduct,
        gemm: Gemm,
        residual: Matrix,
    ) -> Result<Sum> {
        let (sums, variant) = (self.scratch.sums, gemm.variant.or(self.plan.product(product)));
        let gemm = Gemm { variant, then: Then::Residual(residual), overlap: lane.overlap(), ..gemm };
        observe_next(product, &gemm);
        // SAFETY: the caller's promise (see `forward`), passed on; no kernel of a call writes weights or biases.
        let parts = unsafe { gemm::launch_for_join(self.kernels, lane.stream, &gemm, sums)? };
        Ok(match parts {
            Some(count) => Sum { parts: Some(Parts { sums, count, bias: gemm.bias }), ..one(residual) },
            None => one(gemm.c),
        })
    }

    /// Residual sum and norms, on the stream that carries the layer.
    unsafe fn join(&self, of: Sum, sum: Option<Matrix>, norms: [Option<NormOutput>; 2]) -> Result<()> {
        let join = Join {
            addends: of.addends,
            parts: of.parts,
            sum,
            norms,
            lengths: self.batch.sequences().padding(),
            seq_len: self.batch.shape().seq_len(),
            eps: self.config.layer_norm_eps,
            overlap: self.streams.attention.overlap(),
        };
        observe::next(Part::Join, || {
            let (addends, norms) = (of.addends.iter().flatten().count(), norms.iter().flatten().count());
            let parts = of.parts.map_or_else(String::new, |parts| format!(" and {} parts", parts.count));
            let rows = of.addends[0].as_ref().map_or_else(String::new, shape);
            format!("{rows}, {addends} addends{parts}, {norms} norms")
        });
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe { norm::launch(self.kernels, self.streams.attention.stream, &join) }
    }

    /// The norms that the first layer of a pre-norm design reads.
    unsafe fn normalise_first(&self, first: &DeviceLayer, x: Matrix) -> Result<()> {
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe { self.join(one(x), None, self.norms_of(first)) }
    }

    /// `y = sum`, with rows of padding zeroed, and the norms that the next layer reads.
    unsafe fn finish_pre_norm(&self, of: Sum, y: Matrix, next: Option<&DeviceLayer>) -> Result<()> {
        let norms = next.map_or([None; 2], |next| self.norms_of(next));
        // A single addend is y itself, already stored; only padding remains to be zeroed.
        let stored = of.addends[1].is_none() && of.parts.is_none();
        let sum = (!stored || self.batch.sequences().padding() != 0).then_some(y);
        if sum.is_none() && norms.iter().all(Option::is_none) {
            return Ok(());
        }
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe { self.join(of, sum, norms) }
    }

    /// The norms of the residual stream that a pre-norm layer's branches read.
    fn norms_of(&self, layer: &DeviceLayer) -> [Option<NormOutput>; 2] {
        let Scratch { normed_1, normed_2, .. } = self.scratch;
        if self.block == Some(Branch::Ffn) {
            return [Some(norm_2(layer, normed_1)), None];
        }
        let two = self.config.design == Design::PafPreNormTwo;
        [Some(norm_1(layer, normed_1)), two.then(|| norm_2(layer, normed_2))]
    }
}

/// What the product of Q, K and V leaves to attention.
#[derive(Clone, Copy)]
struct Qkv {
    /// What it could not rotate itself.
    to_rotate: Option<Rotation>,
    /// What later kernels may wait for instead of its end.
    counted: Counted,
}

/// What a join adds up.
#[derive(Clone, Copy)]
struct Sum {
    addends: [Option<Matrix>; 3],
    parts: Option<Parts>,
}

fn one(addend: Matrix) -> Sum {
    Sum { addends: [Some(addend), None, None], parts: None }
}

/// For an observer: rows × columns.
fn shape(matrix: &Matrix) -> String {
    format!("{} × {}", matrix.rows, matrix.cols)
}

/// For an observer: M × N × K.
fn observe_next(product: LayerProduct, gemm: &Gemm) {
    observe::next(Part::Product(product), || {
        let k = gemm.a.cols + gemm.second.map_or(0, |(a, _)| a.cols);
        format!("{} × {k}", shape(&gemm.c))
    });
}

fn norm_1(layer: &DeviceLayer, out: Matrix) -> NormOutput {
    NormOutput { out, gamma: layer.ln_1.0, beta: layer.ln_1.1 }
}

fn norm_2(layer: &DeviceLayer, out: Matrix) -> NormOutput {
    NormOutput { out, gamma: layer.ln_2.0, beta: layer.ln_2.1 }
}
