//! A real model: all-MiniLM-L6-v2 gives the sentences of `minilm/sentences.txt` the vectors that it gives them in
//! Transformers (`minilm/make.py`). `make test-minilm` fetches the model and runs this.

use std::path::PathBuf;

use paf_cuda::checkpoint::Tokenizer;
use paf_cuda::cpu::{Model, Pooling};
use paf_cuda::{BatchShape, Schedule};
use safetensors::{Dtype, SafeTensors};

#[test]
#[ignore = "needs the model: make test-minilm"]
fn sentences_have_the_vectors_that_transformers_gives_them() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join(".minilm/model");
    let bytes = std::fs::read(root.join("tests/minilm/expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<u32> {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::I64);
        tensor.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect()
    };
    let expected = tensors.tensor("vectors").unwrap();
    assert_eq!((expected.dtype(), expected.shape()), (Dtype::F32, &[50, 384][..]));
    let expected: Vec<f32> = expected.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();

    let text = std::fs::read_to_string(root.join("tests/minilm/sentences.txt")).unwrap();
    let sentences: Vec<_> = text.lines().collect();
    let tokens = Tokenizer::open(&folder).unwrap().encode(&sentences).unwrap();
    let lengths = numbers("lengths").into_iter().map(|length| length as usize).collect();
    assert_eq!(tokens.shape, BatchShape::packed(lengths).unwrap());
    assert_eq!(tokens.ids, numbers("ids"));

    let model = Model::from_pretrained(&folder).unwrap();
    let hidden = model.forward(Schedule::Serial, &tokens.shape, &tokens.ids, Some(&tokens.token_types)).unwrap();
    let vectors = model.pool(Pooling::Mean, &tokens.shape, &hidden).unwrap();

    let mut least = f64::INFINITY;
    for ((sentence, got), expected) in sentences.iter().zip(vectors.chunks_exact(384)).zip(expected.chunks_exact(384)) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let cosine = dot(got, expected) / (dot(got, got) * dot(expected, expected)).sqrt();
        assert!(cosine >= 0.9999, "cosine {cosine}: {sentence}");
        least = least.min(cosine);
    }
    println!("{} sentences, least cosine 1 − {:.1e}", sentences.len(), 1.0 - least);
}
