//! The GPU suite: every case of `paf_cuda::verify::gpu`, the schedules against each other, the streams' ordering under
//! disturbance, models from their checkpoints on and their loading, what other programs bring, through Rust and through C, what must be
//! refused, and what goes wrong. Where there is no CUDA device every test is reported as ignored, but that of a
//! missing driver.

#[path = "gpu/abi.rs"]
mod abi;
#[path = "gpu/borrowed.rs"]
mod borrowed;
#[cfg(feature = "cli")]
#[path = "gpu/compare.rs"]
mod compare;
#[cfg(feature = "cli")]
#[path = "gpu/complexity.rs"]
mod complexity;
#[path = "gpu/engine.rs"]
mod engine;
#[cfg(feature = "cli")]
#[path = "gpu/evidence.rs"]
mod evidence;
#[path = "gpu/faults.rs"]
mod faults;
#[cfg(feature = "checkpoint")]
#[path = "gpu/loading.rs"]
mod loading;
#[cfg(feature = "checkpoint")]
#[path = "gpu/minilm.rs"]
mod minilm;
#[path = "gpu/models.rs"]
mod models;
#[path = "gpu/planner.rs"]
mod planner;
#[path = "gpu/program.rs"]
mod program;
#[cfg(feature = "cli")]
#[path = "common/schemas.rs"]
mod schemas;
#[path = "gpu/soak.rs"]
mod soak;
#[cfg(feature = "cli")]
#[path = "gpu/trace.rs"]
mod trace;

use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use paf_cuda::config::Rotary;
use paf_cuda::gpu::kernel::{AttentionVariant, GemmVariant};
use paf_cuda::gpu::{
    Batch, Branch, Device, Edges, Encoder, EncoderWeights, LayerProduct, Plan, Stream, Tensor, Workspace, device_count,
};
use paf_cuda::weights::{random_activations, random_layers};
use paf_cuda::{BatchShape, Design, Dtype, EncoderConfig, Error, HiddenAct, LayerConfig, Schedule, verify};

type Outcome = Result<(), Failed>;

/// Tests of timing take it alone, all others together: an allocation on another thread may wait for the whole device.
static ALONE: RwLock<()> = RwLock::new(());

fn main() -> ExitCode {
    if let Some(code) = faults::child() {
        return code;
    }
    let arguments = Arguments::from_args();
    let device = match device_count() {
        Err(Error::NoDriver) | Ok(0) => None,
        // A driver that answers anything else is a machine that should work and does not: the tests say so.
        _ => Some(Device::new(0)),
    };
    let mut trials = match device {
        Some(Ok(device)) => trials(&device),
        Some(Err(error)) => {
            vec![Trial::test("the device opens", move || Err(error.to_string().into()))]
        }
        None => vec![Trial::test("ignored: no CUDA device", || Ok(())).with_ignored_flag(true)],
    };
    faults::anywhere(&mut trials);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials(device: &Device) -> Vec<Trial> {
    let trial = |name: String, case: verify::Case| {
        Trial::test(name, move || {
            let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
            case.run().map(drop).map_err(Failed::from)
        })
    };
    let mut trials: Vec<Trial> =
        verify::gpu::cases(device).into_iter().map(|case| trial(case.name.clone(), case)).collect();
    if device.info().compute_capability == (9, 0) {
        // What other cards run: on this one it would go untested.
        match Device::portable(device.info().ordinal) {
            Ok(portable) => trials.extend(
                verify::gpu::cases(&portable)
                    .into_iter()
                    .filter(|case| {
                        let planned = case.name.starts_with("gemm") && case.name.contains("planned");
                        planned || ["layer", "block", "model"].iter().any(|kind| case.name.starts_with(kind))
                    })
                    .map(|case| trial(format!("portable {}", case.name), case)),
            ),
            Err(error) => trials.push(Trial::test("portable: the device opens", move || Err(error.to_string().into()))),
        }
    }
    let mut add = |name, test, design| trials.push(together(device, name, test, design));
    for design in Design::ALL {
        add(format!("graph {design}: nodes and edges are the schedule's"), captured, design);
        add(format!("graph {design} gated: nodes and edges are the schedule's"), captured_gated, design);
    }
    add("resources: the driver's compiler spills nothing".into(), resources, Design::PafPostNorm);
    add("refused: operands that do not fit".into(), refusals, Design::PafPostNorm);
    add("out of memory is an error that leaves the device usable".into(), out_of_memory, Design::PafPostNorm);
    add("threads: four at once agree with one".into(), threads, Design::PafPostNorm);
    for design in Design::ALL {
        for schedule in Schedule::ALL.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
            for ffn in Ffn::ALL {
                let name = format!("race {design}{} {schedule}: same bits, disturbed, 250 repeats", ffn.name());
                let device = device.clone();
                trials.push(Trial::test(name, move || {
                    let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
                    race_of(&device, &ffn.layer(design)?, schedule.into())
                }));
            }
        }
        // A tiny product in parts, of which few blocks wait for a count: what overtakes them most easily.
        let hopper = device.info().compute_capability == (9, 0);
        if design.is_parallel() && hopper {
            let name = format!("race {design} fused in parts: same bits, disturbed, 250 repeats");
            let device = device.clone();
            trials.push(Trial::test(name, move || {
                let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
                race(&device, design, "fused wide-second=sm90:64x64:parts3:stages3".parse()?)
            }));
        }
        let device = device.clone();
        trials.push(Trial::test(format!("async {design}: forward returns before its stream has run"), move || {
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            asynchronous(&device, design)
        }));
    }
    planner::trials(device, &mut trials);
    #[cfg(feature = "cli")]
    complexity::trials(device, &mut trials);
    models::trials(device, &mut trials);
    borrowed::trials(device, &mut trials);
    abi::trials(device, &mut trials);
    faults::trials(&mut trials);
    soak::trials(device, &mut trials);
    #[cfg(feature = "cli")]
    {
        evidence::trials(&mut trials);
        compare::trials(device, &mut trials);
        trace::trials(device, &mut trials);
    }
    #[cfg(feature = "checkpoint")]
    loading::trials(device, &mut trials);
    #[cfg(feature = "checkpoint")]
    minilm::trials(device, &mut trials);
    // The filters are of cases of Hopper's kernels.
    if device.info().compute_capability == (9, 0) {
        let names: Vec<_> = trials.iter().map(|trial| trial.name().to_owned()).collect();
        trials
            .push(Trial::test("sanitizers: each of racecheck's filters has tests", move || filters_have_tests(&names)));
    }
    trials
}

/// Tests are renamed, and which variants are tested changes with what there are: a filter without any would look at nothing.
fn filters_have_tests(names: &[String]) -> Outcome {
    let script = include_str!("../tools/gpu-run");
    let list = script.split("for filter in ").nth(1).and_then(|rest| rest.split("; do").next()).unwrap_or_default();
    let filters: Vec<_> = list.split('\'').skip(1).step_by(2).collect();
    if filters.is_empty() {
        return Err("tools/gpu-run names no filters".into());
    }
    match filters.iter().find(|&&filter| !names.iter().any(|name| name.contains(filter))) {
        None => Ok(()),
        Some(filter) => Err(format!("no test is called like {filter:?}").into()),
    }
}

/// A test of one design that may run beside others.
fn together(device: &Device, name: String, test: fn(&Device, Design) -> Outcome, design: Design) -> Trial {
    let device = device.clone();
    Trial::test(name, move || {
        let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
        test(&device, design)
    })
}

/// The toolkit's assembler is tested without a GPU; the driver has its own.
fn resources(device: &Device, _: Design) -> Outcome {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let kernels = paf_cuda::gpu::kernel::resources(device, dtype)?;
        if kernels.len() < 20 {
            return Err(format!("only {} kernels are loaded", kernels.len()).into());
        }
        if let Some(kernel) = kernels.iter().find(|kernel| kernel.local_bytes > 0) {
            return Err(format!("{kernel:?}").into());
        }
        // By halves, a block of either kernel has the registers of one multiprocessor.
        let most = |name: &str| {
            let of = kernels.iter().filter(|kernel| kernel.name.ends_with(name));
            of.map(|kernel| kernel.threads * kernel.registers).max()
        };
        let halves = [most(" attention_d64_64x64"), most(" gemm_128x128h")];
        let expected = if device.info().compute_capability == (9, 0) { 2 } else { 0 };
        if halves.iter().flatten().count() != expected || halves.iter().flatten().sum::<u32>() > 65536 {
            return Err(format!("registers of blocks by halves: {halves:?}").into());
        }
    }
    Ok(())
}

/// What else a small layer has, on which the order of its kernels depends.
#[derive(Clone, Copy)]
enum Ffn {
    Plain,
    /// One kernel more between the FFN's products, and in `fused` between the wide one and attention.
    Gated,
    /// And two more there.
    GatedRotated,
}

impl Ffn {
    const ALL: [Self; 3] = [Self::Plain, Self::Gated, Self::GatedRotated];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gated => " gated",
            Self::GatedRotated => " gated rotated",
        }
    }

    fn layer(self, design: Design) -> Result<LayerConfig, Error> {
        let plain = LayerConfig { design, ..LayerConfig::new(128, 2, 512)? };
        let gated = LayerConfig { gated: true, hidden_act: HiddenAct::Silu, ..plain.clone() };
        Ok(match self {
            Self::Plain => plain,
            Self::Gated => gated,
            Self::GatedRotated => {
                LayerConfig { rotary: Some(Rotary { dim: 64, base: 1e4, interleaved: true }), ..gated }
            }
        })
    }
}

/// A small stack on the device, with operands.
struct Fixture {
    encoder: Encoder,
    stream: Stream,
    batch: Batch,
    x: Tensor,
    y: Tensor,
}

impl Fixture {
    fn new(device: &Device, design: Design, shape: &BatchShape) -> Result<Self, Error> {
        Self::of(device, &Ffn::Plain.layer(design)?, shape)
    }

    fn of(device: &Device, layer: &LayerConfig, shape: &BatchShape) -> Result<Self, Error> {
        let config = EncoderConfig { layer: layer.clone(), num_hidden_layers: 4 };
        let dtype = Dtype::Bf16;
        let weights = Arc::new(EncoderWeights::upload(device, &config, dtype, random_layers(&config, 3))?);
        let x = random_activations(shape.rows(), 128, 4);
        Ok(Self {
            encoder: Encoder::new(&config, weights)?,
            stream: Stream::new(device)?,
            batch: Batch::new(device, shape)?,
            x: Tensor::from_host(device, dtype, shape.rows(), 128, &x)?,
            y: Tensor::poisoned(device, dtype, shape.rows(), 128)?,
        })
    }

    fn run(&mut self, plan: impl Into<Plan>, hold_back: &[(Branch, Duration)]) -> Result<Vec<u16>, Error> {
        self.run_in(plan, |workspace| {
            hold_back.iter().for_each(|&(branch, time)| workspace.hold_back(branch, time));
        })
    }

    /// No kernel begins before the one before it has ended.
    fn run_one_by_one(&mut self, plan: impl Into<Plan>) -> Result<Vec<u16>, Error> {
        self.run_in(plan, |workspace| workspace.set_overlap(false))
    }

    fn run_in(&mut self, plan: impl Into<Plan>, prepare: impl Fn(&mut Workspace)) -> Result<Vec<u16>, Error> {
        let Self { encoder, stream, batch, x, y } = self;
        let mut workspace = encoder.workspace(batch)?;
        workspace.poison()?;
        y.poison()?;
        prepare(&mut workspace);
        encoder.forward(stream, plan, batch, x, y, &mut workspace)?;
        y.to_bits()
    }
}

/// A plan gives the bits that it gives where each kernel waits for the one before, and serial's if it runs the same kernels;
/// whichever branch is late, eager and as a graph, every time.
fn race(device: &Device, design: Design, plan: Plan) -> Outcome {
    race_of(device, &Ffn::Plain.layer(design)?, plan)
}

fn race_of(device: &Device, layer: &LayerConfig, plan: Plan) -> Outcome {
    race_on(device, layer, plan, &BatchShape::new(2, 70)?.with_lengths(vec![70, 33])?)
}

fn race_on(device: &Device, layer: &LayerConfig, plan: Plan, shape: &BatchShape) -> Outcome {
    let mut fixture = Fixture::of(device, layer, shape)?;
    let expected = fixture.run_one_by_one(plan)?;
    if plan.agrees_bitwise(&Schedule::Serial.into()) {
        differs(&fixture.run_one_by_one(Schedule::Serial)?, &expected, || "kernels one by one".into())?;
    }
    let late = Duration::from_micros(60); // several times what the whole other branch takes
    let disturbances = [
        vec![],
        vec![(Branch::Attention, late)],
        vec![(Branch::Ffn, late)],
        vec![(Branch::Attention, late), (Branch::Ffn, late)],
    ];
    for repeat in 0..250 {
        let hold_back = &disturbances[repeat % disturbances.len()];
        let eager = fixture.run(plan, hold_back)?;
        differs(&expected, &eager, || format!("eager repeat {repeat}, held back {hold_back:?}"))?;
    }
    for hold_back in &disturbances {
        let Fixture { encoder, stream, batch, x, y } = &mut fixture;
        let mut workspace = encoder.workspace(batch)?;
        for &(branch, time) in hold_back {
            workspace.hold_back(branch, time);
        }
        // The graph keeps y borrowed: many replays, one look at the end, after which y is poisoned for the next.
        for repeat in 0..63 {
            workspace.poison()?;
            y.poison()?;
            let graph = encoder.capture(stream, plan, batch, x, y, &mut workspace)?;
            graph.launch(stream)?;
            graph.launch(stream)?;
            drop(graph);
            differs(&expected, &y.to_bits()?, || format!("graph repeat {repeat}, held back {hold_back:?}"))?;
        }
    }
    Ok(())
}

fn differs(expected: &[u16], got: &[u16], when: impl Fn() -> String) -> Outcome {
    match expected.iter().zip(got).position(|(expected, got)| expected != got) {
        None if expected.len() == got.len() => Ok(()),
        at => {
            let value = |bits: &[u16]| at.map(|at| Dtype::Bf16.from_bits(bits[at]));
            Err(format!("{}: element {at:?} is {:?}, serially {:?}", when(), value(got), value(expected)).into())
        }
    }
}

/// Kernels of a captured graph, its dependencies, and which of these let a kernel begin early.
fn captured(device: &Device, design: Design) -> Outcome {
    captured_of(device, &Ffn::Plain.layer(design)?)
}

fn captured_gated(device: &Device, design: Design) -> Outcome {
    captured_of(device, &Ffn::Gated.layer(design)?)
}

fn captured_of(device: &Device, layer: &LayerConfig) -> Outcome {
    let design = layer.design;
    let mut fixture = Fixture::of(device, layer, &BatchShape::new(1, 32)?)?;
    let Fixture { encoder, stream, batch, x, y } = &mut fixture;
    let layers = encoder.config().num_hidden_layers;
    let mut workspace = encoder.workspace(batch)?;
    // The norm of a pre-norm stack's input leads. The last of its joins has no norm to make, and nothing to do at all where the
    // product before it has added everything up; it has where that was left in parts, which Hopper's kernel can.
    let lead = usize::from(!design.is_post_norm());
    let begins_early = device.info().compute_capability == (9, 0);
    // The gate's kernel begins when the product before it has ended; what follows it may begin early, as it did after the product.
    let gates = if layer.gated { layers } else { 0 };
    let mut cases = Vec::new();
    for schedule in Schedule::ALL.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
        let last = match schedule {
            Schedule::Fused => Some(LayerProduct::WideSecond),
            Schedule::Serial if !design.is_parallel() => Some(LayerProduct::W2),
            _ => None,
        };
        match last.filter(|_| begins_early) {
            Some(last) => {
                for (variant, in_parts) in [("sm90:32x64:share1x1:stages4", false), ("sm90:32x64:parts2:stages4", true)]
                {
                    let variant: GemmVariant = variant.parse()?;
                    cases.push((schedule, Plan::from(schedule).with_product(last, variant), in_parts, 0));
                }
            }
            None => cases.push((schedule, schedule.into(), false, 0)),
        }
        // By halves attention begins when the kernel before it has ended, in each layer.
        if schedule == Schedule::Fused && begins_early {
            let by_halves = AttentionVariant::Sm90 { rows: 64, half: true };
            for (variant, in_parts) in
                [("sm90:128x128h:share1x1:stages5", false), ("sm90:128x128h:parts2:stages5", true)]
            {
                let plan = Plan::from(schedule).with_attention(by_halves);
                let plan = plan.with_product(LayerProduct::WideSecond, variant.parse::<GemmVariant>()?);
                cases.push((schedule, plan, in_parts, layers));
            }
        }
    }
    for (schedule, plan, in_parts, late) in cases {
        let (nodes, all, programmatic) = match schedule {
            Schedule::Serial | Schedule::Fused => {
                let sums_early = (schedule == Schedule::Fused || design == Design::SafPreNorm) && !in_parts;
                let joins = layers - if sums_early { lead } else { 0 };
                // The two norms' inputs are one product on Hopper alone.
                let separate = usize::from(design == Design::PafPreNormTwo && !begins_early);
                let products = if schedule == Schedule::Fused { 3 + separate } else { 5 };
                // SAF has a join more, between its blocks.
                let nodes = lead + layers * (products + usize::from(!design.is_parallel())) + joins + gates;
                (nodes, nodes - 1, nodes - 1 - gates)
            }
            // A layer: two edges out of the fork, three inside the branches, two into the join; from the second layer on also
            // the FFN stream's own order. In the first layer of a post-norm stack nothing precedes the fork.
            Schedule::TwoStream => {
                let all = layers * 7 + (layers - 1) - 2 * (1 - lead) + gates;
                (lead + layers * 6 + gates, all, layers * 3 + (layers - 1) + lead)
            }
            // The first product after the join before; attention and W2 after that, W2 also in its stream's order; Wo after both.
            // Wo has too short a K here to be left in parts. A gate is where W2 would be, and W2 after it.
            Schedule::Hybrid => {
                let separate = usize::from(design == Design::PafPreNormTwo && !begins_early);
                let joins = layers - lead;
                let chained = lead + (layers - 1) + layers * (1 + separate) + joins;
                let nodes = lead + layers * (4 + separate) + joins + gates;
                (nodes, chained + layers + (layers - 1) + 2 * layers + gates, chained + gates)
            }
        };
        let expected = (nodes, Edges { all, programmatic: if begins_early { programmatic - late } else { 0 } });
        let graph = encoder.capture(stream, plan, batch, x, y, &mut workspace)?;
        let got = (graph.nodes()?, graph.edges()?);
        if got != expected {
            return Err(format!("{plan}: nodes and edges {got:?}, expected {expected:?}").into());
        }
    }
    Ok(())
}

/// With the stream blocked for a long time, forward returns at once: it waits for nothing.
fn asynchronous(device: &Device, design: Design) -> Outcome {
    let mut fixture = Fixture::new(device, design, &BatchShape::new(1, 32)?)?;
    let schedule = if design.is_parallel() { Schedule::TwoStream } else { Schedule::Serial };
    fixture.run(schedule, &[])?; // kernels are loaded now
    let Fixture { encoder, stream, batch, x, y } = &mut fixture;
    let mut workspace = encoder.workspace(batch)?;
    workspace.poison()?; // compute-sanitizer's initcheck takes what bulk copies have written for unwritten
    let block = Duration::from_millis(50);
    let started = std::time::Instant::now();
    stream.hold_back(block)?;
    encoder.forward(stream, schedule, batch, x, y, &mut workspace)?;
    let returned = started.elapsed();
    stream.synchronize()?;
    let finished = started.elapsed();
    if finished < block {
        return Err(format!("the caller's stream was not waited for: {finished:?}").into());
    }
    if returned > block / 2 {
        return Err(format!("forward returned after {returned:?}, with its stream blocked for {block:?}").into());
    }
    Ok(())
}

/// Whether it was refused, with a message that has all these parts.
fn expect(parts: &[&str], result: Result<(), Error>) -> Outcome {
    let message = result.err().map(|error| error.to_string()).ok_or("nothing was refused")?;
    match parts.iter().find(|&&part| !message.contains(part)) {
        Some(part) => Err(format!("{part:?} is missing in: {message}").into()),
        None => Ok(()),
    }
}

fn refusals(device: &Device, design: Design) -> Outcome {
    let shape = BatchShape::new(2, 16)?;
    let mut fixture = Fixture::new(device, design, &shape)?;
    let Fixture { encoder, stream, batch, x, y } = &mut fixture;
    let mut workspace = encoder.workspace(batch)?;
    let serial = Schedule::Serial;
    let small = Tensor::poisoned(device, Dtype::Bf16, 31, 128)?;
    expect(&["31 × 128", "32 × 128"], encoder.forward(stream, serial, batch, &small, y, &mut workspace))?;
    let other = Tensor::poisoned(device, Dtype::F16, 32, 128)?;
    expect(&["f16", "bf16"], encoder.forward(stream, serial, batch, &other, y, &mut workspace))?;
    let tiny = Batch::new(device, &BatchShape::new(1, 8)?)?;
    let mut tight = encoder.workspace(&tiny)?;
    expect(&["number of rows is 32", "at most the 8"], encoder.forward(stream, serial, batch, x, y, &mut tight))?;
    let saf = encoder.config().with_design(Design::SafPostNorm);
    let weights = Arc::new(EncoderWeights::upload(device, &saf, Dtype::Bf16, random_layers(&saf, 1))?);
    let saf = Encoder::new(&saf, weights.clone())?;
    expect(&["two-stream", "saf-post"], saf.forward(stream, Schedule::TwoStream, batch, x, y, &mut workspace))?;
    let mut rotating = saf.config().clone();
    rotating.layer.rotary = Some(Rotary { dim: 16, base: 1e4, interleaved: false });
    let rotating = Encoder::new(&rotating, weights.clone())?;
    expect(&["rotary", "None", "dim: 16"], rotating.forward(stream, serial, batch, x, y, &mut workspace))?;
    let mut gated = saf.config().clone();
    gated.layer.gated = true;
    let found = "(128, 512, 512, 128, 384)";
    expect(&[found, "(128, 1024, 512, 128, 384)"], Encoder::new(&gated, weights.clone()).map(drop))?;
    let of_gated = EncoderWeights::upload(device, &gated, Dtype::Bf16, random_layers(&gated, 1))?;
    let of_gated = Encoder::new(&gated, Arc::new(of_gated))?;
    expect(&["workspace", "(384, 512)"], of_gated.forward(stream, serial, batch, x, y, &mut workspace))?;
    let mut silu = saf.config().clone();
    silu.layer.hidden_act = HiddenAct::Silu;
    expect(&["activation silu", "gated"], Encoder::new(&silu, weights.clone()).map(drop))?;
    let deeper = EncoderConfig { num_hidden_layers: 5, ..saf.config().clone() };
    expect(&["4", "at least 5"], Encoder::new(&deeper, weights.clone()).map(drop))?;
    let wider = EncoderConfig { layer: LayerConfig::new(256, 2, 512)?, num_hidden_layers: 1 };
    expect(&["128", "256"], Encoder::new(&wider, weights).map(drop))?;
    let odd = EncoderConfig { layer: LayerConfig::new(144, 2, 512)?, num_hidden_layers: 1 };
    expect(&["head_dim = 72"], EncoderWeights::upload(device, &odd, Dtype::Bf16, random_layers(&odd, 1)).map(drop))?;
    expect(&["device 4096"], Device::new(4096).map(drop))?;
    // And after all that the device still works.
    fixture.run(Schedule::TwoStream, &[]).map(drop).map_err(Failed::from)
}

fn out_of_memory(device: &Device, design: Design) -> Outcome {
    let (rows, cols) = (1 << 20, 1 << 20); // 2 TiB
    match Tensor::poisoned(device, Dtype::Bf16, rows, cols) {
        Err(Error::OutOfMemory { requested_bytes, free_bytes, total_bytes, .. })
            if requested_bytes == rows * cols * 2 && 0 < free_bytes && free_bytes <= total_bytes => {}
        other => return Err(format!("expected out of memory, got {other:?}").into()),
    }
    Fixture::new(device, design, &BatchShape::new(1, 8)?)?.run(Schedule::TwoStream, &[])?;
    Ok(())
}

fn threads(device: &Device, design: Design) -> Outcome {
    let shape = BatchShape::new(1, 96)?;
    let expected = Fixture::new(device, design, &shape)?.run(Schedule::Serial, &[])?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (shape, expected) = (&shape, &expected);
                scope.spawn(move || -> Outcome {
                    let mut fixture = Fixture::new(device, design, shape)?;
                    for repeat in 0..20 {
                        let got = fixture.run(Schedule::TwoStream, &[])?;
                        differs(expected, &got, || format!("thread {worker}, repeat {repeat}"))?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| Failed::from("a thread panicked"))?)
    })
}
