//! A stack of layers on a device: weights packed once, checked once; forward calls that only launch.

use std::borrow::Borrow;
#[cfg(feature = "checkpoint")]
use std::path::Path;
use std::sync::Arc;

use super::attention::{self, head_dims};
use super::batch::Batch;
use super::borrowed::BorrowedLayer;
use super::device::{Device, Stream};
use super::gemm;
use super::graph::Graph;
use super::memory::{Buffer, Matrix, Tensor};
use super::norm::MAX_HIDDEN;
use super::plan::{self, Plan};
use super::schedule;
use super::staging::Staging;
use super::workspace::{Branch, Workspace};
#[cfg(feature = "checkpoint")]
use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, LayerConfig, check_dimension};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::weights::{Elements, LayerElements, LayerWeights, check_lengths};

/// Tensors of a layer start on this many bytes.
const ALIGNMENT: usize = 256;

/// One layer's weights in one allocation.
#[derive(Debug)]
pub(super) struct DeviceLayer {
    /// `w_qkv` and `w_1`, one above the other.
    pub(super) w_wide: Matrix,
    pub(super) w_qkv: Matrix,
    /// With the gate's projection above it, if there is one: all of the FFN's first product.
    pub(super) w_1: Matrix,
    pub(super) w_o: Matrix,
    pub(super) w_2: Matrix,
    // Pointers to vectors.
    /// `b_1` follows.
    pub(super) b_qkv: u64,
    pub(super) b_1: u64,
    pub(super) b_o: u64,
    pub(super) b_2: u64,
    /// `b_o + b_2`.
    pub(super) b_out: u64,
    pub(super) ln_1: (u64, u64),
    pub(super) ln_2: (u64, u64),
    _buffer: Buffer,
}

impl DeviceLayer {
    /// The weights are there when `staging` has finished.
    fn upload(
        staging: &mut Staging,
        device: &Device,
        config: &LayerConfig,
        dtype: Dtype,
        LayerElements(fields): &LayerElements<'_>,
    ) -> Result<Self> {
        check_lengths(config, fields.each_ref().map(|(name, elements)| (*name, elements.len())))?;
        let (h, f, q, qkv) = (config.hidden_size, config.intermediate_size, config.query_size(), config.qkv_size());
        let first = config.first_size();
        let [w_qkv, b_qkv, w_o, b_o, w_1, b_1, w_gate, b_gate, w_2, b_2, gamma_1, beta_1, gamma_2, beta_2] =
            fields.each_ref().map(|(_, elements)| &**elements);
        let (mut b_out, mut of_ffn) = (vec![0.0; h], vec![0.0; h]);
        b_o.read(0, &mut b_out)?;
        b_2.read(0, &mut of_ffn)?;
        b_out.iter_mut().zip(of_ffn).for_each(|(sum, two)| *sum += two);
        let b_out = &b_out;
        let tensors: [&dyn Elements; 15] =
            [w_qkv, w_gate, w_1, w_o, w_2, b_qkv, b_gate, b_1, b_o, b_2, &b_out, gamma_1, beta_1, gamma_2, beta_2];
        let mut bytes = 0usize;
        let offsets: [usize; 15] = std::array::from_fn(|i| {
            // What the wide product reads as one leaves no gap: widths are multiples of 8, of 16 bytes.
            let offset = if matches!(i, 1 | 2 | 6 | 7) { bytes } else { bytes.next_multiple_of(ALIGNMENT) };
            bytes = offset + tensors[i].len() * Dtype::BYTES;
            offset
        });
        let buffer = Buffer::new(device, "the weights of a layer", bytes)?;
        for (tensor, offset) in tensors.into_iter().zip(offsets) {
            staging.write(&buffer, offset, dtype, tensor)?;
        }
        let at = |index: usize| buffer.pointer() + offsets[index] as u64;
        let matrix = |index, rows, cols| Matrix { pointer: at(index), rows, cols, stride: cols };
        Ok(Self {
            w_wide: matrix(0, qkv + first, h),
            w_qkv: matrix(0, qkv, h),
            // Without a gate, this is where `w_1` itself is.
            w_1: matrix(1, first, h),
            w_o: matrix(3, h, q),
            w_2: matrix(4, h, f),
            b_qkv: at(5),
            b_1: at(6),
            b_o: at(8),
            b_2: at(9),
            b_out: at(10),
            ln_1: (at(11), at(12)),
            ln_2: (at(13), at(14)),
            _buffer: buffer,
        })
    }
}

/// Weights of a stack on a device, in one element type. Several [`Encoder`]s, of different designs too, can share them.
#[derive(Debug)]
pub struct EncoderWeights {
    device: Device,
    dtype: Dtype,
    /// What the weights' shapes were checked against; the design is of no account here.
    layer_config: LayerConfig,
    pub(super) layers: Vec<DeviceLayer>,
}

impl EncoderWeights {
    /// Rounds the layers' weights to `dtype` and copies them to the device, one layer at a time: `layers` may make them as
    /// it goes, so that a model larger than host memory can be loaded. Also has the driver compile the kernels.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are not `num_hidden_layers` layers or a field's size is wrong; what
    /// [`Encoder::new`] finds in the configuration; [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
    pub fn upload<L: Borrow<LayerWeights>>(
        device: &Device,
        config: &EncoderConfig,
        dtype: Dtype,
        layers: impl IntoIterator<Item = L>,
    ) -> Result<Self> {
        Self::upload_with(device, config, dtype, |upload| {
            layers.into_iter().try_for_each(|layer| upload(&layer.borrow().into()))
        })
    }

    /// The same of a checkpoint's layers, in its design or another one's. They go to the device a few megabytes at a time, through
    /// page-locked memory: no layer is ever whole in the host's, but for the file that is mapped there.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(device: &Device, checkpoint: &Checkpoint, dtype: Dtype) -> Result<Self> {
        Self::upload_with(device, checkpoint.config(), dtype, |upload| {
            checkpoint.layer_elements().try_for_each(|layer| upload(&layer))
        })
    }

    /// The same of layers in someone else's memory, on the host or a device, in any of three element types. They are copied, after
    /// everything launched on the device has finished.
    ///
    /// # Errors
    /// As [`upload`](Self::upload); [`Error::Mismatch`] for a matrix that is not there.
    ///
    /// # Safety
    /// Every pointer that is not null leads to as many elements as [`LayerWeights`] says for `config`, in that layer's memory, which
    /// nothing writes during the call; a device's memory is one that `device` can read.
    pub unsafe fn upload_borrowed(
        device: &Device,
        config: &EncoderConfig,
        dtype: Dtype,
        layers: &[BorrowedLayer],
    ) -> Result<Self> {
        device.synchronize()?;
        Self::upload_with(device, config, dtype, |upload| {
            layers.iter().try_for_each(|layer| upload(&layer.elements(device, &config.layer)?))
        })
    }

    /// `each` calls what it is given with one layer after the other.
    fn upload_with(
        device: &Device,
        config: &EncoderConfig,
        dtype: Dtype,
        each: impl FnOnce(&mut dyn FnMut(&LayerElements<'_>) -> Result<()>) -> Result<()>,
    ) -> Result<Self> {
        config.validate()?;
        check_config(&config.layer)?;
        device.kernels(dtype)?;
        let layer = &config.layer;
        let largest = layer.hidden_size * layer.qkv_size().max(layer.intermediate_size);
        let mut staging = Staging::new(device, largest)?;
        let mut layers = Vec::new();
        each(&mut |weights| {
            layers.push(DeviceLayer::upload(&mut staging, device, layer, dtype, weights)?);
            Ok(())
        })?;
        staging.finish()?;
        if layers.len() != config.num_hidden_layers {
            return Err(Error::mismatch("weights", "number of layers", layers.len(), config.num_hidden_layers));
        }
        Ok(Self { device: device.clone(), dtype, layer_config: config.layer.clone(), layers })
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
}

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
    #[cfg(any(feature = "cli", test))]
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
    pub(super) fn block(&self) -> Option<Branch> {
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
