//! Results as JSON lines, as they come, or as one matrix when all are there.

use std::collections::HashMap;

use anyhow::{Result, bail};
use paf_cuda::Design;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use super::super::output::Sink;
use super::predict::Outcome;
use super::texts::Input;

/// Where results go, and in what form.
pub struct Output {
    sink: Sink,
    form: Form,
    /// What is not written yet.
    pending: Vec<u8>,
}

enum Form {
    /// The design is told where it is not what the checkpoint is for.
    Lines(Option<Design>),
    Npy,
    Safetensors(Design),
}

/// A line of the results.
#[derive(Serialize)]
struct Line {
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    design: Option<&'static str>,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Output {
    pub fn lines(sink: Sink, design: Option<Design>) -> Self {
        Self { sink, form: Form::Lines(design), pending: Vec::new() }
    }

    pub fn npy(sink: Sink) -> Self {
        Self { sink, form: Form::Npy, pending: Vec::new() }
    }

    pub fn safetensors(sink: Sink, design: Design) -> Self {
        Self { sink, form: Form::Safetensors(design), pending: Vec::new() }
    }

    /// The next result. A matrix has no place for one that failed.
    pub fn add(&mut self, input: &Input, outcome: Outcome) -> Result<()> {
        match (&self.form, outcome) {
            (Form::Lines(design), outcome) => {
                let done = !matches!(outcome, Outcome::Failed { .. });
                let tokens = done.then(|| input.len());
                let design = design.filter(|_| done).map(Design::name);
                serde_json::to_writer(&mut self.pending, &Line { line: input.line, tokens, design, outcome })?;
                self.pending.push(b'\n');
            }
            (_, Outcome::Vector { embedding }) => {
                self.pending.extend(embedding.iter().flat_map(|value| value.to_le_bytes()));
            }
            (_, Outcome::Failed { .. }) => bail!("a text failed; nothing was written"),
            (_, Outcome::Masks { .. } | Outcome::Next { .. }) => bail!("only vectors make a matrix"),
        }
        Ok(())
    }

    /// Writes what can be written by now; whether anybody still reads it.
    pub fn flush(&mut self) -> Result<bool> {
        match self.form {
            Form::Lines(_) => self.sink.append(&std::mem::take(&mut self.pending)),
            Form::Npy | Form::Safetensors(_) => Ok(true),
        }
    }

    /// Writes the rest; a file appears.
    pub fn finish(self, rows: usize, cols: usize) -> Result<()> {
        let Self { mut sink, form, pending } = self;
        match form {
            Form::Lines(_) => sink.write(pending),
            Form::Npy => {
                sink.append(&npy_header(rows, cols))?;
                sink.write(pending)
            }
            Form::Safetensors(design) => {
                let tensor = TensorView::new(Dtype::F32, vec![rows, cols], &pending)?;
                let metadata = HashMap::from([("design".to_owned(), design.name().to_owned())]);
                sink.write(safetensors::serialize([("embeddings", tensor)], Some(metadata))?)
            }
        }
    }
}

/// What precedes a matrix of little-endian f32, row after row, in NumPy's format 1.0: magic, the header's length, the
/// header, so that the data begins at a multiple of 64 bytes.
fn npy_header(rows: usize, cols: usize) -> Vec<u8> {
    let dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let before = b"\x93NUMPY\x01\x00".len() + 2;
    let len = (before + dictionary.len() + 1).next_multiple_of(64) - before;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((len as u16).to_le_bytes());
    header.extend(format!("{dictionary:width$}\n", width = len - 1).bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_numpy_writes() {
        let header = npy_header(3, 384);
        assert_eq!(header.len(), 128);
        assert_eq!(&header[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let text = std::str::from_utf8(&header[10..]).unwrap();
        assert_eq!(text.trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 384), }");
        assert!(text.ends_with(" \n"));
        assert!((0..24).all(|digits| npy_header(10_usize.pow(digits % 19), 1).len().is_multiple_of(64)));
    }
}
