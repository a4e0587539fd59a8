//! Every kernel and every layer against the oracle, on a device.
//!
//! Inputs are random and rounded to the element type; outputs and scratch are NaN before the run; padded rows of the
//! inputs are NaN; sizes are 1, primes, one off a tile.

mod attention;
mod block;
mod embed;
mod expected;
mod gate;
mod layer;
mod model;
mod parts;
mod rotary;

use super::{Case, Comparison, compare, poison_padding, widen};
use crate::config::{BatchShape, HiddenAct};
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::kernel::{self, Cluster, Epilogue, GemmVariant, Norm, Product};
use crate::gpu::tiles::GEMM_SM90_TILES;
use crate::gpu::{Batch, Device, Stream, Tensor};
use crate::weights::{NormWeights, random_activations};
pub use expected::Oracle;
pub use model::check as whole_model;
pub use model::check as model;

const DTYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// Those that products can have after them.
const ACTIVATIONS: [HiddenAct; 3] = [HiddenAct::Gelu, HiddenAct::GeluNew, HiddenAct::Relu];

/// All cases: kernels first, layers last.
pub fn cases(device: &Device) -> Vec<Case> {
    let mut cases = gemm_cases(device);
    cases.extend(beside_cases(device));
    cases.extend(parts::cases(device));
    cases.extend(attention::cases(device));
    cases.extend(rotary::cases(device));
    cases.extend(rotary::product_cases(device));
    cases.extend(gate::cases(device));
    cases.extend(join_cases(device));
    cases.extend(embed::cases(device));
    cases.extend(model::cases(device));
    cases.extend(layer::cases(device));
    cases.extend(block::cases(device));
    cases
}

/// Random values as the device will hold them.
fn random(dtype: Dtype, rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    random_activations(rows, cols, seed).into_iter().map(|x| dtype.round(x)).collect()
}

/// The worse of two comparisons, each measured by its own bound.
fn worse(a: Comparison, b: Comparison) -> Comparison {
    let share = |c: &Comparison| (c.max_error / c.bound).max(c.relative_l2 / c.relative_l2_bound);
    if share(&b) > share(&a) { b } else { a }
}

/// What a GEMM case does beside the product.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Finish {
    Plain,
    NoBias,
    Act(HiddenAct),
    /// Only in the columns from the middle on, which falls amid a tile.
    ActFrom(HiddenAct),
    Residual,
    /// Two pairs of operands, and a bias.
    Pairs,
    /// Two pairs and a residual.
    PairsResidual,
}

impl Finish {
    const ALL: [Self; 9] = [
        Self::Plain,
        Self::NoBias,
        Self::Act(HiddenAct::Gelu),
        Self::Act(HiddenAct::GeluNew),
        Self::Act(HiddenAct::Relu),
        Self::ActFrom(HiddenAct::Gelu),
        Self::Residual,
        Self::Pairs,
        Self::PairsResidual,
    ];

    fn name(self) -> String {
        match self {
            Self::Plain => "bias".into(),
            Self::NoBias => "plain".into(),
            Self::Act(act) => act.name().into(),
            Self::ActFrom(act) => format!("{}-from", act.name()),
            Self::Residual => "residual".into(),
            Self::Pairs => "pairs".into(),
            Self::PairsResidual => "pairs-residual".into(),
        }
    }

    fn has_pairs(self) -> bool {
        matches!(self, Self::Pairs | Self::PairsResidual)
    }

    fn has_residual(self) -> bool {
        matches!(self, Self::Residual | Self::PairsResidual)
    }
}

fn gemm_cases(device: &Device) -> Vec<Case> {
    // One shape meets every epilogue; the others take turns with them. Splits of K need eight steps, which
    // are of 128 in the narrowest tiles; of the last one, some lies within K, or all of one panel behind it.
    const EVERY_FINISH: (usize, usize, usize) = (65, 264, 200);
    const EVERY_FINISH_SPLIT: (usize, usize, usize) = (65, 264, 936);
    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 8, 8), (3, 40, 24), (37, 136, 72), (64, 32, 64), (129, 296, 136), (257, 520, 1032)];
    const SPLIT_SHAPES: [(usize, usize, usize); 4] = [(1, 8, 904), (37, 136, 968), (129, 296, 904), (257, 520, 1032)];
    // More tiles than a persistent kernel has blocks.
    const MANY_TILES: (usize, usize, usize) = (300, 9000, 72);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        // The planner's choice too: it may be any of them, or one that this list has forgotten.
        for (i, variant) in gemm_variants(device).into_iter().map(Some).chain([None]).enumerate() {
            let split = matches!(variant, Some(GemmVariant::Sm90 { cluster: Cluster::Split(_), .. }));
            let persistent = matches!(variant, Some(GemmVariant::Sm90 { cluster: Cluster::Share { .. }, .. }));
            let every = if split { EVERY_FINISH_SPLIT } else { EVERY_FINISH };
            let others: &[_] = if split { &SPLIT_SHAPES } else { &SHAPES };
            let turns = others.iter().chain(persistent.then_some(&MANY_TILES)).enumerate();
            let turns = turns.map(|(j, &shape)| (shape, Finish::ALL[(i + j) % Finish::ALL.len()]));
            for ((m, n, k), finish) in Finish::ALL.map(|finish| (every, finish)).into_iter().chain(turns) {
                let variant_name = variant.map_or("planned".to_owned(), |variant| variant.to_string());
                let name = format!("gemm {dtype} {variant_name} {} {m}x{n}x{k}", finish.name());
                let device = device.clone();
                cases.push(Case::new(name, move || gemm(&device, dtype, variant, finish, (m, n, k))));
            }
        }
    }
    cases
}

/// Products side by side of two inputs: every variant that can, and the planner's choice.
fn beside_cases(device: &Device) -> Vec<Case> {
    let mut cases = Vec::new();
    if !device.uses_hopper_kernels() {
        return cases;
    }
    let of_hopper = gemm_variants(device).into_iter().filter_map(|variant| match variant {
        GemmVariant::Sm90 { tile, cluster, .. } => Some((Some(variant), GEMM_SM90_TILES[tile].n * cluster.shared().0)),
        GemmVariant::Sm80 { .. } => None,
    });
    let variants: Vec<_> = of_hopper.chain([(None, 192)]).collect();
    for dtype in DTYPES {
        // The second A's columns begin where a tile ends, amid one, and amid the only one.
        let places = |width| [(2 * width, width + 8), (width + 40, width + 8), (40, 72)];
        let cases_of = |&(variant, width)| places(width).map(|(column, others)| (variant, column, column + others));
        for (variant, column, n) in variants.iter().flat_map(cases_of) {
            let name = variant.map_or("planned".to_owned(), |variant| variant.to_string());
            let (m, k) = (70, 936);
            let device = device.clone();
            cases.push(Case::new(format!("gemm {dtype} {name} beside {m}x{column}+{}x{k}", n - column), move || {
                let inputs = [1, 2].map(|seed| random(dtype, m, k, seed));
                let (w, bias) = (random(dtype, n, k, 3), random(dtype, 1, n, 4));
                let upload = |rows, cols, values: &[f32]| Tensor::from_host(&device, dtype, rows, cols, values);
                let (a, a_2) = (upload(m, k, &inputs[0])?, upload(m, k, &inputs[1])?);
                let (w_device, bias_device) = (upload(n, k, &w)?, upload(1, n, &bias)?);
                let mut c = Tensor::poisoned(&device, dtype, m, n)?;
                let epilogue = Epilogue::ActivationFrom(HiddenAct::Gelu, column);
                let (beside, bias_device) = (Some((&a_2, column)), Some(&bias_device));
                let product = Product { beside, bias: bias_device, epilogue, variant, ..Product::new(&a, &w_device) };
                kernel::gemm(&Stream::new(&device)?, &product, &mut c)?;
                let reference = |rounding| -> Result<Vec<f64>> {
                    let [mut y, mut other] = inputs.each_ref().map(|a| widen(a));
                    y = oracle::linear(&y, m, &w, Some(&bias), n, k, rounding)?;
                    other = oracle::linear(&other, m, &w, Some(&bias), n, k, rounding)?;
                    for (row, other) in y.chunks_mut(n).zip(other.chunks(n)) {
                        row[column..].copy_from_slice(&other[column..]);
                        oracle::activate(HiddenAct::Gelu, &mut row[column..], rounding);
                    }
                    Ok(y)
                };
                let (exact, naive) = (reference(Rounding::Exact)?, reference(Rounding::To(dtype))?);
                compare(&c.to_host()?, &exact, &naive, dtype.epsilon(), n)
            }));
        }
    }
    cases
}

/// Every tile of every kernel that runs here, with every kind of cluster, and few and many stages.
fn gemm_variants(device: &Device) -> Vec<GemmVariant> {
    // Narrow tiles are for few rows, splits for not too many.
    let rows = [1, 32, 64, 128, 256, 1 << 20];
    let mut variants: Vec<_> = rows.into_iter().flat_map(|m| kernel::gemm_variants(device, m, 1 << 20)).collect();
    // Clusters that the planner leaves aside, but a caller may ask for.
    for (i, variant) in variants.clone().into_iter().enumerate() {
        if let GemmVariant::Sm90 { tile, cluster: Cluster::Share { n: 1, m: 1 }, stages } = variant {
            let other = |cluster, stages| GemmVariant::Sm90 { tile, cluster, stages };
            variants.push(other(Cluster::Share { n: 2, m: 2 }, if i % 2 == 0 { stages } else { 3 }));
            variants.push(other(Cluster::Share { n: 1 + i % 2, m: 2 - i % 2 }, stages));
            let shape = &GEMM_SM90_TILES[tile];
            if shape.splits() && shape.m <= 128 {
                variants.push(other(Cluster::Split(8), 2));
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    variants.retain(|&variant| seen.insert(variant));
    variants
}

fn gemm(
    device: &Device,
    dtype: Dtype,
    variant: Option<GemmVariant>,
    finish: Finish,
    (m, n, k): (usize, usize, usize),
) -> Result<Comparison> {
    let k_2 = if finish.has_pairs() { k / 2 + 16 - k / 2 % 8 } else { 8 };
    let a = random(dtype, m, k, 1);
    // Weights of deviation 1/√k, so that results have deviation 1 at every k.
    let weights = |k: usize, seed| -> Vec<f32> {
        random(dtype, n, k, seed).iter().map(|w| dtype.round(w / (k as f32).sqrt())).collect()
    };
    let w = weights(k, 2);
    let (bias, residual) = (random(dtype, 1, n, 3), random(dtype, m, n, 4));
    let (a_2, w_2) = (random(dtype, m, k_2, 5), weights(k_2, 6));
    let bias = (finish != Finish::NoBias).then_some(bias);

    let upload = |rows, cols, values: &[f32]| Tensor::from_host(device, dtype, rows, cols, values);
    let (a_device, w_device) = (upload(m, k, &a)?, upload(n, k, &w)?);
    let (a_2_device, w_2_device) = (upload(m, k_2, &a_2)?, upload(n, k_2, &w_2)?);
    let bias_device = bias.as_ref().map(|bias| upload(1, n, bias)).transpose()?;
    let residual_device = upload(m, n, &residual)?;
    let mut c = Tensor::poisoned(device, dtype, m, n)?;
    let middle = n / 2 + 3;
    let epilogue = match finish {
        Finish::Plain | Finish::NoBias | Finish::Pairs => Epilogue::None,
        Finish::Act(act) => Epilogue::Activation(act),
        Finish::ActFrom(act) => Epilogue::ActivationFrom(act, middle),
        Finish::Residual | Finish::PairsResidual => Epilogue::Residual(&residual_device),
    };
    let second = finish.has_pairs().then_some((&a_2_device, &w_2_device));
    let stream = Stream::new(device)?;
    let bias_device = bias_device.as_ref();
    let product = Product { second, bias: bias_device, epilogue, variant, ..Product::new(&a_device, &w_device) };
    kernel::gemm(&stream, &product, &mut c)?;
    let got = c.to_host()?;

    let (a, a_2, residual) = (widen(&a), widen(&a_2), widen(&residual));
    let reference = |rounding| {
        let mut y = oracle::linear(&a, m, &w, bias.as_deref(), n, k, rounding)?;
        if finish.has_pairs() {
            let second = oracle::linear(&a_2, m, &w_2, None, n, k_2, rounding)?;
            y = oracle::norm_join(&[&y, &second], n, None, 1.0, rounding)?;
        }
        match finish {
            Finish::Act(act) => oracle::activate(act, &mut y, rounding),
            Finish::ActFrom(act) => y.chunks_mut(n).for_each(|row| oracle::activate(act, &mut row[middle..], rounding)),
            _ => {}
        }
        if finish.has_residual() {
            y = oracle::norm_join(&[&y, &residual], n, None, 1.0, rounding)?;
        }
        Ok(y)
    };
    let (exact, naive): (Vec<f64>, _) = (reference(Rounding::Exact)?, reference(Rounding::To(dtype))?);
    compare(&got, &exact, &naive, dtype.epsilon(), n)
}

fn join_cases(device: &Device) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for hidden in [8, 64, 256, 264, 512, 768, 1000, 1024, 1032, 4096, 4104, 16384] {
            // More rows than the few-rows kernels are for, where the width makes a difference.
            for rows in if hidden <= 1024 { vec![5, 1201] } else { vec![5] } {
                for addends in 1..=3 {
                    for padded in [false, true] {
                        cases.push(join_case(device, dtype, addends, (rows, hidden), padded));
                    }
                }
            }
        }
        // More rows than there is room for at once: each warp or block takes several, padding among them.
        for shape in
            [(8, 9001), (264, 3601), (768, 4801), (1000, 3001), (1024, 2401), (1032, 1201), (4096, 901), (4104, 301)]
        {
            let (hidden, rows) = shape;
            cases.push(join_case(device, dtype, 1 + hidden % 3, (rows, hidden), hidden % 16 == 8 || hidden == 768));
        }
        for (hidden, rows) in [(8, 5), (264, 5), (768, 5), (768, 1201), (1024, 5), (1024, 1201), (4096, 5), (16384, 5)]
        {
            let device = device.clone();
            let name = format!("join {dtype} of constant rows {rows}x{hidden}");
            cases.push(Case::new(name, move || constant_rows(&device, dtype, rows, hidden)));
        }
    }
    cases
}

/// Rows without variance are β, to the bit, whatever their value: nothing but rounding would be multiplied by 1/√ε.
fn constant_rows(device: &Device, dtype: Dtype, rows: usize, hidden: usize) -> Result<Comparison> {
    // Of few binary digits, so that their sum is exact.
    let values: Vec<f32> =
        (0..rows).flat_map(|row| std::iter::repeat_n((row % 100 + 1) as f32 * 1.25, hidden)).collect();
    let (gamma, beta) = (random(dtype, 1, hidden, 10), random(dtype, 1, hidden, 11));
    let upload = |rows, values: &[f32]| Tensor::from_host(device, dtype, rows, hidden, values);
    let (x, gamma, beta_device) = (upload(rows, &values)?, upload(1, &gamma)?, upload(1, &beta)?);
    let mut out = Tensor::poisoned(device, dtype, rows, hidden)?;
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, &BatchShape::new(1, rows)?)?);
    let norm = Norm { out: &mut out, gamma: &gamma, beta: &beta_device };
    kernel::join(&stream, &batch, &[&x], None, None, &mut [norm], 1e-5)?;
    let expected: Vec<f64> = widen(&beta).into_iter().cycle().take(rows * hidden).collect();
    compare(&out.to_host()?, &expected, &expected, dtype.epsilon(), hidden)
}

fn join_case(device: &Device, dtype: Dtype, addends: usize, (rows, hidden): (usize, usize), padded: bool) -> Case {
    let padding = if padded { " padded" } else { "" };
    let device = device.clone();
    Case::new(format!("join {dtype} {addends} addends {rows}x{hidden}{padding}"), move || {
        let shape = BatchShape::new(1, rows)?;
        let shape = if padded { shape.with_lengths(vec![rows - 2])? } else { shape };
        join(&device, dtype, hidden, addends, &shape)
    })
}

fn join(device: &Device, dtype: Dtype, hidden: usize, addends: usize, shape: &BatchShape) -> Result<Comparison> {
    const EPS: f32 = 1e-5;
    let rows = shape.rows();
    let host: Vec<Vec<f32>> = (0..addends as u64)
        .map(|i| {
            // A common offset makes a variance that cancels visible.
            let mut x: Vec<f32> = random(dtype, rows, hidden, i).iter().map(|x| dtype.round(x + 4.0)).collect();
            poison_padding(&mut x, shape, hidden);
            x
        })
        .collect();
    let norm = |seed| NormWeights { gamma: random(dtype, 1, hidden, seed), beta: random(dtype, 1, hidden, seed + 1) };
    let norms = [norm(10), norm(20)];

    let upload = |rows, values: &[f32]| Tensor::from_host(device, dtype, rows, hidden, values);
    let addends_device = host.iter().map(|x| upload(rows, x)).collect::<Result<Vec<_>>>()?;
    let vectors = norms.iter().map(|n| Ok((upload(1, &n.gamma)?, upload(1, &n.beta)?))).collect::<Result<Vec<_>>>()?;
    let poisoned = || Tensor::poisoned(device, dtype, rows, hidden);
    let (mut sum, mut out_1, mut out_2) = (poisoned()?, poisoned()?, poisoned()?);
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, shape)?);
    kernel::join(
        &stream,
        &batch,
        &addends_device.iter().collect::<Vec<_>>(),
        None,
        Some(&mut sum),
        &mut [
            Norm { out: &mut out_1, gamma: &vectors[0].0, beta: &vectors[0].1 },
            Norm { out: &mut out_2, gamma: &vectors[1].0, beta: &vectors[1].1 },
        ],
        EPS,
    )?;

    let host: Vec<Vec<f64>> = host.iter().map(|x| widen(x)).collect();
    let reference = |rounding| {
        let addends: Vec<&[f64]> = host.iter().map(Vec::as_slice).collect();
        [Some(&norms[0]), Some(&norms[1]), None].map(|norm| {
            let mut tensor = oracle::norm_join(&addends, hidden, norm, EPS, rounding)?;
            tensor[shape.length(0) * hidden..].fill(0.0);
            Ok(tensor)
        })
    };
    let references = reference(Rounding::Exact).into_iter().zip(reference(Rounding::To(dtype)));
    let outputs = [out_1, out_2, sum];
    let mut results = Vec::new();
    for (got, (exact, naive)) in outputs.iter().zip(references) {
        let (exact, naive): (Vec<f64>, Vec<f64>) = (exact?, naive?);
        results.push(compare(&got.to_host()?, &exact, &naive, dtype.epsilon(), hidden)?);
    }
    Ok(results.into_iter().reduce(worse).expect("three outputs"))
}
