//! Contexts, streams and memory that someone else has: they give the bits that the crate's own give.

use std::ffi::c_void;
use std::sync::{Arc, PoisonError};

use half::bf16;
use libtest_mimic::{Failed, Trial};
use paf_cuda::gpu::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use paf_cuda::gpu::cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use paf_cuda::gpu::{
    Batch, BorrowedLayer, BorrowedSequences, Device, ElementType, Encoder, EncoderWeights, Floats, Location, Pooling,
    Stream, Tensor, kernel,
};
use paf_cuda::weights::{LayerWeights, random_activations, random_layers};
use paf_cuda::{BatchShape, Design, Dtype, Error, Schedule};

use super::engine::{Engine, Numbers, returns_while_blocked};
use super::{ALONE, Fixture, Outcome, differs, expect, models};

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    // Each alone: what other programs do on the default stream breaks another test's capture.
    let mut add = |name: &str, test: fn(&Device, Design) -> Outcome| {
        let device = device.clone();
        trials.push(Trial::test(format!("borrowed: {name}"), move || {
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            test(&device, Design::PafPreNorm)
        }));
    };
    add("memory, lengths and streams", memory);
    add("slices", slices);
    add("contexts", contexts);
    add("weights", weights);
    add("refused: what does not fit", refused);
    #[cfg(feature = "dlpack")]
    add("DLPack", dlpack);
    add("a capture", |device, _| capture(device));
    add("a model in a capture is refused", model_in_capture);
    add("pooled like a batch of its own", pooled);
    add("forward allocates nothing", |device, _| no_allocation(device));
    add("forward returns while its stream is blocked", |device, _| blocked(device));
}

fn shapes() -> Result<[BatchShape; 2], Error> {
    Ok([BatchShape::new(2, 70)?.with_lengths(vec![70, 33])?, BatchShape::packed(vec![70, 0, 33, 1])?])
}

fn schedules(design: Design) -> impl Iterator<Item = Schedule> {
    Schedule::ALL.into_iter().filter(move |schedule| schedule.check(design).is_ok())
}

fn memory(device: &Device, _: Design) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    for design in [Design::PafPostNorm, Design::PafPreNormTwo, Design::SafPreNorm] {
        for shape in shapes()? {
            let mut fixture = Fixture::new(device, design, &shape)?;
            let mut engine = Engine::new(&context, &fixture)?;
            for schedule in schedules(design) {
                let expected = fixture.run(schedule, &[])?;
                for on in [engine.stream.cu_stream(), std::ptr::null_mut()] {
                    let workspace = engine.enqueue(&fixture.encoder, on, schedule, false)?;
                    let got = engine.take()?;
                    drop(workspace);
                    differs(&expected, &got, || format!("{design} {schedule} on {on:?}"))?;
                }
                let x = engine.stream.clone_dtoh(&engine.x)?;
                let stream = engine.stream.clone();
                stream.memcpy_htod(&x, &mut engine.y)?;
                stream.synchronize()?;
                let workspace = engine.enqueue(&fixture.encoder, stream.cu_stream(), schedule, true)?;
                let got = engine.take()?;
                drop(workspace);
                differs(&expected, &got, || format!("{design} {schedule} in place"))?;
            }
        }
    }
    Ok(())
}

/// cudarc's own types, with its tracking of their uses: the output is read without a wait in between.
fn slices(device: &Device, design: Design) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    let shape = BatchShape::new(2, 70)?;
    let mut fixture = Fixture::new(device, design, &shape)?;
    let expected = fixture.run(Schedule::TwoStream, &[])?;
    let (stream, other) = (context.new_stream()?, context.new_stream()?);
    let values: Vec<bf16> = fixture.x.to_bits()?.into_iter().map(bf16::from_bits).collect();
    let x = other.clone_htod(&values)?;
    let mut y = other.alloc_zeros::<bf16>(values.len())?;
    let on = Stream::from_cudarc(device, &stream)?;
    let mut workspace = fixture.encoder.workspace(&fixture.batch)?;
    workspace.poison()?;
    stream.synchronize()?;
    let (encoder, batch) = (&fixture.encoder, &fixture.batch);
    encoder.forward_slices(&on, Schedule::TwoStream, batch, &x, &mut y, &mut workspace)?;
    let got: Vec<u16> = other.clone_dtoh(&y)?.into_iter().map(bf16::to_bits).collect();
    differs(&expected, &got, || "slices".into())?;
    let short = x.slice(..128);
    let refused = encoder.forward_slices(&on, Schedule::TwoStream, batch, &short, &mut y, &mut workspace);
    expect(&["x is 128 elements", "140 rows"], refused)?;
    // The device's own object of the context has no part in cudarc's order.
    let apart = Stream::new(device)?;
    let refused = encoder.forward_slices(&apart, Schedule::TwoStream, batch, &x, &mut y, &mut workspace);
    expect(&["CudaContext object", "from_cudarc"], refused)
}

/// Of packed sequences that the device alone knows, each has its vector.
fn pooled(device: &Device, _: Design) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    let shape = BatchShape::packed(vec![70, 0, 33, 1])?;
    let x = Tensor::from_host(device, Dtype::Bf16, shape.rows(), 128, &random_activations(shape.rows(), 128, 3))?;
    let stream = context.new_stream()?;
    let numbers = Numbers::new(&stream, &shape)?;
    stream.synchronize()?;
    // SAFETY: the numbers live until the device has been waited for.
    let raw = unsafe { Batch::from_raw(device, numbers.sequences(&stream))? };
    let on = Stream::new(device)?;
    let of = |batch: &Batch, sequences: usize| -> Result<Vec<f32>, Error> {
        let mut out = Floats::poisoned(device, sequences * 128)?;
        kernel::pool(&on, Pooling::Mean, batch, &x, &mut out)?;
        out.to_host()
    };
    let (expected, got) = (of(&Batch::new(device, &shape)?, 4)?, of(&raw, 4)?);
    if expected != got || !got.iter().all(|value| value.is_finite()) {
        return Err("someone else's numbers give other vectors".into());
    }
    expect(&["length of out is 128", "512"], of(&raw, 1).map(drop))
}

/// What a model copies from the host would be read again when the graph runs, when it is no longer there.
fn model_in_capture(device: &Device, design: Design) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    let stream = context.new_stream()?;
    let (model, shape) = (models::model(device, design)?, BatchShape::new(2, 9)?);
    let mut workspace = model.workspace(&Stream::from_cudarc(device, &stream)?, shape.rows(), shape.batch())?;
    workspace.poison()?;
    let mut forward = || -> Result<Vec<f32>, Error> {
        model.forward(Schedule::Serial, &shape, &models::ids(&shape), None, &mut workspace)?;
        workspace.hidden()
    };
    let expected = forward()?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
    let captured = forward();
    let ended = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY);
    expect(&["a copy of the host's numbers in a stream capture"], captured.map(drop))?;
    drop(ended);
    if forward()? != expected {
        return Err("after a capture the model gives something else".into());
    }
    Ok(())
}

/// A context of someone else's works as the primary one does, and is still theirs when the device is gone.
fn contexts(device: &Device, design: Design) -> Outcome {
    let ordinal = device.info().ordinal;
    let expected = Fixture::new(device, design, &BatchShape::new(1, 96)?)?.run(Schedule::TwoStream, &[])?;
    let context = CudaContext::new_non_primary(ordinal, 0)?;
    let stream = context.new_stream()?;
    // SAFETY: the context outlives the device.
    let raw = unsafe { Device::from_context(context.cu_ctx())? };
    if raw.info() != device.info() {
        return Err(format!("{:?} is {:?}", raw.info(), device.info()).into());
    }
    for foreign in [raw, Device::from_cudarc(&context)?] {
        let got = Fixture::new(&foreign, design, &BatchShape::new(1, 96)?)?.run(Schedule::TwoStream, &[])?;
        differs(&expected, &got, || "another context".into())?;
    }
    let values = stream.clone_dtoh(&stream.clone_htod(&[1u8, 2, 3])?)?;
    if values != [1, 2, 3] {
        return Err("the context no longer works".into());
    }
    // SAFETY: the stream is live.
    let mixed = unsafe { Stream::from_raw(device, stream.cu_stream()) };
    expect(&["Stream::from_raw", "context is"], mixed.map(drop))?;
    expect(&["Stream::from_cudarc", "context is"], Stream::from_cudarc(device, &stream).map(drop))?;
    // SAFETY: null is allowed.
    expect(&["context is null"], unsafe { Device::from_context(std::ptr::null_mut()) }.map(drop))
}

/// Weights from the host and from the device, in every type, give what the same values give as `LayerWeights`.
fn weights(device: &Device, design: Design) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    let stream = context.new_stream()?;
    let mut fixture = Fixture::new(device, design, &BatchShape::new(1, 96)?)?;
    let config = fixture.encoder.config().clone();
    let mut layers: Vec<LayerWeights> = random_layers(&config, 9).collect();
    // What null stands for.
    layers[1].b_1.fill(0.0);
    layers[1].ln_1.gamma.fill(1.0);
    let rounded: Vec<LayerWeights> = layers.iter().map(|layer| layer.rounded(Dtype::Bf16)).collect();
    let mut run = |weights| -> Result<Vec<u16>, Failed> {
        fixture.encoder = Encoder::new(&config, Arc::new(weights))?;
        Ok(fixture.run(Schedule::Fused, &[])?)
    };
    let expected = run(EncoderWeights::upload(device, &config, Dtype::Bf16, &layers)?)?;
    let expected_of_rounded = run(EncoderWeights::upload(device, &config, Dtype::Bf16, &rounded)?)?;
    let upload = |element_type, location, layers: Vec<[*const c_void; 14]>| {
        let borrowed = layers.into_iter().map(|fields| BorrowedLayer { element_type, location, fields });
        // SAFETY: the fields are those of layers that are alive, or of slices that are.
        unsafe { EncoderWeights::upload_borrowed(device, &config, Dtype::Bf16, &borrowed.collect::<Vec<_>>()) }
    };
    let host = |(i, layer)| fields(i, layer, &mut |values| Ok(values.as_ptr().cast()));
    let host = layers.iter().enumerate().map(host).collect::<Result<_, _>>()?;
    let got = run(upload(ElementType::F32, Location::Host, host)?)?;
    differs(&expected, &got, || "fp32 on the host".into())?;
    let mut kept = Vec::new();
    let mut on_device = |values: &Vec<f32>| -> Result<*const c_void, Failed> {
        let slice = stream.clone_htod(&values.iter().map(|&value| bf16::from_f32(value)).collect::<Vec<_>>())?;
        let pointer = slice.device_ptr(&stream).0;
        kept.push(slice);
        Ok(std::ptr::with_exposed_provenance(pointer as usize))
    };
    let of_device = |(i, layer)| fields(i, layer, &mut on_device);
    let mut of_device: Vec<_> = rounded.iter().enumerate().map(of_device).collect::<Result<_, _>>()?;
    let got = run(upload(ElementType::Bf16, Location::Device, of_device.clone())?)?;
    differs(&expected_of_rounded, &got, || "bf16 on the device".into())?;
    of_device[2][0] = std::ptr::null();
    expect(&["w_qkv is null"], upload(ElementType::Bf16, Location::Device, of_device).map(drop))
}

/// Where the fields of layer `i` are; null for two of layer 1, and for those that are empty.
fn fields(
    i: usize,
    layer: &LayerWeights,
    of: &mut dyn FnMut(&Vec<f32>) -> Result<*const c_void, Failed>,
) -> Result<[*const c_void; 14], Failed> {
    let mut pointers = [std::ptr::null(); 14];
    for (pointer, (name, values)) in pointers.iter_mut().zip(layer.fields()) {
        let absent = values.is_empty() || i == 1 && (name == "b_1" || name == "ln_1.gamma");
        *pointer = if absent { std::ptr::null() } else { of(values)? };
    }
    Ok(pointers)
}

/// There and back: the same memory, which is whole after each owner has let go.
#[cfg(feature = "dlpack")]
fn dlpack(device: &Device, design: Design) -> Outcome {
    let mut fixture = Fixture::new(device, design, &BatchShape::new(2, 70)?)?;
    let expected = fixture.run(Schedule::Fused, &[])?;
    let copy = |tensor: &Tensor| Tensor::from_host(device, Dtype::Bf16, 140, 128, &tensor.to_host()?);
    let lent = copy(&fixture.x)?.into_dlpack();
    let address = lent.as_dltensor().data;
    if lent.shape() != [140, 128] || lent.device().device_id != device.info().ordinal as i32 {
        return Err(format!("{lent:?}").into());
    }
    // SAFETY: a tensor of this crate's, given to nobody else.
    fixture.x = unsafe { Tensor::from_dlpack(device, lent)? };
    // SAFETY: as above.
    fixture.y = unsafe { Tensor::from_dlpack(device, copy(&fixture.y)?.into_dlpack())? };
    differs(&expected, &fixture.run(Schedule::Fused, &[])?, || "tensors by DLPack".into())?;
    // Lent on by whoever borrowed it.
    let Fixture { x, .. } = fixture;
    let again = x.into_dlpack();
    if again.as_dltensor().data != address {
        return Err(format!("{again:?} is not at {address:?}").into());
    }
    let free = device.memory_info()?.0;
    let large = Tensor::poisoned(device, Dtype::Bf16, 1 << 14, 1 << 13)?.into_dlpack();
    let held = device.memory_info()?.0;
    drop(large);
    let freed = device.memory_info()?.0;
    // Other tests allocate meanwhile, but not a quarter of a gigabyte.
    if held + (1 << 27) > free || freed < held + (1 << 27) {
        return Err(
            format!("{free} bytes were free, {held} with a tensor lent, {freed} after it was given back").into()
        );
    }
    Ok(())
}

fn refused(device: &Device, design: Design) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    let fixture = Fixture::new(device, design, &BatchShape::new(2, 16)?)?;
    let mut engine = Engine::new(&context, &fixture)?;
    let encoder = &fixture.encoder;
    let mut workspace = encoder.workspace_without_scratch(32)?;
    let stream = engine.stream.clone();
    // SAFETY (of all): nothing is enqueued, and pointers that lead nowhere are not followed.
    let tensor = |pointer, rows| unsafe { Tensor::from_raw(device, Dtype::Bf16, pointer, rows, 128) };
    expect(&["0x0", "16"], tensor(0, 32).map(drop))?;
    expect(&["0x1008", "aligned to 16"], tensor(0x1008, 32).map(drop))?;
    expect(&["pointer"], tensor(u64::MAX - 15, 32).map(drop))?;
    let batch = |sequences| unsafe { Batch::from_raw(device, sequences) };
    expect(&["0x2", "4-byte"], batch(BorrowedSequences::Padded { batch: 1, seq_len: 8, lengths: 2 }).map(drop))?;
    let packed = BorrowedSequences::Packed { batch: 2, seq_len: 8, rows: 17, lengths: 4, first_rows: 4, positions: 4 };
    expect(&["17 (batch 2, seq_len 8)"], batch(packed).map(drop))?;
    let none = BorrowedSequences::Packed { batch: 2, seq_len: 8, rows: 0, lengths: 4, first_rows: 4, positions: 4 };
    expect(&["rows = 0"], batch(none).map(drop))?;
    let on = stream.cu_stream();
    let y = engine.y.device_ptr_mut(&stream).0;
    let mut forward = |x: u64, scratch: u64, bytes: usize| -> Result<(), Error> {
        unsafe {
            workspace.lend(scratch, bytes)?;
            let (x, mut y) = (tensor(x, 32)?, tensor(y, 32)?);
            let on = Stream::from_raw(device, on)?;
            encoder.forward(&on, Schedule::Fused, &fixture.batch, &x, &mut y, &mut workspace)
        }
    };
    let bytes = engine.scratch.len();
    let scratch = engine.scratch.device_ptr_mut(&stream).0;
    let x = engine.x.device_ptr(&stream).0;
    expect(&["the workspace has 256 bytes", &bytes.to_string()], forward(x, scratch, 256))?;
    expect(&["aligned to 256"], forward(x, scratch + 16, bytes))?;
    expect(&["y is at", "16 bytes from x"], forward(y - 16, scratch, bytes))?;
    expect(&["x is at", "apart from the workspace's"], forward(scratch + 512, scratch, bytes))?;
    // And the same call as it should be.
    forward(x, scratch, bytes)?;
    stream.synchronize()?;
    Ok(())
}

/// A forward call within a capture that someone else has begun, in the driver's strictest mode.
fn capture(device: &Device) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    for design in [Design::PafPostNorm, Design::SafPostNorm] {
        let mut fixture = Fixture::new(device, design, &BatchShape::new(2, 70)?.with_lengths(vec![70, 33])?)?;
        for schedule in schedules(design) {
            let expected = fixture.run(schedule, &[])?;
            let mut engine = Engine::new(&context, &fixture)?;
            let stream = engine.stream.clone();
            let mut workspace = fixture.encoder.workspace_without_scratch(engine.rows)?;
            // cudarc's events, by which it tracks slices, are for outside a capture: the addresses are asked for before.
            let bytes = engine.scratch.len();
            // SAFETY: slices of the engine, which live until the device has been waited for.
            let (on, batch, x, mut y) = unsafe {
                workspace.lend(engine.scratch.device_ptr_mut(&stream).0, bytes)?;
                (
                    Stream::from_raw(device, stream.cu_stream())?,
                    Batch::from_raw(device, engine.numbers.sequences(&stream))?,
                    Tensor::from_raw(device, Dtype::Bf16, engine.x.device_ptr(&stream).0, engine.rows, 128)?,
                    Tensor::from_raw(device, Dtype::Bf16, engine.y.device_ptr_mut(&stream).0, engine.rows, 128)?,
                )
            };
            stream.synchronize()?;
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
            let enqueued = fixture.encoder.forward(&on, schedule, &batch, &x, &mut y, &mut workspace);
            let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY)?;
            enqueued?;
            let graph = graph.ok_or("the capture is empty")?;
            for repeat in 0..3 {
                graph.launch()?;
                let got = engine.take()?;
                differs(&expected, &got, || format!("{design} {schedule} captured, replay {repeat}"))?;
            }
        }
    }
    Ok(())
}

fn no_allocation(device: &Device) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    let fixture = Fixture::new(device, Design::PafPreNorm, &BatchShape::new(2, 70)?)?;
    let mut engine = Engine::new(&context, &fixture)?;
    let mut workspace = fixture.encoder.workspace_without_scratch(engine.rows)?;
    let on = engine.stream.cu_stream();
    let mut calls = |count: usize| -> Result<(usize, usize), Failed> {
        for i in 0..count {
            let schedule = Schedule::ALL[i % Schedule::ALL.len()];
            engine.enqueue_with(&fixture.encoder, device, on, schedule, false, &mut workspace)?;
        }
        device.synchronize()?;
        Ok(device.memory_info()?)
    };
    calls(40)?; // what the driver itself makes at the first launches
    let (before, after) = (calls(4)?, calls(400)?);
    if before != after {
        return Err(format!("(free, total) was {before:?}, is {after:?} after 400 calls").into());
    }
    Ok(())
}

fn blocked(device: &Device) -> Outcome {
    let context = CudaContext::new(device.info().ordinal)?;
    for design in Design::ALL {
        let mut fixture = Fixture::new(device, design, &BatchShape::new(2, 70)?)?;
        for schedule in schedules(design) {
            let expected = fixture.run(schedule, &[])?;
            let mut engine = Engine::new(&context, &fixture)?;
            let mut workspace = fixture.encoder.workspace_without_scratch(engine.rows)?;
            let stream = engine.stream.clone();
            returns_while_blocked(&stream, || {
                let (encoder, on) = (&fixture.encoder, stream.cu_stream());
                Ok(engine.enqueue_with(encoder, device, on, schedule, false, &mut workspace)?)
            })?;
            differs(&expected, &engine.take()?, || format!("{design} {schedule} after a block"))?;
        }
    }
    Ok(())
}
