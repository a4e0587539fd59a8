//! Checkpoints that are damaged, or lie: each must be a typed error that names what is wrong, or open as a model that is
//! whole. Never a panic, and never memory by a number in a file.
//!
//! `PAF_CHECKPOINT_CASES=100000 cargo test --release --test checkpoint_damage` tries as many of each kind of damage; without
//! the variable it is a few thousand altogether.
#![cfg(feature = "checkpoint")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use paf_cuda::Error;
use paf_cuda::checkpoint::{Checkpoint, CheckpointError};
use paf_cuda::cpu::{Encoder, Model};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Remembers the largest allocation that each thread asked for.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; counting allocates nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// A checkpoint's files, by name.
type Folder = BTreeMap<String, Vec<u8>>;

const CASES: [&str; 8] =
    ["bert", "bert_encoder", "roberta", "gpt_neox", "gpt_neox_serial", "gptj", "phi", "falcon_new"];
const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

fn folder(case: &str) -> Folder {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(case);
    let files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let files = files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()));
    files.filter(|(name, _)| name != "expected.safetensors").collect()
}

/// Opens what is in the folder and converts it all.
fn open(path: &Path) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(path)?;
    // Whatever opens is whole: no later step finds anything missing.
    let layers = Arc::new(checkpoint.layers().collect());
    let encoder = Encoder::new(checkpoint.config().clone(), layers).expect("layers fit the configuration");
    Model::new(encoder, checkpoint.model_weights()).expect("the rest fits the layers");
    Ok(())
}

fn write(files: &Folder) -> TempDir {
    let folder = TempDir::new().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.path().join(name), bytes).unwrap());
    folder
}

fn damaged(files: &Folder) -> CheckpointError {
    match open(write(files).path()) {
        Err(Error::Checkpoint(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// What every damaged checkpoint must do.
fn check(files: &Folder) -> Result<(), TestCaseError> {
    let folder = write(files);
    LARGEST.set(0);
    let result = open(folder.path());
    let largest = LARGEST.get();
    match result {
        Ok(()) => {}
        Err(Error::Checkpoint(error)) => {
            let text = error.to_string();
            prop_assert!(text.len() < 1500, "{text}");
        }
        Err(other) => prop_assert!(false, "not an error about a checkpoint: {other:?}"),
    }
    // 16-bit numbers double when they are converted; the parsers' tables of a few names need less than what is added.
    let files: usize = files.values().map(Vec::len).sum();
    prop_assert!(largest < 2 * files + (1 << 16), "{largest} bytes were asked for at once, with {files} in the files");
    Ok(())
}

fn settings() -> ProptestConfig {
    let cases = std::env::var("PAF_CHECKPOINT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
    ProptestConfig { cases, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() }
}

fn object(bytes: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(bytes).unwrap()
}

fn weight_files(files: &Folder) -> Vec<String> {
    files.keys().filter(|name| name.ends_with(".safetensors")).cloned().collect()
}

/// Header and data of a safetensors file.
fn split(bytes: &[u8]) -> (Map<String, Value>, Vec<u8>) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (object(&bytes[8..8 + len]), bytes[8 + len..].to_vec())
}

fn join(header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// Values that no field should have, some of which one may.
fn strange() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(vec![
            json!(null),
            json!(true),
            json!(false),
            json!(0),
            json!(1),
            json!(3),
            json!(-1),
            json!(0.5),
            json!(1e300),
            json!(u64::MAX),
            json!(1u64 << 20),
            json!((1u64 << 20) + 1),
            json!(1u64 << 62),
            json!(""),
            json!("gelu"),
            json!("relu"),
            json!("../../etc/passwd"),
            json!([]),
            json!({}),
            json!({"rope_type": "yarn"}),
            json!({"rope_theta": -1}),
        ]),
        (0u64..200).prop_map(|n| json!(n)),
        "\\PC{0,300}".prop_map(Value::String),
    ]
}

/// Damage to a run of bytes.
#[derive(Debug, Clone)]
enum Bytes {
    Cut(Index),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index),
}

impl Bytes {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Flip(at, mask) => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Self::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new);
            }
            Self::Remove(at) => {
                bytes.remove(at.index(bytes.len()));
            }
        }
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        any::<Index>().prop_map(Bytes::Cut),
        (any::<Index>(), 1u8..).prop_map(|(at, mask)| Bytes::Flip(at, mask)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, new)| Bytes::Insert(at, new)),
        any::<Index>().prop_map(Bytes::Remove),
    ]
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn any_field_of_the_configuration_may_be_anything(
        case in select(&CASES),
        edits in prop::collection::vec((any::<Index>(), prop::option::of(strange())), 1..3),
    ) {
        let mut files = folder(case);
        let mut config = object(&files[CONFIG]);
        for (at, value) in edits {
            let name = config.keys().nth(at.index(config.len())).unwrap().clone();
            match value {
                None => config.remove(&name),
                Some(value) => config.insert(name, value),
            };
        }
        files.insert(CONFIG.into(), serde_json::to_vec(&config).unwrap());
        check(&files)?;
    }

    #[test]
    fn any_byte_of_any_file_may_be_damaged(
        case in select(&CASES), file in any::<Index>(), early in any::<bool>(), damage in bytes(),
    ) {
        let mut files = folder(case);
        let name = files.keys().nth(file.index(files.len())).unwrap().clone();
        let bytes = files.get_mut(&name).unwrap();
        if early {
            // In the first bytes, where a header's length is, most of the time.
            let rest = bytes.split_off(bytes.len().min(24));
            damage.apply(bytes);
            bytes.extend(rest);
        } else {
            damage.apply(bytes);
        }
        check(&files)?;
    }

    #[test]
    fn any_entry_of_a_header_may_lie(
        case in select(&CASES), file in any::<Index>(), tensor in any::<Index>(),
        field in select(&["dtype", "shape", "data_offsets", "name", "gone", "new"]),
        value in prop_oneof![
            strange(),
            select(&["F64", "I64", "BF16", "F16", "F32", "BOOL", "U8", "F8_E4M3", "F4"]).prop_map(|dtype| json!(dtype)),
            prop::collection::vec(prop_oneof![0u64..64, any::<u64>()], 0..4).prop_map(|numbers| json!(numbers)),
        ],
    ) {
        let mut files = folder(case);
        let names = weight_files(&files);
        let name = &names[file.index(names.len())];
        let (mut header, data) = split(&files[name]);
        let tensors: Vec<_> = header.keys().filter(|key| *key != "__metadata__").cloned().collect();
        let tensor = &tensors[tensor.index(tensors.len())];
        match field {
            "gone" => {
                header.remove(tensor);
            }
            "name" => {
                let entry = header.remove(tensor).unwrap();
                header.insert(value.to_string(), entry);
            }
            "new" => {
                header.insert(value.to_string(), header[tensor].clone());
            }
            field => {
                header[tensor][field] = value;
            }
        }
        files.insert(name.clone(), join(&header, &data));
        check(&files)?;
    }

    #[test]
    fn any_entry_of_an_index_may_lie(
        case in select(&["roberta", "gpt_neox", "falcon_new"]), tensor in any::<Index>(),
        value in prop::option::of(prop_oneof![
            strange(),
            select(&[
                "model-00001-of-00002.safetensors", "model-00002-of-00003.safetensors", "../model.safetensors", INDEX, CONFIG,
                "/dev/zero", "sub/model.safetensors", "..\\model.safetensors", ".safetensors", "a\0.safetensors",
            ]).prop_map(|file| json!(file)),
        ]),
    ) {
        let mut files = folder(case);
        let mut index = object(&files[INDEX]);
        let map = index["weight_map"].as_object_mut().unwrap();
        let name = map.keys().nth(tensor.index(map.len())).unwrap().clone();
        match value {
            None => map.remove(&name),
            Some(value) => map.insert(name, value),
        };
        files.insert(INDEX.into(), serde_json::to_vec(&index).unwrap());
        check(&files)?;
    }
}

/// `case` with one field of its configuration set.
fn with_field(case: &str, name: &str, value: Value) -> CheckpointError {
    let mut files = folder(case);
    let mut config = object(&files[CONFIG]);
    config.insert(name.into(), value);
    files.insert(CONFIG.into(), serde_json::to_vec(&config).unwrap());
    damaged(&files)
}

/// `case`, of one weight file, with its header edited.
fn with_header(case: &str, edit: impl FnOnce(&mut Map<String, Value>)) -> CheckpointError {
    let mut files = folder(case);
    let (mut header, data) = split(&files["model.safetensors"]);
    edit(&mut header);
    files.insert("model.safetensors".into(), join(&header, &data));
    damaged(&files)
}

#[test]
fn errors_name_field_value_and_what_would_do() {
    for (case, field, value, part) in [
        ("bert", "hidden_size", json!(null), "hidden_size is missing, expected a number from 1 to 1048576"),
        ("bert", "hidden_size", json!(25), "num_attention_heads is 3, expected a divisor of 25"),
        ("bert", "layer_norm_eps", json!(0.0), "layer_norm_eps is 0.0, expected a positive number"),
        ("bert", "hidden_act", json!("tanh"), "hidden_act is \"tanh\", expected gelu"),
        ("bert", "position_embedding_type", json!("relative_key"), "expected \"absolute\""),
        ("bert", "is_decoder", json!(true), "is_decoder is true, expected false"),
        ("phi", "qk_layernorm", json!(true), "qk_layernorm is true"),
        ("phi", "max_position_embeddings", json!("many"), "max_position_embeddings is \"many\""),
        ("cohere", "use_qk_norm", json!(true), "use_qk_norm is true, expected false: nothing else is implemented"),
        ("cohere", "logit_scale", json!(0), "logit_scale is 0, expected a positive number"),
        ("cohere", "rope_parameters", json!(null), "rope_theta is missing, expected a positive number"),
        ("cohere", "rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4}), "rope_type default"),
        ("cohere", "rope_parameters", json!({"rope_theta": -1.0}), "a positive number as rope_theta"),
        ("cohere", "num_key_value_heads", json!(3), "num_key_value_heads is 3, expected a divisor"),
        ("phi", "rope_scaling", json!({"type": "linear", "factor": 2.0}), "rope_type default"),
        ("gptj", "rotary_dim", json!(7), "rotary_dim is 7, expected an even number"),
        ("falcon", "alibi", json!(true), "alibi is true"),
        ("falcon", "parallel_attn", json!(false), "parallel_attn is false"),
        ("falcon_new", "num_kv_heads", json!(3), "num_key_value_heads is 3, expected a divisor"),
    ] {
        let error = with_field(case, field, value);
        assert!(matches!(error, CheckpointError::Field { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
    for model_type in [json!("llama"), json!(7), json!(null)] {
        let error = with_field("bert", "model_type", model_type);
        assert!(matches!(error, CheckpointError::UnknownModelType { .. }), "{error:?}");
        assert!(error.to_string().contains("bert, roberta, gpt_neox, gptj, phi, falcon, cohere"), "{error}");
    }
}

#[test]
fn errors_name_file_and_tensor() {
    let query = "bert.encoder.layer.1.attention.self.query.weight";
    let error = with_header("bert", |header| {
        let entry = header.remove(query).unwrap();
        header.insert("bert.encoder.layer.2.output.dense.weight".into(), entry);
    });
    assert!(matches!(&error, CheckpointError::MissingTensor { tensor, .. } if tensor == query), "{error:?}");
    let error = with_header("gptj", |header| {
        let entry = header.remove("lm_head.weight").unwrap();
        header.remove("lm_head.bias");
        header.insert("score.weight".into(), entry);
    });
    // The head's bias left a hole in the file.
    assert!(matches!(error, CheckpointError::Malformed { format: "safetensors", .. }), "{error:?}");
    let error = with_header("bert", |header| header[query]["shape"] = json!([576]));
    let expected = "is [576], expected [24, 24]";
    assert!(matches!(error, CheckpointError::Tensor { .. }) && error.to_string().contains(expected), "{error}");
    let error = with_header("bert", |header| header[query]["dtype"] = json!("I32"));
    assert!(error.to_string().contains("is I32, expected F32, F16 or BF16"), "{error}");
    let mut longer = folder("phi_base");
    let (mut header, data) = split(&longer["model.safetensors"]);
    let end = data.len();
    header.insert("score.weight".into(), json!({"dtype": "U8", "shape": [3], "data_offsets": [end, end + 3]}));
    longer.insert("model.safetensors".into(), join(&header, &[data, vec![0; 3]].concat()));
    let error = damaged(&longer);
    assert!(matches!(&error, CheckpointError::ExtraTensor { tensor, .. } if tensor == "score.weight"), "{error:?}");
}

#[test]
fn files_must_be_there_and_be_files() {
    for name in ["config.json", "model.safetensors"] {
        let mut files = folder("phi");
        files.remove(name);
        let error = damaged(&files);
        assert!(matches!(error, CheckpointError::Unreadable { .. }), "{error:?}");
        let folder = write(&files);
        std::fs::create_dir(folder.path().join(name)).unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("not a regular file"));
        files.insert(name.into(), Vec::new());
        assert!(matches!(damaged(&files), CheckpointError::Malformed { .. }));
    }
}

#[test]
fn an_index_names_files_beside_it_and_tensors_in_them() {
    let with_index = |edit: &dyn Fn(&mut Map<String, Value>)| {
        let mut files = folder("roberta");
        let mut index = object(&files[INDEX]);
        edit(index["weight_map"].as_object_mut().unwrap());
        files.insert(INDEX.into(), serde_json::to_vec(&index).unwrap());
        damaged(&files)
    };
    let bias = "lm_head.bias";
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for outside in ["../model.safetensors", "/tmp/model.safetensors", "a/b.safetensors", "..\\b.safetensors", "passwd"]
    {
        let error = with_index(&|map| map[bias] = json!(outside));
        assert!(matches!(error, CheckpointError::Index { .. }), "{error:?}");
        assert!(error.to_string().contains("beside the index"), "{error}");
    }
    let error = with_index(&|map| map[bias] = json!(shards[0]));
    assert!(error.to_string().contains("tensor \"lm_head.bias\" is not in \"model-00001"), "{error}");
    let error = with_index(&|map| drop(map.remove(bias)));
    assert!(error.to_string().contains("is not listed"), "{error}");
    let error = with_index(&|map| map[bias] = json!("model-00003-of-00002.safetensors"));
    assert!(matches!(error, CheckpointError::Unreadable { .. }), "{error:?}");
    // The same tensors in two files.
    let mut files = folder("roberta");
    files.insert(shards[0].into(), files[shards[1]].clone());
    let error = damaged(&files);
    assert!(error.to_string().contains("is in"), "{error}");
}
