//! Encoders: stacks of layers, made of a configuration and weights, run on the caller's stream and memory.

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::copy_text;
use super::device::output;
use super::handle::{Object, Outcome, PafDevice, PafEncoder, destroy, register, with_device, with_encoder};
use super::read::{batch, design, dtype, element_type, hidden_act, location, or, read, schedule};
use super::status::{Failure, PafStatus};
use super::structs::{PafEncoderConfig, PafForward, PafLayerWeights};
use crate::config::{BatchShape, EncoderConfig, LayerConfig, Rotary, Schedule};
use crate::gpu::{Batch, BorrowedLayer, Encoder, EncoderWeights, Plan, Planner, Stream, Tensor, Workspace};

pub(super) struct EncoderState {
    encoder: Arc<Encoder>,
    max_rows: usize,
    plan: Plan,
    /// Streams, events and counters; its scratch memory is the caller's.
    workspace: Workspace,
}

impl EncoderState {
    /// An error once the context is lost.
    pub(super) fn enter(&self) -> Outcome {
        Ok(self.encoder.device().enter()?)
    }

    fn new(encoder: Arc<Encoder>, max_rows: usize, plan: Plan) -> Outcome<Box<Mutex<Self>>> {
        let workspace = encoder.workspace_without_scratch(max_rows)?;
        Ok(Box::new(Mutex::new(Self { encoder, max_rows, plan, workspace })))
    }
}

fn config(of: &PafEncoderConfig) -> Outcome<EncoderConfig> {
    let rest = of.hidden_size.checked_rem(of.num_attention_heads).unwrap_or(0);
    if of.head_dim == 0 && rest != 0 {
        let text = "head_dim is 0, expected a width, as hidden_size is no multiple of num_attention_heads";
        return Err(Failure::invalid(text));
    }
    let rotary =
        Rotary { dim: of.rotary_dim, base: or(of.rotary_base, 10_000.0), interleaved: of.rotary_interleaved != 0 };
    let layer = LayerConfig {
        hidden_size: of.hidden_size,
        num_attention_heads: of.num_attention_heads,
        num_key_value_heads: or(of.num_key_value_heads, of.num_attention_heads),
        head_dim: or(of.head_dim, of.hidden_size.checked_div(of.num_attention_heads).unwrap_or(0)),
        intermediate_size: of.intermediate_size,
        layer_norm_eps: or(of.layer_norm_eps, 1e-5),
        hidden_act: hidden_act(of.hidden_act)?,
        gated: of.gated != 0,
        design: design(of.design)?,
        causal: of.causal != 0,
        rotary: (of.rotary_dim != 0).then_some(rotary),
    };
    let config = EncoderConfig { layer, num_hidden_layers: of.num_hidden_layers };
    config.validate()?;
    Ok(config)
}

fn layer(of: &PafLayerWeights) -> Outcome<BorrowedLayer> {
    let &PafLayerWeights { w_qkv, b_qkv, w_o, b_o, w_1, b_1, w_gate, b_gate, w_2, b_2, .. } = of;
    let &PafLayerWeights { ln_1_gamma, ln_1_beta, ln_2_gamma, ln_2_beta, .. } = of;
    Ok(BorrowedLayer {
        element_type: element_type(of.dtype)?,
        location: location(of.memory)?,
        fields: [
            w_qkv, b_qkv, w_o, b_o, w_1, b_1, w_gate, b_gate, w_2, b_2, ln_1_gamma, ln_1_beta, ln_2_gamma, ln_2_beta,
        ],
    })
}

/// Writes a handle of a stack of `config->num_hidden_layers` layers. Their weights, an array of as many, are rounded and copied to the
/// device: they can be freed when this returns. Waits for the device. The plan is two streams, or for a serial design one.
///
/// # Safety
/// `config` and `layers` are null or as PafEncoderConfig and PafLayerWeights say, nothing writes what they lead to during the call;
/// `encoder` is null or has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_encoder_create(
    device: *mut PafDevice,
    config: *const PafEncoderConfig,
    layers: *const PafLayerWeights,
    encoder: *mut *mut PafEncoder,
) -> PafStatus {
    with_device(device, |device| {
        // SAFETY: the caller's promises, passed on.
        let (encoder, given) = unsafe { (output("encoder", encoder, null_mut())?, read(config)?) };
        let (config, dtype) = (self::config(&given)?, dtype(given.dtype)?);
        // SAFETY: as above.
        let first = unsafe { read(layers)? };
        let borrowed: Vec<BorrowedLayer> = (0..config.num_hidden_layers)
            .map(|i| {
                // The caller's array, of structs of the caller's version.
                let at = layers.wrapping_byte_add(i * first.struct_size);
                // SAFETY: inside that array.
                layer(&unsafe { read(at)? })
            })
            .collect::<Outcome<_>>()?;
        // SAFETY: the caller's promise, passed on.
        let weights = unsafe { EncoderWeights::upload_borrowed(device, &config, dtype, &borrowed)? };
        let made = Arc::new(Encoder::new(&config, Arc::new(weights))?);
        let schedule = if config.layer.design.is_parallel() { Schedule::TwoStream } else { Schedule::Serial };
        *encoder = register(Object::Encoder(EncoderState::new(made, given.max_rows, schedule.into())?));
        Ok(())
    })
}

/// Writes a handle of the same layers, whose weights both share, with streams and a plan (at first the same) of its own: for another
/// thread, or for calls on another stream at the same time.
///
/// # Safety
/// `clone` is null or has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_encoder_clone(encoder: *mut PafEncoder, clone: *mut *mut PafEncoder) -> PafStatus {
    with_encoder(encoder, |state| {
        // SAFETY: the caller's promise, passed on.
        let clone = unsafe { output("clone", clone, null_mut())? };
        *clone = register(Object::Encoder(EncoderState::new(state.encoder.clone(), state.max_rows, state.plan)?));
        Ok(())
    })
}

/// Ends the handle; null is no error. Waits for the device, and so is not for a capture. The weights go with the last handle that has
/// them.
#[unsafe(no_mangle)]
pub extern "C" fn paf_encoder_destroy(encoder: *mut PafEncoder) -> PafStatus {
    destroy(encoder, |object| matches!(object, Object::Encoder(_)))
}

/// Writes how many bytes of workspace a forward call on `rows` rows takes; more rows take no less.
///
/// # Safety
/// `bytes` is null or has room for a size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_encoder_workspace_bytes(
    encoder: *mut PafEncoder,
    rows: usize,
    bytes: *mut usize,
) -> PafStatus {
    with_encoder(encoder, |state| {
        // SAFETY: the caller's promise, passed on.
        let bytes = unsafe { output("bytes", bytes, 0)? };
        if rows == 0 || rows > state.max_rows {
            return Err(Failure::invalid(format!("rows is {rows}, expected 1 to max_rows = {}", state.max_rows)));
        }
        *bytes = state.encoder.scratch_bytes(rows);
        Ok(())
    })
}

/// Makes `plan` the encoder's: "serial", "two-stream", "fused" or "hybrid", alone or followed by variants of kernels, as paf_encoder_plan
/// writes it. Kernels that it names and that are not loaded yet are loaded here.
///
/// # Safety
/// `plan` is null or ends with a 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_encoder_set_plan(encoder: *mut PafEncoder, plan: *const c_char) -> PafStatus {
    with_encoder(encoder, |state| {
        // SAFETY: the caller's promise, passed on.
        let plan: Plan = unsafe { text("plan", plan)? }.parse()?;
        state.encoder.load_plan(&plan)?;
        state.plan = plan;
        Ok(())
    })
}

/// Copies the encoder's plan as text, at most `bytes` bytes, the last one always 0, and writes to `needed`, unless that is null, how many
/// it takes.
///
/// # Safety
/// `buffer` has room for `bytes` bytes, or is null and `bytes` is 0; `needed` is null or has room for a size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_encoder_plan(
    encoder: *mut PafEncoder,
    buffer: *mut c_char,
    bytes: usize,
    needed: *mut usize,
) -> PafStatus {
    with_encoder(encoder, |state| {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            let length = copy_text(&state.plan.to_string(), buffer, bytes);
            if !needed.is_null() {
                *output("needed", needed, 0)? = length;
            }
        }
        Ok(())
    })
}

/// Finds by measuring, for about `seconds`, the fastest plan for `batch` sequences of `seq_len` tokens, and makes it the encoder's. With a
/// `cache`, a file's name, what was measured is kept there, or taken from there if it was measured before. Allocates, waits for the device,
/// and should have it for itself: not for the middle of serving.
///
/// # Safety
/// `cache` is null or ends with a 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_encoder_measure_plan(
    encoder: *mut PafEncoder,
    batch: usize,
    seq_len: usize,
    seconds: f64,
    cache: *const c_char,
) -> PafStatus {
    with_encoder(encoder, |state| {
        let budget = Duration::try_from_secs_f64(seconds)
            .map_err(|error| Failure::invalid(format!("seconds is {seconds}: {error}")))?;
        let mut planner = Planner::new().budget(budget);
        if !cache.is_null() {
            // SAFETY: the caller's promise, passed on.
            planner = planner.cache(unsafe { text("cache", cache)? });
        }
        let batch = Batch::new(state.encoder.device(), &BatchShape::new(batch, seq_len)?)?;
        state.plan = planner.plan(&state.encoder, &batch)?.plan;
        Ok(())
    })
}

/// Enqueues the stack on the caller's stream, y = layers(x), and returns: allocates nothing, waits for nothing, and can be captured. Two
/// streams of the encoder's own are forked from the caller's stream and joined to it by events. Calls with one encoder on different
/// streams have to be ordered by the caller, as its streams are the same; paf_encoder_clone makes one with streams of its own.
/// A call that fails midway leaves y undefined; a capture that it was part of should be thrown away. A graph that holds a call has what
/// the call had, the encoder's weights and streams among them: all of it has to outlive the graph, and a replay is ordered as a call is.
///
/// # Safety
/// `call` is null or as PafForward says, its pointers to memory of the encoder's device that nothing else touches until the stream has
/// run the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn paf_encoder_forward(encoder: *mut PafEncoder, call: *const PafForward) -> PafStatus {
    with_encoder(encoder, |state| {
        let EncoderState { encoder, plan, workspace, .. } = state;
        let (device, dtype, cols) = (encoder.device(), encoder.dtype(), encoder.config().layer.hidden_size);
        // SAFETY: the caller's promises, passed on.
        unsafe {
            let call = read(call)?;
            if call.reserved != 0 {
                return Err(Failure::invalid(format!("reserved is {}, expected 0", call.reserved)));
            }
            let plan = if call.schedule == 0 { *plan } else { schedule(call.schedule)?.into() };
            let stream = Stream::from_raw(device, call.stream)?;
            let batch = batch(device, call.batch)?;
            let rows = batch.shape().rows();
            let x = Tensor::from_raw(device, dtype, call.x.addr() as u64, rows, cols)?;
            let mut y = Tensor::from_raw(device, dtype, call.y.addr() as u64, rows, cols)?;
            workspace.lend(call.workspace.addr() as u64, call.workspace_bytes)?;
            Ok(encoder.forward(&stream, plan, &batch, &x, &mut y, workspace)?)
        }
    })
}

/// # Safety
/// `pointer` is null or ends with a 0, and stays so while the text is used.
unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Outcome<&'a str> {
    if pointer.is_null() {
        return Err(Failure::invalid(format!("{name} is null, expected a text")));
    }
    // SAFETY: the caller's promise, passed on.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|error| Failure::invalid(format!("{name} is not UTF-8: {error}")))
}
