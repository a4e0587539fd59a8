//! From texts to token ids, by the checkpoint's own `tokenizer.json` (the `tokenizers` crate).

use std::path::{Path, PathBuf};

use super::error::CheckpointError;
use super::files::regular_file;
use crate::config::BatchShape;
use crate::error::Result;

const FILE: &str = "tokenizer.json";
/// More than any tokenizer's; keeps a wrong file from being read whole.
const MOST_BYTES: u64 = 256 << 20;

/// A tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    file: PathBuf,
    tokenizer: tokenizers::Tokenizer,
}

/// Texts as a model takes them, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Packed: sequence `i` is text `i`.
    pub shape: BatchShape,
    /// `[rows]`, those of special tokens included.
    pub ids: Vec<u32>,
    /// `[rows]`.
    pub token_types: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a checkpoint's folder. Padding and truncation that it asks for are turned off: a batch is
    /// packed, and a text that is too long for the model is an error of the model instead of being cut unnoticed.
    ///
    /// # Errors
    /// [`CheckpointError::Unreadable`] and [`CheckpointError::Malformed`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let file = folder.as_ref().join(FILE);
        let (open, bytes) = regular_file(&file)?;
        if bytes > MOST_BYTES {
            return Err(CheckpointError::unreadable(&file, format!("{bytes} bytes is too large")));
        }
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(open, MOST_BYTES), &mut text)
            .map_err(|error| CheckpointError::unreadable(&file, error))?;
        let malformed = |error| CheckpointError::malformed(&file, "tokenizer", error);
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&text).map_err(malformed)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(malformed)?;
        Ok(Self { file, tokenizer })
    }

    /// Token ids of texts, with the special tokens that the model was trained with.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) if the tokenizer fails; what [`BatchShape::packed`] finds: no texts, or none with a token.
    pub fn encode(&self, texts: &[&str]) -> Result<Tokens> {
        let encodings = self
            .tokenizer
            .encode_batch(texts.to_vec(), true)
            .map_err(|error| CheckpointError::malformed(&self.file, "tokenizer", error))?;
        Ok(Tokens {
            shape: BatchShape::packed(encodings.iter().map(|encoding| encoding.len()).collect())?,
            ids: encodings.iter().flat_map(|encoding| encoding.get_ids()).copied().collect(),
            token_types: encodings.iter().flat_map(|encoding| encoding.get_type_ids()).copied().collect(),
        })
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it; `None` for ids that are in the model's tables alone.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }
}
