//! 200,000 forward calls of random shapes from four threads: all outputs are bitwise the first of their kind, and no memory is kept.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use libtest_mimic::{Failed, Trial};
use paf_cuda::BatchShape;
use paf_cuda::ffi::*;
use paf_cuda::gpu::Device;
use paf_cuda::gpu::cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::program::{HIDDEN, Program, ROWS, ok};
use super::{ALONE, Outcome, differs};

const THREADS: usize = 4;
const CALLS: usize = 200_000;
/// Calls after which memory is looked at first: the driver has made what it makes at first launches, and every kind has its output.
const WARM: usize = 40_000;

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    let device = device.clone();
    let soak = Trial::test("soak: 200,000 forward calls", move || {
        let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
        soak(&device)
    });
    // Takes about a minute.
    trials.push(soak.with_ignored_flag(true));
}

/// (batch, seq_len, the first one's length or 0 where none is padded, schedule)
type Kind = (usize, usize, usize, i32);

fn random_kind(rng: &mut impl Rng) -> Kind {
    let batch = rng.random_range(1..=3);
    let seq_len = rng.random_range(1..=ROWS / batch);
    // Few enough of them that each comes often.
    let seq_len = seq_len.next_multiple_of(9).min(ROWS / batch);
    let length = if rng.random_bool(0.5) { 0 } else { seq_len.div_ceil(2) };
    (batch, seq_len, length, rng.random_range(1..=4))
}

fn soak(device: &Device) -> Outcome {
    let ordinal = device.info().ordinal;
    let program = Program::new(ordinal, PafDesign::PafPreNorm)?;
    let clones: Vec<usize> = (0..THREADS)
        .map(|_| {
            let mut clone: *mut PafEncoder = null_mut();
            // SAFETY: room for a handle.
            ok(unsafe { paf_encoder_clone(program.encoder, &mut clone) }).map(|()| clone.addr())
        })
        .collect::<Result<_, _>>()?;
    let first: RwLock<HashMap<Kind, Arc<Vec<u16>>>> = RwLock::default();
    let x = program.stream.clone_dtoh(&program.x)?;
    let started = Instant::now();
    let run = |calls: usize, seed: u64| -> Outcome {
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for (thread, &encoder) in clones.iter().enumerate() {
                let (first, x, failed) = (&first, &x, &failed);
                scope.spawn(move || {
                    let rng = Pcg64Mcg::seed_from_u64(seed + thread as u64);
                    if let Err(error) = calls_of(ordinal, encoder, x, first, calls / THREADS, rng) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    };
    // What the threads' slices have left in a pool of the driver's goes back when the device is waited for.
    let memory = || -> Result<(usize, usize), Failed> {
        device.synchronize()?;
        Ok((device.memory_info()?.0, resident_bytes()?))
    };
    run(WARM, 1)?;
    let (free_before, resident_before) = memory()?;
    run(CALLS - WARM, 100)?;
    let (free_after, resident_after) = memory()?;
    let kinds = first.read().unwrap_or_else(PoisonError::into_inner).len();
    println!(
        "soak: {CALLS} calls of {kinds} kinds in {:?}; after {WARM} and at the end {free_before} and {free_after} bytes free on the \
         device, {resident_before} and {resident_after} resident on the host",
        started.elapsed()
    );
    for &clone in &clones {
        ok(paf_encoder_destroy(std::ptr::without_provenance_mut(clone)))?;
    }
    if free_after < free_before {
        return Err(format!("{} bytes of device memory were kept", free_before - free_after).into());
    }
    // The allocator's own movements.
    const SLACK: usize = 8 << 20;
    if resident_after > resident_before + SLACK {
        return Err(format!("{} bytes of host memory were kept", resident_after - resident_before).into());
    }
    Ok(())
}

/// One thread's calls, with a stream and memory of its own.
fn calls_of(
    ordinal: usize,
    encoder: usize,
    x: &[u16],
    first: &RwLock<HashMap<Kind, Arc<Vec<u16>>>>,
    calls: usize,
    mut rng: Pcg64Mcg,
) -> Outcome {
    let encoder: *mut PafEncoder = std::ptr::without_provenance_mut(encoder);
    let stream = CudaContext::new(ordinal)?.new_stream()?;
    let mut bytes = 0;
    // SAFETY: room for a size.
    ok(unsafe { paf_encoder_workspace_bytes(encoder, ROWS, &mut bytes) })?;
    let x = stream.clone_htod(x)?;
    let mut y = stream.alloc_zeros::<u16>(ROWS * HIDDEN)?;
    let mut workspace = stream.alloc_zeros::<u8>(bytes)?;
    let mut lengths = stream.alloc_zeros::<i32>(3)?;
    let mut got = vec![0u16; ROWS * HIDDEN];
    for _ in 0..calls {
        let kind = random_kind(&mut rng);
        let (batch, seq_len, length, schedule) = kind;
        let shape = BatchShape::new(batch, seq_len)?;
        let address = |pointer: u64| std::ptr::with_exposed_provenance_mut::<c_void>(pointer as usize);
        let device_lengths = if length == 0 {
            null()
        } else {
            let of: Vec<i32> = (0..batch).map(|i| if i == 0 { length } else { seq_len } as i32).collect();
            stream.memcpy_htod(&of, &mut lengths.slice_mut(..batch))?;
            address(lengths.device_ptr(&stream).0).cast_const().cast()
        };
        let sequences = PafBatch {
            struct_size: size_of::<PafBatch>(),
            batch,
            seq_len,
            packed_rows: 0,
            lengths: device_lengths,
            first_rows: null(),
            positions: null(),
        };
        let call = PafForward {
            struct_size: size_of::<PafForward>(),
            stream: stream.cu_stream(),
            batch: &sequences,
            x: address(x.device_ptr(&stream).0),
            y: address(y.device_ptr_mut(&stream).0),
            workspace: address(workspace.device_ptr_mut(&stream).0),
            workspace_bytes: bytes,
            schedule,
            reserved: 0,
        };
        // SAFETY: slices as large as these say, which live until the stream has been waited for.
        ok(unsafe { paf_encoder_forward(encoder, &call) })?;
        let got = &mut got[..shape.rows() * HIDDEN];
        stream.memcpy_dtoh(&y.slice(..got.len()), got)?;
        stream.synchronize()?;
        let known = first.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        let known = known.unwrap_or_else(|| {
            let mut first = first.write().unwrap_or_else(PoisonError::into_inner);
            first.entry(kind).or_insert_with(|| Arc::new(got.to_vec())).clone()
        });
        differs(&known, got, || format!("{kind:?}"))?;
    }
    Ok(())
}

fn resident_bytes() -> Result<usize, Failed> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).ok_or("no second number in statm")?.parse()?;
    Ok(pages * 4096)
}
