//! `paf`: the speedup of parallel attention and FFN on this machine, and what is needed to trust it.
//!
//! Exit codes: 0 done; 1 something failed (a wrong result, no driver, no memory, a file that cannot be written); 2 the
//! command line or the configuration asks for what cannot be; 3 everything was done, and a row has become slower than in the result
//! that `--baseline` names.

mod baseline;
#[cfg(feature = "cuda")]
mod compare;
mod complexity;
mod doctor;
#[cfg(feature = "cuda")]
mod kernels;
mod models;
mod options;
mod output;
mod peak;
#[cfg(feature = "cuda")]
mod plan;
mod report;
#[cfg(feature = "tokenizers")]
mod run;
mod select;
mod speedup;
#[cfg(feature = "cuda")]
mod trace;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use paf_cuda::Error;
#[cfg(feature = "checkpoint")]
use paf_cuda::checkpoint::CheckpointError;

/// Parallel attention and feed-forward (PAF) beside the serial design (SAF): verified, then measured.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 slower than the --baseline.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure SAF, and PAF in each schedule, beside each other.
    Speedup(Box<speedup::Arguments>),
    /// Measure both designs beside PyTorch's, in turns with it: eager, on two streams, in wide products, compiled.
    #[cfg(feature = "cuda")]
    Compare(Box<compare::Arguments>),
    /// Check every kernel and layer against the f64 oracle.
    Verify(verify::Arguments),
    /// Find the fastest schedule, and variants of its kernels, for each batch shape, by measuring.
    #[cfg(feature = "cuda")]
    Plan(Box<plan::Arguments>),
    /// Count what attention and FFN cost, predict what running both at once gains on a device, and measure it if it is there.
    Complexity(Box<complexity::Arguments>),
    /// Record a timeline of one forward call: which kernel ran when, on which stream.
    #[cfg(feature = "cuda")]
    Trace(Box<trace::Arguments>),
    /// Measure one kernel family beside what others offer.
    #[cfg(feature = "cuda")]
    #[command(subcommand)]
    Kernels(kernels::Command),
    /// Measure what this machine reaches: the rates of a large product and of a large copy.
    Peak(peak::Arguments),
    /// Run a checkpoint over texts: vectors, predictions for masks, or for the next token.
    #[cfg(feature = "tokenizers")]
    Run(Box<run::Arguments>),
    /// Look at driver, device and build, and say what to do about what is wrong.
    Doctor,
    /// List the models that --model knows, with their dimensions.
    Models,
    /// Print the tables of result files again, in Markdown; draw them; or make one HTML page of a folder of them.
    Report(report::Arguments),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Speedup(arguments) => speedup::run(&arguments),
        #[cfg(feature = "cuda")]
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        #[cfg(feature = "cuda")]
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Complexity(arguments) => complexity::run(&arguments),
        #[cfg(feature = "cuda")]
        Command::Trace(arguments) => trace::run(&arguments),
        #[cfg(feature = "cuda")]
        Command::Kernels(command) => kernels::run(&command),
        Command::Peak(arguments) => peak::run(&arguments),
        #[cfg(feature = "tokenizers")]
        Command::Run(arguments) => run::run(&arguments),
        Command::Doctor => doctor::run(),
        Command::Models => models::run(),
        Command::Report(arguments) => report::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done if even this cannot be written.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<baseline::Slower>() {
        return 3;
    }
    match error.downcast_ref::<Error>() {
        Some(
            Error::InvalidConfig { .. }
            | Error::Unsupported { .. }
            | Error::Mismatch { .. }
            | Error::UnknownModel { .. },
        ) => 2,
        #[cfg(feature = "checkpoint")]
        Some(Error::Checkpoint(CheckpointError::UnknownModelType { .. } | CheckpointError::Field { .. })) => 2,
        _ => 1,
    }
}
