//! Softmax attention, read in place from the packed QKV product: `softmax(Q·Kᵀ/√head_dim)·V` for each sequence and head.
//! What it is, what it checks, and which kernel runs it.

pub(super) mod sm80;
pub(super) mod sm90;
mod variant;

use super::batch::{Batch, Sequences};
use super::device::{Device, Stream};
use super::gemm::{Count, Early, Meanwhile, Shape};
use super::launch::Kernels;
use super::memory::Matrix;
use super::plan::{self, MAX_ROWS_ANYWHERE};
use super::tiles::{ATTENTION_SM90_TILES, ATTENTION_TILES};
use crate::config::{LayerConfig, MAX_DIMENSION, Schedule};
use crate::error::{Error, Result};
pub use variant::AttentionVariant;

/// One attention over a batch of sequences.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    /// `[rows, (heads + 2 · key_value_heads) · head_dim]`: all Q heads, all K heads, all V heads.
    pub(super) qkv: Matrix,
    /// `[rows, heads · head_dim]`.
    pub(super) out: Matrix,
    /// Pointer to f32 `[heads, rows]`, or 0: `ln Σ exp(q·k/√head_dim)` over the keys that a row sees; −∞ for padding.
    pub(super) log_sum_exp: u64,
    pub(super) sequences: Sequences,
    pub(super) heads: usize,
    /// A divisor of `heads`: as many neighbouring query heads as it leaves share one key and value head.
    pub(super) key_value_heads: usize,
    pub(super) head_dim: usize,
    pub(super) causal: bool,
    /// Instead of the planned one.
    pub(super) variant: Option<AttentionVariant>,
    /// Programmatic dependent launch; the portable kernel ignores it, and attention by halves.
    pub(super) overlap: bool,
    /// When the kernel after this one may begin, if that has `overlap`. For Hopper's kernel; after the portable one it begins at its end.
    pub(super) next: Next,
    /// For the planner: attention may begin while a product still has other columns to make, if it does not go by halves.
    pub(super) beside: bool,
    /// With `overlap`: `qkv` is complete when that count is, of the product before. Only Hopper's kernel waits for it instead of the
    /// product's end.
    pub(super) ready: Option<Count>,
}

/// `Next` of kernels/attention_sm90.cu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// When attention has asked for all that it reads.
    NearEnd,
    /// When the kernel before attention has ended.
    WhenBeforeEnded,
    /// When all blocks of attention have begun.
    AtOnce,
}

/// The planner's choice for this device.
pub(super) fn planned(kernels: &Kernels, device: &Device, attention: &Attention) -> Result<AttentionVariant> {
    let on_hopper = kernels.attention_sm90.as_ref().and_then(|sm90| match attention.beside {
        true => sm90.planned_beside(device, attention).or_else(|| sm90.planned(device, attention)),
        false => sm90.planned(device, attention),
    });
    Ok(match on_hopper {
        Some(tile) => sm90::variant(tile),
        None => AttentionVariant::Sm80 { rows: kernels.attention_sm80(device)?.planned(device, attention)? },
    })
}

/// Hopper's kernel, and which row of its table of tiles this attention goes by; `None` if the portable one computes it.
fn on_hopper<'a>(
    kernels: &'a Kernels,
    device: &Device,
    attention: &Attention,
) -> Result<Option<(&'a sm90::Sm90Attention, usize)>> {
    match attention.variant.map_or_else(|| planned(kernels, device, attention), Ok)? {
        AttentionVariant::Sm80 { .. } => Ok(None),
        variant @ AttentionVariant::Sm90 { rows, half } => {
            let tile = sm90::tile(attention.head_dim, rows, half)?;
            Ok(Some((hopper(kernels, variant)?, tile)))
        }
    }
}

/// What of the device this attention has while a product runs beside it.
pub(super) fn takes(kernels: &Kernels, device: &Device, attention: &Attention) -> Result<Meanwhile> {
    let on_hopper = on_hopper(kernels, device, attention)?;
    Ok(on_hopper.map_or_else(Meanwhile::default, |(sm90, tile)| sm90.takes(device, attention, tile)))
}

/// Attention by halves, if there is such a tile and `fused` is estimated to be faster so, beside a product of so many rows, columns and steps
/// along K.
pub(super) fn faster_by_halves(
    kernels: &Kernels,
    device: &Device,
    attention: &Attention,
    product: Shape,
) -> Option<AttentionVariant> {
    kernels.attention_sm90.as_ref()?;
    let index = sm90::of_width(attention.head_dim, true).next()?;
    let tile = &ATTENTION_SM90_TILES[index];
    let of =
        (attention.sequences.most_tiles(tile.rows()) * attention.heads, attention.sequences.seq_len, attention.causal);
    let multiprocessors = device.info().multiprocessors as usize;
    plan::is_faster_by_halves(tile, of, product, multiprocessors).then(|| sm90::variant(index))
}

/// Whether attention of that kind could be worth it for this batch: by halves only beside a product of the same stream, which few rows end
/// too soon, and where it has not too few tiles to leave a product whole multiprocessors.
pub(super) fn is_worth_trying(
    device: &Device,
    attention: &Attention,
    variant: AttentionVariant,
    schedule: Schedule,
) -> bool {
    let AttentionVariant::Sm90 { rows, half: true } = variant else { return true };
    let tiles = attention.sequences.tiles(rows) * attention.heads;
    let many = attention.sequences.rows > MAX_ROWS_ANYWHERE && 2 * tiles > device.info().multiprocessors as usize;
    schedule == Schedule::Fused && many
}

/// Whether this attention waits for a count, see [`Attention::ready`], where there is one.
pub(super) fn waits_for_count(kernels: &Kernels, device: &Device, attention: &Attention) -> Result<bool> {
    let on_hopper = on_hopper(kernels, device, attention)?;
    Ok(on_hopper.is_some_and(|(sm90, tile)| attention.overlap && sm90.gains_from_count(device, attention, tile)))
}

/// How this attention follows a wide product of whose `columns` first columns it reads: at once, if it would wait for their count.
pub(super) fn follows(kernels: &Kernels, device: &Device, attention: &Attention, columns: usize) -> Result<Early> {
    let attention = Attention { overlap: true, beside: true, ..*attention };
    let on_hopper = on_hopper(kernels, device, &attention)?;
    let early = on_hopper.filter(|(sm90, tile)| sm90.gains_from_count(device, &attention, *tile));
    Ok(early.map_or_else(Early::default, |(sm90, tile)| Early {
        columns,
        nanoseconds: sm90.takes_ns(device, &attention, tile) as usize,
    }))
}

/// Loads what a variant needs. An error if it cannot be had for heads of that width.
pub(super) fn prepare(kernels: &Kernels, device: &Device, head_dim: usize, variant: AttentionVariant) -> Result<()> {
    match variant {
        AttentionVariant::Sm80 { rows } => kernels.attention_sm80(device)?.function(head_dim, rows).map(drop),
        AttentionVariant::Sm90 { rows, half } => {
            sm90::tile(head_dim, rows, half).and(hopper(kernels, variant)).map(drop)
        }
    }
}

fn hopper(kernels: &Kernels, variant: AttentionVariant) -> Result<&sm90::Sm90Attention> {
    kernels.attention_sm90.as_ref().ok_or_else(|| Error::Unsupported {
        what: format!("attention variant {variant}"),
        remedy: "it runs on compute capability 9.0 only; choose an sm80 variant".into(),
    })
}

/// Launches the attention on `stream`.
///
/// # Safety
/// As for [`gemm::launch`](super::gemm::launch).
pub(super) unsafe fn launch(kernels: &Kernels, stream: &Stream, attention: &Attention) -> Result<()> {
    attention.check()?;
    let device = stream.device();
    let variant = attention.variant.map_or_else(|| planned(kernels, device, attention), Ok)?;
    match variant {
        AttentionVariant::Sm80 { rows } => {
            let sm80 = kernels.attention_sm80(device)?;
            // SAFETY: shapes were checked; liveness is the caller's promise.
            unsafe { sm80.launch(stream, attention, rows) }
        }
        AttentionVariant::Sm90 { rows, half } => {
            let tile = sm90::tile(attention.head_dim, rows, half)?;
            // SAFETY: as above.
            unsafe { hopper(kernels, variant)?.launch(stream, attention, tile) }
        }
    }
}

/// The head widths that there are kernels for.
pub(super) fn head_dims() -> Vec<usize> {
    let mut dims: Vec<_> = ATTENTION_TILES.iter().map(|tile| tile.head_dim).collect();
    dims.dedup();
    dims
}

pub(super) fn unsupported_head_dim(head_dim: usize) -> Error {
    Error::Unsupported {
        what: format!("head_dim = {head_dim} on a GPU"),
        remedy: format!("the attention kernels are made for {:?}; use one of these, or --backend cpu", head_dims()),
    }
}

/// Asked for a tile that the head width does not have.
fn no_such_rows(what: &'static str, rows: usize, head_dim: usize, known: impl Iterator<Item = usize>) -> Error {
    let known: Vec<_> = known.collect();
    let expected = if known.is_empty() { "none".to_owned() } else { format!("one of {known:?}") };
    Error::mismatch("attention", what, rows, format!("{expected} for head_dim {head_dim}"))
}

impl Attention {
    /// A layer's, as estimated, without operands.
    pub(super) fn of_layer(config: &LayerConfig, batch: &Batch) -> Self {
        let nothing = Matrix { pointer: 0, rows: 0, cols: 0, stride: 0 };
        Self {
            qkv: nothing,
            out: nothing,
            log_sum_exp: 0,
            sequences: batch.sequences(),
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            causal: config.causal,
            variant: None,
            overlap: false,
            next: Next::NearEnd,
            beside: false,
            ready: None,
        }
    }

    /// Column of `qkv` at which keys begin.
    fn k_column(&self) -> i32 {
        (self.heads * self.head_dim) as i32
    }

    /// Column of `qkv` at which values begin.
    fn v_column(&self) -> i32 {
        ((self.heads + self.key_value_heads) * self.head_dim) as i32
    }

    /// Query heads that share one key and value head.
    fn group(&self) -> i32 {
        (self.heads / self.key_value_heads) as i32
    }

    /// What scores are multiplied by before 2 is raised to them.
    fn scale_log2(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.head_dim as f32).sqrt()
    }

    fn check(&self) -> Result<()> {
        const OPERATION: &str = "attention";
        let Self { qkv, out, log_sum_exp, sequences, heads, key_value_heads, head_dim, .. } = *self;
        sequences.check(OPERATION)?;
        if key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(Error::mismatch(OPERATION, "number of key and value heads", key_value_heads, expected));
        }
        let (rows, width) = (sequences.rows, heads.saturating_mul(head_dim));
        let key_value_width = key_value_heads.saturating_mul(head_dim);
        // Kernels count columns, and heads, in 32 bits.
        if qkv.cols > MAX_DIMENSION {
            return Err(Error::mismatch(OPERATION, "columns of QKV", qkv.cols, format!("at most {MAX_DIMENSION}")));
        }
        let expected = [(rows, width.saturating_add(key_value_width.saturating_mul(2))), (rows, width)];
        for ((what, matrix), (rows, cols)) in [("QKV", qkv), ("output", out)].into_iter().zip(expected) {
            if (matrix.rows, matrix.cols) != (rows, cols) || cols == 0 {
                return Err(Error::mismatch(
                    OPERATION,
                    what,
                    format!("{} × {}", matrix.rows, matrix.cols),
                    format!("{rows} × {cols} ({heads} and {key_value_heads} heads of {head_dim})"),
                ));
            }
            matrix.check_aligned(OPERATION, what)?;
        }
        if !log_sum_exp.is_multiple_of(4) {
            let got = format!("at {log_sum_exp:#x}");
            return Err(Error::mismatch(OPERATION, "log-sum-exp", got, "a 4-byte aligned pointer"));
        }
        let bytes = heads.saturating_mul(rows).saturating_mul(size_of::<f32>());
        if log_sum_exp != 0 && [qkv, out].iter().any(|matrix| matrix.overlaps_bytes(log_sum_exp, bytes)) {
            let got = format!("at {log_sum_exp:#x}, overlapping QKV or the output");
            return Err(Error::mismatch(OPERATION, "log-sum-exp", got, "memory of its own"));
        }
        if qkv.overlaps(&out) {
            return Err(Error::mismatch(
                OPERATION,
                "output",
                format!("at {:#x}, overlapping QKV at {:#x}", out.pointer, qkv.pointer),
                "memory of its own",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_shapes_are_refused_with_their_values() {
        let matrix = |pointer, cols| Matrix { pointer, rows: 6, cols, stride: cols };
        let sequences = Sequences { batch: 2, seq_len: 3, rows: 6, lengths: 0, first_rows: 0, positions: 0 };
        let good = Attention {
            qkv: matrix(0x1000, 192),
            out: matrix(0x8000, 64),
            log_sum_exp: 0,
            sequences,
            heads: 2,
            key_value_heads: 2,
            head_dim: 32,
            causal: false,
            variant: None,
            overlap: false,
            next: Next::NearEnd,
            beside: false,
            ready: None,
        };
        good.check().unwrap();
        Attention { key_value_heads: 1, qkv: matrix(0x1000, 128), ..good }.check().unwrap();
        let packed =
            Sequences { batch: 4, seq_len: 5, lengths: 0x100, first_rows: 0x200, positions: 0x300, ..sequences };
        Attention { sequences: packed, ..good }.check().unwrap();
        for (bad, part) in [
            (Attention { qkv: matrix(0x1000, 128), ..good }, "6 × 128"),
            (Attention { qkv: matrix(0x1000, (1 << 20) + 8), ..good }, "is 1048584, expected at most 1048576"),
            (Attention { key_value_heads: 1, ..good }, "6 × 128 (2 and 1 heads of 32)"),
            (Attention { key_value_heads: 3, ..good }, "is 3, expected a divisor of the 2"),
            (Attention { key_value_heads: 0, ..good }, "is 0, expected a divisor of the 2"),
            (Attention { sequences: Sequences { seq_len: 4, ..sequences }, ..good }, "6 (batch 2, seq_len 4)"),
            (Attention { sequences: Sequences { rows: 8, seq_len: 4, ..sequences }, ..good }, "8 × 192"),
            (Attention { sequences: Sequences { lengths: 0x1002, ..sequences }, ..good }, "0x1002"),
            (Attention { sequences: Sequences { lengths: 0, ..packed }, ..good }, "lengths and positions is absent"),
            (Attention { log_sum_exp: 0x1002, ..good }, "0x1002"),
            (Attention { log_sum_exp: good.out.pointer + 4, ..good }, "overlapping QKV or the output"),
            (Attention { out: matrix(0x1010, 64), ..good }, "overlapping"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_promised_head_dims_are_there() {
        assert_eq!(head_dims(), [32, 64, 80, 96, 128, 256]);
    }

    #[test]
    fn rows_name_one_tile_of_a_head_width() {
        for head_dim in head_dims() {
            let rows: Vec<_> = sm80::tiles(head_dim).map(|tile| tile.rows()).collect();
            assert!(rows.windows(2).all(|pair| pair[0] > pair[1]), "{rows:?}");
        }
    }
}
