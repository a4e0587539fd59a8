//! Weights as the files hold them, read a piece at a time on their way to a device.

use super::Checkpoint;
use super::files::Files;
use super::sources::{HeadSources, LayerSources, ModelSources, NormSource, Source, TransformSources};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::weights::{Elements, HeadElements, LayerElements, ModelElements, TransformElements};

struct Stored<'a> {
    files: &'a Files,
    source: &'a Source,
}

impl Elements for Stored<'_> {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        self.files.read_part(self.source, first, to);
        Ok(())
    }

    fn read_bits(&self, first: usize, dtype: Dtype, to: &mut [u16]) -> Result<()> {
        self.files.read_bits(self.source, first, dtype, to);
        Ok(())
    }
}

impl Checkpoint {
    /// The layers, from the first to the last.
    pub(crate) fn layer_elements(&self) -> impl Iterator<Item = LayerElements<'_>> {
        self.layers.iter().map(|layer| {
            let LayerSources { w_qkv, b_qkv, w_o, b_o, w_1, b_1, w_gate, b_gate, w_2, b_2, ln_1, ln_2 } = layer;
            LayerElements([
                ("w_qkv", self.stored(w_qkv)),
                ("b_qkv", self.stored(b_qkv)),
                ("w_o", self.stored(w_o)),
                ("b_o", self.stored(b_o)),
                ("w_1", self.stored(w_1)),
                ("b_1", self.stored(b_1)),
                ("w_gate", self.stored(w_gate)),
                ("b_gate", self.stored(b_gate)),
                ("w_2", self.stored(w_2)),
                ("b_2", self.stored(b_2)),
                ("ln_1.gamma", self.stored(&ln_1.gamma)),
                ("ln_1.beta", self.stored(&ln_1.beta)),
                ("ln_2.gamma", self.stored(&ln_2.gamma)),
                ("ln_2.beta", self.stored(&ln_2.beta)),
            ])
        })
    }

    /// Embeddings, final norm, pooler and head.
    pub(crate) fn model_elements<'a>(&'a self) -> ModelElements<'a> {
        let ModelSources { word, position, token_type, embedding_norm, final_norm, pooler, head, .. } = &self.model;
        let stored = |source: &'a Source| self.stored(source);
        let norm = |source: &'a NormSource| [self.stored(&source.gamma), self.stored(&source.beta)];
        ModelElements {
            word: stored(word),
            position: position.as_ref().map(|(table, _)| stored(table)),
            token_type: token_type.as_ref().map(stored),
            embedding_norm: embedding_norm.as_ref().map(norm),
            final_norm: final_norm.as_ref().map(norm),
            pooler: pooler.as_ref().map(|(weight, bias)| [stored(weight), stored(bias)]),
            head: head.as_ref().map(|HeadSources { transform, decoder, bias, scale }| HeadElements {
                transform: transform.as_ref().map(|TransformSources { weight, bias, act, norm: last }| {
                    TransformElements { dense: [stored(weight), stored(bias)], act: *act, norm: norm(last) }
                }),
                decoder: decoder.as_ref().map(stored),
                bias: bias.as_ref().map(stored),
                scale: *scale,
            }),
        }
    }

    fn stored<'a>(&'a self, source: &'a Source) -> Box<dyn Elements + 'a> {
        Box::new(Stored { files: &self.files, source })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Read in pieces of odd sizes, which meet nowhere with those of the files.
    fn read(elements: &dyn Elements) -> Vec<f32> {
        let mut values = vec![f32::NAN; elements.len()];
        let mut first = 0;
        for (i, size) in [1, 7, 2, 501, 13].into_iter().cycle().enumerate() {
            let end = (first + size + i).min(values.len());
            elements.read(first, &mut values[first..end]).unwrap();
            for dtype in [Dtype::Bf16, Dtype::F16] {
                let mut bits = vec![0x7fff; end - first];
                elements.read_bits(first, dtype, &mut bits).unwrap();
                let same = bits.iter().zip(&values[first..end]).all(|(&bits, &value)| bits == dtype.to_bits(value));
                assert!(same, "{dtype}, elements {first}..{end}");
            }
            first = end;
            if first == values.len() {
                return values;
            }
        }
        unreachable!()
    }

    #[test]
    fn pieces_are_what_the_whole_is() {
        for name in ["bert", "roberta_encoder", "gpt_neox", "gptj", "phi", "falcon_new", "falcon_heads", "cohere"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name);
            let checkpoint = Checkpoint::open(folder).unwrap();
            let mut layers = 0;
            for (LayerElements(fields), weights) in checkpoint.layer_elements().zip(checkpoint.layers()) {
                for ((name, elements), (expected_name, expected)) in fields.iter().zip(weights.fields()) {
                    assert_eq!((*name, &read(&**elements)), (expected_name, expected));
                }
                layers += 1;
            }
            assert_eq!(layers, checkpoint.config().num_hidden_layers);

            // The conversions from either side name every field: they meet if each has its own.
            let weights = checkpoint.model_weights();
            let (stored, slices) = (checkpoint.model_elements(), ModelElements::from(&weights));
            let flat = |elements: &ModelElements<'_>| {
                let ModelElements { word, position, token_type, embedding_norm, final_norm, pooler, head } = elements;
                let mut tensors = vec![("word", read(&**word))];
                let mut add = |name, tensor: &dyn Elements| tensors.push((name, read(tensor)));
                position.iter().for_each(|tensor| add("position", &**tensor));
                token_type.iter().for_each(|tensor| add("token type", &**tensor));
                embedding_norm.iter().flatten().for_each(|tensor| add("embedding norm", &**tensor));
                final_norm.iter().flatten().for_each(|tensor| add("final norm", &**tensor));
                pooler.iter().flatten().for_each(|tensor| add("pooler", &**tensor));
                if let Some(HeadElements { transform, decoder, bias, scale }) = head {
                    if let Some(TransformElements { dense, norm, .. }) = transform {
                        dense.iter().chain(norm).for_each(|tensor| add("transform", &**tensor));
                    }
                    decoder.iter().for_each(|tensor| add("decoder", &**tensor));
                    bias.iter().for_each(|tensor| add("bias", &**tensor));
                    tensors.push(("scale", vec![*scale]));
                }
                tensors
            };
            assert_eq!(flat(&stored), flat(&slices), "{name}");
            let act = |elements: &ModelElements<'_>| Some(elements.head.as_ref()?.transform.as_ref()?.act);
            assert_eq!(act(&stored), act(&slices), "{name}");
            let hidden_size = checkpoint.config().layer.hidden_size;
            assert_eq!(checkpoint.embedding_sizes(), weights.embeddings.sizes(hidden_size), "{name}");
            assert_eq!(checkpoint.has_head(), weights.head.is_some(), "{name}");
        }
    }
}
