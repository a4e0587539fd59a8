//! A program that calls the C ABI: a small encoder, the memory that it brings, and looks at what calls came to.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use libtest_mimic::Failed;
use paf_cuda::ffi::*;
use paf_cuda::gpu::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use paf_cuda::weights::{LayerWeights, random_activations, random_layers};
use paf_cuda::{Dtype, EncoderConfig, LayerConfig};

use super::Outcome;

/// The text of the last failure with `handle`, or on this thread.
pub fn last_error<T>(handle: *const T) -> String {
    let mut text = [0 as c_char; 1024];
    // SAFETY: the buffer is as long as said, and ends with a 0 afterwards.
    unsafe {
        paf_last_error(handle.cast(), text.as_mut_ptr(), text.len());
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    }
}

pub fn ok(status: PafStatus) -> Outcome {
    is(status, PafStatus::Ok, "")
}

/// Whether a call of this thread came to `expected`, with a text that has `part` in it.
pub fn is(status: PafStatus, expected: PafStatus, part: &str) -> Outcome {
    let text = last_error(null::<c_void>());
    if status != expected || status != PafStatus::Ok && !text.contains(part) {
        return Err(format!("{status:?}, expected {expected:?} with {part:?} in the text: {text}").into());
    }
    Ok(())
}

/// Where a slice is; what cudarc keeps of its use, which it is told has ended, is of no account on one stream.
pub fn address<T>((pointer, _use): (u64, T)) -> usize {
    pointer as usize
}

/// A small encoder behind the ABI, and what a program brings to its calls.
pub struct Program {
    pub device: *mut PafDevice,
    pub encoder: *mut PafEncoder,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub x: CudaSlice<u16>,
    pub y: CudaSlice<u16>,
    pub workspace: CudaSlice<u8>,
    pub lengths: CudaSlice<i32>,
    pub batch: PafBatch,
}

/// As [`Fixture`]'s.
pub const LENGTHS: [i32; 2] = [70, 33];
pub const ROWS: usize = 140;
pub const HIDDEN: usize = 128;

pub fn config(design: PafDesign) -> PafEncoderConfig {
    PafEncoderConfig {
        struct_size: size_of::<PafEncoderConfig>(),
        hidden_size: HIDDEN,
        num_attention_heads: 2,
        num_key_value_heads: 0,
        head_dim: 0,
        intermediate_size: 512,
        num_hidden_layers: 4,
        max_rows: ROWS,
        rotary_dim: 0,
        rotary_base: 0.0,
        rotary_interleaved: 0,
        layer_norm_eps: 0.0,
        hidden_act: PafHiddenAct::Gelu as i32,
        gated: 0,
        causal: 0,
        design: design as i32,
        dtype: PafDtype::Bf16 as i32,
    }
}

pub fn layer(weights: &LayerWeights) -> PafLayerWeights {
    let pointer = |values: &Vec<f32>| if values.is_empty() { null() } else { values.as_ptr().cast::<c_void>() };
    PafLayerWeights {
        struct_size: size_of::<PafLayerWeights>(),
        dtype: PafDtype::F32 as i32,
        memory: PafMemory::Host as i32,
        w_qkv: pointer(&weights.w_qkv),
        b_qkv: pointer(&weights.b_qkv),
        w_o: pointer(&weights.w_o),
        b_o: pointer(&weights.b_o),
        w_1: pointer(&weights.w_1),
        b_1: pointer(&weights.b_1),
        w_gate: pointer(&weights.w_gate),
        b_gate: pointer(&weights.b_gate),
        w_2: pointer(&weights.w_2),
        b_2: pointer(&weights.b_2),
        ln_1_gamma: pointer(&weights.ln_1.gamma),
        ln_1_beta: pointer(&weights.ln_1.beta),
        ln_2_gamma: pointer(&weights.ln_2.gamma),
        ln_2_beta: pointer(&weights.ln_2.beta),
    }
}

/// The layers of [`Fixture`].
pub fn layers() -> Result<Vec<LayerWeights>, Failed> {
    let layer = LayerConfig::new(HIDDEN, 2, 512)?;
    Ok(random_layers(&EncoderConfig { layer, num_hidden_layers: 4 }, 3).collect())
}

impl Program {
    pub fn new(ordinal: usize, design: PafDesign) -> Result<Self, Failed> {
        let weights = layers()?;
        let given: Vec<_> = weights.iter().map(layer).collect();
        let (mut device, mut encoder, mut bytes) = (null_mut(), null_mut(), 0);
        // SAFETY: structs that are filled in, an array of four, and room for what is written.
        unsafe {
            ok(paf_device_open(ordinal, &mut device))?;
            ok(paf_encoder_create(device, &config(design), given.as_ptr(), &mut encoder))?;
            ok(paf_encoder_workspace_bytes(encoder, ROWS, &mut bytes))?;
        }
        let context = CudaContext::new(ordinal)?;
        let stream = context.new_stream()?;
        let x: Vec<u16> = random_activations(ROWS, HIDDEN, 4).iter().map(|&x| Dtype::Bf16.to_bits(x)).collect();
        let lengths = stream.clone_htod(&LENGTHS)?;
        let numbers = std::ptr::with_exposed_provenance(address(lengths.device_ptr(&stream)));
        let program = Self {
            device,
            encoder,
            x: stream.clone_htod(&x)?,
            y: stream.clone_htod(&vec![0xffff; ROWS * HIDDEN])?,
            workspace: stream.clone_htod(&vec![0xff; bytes])?,
            batch: PafBatch {
                struct_size: size_of::<PafBatch>(),
                batch: 2,
                seq_len: 70,
                packed_rows: 0,
                lengths: numbers,
                first_rows: null(),
                positions: null(),
            },
            lengths,
            context,
            stream,
        };
        program.stream.synchronize()?;
        Ok(program)
    }

    pub fn call(&mut self, schedule: i32) -> PafForward {
        let stream = self.stream.clone();
        let workspace_bytes = self.workspace.len();
        let x = address(self.x.device_ptr(&stream));
        let y = address(self.y.device_ptr_mut(&stream));
        let workspace = address(self.workspace.device_ptr_mut(&stream));
        PafForward {
            struct_size: size_of::<PafForward>(),
            stream: stream.cu_stream(),
            batch: &self.batch,
            x: std::ptr::with_exposed_provenance(x),
            y: std::ptr::with_exposed_provenance_mut(y),
            workspace: std::ptr::with_exposed_provenance_mut(workspace),
            workspace_bytes,
            schedule,
            reserved: 0,
        }
    }

    pub fn forward(&self, call: &PafForward) -> PafStatus {
        // SAFETY: the call is this program's, whose memory lives until the device has been waited for.
        unsafe { paf_encoder_forward(self.encoder, call) }
    }

    /// The output of one call, after which the output is poisoned again.
    pub fn run(&mut self, schedule: i32) -> Result<Vec<u16>, Failed> {
        let call = self.call(schedule);
        ok(self.forward(&call))?;
        self.take()
    }

    pub fn take(&mut self) -> Result<Vec<u16>, Failed> {
        self.stream.synchronize()?;
        let got = self.stream.clone_dtoh(&self.y)?;
        self.stream.memcpy_htod(&vec![0xffffu16; ROWS * HIDDEN], &mut self.y)?;
        self.stream.synchronize()?;
        Ok(got)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // What is not alive any more is refused, which a test of that wants.
        let _ = (paf_encoder_destroy(self.encoder), paf_device_destroy(self.device));
    }
}
