//! The small checkpoints of `tests/checkpoints`, made as wide as kernels for a GPU need them: heads of 32 instead of 8 or 16. Names,
//! kinds of tensors and their types stay as Transformers saved them; the numbers are random.

use std::path::{Path, PathBuf};

use paf_cuda::Dtype as Element;
use paf_cuda::weights::random_activations;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Where the folders are: beside the program, where it was built, or in the working folder.
pub fn folders() -> Outcome<Vec<PathBuf>> {
    let beside = std::env::current_exe()?.with_file_name("checkpoints");
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints");
    let places = [beside, built, "tests/checkpoints".into()];
    let place = places.iter().find(|place| place.is_dir());
    let place = place.ok_or_else(|| format!("the folders of tests/checkpoints are in none of {places:?}"))?;
    let entries = std::fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<Outcome<Vec<_>>>()?;
    let mut folders: Vec<_> = entries.into_iter().filter(|path| path.is_dir()).collect();
    folders.sort();
    if folders.len() < 18 {
        return Err(format!("{}: only {} folders", place.display(), folders.len()).into());
    }
    Ok(folders)
}

/// What the intermediate size becomes: no multiple of any other width, and one of 8.
const INTERMEDIATE: usize = 104;

/// Writes the checkpoint of `from`, enlarged, into `to`.
pub fn enlarge(from: &Path, to: &Path) -> Outcome<()> {
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json"))?)?;
    let number = |names: [&str; 2]| names.iter().find_map(|name| config[*name].as_u64());
    let shared = || Some(number(["hidden_size", "n_embd"])? / number(["num_attention_heads", "n_head"])?);
    let factor = 32 / config["head_dim"].as_u64().or_else(shared).ok_or("config.json has no width of a head")?;
    let mut intermediate = None;
    for (name, value) in config.as_object_mut().ok_or("config.json is no object")? {
        match (name.as_str(), value.as_u64()) {
            ("hidden_size" | "n_embd" | "head_dim", Some(size)) => *value = (size * factor).into(),
            ("intermediate_size" | "ffn_hidden_size", Some(size)) => {
                intermediate = Some(size as usize);
                *value = INTERMEDIATE.into();
            }
            _ => {}
        }
    }
    std::fs::write(to.join("config.json"), config.to_string())?;

    let dimension = |size: usize| match size {
        size if Some(size) == intermediate => INTERMEDIATE,
        // Token types, positions and words.
        1 | 2 | 17 | 37 => size,
        _ => size * factor as usize,
    };
    let mut tensors = Vec::new();
    for file in std::fs::read_dir(from)?.map(|entry| Ok(entry?.path())).collect::<Outcome<Vec<_>>>()? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".safetensors") || name == "expected.safetensors" {
            continue;
        }
        let bytes = std::fs::read(&file)?;
        for (name, tensor) in SafeTensors::deserialize(&bytes)?.tensors() {
            let shape: Vec<_> = tensor.shape().iter().map(|&size| dimension(size)).collect();
            let floats = matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16);
            // Constants of older versions of Transformers are left out.
            if floats && matches!(shape.len(), 1 | 2) && !name.ends_with("inv_freq") {
                tensors.push((name, tensor.dtype(), shape));
            }
        }
    }
    tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let data: Vec<_> = tensors.iter().enumerate().map(|(i, of)| bytes(of, i as u64)).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, dtype, shape), data)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), data)?)));
    let views = views.collect::<Outcome<Vec<_>>>()?;
    Ok(std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None)?)?)
}

/// Random numbers under which activations keep their scale, and no bias or norm has the value that hides a mistake.
fn bytes((name, dtype, shape): &(String, Dtype, Vec<usize>), seed: u64) -> Vec<u8> {
    let lower = name.to_lowercase();
    let norm = ["norm", "ln_"].iter().any(|part| lower.contains(part));
    let (mean, deviation) = match shape[..] {
        [_, _] if lower.contains("embed") || lower.contains("wte") => (0.0, 1.0),
        [_, cols] => (0.0, 1.5 / (cols as f32).sqrt()),
        _ if norm && (lower.ends_with("weight") || lower.ends_with("gamma")) => (1.0, 0.2),
        _ => (0.0, 0.2),
    };
    let values = random_activations(1, shape.iter().product(), seed).into_iter().map(|x| mean + deviation * x);
    match dtype {
        Dtype::F16 => values.flat_map(|x| Element::F16.to_bits(x).to_le_bytes()).collect(),
        Dtype::BF16 => values.flat_map(|x| Element::Bf16.to_bits(x).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    }
}
