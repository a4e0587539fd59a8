//! From what the user gave to token ids: every input keeps its place, and its reason if it cannot be run.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use paf_cuda::Error;
use paf_cuda::checkpoint::{Checkpoint, Tokenizer, Tokens};
use paf_cuda::weights::EmbeddingSizes;
use rayon::prelude::*;
use serde_json::{Map, Value};

/// Which texts.
#[derive(Debug, Args)]
pub struct TextArguments {
    /// A text; may be given several times.
    #[arg(long)]
    text: Vec<String>,
    /// Texts as JSON lines, an object each, in a file or on stdin (-). Blank lines are skipped.
    #[arg(long, value_name = "FILE|-")]
    input: Option<PathBuf>,
    /// Field of those objects that holds the text.
    #[arg(long, value_name = "NAME", conflicts_with = "text", default_value = "text")]
    field: String,
}

impl TextArguments {
    /// Whether there are any.
    pub fn are_absent(&self) -> bool {
        self.text.is_empty() && self.input.is_none()
    }

    pub fn source(&self) -> Result<Source> {
        match &self.input {
            Some(path) => Source::json_lines(path, &self.field),
            None => Ok(Source::arguments(&self.text)),
        }
    }

    /// How many tokens each text has; an error for one that the model cannot run.
    pub fn lengths(&self, folder: &Path, checkpoint: &Checkpoint) -> Result<Vec<usize>> {
        let source = self.source()?;
        let inputs = source.tokenize(&tokenizer(folder, checkpoint)?, &Limits(checkpoint.embedding_sizes()), None);
        let length = |input: &Input| match &input.tokens {
            Ok(_) => Ok(input.len()),
            Err(error) => bail!("{}: {error}", source.name(input.line)),
        };
        inputs.iter().map(length).collect()
    }
}

/// The checkpoint's own, none of whose ids the model lacks.
pub fn tokenizer(folder: &Path, checkpoint: &Checkpoint) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::open(folder)
        .context("texts need the checkpoint's tokenizer as Transformers' fast tokenizers save it")?;
    tokenizer.check(&checkpoint.embedding_sizes()).context("tokenizer.json is another model's")?;
    Ok(tokenizer)
}

/// Where the texts come from, and the texts.
pub struct Source {
    /// The file; `None` where texts are arguments.
    file: Option<PathBuf>,
    texts: Vec<Text>,
}

/// The line of a file, or the number of an argument, from 1; and the text, or why there is none.
type Text = (usize, Result<String, String>);

/// A text as the model takes it, or why it does not.
pub struct Input {
    pub line: usize,
    pub tokens: Result<Tokens, String>,
}

impl Input {
    /// Tokens; none of what cannot be run.
    pub fn len(&self) -> usize {
        self.tokens.as_ref().map_or(0, |tokens| tokens.ids.len())
    }
}

/// What a model has tables for.
pub struct Limits(pub EmbeddingSizes);

impl Limits {
    fn check(&self, tokens: &Tokens) -> Result<(), String> {
        let len = tokens.ids.len();
        if let Some(most) = self.0.max_sequence_len().filter(|&most| len > most) {
            return Err(format!(
                "the text is too long: {len} tokens, the model has positions for {most} (max_position_embeddings)"
            ));
        }
        let types = self.0.type_vocab_size.unwrap_or(usize::MAX);
        match tokens.token_types.iter().find(|&&id| id as usize >= types) {
            Some(id) => {
                Err(format!("token type {id} is none of the model's {types}: tokenizer.json is another model's"))
            }
            None => Ok(()),
        }
    }
}

impl Source {
    pub fn arguments(texts: &[String]) -> Self {
        let texts = texts.iter().enumerate().map(|(i, text)| (i + 1, not_empty(text))).collect();
        Self { file: None, texts }
    }

    /// The objects' `field` in a file, or on stdin if it is `-`. A line that has no text does not keep others from being
    /// read.
    pub fn json_lines(file: &Path, field: &str) -> Result<Self> {
        let mut bytes = Vec::new();
        let stdin = file == Path::new("-");
        let read = if stdin {
            std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
        } else {
            std::fs::read(file).map(|read| bytes = read)
        };
        let file = if stdin { PathBuf::from("standard input") } else { file.to_owned() };
        read.with_context(|| format!("cannot read {}", file.display()))?;
        let lines = bytes.split(|&byte| byte == b'\n').enumerate();
        let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
        let texts: Vec<_> = lines.map(|(i, line)| (i + 1, text_of(line, field))).collect();
        if texts.is_empty() {
            bail!("{} has no lines", file.display());
        }
        Ok(Self { file: Some(file), texts })
    }

    /// How messages name an input.
    pub fn name(&self, line: usize) -> String {
        match &self.file {
            Some(file) => format!("{}, line {line}", file.display()),
            None => format!("text {line}"),
        }
    }

    /// Token ids of every text, checked against what the model has tables for. Where a task is to predict `mask`, a text
    /// without it is none to run.
    pub fn tokenize(&self, tokenizer: &Tokenizer, limits: &Limits, mask: Option<u32>) -> Vec<Input> {
        let tokens = |text: &Result<String, String>| {
            let tokens = tokenizer.encode(&[text.as_ref().map_err(String::clone)?]).map_err(|error| match error {
                Error::InvalidConfig { field: "Σ lengths", got, .. } if got == "0" => "the text has no tokens".into(),
                other => other.to_string(),
            })?;
            limits.check(&tokens)?;
            match mask {
                Some(mask) if !tokens.ids.contains(&mask) => {
                    let token = tokenizer.id_to_token(mask).unwrap_or_default();
                    Err(format!("the text has no {token}"))
                }
                _ => Ok(tokens),
            }
        };
        self.texts.par_iter().map(|(line, text)| Input { line: *line, tokens: tokens(text) }).collect()
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("the text is empty".into()) } else { Ok(text.into()) }
}

/// The text in a JSON line.
fn text_of(line: &[u8], field: &str) -> Result<String, String> {
    let line =
        std::str::from_utf8(line).map_err(|error| format!("invalid UTF-8 at byte {}", error.valid_up_to() + 1))?;
    let value: Value = serde_json::from_str(line).map_err(|error| {
        // The parser counts lines as well, and knows of one.
        let text = error.to_string();
        let problem = text.split(" at line ").next().unwrap_or(&text);
        format!("not valid JSON: {problem} at column {}", error.column())
    })?;
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let object: &Map<_, _> =
        value.as_object().ok_or_else(|| format!("the line is {}, expected an object", kind(&value)))?;
    let text = object.get(field).ok_or_else(|| format!("there is no field {field:?}"))?;
    not_empty(text.as_str().ok_or_else(|| format!("the field {field:?} is {}, expected a string", kind(text)))?)
}

/// Neighbouring inputs that run together: as many as have no more than `most` tokens, or one that has more.
pub fn groups(lengths: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut first, mut tokens) = (0, 0);
    for (i, &len) in lengths.iter().enumerate() {
        if tokens > 0 && tokens + len > most {
            groups.push(first..i);
            (first, tokens) = (i, 0);
        }
        tokens += len;
    }
    if first < lengths.len() {
        groups.push(first..lengths.len());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_at_most_so_many_tokens_unless_one_text_has_more() {
        assert_eq!(groups(&[3, 4, 0, 1, 9, 2, 0], 8), [0..4, 4..5, 5..7]);
        assert_eq!(groups(&[9, 9], 8), [0..1, 1..2]);
        assert_eq!(groups(&[0, 0, 8, 1], 8), [0..3, 3..4]);
        assert_eq!(groups(&[0, 0], 1), std::slice::from_ref(&(0..2)));
        assert!(groups(&[], 8).is_empty());
    }

    #[test]
    fn lines_without_a_text_say_why() {
        let error = |line: &[u8]| text_of(line, "text").unwrap_err();
        assert_eq!(text_of(b"{\"id\": 3, \"text\": \"a \\u00e9\"}\r", "text").unwrap(), "a é");
        assert_eq!(error(b"{\"text\": \"\xff\"}"), "invalid UTF-8 at byte 11");
        assert_eq!(error(b"{\"text\": "), "not valid JSON: EOF while parsing a value at column 9");
        assert!(error(b"{\"text\": \"a\"} {}").starts_with("not valid JSON: trailing characters"));
        assert!(error(b"{\"text\": \"\\ud800\"}").starts_with("not valid JSON: "));
        assert_eq!(error(b"[1]"), "the line is an array, expected an object");
        assert_eq!(error(b"{}"), "there is no field \"text\"");
        assert_eq!(error(b"{\"text\": 1}"), "the field \"text\" is a number, expected a string");
        assert_eq!(error(b"{\"text\": \"\"}"), "the text is empty");
    }
}
