//! The comparison with PyTorch, of a stack so small that it takes a moment. Without PyTorch it is reported as ignored, and why.

use std::process::{Command, Stdio};

use paf_cuda::measure::compare::{Experiment, Peer, Subject, Way};
use paf_cuda::measure::speedup::{Engine, Mode};
use paf_cuda::measure::timing::Effort;

use super::*;

const PYTHON: &str = "python3";

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    // Whether it works is for the test to find: this only looks.
    let found = Command::new(PYTHON)
        .args(["-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let why = match found {
        Ok(status) if status.success() => None,
        Ok(_) => Some(format!(" (ignored: {PYTHON} has no PyTorch)")),
        Err(error) => Some(format!(" (ignored: {PYTHON}: {error})")),
    };
    for design in [Design::PafPostNorm, Design::PafPreNorm, Design::PafPreNormTwo] {
        // Compiling takes minutes: only when asked for.
        for (ways, slow) in [(&Way::ALL[..3], false), (&Way::ALL[3..], true)] {
            let names = ways.iter().map(|way| way.name()).collect::<Vec<_>>().join(", ");
            let device = device.clone();
            let test = move || {
                let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
                compared(&device, design, ways)
            };
            let name = format!("compare: {design} beside PyTorch {names}{}", why.as_deref().unwrap_or_default());
            trials.push(Trial::test(name, test).with_ignored_flag(slow || why.is_some()));
        }
    }
}

fn compared(device: &Device, design: Design, ways: &[Way]) -> Outcome {
    let rotary =
        (!design.is_post_norm()).then_some(Rotary { dim: 32, base: 1e4, interleaved: design == Design::PafPreNorm });
    let causal = rotary.is_some();
    let layer = LayerConfig { design, causal, rotary, ..LayerConfig::new(256, 4, 512)? };
    let shapes = vec![BatchShape::new(1, 128)?, BatchShape::new(3, 70)?];
    let config = EncoderConfig { layer, num_hidden_layers: 2 };
    let experiment = Experiment {
        subjects: vec![Subject { model: None, config, rotary_left_out: false, shapes }],
        schedules: Vec::new(),
        modes: vec![Mode::Graph],
        ways: ways.to_vec(),
        seed: 5,
        effort: Effort { min_rounds: 6, max_rounds: 6, ..Effort::default() },
    };
    let mut peer = Peer::start(PYTHON, device.info().ordinal)?;
    let report = experiment.run(&Engine::Gpu(device.clone(), Dtype::Bf16), Ok(&mut peer), |_, _, _| ())?;
    // Both designs, eager ones twice; two streams and wide products of the parallel one, which with two norms cannot be as wide.
    let fused = usize::from(design != Design::PafPreNormTwo);
    let expected = if ways.contains(&Way::Compile) { (2, 0) } else { (5 + fused, 1 - fused) };
    for case in &report.stacks[0].cases {
        let got = (case.peers.len(), case.absent.len());
        if got != expected {
            let why = (&case.absent, &report.missing);
            return Err(format!("{got:?} rows of PyTorch and absent, expected {expected:?}: {why:?}").into());
        }
        let samples = case.peers.iter().map(|row| &row.samples_us);
        if let Some(samples) =
            samples.chain(case.ours.variants.iter().map(|row| &row.samples_us)).find(|s| s.len() != 6)
        {
            return Err(format!("{} samples of a row, expected 6", samples.len()).into());
        }
    }
    Ok(())
}
