//! The heart: the order in which a layer's kernels are launched, and on which streams.
//!
//! ```text
//! serial       caller ──QKV──attention──Wo──W1──W2──join──▶
//!
//! two-stream   attention ──┬──QKV──attention──Wo──────┬──join──┬──▶ next layer
//!                   forked │                 ffn_done │        │ forked
//!              ffn         └──W1────────W2────────────┘        └──▶
//! ```
//!
//! Between QKV and attention, queries and keys are rotated in place where the layer has rotary embeddings.
//!
//! The attention stream carries the layer from join to join; the FFN stream leaves it at `forked` and comes back at
//! `ffn_done`, before the residual add. Branches write disjoint scratch, so these two events a layer are all the ordering
//! there is. The caller's stream hands over at `start` and takes back at `finished`.

use super::attention::{self, Attention};
use super::batch::Batch;
use super::device::Stream;
use super::encoder::{DeviceLayer, Encoder};
use super::gemm::{self, Gemm, Then};
use super::launch::Kernels;
use super::memory::Matrix;
use super::norm::{self, Join, NormOutput};
use super::rotary::{self, Rotate};
use super::workspace::{Branch, Scratch, Workspace};
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
    schedule: Schedule,
    batch: &Batch,
    x: Matrix,
    y: Matrix,
    workspace: &Workspace,
) -> Result<()> {
    let streams = match schedule {
        Schedule::Serial => Streams { attention: caller, ffn: caller, workspace },
        Schedule::TwoStream => {
            Streams { attention: &workspace.attention_stream, ffn: &workspace.ffn_stream, workspace }
        }
    };
    let config = &encoder.config().layer;
    let run = Run {
        config,
        kernels: encoder.device().kernels(encoder.dtype())?,
        batch,
        scratch: workspace.scratch(batch.shape().rows()),
        streams,
    };
    let layers = &layers[..encoder.config().num_hidden_layers];
    // SAFETY: the caller's promise, passed on.
    unsafe {
        run.streams.enter(caller)?;
        if !config.design.is_post_norm() {
            run.normalise_first(&layers[0], x)?;
        }
        for (i, layer) in layers.iter().enumerate() {
            // The residual stream lives in y from the first layer's end on: a join reads a row before it writes it.
            let from = if i == 0 { x } else { y };
            run.layer(layer, layers.get(i + 1), from, y)?;
        }
        run.streams.leave(caller)
    }
}

/// The streams of the two branches; one and the same under `serial`, where forks and joins are nothing.
struct Streams<'a> {
    attention: &'a Stream,
    ffn: &'a Stream,
    workspace: &'a Workspace,
}

impl Streams<'_> {
    fn are_two(&self) -> bool {
        self.attention.raw() != self.ffn.raw()
    }

    /// The caller's stream hands over.
    fn enter(&self, caller: &Stream) -> Result<()> {
        if self.are_two() {
            self.workspace.start.record(caller)?;
            self.attention.wait(&self.workspace.start)?;
        }
        Ok(())
    }

    /// The FFN's stream leaves attention's; each is held back there if a test asked for it.
    fn fork(&self, kernels: &Kernels) -> Result<()> {
        if self.are_two() {
            self.workspace.forked.record(self.attention)?;
            self.ffn.wait(&self.workspace.forked)?;
        }
        for (branch, stream) in [(Branch::Attention, self.attention), (Branch::Ffn, self.ffn)] {
            let time = self.workspace.hold_back[branch as usize];
            if !time.is_zero() {
                kernels.hold_back(stream, time)?;
            }
        }
        Ok(())
    }

    /// The FFN's stream comes back to attention's.
    fn join(&self) -> Result<()> {
        if self.are_two() {
            self.workspace.ffn_done.record(self.ffn)?;
            self.attention.wait(&self.workspace.ffn_done)?;
        }
        Ok(())
    }

    /// The caller's stream takes back.
    fn leave(&self, caller: &Stream) -> Result<()> {
        if self.are_two() {
            self.workspace.finished.record(self.attention)?;
            caller.wait(&self.workspace.finished)?;
        }
        Ok(())
    }
}

/// What is the same for every layer of a call.
struct Run<'a> {
    config: &'a LayerConfig,
    kernels: &'a Kernels,
    batch: &'a Batch,
    scratch: Scratch,
    streams: Streams<'a>,
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
                    self.attention_block(attention, layer, x, Then::Residual(x))?;
                    self.join(&[attention_out], None, [Some(norm_1(layer, a)), None])?;
                    self.ffn_block(ffn, layer, a, Then::Residual(a), ffn_out)?;
                    self.join(&[ffn_out], None, [Some(norm_2(layer, y)), None])
                }
                // y = LN2(x + Attn(x) + FFN(x))
                Design::PafPostNorm => {
                    self.streams.fork(self.kernels)?;
                    self.attention_block(attention, layer, x, Then::Bias)?;
                    self.ffn_block(ffn, layer, x, Then::Bias, ffn_out)?;
                    self.streams.join()?;
                    self.join(&[x, attention_out, ffn_out], None, [Some(norm_2(layer, y)), None])
                }
                // a = x + Attn(LN1(x)); y = a + FFN(LN2(a))
                Design::SafPreNorm => {
                    let a = attention_out;
                    self.attention_block(attention, layer, normed_1, Then::Residual(x))?;
                    self.join(&[a], None, [Some(norm_2(layer, normed_2)), None])?;
                    self.ffn_block(ffn, layer, normed_2, Then::Residual(a), y)?;
                    self.finish_pre_norm(&[y], y, next)
                }
                // n = LN1(x); y = x + Attn(n) + FFN(n)   or   y = x + Attn(LN1(x)) + FFN(LN2(x))
                Design::PafPreNorm | Design::PafPreNormTwo => {
                    let n = if self.config.design == Design::PafPreNorm { normed_1 } else { normed_2 };
                    self.streams.fork(self.kernels)?;
                    self.attention_block(attention, layer, normed_1, Then::Bias)?;
                    self.ffn_block(ffn, layer, n, Then::Bias, ffn_out)?;
                    self.streams.join()?;
                    self.finish_pre_norm(&[x, attention_out, ffn_out], y, next)
                }
            }
        }
    }

    /// `attention_out = (softmax(QKᵀ/√d)·V)·Woᵀ + bo [+ residual]`, with `[Q|K|V] = input·Wqkvᵀ + bqkv`, Q and K rotated by
    /// their positions if the layer does that.
    unsafe fn attention_block(&self, stream: &Stream, layer: &DeviceLayer, input: Matrix, then: Then) -> Result<()> {
        let Scratch { qkv, context, attention_out, .. } = self.scratch;
        let attention = Attention {
            qkv,
            out: context,
            log_sum_exp: 0,
            sequences: self.batch.sequences(),
            heads: self.config.num_attention_heads,
            key_value_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            causal: self.config.causal,
            variant: None,
            overlap: false,
        };
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            self.product(stream, input, layer.w_qkv, layer.b_qkv, Then::Bias, qkv)?;
            if let Some(table) = self.streams.workspace.rotary() {
                let Attention { sequences, head_dim, .. } = attention;
                let heads = attention.heads + attention.key_value_heads;
                rotary::launch(self.kernels, stream, &Rotate { qkv, table, sequences, heads, head_dim })?;
            }
            attention::launch(self.kernels, stream, &attention)?;
            self.product(stream, context, layer.w_o, layer.b_o, then, attention_out)
        }
    }

    /// `out = act(input·W1ᵀ + b1)·W2ᵀ + b2 [+ residual]`.
    unsafe fn ffn_block(
        &self,
        stream: &Stream,
        layer: &DeviceLayer,
        input: Matrix,
        then: Then,
        out: Matrix,
    ) -> Result<()> {
        let inner = self.scratch.inner;
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            self.product(stream, input, layer.w_1, layer.b_1, Then::Activation(self.config.hidden_act, 0), inner)?;
            self.product(stream, inner, layer.w_2, layer.b_2, then, out)
        }
    }

    unsafe fn product(&self, stream: &Stream, a: Matrix, w: Matrix, bias: u64, then: Then, c: Matrix) -> Result<()> {
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe { gemm::launch(self.kernels, stream, &Gemm::new(a, w, bias, then, c)) }
    }

    /// Residual sum and norms, on the stream that carries the layer.
    unsafe fn join(&self, addends: &[Matrix], sum: Option<Matrix>, norms: [Option<NormOutput>; 2]) -> Result<()> {
        let join = Join {
            addends: std::array::from_fn(|i| addends.get(i).copied()),
            sum,
            norms,
            lengths: self.batch.sequences().padding(),
            seq_len: self.batch.shape().seq_len(),
            eps: self.config.layer_norm_eps,
        };
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe { norm::launch(self.kernels, self.streams.attention, &join) }
    }

    /// The norms that the first layer of a pre-norm design reads.
    unsafe fn normalise_first(&self, first: &DeviceLayer, x: Matrix) -> Result<()> {
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe { self.join(&[x], None, self.norms_of(first)) }
    }

    /// `y = Σ addends`, with rows of padding zeroed, and the norms that the next layer reads.
    unsafe fn finish_pre_norm(&self, addends: &[Matrix], y: Matrix, next: Option<&DeviceLayer>) -> Result<()> {
        let norms = next.map_or([None; 2], |next| self.norms_of(next));
        // A single addend is y itself, already stored; only padding remains to be zeroed.
        let sum = (addends.len() > 1 || self.batch.sequences().padding() != 0).then_some(y);
        if sum.is_none() && norms.iter().all(Option::is_none) {
            return Ok(());
        }
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe { self.join(addends, sum, norms) }
    }

    /// The norms of the residual stream that a pre-norm layer's branches read.
    fn norms_of(&self, layer: &DeviceLayer) -> [Option<NormOutput>; 2] {
        let Scratch { normed_1, normed_2, .. } = self.scratch;
        let two = self.config.design == Design::PafPreNormTwo;
        [Some(norm_1(layer, normed_1)), two.then(|| norm_2(layer, normed_2))]
    }
}

fn norm_1(layer: &DeviceLayer, out: Matrix) -> NormOutput {
    NormOutput { out, gamma: layer.ln_1.0, beta: layer.ln_1.1 }
}

fn norm_2(layer: &DeviceLayer, out: Matrix) -> NormOutput {
    NormOutput { out, gamma: layer.ln_2.0, beta: layer.ln_2.1 }
}
