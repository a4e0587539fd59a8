//! The GPU suite: every case of `paf_cuda::verify::gpu`, the schedules against each other, the streams' ordering under
//! disturbance, and what must be refused. Where there is no CUDA device every test is reported as ignored.

use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use paf_cuda::config::Rotary;
use paf_cuda::gpu::{Batch, Branch, Device, Encoder, EncoderWeights, Stream, Tensor, device_count};
use paf_cuda::weights::{random_activations, random_layers};
use paf_cuda::{BatchShape, Design, Dtype, EncoderConfig, Error, LayerConfig, Schedule, verify};

type Outcome = Result<(), Failed>;

/// Tests of timing take it alone, all others together: an allocation on another thread may wait for the whole device.
static ALONE: RwLock<()> = RwLock::new(());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let device = match device_count() {
        Err(Error::NoDriver) | Ok(0) => None,
        // A driver that answers anything else is a machine that should work and does not: the tests say so.
        _ => Some(Device::new(0)),
    };
    let trials = match device {
        Some(Ok(device)) => trials(&device),
        Some(Err(error)) => {
            vec![Trial::test("the device opens", move || Err(error.to_string().into()))]
        }
        None => vec![Trial::test("ignored: no CUDA device", || Ok(())).with_ignored_flag(true)],
    };
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
                        case.name.starts_with("layer") || case.name.starts_with("gemm") && case.name.contains("planned")
                    })
                    .map(|case| trial(format!("portable {}", case.name), case)),
            ),
            Err(error) => trials.push(Trial::test("portable: the device opens", move || Err(error.to_string().into()))),
        }
    }
    let mut add = |name: String, test: fn(&Device, Design) -> Outcome, design: Design| {
        let device = device.clone();
        trials.push(Trial::test(name, move || {
            let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
            test(&device, design)
        }));
    };
    for design in Design::ALL.into_iter().filter(|design| design.is_parallel()) {
        add(format!("race {design}: schedules agree bitwise, branches held back, 250 repeats"), race, design);
        add(format!("branches {design}: the captured graph forks and joins once a layer"), branches, design);
    }
    add("resources: the driver's compiler spills nothing".into(), resources, Design::PafPostNorm);
    add("refused: operands that do not fit".into(), refusals, Design::PafPostNorm);
    add("out of memory is an error that leaves the device usable".into(), out_of_memory, Design::PafPostNorm);
    add("threads: four at once agree with one".into(), threads, Design::PafPostNorm);
    for design in Design::ALL {
        let device = device.clone();
        trials.push(Trial::test(format!("async {design}: forward returns before its stream has run"), move || {
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            asynchronous(&device, design)
        }));
    }
    trials
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
    }
    Ok(())
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
        let layer = LayerConfig { design, ..LayerConfig::new(128, 2, 512)? };
        let config = EncoderConfig { layer, num_hidden_layers: 4 };
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

    fn run(&mut self, schedule: Schedule, hold_back: &[(Branch, Duration)]) -> Result<Vec<u16>, Error> {
        let Self { encoder, stream, batch, x, y } = self;
        let mut workspace = encoder.workspace(batch)?;
        workspace.poison()?;
        y.poison()?;
        for &(branch, time) in hold_back {
            workspace.hold_back(branch, time);
        }
        encoder.forward(stream, schedule, batch, x, y, &mut workspace)?;
        y.to_bits()
    }
}

/// Two streams give serial's bits, whichever branch is late, eager and as a graph, every time.
fn race(device: &Device, design: Design) -> Outcome {
    let shape = BatchShape::new(2, 70)?.with_lengths(vec![70, 33])?;
    let mut fixture = Fixture::new(device, design, &shape)?;
    let expected = fixture.run(Schedule::Serial, &[])?;
    let late = Duration::from_micros(60); // several times what the whole other branch takes
    let disturbances = [
        vec![],
        vec![(Branch::Attention, late)],
        vec![(Branch::Ffn, late)],
        vec![(Branch::Attention, late), (Branch::Ffn, late)],
    ];
    for repeat in 0..250 {
        let hold_back = &disturbances[repeat % disturbances.len()];
        let eager = fixture.run(Schedule::TwoStream, hold_back)?;
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
            let graph = encoder.capture(stream, Schedule::TwoStream, batch, x, y, &mut workspace)?;
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

/// A chain of n nodes has n − 1 edges; two branches a layer have more.
fn branches(device: &Device, design: Design) -> Outcome {
    let shape = BatchShape::new(1, 32)?;
    let mut fixture = Fixture::new(device, design, &shape)?;
    let Fixture { encoder, stream, batch, x, y } = &mut fixture;
    let layers = encoder.config().num_hidden_layers;
    // Two chains of 3 and 2 kernels between one fork and one join; the norm of a pre-norm stack's input leads.
    let nodes = layers * 6 + usize::from(!design.is_post_norm());
    let mut workspace = encoder.workspace(batch)?;
    let serial = encoder.capture(stream, Schedule::Serial, batch, x, y, &mut workspace)?;
    let got = (serial.nodes()?, serial.edges()?);
    if got != (nodes, nodes - 1) {
        return Err(format!("serial: (nodes, edges) = {got:?}, expected {:?}", (nodes, nodes - 1)).into());
    }
    drop(serial);
    let two = encoder.capture(stream, Schedule::TwoStream, batch, x, y, &mut workspace)?;
    // A layer: two edges out of the fork, three inside the branches, two into the join; from the second layer on also the
    // FFN stream's own order. In the first layer of a post-norm stack nothing precedes the fork: its branches are roots.
    let roots = if design.is_post_norm() { 2 } else { 0 };
    let expected = (nodes, layers * 7 + (layers - 1) - roots);
    let got = (two.nodes()?, two.edges()?);
    if got != expected {
        return Err(format!("two-stream: (nodes, edges) = {got:?}, expected {expected:?}").into());
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

fn refusals(device: &Device, design: Design) -> Outcome {
    let shape = BatchShape::new(2, 16)?;
    let mut fixture = Fixture::new(device, design, &shape)?;
    let Fixture { encoder, stream, batch, x, y } = &mut fixture;
    let mut workspace = encoder.workspace(batch)?;
    let expect = |parts: &[&str], result: Result<(), Error>| -> Outcome {
        let message = result.err().map(|error| error.to_string()).ok_or("nothing was refused")?;
        match parts.iter().find(|&&part| !message.contains(part)) {
            Some(part) => Err(format!("{part:?} is missing in: {message}").into()),
            None => Ok(()),
        }
    };
    let serial = Schedule::Serial;
    let small = Tensor::poisoned(device, Dtype::Bf16, 31, 128)?;
    expect(&["31 × 128", "32 × 128"], encoder.forward(stream, serial, batch, &small, y, &mut workspace))?;
    let other = Tensor::poisoned(device, Dtype::F16, 32, 128)?;
    expect(&["f16", "bf16"], encoder.forward(stream, serial, batch, &other, y, &mut workspace))?;
    let tiny = Batch::new(device, &BatchShape::new(1, 8)?)?;
    let mut tight = encoder.workspace(&tiny)?;
    expect(&["8 rows", "32 rows"], encoder.forward(stream, serial, batch, x, y, &mut tight))?;
    let saf = encoder.config().with_design(Design::SafPostNorm);
    let weights = Arc::new(EncoderWeights::upload(device, &saf, Dtype::Bf16, random_layers(&saf, 1))?);
    let saf = Encoder::new(&saf, weights.clone())?;
    expect(&["two-stream", "saf-post"], saf.forward(stream, Schedule::TwoStream, batch, x, y, &mut workspace))?;
    let mut rotating = saf.config().clone();
    rotating.layer.rotary = Some(Rotary { dim: 16, base: 1e4, interleaved: false });
    let rotating = Encoder::new(&rotating, weights.clone())?;
    expect(&["rotary", "None", "dim: 16"], rotating.forward(stream, serial, batch, x, y, &mut workspace))?;
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
