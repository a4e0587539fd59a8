//! The attention kernels against the oracle: context and log-sum-exp.

use super::{DTYPES, random, worse};
use crate::config::{BatchShape, LayerConfig};
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::kernel::{self, Attention, AttentionVariant};
use crate::gpu::{Batch, Device, Floats, Stream, Tensor};
use crate::verify::{Case, Comparison, Layout, compare, poison_padding, widen};

const HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// Query heads, and key and value heads: as many, half, a third and an eighth of them; one for all; one alone.
const HEADS: [(usize, usize); 6] = [(3, 3), (4, 2), (6, 2), (8, 1), (5, 1), (1, 1)];

/// One attention, at some shape.
#[derive(Debug, Clone, Copy)]
struct Setup {
    dtype: Dtype,
    head_dim: usize,
    heads: (usize, usize),
    causal: bool,
    variant: Option<AttentionVariant>,
}

pub(super) fn cases(device: &Device) -> Vec<Case> {
    // Every kernel meets these, with and without a causal mask.
    let layouts = [
        Layout::Full(2, 1),
        Layout::Full(1, 64),
        Layout::Padded(65, vec![65, 0]),
        Layout::Full(1, 129),
        Layout::Padded(200, vec![199, 1, 131]),
        Layout::Full(1, 513),
        Layout::Packed(vec![0, 70, 1, 0, 129, 3, 0]),
    ];
    // These take turns with them: one token, primes, both sides of every tile's edge, few and many steps along the keys.
    let lengths = [1, 7, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1000].map(|len| Layout::Full(1, len));
    let odd = [
        Layout::Packed(vec![1]),
        Layout::Packed(vec![64, 128, 256]),
        Layout::Packed(vec![127, 0, 0, 65, 1, 33]),
        Layout::Packed(vec![1; 40]),
        Layout::Packed(vec![0, 513, 2]),
        Layout::Padded(129, vec![0, 128, 0, 129]),
    ];
    let turns: Vec<_> = lengths.into_iter().chain(odd).collect();
    // How many of `turns` one kernel gets, with and without a causal mask.
    const TURNS: usize = 4;

    let mut cases = Vec::new();
    let mut turn = 0;
    for dtype in DTYPES {
        for head_dim in HEAD_DIMS {
            for variant in kernel::attention_variants(device, head_dim).into_iter().map(Some).chain([None]) {
                for causal in [false, true] {
                    for (i, layout) in layouts.iter().enumerate() {
                        let heads = HEADS[(turn + i) % HEADS.len()];
                        let setup = Setup { dtype, head_dim, heads, causal, variant };
                        cases.push(case(device, setup, layout.clone()));
                    }
                    for layout in turns.iter().cycle().skip(turn * TURNS % turns.len()).take(TURNS) {
                        // Shifted with each round of `turns`, so that a layout meets other heads in the next.
                        let heads = HEADS[(turn + turn / turns.len()) % HEADS.len()];
                        let setup = Setup { dtype, head_dim, heads, causal, variant };
                        cases.push(case(device, setup, layout.clone()));
                    }
                    turn += 1;
                }
            }
        }
    }
    // A case that came up twice has one name.
    let mut seen = std::collections::HashSet::new();
    cases.retain(|case| seen.insert(case.name.clone()));
    cases
}

fn case(device: &Device, setup: Setup, layout: Layout) -> Case {
    let Setup { dtype, head_dim, heads: (heads, key_value_heads), causal, variant } = setup;
    let variant = variant.map_or("planned".to_owned(), |variant| variant.to_string());
    let mask = if causal { "causal" } else { "full" };
    let name = format!("attention {dtype} d{head_dim} {variant} {mask} {layout} heads {heads}/{key_value_heads}");
    let device = device.clone();
    Case::new(name, move || setup.check(&device, &layout.shape()?))
}

impl Setup {
    /// Context and log-sum-exp against the oracle's.
    fn check(self, device: &Device, shape: &BatchShape) -> Result<Comparison> {
        let Self { dtype, head_dim, heads: (heads, key_value_heads), causal, variant } = self;
        let config = LayerConfig {
            num_attention_heads: heads,
            num_key_value_heads: key_value_heads,
            causal,
            ..LayerConfig::new(heads * head_dim, heads, 8)?
        };
        let mut qkv = random(dtype, shape.rows(), config.qkv_size(), 5);
        poison_padding(&mut qkv, shape, config.qkv_size());
        let qkv_device = Tensor::from_host(device, dtype, shape.rows(), config.qkv_size(), &qkv)?;
        let mut out = Tensor::poisoned(device, dtype, shape.rows(), config.query_size())?;
        let mut sums = Floats::poisoned(device, heads * shape.rows())?;
        let (stream, batch) = (Stream::new(device)?, Batch::new(device, shape)?);
        let attention =
            Attention { key_value_heads, causal, variant, ..Attention::new(&batch, &qkv_device, heads, head_dim) };
        kernel::attention(&stream, &attention, &mut out, Some(&mut sums))?;
        let got = out.to_host()?;
        // It may be left out, and changes nothing.
        out.poison()?;
        kernel::attention(&stream, &attention, &mut out, None)?;
        let again = out.to_host()?;
        if let Some(i) = got.iter().zip(&again).position(|(a, b)| a.to_bits() != b.to_bits()) {
            let (a, b) = (got[i], again[i]);
            return Err(Error::Verification(format!("element {i} is {a} with log-sum-exp, {b} without")));
        }

        let qkv = widen(&qkv);
        let exact = oracle::attention(&qkv, &config, shape, Rounding::Exact)?;
        let naive = oracle::attention(&qkv, &config, shape, Rounding::To(dtype))?;
        let context = compare(&got, &exact, &naive, dtype.epsilon(), config.query_size())?;
        let exact = oracle::log_sum_exp(&qkv, &config, shape)?;
        Ok(worse(context, compare_sums(&sums.to_host()?, &exact, shape.rows())?))
    }
}

/// Log-sum-exps are f32 and made of f32 sums of exact products: what a 16-bit implementation is off by is no measure for
/// them. In its place stand 2·10⁻⁶ of 1 + |x|, which is a few dozen roundings of f32: of a score, and of the sum.
fn compare_sums(got: &[f32], exact: &[f64], rows: usize) -> Result<Comparison> {
    if let Some(i) = got.iter().zip(exact).position(|(got, exact)| got.is_infinite() != exact.is_infinite()) {
        return Err(Error::Verification(format!(
            "log-sum-exp of head {}, row {} is {}, expected {}",
            i / rows,
            i % rows,
            got[i],
            exact[i]
        )));
    }
    // What is −∞ in both is rows of padding.
    let got: Vec<f32> = got.iter().map(|&x| if x == f32::NEG_INFINITY { 0.0 } else { x }).collect();
    let exact: Vec<f64> = exact.iter().map(|&x| if x == f64::NEG_INFINITY { 0.0 } else { x }).collect();
    let naive: Vec<f64> = exact.iter().map(|x| x + 2e-6 * (1.0 + x.abs())).collect();
    compare(&got, &exact, &naive, f64::from(f32::EPSILON), rows)
}
