//! Timelines of small stacks: as many slices as kernels, in the order of their streams, in about the time that a call takes. Without
//! CUPTI those that need it are reported as ignored, and why.

use paf_cuda::gpu::cupti::{Cupti, Place};
use paf_cuda::measure::speedup::Mode;
use paf_cuda::measure::trace::{Experiment, Slice, Source};

use super::*;

/// For some twenty launches, under CUPTI, on a busy host: the times that are compared are then the device's, in which no launch is late.
const HEAD_START: Duration = Duration::from_millis(2);

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    // SAFETY: whoever sets the variable names NVIDIA's library.
    let named = std::env::var_os("PAF_CUPTI").map(|path| unsafe { Place::new(path) });
    let why = Cupti::load(named.as_ref()).err().map(|error| format!(" (ignored: {error})"));
    let sources = [
        ("events, eager", Source::Events, Mode::Eager, ""),
        ("CUPTI, eager", Source::Cupti(named.clone()), Mode::Eager, why.as_deref().unwrap_or_default()),
        ("CUPTI, graph", Source::Cupti(named), Mode::Graph, why.as_deref().unwrap_or_default()),
    ];
    for design in Design::ALL {
        for schedule in Schedule::ALL.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
            for (name, source, mode, why) in &sources {
                let (device, source, mode) = (device.clone(), source.clone(), *mode);
                let test = move || {
                    let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
                    traced(&device, design, schedule, source, mode)
                };
                let name = format!("trace: {design} {schedule}, {name}{why}");
                trials.push(Trial::test(name, test).with_ignored_flag(!why.is_empty()));
            }
        }
    }
}

fn traced(device: &Device, design: Design, schedule: Schedule, source: Source, mode: Mode) -> Outcome {
    // Gated, and rotated in a way that no product does: as many kernels of different kinds as there are.
    let rotary = Some(Rotary { dim: 32, base: 1e4, interleaved: true });
    let layer =
        LayerConfig { design, gated: true, hidden_act: HiddenAct::Silu, rotary, ..LayerConfig::new(256, 4, 512)? };
    let config = EncoderConfig { layer, num_hidden_layers: 3 };
    let shape = BatchShape::new(2, 130)?;
    let experiment = Experiment {
        model: None,
        config: config.clone(),
        rotary_left_out: false,
        plan: Some(schedule.into()),
        mode,
        shape: shape.clone(),
        seed: 3,
        source,
        head_start: HEAD_START,
    };
    let trace = experiment.run(device, Dtype::Bf16, |_| ())?;
    let file: serde_json::Value = serde_json::from_str(&trace.json())?;
    let mut slices = trace.slices();
    slices.sort_by(|a, b| a.start_us.total_cmp(&b.start_us));
    let check = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(Failed::from(format!("{what}: {:?}, {slices:?}", trace.about.summary))),
    };

    let kernels = nodes(device, &config, schedule, &shape)?;
    let complete =
        file["traceEvents"].as_array().map_or(0, |events| events.iter().filter(|event| event["ph"] == "X").count());
    check(slices.len() == kernels && complete == kernels, &format!("expected {kernels} kernels"))?;
    // As long as a call takes, with what observing it costs.
    let (summary, forward_us) = (&trace.about.summary, trace.about.forward_us.median);
    check(slices.iter().all(|slice| 0.0 <= slice.start_us && slice.start_us < slice.end_us), "a slice of no length")?;
    check(slices.iter().all(|slice| slice.end_us <= summary.span_us + 1e-6), "a slice beyond the end")?;
    check(summary.busy_us <= summary.span_us + 1e-6, "more busy than there was time")?;
    check(summary.span_us < 3.0 * forward_us + 100.0, &format!("longer than a call of {forward_us} µs"))?;
    check(summary.span_us > 0.5 * forward_us, &format!("shorter than a call of {forward_us} µs"))?;
    // Branches of one stream wait for each other. Those of two run together where the device, not the host, sets the pace.
    let share = summary.together_share.unwrap_or(f64::NAN);
    check((0.0..=1.0).contains(&share), "no share of the time together")?;
    check(schedule != Schedule::Serial || share < 0.05, "branches of a serial layer run together")?;
    let two = schedule == Schedule::TwoStream && mode == Mode::Graph;
    check(!two || share > 0.0, "branches on two streams never run together")?;
    // Each layer has one of each, and kernels of a stream begin in the order of their launches: that of the layers, too.
    for part in ["attention", "gate"] {
        let layers = slices.iter().filter(|slice| slice.part == part).map(|slice| slice.layer);
        check(layers.collect::<Vec<_>>() == [0, 1, 2], &format!("{part} is not once in every layer, in order"))?;
    }
    for stream in ["caller", "attention", "ffn"] {
        let own: Vec<_> = slices.iter().filter(|slice| slice.stream == stream).collect();
        let two = matches!(schedule, Schedule::TwoStream | Schedule::Hybrid);
        check(own.is_empty() != ((stream == "caller") != two), &format!("{stream} has kernels, or none"))?;
        check(own.is_sorted_by_key(|slice| slice.layer), &format!("layers on {stream} are not in order"))?;
    }
    let one = |layer, part| slices.iter().find(|slice: &&Slice| (slice.layer, slice.part.as_str()) == (layer, part));
    for layer in 0..3 {
        let (Some(attention), Some(gate)) = (one(layer, "attention"), one(layer, "gate")) else { continue };
        for (before, after) in [("qkv", attention), ("wide-first", attention), ("w1", gate), ("wide-first", gate)] {
            let in_order = one(layer, before).is_none_or(|before| before.start_us <= after.start_us);
            check(in_order, &format!("{} began before {before}", after.part))?;
        }
    }
    Ok(())
}

/// Kernels of a call, as a capture counts them.
fn nodes(device: &Device, config: &EncoderConfig, schedule: Schedule, shape: &BatchShape) -> Result<usize, Error> {
    let weights = Arc::new(EncoderWeights::upload(device, config, Dtype::Bf16, random_layers(config, 3))?);
    let encoder = Encoder::new(config, weights)?;
    let (stream, batch) = (Stream::new(device)?, Batch::new(device, shape)?);
    let h = config.layer.hidden_size;
    let x = Tensor::from_host(device, Dtype::Bf16, shape.rows(), h, &random_activations(shape.rows(), h, 3))?;
    let mut y = Tensor::poisoned(device, Dtype::Bf16, shape.rows(), h)?;
    let mut workspace = encoder.workspace(&batch)?;
    encoder.capture(&stream, schedule, &batch, &x, &mut y, &mut workspace)?.nodes()
}
