//! Checkpoints of every family, run by the oracle and by the f32 engine, against what the original computed in float64:
//! `checkpoints/make.py` made the folders, and says what they hold.
#![cfg(feature = "checkpoint")]

mod common;
#[path = "common/enlarge.rs"]
mod enlarge;

use std::path::PathBuf;

use common::{check_f32, check_f32_rows};
use paf_cuda::checkpoint::Checkpoint;
use paf_cuda::cpu::oracle::Rounding;
use paf_cuda::cpu::{Encoder, Model, Pooling, oracle};
use paf_cuda::{BatchShape, Design, Schedule};
use safetensors::{Dtype, SafeTensors};

/// Relative to the largest value: both sides compute in f64, and differ in the order of their sums, and in π and other
/// constants' last bits.
const ORACLE_TOLERANCE: f64 = 1e-12;

struct Case {
    name: String,
    checkpoint: Checkpoint,
    shape: BatchShape,
    ids: Vec<u32>,
    token_types: Option<Vec<u32>>,
    hidden: Vec<f64>,
    logits: Option<Vec<f64>>,
    pooler: Option<Vec<f64>>,
    /// On the right and on the left, unless the original is none of Transformers'.
    padded: Vec<Padded>,
}

/// The same sequences as a batch that the original ran with padding.
struct Padded {
    side: &'static str,
    batch: usize,
    /// `[batch, seq_len]`: whether there is a token. `ids` and `token_types` likewise.
    mask: Vec<bool>,
    ids: Vec<u32>,
    token_types: Option<Vec<u32>>,
    /// `[tokens, hidden_size]`.
    hidden: Vec<f64>,
    logits: Option<Vec<f64>>,
}

impl Case {
    fn all() -> Vec<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints");
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
        folders.sort();
        folders.into_iter().map(Self::read).collect()
    }

    fn read(folder: PathBuf) -> Self {
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let design = header.metadata().as_ref().and_then(|metadata| metadata.get("design"));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |name: &str| -> Option<Vec<u32>> {
            let values = elements(&tensors, name, Dtype::I64, i64::from_le_bytes)?;
            Some(values.into_iter().map(|value| u32::try_from(value).unwrap()).collect())
        };
        let floats = |name: &str| elements(&tensors, name, Dtype::F64, f64::from_le_bytes);
        let mut checkpoint = Checkpoint::open(&folder).unwrap();
        if let Some(name) = design {
            let design = Design::ALL.into_iter().find(|design| design.name() == name).unwrap();
            checkpoint = checkpoint.with_design(design).unwrap();
        }
        let lengths: Vec<_> = numbers("lengths").unwrap().into_iter().map(|length| length as usize).collect();
        let padded = ["right", "left"].into_iter().filter_map(|side| {
            let name = |part: &str| format!("{side}.{part}");
            Some(Padded {
                side,
                batch: lengths.len(),
                mask: numbers(&name("mask"))?.into_iter().map(|token| token == 1).collect(),
                ids: numbers(&name("ids")).unwrap(),
                token_types: numbers(&name("token_types")),
                hidden: floats(&name("hidden")).unwrap(),
                logits: floats(&name("logits")),
            })
        });
        Self {
            padded: padded.collect(),
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            checkpoint,
            shape: BatchShape::packed(lengths).unwrap(),
            ids: numbers("ids").unwrap(),
            token_types: numbers("token_types"),
            hidden: floats("hidden").unwrap(),
            logits: floats("logits"),
            pooler: floats("pooler"),
        }
    }

    fn model(&self) -> Model {
        Model::from_checkpoint(&self.checkpoint).unwrap()
    }
}

fn elements<T, const N: usize>(
    tensors: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    parse: fn([u8; N]) -> T,
) -> Option<Vec<T>> {
    let tensor = tensors.tensor(name).ok()?;
    assert_eq!(tensor.dtype(), dtype, "{name}");
    Some(tensor.data().as_chunks().0.iter().map(|&bytes| parse(bytes)).collect())
}

fn check_exact(name: &str, got: &[f64], expected: &[f64]) {
    let largest = expected.iter().fold(0.0, |max: f64, y| max.max(y.abs()));
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs() / largest;
        assert!(error <= ORACLE_TOLERANCE, "{name}: element {i} is {got}, expected {expected}");
    }
}

#[test]
fn the_folders_cover_families_and_designs() {
    let cases = Case::all();
    for model_type in ["bert", "roberta", "gpt_neox", "gptj", "phi", "falcon", "cohere"] {
        assert!(cases.iter().any(|case| case.checkpoint.model_type() == model_type), "{model_type}");
    }
    for design in Design::ALL {
        assert!(cases.iter().any(|case| case.checkpoint.config().layer.design == design), "{design}");
    }
    let heads =
        |case: &Case| case.checkpoint.model_weights().head.map(|head| (case.logits.is_some(), head.decoder.is_some()));
    let heads: Vec<_> = cases.iter().map(heads).collect();
    // Without a head, tied, and not tied.
    assert!([None, Some((true, false)), Some((true, true))].iter().all(|kind| heads.contains(kind)));
    assert!(cases.iter().any(|case| case.pooler.is_some()));
}

#[test]
fn the_oracle_agrees_with_the_originals() {
    for case in Case::all() {
        let Case { name, checkpoint, shape, ids, token_types, hidden, logits, pooler, .. } = &case;
        let (exact, size) = (Rounding::Exact, checkpoint.config().layer.hidden_size);
        let (config, weights) = (checkpoint.config(), checkpoint.model_weights());
        let layers: Vec<_> = checkpoint.layers().collect();
        let got = oracle::hidden_states(config, &layers, &weights, shape, ids, token_types.as_deref(), exact).unwrap();
        check_exact(name, &got, hidden);
        if let Some(logits) = logits {
            check_exact(&format!("{name}, logits"), &oracle::logits(config, &weights, &got, exact).unwrap(), logits);
        }
        if let Some(pooler) = pooler {
            let first = oracle::pool(Pooling::Cls, shape, &got, size, exact).unwrap();
            check_exact(&format!("{name}, pooler"), &oracle::pooler(config, &weights, &first, exact).unwrap(), pooler);
        }
    }
}

#[test]
fn the_f32_engine_agrees_with_the_originals() {
    for case in Case::all() {
        let Case { name, shape, ids, token_types, hidden, logits, pooler, .. } = &case;
        let model = case.model();
        let design = model.encoder().config().layer.design;
        let check = |what: &str, got: &[f32], expected: &[f64], width: usize| {
            let result = check_f32_rows(got, expected, model.encoder(), width);
            println!("{name}, {what}: {}", result.unwrap_or_else(|error| panic!("{name}, {what}: {error}")));
        };
        for schedule in paf_cuda::cpu::SCHEDULES.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
            let got = model.forward(schedule, shape, ids, token_types.as_deref()).unwrap();
            check("hidden states", &got, hidden, model.hidden_size());
            if let Some(logits) = logits {
                check("logits", &model.logits(&got).unwrap(), logits, model.vocab_size());
            } else {
                assert!(model.logits(&got).unwrap_err().to_string().contains("head"), "{name}");
            }
            let first = model.pool(Pooling::Cls, shape, &got).unwrap();
            if let Some(pooler) = pooler {
                check("pooler", &model.pooler(&first).unwrap(), pooler, model.hidden_size());
            }
        }
    }
}

impl Padded {
    /// The batch as this crate takes it: padding follows a sequence's tokens, or is left out. With the rows that are tokens.
    fn shape(&self) -> (BatchShape, Vec<usize>) {
        let seq_len = self.mask.len() / self.batch;
        let tokens: Vec<_> = (0..self.mask.len()).filter(|&row| self.mask[row]).collect();
        let lengths = self.mask.chunks(seq_len).map(|mask| mask.iter().filter(|&&token| token).count()).collect();
        if self.side == "right" {
            (BatchShape::new(self.batch, seq_len).unwrap().with_lengths(lengths).unwrap(), tokens)
        } else {
            (BatchShape::packed(lengths).unwrap(), (0..tokens.len()).collect())
        }
    }

    /// Ids or types, likewise.
    fn rows(&self, of: &[u32]) -> Vec<u32> {
        let kept = of.iter().zip(&self.mask).filter(|(_, token)| self.side == "right" || **token);
        kept.map(|(number, _)| *number).collect()
    }
}

#[test]
fn batches_that_the_originals_ran_with_padding_are_the_same_here() {
    for case in Case::all() {
        let sides: &[_] = if case.name.starts_with("paf") { &[] } else { &["right", "left"] };
        assert!(case.padded.iter().map(|padded| padded.side).eq(sides.iter().copied()), "{}", case.name);
        let (config, weights, model) = (case.checkpoint.config(), case.checkpoint.model_weights(), case.model());
        let layers: Vec<_> = case.checkpoint.layers().collect();
        let (size, exact) = (config.layer.hidden_size, Rounding::Exact);
        for padded in &case.padded {
            let name = format!("{}, padded on the {}", case.name, padded.side);
            let (shape, tokens) = padded.shape();
            let (ids, types) =
                (padded.rows(&padded.ids), padded.token_types.as_deref().map(|types| padded.rows(types)));
            let types = types.as_deref();
            let got = oracle::hidden_states(config, &layers, &weights, &shape, &ids, types, exact).unwrap();
            let got: Vec<_> = tokens.iter().flat_map(|row| &got[row * size..][..size]).copied().collect();
            check_exact(&name, &got, &padded.hidden);
            let fast = model.forward(Schedule::Serial, &shape, &ids, types).unwrap();
            let fast: Vec<_> = tokens.iter().flat_map(|row| &fast[row * size..][..size]).copied().collect();
            check_f32(&fast, &padded.hidden, model.encoder()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(padded.logits.is_some(), case.logits.is_some(), "{name}");
            if let Some(logits) = &padded.logits {
                check_exact(&name, &oracle::logits(config, &weights, &got, exact).unwrap(), logits);
                let checked =
                    check_f32_rows(&model.logits(&fast).unwrap(), logits, model.encoder(), model.vocab_size());
                checked.unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }
}

/// Padding, whatever ids it has, changes no token's hidden state, and is left out of the mean.
#[test]
fn padded_batches_give_what_packed_ones_give() {
    for case in Case::all() {
        let model = case.model();
        let (packed, size) = (&case.shape, model.hidden_size());
        let (batch, seq_len) = (packed.batch(), packed.seq_len() + 2);
        let lengths: Vec<_> = (0..batch).map(|i| packed.length(i)).collect();
        let padded = BatchShape::new(batch, seq_len).unwrap().with_lengths(lengths).unwrap();
        let spread = |ids: &[u32]| {
            let mut rows = vec![u32::MAX; padded.rows()];
            for i in 0..batch {
                rows[padded.first_row(i)..][..packed.length(i)].copy_from_slice(&ids[packed.rows_of(i)]);
            }
            rows
        };
        let (ids, types) = (spread(&case.ids), case.token_types.as_deref().map(spread));
        let got = model.forward(Schedule::Serial, &padded, &ids, types.as_deref()).unwrap();
        for i in 0..batch {
            let tokens = &got[padded.first_row(i) * size..][..packed.length(i) * size];
            let expected = &case.hidden[packed.first_row(i) * size..][..packed.length(i) * size];
            check_f32(tokens, expected, model.encoder()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
            let padding = padded.padding_of(i);
            assert!(got[padding.start * size..padding.end * size].iter().all(|&x| x == 0.0));
        }
        let mean = model.pool(Pooling::Mean, &padded, &got).unwrap();
        let mut exact = vec![0.0; batch * size];
        for (i, mean) in exact.chunks_exact_mut(size).enumerate() {
            for row in case.hidden[packed.first_row(i) * size..][..packed.length(i) * size].chunks_exact(size) {
                mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x / packed.length(i) as f64);
            }
        }
        check_f32(&mean, &exact, model.encoder()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
}

#[test]
fn a_text_longer_than_the_positions_that_there_are_is_refused() {
    for case in Case::all() {
        let model = case.model();
        let long = BatchShape::new(1, 18).unwrap();
        let result = model.forward(Schedule::Serial, &long, &[5; 18], None);
        match case.checkpoint.model_type() {
            "bert" => {
                assert!(result.unwrap_err().to_string().contains("length is 18 (sequence 0), expected at most 17"))
            }
            "roberta" => assert!(result.unwrap_err().to_string().contains("expected at most 15")),
            _ => {
                assert_eq!(result.unwrap().len(), 18 * model.hidden_size());
                let longer = BatchShape::packed(vec![32, 33]).unwrap();
                let error = model.forward(Schedule::Serial, &longer, &[5; 65], None).unwrap_err().to_string();
                let expected = "length is 33 (sequence 1), expected at most 32, the model's max_position_embeddings";
                assert!(error.contains(expected), "{}: {error}", case.name);
            }
        }
    }
}

#[test]
fn layers_alone_and_folders_by_name_are_what_open_checkpoints_are() {
    for case in Case::all() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(&case.name);
        let design = case.checkpoint.config().layer.design;
        let (model, encoder) = (Model::from_pretrained(&folder).unwrap(), Encoder::from_pretrained(&folder).unwrap());
        assert_eq!(model.weights(), &case.checkpoint.model_weights());
        let serial = |encoder: &Encoder| {
            let encoder = encoder.with_design(design).unwrap();
            let x: Vec<_> = case.hidden.iter().map(|&x| x as f32).collect();
            common::run(&encoder, Schedule::Serial, &case.shape, &x).unwrap()
        };
        let expected = serial(case.model().encoder());
        assert!(serial(model.encoder()) == expected && serial(&encoder) == expected, "{}", case.name);
        assert!(case.checkpoint.has_head() == case.logits.is_some(), "{}", case.name);
    }
    let missing = Encoder::from_pretrained("no such folder").unwrap_err();
    assert!(missing.to_string().contains("no such folder"), "{missing}");
}

/// What the GPU's suite runs, since no kernel is as narrow as the folders' models: it is whole, and the engines agree on it.
#[test]
fn enlarged_checkpoints_are_models_too() {
    for (case, small) in Case::all().into_iter().zip(enlarge::folders().unwrap()) {
        let large = tempfile::tempdir().unwrap();
        enlarge::enlarge(&small, large.path()).unwrap();
        let checkpoint = Checkpoint::open(large.path()).unwrap();
        let layer = &checkpoint.config().layer;
        assert!(layer.head_dim == 32 && layer.intermediate_size.is_multiple_of(8), "{}: {layer:?}", case.name);
        let own = &case.checkpoint.config().layer;
        assert_eq!(layer.num_key_value_heads, own.num_key_value_heads, "{}", case.name);
        assert_eq!((checkpoint.has_head(), checkpoint.embedding_sizes().vocab_size), (case.logits.is_some(), 37));
        let model = Model::from_checkpoint(&checkpoint).unwrap();
        let types = case.token_types.as_deref();
        let got = model.forward(Schedule::Serial, &case.shape, &case.ids, types).unwrap();
        let layers: Vec<_> = checkpoint.layers().collect();
        let weights = checkpoint.model_weights();
        let exact = Rounding::Exact;
        let expected =
            oracle::hidden_states(checkpoint.config(), &layers, &weights, &case.shape, &case.ids, types, exact)
                .unwrap();
        check_f32(&got, &expected, model.encoder()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
}

#[test]
fn designs_change_between_post_norm_models_only() {
    for case in Case::all() {
        let bert = matches!(case.checkpoint.model_type(), "bert" | "roberta");
        for design in Design::ALL {
            let own = case.checkpoint.config().layer.design;
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(&case.name);
            let result = Checkpoint::open(folder).unwrap().with_design(design);
            assert_eq!(result.is_ok(), design == own || bert && design.is_post_norm(), "{}, {design}", case.name);
        }
    }
}
