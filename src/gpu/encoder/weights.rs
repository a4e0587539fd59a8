//! The weights of a stack, packed on a device.

use std::borrow::Borrow;

use super::check_config;
#[cfg(feature = "checkpoint")]
use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, LayerConfig};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::borrowed::BorrowedLayer;
use crate::gpu::device::Device;
use crate::gpu::memory::{Buffer, Matrix};
use crate::gpu::staging::Staging;
use crate::weights::{Elements, LayerElements, LayerWeights, check_lengths};

/// Tensors of a layer start on this many bytes.
const ALIGNMENT: usize = 256;

/// One layer's weights in one allocation.
#[derive(Debug)]
pub(in crate::gpu) struct DeviceLayer {
    /// `w_qkv` and `w_1`, one above the other.
    pub(in crate::gpu) w_wide: Matrix,
    pub(in crate::gpu) w_qkv: Matrix,
    /// With the gate's projection above it, if there is one: all of the FFN's first product.
    pub(in crate::gpu) w_1: Matrix,
    pub(in crate::gpu) w_o: Matrix,
    pub(in crate::gpu) w_2: Matrix,
    // Pointers to vectors.
    /// `b_1` follows.
    pub(in crate::gpu) b_qkv: u64,
    pub(in crate::gpu) b_1: u64,
    pub(in crate::gpu) b_o: u64,
    pub(in crate::gpu) b_2: u64,
    /// `b_o + b_2`.
    pub(in crate::gpu) b_out: u64,
    pub(in crate::gpu) ln_1: (u64, u64),
    pub(in crate::gpu) ln_2: (u64, u64),
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

/// Weights of a stack on a device, in one element type. Several [`Encoder`](super::Encoder)s, of different designs too, can share them.
#[derive(Debug)]
pub struct EncoderWeights {
    pub(super) device: Device,
    pub(super) dtype: Dtype,
    /// What the weights' shapes were checked against; the design is of no account here.
    pub(super) layer_config: LayerConfig,
    pub(super) layers: Vec<DeviceLayer>,
}

impl EncoderWeights {
    /// Rounds the layers' weights to `dtype` and copies them to the device, one layer at a time: `layers` may make them as
    /// it goes, so that a model larger than host memory can be loaded. Also has the driver compile the kernels.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there are not `num_hidden_layers` layers or a field's size is wrong; what
    /// [`Encoder::new`](super::Encoder::new) finds in the configuration; [`Error::OutOfMemory`], [`Error::Cuda`], [`Error::ContextLost`].
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
