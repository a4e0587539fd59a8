//! Where attention becomes the more expensive block.

use crate::config::LayerConfig;

/// The `seq_len` at which the attention block takes as many FLOPs as the FFN block: it takes more of every longer sequence. `None` if it
/// does so of any sequence.
///
/// From `2n(qkv·h + h·q) + 4n²q = 2n(first + f)h`, with half the pairs and the diagonal under a causal mask.
pub fn crossover_seq_len(config: &LayerConfig) -> Option<f64> {
    let h = config.hidden_size as f64;
    let ffn = (config.first_size() + config.intermediate_size) as f64 * h;
    let projections = (config.qkv_size() + config.query_size()) as f64 * h;
    let q = config.query_size() as f64;
    let seq_len = if config.causal { (ffn - projections) / q - 1.0 } else { (ffn - projections) / (2.0 * q) };
    (seq_len > 0.0).then_some(seq_len)
}
