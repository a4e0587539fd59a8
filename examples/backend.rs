//! An engine that has its own context, streams and memory, and runs layers of this crate on them: safely with cudarc's types, then with raw
//! handles as another library would hand them over, on two threads at once. `cargo run --release --example backend`

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use paf_cuda::gpu::cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DevicePtrMut};
use paf_cuda::gpu::{Batch, BorrowedSequences, Device, Encoder, EncoderWeights, Stream, Tensor, device_count};
use paf_cuda::weights::{random_activations, random_layers};
use paf_cuda::{BatchShape, Dtype, EncoderConfig, LayerConfig, Schedule, cpu};

fn main() -> Result<(), Box<dyn Error>> {
    // cudarc panics where there is no driver; this says so.
    if device_count()? == 0 {
        return Err("no CUDA device".into());
    }
    // The engine's own: a context, a stream, slices.
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;

    let config = EncoderConfig { layer: LayerConfig::new(512, 8, 2048)?, num_hidden_layers: 4 };
    let layers: Vec<_> = random_layers(&config, 1).collect();
    let device = Device::from_cudarc(&context)?;
    let weights = EncoderWeights::upload(&device, &config, Dtype::Bf16, &layers)?;
    let encoder = Arc::new(Encoder::new(&config, Arc::new(weights))?);

    let shape = BatchShape::new(4, 64)?.with_lengths(vec![64, 1, 37, 50])?;
    let (rows, cols) = (shape.rows(), config.layer.hidden_size);
    let values = random_activations(rows, cols, 2);
    let rounded: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
    let x: CudaSlice<bf16> = stream.clone_htod(&rounded)?;
    let mut y: CudaSlice<bf16> = stream.alloc_zeros(rows * cols)?;

    // 1. cudarc's types, in the order that cudarc keeps.
    let batch = Batch::new(&device, &shape)?;
    let mut workspace = encoder.workspace(&batch)?;
    let on = Stream::from_cudarc(&device, &stream)?;
    encoder.forward_slices(&on, Schedule::TwoStream, &batch, &x, &mut y, &mut workspace)?;
    let safe = stream.clone_dtoh(&y)?;

    // The same layers on the CPU, in f32, on the same rounded input.
    let reference = cpu::Encoder::new(config.clone(), Arc::new(layers))?;
    let inputs: Vec<f32> = rounded.iter().map(|value| value.to_f32()).collect();
    let mut expected = vec![0.0; inputs.len()];
    reference.forward(Schedule::Serial, &shape, &inputs, &mut expected, &mut reference.workspace(&shape)?)?;
    let (mut difference, mut size) = (0.0, 0.0);
    for (got, expected) in safe.iter().zip(&expected) {
        difference += f64::from(got.to_f32() - expected).powi(2);
        size += f64::from(*expected).powi(2);
    }
    let error = (difference / size).sqrt();
    println!("relative error against the CPU in f32: {error:.5}");
    if error.is_nan() || error > 0.02 {
        return Err("that is more than bf16 explains".into());
    }

    // 2. Raw handles and addresses, on two threads with a stream, scratch memory and output each.
    let lengths = stream.clone_htod(&[64i32, 1, 37, 50])?;
    stream.synchronize()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| raw(&context, &encoder, &x, &lengths, [rows, cols]).map_err(|e| e.to_string())))
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(Ok(got)) if got == safe => Ok(()),
            Ok(Ok(_)) => Err("raw handles give other bits".to_owned()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("a thread panicked".to_owned()),
        })
    })?;
    println!("raw handles on two threads give the same bits");
    Ok(())
}

fn raw(
    context: &Arc<CudaContext>,
    encoder: &Encoder,
    x: &CudaSlice<bf16>,
    lengths: &CudaSlice<i32>,
    [rows, cols]: [usize; 2],
) -> Result<Vec<bf16>, Box<dyn Error>> {
    let device = encoder.device();
    let stream = context.new_stream()?;
    let bytes = encoder.scratch_bytes(rows);
    let mut scratch: CudaSlice<u8> = stream.alloc_zeros(bytes)?;
    let mut y: CudaSlice<bf16> = stream.alloc_zeros(rows * cols)?;
    let mut workspace = encoder.workspace_without_scratch(rows)?;
    let ((x, _x), (lengths, _lengths)) = (x.device_ptr(&stream), lengths.device_ptr(&stream));
    let (scratch, _scratch) = scratch.device_ptr_mut(&stream);
    let (to, written) = y.device_ptr_mut(&stream);
    // SAFETY: all are of this context, as large as said, and live until the stream has been waited for below; nobody else writes them.
    let (on, batch, x, mut to) = unsafe {
        workspace.lend(scratch, bytes)?;
        (
            Stream::from_raw(device, stream.cu_stream())?,
            Batch::from_raw(device, BorrowedSequences::Padded { batch: 4, seq_len: 64, lengths })?,
            Tensor::from_raw(device, Dtype::Bf16, x, rows, cols)?,
            Tensor::from_raw(device, Dtype::Bf16, to, rows, cols)?,
        )
    };
    let calls: u32 = 100;
    let started = Instant::now();
    for _ in 0..calls {
        encoder.forward(&on, Schedule::TwoStream, &batch, &x, &mut to, &mut workspace)?;
    }
    let enqueued = started.elapsed() / calls;
    on.synchronize()?;
    println!("a call of 4 layers: enqueued in {enqueued:?}, run in {:?}", started.elapsed() / calls);
    drop(written);
    Ok(stream.clone_dtoh(&y)?)
}
