//! From texts to token ids, by the checkpoint's own `tokenizer.json` (the `tokenizers` crate).
//!
//! That crate goes its own way where the file is at odds with itself: it numbers an added token as it likes, whatever number the
//! file gives it. Here that is an error.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::error::{CheckpointError, quoted, shown};
use super::files::regular_file;
use crate::config::BatchShape;
use crate::error::{Error, Result};
use crate::weights::EmbeddingSizes;

const FILE: &str = "tokenizer.json";
/// More than any tokenizer's; keeps a wrong file from being read whole.
const MOST_BYTES: u64 = 256 << 20;

/// A tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    file: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    /// The token with the largest id, if there is one.
    last: Option<(u32, String)>,
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
    /// [`CheckpointError::Unreadable`] and [`CheckpointError::Malformed`]; [`CheckpointError::Field`] where the file is at odds
    /// with itself: two tokens with one id, or a special, padding or unknown token that the vocabulary does not have, or has under
    /// another id.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let file = folder.as_ref().join(FILE);
        let (open, bytes) = regular_file(&file)?;
        if bytes > MOST_BYTES {
            return Err(CheckpointError::unreadable(&file, format!("{bytes} bytes is too large")));
        }
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(open, MOST_BYTES), &mut text)
            .map_err(|error| CheckpointError::unreadable(&file, error))?;
        let mut tokenizer = contained(&file, || tokenizers::Tokenizer::from_bytes(&text))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| CheckpointError::malformed(&file, "tokenizer", error))?;
        let said =
            serde_json::from_slice(&text).map_err(|error| CheckpointError::malformed(&file, "tokenizer", error))?;
        let last = Vocabulary { file: &file, tokenizer: &tokenizer }.check(&said)?;
        Ok(Self { file, tokenizer, last })
    }

    /// Fails if a token's id is none of the model's.
    ///
    /// # Errors
    /// [`CheckpointError::Field`].
    pub fn check(&self, sizes: &EmbeddingSizes) -> Result<()> {
        match &self.last {
            Some((id, token)) if *id as usize >= sizes.vocab_size => {
                let expected = format!("less than {}, the model's vocab_size", sizes.vocab_size);
                Err(at_odds(&self.file, format!("id of the token {}", quoted(token)), id, expected))
            }
            _ => Ok(()),
        }
    }

    /// Token ids of texts, with the special tokens that the model was trained with.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) if the tokenizer fails; what [`BatchShape::packed`] finds: no texts, or none with a token.
    pub fn encode(&self, texts: &[&str]) -> Result<Tokens> {
        let encodings = contained(&self.file, || self.tokenizer.encode_batch(texts.to_vec(), true))?;
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

/// What `work` with the `tokenizers` crate gives. Some files make that crate panic, such as one whose merges are shorter than their
/// prefix: whatever it is, it is an error of the file.
fn contained<T>(file: &Path, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    // Nothing that a panic could leave half done is looked at again: `work` has what it changes to itself.
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("the parser failed: {}", text.unwrap_or("it does not say why")).into())
        })
        .map_err(|error| CheckpointError::malformed(file, "tokenizer", error))
}

/// What the file says that the `tokenizers` crate does not hold it to.
#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    padding: Option<Padding>,
    truncation: Option<Truncation>,
    post_processor: Option<Value>,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Padding {
    pad_id: u32,
    pad_token: String,
}

#[derive(Deserialize)]
struct Truncation {
    max_length: usize,
    stride: usize,
}

#[derive(Deserialize)]
struct Model {
    unk_token: Option<String>,
}

fn at_odds(file: &Path, field: String, got: impl Display, expected: String) -> Error {
    CheckpointError::Field { file: file.to_owned(), field, got: shown(got), expected }.wrap()
}

/// The tokens that there are, to hold the rest of the file against.
struct Vocabulary<'a> {
    file: &'a Path,
    tokenizer: &'a tokenizers::Tokenizer,
}

impl Vocabulary<'_> {
    /// The token with the largest id, if nothing is at odds.
    fn check(&self, said: &Said) -> Result<Option<(u32, String)>> {
        for AddedToken { id, content } in &said.added_tokens {
            self.has("added token", content, *id)?;
        }
        if let Some(Padding { pad_id, pad_token }) = &said.padding {
            self.has("padding token", pad_token, *pad_id)?;
        }
        if let Some(Truncation { max_length, stride }) = said.truncation
            && stride >= max_length
        {
            let expected = format!("less than max_length, {max_length}");
            return Err(at_odds(self.file, "stride of truncation".into(), stride, expected));
        }
        // Files of byte-level tokenizers name an unknown token that is empty, where there is none.
        let unknown = said.model.as_ref().and_then(|model| model.unk_token.as_ref()).filter(|token| !token.is_empty());
        if let Some(token) = unknown
            && self.tokenizer.token_to_id(token).is_none()
        {
            return Err(at_odds(self.file, "unk_token".into(), quoted(token), "a token of the vocabulary".into()));
        }
        self.post_processor(said.post_processor.as_ref().unwrap_or(&Value::Null))?;

        let mut tokens: Vec<_> = self.tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        // In the order of the tokens too, so that of several pairs it is always the same one.
        tokens.sort_unstable();
        if let Some(((id, first), (_, second))) = tokens.iter().zip(tokens.iter().skip(1)).find(|(a, b)| a.0 == b.0) {
            let (field, expected) =
                (format!("id of the token {}", quoted(second)), format!("other than {}'s", quoted(first)));
            return Err(at_odds(self.file, field, id, expected));
        }
        Ok(tokens.pop())
    }

    /// Fails unless a token has this id.
    fn has(&self, what: &str, token: &str, id: u32) -> Result<()> {
        let expected = match self.tokenizer.token_to_id(token) {
            Some(own) if own == id => return Ok(()),
            Some(own) => format!("{own}, as in the vocabulary"),
            None => "a token of the vocabulary".into(),
        };
        Err(at_odds(self.file, format!("id of the {what} {}", quoted(token)), id, expected))
    }

    /// Special tokens that are put around texts. The crate has seen to it that the fields are of the right types.
    fn post_processor(&self, processor: &Value) -> Result<()> {
        let has = |token: &Value, id: &Value| match (token.as_str(), id.as_u64()) {
            (Some(token), Some(id)) => self.has("special token", token, u32::try_from(id).unwrap_or(u32::MAX)),
            _ => Ok(()),
        };
        let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
        match processor["type"].as_str() {
            Some("Sequence") => {
                array(&processor["processors"]).iter().try_for_each(|processor| self.post_processor(processor))
            }
            Some("TemplateProcessing") => {
                let special_tokens = &processor["special_tokens"];
                for piece in ["single", "pair"].iter().flat_map(|template| array(&processor[*template])) {
                    let id = &piece["SpecialToken"]["id"];
                    if let Some(name) = id.as_str().filter(|name| special_tokens.get(name).is_none()) {
                        let expected = "one of its special_tokens".into();
                        return Err(at_odds(
                            self.file,
                            "special token of post_processor".into(),
                            quoted(name),
                            expected,
                        ));
                    }
                }
                special_tokens.as_object().into_iter().flatten().try_for_each(|(_, special)| {
                    let ids = array(&special["ids"]);
                    array(&special["tokens"]).iter().zip(&ids).try_for_each(|(token, id)| has(token, id))
                })
            }
            _ => ["cls", "sep"].iter().try_for_each(|end| has(&processor[*end][0], &processor[*end][1])),
        }
    }
}
