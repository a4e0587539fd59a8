//! The rotary embedding's kernels against the oracle.

use super::{DTYPES, random};
use crate::config::{BatchShape, LayerConfig, Rotary};
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::kernel::{self, RotaryTable};
use crate::gpu::{Batch, Device, Stream, Tensor};
use crate::verify::{Case, Comparison, Layout, compare, poison_padding, widen};

pub(super) fn cases(device: &Device) -> Vec<Case> {
    // head_dim and what of it is rotated: whole and in part, in accesses of every width.
    let halves = [(64, 64), (64, 16), (256, 64), (96, 24), (80, 20), (80, 10), (32, 2), (128, 30)];
    let neighbours = [(256, 64), (128, 128), (64, 24), (80, 20), (80, 10), (32, 2)];
    let heads = [(3, 3), (4, 2), (5, 1), (71, 1)];
    let layouts = [
        Layout::Full(2, 1),
        Layout::Full(1, 600),
        Layout::Padded(67, vec![66, 0, 31]),
        Layout::Packed(vec![0, 65, 1, 0, 130]),
    ];
    let of = |dims: &[(usize, usize)], interleaved| -> Vec<_> {
        dims.iter().map(|&(head_dim, dim)| (head_dim, Rotary { dim, base: 1e4, interleaved })).collect()
    };
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (i, (head_dim, rotary)) in of(&halves, false).into_iter().chain(of(&neighbours, true)).enumerate() {
            for (j, layout) in layouts.iter().enumerate() {
                let (heads, key_value_heads) = heads[(i + j) % heads.len()];
                let rotation = name(&rotary);
                let name = format!("rotary {dtype} d{head_dim} {rotation} {layout} heads {heads}/{key_value_heads}");
                let (device, layout) = (device.clone(), layout.clone());
                cases.push(Case::new(name, move || {
                    let config = LayerConfig {
                        num_key_value_heads: key_value_heads,
                        rotary: Some(rotary),
                        ..LayerConfig::new(heads * head_dim, heads, 8)?
                    };
                    check(&device, dtype, &config, &rotary, &layout.shape()?)
                }));
            }
        }
    }
    cases
}

/// As part of a case's name.
pub(super) fn name(rotary: &Rotary) -> String {
    format!("{}{}", if rotary.interleaved { "neighbours" } else { "halves" }, rotary.dim)
}

fn check(
    device: &Device,
    dtype: Dtype,
    config: &LayerConfig,
    rotary: &Rotary,
    shape: &BatchShape,
) -> Result<Comparison> {
    let (rows, width) = (shape.rows(), config.qkv_size());
    let mut qkv = random(dtype, rows, width, 9);
    poison_padding(&mut qkv, shape, width);
    let mut tensor = Tensor::from_host(device, dtype, rows, width, &qkv)?;
    let before = tensor.to_bits()?;
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, shape)?);
    let table = RotaryTable::new(device, rotary, shape.seq_len())?;
    let (heads, key_value_heads) = (config.num_attention_heads, config.num_key_value_heads);
    kernel::rotary(&stream, &batch, heads, key_value_heads, config.head_dim, &table, &mut tensor)?;
    let (mut got, after) = (tensor.to_host()?, tensor.to_bits()?);

    let reference = |rounding| {
        let mut qkv = widen(&qkv);
        oracle::rotate(&mut qkv, config, shape, rounding)?;
        Ok(qkv)
    };
    let (mut exact, mut naive): (Vec<f64>, Vec<f64>) = (reference(Rounding::Exact)?, reference(Rounding::To(dtype))?);
    // Rows of padding, which are NaN, stay as they are.
    for padding in (0..shape.batch()).map(|i| shape.padding_of(i)) {
        let padding = padding.start * width..padding.end * width;
        if before[padding.clone()] != after[padding.clone()] {
            return Err(Error::Verification(format!("rows of padding were written, elements {padding:?}")));
        }
        got[padding.clone()].fill(0.0);
        exact[padding.clone()].fill(0.0);
        naive[padding].fill(0.0);
    }
    compare(&got, &exact, &naive, dtype.epsilon(), width)
}
