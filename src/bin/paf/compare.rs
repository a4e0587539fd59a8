//! `paf compare`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use paf_cuda::measure::compare::{Experiment, Peer, Subject, Way, anchors};
use paf_cuda::measure::report::shape_name;
use paf_cuda::measure::speedup::{Engine, Mode, Step};
use paf_cuda::{Dtype, Error};

use super::options::{ModelArguments, SamplingArguments, ShapeArguments};
use super::output::{Sink, note, progress, warnings, write_result};
use super::select::DeviceArguments;

#[derive(Debug, Args)]
#[command(mut_arg("seconds", |seconds| seconds.default_value("3")))]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    shapes: ShapeArguments,
    /// Nineteen shapes of roberta-large, pythia-410m, pythia-1.4b and gpt-j-6b, without rotary embeddings; with --model those of that one
    #[arg(long, conflicts_with_all = ["hidden_size", "design", "causal", "without_rotary", "layers", "batch", "seq", "lengths", "packed"])]
    anchors: bool,
    /// How PyTorch runs them: eager, two-stream, fused; compile (torch.compile), which takes a minute a shape
    #[arg(long, value_delimiter = ',', default_value = "eager,two-stream,fused")]
    peers: Vec<Way>,
    /// The Python whose PyTorch is measured, or `none` [default: python3, if that has PyTorch]
    #[arg(long, value_name = "PYTHON")]
    python: Option<String>,
    /// Element type, bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Write everything, with all raw samples, to a file, or to stdout (-).
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let experiment = Experiment {
        subjects: subjects(arguments)?,
        schedules: Vec::new(),
        modes: vec![Mode::Graph],
        ways: Way::ALL.into_iter().filter(|way| arguments.peers.contains(way)).collect(),
        seed: arguments.sampling.seed,
        effort: arguments.sampling.effort()?,
    };
    experiment.validate()?;
    let sink = Sink::open(arguments.json.as_deref())?;
    let device = arguments.device.open()?;
    let mut peer = peer(arguments.python.as_deref(), device.info().ordinal)?;
    if let Err(error) = &peer {
        note(&format!("{error}: measured without it; --python names a Python that has PyTorch"));
    }

    let shapes = experiment.subjects.iter().map(|subject| subject.shapes.len()).sum();
    let bar = progress(shapes);
    let report = experiment.run(
        &Engine::Gpu(device, arguments.dtype),
        peer.as_mut().map_err(|error| error.clone()),
        |subject, shape, step| {
            let before = experiment.subjects[..subject].iter().map(|subject| subject.shapes.len()).sum::<usize>();
            let subject = &experiment.subjects[subject];
            let name = subject.model.as_deref().unwrap_or("custom dimensions");
            let of = &subject.shapes[shape];
            let of = shape_name(of.batch(), of.seq_len(), of.is_packed());
            bar.set_position((before + shape) as u64);
            bar.set_message(match step {
                Step::Weights { n, of } => format!("{name}: weights of layer {n} of {of}"),
                Step::Plan => format!("{name}: planning {of}"),
                Step::Verify => format!("{name}: verifying {of}"),
                Step::Round(_) => format!("{name}: measuring {of}"),
            });
        },
    );
    bar.finish_and_clear();
    let report = report?;
    let notes: String = report.notes().iter().map(|line| format!("note: {line}\n")).collect();
    write_result(sink, &(report.table() + &notes + &warnings(&report.warnings())), &report.json())
}

/// What is compared.
fn subjects(arguments: &Arguments) -> Result<Vec<Subject>> {
    if !arguments.anchors {
        let model = arguments.model.model(false)?;
        let shapes = arguments.shapes.shapes(&[1, 8], &[128, 512])?;
        let (config, rotary_left_out) = (model.config, model.rotary_left_out);
        return Ok(vec![Subject { model: model.name, config, rotary_left_out, shapes }]);
    }
    let all = anchors()?;
    let Some(name) = arguments.model.name() else { return Ok(all) };
    let known = all.iter().filter_map(|subject| subject.model.clone()).collect::<Vec<_>>().join(", ");
    let named = all.into_iter().filter(|subject| subject.model.as_deref() == Some(name)).collect::<Vec<_>>();
    if named.is_empty() {
        return Err(Error::UnknownModel { name: name.into(), known }.into());
    }
    Ok(named)
}

/// PyTorch, or why it is not there; one that was named has to be.
fn peer(python: Option<&str>, ordinal: usize) -> Result<Result<Peer, Error>> {
    Ok(match python {
        Some("none") => Err(Error::Peer { peer: "PyTorch", text: "not asked for (--python none)".into() }),
        Some(python) => Ok(Peer::start(python, ordinal)?),
        None => Peer::start("python3", ordinal),
    })
}
