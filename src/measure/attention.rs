//! Attention beside PyTorch's: its cuDNN and FlashAttention-2 back ends, which run in a process of their own and take turns
//! with ours.

#[cfg(feature = "cuda")]
mod experiment;
#[cfg(feature = "cuda")]
mod peer;
mod report;

#[cfg(feature = "cuda")]
pub use experiment::Experiment;
#[cfg(feature = "cuda")]
pub use peer::{Peer, Prepared, Rotation};
pub use report::{Case, PeerVersion, Report, SCHEMA, Shape};

/// Few and many queries, head_dim 64 and 128, with and without a causal mask; other widths; grouped heads.
pub fn layer_shapes() -> Vec<Shape> {
    let full = |(batch, heads, seq_len, head_dim)| Shape {
        batch,
        heads,
        key_value_heads: heads,
        seq_len,
        head_dim,
        causal: false,
    };
    let causal = |shape| Shape { causal: true, ..full(shape) };
    vec![
        full((1, 16, 128, 64)),
        full((1, 16, 512, 64)),
        full((8, 16, 512, 64)),
        full((32, 16, 512, 64)),
        full((4, 16, 2048, 64)),
        full((1, 16, 8192, 64)),
        causal((4, 16, 4096, 64)),
        full((1, 16, 2048, 128)),
        full((4, 16, 4096, 128)),
        causal((4, 16, 4096, 128)),
        full((2, 16, 16384, 128)),
        full((4, 16, 2048, 80)),
        full((4, 16, 2048, 96)),
        full((4, 16, 2048, 256)),
        Shape { key_value_heads: 8, ..causal((1, 32, 4096, 128)) },
    ]
}
