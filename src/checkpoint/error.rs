//! What can be wrong with a checkpoint.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// Why a checkpoint could not be read: which file, which tensor or field, what was found, what was expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file is missing, no regular file, or cannot be read.
    #[error("{file}: {problem}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says, or what is wrong with the file.
        problem: String,
    },
    /// A file is not what its name says: JSON, safetensors, a tokenizer.
    #[error("{file} is not valid {format}: {problem}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// `JSON`, `safetensors` or `tokenizer`.
        format: &'static str,
        /// What the parser says.
        problem: String,
    },
    /// `model_type` in `config.json` is of no family that is mapped here.
    #[error("{file}: model_type {got} is not known; known are {known}")]
    UnknownModelType {
        /// The configuration file.
        file: PathBuf,
        /// The value found.
        got: String,
        /// The values there are, separated by commas.
        known: String,
    },
    /// A field of `config.json` is missing, of another type, out of range, or asks for what is not implemented; or one of
    /// `tokenizer.json` is at odds with its vocabulary, or the model's.
    #[error("{file}: {field} is {got}, expected {expected}")]
    Field {
        /// The configuration file, or the tokenizer's.
        file: PathBuf,
        /// Name of the field, or which it is.
        field: String,
        /// The value found, or `missing`.
        got: String,
        /// What would do.
        expected: String,
    },
    /// The model needs a tensor that no file has.
    #[error("{file} has no tensor {tensor}, which this model needs")]
    MissingTensor {
        /// The weight file, or the index of several.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// A file has a tensor that this model does not use, so that something would silently be left out.
    #[error("{file} has a tensor {tensor}, which this model has no use for")]
    ExtraTensor {
        /// The weight file.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape or element type.
    #[error("{file}: tensor {tensor} is {got}, expected {expected}")]
    Tensor {
        /// The weight file.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its shape or element type.
        got: String,
        /// What the configuration calls for.
        expected: String,
    },
    /// The index of a checkpoint in several files is at odds with them, or names a file outside the folder.
    #[error("{file}: {problem}")]
    Index {
        /// The index.
        file: PathBuf,
        /// What is wrong, with the names.
        problem: String,
    },
}

impl CheckpointError {
    pub(super) fn unreadable(file: &Path, problem: impl std::fmt::Display) -> Error {
        Self::Unreadable { file: file.to_owned(), problem: problem.to_string() }.wrap()
    }

    pub(super) fn malformed(file: &Path, format: &'static str, problem: impl std::fmt::Display) -> Error {
        Self::Malformed { file: file.to_owned(), format, problem: shown(problem) }.wrap()
    }

    /// As the crate's error. Not a `From`: beside it, `?` could no longer infer error types elsewhere in the crate.
    pub(super) fn wrap(self) -> Error {
        Error::Checkpoint(self)
    }
}

/// A value from a file for a message: quoted, escaped, and no longer than a line.
pub(super) fn quoted(value: &str) -> String {
    shown(format!("{value:?}"))
}

/// Whatever a file says, cut to the length of a line or two.
pub(super) fn shown(value: impl std::fmt::Display) -> String {
    const MOST: usize = 160;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
