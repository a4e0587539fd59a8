//! Rounds of interleaved samples.

use std::time::{Duration, Instant};

use super::plant;
use super::report::{DeviceState, percent};
use super::statistics::Median;
use crate::error::Result;
use crate::turns;

/// How long to sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Rounds before the samples count.
    pub warm_up_rounds: usize,
    /// Rounds that are made whatever they cost.
    pub min_rounds: usize,
    /// Rounds after which it is enough.
    pub max_rounds: usize,
    /// Time after which no further round begins, once `min_rounds` are made.
    pub budget: Duration,
    /// It is enough, too, when the 95 % interval of every candidate's median reaches no further than this share of it to either side.
    pub noise: Option<f64>,
}

/// The share for [`Effort::noise`] that is asked for if nothing else is.
pub const NOISE: f64 = 0.005;

impl Default for Effort {
    fn default() -> Self {
        let budget = Duration::from_secs(5);
        Self { warm_up_rounds: 2, min_rounds: 11, max_rounds: 201, budget, noise: Some(NOISE) }
    }
}

impl Effort {
    /// In words, for a report's method.
    pub(super) fn rounds(&self) -> String {
        let Self { warm_up_rounds, min_rounds, max_rounds, budget, noise } = self;
        let quiet = noise.map_or_else(String::new, |noise| {
            format!(", or as soon as every median's interval is within ± {} % of it", percent(noise))
        });
        let seconds = budget.as_secs_f64();
        let planted = plant::trace().map_or_else(String::new, |planted| format!(", with {planted} set"));
        format!(
            "{warm_up_rounds} warm-up rounds, then {min_rounds} to {max_rounds} rounds or {seconds:.2} s{quiet}{planted}"
        )
    }

    /// Whether the samples are as quiet as was asked for.
    fn is_reached(&self, samples: &[Vec<f64>]) -> bool {
        let quiet = |noise| samples.iter().all(|own| Median::of(own).is_some_and(|median| median.is_within(noise)));
        self.noise.is_some_and(quiet)
    }
}

/// Something to time: runs once and says how many µs that took.
pub type Candidate<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Samples of each candidate, µs, one a round. Each round runs every candidate once, in a random order, so that neither drift nor a
/// neighbour's after-effects favour anyone.
///
/// To stop when an interval happens to look narrow favours intervals that came out too narrow. So whether the noise is as low as
/// [`Effort::noise`] asks is looked at rarely: after the fewest rounds, then after half as many again, and so on, eight looks from 11
/// rounds to 201. The intervals of 95 % then still cover the true median in 94 % of measurements at least (a test simulates that; with a
/// look after every round it would be 92 %).
///
/// # Errors
/// What a candidate gives.
pub fn interleave(
    candidates: &mut [Candidate<'_>],
    effort: Effort,
    mut on_round: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    let mut samples = vec![Vec::new(); candidates.len()];
    let mut started = Instant::now();
    let mut look = effort.min_rounds.max(1);
    for round in 0..effort.warm_up_rounds + effort.max_rounds {
        let made = round.checked_sub(effort.warm_up_rounds);
        if made == Some(0) {
            started = Instant::now();
        }
        if made.is_some_and(|made| made >= effort.min_rounds) && started.elapsed() >= effort.budget {
            break;
        }
        for i in turns::order(candidates.len(), round) {
            let sample = candidates[i]()?;
            if made.is_some() {
                samples[i].push(sample);
            }
        }
        on_round(round);
        if made.is_some_and(|made| made + 1 == look) {
            if effort.is_reached(&samples) {
                break;
            }
            look += look.div_ceil(2);
        }
    }
    Ok(samples)
}

/// Samples, and the device around them.
pub(super) struct Sampled {
    /// Of each candidate, µs, one a round.
    pub samples_us: Vec<Vec<f64>>,
    /// After the rounds that warm up.
    pub state_before: Option<DeviceState>,
    /// After the last round.
    pub state_after: Option<DeviceState>,
}

/// [`interleave`], with the device's state before and after the samples that count.
pub(super) fn observe(
    candidates: &mut [Candidate<'_>],
    effort: Effort,
    state: impl Fn() -> Option<DeviceState>,
    mut on_round: impl FnMut(usize),
) -> Result<Sampled> {
    let mut state_before = if effort.warm_up_rounds == 0 { state() } else { None };
    let samples_us = interleave(candidates, effort, |round| {
        if round + 1 == effort.warm_up_rounds {
            state_before = state();
        }
        on_round(round);
    })?;
    Ok(Sampled { samples_us, state_before, state_after: state() })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rand::SeedableRng;
    use rand_distr::Distribution;

    use super::*;

    #[test]
    fn rounds_interleave_in_random_order() {
        let order = RefCell::new(String::new());
        let candidate = |name: char| -> Candidate<'_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(name);
                Ok(f64::from(u32::from(name)))
            })
        };
        let mut candidates = [candidate('a'), candidate('b'), candidate('c')];
        let effort = Effort { warm_up_rounds: 1, min_rounds: 3, max_rounds: 100, budget: Duration::ZERO, noise: None };
        let samples = interleave(&mut candidates, effort, |_| ()).unwrap();
        let expected = (0..4).flat_map(|round| turns::order(3, round)).map(|i| ['a', 'b', 'c'][i]);
        assert_eq!(*order.borrow(), expected.collect::<String>());
        assert_eq!(samples, [[97.0; 3], [98.0; 3], [99.0; 3]]);
    }

    #[test]
    fn the_most_rounds_are_enough() {
        let mut candidates: [Candidate<'_>; 1] = [Box::new(|| Ok(1.0))];
        let effort =
            Effort { warm_up_rounds: 0, min_rounds: 1, max_rounds: 7, budget: Duration::from_secs(60), noise: None };
        assert_eq!(interleave(&mut candidates, effort, |_| ()).unwrap()[0].len(), 7);
    }

    #[test]
    fn looks_are_rare_and_one_noisy_candidate_is_enough_to_go_on() {
        let rounds = |noise, jitter: f64| {
            let mut odd = false;
            let mut candidates: [Candidate<'_>; 2] = [
                Box::new(|| Ok(1.0)),
                Box::new(move || {
                    odd = !odd;
                    Ok(if odd { 1.0 + jitter } else { 1.0 })
                }),
            ];
            let budget = Duration::from_secs(60);
            let effort = Effort { warm_up_rounds: 1, min_rounds: 6, max_rounds: 50, budget, noise };
            interleave(&mut candidates, effort, |_| ()).unwrap()[0].len()
        };
        assert_eq!(rounds(Some(0.01), 0.0), 6);
        assert_eq!(rounds(Some(0.01), 0.005), 6);
        assert_eq!(rounds(Some(0.01), 0.1), 50);
        assert_eq!(rounds(None, 0.0), 50);
        // Five samples have no interval of 95 %: the next look is the first that can be enough.
        let mut candidates: [Candidate<'_>; 1] = [Box::new(|| Ok(1.0))];
        let effort = Effort { warm_up_rounds: 0, min_rounds: 5, ..Effort::default() };
        assert_eq!(interleave(&mut candidates, effort, |_| ()).unwrap()[0].len(), 8);
    }

    #[test]
    fn the_state_is_taken_after_warming_up_and_at_the_end() {
        let calls = RefCell::new(0);
        let state = || {
            let state = DeviceState { sm_clock_mhz: Some(*calls.borrow()), ..DeviceState::default() };
            Some(state)
        };
        let sampled = |warm_up_rounds| {
            *calls.borrow_mut() = 0;
            let mut candidates: [Candidate<'_>; 1] = [Box::new(|| {
                *calls.borrow_mut() += 1;
                Ok(1.0)
            })];
            let effort = Effort { warm_up_rounds, min_rounds: 4, max_rounds: 4, noise: None, ..Effort::default() };
            let sampled = observe(&mut candidates, effort, state, |_| ()).unwrap();
            [sampled.state_before, sampled.state_after].map(|state| state.unwrap().sm_clock_mhz.unwrap())
        };
        assert_eq!(sampled(3), [3, 7]);
        assert_eq!(sampled(0), [0, 4]);
    }

    /// How often the intervals that [`interleave`] ends with cover the true median, of times whose logarithm is normal, and how
    /// many rounds it makes on average.
    fn coverage(sigma: f64, effort: Effort) -> (f64, f64) {
        const TIMES: usize = 5_000;
        let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(7);
        let normal = rand_distr::LogNormal::new(0.0, sigma).unwrap();
        let (mut covered, mut rounds) = (0, 0);
        for _ in 0..TIMES {
            let mut candidates: [Candidate<'_>; 1] = [Box::new(|| Ok(normal.sample(&mut rng)))];
            let samples = interleave(&mut candidates, effort, |_| ()).unwrap().remove(0);
            let median = Median::of(&samples).unwrap();
            covered += usize::from((median.low..=median.high).contains(&1.0));
            rounds += samples.len();
        }
        (covered as f64 / TIMES as f64, rounds as f64 / TIMES as f64)
    }

    #[test]
    fn stopping_when_it_is_quiet_hardly_costs_coverage() {
        let effort = Effort { warm_up_rounds: 0, budget: Duration::from_secs(60), ..Effort::default() };
        for effort in [effort, Effort { min_rounds: 7, max_rounds: 101, ..effort }] {
            // From where the first look is nearly always enough to where the target is hardly ever reached.
            for sigma in [0.003, 0.006, 0.01, 0.015, 0.02, 0.03] {
                let (covered, rounds) = coverage(sigma, effort);
                assert!(covered >= 0.94, "sigma {sigma}: {covered} after {rounds:.1} rounds");
            }
        }
    }
}
