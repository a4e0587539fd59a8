//! What the program writes: text on stdout, files that appear whole, progress on a terminal.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use paf_cuda::measure::report::Destination;

/// Writes to stdout. A reader that has gone away (`paf models | head -1`) has seen enough: no error.
pub fn print(text: &str) -> Result<()> {
    write_to_stdout(text.as_bytes()).map(|_| ())
}

/// Whether there still is a reader.
fn write_to_stdout(bytes: &[u8]) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("writing to standard output"),
    }
}

/// Writes a line to stderr, where there is one.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What casts doubt on a result, for under its table; stderr hears that there is something.
pub fn warnings(lines: &[String]) -> String {
    if !lines.is_empty() {
        note(&format!("warning: {} reasons to doubt these times, see under the table", lines.len()));
    }
    lines.iter().map(|line| format!("warning: {line}\n")).collect()
}

/// Where `--json`, `--csv`, `--plot` or `--output` puts its data.
pub enum Sink {
    Stdout,
    File(PathBuf, Destination),
}

impl Sink {
    /// Opens what the option names (`-` is stdout), before any work is done for it.
    pub fn open(path: Option<&Path>) -> Result<Option<Self>> {
        Ok(match path {
            None => None,
            Some(path) if path == Path::new("-") => Some(Self::Stdout),
            Some(path) => {
                let file = Destination::open(path).with_context(|| {
                    format!("cannot write {}: choose a file in a folder that exists and is writable", path.display())
                })?;
                Some(Self::File(path.to_owned(), file))
            }
        })
    }

    pub fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout)
    }

    /// Writes a part of the data; whether anybody still reads it.
    #[cfg(feature = "tokenizers")]
    pub fn append(&mut self, part: &[u8]) -> Result<bool> {
        match self {
            Self::Stdout => write_to_stdout(part),
            Self::File(path, file) => {
                file.append(part).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(true)
            }
        }
    }

    /// Writes the data, or the rest of it, whereupon the file appears.
    pub fn write(self, data: impl AsRef<[u8]>) -> Result<()> {
        match self {
            Self::Stdout => write_to_stdout(data.as_ref()).map(|_| ()),
            Self::File(path, file) => file.finish(data).with_context(|| format!("cannot write {}", path.display())),
        }
    }
}

/// The tables on stdout, or on stderr where stdout carries the data.
pub fn write_result(sink: Option<Sink>, text: &str, json: &str) -> Result<()> {
    match sink {
        Some(sink) => {
            if sink.is_stdout() {
                note(text.trim_end());
            } else {
                print(text)?;
            }
            sink.write(json)
        }
        None => print(text),
    }
}

/// Progress on stderr, if that is a terminal.
pub fn progress(len: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {bar:32} {pos}/{len} {elapsed}").expect("the template is fixed");
    ProgressBar::new(len as u64).with_style(style)
}
