//! What a forward call needs beside weights and operands: scratch memory, the two internal streams, the events.

use std::time::Duration;

use super::device::{Device, Event, Stream};
use super::memory::{Buffer, Matrix, check_pointer};
use super::plan;
use super::rotary::RotaryTable;
use super::tiles::GEMM_MAX_PARTS;
use crate::config::LayerConfig;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// One of a parallel layer's two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// QKV product, attention, output projection.
    Attention,
    /// First product with activation, second product.
    Ffn,
}

/// Scratch memory, streams and events of forward calls. One call at a time may use it, whence `&mut`; it may serve
/// encoders of different designs with the same dimensions and rotary embedding.
#[derive(Debug)]
pub struct Workspace {
    /// The scratch memory; of a workspace without, what it was last lent.
    buffer: Option<Buffer>,
    /// Two u32, 0 between calls: see `gemm::Ready`.
    counters: Buffer,
    device: Device,
    /// Of as many positions as there are rows: no sequence that fits is longer.
    rotary: Option<RotaryTable>,
    widths: [usize; SCRATCH],
    /// Columns of the QKV product.
    qkv: usize,
    /// Columns of the FFN's inner layer.
    inner: usize,
    rows: usize,
    pub(super) attention_stream: Stream,
    pub(super) ffn_stream: Stream,
    pub(super) start: Event,
    pub(super) forked: Event,
    pub(super) ffn_done: Event,
    pub(super) finished: Event,
    pub(super) hold_back: [Duration; 2],
    pub(super) overlap: bool,
}

const SCRATCH: usize = 6;
/// From one pair of counters to the next: whole cache lines.
const PAIR_BYTES: usize = 128;
const COUNTERS_BYTES: usize = 2 * PAIR_BYTES;

/// The scratch matrices. Each branch writes its own; nothing is shared between them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scratch {
    /// `qkv` and `first` side by side, as one product writes them.
    pub(super) wide: Matrix,
    pub(super) context: Matrix,
    pub(super) attention_out: Matrix,
    pub(super) ffn_out: Matrix,
    pub(super) normed_1: Matrix,
    pub(super) normed_2: Matrix,
    // Columns of `wide`.
    pub(super) qkv: Matrix,
    /// What the FFN's first product makes: `inner`, or gate and inner layer side by side.
    pub(super) first: Matrix,
    /// What the FFN's second product reads. Where there is a gate, these are the gate's columns, in place of which the product of
    /// both is written.
    pub(super) inner: Matrix,
    /// fp32 `[GEMM_MAX_PARTS, rows, hidden_size]`, or 0 where there are too many rows for that: see `Gemm::sums`.
    pub(super) sums: u64,
}

/// Pointers to pairs of u32: see kernels/counters.cuh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    /// Of the columns that attention reads.
    pub(super) ready: u64,
    /// Of a whole wide product.
    pub(super) done: u64,
}

/// Columns of the scratch matrices, in the order of [`Scratch`]'s fields.
fn widths(config: &LayerConfig) -> [usize; SCRATCH] {
    let h = config.hidden_size;
    [config.qkv_size() + config.first_size(), config.query_size(), h, h, h, h]
}

fn matrix_bytes(rows: usize, cols: usize) -> usize {
    (rows * cols * Dtype::BYTES).next_multiple_of(256)
}

impl Workspace {
    pub(super) fn bytes(config: &LayerConfig, rows: usize) -> usize {
        let table = config.rotary.map_or(0, |rotary| RotaryTable::bytes(&rotary, rows));
        Self::scratch_bytes(config, rows) + COUNTERS_BYTES + table
    }

    pub(super) fn scratch_bytes(config: &LayerConfig, rows: usize) -> usize {
        let matrices: usize = widths(config).into_iter().map(|cols| matrix_bytes(rows, cols)).sum();
        // A call on fewer rows may need them where one on all does not.
        matrices + GEMM_MAX_PARTS * rows.min(plan::MAX_ROWS_IN_PARTS) * config.hidden_size * size_of::<f32>()
    }

    pub(super) fn new(device: &Device, config: &LayerConfig, rows: usize) -> Result<Self> {
        let buffer = Buffer::new(device, "a workspace", Self::scratch_bytes(config, rows))?;
        Ok(Self { buffer: Some(buffer), ..Self::without_scratch(device, config, rows)? })
    }

    pub(super) fn without_scratch(device: &Device, config: &LayerConfig, rows: usize) -> Result<Self> {
        let counters = Buffer::new(device, "a workspace's counters", COUNTERS_BYTES)?;
        counters.fill_u16(0)?;
        Ok(Self {
            counters,
            buffer: None,
            device: device.clone(),
            rotary: config.rotary.map(|rotary| RotaryTable::new(device, &rotary, rows)).transpose()?,
            widths: widths(config),
            qkv: config.qkv_size(),
            inner: config.intermediate_size,
            rows,
            attention_stream: Stream::new(device)?,
            ffn_stream: Stream::new(device)?,
            start: Event::new_ordering(device)?,
            forked: Event::new_ordering(device)?,
            ffn_done: Event::new_ordering(device)?,
            finished: Event::new_ordering(device)?,
            hold_back: [Duration::ZERO; 2],
            overlap: true,
        })
    }

    /// Whether kernels of later calls may begin before the one before them on their stream has ended (programmatic dependent
    /// launch), which is the default and changes no result; and only on Hopper is there such a thing.
    pub fn set_overlap(&mut self, overlap: bool) {
        self.overlap = overlap;
    }

    /// Makes every later call hold `branch` back by `time` at the start of each layer, on the branch's own stream. The
    /// result must not change: tests of the streams' ordering use it, to turn a missing dependency into a wrong result.
    pub fn hold_back(&mut self, branch: Branch, time: Duration) {
        self.hold_back[branch as usize] = time;
    }

    /// Overwrites the scratch memory with NaN, after everything launched on the device has finished: what is read before it is
    /// written becomes visible.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`].
    pub fn poison(&mut self) -> Result<()> {
        self.buffer.as_ref().map_or(Ok(()), |buffer| buffer.fill_u16(0xffff)) // a NaN in both element types
    }

    /// Makes later calls use `bytes` of someone else's memory at `pointer` (a `CUdeviceptr`, aligned to 256 bytes) as scratch, instead
    /// of what the workspace has had. How many a call needs, [`Encoder::scratch_bytes`](super::Encoder::scratch_bytes) tells. Nothing is
    /// kept there from one call to the next.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a pointer that is null or not aligned.
    ///
    /// # Safety
    /// The memory is the device's, and nothing else touches it, from each call on until its stream has run it, until the workspace is
    /// lent other memory or dropped.
    pub unsafe fn lend(&mut self, pointer: u64, bytes: usize) -> Result<()> {
        check_pointer("Workspace::lend", pointer, bytes, 256)?;
        // SAFETY: the caller's promise.
        self.buffer = Some(unsafe { Buffer::borrowed(&self.device, pointer, bytes) });
        Ok(())
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn check(&self, config: &LayerConfig, rows: usize) -> Result<()> {
        if rows > self.rows {
            let expected = format!("at most the {} that the workspace was made for", self.rows);
            return Err(Error::mismatch("Encoder::forward", "number of rows", rows, expected));
        }
        let (own, wanted) = ((self.qkv, self.inner), (config.qkv_size(), config.intermediate_size));
        if self.widths != widths(config) || own != wanted {
            return Err(Error::mismatch(
                "Encoder::forward",
                "workspace",
                format!("of widths {:?}, (QKV, inner) {own:?}", self.widths),
                format!("widths {:?}, (QKV, inner) {wanted:?}", widths(config)),
            ));
        }
        let rotary = self.rotary().map(|table| *table.rotary());
        if rotary != config.rotary {
            return Err(Error::mismatch(
                "Encoder::forward",
                "rotary embedding of the workspace",
                format!("{rotary:?}"),
                format!("{:?}", config.rotary),
            ));
        }
        let (given_bytes, needed_bytes) =
            (self.buffer.as_ref().map_or(0, Buffer::bytes), Self::scratch_bytes(config, rows));
        if given_bytes < needed_bytes {
            return Err(Error::WorkspaceTooSmall { given_bytes, needed_bytes });
        }
        Ok(())
    }

    /// Whether none of these lies in the scratch memory.
    pub(super) fn check_apart<const N: usize>(
        &self,
        operation: &'static str,
        operands: [(&'static str, Matrix); N],
    ) -> Result<()> {
        let (start, end) =
            self.buffer.as_ref().map_or((0, 0), |buffer| (buffer.pointer(), buffer.pointer() + buffer.bytes() as u64));
        let inside = |(_, matrix): &(_, Matrix)| {
            let (first, last) = matrix.span();
            first < end && start < last
        };
        match operands.iter().find(|operand| inside(operand)) {
            None => Ok(()),
            Some((what, matrix)) => Err(Error::mismatch(
                operation,
                what,
                format!("at {:#x}", matrix.pointer),
                format!("memory apart from the workspace's, {start:#x} to {end:#x}"),
            )),
        }
    }

    /// Makes the counters 0, in the order of `stream`.
    pub(super) fn reset_counters(&self, stream: &Stream) -> Result<()> {
        self.counters.zero_on(stream)
    }

    /// What the layer rotates queries and keys by, if it does.
    pub(super) fn rotary(&self) -> Option<&RotaryTable> {
        self.rotary.as_ref()
    }

    /// The scratch matrices for a call on `rows` rows, for which `check` has found room.
    pub(super) fn scratch(&self, rows: usize) -> Scratch {
        let mut pointer = self.buffer.as_ref().map_or(0, Buffer::pointer);
        let [wide, context, attention_out, ffn_out, normed_1, normed_2] = self.widths.map(|cols| {
            let matrix = Matrix { pointer, rows, cols, stride: cols };
            pointer += matrix_bytes(rows, cols) as u64;
            matrix
        });
        let columns = |from: usize, cols| Matrix { pointer: wide.pointer + (from * Dtype::BYTES) as u64, cols, ..wide };
        let (qkv, first) = (columns(0, self.qkv), columns(self.qkv, wide.cols - self.qkv));
        let inner = columns(self.qkv, self.inner);
        let sums = if rows <= plan::MAX_ROWS_IN_PARTS { pointer } else { 0 };
        Scratch { wide, context, attention_out, ffn_out, normed_1, normed_2, qkv, first, inner, sums }
    }

    pub(super) fn counters(&self) -> Counters {
        let ready = self.counters.pointer();
        Counters { ready, done: ready + PAIR_BYTES as u64 }
    }
}
