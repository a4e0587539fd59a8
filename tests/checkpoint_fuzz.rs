//! Checkpoints damaged at random, `PAF_FUZZ_INPUTS` times for each kind of file: each is a typed error, or opens as a model that is
//! whole. Never a panic, and never memory by a number in a file.
#![cfg(feature = "checkpoint")]

#[path = "common/allocations.rs"]
mod allocations;
#[path = "common/damage.rs"]
mod damage;
#[path = "common/mutate.rs"]
mod mutate;

use std::cell::RefCell;
use std::collections::HashMap;

use damage::{CONFIG, Folder, INDEX, join, object, split};
use mutate::{Bytes, settings, strange};
use paf_cuda::Error;
use paf_cuda::checkpoint::Checkpoint;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Every folder of `tests/checkpoints`: every family.
const CASES: [&str; 18] = [
    "bert",
    "bert_encoder",
    "cohere",
    "cohere_untied",
    "falcon",
    "falcon_heads",
    "falcon_new",
    "falcon_new_one_norm",
    "gpt_neox",
    "gpt_neox_serial",
    "gptj",
    "paf_bert",
    "paf_roberta",
    "phi",
    "phi_2",
    "phi_base",
    "roberta",
    "roberta_encoder",
];
/// Those in several files.
const SHARDED: [&str; 4] = ["cohere_untied", "falcon_new", "gpt_neox", "roberta"];

/// A checkpoint, and a folder with it, of which a file at a time is damaged.
struct Bench {
    files: Folder,
    folder: TempDir,
}

/// What was damaged, and the file's new contents.
type Damaged = (String, Vec<u8>);

impl Bench {
    fn new(case: &str) -> Self {
        let files = damage::folder(case);
        let folder = mutate::fast_folder();
        damage::write_to(folder.path(), &files);
        Self { folder, files }
    }

    fn weight_file(&self, index: Index) -> &str {
        let names: Vec<_> = self.files.keys().filter(|name| name.ends_with(".safetensors")).collect();
        names[index.index(names.len())]
    }

    /// What every damaged checkpoint must do.
    fn check(&self, (name, bytes): Damaged) -> Result<(), TestCaseError> {
        let path = self.folder.path().join(&name);
        std::fs::write(&path, &bytes).unwrap();
        let len = self.files.values().map(Vec::len).sum::<usize>() + bytes.len();
        allocations::start();
        let opened = Checkpoint::open(self.folder.path());
        let opening = allocations::since_start();
        std::fs::write(path, &self.files[&name]).unwrap();
        // The parsers' tables of a few names need what is added.
        prop_assert!(opening.largest <= len + (1 << 14), "{opening:?} with {len} bytes in the files");
        prop_assert!(opening.peak <= 2 * len + (1 << 16), "{opening:?} with {len} bytes in the files");
        match opened {
            Ok(checkpoint) => {
                allocations::start();
                damage::convert(&checkpoint);
                // Numbers of 16 bits double.
                let converting = allocations::since_start();
                prop_assert!(converting.largest <= 2 * len, "{converting:?} with {len} bytes in the files");
            }
            Err(Error::Checkpoint(error)) => {
                let text = error.to_string();
                prop_assert!(text.len() < 1500, "{text}");
            }
            Err(other) => prop_assert!(false, "not an error about a checkpoint: {other:?}"),
        }
        Ok(())
    }
}

thread_local! {
    static BENCHES: RefCell<HashMap<&'static str, Bench>> = RefCell::default();
}

/// Damages a file of `case`, in this thread's folder of it, and looks at what opening it does.
fn check(case: &'static str, damage: impl FnOnce(&Bench) -> Damaged) -> Result<(), TestCaseError> {
    BENCHES.with_borrow_mut(|benches| {
        let bench = benches.entry(case).or_insert_with(|| Bench::new(case));
        bench.check(damage(bench))
    })
}

/// Damage to an object: entries that get another value, or go.
type Edits = Vec<(Index, Option<Value>)>;

fn edits() -> impl Strategy<Value = Edits> {
    prop::collection::vec((any::<Index>(), prop::option::of(strange())), 1..3)
}

fn edit(object: &mut Map<String, Value>, edits: Edits) {
    for (at, value) in edits {
        // The first edit may have taken the only one.
        if object.is_empty() {
            return;
        }
        let name = object.keys().nth(at.index(object.len())).unwrap().clone();
        match value {
            None => object.remove(&name),
            Some(value) => object.insert(name, value),
        };
    }
}

/// Damage to a file that is one JSON object.
#[derive(Debug, Clone)]
enum Damage {
    Values(Edits),
    Text(Vec<Bytes>),
}

fn damage_of_json() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => edits().prop_map(Damage::Values),
        1 => prop::collection::vec(mutate::bytes(), 1..4).prop_map(Damage::Text),
    ]
}

fn garbled(bytes: &[u8], damages: Vec<Bytes>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        if !bytes.is_empty() {
            damage.apply(&mut bytes);
        }
    }
    bytes
}

proptest! {
    #![proptest_config(settings(1.0))]

    #[test]
    fn any_field_of_the_configuration_may_be_anything(case in select(&CASES), damage in damage_of_json()) {
        check(case, |bench| {
            let original = &bench.files[CONFIG];
            let bytes = match damage {
                Damage::Values(edits) => {
                    let mut config = object(original);
                    edit(&mut config, edits);
                    serde_json::to_vec(&config).unwrap()
                }
                Damage::Text(damages) => garbled(original, damages),
            };
            (CONFIG.into(), bytes)
        })?;
    }

    #[test]
    fn any_entry_of_an_index_may_lie(
        case in select(&SHARDED), whole in prop::bool::weighted(0.1),
        damage in prop_oneof![1 => damage_of_json(), 2 => files().prop_map(Damage::Values)],
    ) {
        check(case, |bench| {
            let original = &bench.files[INDEX];
            let bytes = match damage {
                Damage::Values(edits) => {
                    let mut index = object(original);
                    let map = if whole { &mut index } else { index["weight_map"].as_object_mut().unwrap() };
                    edit(map, edits);
                    serde_json::to_vec(&index).unwrap()
                }
                Damage::Text(damages) => garbled(original, damages),
            };
            (INDEX.into(), bytes)
        })?;
    }
}

// Half of each.
proptest! {
    #![proptest_config(settings(0.5))]

    #[test]
    fn any_byte_of_a_header_may_be_damaged(
        case in select(&CASES), file in any::<Index>(), early in any::<bool>(),
        damages in prop::collection::vec(mutate::bytes(), 1..3), rest_too in prop::bool::weighted(0.1),
    ) {
        check(case, |bench| {
            let name = bench.weight_file(file);
            let bytes = &bench.files[name];
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            // In the first bytes, where the header's length is, half of the time.
            let end = match (early, rest_too) {
                (true, _) => 24,
                (_, true) => bytes.len(),
                _ => 8 + header,
            };
            (name.into(), [garbled(&bytes[..end], damages), bytes[end..].to_vec()].concat())
        })?;
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
        check(case, |bench| {
            let name = bench.weight_file(file);
            let (mut header, data) = split(&bench.files[name]);
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
            (name.into(), join(&header, &data))
        })?;
    }
}

/// Other files for some tensors, of which few are in the folder, and none has them.
fn files() -> impl Strategy<Value = Edits> {
    const FILES: [&str; 10] = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00003.safetensors",
        "../model.safetensors",
        INDEX,
        CONFIG,
        "/dev/zero",
        "sub/model.safetensors",
        "..\\model.safetensors",
        ".safetensors",
        "a\0.safetensors",
    ];
    let file = select(&FILES).prop_map(|file| Some(json!(file)));
    prop::collection::vec((any::<Index>(), file), 1..3)
}

#[test]
fn the_cases_are_all_there_are() {
    let folders = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints")).unwrap();
    let folders = folders.map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = folders.map(|folder| folder.file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, CASES);
    let sharded = names.iter().filter(|name| damage::folder(name).contains_key(INDEX));
    assert!(sharded.eq(SHARDED.iter()), "those in several files");
}
