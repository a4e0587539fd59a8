//! Plans: what the planner chooses is right and repeatable, is kept and found again, and what cannot be is refused.

use paf_cuda::gpu::kernel::{self, AttentionVariant, Cluster, GemmVariant};
use paf_cuda::gpu::{LayerProduct, Plan, Planned, Planner};

use super::*;

/// Attention that leaves each multiprocessor room for a block of a product.
const BY_HALVES: AttentionVariant = AttentionVariant::Sm90 { rows: 64, half: true };

/// More than such small layers need, so that variants are tried beside other tests, and under a sanitizer, too.
const BUDGET: Duration = Duration::from_secs(2);

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    let mut add = |name, test, design| trials.push(together(device, name, test, design));
    for design in Design::ALL {
        add(format!("planner {design}: every candidate is within the oracle's bound"), candidates, design);
        add(format!("planner {design}: kept and found again, same bits"), cached, design);
        add(format!("race {design} auto: same bits, disturbed, 250 repeats"), races, design);
        add(format!("plan {design}: portable variants, eager and as a graph"), portable, design);
    }
    // Where the device has them.
    if kernel::attention_variants(device, 64).contains(&BY_HALVES) {
        for design in Design::ALL.into_iter().filter(|design| design.is_parallel()) {
            add(format!("plan {design}: by halves, eager and as a graph"), halves, design);
            add(format!("race {design} by halves: same bits, disturbed, 250 repeats"), halves_race, design);
        }
    }
    let design = Design::PafPostNorm;
    add("planner: a damaged cache is said to be, and measured anew".into(), damaged, design);
    add("planner: another device's plans are not used".into(), foreign, design);
    add("planner: without time every schedule is measured once".into(), hurried, design);
    add("planner: another device's batch is refused".into(), refused, design);
    add("oracle: asked about the last sequence of a batch, and not about another".into(), within, design);
    add(
        "plan: variants that cannot be are refused before anything is launched".into(),
        refused_variants,
        Design::PafPreNormTwo,
    );
}

fn check(condition: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(otherwise().into()) }
}

fn shape() -> Result<BatchShape, Error> {
    BatchShape::new(2, 70)?.with_lengths(vec![70, 33])
}

fn schedules(design: Design) -> impl Iterator<Item = Schedule> {
    Schedule::ALL.into_iter().filter(move |schedule| schedule.check(design).is_ok())
}

/// The stack of [`Fixture`] against the oracle.
struct Checked {
    config: EncoderConfig,
    oracle: verify::gpu::Oracle,
    weights: Arc<EncoderWeights>,
}

impl Checked {
    fn new(device: &Device, design: Design) -> Result<Self, Error> {
        let layer = LayerConfig { design, ..LayerConfig::new(128, 2, 512)? };
        let config = EncoderConfig { layer, num_hidden_layers: 3 };
        let layers: Vec<_> = random_layers(&config, 3).map(|layer| layer.rounded(Dtype::Bf16)).collect();
        let weights = Arc::new(EncoderWeights::upload(device, &config, Dtype::Bf16, &layers)?);
        Ok(Self { config, oracle: verify::gpu::Oracle::new(layers, Dtype::Bf16), weights })
    }

    fn check(&self, plan: Plan, graph: bool) -> Outcome {
        self.check_on(plan, graph, &shape()?)
    }

    fn check_on(&self, plan: Plan, graph: bool, shape: &BatchShape) -> Outcome {
        let encoder = Encoder::new(&self.config, self.weights.clone())?;
        self.oracle.check(&encoder, plan, graph, shape).map(drop).map_err(|error| format!("{plan}: {error}").into())
    }
}

fn within(device: &Device, design: Design) -> Outcome {
    let Checked { config, oracle, weights } = Checked::new(device, design)?;
    let encoder = Encoder::new(&config, weights)?;
    let whole = BatchShape::new(3, 200)?.with_lengths(vec![200, 90, 70])?;
    let asked = BatchShape::new(1, 70)?;
    for graph in [false, true] {
        oracle.check_within(&encoder, Schedule::Fused, graph, &whole, 400, &asked)?;
        // The one in the middle sees more keys.
        let result = oracle.check_within(&encoder, Schedule::Fused, graph, &whole, 200, &asked);
        check(matches!(result, Err(Error::Verification(_))), || format!("{result:?}"))?;
    }
    Ok(())
}

fn candidates(device: &Device, design: Design) -> Outcome {
    let checked = Checked::new(device, design)?;
    let encoder = Encoder::new(&checked.config, checked.weights.clone())?;
    let Planned { plan, candidates, from_cache, warnings } =
        Planner::new().budget(BUDGET).plan(&encoder, &Batch::new(device, &shape()?)?)?;
    check(!from_cache && warnings.is_empty(), || format!("from_cache {from_cache}, {warnings:?}"))?;
    check(candidates.iter().any(|timed| timed.plan == plan), || format!("{plan} is no candidate"))?;
    for schedule in schedules(design) {
        check(candidates.iter().any(|timed| timed.plan == schedule.into()), || format!("{schedule} is missing"))?;
    }
    check(candidates.len() > schedules(design).count(), || "no variant was tried".into())?;
    check(candidates.iter().all(|timed| timed.median_us > 0.0), || format!("{candidates:?}"))?;
    candidates.iter().try_for_each(|timed| checked.check(timed.plan, true))
}

fn cached(device: &Device, design: Design) -> Outcome {
    let mut fixture = Fixture::new(device, design, &shape()?)?;
    let folder = tempfile::tempdir()?;
    let planner = Planner::new().budget(BUDGET).cache(folder.path().join("plans/plans.json"));
    let first = planner.plan(&fixture.encoder, &fixture.batch)?;
    check(!first.from_cache && first.warnings.is_empty(), || format!("{first:?}"))?;
    let second = planner.plan(&fixture.encoder, &fixture.batch)?;
    check(second.from_cache && second.warnings.is_empty(), || format!("{second:?}"))?;
    check(second.plan == first.plan, || format!("{} instead of {}", second.plan, first.plan))?;
    let plans = |planned: &Planned| planned.candidates.iter().map(|timed| timed.plan).collect::<Vec<_>>();
    check(plans(&first) == plans(&second), || format!("{:?}", second.candidates))?;
    let expected = fixture.run(first.plan, &[])?;
    differs(&expected, &fixture.run(second.plan, &[])?, || "from the cache".into())?;
    // Another shape is another entry.
    let other = Batch::new(device, &BatchShape::new(1, 70)?)?;
    check(!planner.plan(&fixture.encoder, &other)?.from_cache, || "another shape's plan".into())?;
    check(planner.plan(&fixture.encoder, &fixture.batch)?.from_cache, || "the first shape's plan is gone".into())
}

/// What the planner chooses, and what differs most from the estimate among what it tried.
fn races(device: &Device, design: Design) -> Outcome {
    let fixture = Fixture::new(device, design, &shape()?)?;
    let planned = Planner::new().budget(BUDGET).plan(&fixture.encoder, &fixture.batch)?;
    race(device, design, planned.plan)?;
    let named = |plan: &Plan| {
        let products = LayerProduct::ALL.into_iter().filter(|&product| plan.product(product).is_some());
        products.count() + usize::from(plan.attention().is_some())
    };
    let other = planned.candidates.iter().map(|timed| timed.plan).max_by_key(named);
    race(device, design, other.ok_or("nothing was measured")?)
}

/// On a card that has kernels of its own these have to be loaded before the capture.
fn portable(device: &Device, design: Design) -> Outcome {
    let fresh = Device::new(device.info().ordinal)?;
    let checked = Checked::new(&fresh, design)?;
    for schedule in schedules(design) {
        let tile = GemmVariant::Sm80 { tile: 2 };
        let mut plan = Plan::from(schedule).with_attention(AttentionVariant::Sm80 { rows: 32 });
        let products =
            [LayerProduct::Qkv, LayerProduct::Wo, LayerProduct::W1, LayerProduct::W2, LayerProduct::WideSecond];
        for product in products {
            plan = plan.with_product(product, tile);
        }
        checked.check(plan, true)?;
        checked.check(plan, false)?;
    }
    Ok(())
}

/// Attention and the product beside it share each multiprocessor, that product launched in each of these ways.
fn by_halves(ways: &[&str]) -> Result<Vec<Plan>, Error> {
    let fused = Plan::from(Schedule::Fused).with_attention(BY_HALVES);
    let product = |way: &&str| format!("sm90:128x128h:{way}").parse::<GemmVariant>();
    ways.iter().map(|way| Ok(fused.with_product(LayerProduct::WideSecond, product(way)?))).collect()
}

const WHOLE: [&str; 3] = ["share1x1:stages5", "share2x1:stages5", "share1x2:stages4"];
/// Of few rows.
const IN_PARTS: [&str; 3] = ["parts2:stages5", "parts3:stages2", "parts4-share2x1:stages4"];

/// More tiles of attention than an H100 or H200 has multiprocessors.
fn short() -> Result<BatchShape, Error> {
    let lengths = (0..140).map(|i| 7 - i % 7).collect();
    BatchShape::new(140, 7)?.with_lengths(lengths)
}

/// More tiles of either kernel.
fn many_rows() -> Result<BatchShape, Error> {
    let lengths = (0..140).map(|i| 130 - i % 70).collect();
    BatchShape::new(140, 130)?.with_lengths(lengths)
}

fn halves(device: &Device, design: Design) -> Outcome {
    let checked = Checked::new(device, design)?;
    // Beside a product that leaves it no room it has to be right, too.
    let tile = "sm90:128x128:share1x1:stages6".parse::<GemmVariant>()?;
    let alone = Plan::from(Schedule::Fused).with_attention(BY_HALVES).with_product(LayerProduct::WideSecond, tile);
    let estimated = Plan::from(Schedule::Fused).with_attention(BY_HALVES);
    let any = [by_halves(&WHOLE)?, vec![alone, estimated]].concat();
    let few = [any.clone(), by_halves(&IN_PARTS)?].concat();
    // What the estimate takes by halves, and where it does.
    let own = vec![Schedule::Fused.into(), Plan::from(Schedule::Fused).with_product(LayerProduct::WideSecond, tile)];
    let shapes = [BatchShape::new(1, 50)?, shape()?, short()?, many_rows()?, BatchShape::new(200, 64)?];
    for (shape, plans) in shapes.into_iter().zip([&few, &few, &few, &any, &own]) {
        for &plan in plans {
            checked.check_on(plan, false, &shape)?;
            checked.check_on(plan, true, &shape)?;
        }
    }
    Ok(())
}

fn halves_race(device: &Device, design: Design) -> Outcome {
    let layer = LayerConfig { design, ..LayerConfig::new(128, 2, 512)? };
    for (way, shape) in [(WHOLE[0], many_rows()?), (IN_PARTS[0], short()?)] {
        for plan in by_halves(&[way])? {
            race_on(device, &layer, plan, &shape)?;
        }
    }
    Ok(())
}

fn damaged(device: &Device, design: Design) -> Outcome {
    let fixture = Fixture::new(device, design, &shape()?)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("plans.json");
    let planner = Planner::new().budget(BUDGET).cache(&path);
    let plan = || planner.plan(&fixture.encoder, &fixture.batch);
    plan()?;
    let good = std::fs::read_to_string(&path)?;
    let uuid = &device.info().uuid;
    let cases = [
        good[..good.len() / 2].to_owned(),
        good.replacen("\"checksum\": \"", "\"checksum\": \"0", 1),
        good.replacen(uuid.as_str(), "GPU-0", 1),
        good.replace("paf-cuda/plans/1", "paf-cuda/plans/0"),
    ];
    for (i, damaged) in cases.into_iter().enumerate() {
        check(damaged != good, || format!("case {i} is no damage"))?;
        std::fs::write(&path, damaged)?;
        let planned = plan()?;
        check(!planned.from_cache && planned.warnings.len() == 1, || format!("case {i}: {planned:?}"))?;
        let again = plan()?;
        check(again.from_cache && again.warnings.is_empty(), || format!("case {i}, again: {again:?}"))?;
    }
    // Where nothing can be kept, the plan is still good.
    let planned = Planner::new().budget(BUDGET).cache(folder.path()).plan(&fixture.encoder, &fixture.batch)?;
    check(!planned.from_cache && !planned.warnings.is_empty(), || format!("{planned:?}"))
}

fn foreign(device: &Device, design: Design) -> Outcome {
    let folder = tempfile::tempdir()?;
    let planner = Planner::new().budget(BUDGET).cache(folder.path().join("plans.json"));
    let fixture = Fixture::new(device, design, &shape()?)?;
    planner.plan(&fixture.encoder, &fixture.batch)?;
    // The same card with other kernels.
    let fixture = Fixture::new(&Device::portable(device.info().ordinal)?, design, &shape()?)?;
    let planned = planner.plan(&fixture.encoder, &fixture.batch)?;
    check(!planned.from_cache && planned.warnings.len() == 1, || format!("{planned:?}"))?;
    check(planned.warnings[0].contains("another device's"), || planned.warnings[0].clone())?;
    let text = planned.candidates.iter().map(|timed| timed.plan.to_string()).collect::<Vec<_>>().join("; ");
    check(!text.contains("sm90") && text.contains("sm80"), || text.clone())
}

fn hurried(device: &Device, design: Design) -> Outcome {
    let fixture = Fixture::new(device, design, &shape()?)?;
    let planned = Planner::new().budget(Duration::ZERO).plan(&fixture.encoder, &fixture.batch)?;
    let plans: Vec<_> = planned.candidates.iter().map(|timed| timed.plan).collect();
    check(plans == schedules(design).map(Plan::from).collect::<Vec<_>>(), || format!("{plans:?}"))?;
    check(plans.contains(&planned.plan), || planned.plan.to_string())
}

fn refused(device: &Device, design: Design) -> Outcome {
    let fixture = Fixture::new(device, design, &shape()?)?;
    let other = Batch::new(&Device::new(device.info().ordinal)?, &shape()?)?;
    match Planner::new().plan(&fixture.encoder, &other) {
        Err(Error::Mismatch { what: "device of the batch", .. }) => Ok(()),
        other => Err(format!("expected a mismatch, got {other:?}").into()),
    }
}

fn refused_variants(device: &Device, design: Design) -> Outcome {
    let mut fixture = Fixture::new(device, design, &shape()?)?;
    let hopper =
        !kernel::gemm_variants(device, 70, 128).iter().all(|variant| matches!(variant, GemmVariant::Sm80 { .. }));
    let alone = Cluster::Share { n: 1, m: 1 };
    let sm90 = |tile, cluster, stages| GemmVariant::Sm90 { tile, cluster, stages };
    let serial = Plan::from(Schedule::Serial);
    let mut cases = vec![
        serial.with_product(LayerProduct::W2, GemmVariant::Sm80 { tile: 99 }),
        serial.with_product(LayerProduct::W2, sm90(99, alone, 4)),
        serial.with_product(LayerProduct::W2, sm90(0, alone, 99)),
        serial.with_product(LayerProduct::W2, "sm90:16x64:split3:stages4".parse::<GemmVariant>()?),
        serial.with_attention(AttentionVariant::Sm80 { rows: 31 }),
        serial.with_attention(AttentionVariant::Sm90 { rows: 31, half: false }),
        serial.with_attention(AttentionVariant::Sm90 { rows: 128, half: true }),
    ];
    if hopper {
        // Two inputs: the portable kernel has one.
        let fused = Plan::from(Schedule::Fused);
        cases.push(fused.with_product(LayerProduct::WideFirst, GemmVariant::Sm80 { tile: 2 }));
    } else {
        cases.push(serial.with_attention(AttentionVariant::Sm90 { rows: 64, half: false }));
        cases.push(serial.with_product(LayerProduct::Qkv, sm90(4, alone, 4)));
    }
    for (i, plan) in cases.into_iter().enumerate() {
        let Fixture { encoder, stream, batch, x, y } = &mut fixture;
        let mut workspace = encoder.workspace(batch)?;
        workspace.poison()?;
        y.poison()?;
        let poisoned = y.to_bits()?;
        for result in [
            encoder.forward(stream, plan, batch, x, y, &mut workspace),
            encoder.capture(stream, plan, batch, x, y, &mut workspace).map(drop),
        ] {
            let refused = matches!(result, Err(Error::Mismatch { .. } | Error::Unsupported { .. }));
            check(refused, || format!("case {i}: {result:?}"))?;
        }
        differs(&poisoned, &y.to_bits()?, || format!("case {i}"))?;
    }
    // A product that the schedule does not have is of no account.
    let other = serial.with_product(LayerProduct::WideFirst, GemmVariant::Sm80 { tile: 99 });
    let expected = fixture.run(serial, &[])?;
    differs(&expected, &fixture.run(other, &[])?, || "a product that is not there".into())
}
