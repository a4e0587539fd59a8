//! `config.json`, field by field: each is checked when it is read, and an error names it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::{CheckpointError, shown};
use super::files::regular_file;
use crate::config::{EncoderConfig, HiddenAct, MAX_DIMENSION, Rotary};
use crate::error::{Error, Result};

/// More than any model's; keeps a wrong file from being read whole.
const MOST_BYTES: u64 = 16 << 20;

/// The fields of a `config.json`. One that is `null` counts as missing, as it does for Hugging Face's classes.
pub(super) struct Fields {
    file: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn read(file: PathBuf) -> Result<Self> {
        let (mut open, bytes) = regular_file(&file)?;
        if bytes > MOST_BYTES {
            return Err(CheckpointError::unreadable(&file, format!("{bytes} bytes is too large")));
        }
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(&mut open, MOST_BYTES), &mut text)
            .map_err(|error| CheckpointError::unreadable(&file, error))?;
        let map = serde_json::from_slice(&text).map_err(|error| CheckpointError::malformed(&file, "JSON", error))?;
        Ok(Self { file, map })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The field's value unless it is missing or `null`.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// The error that `name` should have been `expected`.
    pub(super) fn error(&self, name: &str, expected: impl Into<String>) -> Error {
        let got = self.get(name).map_or("missing".into(), shown);
        CheckpointError::Field { file: self.file.clone(), field: name.into(), got, expected: expected.into() }.wrap()
    }

    /// A field's value by `parse`, or `default` if it is missing; neither is an error.
    fn parse<T>(
        &self,
        name: &str,
        default: Option<T>,
        expected: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        self.get(name).map_or(default, parse).ok_or_else(|| self.error(name, expected))
    }

    /// A dimension: from 1 to [`MAX_DIMENSION`].
    pub(super) fn dimension(&self, name: &str, default: Option<usize>) -> Result<usize> {
        let parse = |value: &Value| dimension(value, 1);
        self.parse(name, default, &format!("a number from 1 to {MAX_DIMENSION}"), parse)
    }

    /// A token id or the like: from 0 to [`MAX_DIMENSION`].
    pub(super) fn index(&self, name: &str, default: Option<usize>) -> Result<usize> {
        let parse = |value: &Value| dimension(value, 0);
        self.parse(name, default, &format!("a number from 0 to {MAX_DIMENSION}"), parse)
    }

    pub(super) fn bool(&self, name: &str, default: bool) -> Result<bool> {
        self.parse(name, Some(default), "true or false", Value::as_bool)
    }

    /// A positive number.
    pub(super) fn positive(&self, name: &str, default: Option<f64>) -> Result<f64> {
        self.parse(name, default, "a positive number", positive)
    }

    /// Fails unless the field is missing or `value`: for what would change the model in a way not implemented.
    pub(super) fn only(&self, name: &str, value: &Value) -> Result<()> {
        match self.get(name) {
            Some(got) if got != value => Err(self.error(name, format!("{value}: nothing else is implemented"))),
            _ => Ok(()),
        }
    }

    /// The longest sequence that a model with rotary embeddings was made for, if the file says so.
    pub(super) fn positions(&self, name: &str) -> Result<Option<usize>> {
        self.get(name).map(|_| self.dimension(name, None)).transpose()
    }

    /// The activation function. Two more names than [`HiddenAct`] has are the same function.
    pub(super) fn act(&self, name: &str, default: HiddenAct) -> Result<HiddenAct> {
        let expected = "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu or silu";
        self.parse(name, Some(default), expected, |value| match value.as_str()? {
            "gelu_fast" | "gelu_pytorch_tanh" => Some(HiddenAct::GeluNew),
            other => other.parse().ok(),
        })
    }

    /// Width of a head where `hidden_size` is shared out evenly.
    pub(super) fn head_dim(&self, hidden_size: usize, heads_name: &str, heads: usize) -> Result<usize> {
        if !hidden_size.is_multiple_of(heads) {
            return Err(self.error(heads_name, format!("a divisor of {hidden_size}, the hidden size")));
        }
        Ok(hidden_size / heads)
    }

    /// Rotary embeddings of halves. Transformers 5 writes `rope_parameters`; before, the base and the rotated share of a
    /// head were fields of their own, whose names depended on the family.
    pub(super) fn rotary(
        &self,
        head_dim: usize,
        (base_name, base): (&str, f64),
        (share_name, share): (&str, f64),
    ) -> Result<Rotary> {
        self.unscaled("rope_scaling")?;
        let parameters = self.unscaled("rope_parameters")?;
        let number = |own: &str, common: &str, default: f64| -> Result<f64> {
            match parameters.and_then(|parameters| parameters.get(common)).filter(|value| !value.is_null()) {
                None => self.positive(own, Some(default)),
                Some(value) => positive(value)
                    .ok_or_else(|| self.error("rope_parameters", format!("a positive number as {common}"))),
            }
        };
        let base = number(base_name, "rope_theta", base)?;
        let share = number(share_name, "partial_rotary_factor", share)?;
        if share > 1.0 {
            return Err(self.error(share_name, "at most 1, the whole of a head"));
        }
        // Cut, not rounded: as the original does it.
        Ok(Rotary { dim: (head_dim as f64 * share) as usize, base: base as f32, interleaved: false })
    }

    /// The base of rotary embeddings of whole heads, which must be given: in `rope_parameters`, or before Transformers 5 in a field of
    /// that name.
    pub(super) fn rotary_base(&self, name: &str) -> Result<f32> {
        let in_parameters = self.get("rope_parameters").and_then(|parameters| parameters.get("rope_theta"));
        if in_parameters.is_none_or(Value::is_null) {
            self.positive(name, None)?;
        }
        // Whole heads whatever share of them the parameters name: as the originals do it.
        Ok(self.rotary(2, (name, 1.0), ("", 1.0))?.base)
    }

    /// A field of rotary parameters, if there is one, which must not ask for anything but the plain kind.
    fn unscaled(&self, name: &str) -> Result<Option<&Map<String, Value>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let plain = value.as_object().filter(|parameters| {
            ["rope_type", "type"].iter().all(|key| parameters.get(*key).is_none_or(|kind| kind == "default"))
        });
        plain.map(Some).ok_or_else(|| self.error(name, "rope_type default: scaled positions are not implemented"))
    }

    /// The stack, if it can exist.
    pub(super) fn check(&self, config: EncoderConfig) -> Result<EncoderConfig> {
        match config.validate() {
            Ok(()) => Ok(config),
            // The same error, with the file it comes from.
            Err(Error::InvalidConfig { field, got, expected }) => {
                Err(CheckpointError::Field { file: self.file.clone(), field: field.into(), got, expected }.wrap())
            }
            Err(other) => Err(other),
        }
    }
}

fn dimension(value: &Value, least: usize) -> Option<usize> {
    let value = usize::try_from(value.as_u64()?).ok()?;
    (least..=MAX_DIMENSION).contains(&value).then_some(value)
}

/// As f32 too: what underflows or overflows there would not be the number of the file.
fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|&value| value as f32 > 0.0 && (value as f32).is_finite())
}
