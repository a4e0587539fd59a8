//! The rotary embedding's kernels against the oracle, and products that rotate against these.

use super::{DTYPES, gemm_variants, random};
use crate::config::{BatchShape, HiddenAct, LayerConfig, Rotary};
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::kernel::{self, Epilogue, GemmVariant, Product, RotaryTable, Rotate};
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

/// Every product that can rotate heads of some widths. A tile's border is amid a head, or amid those that are rotated.
pub(super) fn product_cases(device: &Device) -> Vec<Case> {
    let heads_of = [
        (128, Rotary { dim: 32, base: 1e4, interleaved: false }),
        (64, Rotary { dim: 64, base: 1e4, interleaved: false }),
        (32, Rotary { dim: 16, base: 1e4, interleaved: false }),
        (256, Rotary { dim: 64, base: 1e4, interleaved: true }),
        (128, Rotary { dim: 128, base: 1e4, interleaved: true }),
        (32, Rotary { dim: 32, base: 1e4, interleaved: true }),
    ];
    let layouts = [Layout::Full(2, 67), Layout::Padded(70, vec![70, 0, 31]), Layout::Packed(vec![3, 65, 1, 0, 130])];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (i, variant) in gemm_variants(device).into_iter().enumerate() {
            let rotating = heads_of.iter().filter(|(head_dim, rotary)| kernel::rotates(variant, rotary, *head_dim));
            for (j, &(head_dim, rotary)) in rotating.enumerate() {
                let layout = layouts[(i + j) % layouts.len()].clone();
                let name = format!("gemm {dtype} {variant} d{head_dim} {} {layout}", name(&rotary));
                let device = device.clone();
                cases.push(Case::new(name, move || {
                    check_product(&device, dtype, variant, head_dim, &rotary, &layout.shape()?)
                }));
            }
        }
    }
    cases
}

/// A product of five rotated heads and 72 columns more, which have an activation, against one that is rotated afterwards: the same
/// to the bit.
fn check_product(
    device: &Device,
    dtype: Dtype,
    variant: GemmVariant,
    head_dim: usize,
    rotary: &Rotary,
    shape: &BatchShape,
) -> Result<Comparison> {
    const HEADS: usize = 5;
    let (m, n, k) = (shape.rows(), HEADS * head_dim + 72, 936);
    let upload = |rows, cols, seed| Tensor::from_host(device, dtype, rows, cols, &random(dtype, rows, cols, seed));
    let (a, w, bias) = (upload(m, k, 1)?, upload(n, k, 2)?, upload(1, n, 3)?);
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, shape)?);
    let table = RotaryTable::new(device, rotary, shape.seq_len())?;
    let epilogue = Epilogue::ActivationFrom(HiddenAct::Gelu, HEADS * head_dim);
    let plain = Product { bias: Some(&bias), epilogue, variant: Some(variant), ..Product::new(&a, &w) };
    let rotate = Rotate { batch: &batch, table: &table, heads: HEADS, head_dim };

    let (mut at_once, mut afterwards) =
        (Tensor::poisoned(device, dtype, m, n)?, Tensor::poisoned(device, dtype, m, n)?);
    kernel::gemm(&stream, &Product { rotate: Some(rotate), ..plain }, &mut at_once)?;
    kernel::gemm(&stream, &plain, &mut afterwards)?;
    let unrotated = afterwards.to_bits()?;
    kernel::rotate(&stream, &rotate, &mut afterwards)?;
    let (at_once_bits, afterwards_bits) = (at_once.to_bits()?, afterwards.to_bits()?);
    let (mut got, mut expected) = (at_once.to_host()?, afterwards.to_host()?);
    if at_once_bits == unrotated {
        return Err(Error::Verification("nothing was rotated".into()));
    }
    for i in 0..shape.batch() {
        let valid = shape.first_row(i) * n..(shape.first_row(i) + shape.length(i)) * n;
        if let Some(at) = valid.clone().find(|&at| at_once_bits[at] != afterwards_bits[at]) {
            let (row, column, got, expected) = (at / n, at % n, got[at], expected[at]);
            return Err(Error::Verification(format!(
                "row {row}, column {column}: {got}, rotated afterwards {expected}"
            )));
        }
        // What becomes of padding is nobody's business.
        let padding = shape.padding_of(i);
        got[padding.start * n..padding.end * n].fill(0.0);
        expected[padding.start * n..padding.end * n].fill(0.0);
    }
    compare(&got, &widen(&expected), &widen(&expected), dtype.epsilon(), n)
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
    let rotate = Rotate { batch: &batch, table: &table, heads: heads + key_value_heads, head_dim: config.head_dim };
    kernel::rotate(&stream, &rotate, &mut tensor)?;
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
