//! What goes wrong, each in a process of its own: it ends in a status and a text, and nothing hangs or panics, drops included.

use std::ffi::c_void;
use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};
use std::ptr::null_mut;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use paf_cuda::ffi::*;
use paf_cuda::gpu::cudarc::driver::{CudaContext, result};
use paf_cuda::gpu::{Device, device_count};
use paf_cuda::weights::LayerWeights;
use paf_cuda::{Error, LayerConfig};

use super::program::{LENGTHS, Program, ROWS, config, is, last_error, layer, ok};
use super::{ALONE, Outcome, differs};

/// Names the fault that a child process is to make.
const FAULT: &str = "PAF_TEST_FAULT";

type Fault = (&'static str, fn() -> Outcome);

/// Faults that a machine without a GPU has, too.
const ANYWHERE: [Fault; 1] = [("no driver", no_driver)];

const WITH_DEVICE: [Fault; 8] = [
    ("no device", no_device),
    ("out of memory", out_of_memory),
    ("a bad pointer", bad_pointer),
    ("a stream of another context", foreign_stream),
    ("a workspace that is too small", small_workspace),
    ("use after destroy", use_after_destroy),
    ("two threads in one encoder", two_threads),
    ("a call that fails midway in a capture", failing_capture),
];

pub fn anywhere(trials: &mut Vec<Trial>) {
    add(&ANYWHERE, trials);
}

pub fn trials(trials: &mut Vec<Trial>) {
    add(&WITH_DEVICE, trials);
}

fn add(faults: &'static [Fault], trials: &mut Vec<Trial>) {
    for (name, _) in faults {
        trials.push(Trial::test(format!("fault: {name}"), move || {
            // One of them takes all memory.
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            in_child(name)
        }));
    }
}

/// If this process is such a child: makes its fault.
pub fn child() -> Option<ExitCode> {
    let name = std::env::var(FAULT).ok()?;
    let fault = ANYWHERE.iter().chain(&WITH_DEVICE).find(|(known, _)| *known == name);
    let outcome = fault.map_or_else(|| Err("no such fault".into()), |(_, fault)| fault());
    Some(match outcome {
        Ok(()) => {
            println!("as expected");
            ExitCode::SUCCESS
        }
        Err(failed) => {
            println!("{}", failed.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    })
}

fn in_child(name: &str) -> Outcome {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(FAULT, name).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Names under which the driver is looked for, each of a file that is no library.
    let folder = tempfile::tempdir()?;
    match name {
        "no driver" => {
            for suffix in ["", ".1", ".9", ".10", ".11", ".12", ".13"] {
                std::fs::write(folder.path().join(format!("libcuda.so{suffix}")), "not a library")?;
            }
            command.env("LD_LIBRARY_PATH", folder.path());
        }
        "no device" => {
            command.env("CUDA_VISIBLE_DEVICES", "");
        }
        _ => {}
    }
    let mut child = command.spawn()?;
    let status = wait(&mut child)?;
    let mut text = String::new();
    child.stdout.take().ok_or("no output")?.read_to_string(&mut text)?;
    child.stderr.take().ok_or("no output")?.read_to_string(&mut text)?;
    if !status.success() || text != "as expected\n" {
        return Err(format!("{status}: {text}").into());
    }
    Ok(())
}

/// Waits for a child, which says little enough for a pipe to hold, but not for ever.
fn wait(child: &mut Child) -> Result<std::process::ExitStatus, Failed> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(120) {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Err("it hung for two minutes".into())
}

fn no_driver() -> Outcome {
    let mut device = null_mut();
    // SAFETY: room for a handle.
    is(unsafe { paf_device_open(0, &mut device) }, PafStatus::NoDriver, "libcuda.so could not be loaded")?;
    if !device.is_null() || device_count() != Err(Error::NoDriver) {
        return Err("there is a driver after all".into());
    }
    Ok(())
}

fn no_device() -> Outcome {
    let mut device = null_mut();
    // SAFETY: room for a handle.
    is(unsafe { paf_device_open(0, &mut device) }, PafStatus::NoDevice, "the driver reports 0")?;
    match Device::new(0) {
        Err(Error::NoDevice { ordinal: 0, count: 0 }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn out_of_memory() -> Outcome {
    let mut program = Program::new(0, PafDesign::PafPreNorm)?;
    let expected = program.run(0)?;
    let (mut held, mut piece) = (Vec::new(), 1 << 34);
    program.context.bind_to_thread()?;
    while piece >= 1 << 20 {
        // SAFETY: freed below.
        match unsafe { result::malloc_sync(piece) } {
            Ok(pointer) => held.push(pointer),
            Err(_) => piece /= 2,
        }
    }
    // 24 MB of weights a layer.
    let wide = PafEncoderConfig {
        hidden_size: 1024,
        num_attention_heads: 16,
        intermediate_size: 4096,
        ..config(PafDesign::PafPreNorm)
    };
    let weights = LayerWeights::random(&LayerConfig::new(1024, 16, 4096)?, 1);
    let given: Vec<_> = (0..4).map(|_| layer(&weights)).collect();
    let mut encoder = null_mut();
    // SAFETY: a struct that is filled in, an array of four, room for a handle.
    let mut create = || unsafe { paf_encoder_create(program.device, &wide, given.as_ptr(), &mut encoder) };
    is(create(), PafStatus::OutOfMemory, "bytes asked for the weights of a layer")?;
    differs(&expected, &program.run(0)?, || "without memory".into())?;
    program.context.bind_to_thread()?;
    for pointer in held {
        // SAFETY: allocated above, used by nothing.
        unsafe { result::free_sync(pointer)? };
    }
    // SAFETY: as above.
    ok(unsafe { paf_encoder_create(program.device, &wide, given.as_ptr(), &mut encoder) })?;
    ok(paf_encoder_destroy(encoder))?;
    differs(&expected, &program.run(0)?, || "with memory again".into())
}

/// An address that is no memory: a kernel's access destroys the context.
fn bad_pointer() -> Outcome {
    let mut program = Program::new(0, PafDesign::PafPostNorm)?;
    program.run(0)?;
    let good = program.call(0);
    let nowhere = std::ptr::without_provenance::<c_void>(0x10_0000_0000);
    let lost = PafStatus::ContextLost;
    // The device may have come to the access before the last kernel is enqueued.
    match program.forward(&PafForward { x: nowhere, ..good }) {
        PafStatus::Ok => {}
        status => is(status, lost, "the CUDA context is lost")?,
    }
    is(paf_device_synchronize(program.device), lost, "the CUDA context is lost")?;
    let (mut bytes, mut other) = (0, null_mut());
    for _ in 0..2 {
        is(program.forward(&good), lost, "after an earlier error")?;
        is(paf_device_synchronize(program.device), lost, "after an earlier error")?;
        is(paf_device_prepare(program.device, PafDtype::F16 as i32), lost, "after an earlier error")?;
        // SAFETY: room for what would be written, texts that end with a 0, and structs that are not looked at.
        unsafe {
            is(paf_encoder_workspace_bytes(program.encoder, ROWS, &mut bytes), lost, "lost")?;
            is(paf_encoder_clone(program.encoder, &mut other), lost, "lost")?;
            is(paf_encoder_set_plan(program.encoder, c"fused".as_ptr()), lost, "lost")?;
            is(paf_encoder_plan(program.encoder, null_mut(), 0, null_mut()), lost, "lost")?;
            is(paf_encoder_measure_plan(program.encoder, 1, 8, 0.1, std::ptr::null()), lost, "lost")?;
            is(paf_gemm(program.device, std::ptr::null()), lost, "lost")?;
            is(paf_attention(program.device, std::ptr::null()), lost, "lost")?;
            is(paf_norm(program.device, std::ptr::null()), lost, "lost")?;
        }
    }
    if !last_error(program.encoder).contains("CUDA_ERROR_") {
        return Err(format!("the cause is missing in: {}", last_error(program.encoder)).into());
    }
    ok(paf_encoder_destroy(program.encoder))?;
    ok(paf_device_destroy(program.device))
}

fn foreign_stream() -> Outcome {
    let mut program = Program::new(0, PafDesign::PafPostNorm)?;
    let expected = program.run(0)?;
    let other = CudaContext::new_non_primary(0, 0)?;
    let stream = other.new_stream()?;
    let call = PafForward { stream: stream.cu_stream(), ..program.call(0) };
    is(program.forward(&call), PafStatus::InvalidArgument, "context is")?;
    differs(&expected, &program.run(0)?, || "after another context's stream".into())
}

/// Undefined to CUDA, but noticed by the driver.
fn small_workspace() -> Outcome {
    let mut program = Program::new(0, PafDesign::PafPostNorm)?;
    let expected = program.run(0)?;
    let good = program.call(0);
    let small = PafForward { workspace_bytes: good.workspace_bytes - 1, ..good };
    is(program.forward(&small), PafStatus::WorkspaceTooSmall, &format!("needs {}", good.workspace_bytes))?;
    differs(&expected, &program.run(0)?, || "after a small workspace".into())
}

fn use_after_destroy() -> Outcome {
    let mut program = Program::new(0, PafDesign::PafPostNorm)?;
    let expected = program.run(0)?;
    let (call, dead) = (program.call(0), PafStatus::InvalidHandle);
    let mut clone = null_mut();
    // SAFETY: room for a handle.
    ok(unsafe { paf_encoder_clone(program.encoder, &mut clone) })?;
    ok(paf_device_destroy(program.device))?;
    is(paf_device_synchronize(program.device), dead, "destroyed")?;
    is(paf_device_destroy(program.device), dead, "destroyed")?;
    // Encoders go on without it.
    differs(&expected, &program.run(0)?, || "without the device's handle".into())?;
    ok(paf_encoder_destroy(program.encoder))?;
    is(program.forward(&call), dead, "destroyed")?;
    is(paf_encoder_destroy(program.encoder), dead, "destroyed")?;
    program.encoder = clone;
    differs(&expected, &program.run(0)?, || "a clone".into())
}

/// One measures a plan, which takes its time; the other is turned away at once, until that is done.
fn two_threads() -> Outcome {
    let mut program = Program::new(0, PafDesign::PafPostNorm)?;
    program.run(0)?;
    let (call, encoder) = (program.call(0), program.encoder.addr());
    let measuring = std::thread::spawn(move || {
        let handle = std::ptr::without_provenance_mut(encoder);
        loop {
            // SAFETY: null is no cache.
            match unsafe { paf_encoder_measure_plan(handle, 2, 70, 2.0, std::ptr::null()) } {
                // The other thread was there first.
                PafStatus::Busy => {}
                status => return status == PafStatus::Ok,
            }
        }
    });
    let mut busy = 0;
    while !measuring.is_finished() {
        match program.forward(&call) {
            PafStatus::Ok => {}
            status => {
                is(status, PafStatus::Busy, "another thread")?;
                busy += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if !measuring.join().map_err(|_| "a thread panicked")? {
        return Err("measuring failed".into());
    }
    if busy < 20 {
        return Err(format!("turned away {busy} times in two seconds").into());
    }
    program.take()?;
    program.run(0).map(drop)
}

/// A capture that is broken already makes every launch fail: the call ends, and the next one, without a capture, is right.
fn failing_capture() -> Outcome {
    use paf_cuda::gpu::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    let mut program = Program::new(0, PafDesign::PafPostNorm)?;
    for schedule in 1..=4 {
        let expected = program.run(schedule)?;
        let (call, stream) = (program.call(schedule), program.stream.clone());
        stream.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED)?;
        // Not allowed in a capture, which it invalidates.
        let synchronised = stream.synchronize();
        let status = program.forward(&call);
        // SAFETY: the stream is live and capturing.
        let _ = unsafe { result::stream::end_capture(stream.cu_stream()) };
        if synchronised.is_ok() || status != PafStatus::CudaError {
            return Err(format!("schedule {schedule}: {status:?} in a broken capture").into());
        }
        differs(&expected, &program.run(schedule)?, || format!("schedule {schedule} after a broken capture"))?;
    }
    let lengths = program.stream.clone_dtoh(&program.lengths)?;
    if lengths != LENGTHS { Err("lengths have changed".into()) } else { Ok(()) }
}
