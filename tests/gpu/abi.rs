//! The C ABI as a C program would call it: what it computes is what the Rust API computes, and what it refuses has a status and a text.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use paf_cuda::ffi::*;
use paf_cuda::gpu::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use paf_cuda::gpu::kernel::{self, Attention, Epilogue, Norm, Product};
use paf_cuda::gpu::{Batch, Device, Encoder, EncoderWeights, Floats, Stream, Tensor};
use paf_cuda::weights::{LayerWeights, random_activations, random_layers};
use paf_cuda::{BatchShape, Design, Dtype, EncoderConfig, HiddenAct, LayerConfig, Schedule};

use super::borrowed::returns_while_blocked;
use super::{ALONE, Fixture, Outcome, differs};

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    let mut together = |name: &str, test| {
        trials.push(super::together(device, format!("abi: {name}"), test, Design::PafPreNorm));
    };
    together("forward", forward);
    together("kernels", kernels);
    together("refused: what does not fit", refused);
    together("plans", plans);
    let mut alone = |name: &str, test: fn(&Device) -> Outcome| {
        let device = device.clone();
        trials.push(Trial::test(name, move || {
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            test(&device)
        }));
    };
    alone("abi: forward returns while its stream is blocked", blocked);
    alone("overhead: an eager forward of one layer takes the host less than 15 µs", overhead);
}

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

fn forward(device: &Device, _: Design) -> Outcome {
    let shape = BatchShape::new(2, 70)?.with_lengths(LENGTHS.map(|len| len as usize).to_vec())?;
    let numbers = [
        (PafDesign::SafPostNorm, Design::SafPostNorm),
        (PafDesign::PafPostNorm, Design::PafPostNorm),
        (PafDesign::PafPreNormTwo, Design::PafPreNormTwo),
    ];
    for (number, design) in numbers {
        let mut program = Program::new(device.info().ordinal, number)?;
        let mut fixture = Fixture::new(device, design, &shape)?;
        let planned = if design.is_parallel() { Schedule::TwoStream } else { Schedule::Serial };
        differs(&fixture.run(planned, &[])?, &program.run(0)?, || format!("{design} as planned"))?;
        for (i, schedule) in Schedule::ALL.into_iter().enumerate().filter(|(_, s)| s.check(design).is_ok()) {
            let got = program.run(i as i32 + 1)?;
            differs(&fixture.run(schedule, &[])?, &got, || format!("{design} {schedule}"))?;
        }
        let mut clone = null_mut();
        // SAFETY: room for a handle.
        ok(unsafe { paf_encoder_clone(program.encoder, &mut clone) })?;
        ok(paf_encoder_destroy(program.encoder))?;
        program.encoder = clone;
        differs(&fixture.run(planned, &[])?, &program.run(0)?, || format!("{design}, a clone that is left alone"))?;
    }
    Ok(())
}

fn kernels(device: &Device, _: Design) -> Outcome {
    let program = Program::new(device.info().ordinal, PafDesign::PafPreNorm)?;
    let shape = BatchShape::new(2, 70)?.with_lengths(LENGTHS.map(|len| len as usize).to_vec())?;
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, &shape)?);
    let tensor =
        |rows, cols, seed| Tensor::from_host(device, Dtype::Bf16, rows, cols, &random_activations(rows, cols, seed));
    let (a, w, bias, gamma) = (tensor(ROWS, 128, 1)?, tensor(384, 128, 2)?, tensor(1, 384, 3)?, tensor(1, 384, 4)?);
    let (mut qkv, mut sum) = (Tensor::poisoned(device, Dtype::Bf16, ROWS, 384)?, tensor(ROWS, 384, 5)?);
    let (mut context, mut out) = (Tensor::poisoned(device, Dtype::Bf16, ROWS, 128)?, tensor(ROWS, 384, 6)?);
    let mut log_sum_exp = Floats::poisoned(device, 2 * ROWS)?;
    let relu = Epilogue::Activation(HiddenAct::Relu);
    kernel::gemm(&stream, &Product { bias: Some(&bias), epilogue: relu, ..Product::new(&a, &w) }, &mut qkv)?;
    kernel::attention(&stream, &Attention::new(&batch, &qkv, 2, 64), &mut context, Some(&mut log_sum_exp))?;
    let mut norm = [Norm { out: &mut out, gamma: &gamma, beta: &bias }];
    kernel::join(&stream, &batch, &[&qkv, &qkv], None, Some(&mut sum), &mut norm, 1e-5)?;
    let expected = [qkv.to_bits()?, context.to_bits()?, sum.to_bits()?, out.to_bits()?];
    let expected_floats = log_sum_exp.to_host()?;

    // The same through the ABI, on memory of the program's.
    let on = &program.stream;
    let copied = |tensor: &Tensor| -> Result<CudaSlice<u16>, Failed> { Ok(on.clone_htod(&tensor.to_bits()?)?) };
    let poisoned = |len: usize| on.clone_htod(&vec![0xffffu16; len]);
    let at = |slice: &CudaSlice<u16>| std::ptr::with_exposed_provenance_mut::<c_void>(slice.device_ptr(on).0 as usize);
    let (a, w, bias, gamma) = (copied(&a)?, copied(&w)?, copied(&bias)?, copied(&gamma)?);
    let made = [poisoned(ROWS * 384)?, poisoned(ROWS * 128)?, poisoned(ROWS * 384)?, poisoned(ROWS * 384)?];
    let floats = on.clone_htod(&vec![f32::NAN; 2 * ROWS])?;
    on.synchronize()?;
    let dtype = PafDtype::Bf16 as i32;
    let gemm = PafGemm {
        struct_size: size_of::<PafGemm>(),
        stream: on.cu_stream(),
        dtype,
        activation: PafHiddenAct::Relu as i32,
        m: ROWS,
        n: 384,
        k: 128,
        a: at(&a),
        w: at(&w),
        bias: at(&bias),
        residual: null(),
        c: at(&made[0]),
    };
    let attention = PafAttention {
        struct_size: size_of::<PafAttention>(),
        stream: on.cu_stream(),
        batch: &program.batch,
        dtype,
        causal: 0,
        heads: 2,
        key_value_heads: 0,
        head_dim: 64,
        qkv: at(&made[0]),
        out: at(&made[1]),
        log_sum_exp: std::ptr::with_exposed_provenance_mut(floats.device_ptr(on).0 as usize),
    };
    let norm = PafNorm {
        struct_size: size_of::<PafNorm>(),
        stream: on.cu_stream(),
        batch: &program.batch,
        dtype,
        eps: 0.0,
        rows: ROWS,
        hidden_size: 384,
        addends: [at(&made[0]), null(), at(&made[0])],
        sum: at(&made[2]),
        gamma: at(&gamma),
        beta: at(&bias),
        out: at(&made[3]),
    };
    // SAFETY: slices as large as these say, which live until the stream has been waited for.
    unsafe {
        ok(paf_gemm(program.device, &gemm))?;
        ok(paf_attention(program.device, &attention))?;
        ok(paf_norm(program.device, &norm))?;
        on.synchronize()?;
        let both = PafGemm { residual: at(&made[2]), ..gemm };
        is(paf_gemm(program.device, &both), PafStatus::InvalidArgument, "activation and residual")?;
        let wide = PafAttention { head_dim: 72, ..attention };
        is(paf_attention(program.device, &wide), PafStatus::Unsupported, "72")?;
        let none = PafNorm { addends: [null(); 3], ..norm };
        is(paf_norm(program.device, &none), PafStatus::InvalidArgument, "addend")?;
    }
    for (i, (expected, made)) in expected.iter().zip(&made).enumerate() {
        differs(expected, &on.clone_dtoh(made)?, || format!("kernel {i}"))?;
    }
    let got = on.clone_dtoh(&floats)?;
    match got.iter().zip(&expected_floats).position(|(got, expected)| got.to_bits() != expected.to_bits()) {
        None => Ok(()),
        Some(i) => Err(format!("log-sum-exp {i} is {}, expected {}", got[i], expected_floats[i]).into()),
    }
}

fn refused(device: &Device, _: Design) -> Outcome {
    let mut program = Program::new(device.info().ordinal, PafDesign::SafPostNorm)?;
    let good = program.call(0);
    let invalid = PafStatus::InvalidArgument;
    let small = PafForward { workspace_bytes: 256, ..good };
    is(program.forward(&small), PafStatus::WorkspaceTooSmall, "256 bytes")?;
    is(program.forward(&PafForward { batch: null(), ..good }), invalid, "PafBatch")?;
    is(program.forward(&PafForward { x: null(), ..good }), invalid, "pointer is 0x0")?;
    is(program.forward(&PafForward { y: good.y.wrapping_byte_add(2), ..good }), invalid, "aligned to 16")?;
    is(program.forward(&PafForward { workspace: good.y, ..good }), invalid, "apart from the workspace")?;
    is(program.forward(&PafForward { schedule: 2, ..good }), PafStatus::Unsupported, "two-stream")?;
    is(program.forward(&PafForward { schedule: 5, ..good }), invalid, "schedule is 5")?;
    is(program.forward(&PafForward { reserved: 1, ..good }), invalid, "reserved is 1")?;
    is(program.forward(&PafForward { struct_size: 8, ..good }), invalid, "struct_size is 8")?;
    let many = PafBatch { batch: 3, lengths: null(), ..program.batch };
    is(program.forward(&PafForward { batch: &many, ..good }), invalid, "at least 210 rows")?;
    if !last_error(program.encoder).contains("at least 210 rows") {
        return Err(format!("the encoder's last error is {}", last_error(program.encoder)).into());
    }
    let (mut bytes, mut encoder) = (0, null_mut());
    // SAFETY: structs that are filled in, and room for what is written.
    unsafe {
        is(paf_encoder_workspace_bytes(program.encoder, ROWS + 1, &mut bytes), invalid, "max_rows = 140")?;
        let weights = layers()?;
        let given: Vec<_> = weights.iter().map(layer).collect();
        let mut create = |config: PafEncoderConfig, given: &[PafLayerWeights]| {
            paf_encoder_create(program.device, &config, given.as_ptr(), &mut encoder)
        };
        let good = config(PafDesign::PafPreNorm);
        is(create(PafEncoderConfig { design: 0, ..good }, &given), invalid, "design is 0")?;
        is(create(PafEncoderConfig { num_attention_heads: 0, ..good }, &given), invalid, "num_attention_heads = 0")?;
        is(create(PafEncoderConfig { head_dim: 72, ..good }, &given), PafStatus::Unsupported, "head_dim = 72")?;
        is(create(PafEncoderConfig { max_rows: 0, ..good }, &given), invalid, "rows = 0")?;
        is(create(PafEncoderConfig { dtype: 1, ..good }, &given), invalid, "PAF_DTYPE_F32")?;
        let mut without = given.clone();
        without[3].w_2 = null();
        is(create(good, &without), invalid, "w_2 is null")?;
        without[3].struct_size = 0;
        is(create(good, &without), invalid, "struct_size is 0")?;
    }
    // And after all that the encoder still works.
    program.run(0).map(drop)
}

fn plans(device: &Device, _: Design) -> Outcome {
    let mut program = Program::new(device.info().ordinal, PafDesign::PafPreNorm)?;
    let text = |program: &Program| -> Result<String, Failed> {
        let mut text = [0 as c_char; 1024];
        let mut needed = 0;
        // SAFETY: the buffer is as long as said, and ends with a 0 afterwards.
        unsafe {
            ok(paf_encoder_plan(program.encoder, text.as_mut_ptr(), text.len(), &mut needed))?;
            let text = CStr::from_ptr(text.as_ptr()).to_str()?.to_owned();
            if needed != text.len() + 1 {
                return Err(format!("{needed} bytes for {text}").into());
            }
            Ok(text)
        }
    };
    let fused = program.run(PafSchedule::Fused as i32)?;
    // SAFETY: texts that end with a 0.
    unsafe {
        ok(paf_encoder_set_plan(program.encoder, c"fused".as_ptr()))?;
        is(paf_encoder_set_plan(program.encoder, c"sideways".as_ptr()), PafStatus::InvalidArgument, "sideways")?;
        is(paf_encoder_set_plan(program.encoder, null()), PafStatus::InvalidArgument, "plan is null")?;
    }
    if text(&program)? != "fused" {
        return Err(format!("the plan is {}", text(&program)?).into());
    }
    differs(&fused, &program.run(0)?, || "the plan fused".into())?;
    // SAFETY: null is no cache.
    unsafe {
        is(paf_encoder_measure_plan(program.encoder, 2, 70, f64::NAN, null()), PafStatus::InvalidArgument, "NaN")?;
        ok(paf_encoder_measure_plan(program.encoder, 2, 70, 0.2, null()))?;
    }
    let measured = text(&program)?;
    let expected = program.run(0)?;
    let again = std::ffi::CString::new(measured.clone())?;
    // SAFETY: a text that ends with a 0.
    unsafe {
        ok(paf_encoder_set_plan(program.encoder, c"serial".as_ptr()))?;
        ok(paf_encoder_set_plan(program.encoder, again.as_ptr()))?;
    }
    differs(&expected, &program.run(0)?, || format!("the plan {measured} as text"))
}

fn blocked(device: &Device) -> Outcome {
    let mut program = Program::new(device.info().ordinal, PafDesign::PafPostNorm)?;
    for schedule in 0..=4 {
        let expected = program.run(schedule)?;
        let call = program.call(schedule);
        let stream = program.stream.clone();
        returns_while_blocked(&stream, || ok(program.forward(&call)))?;
        differs(&expected, &program.take()?, || format!("schedule {schedule} after a block"))?;
    }
    Ok(())
}

/// Medians over many short bursts, each of which the device finishes before the next: no call waits for room in a queue.
fn overhead(device: &Device) -> Outcome {
    const LIMIT: Duration = Duration::from_micros(15);
    let mut program = Program::new(device.info().ordinal, PafDesign::PafPostNorm)?;
    let weights = layers()?;
    let mut encoder = null_mut();
    let one = PafEncoderConfig { num_hidden_layers: 1, ..config(PafDesign::PafPostNorm) };
    // SAFETY: a struct that is filled in, an array of one at least, and room for a handle.
    unsafe {
        ok(paf_encoder_create(program.device, &one, &layer(&weights[0]), &mut encoder))?;
        ok(paf_encoder_destroy(program.encoder))?;
    }
    program.encoder = encoder;
    let call = program.call(PafSchedule::TwoStream as i32);
    let abi = median(|| ok(program.forward(&call)), || Ok(program.stream.synchronize()?))?;

    let layer = LayerConfig { design: Design::PafPostNorm, ..LayerConfig::new(HIDDEN, 2, 512)? };
    let config = EncoderConfig { layer, num_hidden_layers: 1 };
    let on_device = EncoderWeights::upload(device, &config, Dtype::Bf16, &weights[..1])?;
    let encoder = Encoder::new(&config, Arc::new(on_device))?;
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, &BatchShape::new(2, 70)?)?);
    let x = Tensor::from_host(device, Dtype::Bf16, ROWS, HIDDEN, &random_activations(ROWS, HIDDEN, 4))?;
    let mut y = Tensor::poisoned(device, Dtype::Bf16, ROWS, HIDDEN)?;
    let mut workspace = encoder.workspace(&batch)?;
    let forward = || Ok(encoder.forward(&stream, Schedule::TwoStream, &batch, &x, &mut y, &mut workspace)?);
    let rust = median(forward, || Ok(stream.synchronize()?))?;
    println!("overhead of an eager forward of one layer on two streams: {rust:?} in Rust, {abi:?} through the C ABI");
    if rust.max(abi) >= LIMIT {
        return Err(format!("{rust:?} in Rust, {abi:?} through the C ABI, expected less than {LIMIT:?}").into());
    }
    Ok(())
}

fn median(mut call: impl FnMut() -> Outcome, mut wait: impl FnMut() -> Outcome) -> Result<Duration, Failed> {
    const BURST: u32 = 20;
    let mut times = Vec::new();
    for _ in 0..220 {
        let started = Instant::now();
        (0..BURST).try_for_each(|_| call())?;
        times.push(started.elapsed() / BURST);
        wait()?;
    }
    let times = &mut times[20..]; // the first warm up
    times.sort();
    Ok(times[times.len() / 2])
}
