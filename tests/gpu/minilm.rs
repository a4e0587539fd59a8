//! A real model: all-MiniLM-L6-v2, from the folder that `PAF_MINILM` names. Ignored unless asked for with `--ignored minilm`, and a
//! failure then where the folder is not to be had.

use paf_cuda::gpu::{Model, Pooling};
use safetensors::{Dtype as Stored, SafeTensors};

use super::*;

/// Ids of fifty sentences, and the vectors that Transformers gives them in f32 (`tests/minilm/make.py`).
const EXPECTED: &[u8] = include_bytes!("../minilm/expected.safetensors");
const HIDDEN: usize = 384;
const LEAST_COSINE: f64 = 0.999;

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let device = device.clone();
        let test = move || {
            let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
            vectors(&device, dtype)
        };
        let name = format!("minilm {dtype}: sentences have the vectors that Transformers gives them");
        trials.push(Trial::test(name, test).with_ignored_flag(true));
    }
}

fn vectors(device: &Device, dtype: Dtype) -> Outcome {
    let folder = std::env::var_os("PAF_MINILM").ok_or("PAF_MINILM names no folder of all-MiniLM-L6-v2")?;
    let tensors = SafeTensors::deserialize(EXPECTED)?;
    let numbers = |name: &str| -> Result<Vec<u32>, Failed> {
        let tensor = tensors.tensor(name)?;
        let numbers = tensor.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
        if tensor.dtype() == Stored::I64 { Ok(numbers) } else { Err(format!("{name} is {:?}", tensor.dtype()).into()) }
    };
    let lengths: Vec<_> = numbers("lengths")?.into_iter().map(|length| length as usize).collect();
    let (ids, shape) = (numbers("ids")?, BatchShape::packed(lengths)?);
    let expected: Vec<f32> =
        tensors.tensor("vectors")?.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();

    let model = Model::from_pretrained(device, folder, dtype)?;
    let mut workspace = model.workspace(&Stream::new(device)?, shape.rows(), shape.batch())?;
    workspace.poison()?;
    model.forward(Schedule::Serial, &shape, &ids, None, &mut workspace)?;
    let vectors = model.pool(Pooling::Mean, &mut workspace)?;
    if (vectors.len(), expected.len()) != (shape.batch() * HIDDEN, shape.batch() * HIDDEN) || shape.batch() != 50 {
        return Err(
            format!("{} numbers for {} sentences, expected {}", vectors.len(), shape.batch(), expected.len()).into()
        );
    }
    for (i, (got, expected)) in vectors.chunks_exact(HIDDEN).zip(expected.chunks_exact(HIDDEN)).enumerate() {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let cosine = dot(got, expected) / (dot(got, got) * dot(expected, expected)).sqrt();
        if cosine.is_nan() || cosine < LEAST_COSINE {
            return Err(format!("sentence {}: cosine {cosine}, expected at least {LEAST_COSINE}", i + 1).into());
        }
    }
    Ok(())
}
