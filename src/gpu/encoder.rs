//! A stack of layers on a device: weights packed once, checked once; forward calls that only launch.

mod weights;

#[cfg(feature = "checkpoint")]
use std::path::Path;
use std::sync::Arc;

pub(super) use weights::DeviceLayer;
pub use weights::EncoderWeights;

use super::attention::{self, head_dims};
use super::batch::Batch;
use super::device::{Device, Stream};
use super::gemm;
use super::graph::Graph;
use super::memory::{Matrix, Tensor};
use super::norm::MAX_HIDDEN;
use super::plan::{self, Plan};
use super::schedule;
use super::workspace::{Branch, Workspace};
#[cfg(feature = "checkpoint")]
use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, LayerConfig, check_dimension};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// What the kernels ask of a layer beyond its being valid.
fn check_config(config: &LayerConfig) -> Result<()> {
    if !head_dims().contains(&config.head_dim) {
        return Err(attention::unsupported_head_dim(config.head_dim));
    }
    for (field, value) in [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)] {
        if !value.is_multiple_of(8) {
            return Err(Error::Unsupported {
                what: format!("{field} = {value} on a GPU"),
                remedy: "the kernels move 16 bytes at a time and need a multiple of 8".into(),
            });
        }
    }
    if !config.gated {
        gemm::check_activation(config.hidden_act)?;
    }
    if config.hidden_size > MAX_HIDDEN {
        return Err(Error::Unsupported {
            what: format!("hidden_size = {} on a GPU", config.hidden_size),
            remedy: format!("the norm kernels hold at most {MAX_HIDDEN} columns"),
        });
    }
    Ok(())
}

/// A stack of layers of one design that can be run.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    weights: Arc<EncoderWeights>,
    /// Of each layer this block alone, see [`only`](Self::only).
    block: Option<Branch>,
}

impl Encoder {
    /// The first `config.num_hidden_layers` layers of `weights`, in the design of `config`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Unsupported`] for what the kernels cannot do; [`Error::Mismatch`] if the
    /// weights have other dimensions or fewer layers.
    pub fn new(config: &EncoderConfig, weights: Arc<EncoderWeights>) -> Result<Self> {
        config.validate()?;
        check_config(&config.layer)?;
        let dimensions =
            |c: &LayerConfig| (c.hidden_size, c.first_size(), c.intermediate_size, c.query_size(), c.qkv_size());
        let (wanted, found) = (dimensions(&config.layer), dimensions(&weights.layer_config));
        if wanted != found {
            return Err(Error::mismatch(
                "Encoder::new",
                "(hidden, first FFN product, intermediate, query, QKV) width of the weights",
                format!("{found:?}"),
                format!("{wanted:?}"),
            ));
        }
        if config.num_hidden_layers > weights.layers.len() {
            return Err(Error::mismatch(
                "Encoder::new",
                "number of layers of the weights",
                weights.layers.len(),
                format!("at least {}", config.num_hidden_layers),
            ));
        }
        Ok(Self { config: config.clone(), weights, block: None })
    }

    /// The layers of the checkpoint in `folder`, in Hugging Face's format, on `device` in `dtype`: the stack alone, from
    /// activations `[rows, hidden_size]` to activations. [`Model::from_pretrained`](super::Model::from_pretrained) has what is
    /// around it, too.
    ///
    /// ```no_run
    /// use paf_cuda::gpu::{Batch, Device, Encoder, Stream, Tensor};
    /// use paf_cuda::{BatchShape, Dtype, Schedule};
    ///
    /// let device = Device::new(0)?;
    /// let encoder = Encoder::from_pretrained(&device, "pythia-70m", Dtype::Bf16)?;
    /// let batch = Batch::new(&device, &BatchShape::packed(vec![5, 3])?)?; // 8 rows
    /// let hidden_size = encoder.config().layer.hidden_size; // 512
    /// let x = Tensor::from_host(&device, Dtype::Bf16, 8, hidden_size, &vec![0.5; 8 * hidden_size])?;
    /// let mut y = Tensor::poisoned(&device, Dtype::Bf16, 8, hidden_size)?;
    /// let (stream, mut workspace) = (Stream::new(&device)?, encoder.workspace(&batch)?);
    /// encoder.forward(&stream, Schedule::Fused, &batch, &x, &mut y, &mut workspace)?;
    /// let hidden = y.to_host()?; // [8, hidden_size]
    /// # Ok::<(), paf_cuda::Error>(())
    /// ```
    ///
    /// # Errors
    /// What [`Checkpoint::open`] and [`EncoderWeights::from_checkpoint`] find.
    #[cfg(feature = "checkpoint")]
    pub fn from_pretrained(device: &Device, folder: impl AsRef<Path>, dtype: Dtype) -> Result<Self> {
        Self::from_checkpoint(device, &Checkpoint::open(folder)?, dtype)
    }

    /// The same of a checkpoint that is open, and in its design.
    ///
    /// # Errors
    /// What [`EncoderWeights::from_checkpoint`] finds.
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(device: &Device, checkpoint: &Checkpoint, dtype: Dtype) -> Result<Self> {
        Self::new(checkpoint.config(), Arc::new(EncoderWeights::from_checkpoint(device, checkpoint, dtype)?))
    }

    /// What the stack is.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.weights.device
    }

    /// Element type of weights and activations.
    pub fn dtype(&self) -> Dtype {
        self.weights.dtype
    }

    /// Device memory that a workspace for this batch takes, bytes.
    pub fn workspace_bytes(&self, batch: &Batch) -> usize {
        Workspace::bytes(&self.config.layer, batch.shape().rows())
    }

    /// Scratch memory, streams and events for forward calls on batches with at most as many rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn workspace(&self, batch: &Batch) -> Result<Workspace> {
        Workspace::new(self.device(), &self.config.layer, batch.shape().rows())
    }

    /// Scratch memory that a forward call on `rows` rows takes, bytes: what [`Workspace::lend`] is to be given.
    pub fn scratch_bytes(&self, rows: usize) -> usize {
        Workspace::scratch_bytes(&self.config.layer, rows)
    }

    /// Streams and events for forward calls on at most `rows` rows, and the little memory that keeps its content between calls, without
    /// scratch memory: [`Workspace::lend`] gives it someone else's.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for no rows, or more than 2²⁰; [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn workspace_without_scratch(&self, rows: usize) -> Result<Workspace> {
        check_dimension("rows", rows)?;
        Workspace::without_scratch(self.device(), &self.config.layer, rows)
    }

    /// The same stack without the layers after the first `layers`.
    pub(super) fn first_layers(&self, layers: usize) -> Self {
        let num_hidden_layers = layers.min(self.config.num_hidden_layers);
        let config = EncoderConfig { num_hidden_layers, ..self.config.clone() };
        Self { config, weights: self.weights.clone(), block: self.block }
    }

    /// A stack of one block of each layer alone, with its residual sum and norm: what a serial design has one after the other. For
    /// measuring.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a parallel design, whose branches have one sum and norm together.
    pub(crate) fn only(self, block: Branch) -> Result<Self> {
        if self.config.layer.design.is_parallel() {
            return Err(Error::Unsupported {
                what: format!("one block of design {}", self.config.layer.design),
                remedy: "take the serial design".into(),
            });
        }
        Ok(Self { block: Some(block), ..self })
    }

    /// Which block alone, if it is not whole layers.
    pub(crate) fn block(&self) -> Option<Branch> {
        self.block
    }

    /// Enqueues the stack on `stream`: `y = layers(x)`, both `[rows, hidden_size]`. Returns at once; the result is
    /// there when the stream has run what was enqueued. Rows of padding become zeros, whatever `x` holds there.
    ///
    /// `plan` is a [`Schedule`](crate::Schedule), whose kernels are chosen by estimate, or what a [`Planner`](super::Planner) has
    /// found by measurement.
    ///
    /// `x` and `y` can be one matrix where both are borrowed from someone else ([`Tensor::from_raw`]).
    /// `x`, `y`, the batch and the workspace belong to the call until the stream has run it: do not write `x` or
    /// start another call with the same workspace on another stream before.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a schedule that the design, or a variant that the device, cannot have; [`Error::Mismatch`] for a
    /// variant that cannot do its product, or if a tensor's shape, element type or device, or the workspace's size, does not
    /// fit; [`Error::Cuda`], [`Error::ContextLost`].
    pub fn forward(
        &self,
        stream: &Stream,
        plan: impl Into<Plan>,
        batch: &Batch,
        x: &Tensor,
        y: &mut Tensor,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let plan = plan.into();
        self.check_operands(stream, batch, x, y, workspace)?;
        self.device().enter()?;
        self.prepare(&plan, batch)?;
        // SAFETY: shapes, types and devices were checked; x is borrowed, y and the workspace mutably so, and the buffers of
        // all three wait for the device before they are freed.
        unsafe {
            schedule::forward(self, &self.weights.layers, stream, &plan, batch, x.matrix(), y.matrix(), workspace)
        }
    }

    /// [`forward`](Self::forward) on matrices.
    ///
    /// # Safety
    /// Both are `[batch.shape().rows(), hidden_size]` without gaps, in the encoder's element type, aligned to 16 bytes and apart;
    /// they, batch and workspace live on the encoder's device until the stream has run the call, and nothing else writes `x`, or
    /// touches `y` or the workspace, meanwhile.
    pub(super) unsafe fn forward_matrices(
        &self,
        stream: &Stream,
        plan: &Plan,
        batch: &Batch,
        (x, y): (Matrix, Matrix),
        workspace: &mut Workspace,
    ) -> Result<()> {
        workspace.check(&self.config.layer, batch.shape().rows())?;
        self.device().enter()?;
        self.prepare(plan, batch)?;
        // SAFETY: the caller's promise, passed on; the workspace is large enough.
        unsafe { schedule::forward(self, &self.weights.layers, stream, plan, batch, x, y, workspace) }
    }

    /// Records the launches of [`forward`](Self::forward) into a graph, which keeps the operands borrowed. Runs nothing.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn capture<'a>(
        &'a self,
        stream: &Stream,
        plan: impl Into<Plan>,
        batch: &'a Batch,
        x: &'a Tensor,
        y: &'a mut Tensor,
        workspace: &'a mut Workspace,
    ) -> Result<Graph<'a>> {
        let plan = plan.into();
        // What the plan needs is loaded before the capture, in which nothing may be.
        self.prepare(&plan, batch)?;
        Graph::record(stream, || self.forward(stream, plan, batch, x, y, workspace))
    }

    /// Checks that the stack can be run as planned on some number of rows, and loads what that needs.
    pub(crate) fn load_plan(&self, plan: &Plan) -> Result<()> {
        let kernels = self.device().kernels(self.dtype())?;
        // The fewer rows, the more variants there are.
        plan::prepare(plan, kernels, self.device(), &self.config.layer, 1)
    }

    fn prepare(&self, plan: &Plan, batch: &Batch) -> Result<()> {
        let kernels = self.device().kernels(self.dtype())?;
        plan::prepare(plan, kernels, self.device(), &self.config.layer, batch.shape().rows())
    }

    fn check_operands(
        &self,
        stream: &Stream,
        batch: &Batch,
        x: &Tensor,
        y: &Tensor,
        workspace: &Workspace,
    ) -> Result<()> {
        const OPERATION: &str = "Encoder::forward";
        let shape = (batch.shape().rows(), self.config.layer.hidden_size);
        for (what, tensor) in [("x", x), ("y", y)] {
            if tensor.shape() != shape || tensor.dtype() != self.dtype() {
                let text = |dtype: Dtype, (rows, cols): (usize, usize)| format!("{dtype} {rows} × {cols}");
                return Err(Error::mismatch(
                    OPERATION,
                    what,
                    text(tensor.dtype(), tensor.shape()),
                    text(self.dtype(), shape),
                ));
            }
        }
        let devices = [stream.device(), batch.device(), x.device(), y.device(), workspace.device()];
        if !devices.iter().all(|device| device.same_as(self.device())) {
            return Err(Error::mismatch(
                OPERATION,
                "device of an operand",
                format!("{:?}", devices.map(|device| device.info().ordinal)),
                format!("the encoder's device object (ordinal {})", self.device().info().ordinal),
            ));
        }
        workspace.check(&self.config.layer, shape.0)?;
        // Of memory that someone else owns, that it is apart is the caller's word, which a look at the addresses can test.
        let (x, y) = (x.matrix(), y.matrix());
        if x.pointer != y.pointer && x.overlaps(&y) {
            return Err(Error::mismatch(
                OPERATION,
                "y",
                format!("at {:#x}, {} bytes from x", y.pointer, y.pointer.abs_diff(x.pointer)),
                "x itself, or memory apart from it",
            ));
        }
        workspace.check_apart(OPERATION, [("x", x), ("y", y)])
    }
}
