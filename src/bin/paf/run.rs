//! `paf run`: texts in, vectors or predictions out, by a whole model.

mod engine;
mod predict;
pub mod texts;
mod timing;
mod write;

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args, ValueEnum};
use engine::{Engine, Largest};
use paf_cuda::checkpoint::{Checkpoint, Tokenizer};
use paf_cuda::cpu::Pooling;
use paf_cuda::{Design, Dtype, Error};
use predict::{Outcome, Predictor, Work};
use texts::{Input, Limits, Source, TextArguments, groups};
use timing::{Clock, Timing};
use write::Output;

use super::output::{Sink, note, progress};
use super::select::{Backend, DeviceArguments};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("texts").required(true).args(["text", "input"])))]
pub struct Arguments {
    /// Folder in Hugging Face's format: config.json, the weights as safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Where to run. What the GPU's kernels cannot run, auto runs on the CPU, and says so.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    #[command(flatten)]
    device: DeviceArguments,
    /// Element type on a GPU, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    texts: TextArguments,
    /// What to compute [default: by the checkpoint: fill-mask or next-token if it has the head for it, else embed]
    #[arg(long, value_enum)]
    task: Option<Task>,
    /// For embed: how a text's hidden states become one vector [default: mean]
    #[arg(long, value_enum)]
    pooling: Option<PoolingChoice>,
    /// For embed: divide each vector by its length (L2 norm).
    #[arg(long)]
    normalize: bool,
    /// For fill-mask and next-token: how many predictions, the most probable first [default: 5]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// For fill-mask: what texts have where a word is missing [default: `[MASK]` for bert, `<mask>` for roberta]
    #[arg(long, value_name = "TOKEN")]
    mask_token: Option<String>,
    /// Run BERT's or RoBERTa's weights in the parallel design. The paper's PAF-BERT and PAF-RoBERTa are opened so; weights
    /// that were trained in the serial design need further training before such results mean anything.
    #[arg(long)]
    as_paf: bool,
    /// Texts are packed into batches of at most so many tokens; a longer text is a batch of its own.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    batch_tokens: usize,
    /// Form of the results; npy and safetensors are for embed, and have a row a text.
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    /// Write the results to a file, or to stdout (-) [default: stdout]
    #[arg(long, value_name = "FILE|-")]
    output: Option<PathBuf>,
    /// Say on stderr, as a JSON object, how many seconds loading, reading, tokenizing, computing and writing took, and how many
    /// texts and tokens a second that makes of tokenizing and computing together.
    #[arg(long)]
    timing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Task {
    /// One vector a text.
    Embed,
    /// What each mask token stands for (BERT and RoBERTa with their heads).
    FillMask,
    /// What follows the text (decoders with their heads).
    NextToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PoolingChoice {
    /// The mean over the text's tokens.
    Mean,
    /// The first token, `[CLS]` or `<s>`.
    Cls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An object a line.
    Jsonl,
    /// NumPy's: one matrix of f32.
    Npy,
    /// A tensor `embeddings`, f32.
    Safetensors,
}

/// With so many tokens, texts times the longest of them is below what a batch may be.
const MOST_BATCH_TOKENS: usize = 1 << 16;

pub fn run(arguments: &Arguments) -> Result<()> {
    if !(1..=MOST_BATCH_TOKENS).contains(&arguments.batch_tokens) {
        return Err(invalid("batch_tokens", arguments.batch_tokens, format!("1 to {MOST_BATCH_TOKENS}")));
    }
    let (mut clock, mut timing) = (Clock::start(), Timing::default());
    let mut checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    let own = checkpoint.config().layer.design;
    if arguments.as_paf {
        checkpoint = checkpoint.with_design(Design::PafPostNorm)?;
    }
    let tokenizer = texts::tokenizer(&arguments.checkpoint, &checkpoint)?;
    timing.loading_s = clock.lap_s();
    let limits = Limits(checkpoint.embedding_sizes());
    let work = work(arguments, &checkpoint, &tokenizer, limits.0.vocab_size)?;

    let sink = Sink::open(arguments.output.as_deref())?.unwrap_or(Sink::Stdout);
    if arguments.format != Format::Jsonl && sink.is_stdout() && std::io::stdout().is_terminal() {
        return Err(invalid("output", "a terminal", "a file, or stdout that leads to one"));
    }
    let source = arguments.texts.source()?;
    timing.reading_s = clock.lap_s();
    let mask = if let Work::FillMask { mask, .. } = work { Some(mask) } else { None };
    let inputs = source.tokenize(&tokenizer, &limits, mask);
    timing.tokenizing_s = clock.lap_s();
    let failed = tell_failures(&source, &inputs);
    if failed > 0 && arguments.format != Format::Jsonl {
        bail!("{failed} of {} texts failed; nothing was written", inputs.len());
    }
    if arguments.as_paf {
        let design = checkpoint.config().layer.design;
        note(&format!("note: weights of {own} run in design {design}: unless trained for it, they need training"));
    }

    let design = checkpoint.config().layer.design;
    let mut output = match arguments.format {
        Format::Jsonl => Output::lines(sink, arguments.as_paf.then_some(design)),
        Format::Npy => Output::npy(sink),
        Format::Safetensors => Output::safetensors(sink, design),
    };
    let largest = Largest::of(inputs.iter().map(Input::len), arguments.batch_tokens);
    let engine = Engine::open(arguments.backend, &arguments.device, arguments.dtype, &checkpoint, largest)?;
    let mut predictor = Predictor { engine, tokenizer, work };
    timing.loading_s += clock.lap_s();
    let failed = run_batches(&mut predictor, &source, &inputs, arguments.batch_tokens, &mut output)?;
    timing.computing_s = clock.lap_s();
    output.finish(inputs.len(), predictor.engine.hidden_size())?;
    timing.writing_s = clock.lap_s();
    if arguments.timing {
        note(&serde_json::to_string(&timing.of(inputs.iter().map(Input::len)))?);
    }
    if failed > 0 {
        bail!("{failed} of {} texts failed", inputs.len());
    }
    Ok(())
}

/// Runs all inputs and writes their results; how many have none.
fn run_batches(
    predictor: &mut Predictor,
    source: &Source,
    inputs: &[Input],
    batch_tokens: usize,
    output: &mut Output,
) -> Result<usize> {
    let lengths: Vec<_> = inputs.iter().map(Input::len).collect();
    let bar = progress(inputs.len());
    let mut failed = 0;
    for group in groups(&lengths, batch_tokens) {
        let inputs = &inputs[group];
        let tokens: Vec<_> = inputs.iter().filter_map(|input| input.tokens.as_ref().ok()).collect();
        let mut outcomes = if tokens.is_empty() { Vec::new() } else { predictor.run(&tokens)? }.into_iter();
        for input in inputs {
            let outcome = match &input.tokens {
                Ok(_) => outcomes.next().context("a result for each text")?,
                Err(error) => Outcome::Failed { error: error.clone() },
            };
            if let Outcome::Failed { error } = &outcome {
                failed += 1;
                if input.tokens.is_ok() {
                    bar.suspend(|| note(&format!("error: {}: {error}", source.name(input.line))));
                }
            }
            output.add(input, outcome)?;
        }
        bar.inc(inputs.len() as u64);
        if !output.flush()? {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(failed)
}

/// Says on stderr which inputs cannot be run, the first of them with their reasons; how many they are.
fn tell_failures(source: &Source, inputs: &[Input]) -> usize {
    const MOST: usize = 20;
    let failures = || inputs.iter().filter_map(|input| Some((input.line, input.tokens.as_ref().err()?)));
    for (line, error) in failures().take(MOST) {
        note(&format!("error: {}: {error}", source.name(line)));
    }
    let failed = failures().count();
    if failed > MOST {
        note(&format!("error: {} more like these", failed - MOST));
    }
    failed
}

/// What to do, if the checkpoint can do it and the options are for it.
fn work(arguments: &Arguments, checkpoint: &Checkpoint, tokenizer: &Tokenizer, vocab_size: usize) -> Result<Work> {
    let (model_type, causal) = (checkpoint.model_type(), checkpoint.config().layer.causal);
    let by_head = if causal { Task::NextToken } else { Task::FillMask };
    let own = if checkpoint.has_head() { by_head } else { Task::Embed };
    let task = arguments.task.unwrap_or(own);
    if task != Task::Embed && task != own {
        let name = name(task);
        let (what, remedy) = if task == by_head {
            (format!("{name} with a checkpoint without a language-model head"), "use --task embed".into())
        } else if causal {
            (format!("{name} with a decoder ({model_type})"), "use --task next-token or embed".into())
        } else {
            (format!("{name} with an encoder ({model_type})"), "use --task fill-mask or embed".to_owned())
        };
        return Err(Error::Unsupported { what, remedy }.into());
    }
    let only = |given: bool, field: &'static str, tasks: &str| match given {
        true => Err(invalid(field, format!("given for {}", name(task)), format!("none: it is for {tasks}"))),
        false => Ok(()),
    };
    if task == Task::Embed {
        only(arguments.top_k.is_some(), "top_k", "fill-mask and next-token")?;
    } else {
        only(arguments.pooling.is_some(), "pooling", "embed")?;
        only(arguments.normalize, "normalize", "embed")?;
        only(arguments.format != Format::Jsonl, "format", "embed, unless it is jsonl")?;
    }
    only(arguments.mask_token.is_some() && task != Task::FillMask, "mask_token", "fill-mask")?;
    let top_k = arguments.top_k.unwrap_or(5.min(vocab_size));
    if !(1..=vocab_size).contains(&top_k) {
        return Err(invalid("top_k", top_k, format!("1 to vocab_size = {vocab_size}")));
    }
    Ok(match task {
        Task::Embed => {
            let pooling = match arguments.pooling {
                None | Some(PoolingChoice::Mean) => Pooling::Mean,
                Some(PoolingChoice::Cls) if causal => {
                    let what = format!("pooling cls with a decoder ({model_type})");
                    let remedy = "its first token has seen nothing of the text; use --pooling mean".into();
                    return Err(Error::Unsupported { what, remedy }.into());
                }
                Some(PoolingChoice::Cls) => Pooling::Cls,
            };
            Work::Embed { pooling, normalize: arguments.normalize }
        }
        Task::FillMask => {
            let default = if model_type == "roberta" { "<mask>" } else { "[MASK]" };
            let token = arguments.mask_token.as_deref().unwrap_or(default);
            let Some(mask) = tokenizer.token_to_id(token) else {
                return Err(invalid("mask_token", format!("{token:?}"), "a token of tokenizer.json (--mask-token)"));
            };
            Work::FillMask { mask, top_k }
        }
        Task::NextToken => Work::NextToken { top_k },
    })
}

fn name(task: Task) -> String {
    task.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn invalid(field: &'static str, got: impl std::fmt::Display, expected: impl Into<String>) -> anyhow::Error {
    Error::InvalidConfig { field, got: got.to_string(), expected: expected.into() }.into()
}
