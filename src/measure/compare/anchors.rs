//! Shapes that have been measured with PyTorch from the beginning of this crate on.

use super::experiment::Subject;
use crate::config::{BatchShape, preset};
use crate::error::Result;

/// Batch size and sequence length.
type Shape = (usize, usize);

const ROBERTA_LARGE: [Shape; 9] =
    [(1, 128), (1, 512), (1, 2048), (4, 512), (8, 512), (32, 128), (32, 512), (4, 2048), (1, 8192)];
const PYTHIA_410M: [Shape; 2] = [(1, 128), (1, 2048)];
const PYTHIA_1_4B: [Shape; 4] = [(1, 128), (1, 512), (1, 2048), (8, 2048)];
const GPT_J_6B: [Shape; 4] = [(1, 128), (1, 512), (1, 2048), (4, 2048)];

/// An encoder, and decoders with one norm and with two, with few tokens and many. Rotary embeddings are left out: eager PyTorch
/// needs several kernels for them, which would be most of what the comparison with few tokens shows.
///
/// # Errors
/// None, as long as there are presets of these names.
pub fn anchors() -> Result<Vec<Subject>> {
    let models: [(&str, &[Shape]); 4] = [
        ("roberta-large", &ROBERTA_LARGE),
        ("pythia-410m", &PYTHIA_410M),
        ("pythia-1.4b", &PYTHIA_1_4B),
        ("gpt-j-6b", &GPT_J_6B),
    ];
    let subject = |(name, shapes): (&str, &[Shape])| {
        let preset = preset(name)?;
        let mut config = preset.config.with_design(preset.config.layer.design.parallel());
        let rotary_left_out = config.layer.rotary.take().is_some();
        let shapes = shapes.iter().map(|&(batch, seq_len)| BatchShape::new(batch, seq_len)).collect::<Result<_>>()?;
        Ok(Subject { model: Some(name.to_owned()), config, rotary_left_out, shapes })
    };
    models.into_iter().map(subject).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_parallel_and_without_rotary_embeddings() {
        let anchors = anchors().unwrap();
        assert_eq!(anchors.iter().map(|subject| subject.shapes.len()).sum::<usize>(), 19);
        for Subject { model, config, rotary_left_out, .. } in &anchors {
            config.validate().unwrap();
            assert!(config.layer.design.is_parallel() && config.layer.rotary.is_none(), "{model:?}");
            assert_eq!(*rotary_left_out, model.as_deref() != Some("roberta-large"), "{model:?}");
        }
    }
}
