//! The weight files of a checkpoint, memory-mapped: one `model.safetensors`, or several and an index.
//!
//! Nothing that a file says is believed before it is checked: names in the index are names in the folder, headers agree
//! with the files' lengths (the `safetensors` crate sees to that), and no buffer is allocated by a number from a file.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use super::error::{CheckpointError, quoted, shown};
use super::sources::{Piece, Source};
use crate::error::Result;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// More than any model's: 100,000 tensors take about ten megabytes.
const MOST_INDEX_BYTES: u64 = 64 << 20;

/// Every tensor of a checkpoint: where it lies, and what it is.
#[derive(Debug)]
pub(super) struct Files {
    shards: Vec<Shard>,
    tensors: HashMap<String, Tensor>,
    /// What to name when a tensor is in none of the shards.
    listing: PathBuf,
}

#[derive(Debug)]
struct Shard {
    file: PathBuf,
    map: Mmap,
}

/// A tensor inside a shard.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) shard: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its first byte, in the shard.
    pub(super) start: usize,
}

impl Files {
    /// Maps the weight files in `folder` and reads their headers.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        if single.exists() {
            let mut files = Self { shards: Vec::new(), tensors: HashMap::new(), listing: single.clone() };
            files.add(single)?;
            return Ok(files);
        }
        let index = folder.join(INDEX);
        if !index.exists() {
            let problem = format!("neither {SINGLE} nor {INDEX} is in this folder");
            return Err(CheckpointError::unreadable(folder, problem));
        }
        let assigned = read_index(&index)?;
        let mut files = Self { shards: Vec::new(), tensors: HashMap::new(), listing: index.clone() };
        let names: BTreeSet<&str> = assigned.values().map(String::as_str).collect();
        for name in &names {
            files.add(folder.join(name))?;
        }
        let odds = |problem| Err(CheckpointError::Index { file: index.clone(), problem }.wrap());
        for (tensor, shard) in &assigned {
            let found = files.tensors.get(tensor).map(|tensor| files.shards[tensor.shard].file.as_path());
            if found != Some(&folder.join(shard)) {
                return odds(format!("tensor {} is not in {}", quoted(tensor), quoted(shard)));
            }
        }
        if let Some((name, tensor)) = files.tensors.iter().find(|(name, _)| !assigned.contains_key(*name)) {
            let file = files.shards[tensor.shard].file.display();
            return odds(format!("tensor {} of {file} is not listed", quoted(name)));
        }
        Ok(files)
    }

    fn add(&mut self, file: PathBuf) -> Result<()> {
        let (open, _) = regular_file(&file)?;
        // SAFETY: the mapping is read-only and private to this process's view; its bytes are only ever read as numbers,
        // for which every bit pattern is valid, so that another process writing to the file gives other numbers, not
        // undefined types. A file cut short while it is mapped ends the process with a signal (SIGBUS), as with any
        // reader that maps files; `Checkpoint::open` says so.
        let map = unsafe { Mmap::map(&open) }.map_err(|error| CheckpointError::unreadable(&file, error))?;
        let (header_bytes, header) = SafeTensors::read_metadata(&map)
            .map_err(|error| CheckpointError::malformed(&file, "safetensors", error))?;
        // The header's length is in the eight bytes before it.
        let data = header_bytes + 8;
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n)).map(|b| b / 8);
            if end.checked_sub(start) != bytes || data.checked_add(end).is_none_or(|end| end > map.len()) {
                let problem = format!("tensor {} does not fit into the file", quoted(&name));
                return Err(CheckpointError::malformed(&file, "safetensors", problem));
            }
            let tensor =
                Tensor { shard: self.shards.len(), dtype: info.dtype, shape: info.shape.clone(), start: data + start };
            if let Some(other) = self.tensors.insert(name.clone(), tensor) {
                let other = self.shards[other.shard].file.display();
                let problem = format!("tensor {} is in {} and in {other}", quoted(&name), file.display());
                return Err(CheckpointError::Index { file: self.listing.clone(), problem }.wrap());
            }
        }
        self.shards.push(Shard { file, map });
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every name, with the file it is in.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), self.shards[tensor.shard].file.as_path()))
    }

    /// Every weight file, and how many bytes it has.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.shards.iter().map(|shard| (shard.file.as_path(), shard.map.len()))
    }

    /// How many numbers all tensors have.
    pub(super) fn elements(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    pub(super) fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.shards[tensor.shard].file
    }

    /// The file that lists all tensors: the only one, or the index.
    pub(super) fn listing(&self) -> &Path {
        &self.listing
    }

    /// The elements of a source, one piece after the other, as f32: exact, since the types on disk are no wider.
    pub(super) fn read(&self, source: &Source) -> Vec<f32> {
        let mut values = vec![0.0; source.len()];
        self.read_part(source, 0, &mut values);
        values
    }

    /// The elements from `first` on, as many as `to` has room for; the source has that many.
    pub(super) fn read_part(&self, source: &Source, first: usize, to: &mut [f32]) {
        self.convert(source, first, to, |number| number, None);
    }

    /// The same as bits of the nearest numbers of `dtype`.
    #[cfg(feature = "cuda")]
    pub(super) fn read_bits(&self, source: &Source, first: usize, dtype: crate::Dtype, to: &mut [u16]) {
        // What the file has in this type goes as it is.
        match dtype {
            crate::Dtype::Bf16 => {
                let same = (Dtype::BF16, u16::from_le_bytes as AsIs<u16>);
                self.convert(source, first, to, |number| bf16::from_f32(number).to_bits(), Some(same));
            }
            crate::Dtype::F16 => {
                let same = (Dtype::F16, u16::from_le_bytes as AsIs<u16>);
                self.convert(source, first, to, |number| f16::from_f32(number).to_bits(), Some(same));
            }
        }
    }

    /// The elements from `first` on by way of f32, but for those of the type of `same`, of two bytes.
    fn convert<T: Default + Send>(
        &self,
        source: &Source,
        first: usize,
        to: &mut [T],
        number: impl Fn(f32) -> T + Sync,
        same: Option<(Dtype, AsIs<T>)>,
    ) {
        let (mut before, mut rest) = (first, to);
        let mut parts = Vec::new();
        for piece in source.pieces() {
            if before >= piece.len() {
                before -= piece.len();
                continue;
            }
            let (part, others) = rest.split_at_mut((piece.len() - before).min(rest.len()));
            rest = others;
            match *piece {
                Piece::Stored { shard, dtype, start, .. } => {
                    let size = dtype.bitsize() / 8;
                    let bytes = &self.shards[shard].map[start + before * size..][..part.len() * size];
                    parts.push((part, dtype, bytes));
                }
                Piece::Zeros(_) => part.fill_with(T::default),
            }
            before = 0;
        }
        parts.into_par_iter().for_each(|(part, dtype, bytes)| match (dtype, same) {
            (dtype, Some((own, bits))) if dtype == own => each(part, bytes, bits),
            (Dtype::F16, _) => each(part, bytes, |bytes| number(f16::from_le_bytes(bytes).to_f32())),
            (Dtype::BF16, _) => each(part, bytes, |bytes| number(bf16::from_le_bytes(bytes).to_f32())),
            _ => each(part, bytes, |bytes| number(f32::from_le_bytes(bytes))),
        });
    }
}

/// What a number of two bytes is where it is not to be converted.
type AsIs<T> = fn([u8; 2]) -> T;

fn each<T: Send, const N: usize>(values: &mut [T], bytes: &[u8], number: impl Fn([u8; N]) -> T + Sync) {
    const CHUNK: usize = 1 << 16;
    let bytes = bytes.as_chunks().0;
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK)).for_each(|(values, bytes)| {
        values.iter_mut().zip(bytes).for_each(|(value, &bytes)| *value = number(bytes));
    });
}

/// Opens a file that can be mapped or read to its end, and its length: no folder, pipe or device.
pub(super) fn regular_file(file: &Path) -> Result<(File, u64)> {
    let unreadable = |error: std::io::Error| CheckpointError::unreadable(file, error);
    // Before opening it: to open a pipe is to wait for its other end.
    if !std::fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(CheckpointError::unreadable(file, "not a regular file"));
    }
    let open = File::open(file).map_err(unreadable)?;
    let bytes = open.metadata().map_err(unreadable)?.len();
    Ok((open, bytes))
}

/// `weight_map` of the index: the file of each tensor. Files are plain names; anything with a folder in it is refused.
fn read_index(index: &Path) -> Result<HashMap<String, String>> {
    let (mut open, bytes) = regular_file(index)?;
    if bytes > MOST_INDEX_BYTES {
        return Err(CheckpointError::unreadable(index, format!("{bytes} bytes is too large")));
    }
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut open, MOST_INDEX_BYTES), &mut text)
        .map_err(|error| CheckpointError::unreadable(index, error))?;
    let map: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| CheckpointError::malformed(index, "JSON", error))?;
    let problem = |problem: String| CheckpointError::Index { file: index.to_owned(), problem }.wrap();
    let weight_map = map.get("weight_map").and_then(Value::as_object).filter(|weight_map| !weight_map.is_empty());
    let weight_map = weight_map.ok_or_else(|| problem("weight_map is missing or empty".into()))?;
    let mut assigned = HashMap::new();
    for (tensor, file) in weight_map {
        let plain = |name: &&str| {
            name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
        };
        let name = file.as_str().filter(plain).ok_or_else(|| {
            let got = shown(file);
            problem(format!(
                "tensor {} is in {got}, expected the name of a .safetensors file beside the index",
                quoted(tensor)
            ))
        })?;
        assigned.insert(tensor.clone(), name.to_owned());
    }
    Ok(assigned)
}
