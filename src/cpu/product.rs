//! The one door to the `gemm` crate: matrices as strided views into slices, checked, so that the call is safe.

use gemm::Parallelism;
use rayon::prelude::*;

/// A matrix inside a slice: element `(i, j)` is `data[i·row_stride + j·col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Row-major `[rows, cols]` whose rows begin `stride` elements apart.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check_bounds(data.len(), rows, cols, stride);
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transpose; nothing is moved.
    pub(super) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// A matrix to write: row-major, its rows `stride` elements apart.
pub(super) struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> ViewMut<'a> {
    /// Row-major `[rows, cols]` whose rows begin `stride` elements apart.
    pub(super) fn new(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check_bounds(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }
}

/// What a product does with what its destination holds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Onto {
    /// Overwrites it, unread.
    Replace,
    /// Adds to it.
    Add,
}

/// `c = scale·a·b`, or `c += scale·a·b`.
///
/// `gemm` gives each thread whole elements of `c` and sums each of them over the depth in an order that depends on the
/// shapes only. So the result is bitwise the same for any number of threads, and whatever else runs beside it; the
/// engine's tests hold it to that.
pub(super) fn multiply(c: ViewMut<'_>, onto: Onto, scale: f32, a: View<'_>, b: View<'_>, parallelism: Parallelism) {
    assert!(a.rows == c.rows && b.cols == c.cols && a.cols == b.rows, "shapes of a product do not fit");
    // SAFETY: the constructors checked that every element of the three matrices lies inside its slice, which holds
    // initialised numbers; `c` is borrowed exclusively, so that it overlaps neither `a` nor `b`, and its rows do not
    // overlap each other (`stride ≥ cols`). The shapes fit, as asserted, and strides fit `isize`.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            1,
            c.stride as isize,
            onto == Onto::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `y = x·Wᵀ + b` on all threads: `x` is `[rows, k]`, `weight` `[n, k]`, `bias` `[n]`, `y` `[rows, n]`.
pub(crate) fn linear(y: &mut [f32], x: &[f32], rows: usize, weight: &[f32], bias: &[f32]) {
    let (n, k) = (bias.len(), weight.len() / bias.len());
    y.par_chunks_exact_mut(n).for_each(|y| y.copy_from_slice(bias));
    let (x, weight) = (View::new(x, rows, k, k), View::new(weight, n, k, k).transposed());
    multiply(ViewMut::new(y, rows, n, n), Onto::Add, 1.0, x, weight, Parallelism::Rayon(0));
}

fn check_bounds(len: usize, rows: usize, cols: usize, stride: usize) {
    assert!(rows > 0 && cols > 0 && stride >= cols, "[{rows}, {cols}] with stride {stride} is no matrix");
    assert!(isize::try_from(stride).is_ok(), "a stride of {stride} is no pointer offset");
    let end = (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols));
    assert!(
        end.is_some_and(|end| end <= len),
        "[{rows}, {cols}] with stride {stride} does not fit into {len} elements"
    );
}
