//! An engine that has its own streams and memory, which it brings to calls of an encoder.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::Failed;
use paf_cuda::gpu::cudarc::driver::sys::CUstream;
use paf_cuda::gpu::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, result};
use paf_cuda::gpu::{Batch, BorrowedSequences, Device, Encoder, Stream, Tensor, Workspace};
use paf_cuda::{BatchShape, Dtype, Error, Schedule};

use super::{Fixture, Outcome};

/// Numbers of a batch on the device, as an engine would have them.
pub struct Numbers {
    batch: usize,
    seq_len: usize,
    packed_rows: usize,
    lengths: CudaSlice<i32>,
    first_rows: CudaSlice<i32>,
    positions: CudaSlice<i32>,
}

impl Numbers {
    pub fn new(stream: &Arc<CudaStream>, shape: &BatchShape) -> Result<Self, Failed> {
        let of =
            |values: Vec<usize>| stream.clone_htod(&values.into_iter().map(|value| value as i32).collect::<Vec<_>>());
        let sequences = 0..shape.batch();
        Ok(Self {
            batch: shape.batch(),
            seq_len: shape.seq_len(),
            packed_rows: if shape.is_packed() { shape.rows() } else { 0 },
            lengths: of(sequences.clone().map(|i| shape.length(i)).collect())?,
            first_rows: of(sequences.clone().map(|i| shape.first_row(i)).collect())?,
            positions: of(sequences.flat_map(|i| 0..shape.rows_of(i).len()).collect())?,
        })
    }

    pub fn sequences(&self, stream: &CudaStream) -> BorrowedSequences {
        let pointer = |slice: &CudaSlice<i32>| slice.device_ptr(stream).0;
        let (batch, seq_len, lengths) = (self.batch, self.seq_len, pointer(&self.lengths));
        match self.packed_rows {
            0 => BorrowedSequences::Padded { batch, seq_len, lengths },
            rows => {
                let (first_rows, positions) = (pointer(&self.first_rows), pointer(&self.positions));
                BorrowedSequences::Packed { batch, seq_len, rows, lengths, first_rows, positions }
            }
        }
    }
}

/// What an engine brings to a call of `fixture`'s encoder.
pub struct Engine {
    pub stream: Arc<CudaStream>,
    pub numbers: Numbers,
    pub x: CudaSlice<u16>,
    pub y: CudaSlice<u16>,
    pub scratch: CudaSlice<u8>,
    pub rows: usize,
}

impl Engine {
    pub fn new(context: &Arc<CudaContext>, fixture: &Fixture) -> Result<Self, Failed> {
        let stream = context.new_stream()?;
        let rows = fixture.batch.shape().rows();
        let engine = Self {
            numbers: Numbers::new(&stream, fixture.batch.shape())?,
            x: stream.clone_htod(&fixture.x.to_bits()?)?,
            y: stream.clone_htod(&vec![0xffffu16; rows * 128])?,
            scratch: stream.clone_htod(&vec![0xffu8; fixture.encoder.scratch_bytes(rows)])?,
            rows,
            stream,
        };
        engine.stream.synchronize()?;
        Ok(engine)
    }

    /// Enqueues a call on `on`, from `y` to `y` if it is to be in place.
    pub fn enqueue(
        &mut self,
        encoder: &Encoder,
        on: CUstream,
        schedule: Schedule,
        in_place: bool,
    ) -> Result<Workspace, Failed> {
        let device = encoder.device();
        let mut workspace = encoder.workspace_without_scratch(self.rows)?;
        self.enqueue_with(encoder, device, on, schedule, in_place, &mut workspace)?;
        Ok(workspace)
    }

    pub fn enqueue_with(
        &mut self,
        encoder: &Encoder,
        device: &Device,
        on: CUstream,
        schedule: Schedule,
        in_place: bool,
        workspace: &mut Workspace,
    ) -> Result<(), Error> {
        let stream = self.stream.clone();
        let bytes = self.scratch.len();
        let y = self.y.device_ptr_mut(&stream).0;
        let x = if in_place { y } else { self.x.device_ptr(&stream).0 };
        // SAFETY: slices of this engine, as large as this, which live until the device has been waited for.
        unsafe {
            workspace.lend(self.scratch.device_ptr_mut(&stream).0, bytes)?;
            let on = Stream::from_raw(device, on)?;
            let batch = Batch::from_raw(device, self.numbers.sequences(&stream))?;
            let x = Tensor::from_raw(device, Dtype::Bf16, x, self.rows, 128)?;
            let mut y = Tensor::from_raw(device, Dtype::Bf16, y, self.rows, 128)?;
            encoder.forward(&on, schedule, &batch, &x, &mut y, workspace)
        }
    }

    /// The output, after everything; then it is poisoned.
    pub fn take(&mut self) -> Result<Vec<u16>, Failed> {
        self.stream.context().synchronize()?;
        let got = self.stream.clone_dtoh(&self.y)?;
        self.stream.memcpy_htod(&vec![0xffffu16; self.rows * 128], &mut self.y)?;
        self.stream.synchronize()?;
        Ok(got)
    }
}

/// What a stream's host function waits for.
struct Barrier {
    released: Mutex<Receiver<()>>,
    timed_out: AtomicBool,
}

unsafe extern "C" fn wait(barrier: *mut c_void) {
    // SAFETY: the test keeps the barrier until the stream has run this.
    let barrier = unsafe { &*barrier.cast::<Barrier>() };
    let released = barrier.released.lock().unwrap_or_else(PoisonError::into_inner);
    if released.recv_timeout(Duration::from_secs(20)).is_err() {
        barrier.timed_out.store(true, Ordering::SeqCst);
    }
}

/// Whether `call` returns while what it enqueues on the stream cannot run: it is let go only when `call` is back.
pub fn returns_while_blocked(stream: &CudaStream, call: impl FnOnce() -> Outcome) -> Outcome {
    let (release, released) = channel();
    let barrier = Barrier { released: Mutex::new(released), timed_out: AtomicBool::new(false) };
    // SAFETY: the barrier outlives the stream's work, which is waited for below.
    unsafe { result::stream::launch_host_function(stream.cu_stream(), wait, (&raw const barrier).cast_mut().cast())? };
    let called = call();
    let sent = release.send(());
    stream.synchronize()?;
    called?;
    if sent.is_err() || barrier.timed_out.load(Ordering::SeqCst) {
        return Err("the call waited for its stream, which was let go only after 20 s".into());
    }
    Ok(())
}
