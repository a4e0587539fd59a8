//! What a timeline says in a few numbers.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::timeline::Slice;

/// Of one forward call.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Summary {
    /// From the first kernel's start to the last one's end, µs.
    pub span_us: f64,
    /// In which some kernel ran, µs.
    pub busy_us: f64,
    /// In which none ran, over the span.
    pub idle_share: f64,
    /// In which some kernel of attention's branch ran, µs.
    pub attention_us: f64,
    /// In which some kernel of the FFN's branch ran, wide products among them, µs.
    pub ffn_us: f64,
    /// In which one of each ran, µs: at most that, where a kernel works before the one before it has ended, since then its waiting counts.
    pub together_us: f64,
    /// That over the shorter of the two; absent where a branch has no kernels.
    pub together_share: Option<f64>,
    /// Of each part and kernel, those that took longest first.
    pub totals: Vec<Total>,
}

/// All launches of one kernel for one part of the layers.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Total {
    /// As in [`Slice`].
    pub part: String,
    /// As in [`Slice`].
    pub kernel: String,
    /// Number of launches.
    pub count: usize,
    /// Sum of their durations, without what they waited for the kernel before them, µs: where kernels run together, more than the time
    /// that passed.
    pub total_us: f64,
}

/// Disjoint intervals in order.
struct Times(Vec<(f64, f64)>);

impl Times {
    /// Whenever one of these runs.
    fn of<'a>(slices: impl Iterator<Item = &'a Slice>) -> Self {
        let mut all: Vec<_> = slices.map(|slice| (slice.start_us, slice.end_us)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut disjoint: Vec<(f64, f64)> = Vec::new();
        for (start, end) in all {
            match disjoint.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => disjoint.push((start, end)),
            }
        }
        Self(disjoint)
    }

    fn us(&self) -> f64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Whenever both.
    fn and(&self, other: &Self) -> Self {
        let (mut both, mut i, mut j) = (Vec::new(), 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            let (start, end) = (a.0.max(b.0), a.1.min(b.1));
            if start < end {
                both.push((start, end));
            }
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        Self(both)
    }
}

fn is_attention(slice: &Slice) -> bool {
    matches!(slice.part.as_str(), "qkv" | "rotation" | "attention" | "wo")
}

fn is_ffn(slice: &Slice) -> bool {
    matches!(slice.part.as_str(), "w1" | "gate" | "w2" | "wide-first" | "wide-second")
}

/// A kernel, and the one before it on its stream, under which it began.
struct Early<'a> {
    before: &'a Slice,
    index: usize,
}

/// Kernels that began before the one before them on their stream had ended.
fn early(slices: &[Slice]) -> Vec<Early<'_>> {
    let mut started: Vec<_> = slices.iter().enumerate().collect();
    started.sort_by(|a, b| a.1.start_us.total_cmp(&b.1.start_us));
    let (mut last, mut early) = (BTreeMap::new(), Vec::new());
    for (index, slice) in started {
        if let Some(before) = last.insert(&slice.stream, slice)
            && slice.arguments.overlap
            && slice.start_us < before.end_us
        {
            early.push(Early { before, index });
        }
    }
    early
}

/// Whether a kernel has something to do before the one before it has ended.
fn works_early(before: &Slice, slice: &Slice) -> bool {
    matches!((before.part.as_str(), slice.part.as_str()), ("wide-first", "attention") | ("attention", "wide-second"))
}

/// Whether there are kernels that work early, whose waiting cannot be told from their work.
pub(super) fn waiting_counts(slices: &[Slice]) -> bool {
    early(slices).iter().any(|&Early { before, index }| works_early(before, &slices[index]))
}

/// The kernels without the time in which they only waited for the one before them.
fn working(slices: &[Slice]) -> Vec<Slice> {
    let mut working = slices.to_vec();
    for Early { before, index } in early(slices) {
        if !works_early(before, &slices[index]) {
            working[index].start_us = before.end_us.min(slices[index].end_us);
        }
    }
    working
}

impl Summary {
    /// Of these kernels.
    pub fn of(slices: &[Slice]) -> Self {
        let slices = &working(slices);
        let branch = |is: fn(&Slice) -> bool| Times::of(slices.iter().filter(|slice| is(slice)));
        let (all, attention, ffn) = (Times::of(slices.iter()), branch(is_attention), branch(is_ffn));
        let (together_us, shorter_us) = (attention.and(&ffn).us(), attention.us().min(ffn.us()));
        let span_us = all.0.first().zip(all.0.last()).map_or(0.0, |(first, last)| last.1 - first.0);
        let mut totals: Vec<Total> = Vec::new();
        for slice in slices {
            let same = |total: &&mut Total| (&total.part, &total.kernel) == (&slice.part, &slice.kernel);
            match totals.iter_mut().find(same) {
                Some(total) => {
                    total.count += 1;
                    total.total_us += slice.us();
                }
                None => totals.push(Total {
                    part: slice.part.clone(),
                    kernel: slice.kernel.clone(),
                    count: 1,
                    total_us: slice.us(),
                }),
            }
        }
        totals.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
        Self {
            span_us,
            busy_us: all.us(),
            idle_share: if span_us > 0.0 { 1.0 - all.us() / span_us } else { 0.0 },
            attention_us: attention.us(),
            ffn_us: ffn.us(),
            together_us,
            together_share: (shorter_us > 0.0).then_some(together_us / shorter_us),
            totals,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::trace::timeline::tests::slice;

    #[test]
    fn the_time_together_is_over_the_shorter_branch() {
        // Attention's branch 0–10 and 12–20 (18 µs), the FFN's 5–14 (9 µs), the join 22–25; together 5–10 and 12–14.
        let slices = [
            slice("attention", "qkv", 0.0, 6.0),
            slice("attention", "attention", 4.0, 10.0),
            slice("attention", "wo", 12.0, 20.0),
            slice("ffn", "w1", 5.0, 8.0),
            slice("ffn", "w2", 8.0, 14.0),
            slice("attention", "join", 22.0, 25.0),
        ];
        let summary = Summary::of(&slices);
        assert_eq!((summary.attention_us, summary.ffn_us, summary.together_us), (18.0, 9.0, 7.0));
        assert_eq!(summary.together_share, Some(7.0 / 9.0));
        assert_eq!((summary.span_us, summary.busy_us), (25.0, 23.0));
        assert!((summary.idle_share - 2.0 / 25.0).abs() < 1e-12);
    }

    #[test]
    fn branches_that_wait_for_each_other_do_not_overlap() {
        let serial = [slice("caller", "attention", 0.0, 4.0), slice("caller", "w1", 4.0, 9.0)];
        let summary = Summary::of(&serial);
        assert_eq!((summary.together_share, summary.idle_share), (Some(0.0), 0.0));
        // A wide product is what attention runs beside.
        let fused = [slice("caller", "wide-first", 0.0, 6.0), slice("caller", "attention", 4.0, 8.0)];
        assert_eq!(Summary::of(&fused).together_share, Some(0.5));
        let joins = [slice("caller", "join", 0.0, 1.0)];
        assert_eq!(Summary::of(&joins).together_share, None);
        assert_eq!((Summary::of(&[]).span_us, Summary::of(&[]).idle_share), (0.0, 0.0));
    }

    #[test]
    fn waiting_for_the_kernel_before_is_not_running() {
        // Each begins while the one before it runs, and waits: 4, 4 and 3 µs of work, of which none is together.
        let serial = [
            slice("caller", "attention", 0.0, 4.0),
            slice("caller", "wo", 1.0, 8.0),
            slice("caller", "w1", 5.0, 11.0),
            slice("caller", "join", 10.0, 12.0),
        ];
        let summary = Summary::of(&serial);
        assert_eq!((summary.attention_us, summary.ffn_us, summary.together_share), (8.0, 3.0, Some(0.0)));
        assert_eq!((summary.busy_us, summary.idle_share), (12.0, 0.0));
        let us = |part: &str| summary.totals.iter().find(|total| total.part == part).unwrap().total_us;
        assert_eq!(["attention", "wo", "w1", "join"].map(us), [4.0, 4.0, 3.0, 1.0]);
        assert!(!waiting_counts(&serial));
        // In whichever order they are given.
        let mut reversed = serial.to_vec();
        reversed.reverse();
        assert_eq!(Summary::of(&reversed).together_us, 0.0);
        // One that may not begin early ran when it was seen to.
        let mut seen = serial;
        seen[2].arguments.overlap = false;
        assert_eq!(Summary::of(&seen).together_us, 3.0);
        // On streams of their own they wait for nobody.
        let apart = [slice("attention", "wo", 0.0, 8.0), slice("ffn", "w1", 5.0, 11.0)];
        assert_eq!(Summary::of(&apart).together_us, 3.0);
    }

    #[test]
    fn what_works_early_counts_from_its_start() {
        let fused = [
            slice("caller", "wide-first", 0.0, 6.0),
            slice("caller", "attention", 4.0, 9.0),
            slice("caller", "wide-second", 7.0, 14.0),
            slice("caller", "join", 8.0, 16.0),
        ];
        let summary = Summary::of(&fused);
        // 4–6 and 7–9 of attention's 4–9; the join waits.
        assert_eq!((summary.together_us, summary.together_share), (4.0, Some(0.8)));
        assert!(waiting_counts(&fused));
        // Not where a kernel is between the two.
        let rotated = [
            slice("caller", "wide-first", 0.0, 6.0),
            slice("caller", "rotation", 4.0, 8.0),
            slice("caller", "attention", 5.0, 9.0),
        ];
        assert_eq!(Summary::of(&rotated).together_us, 0.0);
        assert!(!waiting_counts(&rotated));
    }

    #[test]
    fn totals_are_of_a_part_and_a_kernel() {
        let mut other = slice("caller", "w2", 30.0, 31.0);
        other.kernel = "another".into();
        let slices =
            [slice("caller", "w1", 0.0, 2.0), slice("caller", "w2", 2.0, 5.0), slice("caller", "w2", 9.0, 13.0), other];
        let totals = Summary::of(&slices).totals;
        let found: Vec<_> = totals.iter().map(|t| (t.part.as_str(), t.kernel.as_str(), t.count, t.total_us)).collect();
        assert_eq!(found, [("w2", "kernel", 2, 7.0), ("w1", "kernel", 1, 2.0), ("w2", "another", 1, 1.0)]);
    }
}
