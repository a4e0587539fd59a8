//! `paf report`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use paf_cuda::measure::page::{self, Content, File};
use paf_cuda::measure::results::{self, Results};
use paf_cuda::measure::{complexity, plot, report};

use super::output::{Sink, note, print};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Files that `paf speedup`, `paf compare`, `paf plan`, `paf complexity`, `paf trace`, `paf kernels …` or `paf peak` wrote with --json, or
    /// folders of such files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Of comparisons a line for each batch shape: SAF beside PAF, ours beside PyTorch's.
    #[arg(long, conflicts_with_all = ["plot", "html"])]
    summary: bool,
    /// Instead of tables, draw the ratios of all files, which must be `paf speedup`'s, beside their tokens, or one of `paf
    /// complexity`'s beside its seq_len: an SVG in a file, or on stdout (-).
    #[arg(long, value_name = "FILE|-")]
    plot: Option<PathBuf>,
    /// Write everything as one HTML page, with pictures, timelines (Chrome's trace format) and methods, to a file, or to stdout (-) without the
    /// tables. It needs no other file and no network.
    #[arg(long, value_name = "FILE|-", conflicts_with = "plot")]
    html: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(sink) = Sink::open(arguments.plot.as_deref())? {
        return sink.write(picture(&arguments.files)?);
    }
    let sink = Sink::open(arguments.html.as_deref())?;
    let files = files(&arguments.files)?;
    let tables: Vec<_> = files.iter().filter_map(|file| table(file, arguments.summary)).collect();
    let text = tables.join("\n");
    let Some(sink) = sink else { return print(&text) };
    let html = page::html(&files)?;
    if !sink.is_stdout() {
        print(&text)?;
    }
    sink.write(html)
}

/// The files that are named, and those of the folders that are.
fn files(paths: &[PathBuf]) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(folder(path)?);
        } else {
            files.push(file(path)?);
        }
    }
    Ok(files)
}

/// The JSON files of a folder, by name; those that hold no results are said to.
fn folder(path: &Path) -> Result<Vec<File>> {
    let entries = std::fs::read_dir(path).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let entries = entries.with_context(|| format!("cannot read {}", path.display()))?;
    let mut paths: Vec<_> = entries.iter().map(std::fs::DirEntry::path).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let mut files = Vec::new();
    for path in &paths {
        let file = File::read(name(path), &read(path)?);
        if let Content::Other(why) = &file.content {
            note(&format!("{} is not shown: it {why}", path.display()));
        }
        files.push(file);
    }
    if files.iter().all(|file| matches!(file.content, Content::Other(_))) {
        bail!("{} has no result files, which {} write with --json FILE.json", path.display(), results::commands("and"));
    }
    Ok(files)
}

/// A file that is named: it has to hold something.
fn file(path: &Path) -> Result<File> {
    let file = File::read(name(path), &read(path)?);
    match file.content {
        Content::Other(why) => bail!("{} {why}", path.display()),
        _ => Ok(file),
    }
}

/// A file's text.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The table of one file, in Markdown, and under it what casts doubt on it; of a timeline, what there is on it.
fn table(file: &File, summary: bool) -> Option<String> {
    match &file.content {
        Content::Results(results) if summary => Some(results.summary() + &counted(&file.name, &results.warnings())),
        Content::Results(results) => Some(results.markdown() + &listed(&results.warnings())),
        Content::Trace(_, Some(trace)) => Some(trace.markdown()),
        Content::Trace(trace, None) => Some(format!("{}: {}\n", file.name, trace.summary())),
        Content::Other(_) => None,
    }
}

/// Doubts under a table, if there are any.
fn listed(doubts: &[String]) -> String {
    let lines: String = doubts.iter().map(|doubt| format!("- warning: {doubt}\n")).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// How many doubts there are, under what shows a file at a glance, and where they are named.
fn counted(file: &str, doubts: &[String]) -> String {
    let kinds = match doubts.len() {
        0 => return String::new(),
        1 => "1 kind".into(),
        count => format!("{count} kinds"),
    };
    format!("\nWarning: {kinds} of doubt about these times, named by `paf report {file}`.\n")
}

/// The ratios of all files, or blocks and layers of one.
fn picture(paths: &[PathBuf]) -> Result<String> {
    let mut speedups = Vec::new();
    for path in paths {
        let text = read(path)?;
        let schema = results::schema(&text).map_err(|error| anyhow!("{} {error}", path.display()))?;
        if schema != report::SCHEMA && !(schema == complexity::SCHEMA && paths.len() == 1) {
            bail!(
                "{} has schema {schema:?}, a plot is made of files of {:?}, or of one of {:?}",
                path.display(),
                report::SCHEMA,
                complexity::SCHEMA
            );
        }
        match Results::parse(&text).map_err(|error| anyhow!("{} {error}", path.display()))? {
            Results::Speedup(report) => speedups.push(report),
            Results::Complexity(report) => return Ok(plot::complexity(&report)?),
            _ => unreachable!("the schema is one of these two"),
        }
    }
    Ok(plot::svg(&speedups)?)
}
