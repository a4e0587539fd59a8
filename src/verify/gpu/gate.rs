//! Gates of gated FFNs against the oracle.

use super::{DTYPES, random};
use crate::config::HiddenAct;
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::gpu::kernel;
use crate::gpu::{Device, Stream, Tensor};
use crate::verify::{Case, Comparison, compare, widen};

/// Every activation; columns of one vector, of odd numbers of them, of a block's, one vector off, and of several blocks'.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for act in HiddenAct::ALL {
            for (rows, cols) in [(1, 8), (3, 24), (67, 328), (5, 2040), (2, 2048), (13, 2056), (3, 22528), (1031, 8)] {
                let device = device.clone();
                let name = format!("gate {dtype} {act} {rows}x{cols}");
                cases.push(Case::new(name, move || gate(&device, dtype, act, rows, cols)));
            }
        }
    }
    cases
}

fn gate(device: &Device, dtype: Dtype, act: HiddenAct, rows: usize, cols: usize) -> Result<Comparison> {
    let mut both: Vec<f32> = random(dtype, rows, 2 * cols, 5).iter().map(|x| dtype.round(x * 2.0)).collect();
    // Gates that are shut, open, and where exponentials leave fp32's range.
    for (x, extreme) in both.iter_mut().zip([0.0, -0.0, 30.0, -30.0, 100.0, -100.0, -88.0]) {
        *x = dtype.round(extreme);
    }
    let tensor = Tensor::from_host(device, dtype, rows, 2 * cols, &both)?;
    let mut out = Tensor::poisoned(device, dtype, rows, cols)?;
    kernel::gate(&Stream::new(device)?, act, &tensor, &mut out)?;

    let reference = |rounding: Rounding| -> Vec<f64> {
        let halves = both.chunks_exact(2 * cols).map(|row| row.split_at(cols));
        let (gates, inner): (Vec<_>, Vec<_>) = halves.map(|(gates, inner)| (widen(gates), widen(inner))).unzip();
        let mut y = gates.concat();
        oracle::activate(act, &mut y, rounding);
        y.iter_mut().zip(inner.concat()).for_each(|(y, inner)| *y = rounding.apply(*y * inner));
        y
    };
    let (exact, naive) = (reference(Rounding::Exact), reference(Rounding::To(dtype)));
    compare(&out.to_host()?, &exact, &naive, dtype.epsilon(), cols)
}
