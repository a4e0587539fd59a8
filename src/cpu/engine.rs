//! The f32 engine: matrix products by the `gemm` crate, threads by rayon.

#[cfg(feature = "checkpoint")]
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::attention::{attention, rotate};
#[cfg(feature = "checkpoint")]
use super::model::check_memory;
use super::product::linear;
use super::{check_len, zero_padding};
#[cfg(feature = "checkpoint")]
use crate::checkpoint::Checkpoint;
use crate::config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig, Schedule};
use crate::error::{Error, Result};
use crate::weights::{LayerWeights, NormWeights};

/// The schedules that the engine has. Both give the same bits.
pub const SCHEDULES: [Schedule; 2] = [Schedule::Serial, Schedule::TwoStream];

/// A stack of layers, ready to run on the CPU. Cheap to clone: the weights are shared.
#[derive(Debug, Clone)]
pub struct Encoder {
    config: EncoderConfig,
    layers: Arc<Vec<LayerWeights>>,
}

impl Encoder {
    /// An encoder of these layers.
    ///
    /// # Errors
    /// What [`EncoderConfig::validate`] and [`LayerWeights::check`] find;
    /// [`Error::Mismatch`] if there are not `num_hidden_layers` layers.
    pub fn new(config: EncoderConfig, layers: Arc<Vec<LayerWeights>>) -> Result<Self> {
        config.validate()?;
        if layers.len() != config.num_hidden_layers {
            return Err(Error::mismatch("encoder", "number of layers", layers.len(), config.num_hidden_layers));
        }
        layers.iter().try_for_each(|weights| weights.check(&config.layer))?;
        Ok(Self { config, layers })
    }

    /// The layers of the checkpoint in `folder`, in Hugging Face's format: the stack alone, from activations
    /// `[rows, hidden_size]` to activations. [`Model::from_pretrained`](super::Model::from_pretrained) has what is around it, too.
    ///
    /// ```no_run
    /// use paf_cuda::{BatchShape, Schedule, cpu};
    ///
    /// let encoder = cpu::Encoder::from_pretrained("pythia-70m")?;
    /// let shape = BatchShape::packed(vec![5, 3])?; // 8 rows
    /// let x = vec![0.5; 8 * encoder.config().layer.hidden_size]; // [8, 512]
    /// let mut y = vec![0.0; x.len()]; // [8, 512]
    /// encoder.forward(Schedule::Serial, &shape, &x, &mut y, &mut encoder.workspace(&shape)?)?;
    /// # Ok::<(), paf_cuda::Error>(())
    /// ```
    ///
    /// # Errors
    /// What [`Checkpoint::open`] finds; [`Error::Unsupported`] if the weights are more than the host's memory.
    #[cfg(feature = "checkpoint")]
    pub fn from_pretrained(folder: impl AsRef<Path>) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(folder)?)
    }

    /// The same of a checkpoint that is open, and in its design.
    ///
    /// # Errors
    /// What [`new`](Self::new) finds; [`Error::Unsupported`] if the weights are more than the host's memory.
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        check_memory(checkpoint.elements())?;
        Self::new(checkpoint.config().clone(), Arc::new(checkpoint.layers().collect()))
    }

    /// The same weights, not copied, in another design.
    ///
    /// # Errors
    /// What [`new`](Self::new) finds.
    pub fn with_design(&self, design: Design) -> Result<Self> {
        Self::new(self.config.with_design(design), Arc::clone(&self.layers))
    }

    /// Dimensions and design.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// A workspace for [`forward`](Self::forward) with batches of up to as many rows as `shape` has; any design of the
    /// same dimensions can use it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is not that much memory.
    pub fn workspace(&self, shape: &BatchShape) -> Result<Workspace> {
        Workspace::new(widths(&self.config.layer), shape.rows())
    }

    /// Runs the stack: `x` and `y` are `[rows, hidden_size]`, rows as in [`BatchShape`]. Rows of padding are zeros in
    /// `y`, whatever they hold in `x`. Both schedules give bitwise the same result, on any number of threads.
    ///
    /// Works on the rayon pool that it is called in. Activations stay in `workspace`; `gemm` keeps memory of its own
    /// for the blocks that it packs.
    ///
    /// # Errors
    /// What [`Schedule::check`] finds; [`Error::Unsupported`] for a schedule that is none of [`SCHEDULES`];
    /// [`Error::Mismatch`] if `x` or `y` has another length, or `workspace` is for
    /// other dimensions or fewer rows.
    pub fn forward(
        &self,
        schedule: Schedule,
        shape: &BatchShape,
        x: &[f32],
        y: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let config = &self.config.layer;
        let (rows, hidden_size) = (shape.rows(), config.hidden_size);
        schedule.check(config.design)?;
        if !SCHEDULES.contains(&schedule) {
            return Err(Error::Unsupported {
                what: format!("schedule {schedule} on the CPU engine"),
                remedy: "wide products are a GPU's; use serial or two-stream".into(),
            });
        }
        check_len("forward", "x", x.len(), [rows, hidden_size])?;
        check_len("forward", "y", y.len(), [rows, hidden_size])?;
        let mut buffers = workspace.buffers(widths(config), rows)?;
        y.copy_from_slice(x);
        for weights in self.layers.iter() {
            Layer { config, weights, shape }.run(schedule, y, &mut buffers);
        }
        // Until here the rows of padding held what padded input gives. No other row reads them: attention passes over
        // padded keys, and all else works row by row.
        zero_padding(y, shape, hidden_size);
        Ok(())
    }
}

const BUFFERS: usize = 8;

/// Memory for the activations inside a layer, made by [`Encoder::workspace`], used by [`Encoder::forward`].
#[derive(Debug)]
pub struct Workspace {
    widths: [usize; BUFFERS],
    rows: usize,
    buffers: [Vec<f32>; BUFFERS],
}

/// Elements a row of each buffer has, in the order of the fields of [`Buffers`].
fn widths(config: &LayerConfig) -> [usize; BUFFERS] {
    let (hidden_size, inner) = (config.hidden_size, config.intermediate_size);
    let gate = if config.gated { inner } else { 0 };
    let (qkv_size, query_size) = (config.qkv_size(), config.query_size());
    [hidden_size, hidden_size, qkv_size, query_size, hidden_size, inner, gate, hidden_size]
}

impl Workspace {
    fn new(widths: [usize; BUFFERS], rows: usize) -> Result<Self> {
        let mut buffers = [const { Vec::new() }; BUFFERS];
        for (buffer, width) in buffers.iter_mut().zip(widths) {
            let reserved = rows.checked_mul(width).filter(|&len| buffer.try_reserve_exact(len).is_ok());
            let len = reserved.ok_or_else(|| Error::Unsupported {
                what: format!("a workspace buffer of [{rows}, {width}] f32 on this machine"),
                remedy: "host memory is exhausted; use fewer tokens".into(),
            })?;
            buffer.resize(len, 0.0);
        }
        Ok(Self { widths, rows, buffers })
    }

    fn buffers(&mut self, widths: [usize; BUFFERS], rows: usize) -> Result<Buffers<'_>> {
        if self.widths != widths {
            let [got, expected] = [self.widths, widths].map(|widths| format!("for widths {widths:?}"));
            return Err(Error::mismatch("forward", "workspace", got, expected));
        }
        if self.rows < rows {
            let [got, expected] = [self.rows, rows].map(|rows| format!("for {rows} rows"));
            return Err(Error::mismatch("forward", "workspace", got, format!("at least one {expected}")));
        }
        let [norm_1, norm_2, qkv, context, attn, inner, gate, ffn] = self.buffers.each_mut().map(|buffer| {
            let width = buffer.len() / self.rows;
            &mut buffer[..rows * width]
        });
        let attention = AttentionBuffers { qkv, context, output: attn };
        Ok(Buffers { norm_1, norm_2, attention, ffn: FfnBuffers { inner, gate, output: ffn } })
    }
}

/// A workspace cut to the rows of one call. The two branches of a parallel design write disjoint memory.
struct Buffers<'a> {
    norm_1: &'a mut [f32],
    norm_2: &'a mut [f32],
    attention: AttentionBuffers<'a>,
    ffn: FfnBuffers<'a>,
}

struct AttentionBuffers<'a> {
    qkv: &'a mut [f32],
    context: &'a mut [f32],
    output: &'a mut [f32],
}

struct FfnBuffers<'a> {
    inner: &'a mut [f32],
    /// Empty where there is none.
    gate: &'a mut [f32],
    output: &'a mut [f32],
}

/// One layer of one forward call.
struct Layer<'a> {
    config: &'a LayerConfig,
    weights: &'a LayerWeights,
    shape: &'a BatchShape,
}

impl Layer<'_> {
    /// `x`, `[rows, hidden_size]`, becomes the layer's output: read it beside the formulas of [`Design`].
    fn run(&self, schedule: Schedule, x: &mut [f32], buffers: &mut Buffers<'_>) {
        let Buffers { norm_1, norm_2, attention, ffn } = buffers;
        let LayerWeights { ln_1, ln_2, .. } = self.weights;
        match self.config.design {
            Design::SafPostNorm => {
                self.attention(x, attention);
                self.join(x, &[attention.output], Some(ln_1));
                self.ffn(x, ffn);
                self.join(x, &[ffn.output], Some(ln_2));
            }
            Design::PafPostNorm => {
                both(schedule, || self.attention(x, attention), || self.ffn(x, ffn));
                self.join(x, &[attention.output, ffn.output], Some(ln_2));
            }
            Design::SafPreNorm => {
                self.norm(x, ln_1, norm_1);
                self.attention(norm_1, attention);
                self.join(x, &[attention.output], None);
                self.norm(x, ln_2, norm_2);
                self.ffn(norm_2, ffn);
                self.join(x, &[ffn.output], None);
            }
            Design::PafPreNorm => {
                self.norm(x, ln_1, norm_1);
                both(schedule, || self.attention(norm_1, attention), || self.ffn(norm_1, ffn));
                self.join(x, &[attention.output, ffn.output], None);
            }
            Design::PafPreNormTwo => {
                let attention_branch = || {
                    self.norm(x, ln_1, norm_1);
                    self.attention(norm_1, attention);
                };
                let ffn_branch = || {
                    self.norm(x, ln_2, norm_2);
                    self.ffn(norm_2, ffn);
                };
                both(schedule, attention_branch, ffn_branch);
                self.join(x, &[attention.output, ffn.output], None);
            }
        }
    }

    /// `output = Attn(x)`.
    fn attention(&self, x: &[f32], AttentionBuffers { qkv, context, output }: &mut AttentionBuffers<'_>) {
        let (rows, weights) = (self.shape.rows(), self.weights);
        linear(qkv, x, rows, &weights.w_qkv, &weights.b_qkv);
        if let Some(rotary) = &self.config.rotary {
            rotate(qkv, rotary, self.config, self.shape);
        }
        attention(context, qkv, self.config, self.shape);
        linear(output, context, rows, &weights.w_o, &weights.b_o);
    }

    /// `output = FFN(x)`.
    fn ffn(&self, x: &[f32], FfnBuffers { inner, gate, output }: &mut FfnBuffers<'_>) {
        let (rows, weights) = (self.shape.rows(), self.weights);
        let (act, width) = (self.config.hidden_act, self.config.intermediate_size);
        linear(inner, x, rows, &weights.w_1, &weights.b_1);
        if self.config.gated {
            linear(gate, x, rows, &weights.w_gate, &weights.b_gate);
            inner.par_chunks_mut(width).zip(gate.par_chunks_mut(width)).for_each(|(inner, gate)| {
                activate(act, gate);
                inner.iter_mut().zip(gate).for_each(|(x, gate)| *x *= *gate);
            });
        } else {
            inner.par_chunks_mut(width).for_each(|row| activate(act, row));
        }
        linear(output, inner, rows, &weights.w_2, &weights.b_2);
    }

    /// `x += Σ addends`, then the norm, if there is one.
    fn join(&self, x: &mut [f32], addends: &[&mut [f32]], norm: Option<&NormWeights>) {
        let hidden_size = self.config.hidden_size;
        x.par_chunks_exact_mut(hidden_size).enumerate().for_each(|(i, row)| {
            for addend in addends {
                row.iter_mut().zip(&addend[i * hidden_size..]).for_each(|(x, addend)| *x += addend);
            }
            if let Some(norm) = norm {
                normalize(row, norm, self.config.layer_norm_eps);
            }
        });
    }

    /// `output = LN(x)`.
    fn norm(&self, x: &[f32], norm: &NormWeights, output: &mut [f32]) {
        let hidden_size = self.config.hidden_size;
        output.par_chunks_exact_mut(hidden_size).zip(x.par_chunks_exact(hidden_size)).for_each(|(output, x)| {
            output.copy_from_slice(x);
            normalize(output, norm, self.config.layer_norm_eps);
        });
    }
}

/// Runs a parallel design's two branches in the order that the schedule asks for.
///
/// Either way each product is offered to all threads of the pool: the branches then share them by work stealing, and
/// neither is left with half of the machine when the other is done.
fn both(schedule: Schedule, attention: impl FnOnce() + Send, ffn: impl FnOnce() + Send) {
    if schedule == Schedule::TwoStream {
        rayon::join(attention, ffn);
    } else {
        attention();
        ffn();
    }
}

pub(super) fn activate(act: HiddenAct, values: &mut [f32]) {
    use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_PI};
    match act {
        HiddenAct::Gelu => values.iter_mut().for_each(|x| *x *= 0.5 * (1.0 + libm::erff(*x * FRAC_1_SQRT_2))),
        HiddenAct::GeluNew => {
            let slope = FRAC_2_PI.sqrt();
            values.iter_mut().for_each(|x| *x *= 0.5 * (1.0 + (slope * (*x + 0.044715 * *x * *x * *x)).tanh()));
        }
        // Not `f32::max`, which would turn NaN into 0.
        HiddenAct::Relu => values.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
        HiddenAct::Silu => values.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp()),
    }
}

/// `γ·(x − mean)/√(variance + eps) + β` over one row. The two sums are f64: a wide row of equal large values would
/// otherwise lose its variance, and they cost nothing beside the products.
pub(super) fn normalize(row: &mut [f32], NormWeights { gamma, beta }: &NormWeights, eps: f32) {
    let size = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / size;
    let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / size;
    let scale = (variance + f64::from(eps)).sqrt().recip();
    for ((x, gamma), beta) in row.iter_mut().zip(gamma).zip(beta) {
        *x = ((f64::from(*x) - mean) * scale) as f32 * gamma + beta;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{random_activations, random_layers};

    fn encoder(layer: LayerConfig, num_hidden_layers: usize) -> Encoder {
        let config = EncoderConfig { layer, num_hidden_layers };
        let layers = random_layers(&config, 1).collect();
        Encoder::new(config, Arc::new(layers)).unwrap()
    }

    fn run(encoder: &Encoder, schedule: Schedule, shape: &BatchShape, x: &[f32]) -> Vec<f32> {
        let mut workspace = encoder.workspace(shape).unwrap();
        workspace.buffers.iter_mut().for_each(|buffer| buffer.fill(f32::NAN));
        let mut y = vec![f32::NAN; x.len()];
        encoder.forward(schedule, shape, x, &mut y, &mut workspace).unwrap();
        y
    }

    #[test]
    fn schedules_and_numbers_of_threads_agree_bitwise() {
        // Large enough for `gemm` to use every thread, and no multiple of its tiles.
        let layer = LayerConfig::new(264, 3, 520).unwrap();
        let shape = BatchShape::new(2, 77).unwrap().with_lengths(vec![77, 50]).unwrap();
        let x = random_activations(shape.rows(), layer.hidden_size, 2);
        for design in Design::ALL {
            let encoder = encoder(layer.with_design(design), 2);
            let expected = run(&encoder, Schedule::Serial, &shape, &x);
            assert!(expected.iter().all(|y| y.is_finite()) && expected.iter().any(|&y| y != 0.0));
            for threads in 1..=4 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                for schedule in SCHEDULES.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
                    let y = pool.install(|| run(&encoder, schedule, &shape, &x));
                    assert!(y == expected, "{design}, {schedule}, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn a_workspace_serves_smaller_batches_and_other_designs_and_refuses_what_does_not_fit() {
        let encoder = encoder(LayerConfig::new(12, 3, 20).unwrap(), 1);
        let [small, large] = [3, 5].map(|seq_len| BatchShape::new(2, seq_len).unwrap());
        let mut workspace = encoder.workspace(&large).unwrap();
        let x = random_activations(small.rows(), 12, 3);
        let saf = encoder.with_design(Design::SafPreNorm).unwrap();
        for encoder in [&encoder, &saf] {
            let mut y = vec![f32::NAN; x.len()];
            encoder.forward(Schedule::Serial, &small, &x, &mut y, &mut workspace).unwrap();
            assert_eq!(y, run(encoder, Schedule::Serial, &small, &x));
        }

        let x = random_activations(large.rows(), 12, 3);
        let mut y = vec![0.0; x.len()];
        let mut fails = |encoder: &Encoder, schedule, x: &[f32], workspace: &mut Workspace| {
            encoder.forward(schedule, &large, x, &mut y, workspace).unwrap_err().to_string()
        };
        let message = fails(&encoder, Schedule::Serial, &x, &mut encoder.workspace(&small).unwrap());
        assert!(message.contains("for 6 rows") && message.contains("10 rows"), "{message}");
        assert!(fails(&encoder, Schedule::Serial, &x[1..], &mut workspace).contains("x is 119 elements"));
        assert!(fails(&saf, Schedule::TwoStream, &x, &mut workspace).contains("two-stream"));
        let wider = self::encoder(LayerConfig::new(12, 3, 21).unwrap(), 1);
        assert!(fails(&wider, Schedule::Serial, &x, &mut workspace).contains("widths"));
    }

    #[test]
    fn bad_weights_are_refused() {
        let encoder = encoder(LayerConfig::new(12, 3, 20).unwrap(), 2);
        let mut layers = encoder.layers.to_vec();
        layers[1].w_2.pop();
        assert!(Encoder::new(encoder.config.clone(), Arc::new(layers.clone())).is_err());
        layers.pop();
        let error = Encoder::new(encoder.config, Arc::new(layers)).unwrap_err().to_string();
        assert!(error.contains("number of layers is 1, expected 2"), "{error}");
    }
}
