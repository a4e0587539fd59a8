//! A checkpoint of several hundred megabytes on its way to the device: what it takes of the host's memory, and that all of it arrives.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use paf_cuda::checkpoint::Checkpoint;
use paf_cuda::gpu::Model;
use paf_cuda::weights::LayerWeights;
use serde_json::{Map, json};

use super::*;

/// Beside the files, which are mapped.
const MOST_BYTES: usize = 256 << 20;

const HIDDEN: usize = 512;
/// Matrices of several of the pieces that weights travel in, which end nowhere with them.
const INTERMEDIATE: usize = 32_776;
const VOCAB: usize = 50_021;
/// A layer in each type that files have.
const LAYERS: [&str; 3] = ["F32", "BF16", "F16"];

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    let device = device.clone();
    let name = "loading: a large checkpoint takes little of the host's memory, and arrives as it is";
    trials.push(Trial::test(name, move || {
        let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
        loading(&device)
    }));
}

fn loading(device: &Device) -> Outcome {
    let folder = tempfile::tempdir()?;
    let file_bytes = write(folder.path())?;
    // What the driver and the pool of threads take when they are first used is not the loading's.
    Fixture::new(device, Design::PafPreNorm, &BatchShape::new(1, 8)?)?.run(Schedule::Fused, &[])?;
    let checkpoint = Checkpoint::open(folder.path())?;

    let (model, taken) = watched(|| Model::from_checkpoint(device, &checkpoint, Dtype::Bf16))?;
    let model = model?;
    if taken > MOST_BYTES {
        return Err(format!(
            "{taken} bytes of the host's memory for {file_bytes} of weights, expected {MOST_BYTES} at most"
        )
        .into());
    }
    // As a whole in the host's memory it is more, and is seen to be.
    let (layers, taken) = watched(|| checkpoint.layers().collect::<Vec<LayerWeights>>())?;
    let bytes: usize = layers.iter().flat_map(|layer| layer.fields().map(|(_, values)| values.len() * 4)).sum();
    if bytes <= MOST_BYTES || taken < bytes / 10 * 9 {
        return Err(format!("{bytes} bytes in the host's memory were seen as {taken}").into());
    }

    let layers: Vec<_> = layers.iter().map(|layer| layer.rounded(Dtype::Bf16)).collect();
    let weights = checkpoint.model_weights().rounded(Dtype::Bf16);
    // The logits are every row of the table's, to which the head is tied.
    verify::gpu::whole_model(&model, &layers, &weights, Schedule::Fused, &BatchShape::packed(vec![7, 1, 13])?)?;
    Ok(())
}

/// How much more of the host's memory there was in use meanwhile than before, bytes, without files that are mapped.
fn watched<T>(work: impl FnOnce() -> T) -> Result<(T, usize), Failed> {
    let before = anonymous_bytes()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| -> Result<usize, Failed> {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(anonymous_bytes()?);
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(most.max(anonymous_bytes()?))
        });
        let result = work();
        // Once more while there is what the work has left.
        let after = anonymous_bytes();
        done.store(true, Ordering::Relaxed);
        let most = watch.join().map_err(|_| Failed::from("the watch panicked"))??.max(after?);
        Ok((result, most.saturating_sub(before)))
    })
}

fn anonymous_bytes() -> Result<usize, Failed> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("/proc/self/status has no RssAnon")?;
    Ok(kib.parse::<usize>()? * 1024)
}

/// A Falcon, with tied embeddings; how many bytes its weights have.
fn write(folder: &Path) -> Result<usize, Failed> {
    let config = json!({
        "model_type": "falcon", "hidden_size": HIDDEN, "num_attention_heads": 8, "num_hidden_layers": LAYERS.len(),
        "ffn_hidden_size": INTERMEDIATE, "vocab_size": VOCAB, "max_position_embeddings": 64,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let (h, f) = (HIDDEN, INTERMEDIATE);
    let mut tensors = vec![("transformer.word_embeddings.weight".to_owned(), "F32", vec![VOCAB, h])];
    for (i, dtype) in LAYERS.into_iter().enumerate() {
        for (name, shape) in [
            ("input_layernorm.weight", vec![h]),
            ("input_layernorm.bias", vec![h]),
            ("self_attention.query_key_value.weight", vec![h + 2 * 64, h]),
            ("self_attention.dense.weight", vec![h, h]),
            ("mlp.dense_h_to_4h.weight", vec![f, h]),
            ("mlp.dense_4h_to_h.weight", vec![h, f]),
        ] {
            tensors.push((format!("transformer.h.{i}.{name}"), dtype, shape));
        }
    }
    tensors.extend(["weight", "bias"].map(|part| (format!("transformer.ln_f.{part}"), "F32", vec![h])));

    let (mut header, mut end) = (Map::new(), 0);
    for (name, dtype, shape) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * if *dtype == "F32" { 4 } else { 2 };
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
    }
    let header = json!(header).to_string();
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (seed, (name, dtype, shape)) in tensors.iter().enumerate() {
        // Under which activations keep their scale, and no piece of a tensor is another's.
        let (mean, deviation) = match shape[..] {
            [_, _] if name.contains("embeddings") => (0.0, 1.0),
            [_, cols] => (0.0, 1.0 / (cols as f32).sqrt()),
            _ => (if name.ends_with("weight") { 1.0 } else { 0.0 }, 0.2),
        };
        for value in
            random_activations(1, shape.iter().product(), seed as u64).into_iter().map(|x| mean + deviation * x)
        {
            match *dtype {
                "F32" => file.write_all(&value.to_le_bytes())?,
                "BF16" => file.write_all(&Dtype::Bf16.to_bits(value).to_le_bytes())?,
                _ => file.write_all(&Dtype::F16.to_bits(value).to_le_bytes())?,
            }
        }
    }
    file.into_inner()?.sync_all()?;
    Ok(end)
}
