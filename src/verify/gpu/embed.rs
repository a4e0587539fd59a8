//! The kernels around the layers against the oracle: sums of tables' rows, gathered rows, pooling, tanh.

use super::{DTYPES, random};
use crate::config::BatchShape;
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::kernel::{self, Indices, Table};
use crate::gpu::{Batch, Device, Floats, Pooling, Stream, Tensor};
use crate::verify::{Case, Comparison, Layout, compare, poison_padding, widen};
use crate::weights::NormWeights;

pub(super) fn cases(device: &Device) -> Vec<Case> {
    let mut cases = embed_cases(device);
    cases.extend(gather_cases(device));
    cases.extend(pool_cases(device));
    cases.extend(tanh_cases(device));
    cases
}

/// Where f32 sums are held to the oracle: a naive sum's error is measured, and beside it stands this for each rounding of the largest
/// value: a sum in another order, one division, one result.
const F32_EPSILON: f64 = 4.0 * f32::EPSILON as f64;

/// Numbers of rows, spread over a table of `table` rows, its first and last among them; of each seventh row there is none.
fn spread(rows: usize, table: usize, seed: usize) -> Vec<Option<usize>> {
    let at = |row: usize| match row {
        0 => table - 1,
        1 => 0,
        _ => (row * 7919 + seed * 31) % table,
    };
    (0..rows).map(|row| (row % 7 != 4 + seed % 3).then(|| at(row))).collect()
}

/// One to three tables, with and without a norm, in every kernel and at its edges.
fn embed_cases(device: &Device) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for hidden in [8, 64, 264, 1000, 1024, 1032, 4096, 4104, 16384] {
            for rows in if hidden <= 1032 { vec![1, 13, 1201] } else { vec![1, 13] } {
                for tables in 1..=3 {
                    for norm in [false, true] {
                        let what = if norm { "norm" } else { "sum" };
                        let name = format!("embed {dtype} {what} of {tables} {rows}x{hidden}");
                        let device = device.clone();
                        cases.push(Case::new(name, move || embed(&device, dtype, [rows, hidden], tables, norm)));
                    }
                }
            }
        }
    }
    cases
}

fn embed(device: &Device, dtype: Dtype, [rows, hidden]: [usize; 2], tables: usize, norm: bool) -> Result<Comparison> {
    const EPS: f32 = 1e-5;
    let heights = [37, 5, 2];
    // A common offset makes a variance that cancels visible.
    let host: Vec<Vec<f32>> = (0..tables)
        .map(|i| random(dtype, heights[i], hidden, i as u64).iter().map(|x| dtype.round(x + 2.0)).collect())
        .collect();
    let indices: Vec<_> = (0..tables).map(|i| spread(rows, heights[i], i)).collect();
    let weights = norm.then(|| NormWeights { gamma: random(dtype, 1, hidden, 10), beta: random(dtype, 1, hidden, 11) });

    let upload = |rows, values: &[f32]| Tensor::from_host(device, dtype, rows, hidden, values);
    let on_device = host.iter().zip(heights).map(|(table, rows)| upload(rows, table)).collect::<Result<Vec<_>>>()?;
    let indices_on_device = indices.iter().map(|rows| Indices::new(device, rows)).collect::<Result<Vec<_>>>()?;
    let of: Vec<_> = on_device.iter().zip(&indices_on_device).map(|(values, rows)| Table { values, rows }).collect();
    let vectors = weights.as_ref().map(|norm| Ok((upload(1, &norm.gamma)?, upload(1, &norm.beta)?))).transpose()?;
    let vectors = vectors.as_ref().map(|(gamma, beta)| (gamma, beta, EPS));
    let mut out = Tensor::poisoned(device, dtype, rows, hidden)?;
    kernel::embed(&Stream::new(device)?, &of, vectors, &mut out)?;

    let reference = |rounding| {
        let addends: Vec<Vec<f64>> = host
            .iter()
            .zip(&indices)
            .map(|(table, rows)| {
                let row =
                    |row: &Option<usize>| row.map_or(vec![0.0; hidden], |row| widen(&table[row * hidden..][..hidden]));
                rows.iter().flat_map(row).collect()
            })
            .collect();
        let addends: Vec<_> = addends.iter().map(Vec::as_slice).collect();
        let mut y = oracle::norm_join(&addends, hidden, weights.as_ref(), EPS, rounding)?;
        for (y, _) in y.chunks_mut(hidden).zip(&indices[0]).filter(|(_, row)| row.is_none()) {
            y.fill(0.0);
        }
        Ok(y)
    };
    let (exact, naive): (Vec<f64>, _) = (reference(Rounding::Exact)?, reference(Rounding::To(dtype))?);
    compare(&out.to_host()?, &exact, &naive, dtype.epsilon(), hidden)
}

/// Rows are copied bit by bit.
fn gather_cases(device: &Device) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (rows, table, hidden) in [(1, 1, 8), (64, 29, 264), (5, 1000, 1024), (67, 3, 4104)] {
            let device = device.clone();
            cases.push(Case::new(format!("gather {dtype} {rows} of {table}x{hidden}"), move || {
                let values: Vec<f32> =
                    random(dtype, table, hidden, 1).iter().map(|&x| if x > 2.0 { -0.0 } else { x }).collect();
                let on_device = Tensor::from_host(&device, dtype, table, hidden, &values)?;
                let rows = spread(rows, table, 1);
                let indices = Indices::new(&device, &rows)?;
                let mut out = Tensor::poisoned(&device, dtype, rows.len(), hidden)?;
                let of = Table { values: &on_device, rows: &indices };
                kernel::embed(&Stream::new(&device)?, &[of], None, &mut out)?;
                let zeros = vec![0.0; hidden];
                let row = |row: &Option<usize>| row.map_or(zeros.as_slice(), |row| &values[row * hidden..][..hidden]);
                let expected: Vec<f32> = rows.iter().flat_map(row).copied().collect();
                let bits: Vec<u16> = expected.iter().map(|&x| dtype.to_bits(x)).collect();
                if out.to_bits()? != bits {
                    return Err(Error::Verification("the bits of gathered rows differ from the table's".into()));
                }
                let exact = widen(&expected);
                compare(&out.to_host()?, &exact, &exact, dtype.epsilon(), hidden)
            }));
        }
    }
    cases
}

/// Means and first rows, over every layout; padding is NaN.
fn pool_cases(device: &Device) -> Vec<Case> {
    let layouts = [
        Layout::Full(1, 1),
        Layout::Full(3, 17),
        Layout::Padded(67, vec![66, 0, 31, 1]),
        Layout::Packed(vec![0, 65, 1, 0, 530, 8, 9, 0]),
        Layout::Packed(vec![1; 300]),
    ];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for hidden in [8, 248, 256, 264, 1032, 16384] {
            for layout in &layouts {
                for pooling in [Pooling::Mean, Pooling::Cls] {
                    let name = format!("pool {dtype} {} {layout} x{hidden}", pooling_name(pooling));
                    let (device, layout) = (device.clone(), layout.clone());
                    cases.push(Case::new(name, move || pool(&device, dtype, pooling, &layout.shape()?, hidden)));
                }
            }
        }
    }
    cases
}

fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Mean => "mean",
        Pooling::Cls => "cls",
    }
}

fn pool(device: &Device, dtype: Dtype, pooling: Pooling, shape: &BatchShape, hidden: usize) -> Result<Comparison> {
    let mut x: Vec<f32> = random(dtype, shape.rows(), hidden, 5).iter().map(|x| dtype.round(x + 1.0)).collect();
    poison_padding(&mut x, shape, hidden);
    let tensor = Tensor::from_host(device, dtype, shape.rows(), hidden, &x)?;
    let mut out = Floats::poisoned(device, shape.batch() * hidden)?;
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, shape)?);
    kernel::pool(&stream, pooling, &batch, &tensor, &mut out)?;

    let exact = oracle::pool(pooling, shape, &widen(&x), hidden, Rounding::Exact)?;
    let mut naive = vec![0.0f32; exact.len()];
    for (i, naive) in naive.chunks_exact_mut(hidden).enumerate() {
        let length = if pooling == Pooling::Mean { shape.length(i) } else { shape.length(i).min(1) };
        for row in x[shape.first_row(i) * hidden..][..length * hidden].chunks_exact(hidden) {
            naive.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        naive.iter_mut().for_each(|sum| *sum /= length.max(1) as f32);
    }
    compare(&out.to_host()?, &exact, &widen(&naive), F32_EPSILON, hidden)
}

fn tanh_cases(device: &Device) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (rows, cols) in [(1, 8), (3, 264), (67, 1032)] {
            let device = device.clone();
            cases.push(Case::new(format!("tanh {dtype} {rows}x{cols}"), move || {
                let mut x: Vec<f32> = random(dtype, rows, cols, 6).iter().map(|x| dtype.round(x * 3.0)).collect();
                (x[0], x[1], x[2]) = (dtype.round(1e-3), dtype.round(-60.0), 0.0);
                let tensor = Tensor::from_host(&device, dtype, rows, cols, &x)?;
                let mut out = Floats::poisoned(&device, rows * cols)?;
                kernel::tanh(&Stream::new(&device)?, &tensor, &mut out)?;
                let exact: Vec<f64> = widen(&x).iter().map(|x| x.tanh()).collect();
                let naive: Vec<f64> = exact.iter().map(|&y| f64::from(y as f32)).collect();
                compare(&out.to_host()?, &exact, &naive, F32_EPSILON, cols)
            }));
        }
    }
    cases
}
