//! Which checkpoint the weights come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A checkpoint, as far as its name and the sizes of its files tell it from another.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Name of its folder.
    pub name: String,
    /// `model_type` in its `config.json`.
    pub model_type: String,
    /// The files that hold the weights.
    pub files: Vec<WeightFile>,
}

/// One of the weight files.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct WeightFile {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: usize,
}

#[cfg(feature = "checkpoint")]
impl Checkpoint {
    pub(in crate::measure) fn of(checkpoint: &crate::checkpoint::Checkpoint) -> Self {
        let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // By its whole path: the folder may have been named ".".
        let file = checkpoint.weight_files().next().map(|(file, _)| file);
        let folder = file.and_then(|file| std::fs::canonicalize(file.parent()?.join(".")).ok());
        Self {
            name: folder.map_or_else(String::new, |folder| name(&folder)),
            model_type: checkpoint.model_type().into(),
            files: checkpoint.weight_files().map(|(file, bytes)| WeightFile { name: name(file), bytes }).collect(),
        }
    }
}
