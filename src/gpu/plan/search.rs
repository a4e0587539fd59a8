//! The search for the fastest plan: schedules first, then, for the best of them, one kernel after another.

use std::rc::Rc;
use std::time::Duration;

use super::choice::{LayerProduct, Plan};
use super::measured::{Planner, Timed};
use crate::config::Schedule;
use crate::error::Result;
use crate::turns;

/// Variants tried beside the present one of a product.
pub(super) const ALTERNATIVES: usize = 24;
/// Rounds of a contest that do not count, that it must have to decide between variants, and that are enough.
const WARM_UP: usize = 1;
const MIN_ROUNDS: usize = 3;
const MAX_ROUNDS: usize = 51;

/// What can be tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coordinate {
    Attention,
    Product(LayerProduct),
}

/// What plans are measured on.
pub(super) trait Bench {
    /// A plan that is ready to run.
    type Ready;

    /// The schedules there are, those with the fewest demands first.
    fn schedules(&self) -> Vec<Schedule>;
    /// What can be tuned in a schedule, in this order.
    fn coordinates(&self, schedule: Schedule) -> Result<Vec<Coordinate>>;
    /// Plans that differ from `plan` at the coordinate, the more promising first.
    fn others(&self, plan: &Plan, coordinate: Coordinate) -> Result<Vec<Plan>>;
    /// Checks the plan's result; a wrong one is an error.
    fn prepare(&self, plan: &Plan) -> Result<Self::Ready>;
    /// Runs it once, µs.
    fn sample_us(&self, ready: &Self::Ready) -> Result<f64>;
    /// Since the search began.
    fn elapsed(&self) -> Duration;
}

struct Entrant<R> {
    plan: Plan,
    ready: Rc<R>,
    /// Of the last contest, one a round, µs.
    samples: Vec<f64>,
}

impl<R> Entrant<R> {
    fn new<B: Bench<Ready = R>>(bench: &B, plan: Plan) -> Result<Self> {
        Ok(Self { plan, ready: Rc::new(bench.prepare(&plan)?), samples: Vec::new() })
    }

    /// The same for another contest.
    fn again(&self) -> Self {
        Self { plan: self.plan, ready: self.ready.clone(), samples: Vec::new() }
    }

    fn median_us(&self) -> f64 {
        median(self.samples.clone())
    }

    /// Median of the rounds' ratios to another one's times.
    fn ratio(&self, other: &Self) -> f64 {
        median(self.samples.iter().zip(&other.samples).map(|(own, other)| own / other).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.0
}

/// Rounds until `until`, `min_rounds` at least. Each runs every entrant once, in a random order.
fn contest<B: Bench>(
    bench: &B,
    entrants: &mut [Entrant<B::Ready>],
    min_rounds: usize,
    until: Duration,
    measured: &mut Vec<Timed>,
) -> Result<()> {
    entrants.iter_mut().for_each(|entrant| entrant.samples.clear());
    for round in 0..WARM_UP + MAX_ROUNDS {
        let made = round.checked_sub(WARM_UP);
        if made.is_some_and(|made| made >= min_rounds) && bench.elapsed() >= until {
            break;
        }
        for i in turns::order(entrants.len(), round) {
            let entrant = &mut entrants[i];
            let sample = bench.sample_us(&entrant.ready)?;
            if made.is_some() {
                entrant.samples.push(sample);
            }
        }
    }
    for Entrant { plan, samples, .. } in entrants.iter() {
        let timed = Timed { plan: *plan, median_us: median(samples.clone()) };
        match measured.iter_mut().find(|known| known.plan == *plan) {
            Some(known) => *known = timed,
            None => measured.push(timed),
        }
    }
    Ok(())
}

/// The fastest plan that is found within about `budget`, and everything that was measured: see [`Planner`](super::Planner).
pub(super) fn search<B: Bench>(bench: &B, budget: Duration) -> Result<(Plan, Vec<Timed>)> {
    let mut measured = Vec::new();
    let began = bench.elapsed();
    let mut entrants = Vec::new();
    for schedule in bench.schedules() {
        entrants.push(Entrant::new(bench, schedule.into())?);
    }
    let preparation = (bench.elapsed() - began) / entrants.len().max(1) as u32;
    contest(bench, &mut entrants, 1, budget / 4, &mut measured)?;

    // Stable: of equals, the one with the fewest demands.
    entrants.sort_by(|a, b| a.median_us().total_cmp(&b.median_us()));
    let limit = entrants[0].median_us() * Planner::CLOSE;
    entrants.retain(|entrant| entrant.median_us() <= limit);

    let mut contests = Vec::new();
    for (i, entrant) in entrants.iter().enumerate() {
        contests.extend(bench.coordinates(entrant.plan.schedule())?.into_iter().map(|coordinate| (i, coordinate)));
    }
    // A fifth is for the finalists.
    let tuned_at = budget / 5 * 4;
    let mut best: Vec<(Entrant<B::Ready>, f64)> =
        entrants.iter().map(|entrant| (entrant.again(), entrant.median_us())).collect();
    for (done, &(i, coordinate)) in contests.iter().enumerate() {
        let (present, median_us) = &best[i];
        let mut others = bench.others(&present.plan, coordinate)?;
        let left = tuned_at.saturating_sub(bench.elapsed());
        let share = left / (contests.len() - done) as u32;
        let until = bench.elapsed() + share;
        // As many as there is time to decide between; one at least, at the cost of later contests, of slower schedules.
        let cost = |others: usize| {
            let samples_us = (others + 1) as f64 * (WARM_UP + MIN_ROUNDS) as f64 * median_us;
            preparation * others as u32 + Duration::from_secs_f64(samples_us * 1e-6)
        };
        let affordable = (1..=others.len()).rev().find(|&others| cost(others) <= share);
        others.truncate(affordable.unwrap_or(usize::from(cost(1) <= left / 2)));
        if others.is_empty() {
            continue;
        }
        let mut field = vec![present.again()];
        for other in others {
            field.push(Entrant::new(bench, other)?);
        }
        contest(bench, &mut field, MIN_ROUNDS, until, &mut measured)?;
        let (fastest, ratio) = fastest(&field);
        best[i] = {
            let kept = if ratio < 1.0 - Planner::GAIN { fastest } else { &field[0] };
            (kept.again(), kept.median_us())
        };
    }

    let tuned = best.iter().zip(&entrants).filter(|((best, _), entrant)| best.plan != entrant.plan);
    let tuned: Vec<_> = tuned.map(|((best, median_us), _)| (best.again(), *median_us)).collect();
    let round_us: f64 = entrants.iter().map(Entrant::median_us).chain(tuned.iter().map(|tuned| tuned.1)).sum();
    let mut finalists = entrants;
    finalists.extend(tuned.into_iter().map(|tuned| tuned.0));
    let least = Duration::from_secs_f64(round_us * (WARM_UP + MIN_ROUNDS) as f64 * 1e-6);
    if finalists.len() > 1 && bench.elapsed() + least <= budget {
        contest(bench, &mut finalists, MIN_ROUNDS, budget, &mut measured)?;
        return Ok((fastest(&finalists).0.plan, measured));
    }
    // No time for the finalists: what was tuned has beaten its schedule's estimate, and that all other schedules'.
    Ok((best[0].0.plan, measured))
}

/// The entrant with the least times, and the ratio of its times to the first one's; of equals, the first.
fn fastest<R>(field: &[Entrant<R>]) -> (&Entrant<R>, f64) {
    let ratios = field.iter().map(|entrant| (entrant, entrant.ratio(&field[0])));
    ratios.min_by(|a, b| a.1.total_cmp(&b.1)).expect("somebody entered")
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::error::Error;
    use crate::gpu::attention::AttentionVariant;
    use crate::gpu::gemm::GemmVariant;

    /// A device whose times are known: the clock goes on by what a sample takes.
    struct Model {
        cost_us: fn(&Plan) -> f64,
        wrong: Option<Plan>,
        now: Cell<Duration>,
        prepared: RefCell<Vec<Plan>>,
    }

    impl Model {
        fn new(cost_us: fn(&Plan) -> f64) -> Self {
            Self { cost_us, wrong: None, now: Cell::default(), prepared: RefCell::default() }
        }

        fn pass(&self, us: f64) {
            self.now.set(self.now.get() + Duration::from_secs_f64(us * 1e-6));
        }
    }

    impl Bench for Model {
        type Ready = Plan;

        fn schedules(&self) -> Vec<Schedule> {
            Schedule::ALL.to_vec()
        }

        fn coordinates(&self, schedule: Schedule) -> Result<Vec<Coordinate>> {
            let products: &[_] = match schedule {
                Schedule::Fused => &[LayerProduct::WideFirst, LayerProduct::WideSecond],
                _ => &[LayerProduct::Qkv, LayerProduct::Wo],
            };
            let products = products.iter().map(|&product| Coordinate::Product(product));
            Ok(std::iter::once(Coordinate::Attention).chain(products).collect())
        }

        fn others(&self, plan: &Plan, coordinate: Coordinate) -> Result<Vec<Plan>> {
            Ok(match coordinate {
                Coordinate::Attention => {
                    [64, 128].map(|rows| plan.with_attention(AttentionVariant::Sm90 { rows, half: false })).to_vec()
                }
                Coordinate::Product(product) => {
                    (0..3).map(|tile| plan.with_product(product, GemmVariant::Sm80 { tile })).collect()
                }
            })
        }

        fn prepare(&self, plan: &Plan) -> Result<Plan> {
            if self.wrong == Some(*plan) {
                return Err(Error::Verification("wrong".into()));
            }
            self.pass(50.0);
            self.prepared.borrow_mut().push(*plan);
            Ok(*plan)
        }

        fn sample_us(&self, ready: &Plan) -> Result<f64> {
            let us = (self.cost_us)(ready);
            self.pass(us);
            Ok(us)
        }

        fn elapsed(&self) -> Duration {
            self.now.get()
        }
    }

    fn base_us(schedule: Schedule) -> f64 {
        match schedule {
            Schedule::Serial => 1000.0,
            Schedule::TwoStream => 990.0,
            Schedule::Fused => 860.0,
            Schedule::Hybrid => 830.0,
        }
    }

    /// Hybrid is the fastest by estimate; fused gains 8 % once its second product is tuned.
    fn tuned_us(plan: &Plan) -> f64 {
        let tile = |product| plan.product(product) == Some(GemmVariant::Sm80 { tile: 1 });
        let gain = if tile(LayerProduct::WideSecond) { 0.92 } else { 1.0 };
        // Not enough to be told from noise.
        base_us(plan.schedule()) * gain * if tile(LayerProduct::Wo) { 0.997 } else { 1.0 }
    }

    #[test]
    fn a_close_schedule_wins_once_it_is_tuned() {
        let model = Model::new(tuned_us);
        let (plan, measured) = search(&model, Duration::from_secs(2)).unwrap();
        let tile = GemmVariant::Sm80 { tile: 1 };
        assert_eq!(plan, Plan::from(Schedule::Fused).with_product(LayerProduct::WideSecond, tile));
        assert!(model.elapsed() < Duration::from_millis(2100), "{:?}", model.elapsed());
        // Every schedule was measured; only the close ones were tuned.
        for schedule in Schedule::ALL {
            let of = |timed: &&Timed| timed.plan.schedule() == schedule;
            let close = matches!(schedule, Schedule::Fused | Schedule::Hybrid);
            assert_eq!(measured.iter().filter(of).count(), if close { 1 + 2 + 3 + 3 } else { 1 }, "{schedule}");
        }
        for Timed { plan, median_us } in measured {
            assert_eq!(median_us, tuned_us(&plan), "{plan}");
        }
    }

    #[test]
    fn what_could_be_noise_is_not_kept() {
        let model = Model::new(|plan| base_us(plan.schedule()) * if plan.is_estimated() { 1.0 } else { 0.996 });
        assert_eq!(search(&model, Duration::from_secs(2)).unwrap().0, Schedule::Hybrid.into());
    }

    #[test]
    fn variants_add_up() {
        let model = Model::new(|plan| {
            let named = [LayerProduct::Qkv, LayerProduct::Wo].map(|product| plan.product(product).is_some());
            let named = named.into_iter().filter(|&named| named).count() + usize::from(plan.attention().is_some());
            base_us(plan.schedule()) - 20.0 * named as f64
        });
        let (plan, _) = search(&model, Duration::from_secs(2)).unwrap();
        let first = GemmVariant::Sm80 { tile: 0 };
        let expected = Plan::from(Schedule::Hybrid).with_attention(AttentionVariant::Sm90 { rows: 64, half: false });
        assert_eq!(plan, expected.with_product(LayerProduct::Qkv, first).with_product(LayerProduct::Wo, first));
    }

    #[test]
    fn without_time_every_schedule_is_still_measured_once() {
        for budget in [Duration::ZERO, Duration::from_millis(8)] {
            let model = Model::new(tuned_us);
            let (plan, measured) = search(&model, budget).unwrap();
            assert_eq!((plan, measured.len()), (Schedule::Hybrid.into(), 4), "{budget:?}");
            assert_eq!(model.prepared.borrow().len(), 4);
            assert!(model.elapsed() < Duration::from_millis(14), "{:?}", model.elapsed());
        }
    }

    #[test]
    fn some_time_is_enough_for_some_variants() {
        let model = Model::new(tuned_us);
        let (plan, measured) = search(&model, Duration::from_millis(60)).unwrap();
        assert!(measured.len() > 4 && measured.len() < 20, "{}", measured.len());
        assert!(model.elapsed() < Duration::from_millis(80), "{:?}", model.elapsed());
        assert!(matches!(plan.schedule(), Schedule::Fused | Schedule::Hybrid), "{plan}");
    }

    #[test]
    fn little_time_goes_to_the_best_schedule() {
        // Forward calls of 20 ms, all within 5 %.
        let model = Model::new(|plan| 20e3 + base_us(plan.schedule()));
        let (plan, measured) = search(&model, Duration::from_secs(2)).unwrap();
        assert_eq!(plan, Schedule::Hybrid.into());
        let tried: Vec<_> = measured.iter().filter(|timed| !timed.plan.is_estimated()).collect();
        assert!(!tried.is_empty() && tried[0].plan.schedule() == Schedule::Hybrid, "{tried:?}");
        assert!(model.elapsed() < Duration::from_millis(2500), "{:?}", model.elapsed());
    }

    #[test]
    fn a_wrong_candidate_is_an_error_and_no_choice() {
        let wide = Plan::from(Schedule::Fused).with_product(LayerProduct::WideSecond, GemmVariant::Sm80 { tile: 2 });
        for wrong in [Schedule::TwoStream.into(), wide] {
            let model = Model { wrong: Some(wrong), ..Model::new(tuned_us) };
            assert!(matches!(search(&model, Duration::from_secs(2)), Err(Error::Verification(_))), "{wrong}");
        }
    }
}
