//! The oracle and the f32 engine against what PyTorch computed in float64: `golden/make.py` made the files, and says
//! what they hold.

mod common;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use common::{check_f32, run, widen};
use paf_cuda::config::Rotary;
use paf_cuda::cpu::{Encoder, oracle};
use paf_cuda::weights::{LayerWeights, NormWeights};
use paf_cuda::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig};
use safetensors::{Dtype, SafeTensors};

/// Relative to the largest value. Both sides compute in f64 and differ in the order of their sums only, the longest of
/// which has 512 terms: each is off by a few dozen of f64's ε = 2.2e-16 at most.
const ORACLE_TOLERANCE: f64 = 1e-13;

struct Golden {
    name: String,
    config: EncoderConfig,
    layers: Vec<LayerWeights>,
    shape: BatchShape,
    x: Vec<f32>,
    y: Vec<f64>,
}

impl Golden {
    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let config: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["config"]).unwrap();
        let number = |key: &str| config[key].as_u64().unwrap() as usize;
        let heads = number("num_attention_heads");
        // Not in every file.
        let rotary = config.get("rotary").map(|rotary| Rotary {
            dim: rotary["dim"].as_u64().unwrap() as usize,
            base: rotary["base"].as_f64().unwrap() as f32,
            interleaved: rotary["interleaved"].as_bool().unwrap(),
        });
        let layer = LayerConfig {
            hidden_size: number("hidden_size"),
            num_attention_heads: heads,
            num_key_value_heads: config.get("num_key_value_heads").map_or(heads, |n| n.as_u64().unwrap() as usize),
            head_dim: number("head_dim"),
            intermediate_size: number("intermediate_size"),
            layer_norm_eps: config["layer_norm_eps"].as_f64().unwrap() as f32,
            hidden_act: config["hidden_act"].as_str().unwrap().parse().unwrap(),
            gated: config.get("gated").is_some_and(|gated| gated.as_bool().unwrap()),
            design: Design::ALL.into_iter().find(|design| config["design"] == design.name()).unwrap(),
            causal: config["causal"].as_bool().unwrap(),
            rotary,
        };
        let config = EncoderConfig { layer, num_hidden_layers: number("num_hidden_layers") };
        let layer = &config.layer;

        let f32s = |name: &str| elements(&tensors, name, Dtype::F32, f32::from_le_bytes);
        let layers = (0..config.num_hidden_layers)
            .map(|l| {
                let field = |name: &str| f32s(&format!("{l}.{name}"));
                let of_gate = |name: &str| if layer.gated { field(name) } else { Vec::new() };
                let norm = |name: &str| NormWeights {
                    gamma: field(&format!("{name}.gamma")),
                    beta: field(&format!("{name}.beta")),
                };
                LayerWeights {
                    w_qkv: field("w_qkv"),
                    b_qkv: field("b_qkv"),
                    w_o: field("w_o"),
                    b_o: field("b_o"),
                    w_1: field("w_1"),
                    b_1: field("b_1"),
                    w_gate: of_gate("w_gate"),
                    b_gate: of_gate("b_gate"),
                    w_2: field("w_2"),
                    b_2: field("b_2"),
                    ln_1: norm("ln_1"),
                    ln_2: norm("ln_2"),
                }
            })
            .collect();
        let &[batch, seq_len, _] = tensors.tensor("x").unwrap().shape() else { panic!("x has three dimensions") };
        let lengths = elements(&tensors, "lengths", Dtype::I64, i64::from_le_bytes);
        let lengths = lengths.into_iter().map(|length| length as usize).collect();
        Self {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            config,
            layers,
            shape: BatchShape::new(batch, seq_len).unwrap().with_lengths(lengths).unwrap(),
            x: f32s("x"),
            y: elements(&tensors, "y", Dtype::F64, f64::from_le_bytes),
        }
    }

    fn all() -> Vec<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).map(Self::read).collect()
    }
}

fn elements<T, const N: usize>(tensors: &SafeTensors, name: &str, dtype: Dtype, parse: fn([u8; N]) -> T) -> Vec<T> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), dtype, "{name}");
    tensor.data().as_chunks().0.iter().map(|&bytes| parse(bytes)).collect()
}

#[test]
fn the_files_cover_designs_masks_activations_and_head_dims() {
    let goldens = Golden::all();
    let layers = || goldens.iter().map(|golden| &golden.config.layer);
    let masked: HashSet<_> = layers().map(|layer| (layer.design, layer.causal)).collect();
    assert_eq!(masked.len(), 2 * Design::ALL.len());
    let acts: HashSet<_> = layers().map(|layer| layer.hidden_act).collect();
    assert_eq!(acts.len(), HiddenAct::ALL.len());
    let gated = layers().filter(|layer| layer.gated).map(|layer| layer.design).collect::<HashSet<_>>();
    assert!(gated.contains(&Design::PafPreNorm) && gated.contains(&Design::SafPostNorm), "{gated:?}");
    let head_dims: HashSet<_> = layers().map(|layer| layer.head_dim).collect();
    assert!(head_dims.is_superset(&HashSet::from([32, 64, 80, 96, 128])));
    assert!(goldens.iter().any(|golden| golden.shape.lengths().unwrap().contains(&0)));
    assert!(goldens.iter().any(|golden| golden.config.num_hidden_layers > 1));
    for golden in goldens {
        let nan = golden.x.iter().filter(|x| x.is_nan()).count();
        let padding = golden.shape.rows() - golden.shape.tokens();
        assert_eq!(nan, padding * golden.config.layer.hidden_size, "{}: padding is NaN, nothing else", golden.name);
    }
}

#[test]
fn the_oracle_agrees_with_pytorch() {
    for Golden { name, config, layers, shape, x, y } in Golden::all() {
        let got = oracle::encoder(&config, &layers, &widen(&x), &shape, oracle::Rounding::Exact).unwrap();
        let largest = y.iter().fold(0.0, |max: f64, y| max.max(y.abs()));
        assert_eq!(got.len(), y.len());
        for (i, (got, expected)) in got.iter().zip(&y).enumerate() {
            let error = (got - expected).abs() / largest;
            assert!(error <= ORACLE_TOLERANCE, "{name}: element {i} is {got}, expected {expected}");
        }
    }
}

/// The same without the rows of padding.
#[test]
fn the_oracle_agrees_with_pytorch_on_packed_sequences() {
    for Golden { name, config, layers, shape, x, y } in Golden::all() {
        let size = config.layer.hidden_size;
        let tokens = || (0..shape.batch()).map(|i| shape.first_row(i) * size..shape.padding_of(i).start * size);
        let packed = BatchShape::packed(shape.lengths().unwrap().to_vec()).unwrap();
        let x: Vec<f64> = tokens().flat_map(|tokens| widen(&x[tokens])).collect();
        let y: Vec<f64> = tokens().flat_map(|tokens| y[tokens].to_vec()).collect();
        let got = oracle::encoder(&config, &layers, &x, &packed, oracle::Rounding::Exact).unwrap();
        let largest = y.iter().fold(0.0, |max: f64, y| max.max(y.abs()));
        assert_eq!(got.len(), y.len());
        let errors = got.iter().zip(&y).map(|(got, expected)| (got - expected).abs() / largest);
        assert!(errors.fold(0.0, f64::max) <= ORACLE_TOLERANCE, "{name}");
    }
}

#[test]
fn the_f32_engine_agrees_with_pytorch_in_every_schedule() {
    for Golden { name, config, layers, shape, x, y } in Golden::all() {
        let design = config.layer.design;
        let encoder = Encoder::new(config, Arc::new(layers)).unwrap();
        for schedule in paf_cuda::cpu::SCHEDULES.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
            let got = run(&encoder, schedule, &shape, &x).unwrap();
            let comparison =
                check_f32(&got, &y, &encoder).unwrap_or_else(|error| panic!("{name}, {schedule}: {error}"));
            println!("{name}, {schedule}: {comparison}");
        }
    }
}
