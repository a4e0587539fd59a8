//! Checkpoints of `tests/checkpoints` in memory, to be damaged, and what opening one does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use paf_cuda::checkpoint::Checkpoint;
use paf_cuda::cpu::{Encoder, Model};
use serde_json::{Map, Value};

/// A checkpoint's files, by name.
pub type Folder = BTreeMap<String, Vec<u8>>;

pub const CONFIG: &str = "config.json";
pub const INDEX: &str = "model.safetensors.index.json";

pub fn folder(case: &str) -> Folder {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(case);
    let files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let files = files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()));
    files.filter(|(name, _)| name != "expected.safetensors").collect()
}

pub fn write_to(folder: &Path, files: &Folder) {
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
}

/// Whatever opens is whole: no later step finds anything missing.
pub fn convert(checkpoint: &Checkpoint) {
    let layers = Arc::new(checkpoint.layers().collect());
    let encoder = Encoder::new(checkpoint.config().clone(), layers).expect("layers fit the configuration");
    Model::new(encoder, checkpoint.model_weights()).expect("the rest fits the layers");
}

pub fn object(bytes: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(bytes).unwrap()
}

/// Header and data of a safetensors file.
pub fn split(bytes: &[u8]) -> (Map<String, Value>, Vec<u8>) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (object(&bytes[8..8 + len]), bytes[8 + len..].to_vec())
}

pub fn join(header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}
