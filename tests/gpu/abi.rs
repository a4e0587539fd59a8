//! The C ABI as a C program would call it: what it computes is what the Rust API computes, and what it refuses has a status and a text.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use paf_cuda::ffi::*;
use paf_cuda::gpu::cudarc::driver::{CudaSlice, DevicePtr};
use paf_cuda::gpu::kernel::{self, Attention, Epilogue, Norm, Product};
use paf_cuda::gpu::{Batch, Device, Encoder, EncoderWeights, Floats, Stream, Tensor};
use paf_cuda::weights::random_activations;
use paf_cuda::{BatchShape, Design, Dtype, EncoderConfig, HiddenAct, LayerConfig, Schedule};

use super::engine::returns_while_blocked;
use super::program::*;
use super::{ALONE, Fixture, Outcome, differs};

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    // Each alone: what other programs do on the default stream breaks another test's capture.
    let mut add = |name: &str, test: fn(&Device) -> Outcome| {
        let device = device.clone();
        trials.push(Trial::test(name, move || {
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            test(&device)
        }));
    };
    add("abi: forward", forward);
    add("abi: kernels", kernels);
    add("abi: refused: what does not fit", refused);
    add("abi: plans", plans);
    add("abi: forward returns while its stream is blocked", blocked);
    add("overhead: an eager forward takes the host less than twice as long as so many empty launches", overhead);
}

fn forward(device: &Device) -> Outcome {
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

fn kernels(device: &Device) -> Outcome {
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
        let wide = PafAttention { heads: 1, key_value_heads: 1, head_dim: 72, ..attention };
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

fn refused(device: &Device) -> Outcome {
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
    is(
        program.forward(&PafForward { batch: &many, ..good }),
        invalid,
        "number of rows is 210, expected at most the 140",
    )?;
    if !last_error(program.encoder).contains("number of rows is 210") {
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

fn plans(device: &Device) -> Outcome {
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

/// The host's time for a forward call of six kernels, in short bursts that the device finishes before the next one, so that no call
/// waits for room in a queue. How long the driver takes for a launch depends on the host: six launches of a kernel that does nothing,
/// on the same two streams, are the measure, in turns with the calls.
fn overhead(device: &Device) -> Outcome {
    const KERNELS: usize = 6;
    // Beside an H100 it was 1.3 to 1.4 times as long: the rest is seven calls about events, tensor maps, checks, larger parameters.
    const LIMIT: f64 = 2.0;
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

    let layer = LayerConfig { design: Design::PafPostNorm, ..LayerConfig::new(HIDDEN, 2, 512)? };
    let config = EncoderConfig { layer, num_hidden_layers: 1 };
    let on_device = EncoderWeights::upload(device, &config, Dtype::Bf16, &weights[..1])?;
    let encoder = Encoder::new(&config, Arc::new(on_device))?;
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, &BatchShape::new(2, 70)?)?);
    let x = Tensor::from_host(device, Dtype::Bf16, ROWS, HIDDEN, &random_activations(ROWS, HIDDEN, 4))?;
    let mut y = Tensor::poisoned(device, Dtype::Bf16, ROWS, HIDDEN)?;
    let mut workspace = encoder.workspace(&batch)?;
    let streams = [Stream::new(device)?, Stream::new(device)?];

    let [bare, rust, abi] = medians(
        [
            &mut || (0..KERNELS).try_for_each(|i| Ok(streams[i % 2].hold_back(Duration::ZERO)?)),
            &mut || Ok(encoder.forward(&stream, Schedule::TwoStream, &batch, &x, &mut y, &mut workspace)?),
            &mut || ok(program.forward(&call)),
        ],
        || Ok(device.synchronize()?),
    )?;
    let text = format!(
        "an eager forward of one layer on two streams takes the host {rust:?} in Rust, {abi:?} through the C ABI, six empty launches {bare:?}"
    );
    println!("{text}");
    if rust.max(abi).as_secs_f64() >= LIMIT * bare.as_secs_f64() {
        return Err(format!("{text}, expected less than {LIMIT} times that").into());
    }
    Ok(())
}

/// Of calls in turns, `wait`ing for the device after each burst of one.
fn medians<const N: usize>(
    mut calls: [&mut dyn FnMut() -> Outcome; N],
    mut wait: impl FnMut() -> Outcome,
) -> Result<[Duration; N], Failed> {
    const BURST: u32 = 20;
    let mut times = [const { Vec::new() }; N];
    for _ in 0..220 {
        for (call, times) in calls.iter_mut().zip(&mut times) {
            let started = Instant::now();
            (0..BURST).try_for_each(|_| call())?;
            times.push(started.elapsed() / BURST);
            wait()?;
        }
    }
    Ok(times.map(|mut times| {
        let times = &mut times[20..]; // the first warm up
        times.sort();
        times[times.len() / 2]
    }))
}
