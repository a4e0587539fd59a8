//! Launcher of kernels/gemm_sm80.cu: `C[M,N] = epilogue(A[M,K] · W[N,K]ᵀ + b)`.

use bytemuck::NoUninit;

use super::device::Stream;
use super::launch::{Grid, Kernels};
use super::memory::Matrix;
use super::plan;
use super::tiles::GEMM_TILES;
use crate::config::HiddenAct;
use crate::error::{Error, Result};

/// What happens to the product before it is rounded and stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Epilogue {
    Bias,
    BiasActivation,
    BiasResidual,
}

impl Epilogue {
    pub(super) const ALL: [Self; 3] = [Self::Bias, Self::BiasActivation, Self::BiasResidual];
    pub(super) const COUNT: usize = Self::ALL.len();

    /// As in the kernels' names.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bias => "bias",
            Self::BiasActivation => "bias_activation",
            Self::BiasResidual => "bias_residual",
        }
    }
}

/// The epilogue with its operand.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    /// `+ b`
    Bias,
    /// `act(· + b)`
    Activation(HiddenAct),
    /// `+ b + R`, R of C's shape and stride; R may be C itself
    Residual(Matrix),
}

/// One product. `bias` is the pointer to N elements, or 0 for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gemm {
    pub(super) a: Matrix,
    pub(super) w: Matrix,
    pub(super) bias: u64,
    pub(super) then: Then,
    pub(super) c: Matrix,
    /// Row of [`GEMM_TILES`] to use instead of the planned one.
    pub(super) tile: Option<usize>,
}

/// `GemmParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Params {
    a: u64,
    w: u64,
    bias: u64,
    residual: u64,
    c: u64,
    m: i32,
    n: i32,
    k: i32,
    lda: i32,
    ldw: i32,
    ldc: i32,
    activation: i32,
    group_m: i32,
}

/// Launches the product on `stream`.
///
/// # Safety
/// The matrices (and the bias) are live on the stream's device until the stream has run the kernel, and nothing else
/// writes what it reads, or touches what it writes, meanwhile.
pub(super) unsafe fn launch(kernels: &Kernels, stream: &Stream, gemm: &Gemm) -> Result<()> {
    gemm.check()?;
    let (m, n, k) = (gemm.c.rows, gemm.c.cols, gemm.a.cols);
    let multiprocessors = stream.device().info().multiprocessors as usize;
    let index = match gemm.tile {
        Some(index) => index,
        None => plan::gemm_tile(m, n, k, multiprocessors, |index| kernels.gemm[index].is_some()),
    };
    let tile = &GEMM_TILES[index];
    let (epilogue, activation, residual) = match gemm.then {
        Then::Bias => (Epilogue::Bias, 0, 0),
        Then::Activation(act) => (Epilogue::BiasActivation, activation_number(act), 0),
        Then::Residual(residual) => (Epilogue::BiasResidual, 0, residual.pointer),
    };
    let function = kernels.gemm.get(index).and_then(Option::as_ref).ok_or_else(|| Error::Unsupported {
        what: format!("GEMM tile {} ({} bytes of shared memory)", tile.name, tile.shared_bytes()),
        remedy: "choose a smaller tile for this device".into(),
    })?;
    let parameters = Params {
        a: gemm.a.pointer,
        w: gemm.w.pointer,
        bias: gemm.bias,
        residual,
        c: gemm.c.pointer,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        lda: gemm.a.stride as i32,
        ldw: gemm.w.stride as i32,
        ldc: gemm.c.stride as i32,
        activation,
        group_m: plan::GROUP_M as i32,
    };
    let grid = Grid { x: m.div_ceil(tile.m) * n.div_ceil(tile.n), y: 1 };
    // SAFETY: `Params` mirrors the kernel's struct; shapes were checked above; liveness is the caller's promise.
    unsafe { function[epilogue as usize].launch(stream, grid, &parameters) }
}

/// As numbered in kernels/activation.cuh.
fn activation_number(act: HiddenAct) -> i32 {
    match act {
        HiddenAct::Gelu => 0,
        HiddenAct::GeluNew => 1,
        HiddenAct::Relu => 2,
    }
}

impl Gemm {
    fn check(&self) -> Result<()> {
        const OPERATION: &str = "gemm";
        let Self { a, w, c, bias, .. } = self;
        let shape = |matrix: &Matrix| format!("{} × {}", matrix.rows, matrix.cols);
        if a.cols != w.cols || w.rows != c.cols || a.rows != c.rows {
            return Err(Error::mismatch(
                OPERATION,
                "shapes",
                format!("A {}, W {}, C {}", shape(a), shape(w), shape(c)),
                "A M×K, W N×K, C M×N",
            ));
        }
        if a.rows == 0 || a.cols == 0 || c.cols == 0 || !a.cols.is_multiple_of(8) || !c.cols.is_multiple_of(8) {
            return Err(Error::mismatch(
                OPERATION,
                "M, N, K",
                format!("{}, {}, {}", c.rows, c.cols, a.cols),
                "none 0, N and K multiples of 8",
            ));
        }
        for (what, matrix) in [("A", a), ("W", w), ("C", c)] {
            matrix.check_aligned(OPERATION, what)?;
        }
        if !bias.is_multiple_of(16) {
            return Err(Error::mismatch(OPERATION, "bias", format!("at {bias:#x}"), "a 16-byte aligned pointer"));
        }
        if c.overlaps(a) || c.overlaps(w) {
            return Err(Error::mismatch(
                OPERATION,
                "C",
                format!("at {:#x}, overlapping A at {:#x} or W at {:#x}", c.pointer, a.pointer, w.pointer),
                "memory of its own",
            ));
        }
        if let Then::Residual(r) = self.then {
            if (r.rows, r.cols, r.stride) != (c.rows, c.cols, c.stride) {
                return Err(Error::mismatch(OPERATION, "residual", shape(&r), format!("{} with C's stride", shape(c))));
            }
            r.check_aligned(OPERATION, "residual")?;
            if r != *c && r.overlaps(c) {
                return Err(Error::mismatch(
                    OPERATION,
                    "residual",
                    format!("at {:#x}, partly overlapping C at {:#x}", r.pointer, c.pointer),
                    "C itself or memory of its own",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(pointer: u64, rows: usize, cols: usize) -> Matrix {
        Matrix { pointer, rows, cols, stride: cols }
    }

    fn gemm() -> Gemm {
        Gemm {
            a: matrix(0x10_0000, 5, 64),
            w: matrix(0x20_0000, 24, 64),
            bias: 0,
            then: Then::Bias,
            c: matrix(0x30_0000, 5, 24),
            tile: None,
        }
    }

    #[test]
    fn bad_shapes_and_aliases_are_refused_with_their_values() {
        gemm().check().unwrap();
        let r = gemm().c;
        Gemm { then: Then::Residual(r), ..gemm() }.check().unwrap();
        let cases = [
            (Gemm { w: matrix(0x20_0000, 24, 72), ..gemm() }, "24 × 72"),
            (Gemm { c: matrix(0x30_0000, 6, 24), ..gemm() }, "6 × 24"),
            (Gemm { c: matrix(0x10_0000, 5, 24), ..gemm() }, "overlapping A"),
            (Gemm { bias: 0x104, ..gemm() }, "0x104"),
            (Gemm { then: Then::Residual(matrix(0x40_0000, 5, 32)), ..gemm() }, "5 × 32"),
            (Gemm { then: Then::Residual(matrix(0x30_0010, 5, 24)), ..gemm() }, "partly overlapping"),
            (Gemm { a: matrix(0x10_0000, 5, 60), w: matrix(0x20_0000, 24, 60), ..gemm() }, "5, 24, 60"),
        ];
        for (bad, part) in cases {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
