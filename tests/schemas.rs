//! The JSON Schemas of result files: they are what the types say, and what is in the tree and what the program writes is valid.
#![cfg(feature = "cli")]

#[path = "common/schemas.rs"]
mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{errors, strict};
use paf_cuda::measure::schema::documents;
use serde_json::Value;

/// What `benches/peers/sentences.py` writes has no type here.
const SENTENCES: [&str; 2] = ["paf-cuda/sentences/1", "sentences-1.json"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(name)
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_files(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    files.sort();
    files
}

/// The schema of a result file, by what its first field names.
fn schema_of(result: &Value) -> Value {
    let name = result["schema"].as_str().expect("a result names its schema");
    let document = documents().into_iter().find(|document| document.schema == name);
    let file = match document {
        Some(document) => document.file_name(),
        None if name == SENTENCES[0] => SENTENCES[1].to_owned(),
        None => panic!("{name} has no schema"),
    };
    read(&folder("schema").join(file))
}

/// With `PAF_WRITE_SCHEMAS` set, this is what writes them.
#[test]
fn the_files_are_what_the_types_say() {
    let mut expected = BTreeSet::from([SENTENCES[1].to_owned()]);
    for document in documents() {
        let path = folder("schema").join(document.file_name());
        if std::env::var_os("PAF_WRITE_SCHEMAS").is_some() {
            std::fs::write(&path, &document.json).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == document.json, "{} is not what its type says: run `make schemas`", path.display());
        assert!(expected.insert(document.file_name()), "{} is there twice", document.file_name());
    }
    let there = json_files(&folder("schema")).into_iter();
    let there: BTreeSet<_> = there.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(there, expected);
}

#[test]
fn every_field_is_described() {
    fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}/{name}");
            if field["description"].as_str().is_none_or(|text| text.len() < 6 || text.contains("[`")) {
                found.push(path.clone());
            }
            undescribed(field, &path, found);
        }
        for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
            undescribed(definition, &format!("{path}/{name}"), found);
        }
    }
    for path in json_files(&folder("schema")) {
        let schema = read(&path);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{}", path.display());
        jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut found = Vec::new();
        undescribed(&schema, "", &mut found);
        assert!(found.is_empty(), "{}: {found:?}", path.display());
    }
}

#[test]
fn results_in_the_tree_are_valid() {
    let files = json_files(&folder("results"));
    assert!(files.len() >= 13, "{files:?}");
    for path in files {
        let result = read(&path);
        let errors = errors(&schema_of(&result), &result);
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
}

/// What the program writes now, a result a command.
fn fresh() -> Vec<Value> {
    let speedup = "speedup --backend cpu --hidden-size 64 --num-attention-heads 2 --intermediate-size 128 --layers 2 --seconds 0.05";
    [
        &format!("{speedup} --seq 16"),
        &format!("{speedup} --packed 9,0,17 --design pre-two --rotary-dim 16"),
        "peak --backend cpu",
        "complexity --device h200 --seq 64",
    ]
    .map(|command| {
        let output = Command::new(env!("CARGO_BIN_EXE_paf")).args(command.split(' ')).args(["--json", "-"]).output();
        let output = output.expect("paf starts");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("paf writes JSON")
    })
    .to_vec()
}

#[test]
fn fresh_results_are_valid_and_have_no_field_that_is_not_described() {
    for result in fresh() {
        let errors = errors(&strict(schema_of(&result)), &result);
        assert!(errors.is_empty(), "{}: {errors:#?}", result["schema"]);
    }
}

#[test]
fn what_is_not_a_result_is_refused() {
    let result = read(&folder("results").join("pythia-1.4b-h100.json"));
    let schema = schema_of(&result);
    assert!(errors(&schema, &result).is_empty());
    let broken = |change: fn(&mut Value)| {
        let mut result = result.clone();
        change(&mut result);
        !errors(&schema, &result).is_empty()
    };
    assert!(broken(|result| result["schema"] = "paf-cuda/speedup/2".into()));
    assert!(broken(|result| result["cases"] = Value::Null));
    assert!(broken(|result| result["cases"][0]["batch"] = (-1).into()));
    assert!(broken(|result| result["cases"][0]["variants"][0]["samples_us"][3] = "1.5".into()));
    assert!(broken(|result| result["cases"][1]["variants"][0]["median_us"] = 12.0.into()));
    assert!(broken(|result| drop(result["machine"].as_object_mut().unwrap().remove("cpu"))));
    assert!(broken(|result| drop(result["cases"][0].as_object_mut().unwrap().remove("variants"))));
}
