//! The f32 engine: products by the `gemm` crate, everything else in plain loops over rows, all spread over rayon's threads.

use std::sync::Arc;

use rayon::prelude::*;

use crate::config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig, Schedule};
use crate::error::{Error, Result};
use crate::weights::{LayerWeights, NormWeights};

/// A stack of layers on the CPU.
#[derive(Debug, Clone)]
pub struct Encoder {
    config: EncoderConfig,
    layers: Arc<Vec<LayerWeights>>,
}

/// Scratch memory of forward calls, for one batch shape at most as large as the one that it was made for.
#[derive(Debug)]
pub struct Workspace {
    qkv: Vec<f32>,
    context: Vec<f32>,
    attention_out: Vec<f32>,
    inner: Vec<f32>,
    ffn_out: Vec<f32>,
    normed_1: Vec<f32>,
    normed_2: Vec<f32>,
}

/// Query rows that one task scores at a time: enough for the products to be efficient, few enough for cache.
const QUERY_ROWS: usize = 64;

impl Encoder {
    /// The first `config.num_hidden_layers` of `layers`, in the design of `config`. The weights are shared, not copied.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Unsupported`] for a layer that cannot be run yet; [`Error::Mismatch`] if a
    /// weight's size is wrong or there are fewer layers.
    pub fn new(config: EncoderConfig, layers: Arc<Vec<LayerWeights>>) -> Result<Self> {
        config.validate()?;
        config.layer.check_runnable()?;
        if layers.len() < config.num_hidden_layers {
            let expected = format!("at least {}", config.num_hidden_layers);
            return Err(Error::mismatch("Encoder::new", "number of layers", layers.len(), expected));
        }
        layers.iter().take(config.num_hidden_layers).try_for_each(|layer| layer.check(&config.layer))?;
        Ok(Self { config, layers })
    }

    /// The same weights in another design.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_design(&self, design: Design) -> Result<Self> {
        Self::new(self.config.with_design(design), self.layers.clone())
    }

    /// What the stack is.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Scratch memory for batches of this shape.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the memory cannot be addressed or had.
    pub fn workspace(&self, shape: &BatchShape) -> Result<Workspace> {
        let config = &self.config.layer;
        let buffer = |width: usize| {
            let mut buffer = Vec::new();
            let elements = shape.rows().checked_mul(width);
            match elements.map(|elements| (elements, buffer.try_reserve_exact(elements))) {
                Some((elements, Ok(()))) => {
                    buffer.resize(elements, 0.0f32);
                    Ok(buffer)
                }
                _ => Err(Error::Unsupported {
                    what: format!("a workspace of {} × {width} f32 values", shape.rows()),
                    remedy: "there is not enough host memory; use a smaller batch".into(),
                }),
            }
        };
        let h = config.hidden_size;
        Ok(Workspace {
            qkv: buffer(config.qkv_size())?,
            context: buffer(config.query_size())?,
            attention_out: buffer(h)?,
            inner: buffer(config.intermediate_size)?,
            ffn_out: buffer(h)?,
            normed_1: buffer(h)?,
            normed_2: buffer(h)?,
        })
    }

    /// `y = layers(x)`, both `[batch · seq_len, hidden_size]`; rows of padding become zeros, whatever `x` holds there.
    /// `Schedule::TwoStream` runs the two branches of each layer side by side.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a schedule that the design cannot have; [`Error::Mismatch`] for a wrong number of values
    /// or a workspace that is too small.
    pub fn forward(
        &self,
        schedule: Schedule,
        shape: &BatchShape,
        x: &[f32],
        y: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let config = &self.config.layer;
        schedule.check(config.design)?;
        let values = shape.rows() * config.hidden_size;
        for (what, len) in [("number of values of x", x.len()), ("number of values of y", y.len())] {
            if len != values {
                return Err(Error::mismatch("Encoder::forward", what, len, values));
            }
        }
        let needed = [
            (workspace.qkv.len(), shape.rows() * config.qkv_size()),
            (workspace.context.len(), shape.rows() * config.query_size()),
            (workspace.inner.len(), shape.rows() * config.intermediate_size),
            (workspace.ffn_out.len(), values),
        ];
        if let Some((len, needed)) = needed.into_iter().find(|(len, needed)| len < needed) {
            let expected = format!("at least {needed} values");
            return Err(Error::mismatch("Encoder::forward", "workspace", format!("{len} values"), expected));
        }
        y.copy_from_slice(x);
        for weights in &self.layers[..self.config.num_hidden_layers] {
            Run { config, weights, shape, schedule }.layer(y, workspace);
        }
        Ok(())
    }
}

/// One layer of one call.
struct Run<'a> {
    config: &'a LayerConfig,
    weights: &'a LayerWeights,
    shape: &'a BatchShape,
    schedule: Schedule,
}

impl Run<'_> {
    /// `x` becomes the layer's output.
    fn layer(&self, x: &mut [f32], workspace: &mut Workspace) {
        let Workspace { qkv, context, attention_out, inner, ffn_out, normed_1, normed_2 } = workspace;
        let (ln_1, ln_2) = (&self.weights.ln_1, &self.weights.ln_2);
        let rows = x.len();
        let [attention_out, ffn_out, normed_1, normed_2] =
            [attention_out, ffn_out, normed_1, normed_2].map(|buffer| &mut buffer[..rows]);
        let mut attention = |input: &[f32], out: &mut [f32]| self.attention_block(input, qkv, context, out);
        let mut ffn = |input: &[f32], out: &mut [f32]| self.ffn_block(input, inner, out);
        match self.config.design {
            // a = LN1(x + Attn(x)); y = LN2(a + FFN(a))
            Design::SafPostNorm => {
                attention(x, attention_out);
                self.join(&[x, attention_out], Some(ln_1), normed_1);
                ffn(normed_1, ffn_out);
                self.join(&[normed_1, ffn_out], Some(ln_2), x);
            }
            // y = LN2(x + Attn(x) + FFN(x))
            Design::PafPostNorm => {
                self.side_by_side(|| attention(x, attention_out), || ffn(x, ffn_out));
                self.join(&[x, attention_out, ffn_out], Some(ln_2), normed_1);
                x.copy_from_slice(normed_1);
            }
            // a = x + Attn(LN1(x)); y = a + FFN(LN2(a))
            Design::SafPreNorm => {
                self.join(&[x], Some(ln_1), normed_1);
                attention(normed_1, attention_out);
                self.join(&[x, attention_out], None, normed_1);
                self.join(&[normed_1], Some(ln_2), normed_2);
                ffn(normed_2, ffn_out);
                self.join(&[normed_1, ffn_out], None, x);
            }
            // n = LN1(x); y = x + Attn(n) + FFN(n)
            Design::PafPreNorm => {
                self.join(&[x], Some(ln_1), normed_1);
                self.side_by_side(|| attention(normed_1, attention_out), || ffn(normed_1, ffn_out));
                self.join(&[x, attention_out, ffn_out], None, normed_2);
                x.copy_from_slice(normed_2);
            }
            // y = x + Attn(LN1(x)) + FFN(LN2(x))
            Design::PafPreNormTwo => {
                self.join(&[x], Some(ln_1), normed_1);
                self.join(&[x], Some(ln_2), normed_2);
                self.side_by_side(|| attention(normed_1, attention_out), || ffn(normed_2, ffn_out));
                self.join(&[x, attention_out, ffn_out], None, normed_1);
                x.copy_from_slice(normed_1);
            }
        }
        self.zero_padding(x);
    }

    /// The fork and the join of a parallel layer.
    fn side_by_side(&self, attention: impl FnOnce() + Send, ffn: impl FnOnce() + Send) {
        match self.schedule {
            Schedule::Serial => {
                attention();
                ffn();
            }
            Schedule::TwoStream => {
                rayon::join(attention, ffn);
            }
        }
    }

    fn attention_block(&self, input: &[f32], qkv: &mut [f32], context: &mut [f32], out: &mut [f32]) {
        let rows = self.shape.rows();
        let (qkv, context) =
            (&mut qkv[..rows * self.config.qkv_size()], &mut context[..rows * self.config.query_size()]);
        linear(input, &self.weights.w_qkv, &self.weights.b_qkv, qkv);
        self.attention(qkv, context);
        linear(context, &self.weights.w_o, &self.weights.b_o, out);
    }

    fn ffn_block(&self, input: &[f32], inner: &mut [f32], out: &mut [f32]) {
        let inner = &mut inner[..self.shape.rows() * self.config.intermediate_size];
        linear(input, &self.weights.w_1, &self.weights.b_1, inner);
        inner.par_chunks_mut(4096).for_each(|chunk| activate(self.config.hidden_act, chunk));
        linear(inner, &self.weights.w_2, &self.weights.b_2, out);
    }

    /// `softmax(Q·Kᵀ/√d)·V`, a task for each block of query rows of each sequence.
    fn attention(&self, qkv: &[f32], context: &mut [f32]) {
        let (seq_len, width) = (self.shape.seq_len(), self.config.query_size());
        context.par_chunks_mut(seq_len * width).enumerate().for_each(|(sequence, context)| {
            let length = self.shape.length(sequence);
            let qkv = &qkv[sequence * seq_len * self.config.qkv_size()..];
            context[length * width..].fill(0.0);
            let blocks = context[..length * width].par_chunks_mut(QUERY_ROWS * width).enumerate();
            blocks.for_each(|(block, out)| self.attend(qkv, block * QUERY_ROWS, length, out));
        });
    }

    /// All heads of the query rows from `first` on that `out` has room for.
    fn attend(&self, qkv: &[f32], first: usize, length: usize, out: &mut [f32]) {
        let config = self.config;
        let (d, width, ld) = (config.head_dim, config.query_size(), config.qkv_size());
        let rows = out.len() / width;
        let keys = if config.causal { first + rows } else { length };
        let scale = 1.0 / (d as f32).sqrt();
        let mut scores = vec![0.0f32; rows * keys];
        for head in 0..config.num_attention_heads {
            let q = Operand { data: &qkv[first * ld + head * d..], row_stride: ld, column_stride: 1 };
            let k_transposed = Operand { data: &qkv[width + head * d..], row_stride: 1, column_stride: ld };
            let v = Operand { data: &qkv[2 * width + head * d..], row_stride: ld, column_stride: 1 };
            multiply((rows, keys, d), q, k_transposed, &mut scores, keys, gemm::Parallelism::None);
            for (row, scores) in scores.chunks_mut(keys).enumerate() {
                let seen = if config.causal { first + row + 1 } else { keys };
                let max = scores[..seen].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for score in &mut scores[..seen] {
                    *score = ((*score - max) * scale).exp();
                    sum += *score;
                }
                scores[..seen].iter_mut().for_each(|score| *score /= sum);
                scores[seen..].fill(0.0);
            }
            let p = Operand { data: &scores, row_stride: keys, column_stride: 1 };
            multiply((rows, d, keys), p, v, &mut out[head * d..], width, gemm::Parallelism::None);
        }
    }

    /// `out = [LN](Σ addends)`.
    fn join(&self, addends: &[&[f32]], norm: Option<&NormWeights>, out: &mut [f32]) {
        let h = self.config.hidden_size;
        out.par_chunks_mut(h).enumerate().for_each(|(row, out)| {
            out.copy_from_slice(&addends[0][row * h..(row + 1) * h]);
            for addend in &addends[1..] {
                out.iter_mut().zip(&addend[row * h..]).for_each(|(out, addend)| *out += addend);
            }
            if let Some(norm) = norm {
                layer_norm(out, norm, self.config.layer_norm_eps);
            }
        });
    }

    fn zero_padding(&self, y: &mut [f32]) {
        let (h, seq_len) = (self.config.hidden_size, self.shape.seq_len());
        for (sequence, y) in y.chunks_mut(seq_len * h).enumerate() {
            y[self.shape.length(sequence) * h..].fill(0.0);
        }
    }
}

/// A matrix inside a slice; element (i, j) is `data[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy)]
struct Operand<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl Operand<'_> {
    fn holds(&self, rows: usize, cols: usize) -> bool {
        (rows - 1) * self.row_stride + (cols - 1) * self.column_stride < self.data.len()
    }
}

/// `out[m, n] = a[m, k] · b[k, n]`, rows of `out` `out_stride` apart; m, n and k at least 1.
fn multiply(
    (m, n, k): (usize, usize, usize),
    a: Operand<'_>,
    b: Operand<'_>,
    out: &mut [f32],
    out_stride: usize,
    parallelism: gemm::Parallelism,
) {
    assert!(a.holds(m, k) && b.holds(k, n) && (m - 1) * out_stride + n <= out.len(), "operands hold the product");
    // SAFETY: every index that the shapes and strides reach lies inside the slices, as just checked; `out` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            false,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `y[rows, n] = x[rows, k] · weight[n, k]ᵀ + bias[n]`.
fn linear(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
    let n = bias.len();
    let (k, rows) = (weight.len() / n, y.len() / n);
    let x = Operand { data: x, row_stride: k, column_stride: 1 };
    let transposed = Operand { data: weight, row_stride: 1, column_stride: k };
    multiply((rows, n, k), x, transposed, y, n, gemm::Parallelism::Rayon(0));
    y.par_chunks_mut(n).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
}

fn activate(act: HiddenAct, values: &mut [f32]) {
    for x in values {
        *x = match act {
            HiddenAct::Gelu => 0.5 * *x * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2)),
            HiddenAct::GeluNew => {
                let u = (2.0 / std::f32::consts::PI).sqrt() * (*x + 0.044715 * *x * *x * *x);
                0.5 * *x * (1.0 + u.tanh())
            }
            HiddenAct::Relu if *x < 0.0 => 0.0,
            HiddenAct::Relu => *x,
        };
    }
}

/// In f64 inside, since a row is short and its sums decide about every element.
fn layer_norm(row: &mut [f32], norm: &NormWeights, eps: f32) {
    let n = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
    for ((x, gamma), beta) in row.iter_mut().zip(&norm.gamma).zip(&norm.beta) {
        *x = ((f64::from(*x) - mean) * inverse) as f32 * gamma + beta;
    }
}
