//! What the measurements of single kernels have in common: who did what, and how its samples become a row of the report.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::Spread;

/// One way to compute something, as it was measured.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Row {
    /// `paf-cuda`, or the peer's name.
    pub by: String,
    /// What was computed, or on which operands; rows of one case with the same text are comparable.
    pub what: String,
    /// Kernel and tile, where it is ours.
    pub variant: Option<String>,
    /// Whether it was what the planner chose.
    pub planned: bool,
    /// Whether consecutive launches overlapped (programmatic dependent launch).
    pub overlap: bool,
    /// Every sample, µs a launch, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs.
    pub median_us: Spread,
    /// FLOP/s over the median, in 10¹².
    pub tflops: f64,
    /// That over the peak.
    pub peak_share: Option<f64>,
    /// Time that the measured rates of product and copy allow, the larger of the two, over the median; where operands come from the
    /// cache, that of the product alone. Absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_share: Option<f64>,
    /// Median of the paired ratios: time of the peer for the same over this one's.
    pub peer_over_this: Option<Spread>,
}

impl Row {
    /// Who, and what, for a line about it.
    pub(super) fn name(&self) -> String {
        let overlapped = if self.overlap { " overlapped" } else { "" };
        format!("{} {}{overlapped}", self.variant.as_deref().unwrap_or(&self.by), self.what)
    }

    /// The cells of a table: the case, what, by, µs, TFLOP/s, share of the peak and of what was measured, ratio to the peer.
    pub(super) fn cells(&self, case: &str) -> [String; 8] {
        let absent = || "–".to_owned();
        let share = |share: Option<f64>| share.map_or_else(absent, |share| format!("{:.0} %", share * 100.0));
        let by = self.variant.as_deref().unwrap_or(&self.by);
        let planned = if self.planned { "* " } else { "" };
        let overlapped = if self.overlap { " overlapped" } else { "" };
        [
            case.to_owned(),
            self.what.clone(),
            format!("{planned}{by}{overlapped}"),
            format!("{:.2} ± {:.2}", self.median_us.median, self.median_us.half_width()),
            format!("{:.0}", self.tflops),
            share(self.peak_share),
            share(self.measured_share),
            self.peer_over_this.map_or_else(absent, |ratio| format!("{:.3}", ratio.median)),
        ]
    }
}

/// The row of the planned variant.
pub(super) fn planned<'a>(rows: &'a [Row], what: &str, overlap: bool) -> Option<&'a Row> {
    rows.iter().find(|row| row.planned && row.what == what && row.overlap == overlap)
}

/// Ratios over a set of cases.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary<T> {
    /// Number of cases.
    pub cases: usize,
    /// Geometric mean of the peer's time over ours.
    pub geometric_mean: f64,
    /// The least ratio, and its case.
    pub least: (f64, T),
}

/// `None` where there are no ratios.
pub(super) fn summary<T>(ratios: impl Iterator<Item = (f64, T)>) -> Option<Summary<T>> {
    let (mut cases, mut logs) = (0, 0.0);
    let counted = ratios.inspect(|(ratio, _)| {
        cases += 1;
        logs += ratio.ln();
    });
    let least = counted.min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(Summary { cases, geometric_mean: (logs / cases as f64).exp(), least })
}

#[cfg(feature = "cuda")]
pub(super) use on_device::{Label, OURS, Timer, Work, rows};

#[cfg(feature = "cuda")]
mod on_device {
    use std::time::Duration;

    use super::Row;
    use crate::error::{Error, Result};
    use crate::gpu::{Event, Graph, Stream};
    use crate::measure::peak::Peak;
    use crate::measure::plant;
    use crate::measure::report::Spread;
    use crate::measure::statistics::{Median, paired_ratio};
    use crate::measure::timing::Candidate;

    pub const OURS: &str = "paf-cuda";

    /// What a row says besides its samples.
    pub struct Label {
        pub by: &'static str,
        pub what: &'static str,
        pub variant: Option<String>,
        pub planned: bool,
        pub overlap: bool,
        /// Whether operands come from the cache, so that memory's rate is no limit.
        pub hot: bool,
    }

    /// What a case has to do, and what the device could.
    pub struct Work<'a> {
        pub flops: f64,
        /// Each operand once.
        pub bytes: f64,
        /// FLOP/s.
        pub peak: Option<f64>,
        pub measured: Option<&'a Peak>,
    }

    /// The rows of a case, each beside `peer`'s first for the same.
    pub fn rows(labels: Vec<Label>, samples: Vec<Vec<f64>>, work: &Work<'_>, peer: &str) -> Result<Vec<Row>> {
        let no_samples = || Error::Verification("a time is not a number".into());
        let baseline = |what| labels.iter().position(|label| label.by == peer && label.what == what);
        let baselines: Vec<_> = labels.iter().map(|label| baseline(label.what)).collect();
        let ratio = |own: &[f64], i: usize| paired_ratio(&samples[i], own).ok_or_else(no_samples);
        let ratios = samples.iter().zip(&baselines).map(|(own, i)| i.map(|i| ratio(own, i)).transpose());
        let ratios = ratios.collect::<Result<Vec<_>>>()?;
        let mut rows = Vec::new();
        for ((label, samples_us), ratio) in labels.into_iter().zip(samples).zip(ratios) {
            let median = Median::of(&samples_us).ok_or_else(no_samples)?;
            let tflops = work.flops / median.value / 1e6;
            let bytes = if label.hot { 0.0 } else { work.bytes };
            let floor_us = work.measured.map(|peak| peak.floor_us(work.flops, bytes));
            rows.push(Row {
                by: label.by.into(),
                what: label.what.into(),
                variant: label.variant,
                planned: label.planned,
                overlap: label.overlap,
                samples_us,
                median_us: median.into(),
                tflops,
                peak_share: work.peak.map(|peak| tflops * 1e12 / peak),
                measured_share: floor_us.map(|floor| floor / median.value),
                peer_over_this: ratio.map(Spread::from),
            });
        }
        Ok(rows)
    }

    /// Times graphs on a stream.
    pub struct Timer<'a> {
        stream: &'a Stream,
        start: Event,
        end: Event,
    }

    impl<'a> Timer<'a> {
        pub fn new(stream: &'a Stream) -> Result<Self> {
            let device = stream.device();
            Ok(Self { stream, start: Event::new_timing(device)?, end: Event::new_timing(device)? })
        }

        /// Device time of one launch, µs, of a graph that holds so many of them, once it has run; after it the stream is kept busy for
        /// `extra`, if there is any.
        pub fn replay(&self, graph: &Graph<'_>, launches: usize, extra: Option<Duration>) -> Result<f64> {
            self.start.record(self.stream)?;
            graph.launch(self.stream)?;
            extra.map_or(Ok(()), |extra| self.stream.hold_back(extra))?;
            self.end.record(self.stream)?;
            self.end.synchronize()?;
            Ok(self.end.elapsed_us_since(&self.start)? / launches as f64)
        }

        /// The replays of a graph, as something to be sampled, each after one that is not timed: whoever ran before has left other
        /// things in the caches, the graph's own nodes not among them. Of ours by the name under which tests may slow it down.
        pub fn candidate<'b>(
            &'b self,
            ours: Option<&str>,
            graph: &'b Graph<'_>,
            launches: usize,
        ) -> Result<Candidate<'b>> {
            let planted = ours.map(|name| plant::extra(name, || self.replay(graph, launches, None))).transpose()?;
            let extra = planted.flatten().map(|extra| extra * launches as u32);
            Ok(Box::new(move || {
                // Not waited for: what launching costs then passes before the one that is timed begins, as it does for PyTorch's.
                graph.launch(self.stream)?;
                self.replay(graph, launches, extra)
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_geometric() {
        let summary = summary([(2.0, 'a'), (0.5, 'b'), (1.0, 'c')].into_iter()).unwrap();
        assert_eq!((summary.cases, summary.least), (3, (0.5, 'b')));
        assert!((summary.geometric_mean - 1.0).abs() < 1e-15);
        assert_eq!(super::summary(std::iter::empty::<(f64, char)>()), None);
    }
}
