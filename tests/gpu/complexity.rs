//! The blocks of a layer alone and together, as `paf complexity` measures them.

use paf_cuda::measure::complexity::{Experiment, Report, Subject};
use paf_cuda::measure::speedup::Weights;
use paf_cuda::measure::timing::Effort;

use super::*;

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    for design in [Design::PafPostNorm, Design::PafPreNorm, Design::PafPreNormTwo] {
        let device = device.clone();
        trials.push(Trial::test(format!("complexity {design}: blocks alone and together"), move || {
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            measured(&device, design)
        }));
    }
}

/// Few tokens, whose weights have to be read, and many.
fn report(device: &Device, design: Design) -> Result<Report, Error> {
    let layer = LayerConfig { design, ..LayerConfig::new(1024, 16, 4096)? };
    let experiment = Experiment {
        model: None,
        config: EncoderConfig { layer, num_hidden_layers: 6 },
        rotary_left_out: false,
        weights: Weights::Random,
        dtype: Dtype::Bf16,
        shapes: vec![BatchShape::new(1, 128)?, BatchShape::new(8, 512)?],
    };
    let effort = Effort { budget: Duration::from_millis(300), ..Effort::default() };
    experiment.measure(device, 1, effort, |_| ())
}

fn measured(device: &Device, design: Design) -> Outcome {
    let report = report(device, design)?;
    for case in &report.cases {
        let measured = case.measured.as_ref().ok_or("nothing was measured")?;
        let of = |subject: Subject| {
            let row = measured.row(subject).ok_or_else(|| format!("{}: no row", subject.name()))?;
            if row.samples_us.len() < Effort::default().min_rounds || row.samples_us.iter().any(|&us| us <= 0.0) {
                return Err(format!("{}: {:?}", subject.name(), row.samples_us));
            }
            Ok(row.median_us.median)
        };
        let times = [Subject::Attention, Subject::Ffn, Subject::Saf, Subject::TwoStream, Subject::Auto].map(of);
        let [attention, ffn, saf, two_stream, auto] = times;
        let (attention, ffn, saf, two_stream, auto) = (attention?, ffn?, saf?, two_stream?, auto?);
        let name = format!("{} {attention} + {ffn}, SAF {saf}, PAF {two_stream}, {auto} µs", case.name());
        // SAF is its blocks in turn, give or take what it is to have other weights before one's own.
        if !(0.8..=1.25).contains(&((attention + ffn) / saf)) {
            return Err(format!("the blocks do not add up to SAF: {name}").into());
        }
        // Nothing is faster than what the device allows, give or take what a prediction adds for waits.
        let least = &case.predicted;
        let pairs = [(attention, least.attention_us), (ffn, least.ffn_us), (saf, least.saf_us), (auto, least.paf_us)];
        if pairs.iter().any(|(us, least)| *us < 0.95 * least) {
            return Err(format!("faster than predicted: {name}, {least:?}").into());
        }
        for row in measured.parallel() {
            let overlap = row.overlap.ok_or("no overlap fraction")?.median;
            let expected = (attention + ffn - row.median_us.median) / attention.min(ffn);
            if overlap.is_nan() || (overlap - expected).abs() > 0.2 {
                return Err(format!("overlap {overlap}, of the medians {expected}: {name}").into());
            }
        }
        if measured.verified.len() != 5 || measured.verified.iter().any(|of| of.max_error > of.bound) {
            return Err(format!("{:?}", measured.verified).into());
        }
    }
    let text = report.markdown();
    if !text.contains("Measured on ") || report.errors().len() != 2 {
        return Err(text.into());
    }
    Ok(())
}
