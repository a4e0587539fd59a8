//! Products that leave sums of parts of K, and the join that adds them up: `LN(residual + [A₁|A₂]·[W₁|W₂]ᵀ + b)`.

use std::collections::HashSet;

use super::super::{Case, Comparison, compare, widen};
use super::{DTYPES, random, worse};
use crate::config::BatchShape;
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::kernel::{self, Cluster, GemmVariant, Norm, Parts, Product};
use crate::gpu::{Batch, Device, Floats, Stream, Tensor};
use crate::weights::NormWeights;

/// Every tile, with each number of parts in turn, few and many stages; fewer tiles than multiprocessors, and more.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    const SHAPES: [(usize, usize, [usize; 2]); 5] =
        [(65, 264, [936, 200]), (1, 8, [904, 8]), (257, 1032, [136, 1160]), (5, 2056, [72, 904]), (2, 4104, [904, 8])];
    let mut variants = Vec::new();
    for m in [1, 32, 64, 128, 256, 1 << 20] {
        variants.extend(kernel::gemm_variants_in_parts(device, m, 1 << 20));
    }
    // A fifth of them still has every tile, every number of parts, alone and in pairs, few and many stages.
    let mut seen = HashSet::new();
    variants.retain(|&variant| {
        let GemmVariant::Sm90 { tile, cluster, stages } = variant else { return false };
        (cluster.parts() + tile + stages + 2 * cluster.blocks()).is_multiple_of(5) && seen.insert(variant)
    });
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (i, &variant) in variants.iter().enumerate() {
            let (m, n, k) = SHAPES[i % SHAPES.len()];
            let device = device.clone();
            let name = format!("gemm {dtype} {variant} {m}x{n}x{}+{}", k[0], k[1]);
            cases.push(Case::new(name, move || parts(&device, dtype, variant, (m, n, k))));
        }
    }
    cases
}

fn parts(
    device: &Device,
    dtype: Dtype,
    variant: GemmVariant,
    (m, n, k): (usize, usize, [usize; 2]),
) -> Result<Comparison> {
    const EPS: f32 = 1e-5;
    let GemmVariant::Sm90 { cluster: Cluster::Parts { parts: count, .. }, .. } = variant else {
        unreachable!("variants in parts")
    };
    let a = [random(dtype, m, k[0], 1), random(dtype, m, k[1], 2)];
    let weights = |k: usize, seed| -> Vec<f32> {
        random(dtype, n, k, seed).iter().map(|w| dtype.round(w / (k as f32).sqrt())).collect()
    };
    let w = [weights(k[0], 3), weights(k[1], 4)];
    let (bias, residual) = (random(dtype, 1, n, 5), random(dtype, m, n, 6));
    let norm = NormWeights { gamma: random(dtype, 1, n, 7), beta: random(dtype, 1, n, 8) };

    let upload = |rows, cols, values: &[f32]| Tensor::from_host(device, dtype, rows, cols, values);
    let (a_1, a_2) = (upload(m, k[0], &a[0])?, upload(m, k[1], &a[1])?);
    let (w_1, w_2) = (upload(n, k[0], &w[0])?, upload(n, k[1], &w[1])?);
    let (bias_device, residual_device) = (upload(1, n, &bias)?, upload(m, n, &residual)?);
    let (gamma, beta) = (upload(1, n, &norm.gamma)?, upload(1, n, &norm.beta)?);
    let mut sums = Floats::poisoned(device, count * m * n)?;
    let (mut sum, mut out) = (Tensor::poisoned(device, dtype, m, n)?, Tensor::poisoned(device, dtype, m, n)?);
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, &BatchShape::new(1, m)?)?);
    let second = Some((&a_2, &w_2));
    let product = Product { second, variant: Some(variant), ..Product::new(&a_1, &w_1) };
    kernel::gemm_in_parts(&stream, &product, &mut sums)?;
    let of = Parts { sums: &sums, count, bias: Some(&bias_device) };
    let norms = &mut [Norm { out: &mut out, gamma: &gamma, beta: &beta }];
    kernel::join(&stream, &batch, &[&residual_device], Some(of), Some(&mut sum), norms, EPS)?;

    let [a_1, a_2, residual] = [&a[0], &a[1], &residual].map(|x| widen(x));
    let reference = |rounding, norm| -> Result<Vec<f64>> {
        let first = oracle::linear(&a_1, m, &w[0], Some(&bias), n, k[0], rounding)?;
        let second = oracle::linear(&a_2, m, &w[1], None, n, k[1], rounding)?;
        oracle::norm_join(&[&residual, &first, &second], n, norm, EPS, rounding)
    };
    let mut results = Vec::new();
    for (got, norm) in [(&sum, None), (&out, Some(&norm))] {
        let (exact, naive) = (reference(Rounding::Exact, norm)?, reference(Rounding::To(dtype), norm)?);
        results.push(compare(&got.to_host()?, &exact, &naive, dtype.epsilon(), n)?);
    }
    Ok(results.into_iter().reduce(worse).expect("two outputs"))
}
