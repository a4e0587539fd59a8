//! `paf models`.

use anyhow::Result;
use paf_cuda::config::{MODELS, preset};

use super::output::print;

pub fn run() -> Result<()> {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header([
        "model",
        "design",
        "layers",
        "hidden_size",
        "heads",
        "kv heads",
        "head_dim",
        "intermediate_size",
        "hidden_act",
        "rotary",
        "parameters, M",
    ]);
    for name in MODELS {
        let config = preset(name)?.config;
        let layer = &config.layer;
        let parameters = (config.num_hidden_layers * layer.parameters()) as f64 / 1e6;
        table.add_row([
            name.to_owned(),
            layer.design.to_string(),
            config.num_hidden_layers.to_string(),
            layer.hidden_size.to_string(),
            layer.num_attention_heads.to_string(),
            layer.num_key_value_heads.to_string(),
            layer.head_dim.to_string(),
            layer.intermediate_size.to_string(),
            format!("{}{}", layer.hidden_act, if layer.gated { ", gated" } else { "" }),
            layer.rotary.map_or_else(
                || "–".to_owned(),
                |rotary| format!("{}{}", rotary.dim, if rotary.interleaved { " interleaved" } else { "" }),
            ),
            format!("{parameters:.1}"),
        ]);
    }
    print(&format!("{table}\n"))
}
