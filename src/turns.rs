//! In which order candidates that are measured in turns have theirs.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;

/// The candidates, from 0 on, in the order in which they run in that round: a random one, the same in every run. Whoever follows the same
/// neighbour in every round takes over its heat, and the clock that the power limit left it.
pub(crate) fn order(candidates: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..candidates).collect();
    order.shuffle(&mut Pcg64Mcg::seed_from_u64(round as u64));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_one_turn_a_round_and_follows_everyone_else_about_as_often() {
        const CANDIDATES: usize = 5;
        const ROUNDS: usize = 20_000;
        let mut follows = [[0; CANDIDATES]; CANDIDATES];
        for round in 0..ROUNDS {
            let order = order(CANDIDATES, round);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            order.windows(2).for_each(|pair| follows[pair[0]][pair[1]] += 1);
        }
        for (first, row) in follows.iter().enumerate() {
            for (second, &count) in row.iter().enumerate().filter(|&(second, _)| second != first) {
                // One of five is whoever it is with a probability of a fifth.
                assert!((3800..4200).contains(&count), "{second} after {first}: {count}");
            }
        }
    }

    #[test]
    fn one_candidate_and_none_have_an_order() {
        assert_eq!(order(1, 7), [0]);
        assert_eq!(order(0, 7), [0; 0]);
    }
}
