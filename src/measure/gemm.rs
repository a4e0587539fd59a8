//! The GEMM beside cuBLASLt, over the shapes of transformer layers.

#[cfg(feature = "cuda")]
mod experiment;
mod report;

#[cfg(feature = "cuda")]
pub use experiment::Experiment;
#[cfg(feature = "cuda")]
pub(super) use report::PRODUCT;
pub use report::{Case, Report, SCHEMA, Shape};

/// The products of transformer layers: those of RoBERTa-large at six numbers of tokens; its side-by-side products; and QKV,
/// output and FFN products of hidden sizes 2048 and 4096, for one token to 8192.
pub fn layer_shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for m in [64, 128, 512, 2048, 4096, 16384] {
        shapes.extend([(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)].map(|(n, k)| (m, n, k)));
    }
    let mut wide = vec![(7168, 1024), (1024, 5120)];
    for hidden in [2048, 4096] {
        wide.extend([(3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden)]);
    }
    for m in [1, 16, 128, 512, 2048, 8192] {
        shapes.extend(wide.iter().map(|&(n, k)| (m, n, k)));
    }
    shapes
}
