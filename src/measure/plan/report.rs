//! The result of planning, and what can be said of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Schedule;
use crate::measure::report::{self, Config, DeviceState, Run, shape_name};
use crate::measure::warnings::{self, Doubts};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/plan/1";

/// One run.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// Preset that the dimensions come from.
    pub model: Option<String>,
    /// Design, by its short name.
    pub design: String,
    /// Element type of weights and activations.
    pub dtype: String,
    /// Dimensions.
    pub config: Config,
    /// Seed of the weights.
    pub seed: u64,
    /// Time for each shape, seconds.
    pub budget_s: f64,
    /// How it was measured, in words.
    pub method: String,
    /// One batch shape each.
    pub cases: Vec<Case>,
}

/// The choice for one batch shape.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Case {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each, padding included; of packed sequences, those of the longest.
    pub seq_len: usize,
    /// Valid tokens of each, if some are padded or they are packed.
    pub lengths: Option<Vec<usize>>,
    /// Whether sequences follow each other without padding.
    pub packed: bool,
    /// Valid tokens of all.
    pub tokens: usize,
    /// Schedule of the choice.
    pub schedule: String,
    /// The choice, with its variants.
    pub plan: String,
    /// Everything that was measured, in that order.
    pub candidates: Vec<Candidate>,
    /// State of the device before planning; absent in older files, and where nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_before: Option<DeviceState>,
    /// And after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_after: Option<DeviceState>,
    /// Whether that was at an earlier time.
    pub from_cache: bool,
    /// What is wrong with the cache.
    pub warnings: Vec<String>,
}

/// A plan that was measured.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Candidate {
    /// Its schedule.
    pub schedule: String,
    /// The schedule, and those variants of its kernels that are not as estimated.
    pub plan: String,
    /// Median time of a forward call, µs.
    pub median_us: f64,
}

impl Case {
    fn name(&self) -> String {
        shape_name(self.batch, self.seq_len, self.packed)
    }

    fn median_us(&self, plan: &str) -> Option<f64> {
        self.candidates.iter().find(|candidate| candidate.plan == plan).map(|candidate| candidate.median_us)
    }

    /// The cells of the table: shape, tokens, each schedule with estimated kernels, the choice.
    fn cells(&self) -> [String; 9] {
        let absent = || "–".to_owned();
        let ms = |plan: &str| self.median_us(plan).map_or_else(absent, |us| format!("{:.3}", us / 1e3));
        let [serial, two_stream, fused, hybrid] = Schedule::ALL.map(|schedule| ms(schedule.name()));
        let ratio = self.median_us(Schedule::Serial.name()).zip(self.median_us(&self.plan));
        let ratio = ratio.map_or_else(absent, |(serial, choice)| format!("{:.3}", serial / choice));
        let choice = self.schedule.clone();
        [self.name(), self.tokens.to_string(), serial, two_stream, fused, hybrid, choice, ms(&self.plan), ratio]
    }
}

const COLUMNS: [&str; 9] = [
    "batch × seq",
    "tokens",
    "serial, ms",
    "two-stream, ms",
    "fused, ms",
    "hybrid, ms",
    "choice",
    "tuned, ms",
    "serial / choice",
];

impl Report {
    /// The table for a terminal: the schedules, as estimated, beside the choice, whose variants are tuned.
    pub fn table(&self) -> String {
        report::table(COLUMNS, self.cases.iter().map(Case::cells))
    }

    /// The same in Markdown.
    pub fn markdown(&self) -> String {
        report::markdown(COLUMNS, self.cases.iter().map(Case::cells))
    }

    /// The choices with their variants, a line for each shape.
    pub fn choices(&self) -> Vec<String> {
        let origin = |case: &Case| if case.from_cache { ", from the cache" } else { "" };
        self.cases.iter().map(|case| format!("{}: {}{}", case.name(), case.plan, origin(case))).collect()
    }

    /// Every plan that was measured, a line each, the fastest of a shape first.
    pub fn candidates(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for case in &self.cases {
            let mut candidates: Vec<_> = case.candidates.iter().collect();
            candidates.sort_by(|a, b| a.median_us.total_cmp(&b.median_us));
            let line = |of: &Candidate| format!("{}: {:.3} ms {}", case.name(), of.median_us / 1e3, of.plan);
            lines.extend(candidates.into_iter().map(line));
        }
        lines
    }

    /// Which schedule is the choice for how many tokens, as far as they were measured.
    pub fn crossover(&self) -> Vec<String> {
        let mut choices: Vec<(usize, &str)> =
            self.cases.iter().map(|case| (case.tokens, case.schedule.as_str())).collect();
        choices.sort_unstable();
        choices.dedup();
        let ranges =
            choices.chunk_by(|a, b| a.1 == b.1).map(|range| (range[0].0, range[range.len() - 1].0, range[0].1));
        ranges
            .map(|(first, last, schedule)| match first == last {
                true => format!("{first} tokens: {schedule}"),
                false => format!("{first} to {last} tokens: {schedule}"),
            })
            .collect()
    }

    /// What casts doubt on the choices: of the cache, and of the device while it was measured.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let cases = self.cases.iter().map(|case| warnings::Case {
            name: case.name(),
            said: &case.warnings,
            states: [case.state_before.as_ref(), case.state_after.as_ref()],
            rows: Vec::new(),
        });
        Doubts::new(&self.run, None, cases)
    }

    /// The same, a line each, case by case.
    pub fn warnings(&self) -> Vec<String> {
        self.doubts().lines()
    }

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        report::json(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;
    use crate::measure::machine;

    fn case(batch: usize, seq_len: usize, plan: &str, times_us: &[(&str, f64)]) -> Case {
        let schedule = |plan: &str| plan.split(' ').next().unwrap().to_owned();
        let candidates = times_us.iter().map(|&(plan, median_us)| Candidate {
            schedule: schedule(plan),
            plan: plan.into(),
            median_us,
        });
        Case {
            batch,
            seq_len,
            lengths: None,
            packed: false,
            tokens: batch * seq_len,
            schedule: schedule(plan),
            plan: plan.into(),
            candidates: candidates.collect(),
            state_before: None,
            state_after: None,
            from_cache: batch == 2,
            warnings: vec![],
        }
    }

    fn report() -> Report {
        let tuned = "fused attention=sm90:rows64";
        Report {
            run: Run::begin(SCHEMA, machine::host()),
            model: None,
            design: "paf-post".into(),
            dtype: "bf16".into(),
            config: Config::of(&preset("roberta-large").unwrap().config, false),
            seed: 1,
            budget_s: 2.0,
            method: String::new(),
            cases: vec![
                case(8, 128, "two-stream", &[("serial", 1500.0), ("two-stream", 1200.0)]),
                case(1, 128, tuned, &[("serial", 600.0), ("fused", 420.0), (tuned, 400.0)]),
                case(2, 128, "fused", &[("serial", 700.0), ("fused", 500.0)]),
                case(1, 1024, "two-stream", &[("two-stream", 1250.0)]),
            ],
        }
    }

    #[test]
    fn tables_and_lines_tell_what_was_measured() {
        let report = report();
        let markdown = report.markdown();
        for line in [
            "| 8 × 128 | 1024 | 1.500 | 1.200 | – | – | two-stream | 1.200 | 1.250 |",
            "| 1 × 128 | 128 | 0.600 | – | 0.420 | – | fused | 0.400 | 1.500 |",
            "| 1 × 1024 | 1024 | – | 1.250 | – | – | two-stream | 1.250 | – |",
        ] {
            assert!(markdown.contains(line), "{line} is not in\n{markdown}");
        }
        assert_eq!(report.choices()[1..3], ["1 × 128: fused attention=sm90:rows64", "2 × 128: fused, from the cache"]);
        assert_eq!(
            report.candidates()[2..4],
            ["1 × 128: 0.400 ms fused attention=sm90:rows64", "1 × 128: 0.420 ms fused"]
        );
        assert_eq!(serde_json::from_str::<Report>(&report.json()).unwrap(), report);
    }

    #[test]
    fn schedules_cross_over_where_the_choice_changes() {
        let mut report = report();
        assert_eq!(report.crossover(), ["128 to 256 tokens: fused", "1024 tokens: two-stream"]);
        // Shapes with as many tokens need not agree.
        report.cases[3].schedule = "fused".into();
        assert_eq!(report.crossover(), ["128 to 1024 tokens: fused", "1024 tokens: two-stream"]);
        report.cases.clear();
        assert_eq!(report.crossover(), [] as [String; 0]);
    }
}
