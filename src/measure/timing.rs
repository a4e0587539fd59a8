//! Rounds of interleaved samples.

use std::time::{Duration, Instant};

use crate::error::Result;

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
}

impl Default for Effort {
    fn default() -> Self {
        Self { warm_up_rounds: 2, min_rounds: 11, max_rounds: 201, budget: Duration::from_secs(5) }
    }
}

/// Something to time: runs once and says how many µs that took.
pub type Candidate<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Samples of each candidate, µs, one a round. Each round runs every candidate once, and begins with another one than the
/// round before, so that neither drift nor a neighbour's after-effects favour anyone.
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
    for round in 0..effort.warm_up_rounds + effort.max_rounds {
        let made = round.checked_sub(effort.warm_up_rounds);
        if made == Some(0) {
            started = Instant::now();
        }
        if made.is_some_and(|made| made >= effort.min_rounds) && started.elapsed() >= effort.budget {
            break;
        }
        for i in 0..candidates.len() {
            let i = (i + round) % candidates.len();
            let sample = candidates[i]()?;
            if made.is_some() {
                samples[i].push(sample);
            }
        }
        on_round(round);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn rounds_interleave_and_rotate() {
        let order = RefCell::new(String::new());
        let candidate = |name: char| -> Candidate<'_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(name);
                Ok(f64::from(u32::from(name)))
            })
        };
        let mut candidates = [candidate('a'), candidate('b'), candidate('c')];
        let effort = Effort { warm_up_rounds: 1, min_rounds: 3, max_rounds: 100, budget: Duration::ZERO };
        let samples = interleave(&mut candidates, effort, |_| ()).unwrap();
        assert_eq!(*order.borrow(), "abcbcacababc");
        assert_eq!(samples, [[97.0; 3], [98.0; 3], [99.0; 3]]);
    }

    #[test]
    fn the_most_rounds_are_enough() {
        let mut candidates: [Candidate<'_>; 1] = [Box::new(|| Ok(1.0))];
        let effort = Effort { warm_up_rounds: 0, min_rounds: 1, max_rounds: 7, budget: Duration::from_secs(60) };
        assert_eq!(interleave(&mut candidates, effort, |_| ()).unwrap()[0].len(), 7);
    }
}
