//! The result of one run of the comparison with PyTorch, and what can be said of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::measure::report::{self, Ceilings, Config, Run, Sides, Spread, Verified, shape_name};
use crate::measure::statistics::paired_ratio;
use crate::measure::warnings::{self, Doubts};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/compare/1";

/// One run.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// Our engine: `cuda`.
    pub backend: String,
    /// Element type of weights and activations, ours and the peer's.
    pub dtype: String,
    /// Seed of weights and activations.
    pub seed: u64,
    /// How it was measured, in words.
    pub method: String,
    /// Half width of the medians' intervals at which sampling stops, over the median; absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_target: Option<f64>,
    /// What the machine can do at most.
    pub ceilings: Ceilings,
    /// What the peer is, if it was there.
    pub peer: Option<Versions>,
    /// Ways of the peer that were not measured at all, or not to the end.
    pub missing: Vec<Missing>,
    /// One model each.
    pub stacks: Vec<Stack>,
}

/// What the peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Versions {
    /// PyTorch's.
    pub torch: String,
    /// Of the CUDA that it was built for.
    pub cuda: Option<String>,
    /// cuDNN's, as one number.
    pub cudnn: Option<u64>,
    /// Triton's, if it is installed.
    pub triton: Option<String>,
    /// Transformers', if it is installed.
    pub transformers: Option<String>,
    /// The device, as PyTorch names it.
    pub device: String,
}

/// A way that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Missing {
    /// Its name.
    pub way: String,
    /// The reason.
    pub why: String,
    /// Model and shape at which the peer failed: it was measured up to there. Absent if it was not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// A model's layers.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Stack {
    /// Preset that the dimensions come from.
    pub model: Option<String>,
    /// The parallel design, by its short name.
    pub design: String,
    /// Dimensions.
    pub config: Config,
    /// One batch shape each.
    pub cases: Vec<Case>,
}

/// Everything that was measured on one shape.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Case {
    /// Ours.
    #[serde(flatten)]
    pub ours: report::Case,
    /// PyTorch's, sampled in the same rounds.
    pub peers: Vec<PeerRow>,
    /// What could not be run on this shape.
    pub absent: Vec<Absent>,
}

/// One way in which PyTorch runs the layers.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct PeerRow {
    /// `PyTorch`.
    pub by: String,
    /// Design, by its short name.
    pub design: String,
    /// `eager`, `two-stream`, `fused` or `compile`.
    pub way: String,
    /// `graph`, or `launches` where they are made one by one.
    pub mode: String,
    /// What was checked before timing.
    pub verified: Vec<Verified>,
    /// Every sample, µs a forward call, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs.
    pub median_us: Spread,
    /// Median of the paired ratios: this one's time over that of ours in the same design, which is the faster row of SAF, and of PAF the
    /// planner's choice, or the fastest row where nobody planned. In older files over our fastest row of PAF, too; the tables have it from
    /// the samples.
    pub over_ours: Spread,
}

/// A row that there is not.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Absent {
    /// `saf` or `paf`.
    pub design: String,
    /// As in [`PeerRow`].
    pub way: String,
    /// As in [`PeerRow`].
    pub mode: String,
    /// What PyTorch said.
    pub why: String,
}

/// A row of either side.
struct Row<'a> {
    by: String,
    name: String,
    design: &'a str,
    samples_us: &'a [f64],
    median_us: Spread,
}

/// Ours and the best of PyTorch's, if there is any, in one design.
struct Pair<'a> {
    ours: &'a report::Variant,
    peer: Option<&'a PeerRow>,
}

const ABSENT: &str = "–";
/// What a model without a name is called.
pub(super) const CUSTOM: &str = "custom dimensions";
const BEST: [&str; 9] = [
    "batch × seq",
    "SAF here, ms",
    "PyTorch's",
    "PyTorch / here",
    "PAF here, ms",
    "PyTorch's",
    "PyTorch / here",
    "SAF / PAF here",
    "PyTorch's",
];
const ALL: [&str; 5] = ["batch × seq", "design", "by", "median, ms", "this / here"];

fn ms(us: Spread) -> String {
    us.plus_minus(1e3)
}

fn ratio(of: Option<Spread>) -> String {
    of.map_or_else(|| ABSENT.to_owned(), |of| of.plus_minus(1.0))
}

/// Our schedule and mode.
fn name_of(ours: &report::Variant) -> String {
    format!("{}, {}", ours.schedule_name(), ours.mode)
}

/// Of the times in the same rounds.
fn paired(numerator: &[f64], denominator: &[f64]) -> Option<Spread> {
    paired_ratio(numerator, denominator).map(Spread::from)
}

impl PeerRow {
    /// Way and mode.
    fn name(&self) -> String {
        format!("{}, {}", self.way, self.mode)
    }
}

impl Case {
    /// Our SAF and PAF, as in `paf speedup`, in the mode in which SAF is faster: PAF is not the luckiest of many rows.
    fn sides(&self) -> Option<Sides<'_>> {
        self.ours.sides().min_by(|a, b| a.saf.median_us.median.total_cmp(&b.saf.median_us.median))
    }

    /// Our row of a design that PyTorch's are beside.
    pub(super) fn ours_in(&self, design: &str) -> Option<&report::Variant> {
        let Sides { saf, paf, .. } = self.sides()?;
        [saf, paf].into_iter().find(|ours| ours.design == design)
    }

    /// Of PyTorch's rows the fastest, in its favour.
    fn pair<'a>(&'a self, ours: &'a report::Variant) -> Pair<'a> {
        let peers = self.peers.iter().filter(|row| row.design == ours.design);
        Pair { ours, peer: peers.min_by(|a, b| a.median_us.median.total_cmp(&b.median_us.median)) }
    }

    /// Ours over PyTorch's, both designs, and SAF over PAF of either side.
    fn best_cells(&self) -> Option<[String; 9]> {
        let Sides { saf, paf, .. } = self.sides()?;
        let (saf, paf) = (self.pair(saf), self.pair(paf));
        let of = |&Pair { ours, peer }: &Pair<'_>| {
            let over = peer.and_then(|row| paired(&row.samples_us, &ours.samples_us));
            let peer = peer.map_or_else(|| ABSENT.to_owned(), |row| format!("{} {}", ms(row.median_us), row.name()));
            [format!("{} {}", ms(ours.median_us), name_of(ours)), peer, ratio(over)]
        };
        let theirs = saf.peer.zip(paf.peer).and_then(|(saf, paf)| paired(&saf.samples_us, &paf.samples_us));
        let here = paired(&saf.ours.samples_us, &paf.ours.samples_us);
        let ([a, b, c], [d, e, f]) = (of(&saf), of(&paf));
        Some([self.name(), a, b, c, d, e, f, ratio(here), ratio(theirs)])
    }

    fn name(&self) -> String {
        shape_name(self.ours.batch, self.ours.seq_len, self.ours.packed)
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let ours = self.ours.variants.iter().map(|variant| Row {
            by: "paf-cuda".into(),
            name: name_of(variant),
            design: &variant.design,
            samples_us: &variant.samples_us,
            median_us: variant.median_us,
        });
        let peers = self.peers.iter().map(|row| Row {
            by: row.by.clone(),
            name: row.name(),
            design: &row.design,
            samples_us: &row.samples_us,
            median_us: row.median_us,
        });
        ours.chain(peers)
    }

    fn all_cells(&self) -> impl Iterator<Item = [String; 5]> + '_ {
        self.rows().map(|row| {
            let over = self.ours_in(row.design).and_then(|ours| paired(row.samples_us, &ours.samples_us));
            [self.name(), row.design.to_owned(), format!("{} {}", row.by, row.name), ms(row.median_us), ratio(over)]
        })
    }
}

impl Stack {
    /// Model, layers, and what was left out.
    fn title(&self) -> String {
        let (name, config) = (self.model.as_deref().unwrap_or(CUSTOM), &self.config);
        let left_out = if config.rotary_left_out { ", rotary embeddings left out on both sides" } else { "" };
        let (layers, hidden) = (config.num_hidden_layers, config.hidden_size);
        format!("{name} ({}): {layers} layers of {hidden}{left_out}", self.design)
    }

    /// Ours and the best of PyTorch's, in Markdown.
    fn best(&self) -> String {
        report::markdown(BEST, self.cases.iter().filter_map(Case::best_cells))
    }
}

impl Report {
    /// In words: what the peer is, and what of it is not in the tables.
    pub fn notes(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(Versions { torch, cudnn, .. }) = &self.peer {
            let cudnn = cudnn.map_or_else(String::new, |version| format!(", cuDNN {version}"));
            lines.push(format!("PyTorch {torch}{cudnn}"));
        }
        lines.extend(self.missing.iter().map(|Missing { way, why, from }| {
            let from = from.as_ref().map_or_else(String::new, |from| format!(" from {from} on"));
            format!("PyTorch {way} was not measured{from}: {why}")
        }));
        for stack in &self.stacks {
            let model = stack.model.as_deref().unwrap_or(CUSTOM);
            for case in &stack.cases {
                lines.extend(case.absent.iter().map(|Absent { design, way, mode, why }| {
                    format!("{model} {}: no row of PyTorch {design} {way}, {mode}: {why}", case.name())
                }));
            }
        }
        lines
    }

    /// What casts doubt on the times.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let cases = self.stacks.iter().flat_map(|stack| stack.cases.iter().map(move |case| (stack, case)));
        let cases = cases.map(|(stack, case)| {
            let ours = case.ours.variants.iter().map(|variant| (variant.name(), variant.median_us));
            let peers = case.peers.iter().map(|row| {
                let PeerRow { by, design, way, mode, .. } = row;
                (format!("{by} {design} {way} ({mode})"), row.median_us)
            });
            warnings::Case {
                name: format!("{} {}", stack.model.as_deref().unwrap_or(CUSTOM), case.name()),
                said: &[],
                states: [case.ours.state_before.as_ref(), case.ours.state_after.as_ref()],
                rows: ours.chain(peers).collect(),
            }
        });
        Doubts::new(&self.run, self.noise_target, cases)
    }

    /// The same, a line each, case by case.
    pub fn warnings(&self) -> Vec<String> {
        self.doubts().lines()
    }

    /// The tables for a terminal: ours beside the best of PyTorch's, and every row.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for stack in &self.stacks {
            let best = report::table(BEST, stack.cases.iter().filter_map(Case::best_cells));
            let all = report::table(ALL, stack.cases.iter().flat_map(Case::all_cells));
            text += &format!("{}, {}\n{best}\nall rows\n{all}\n", stack.title(), self.dtype);
        }
        text
    }

    /// The same in Markdown, and under it what is not there.
    pub fn markdown(&self) -> String {
        self.of_stacks(|stack| {
            let all = report::markdown(ALL, stack.cases.iter().flat_map(Case::all_cells));
            format!("{}\nAll rows:\n\n{all}", stack.best())
        })
    }

    /// Of each batch shape our SAF and PAF and PyTorch's best alone, in Markdown, and what is not there: of ours SAF's faster row, and PAF
    /// as the planner chose it, or its fastest row where nobody planned.
    pub fn summary(&self) -> String {
        self.of_stacks(Stack::best)
    }

    /// Something of each stack under its title, and what is not there.
    fn of_stacks(&self, of: impl Fn(&Stack) -> String) -> String {
        let stacks = self.stacks.iter().map(|stack| format!("{}, {}\n\n{}", stack.title(), self.dtype, of(stack)));
        let notes: String = self.notes().iter().map(|line| format!("- {line}\n")).collect();
        stacks.chain([notes]).collect::<Vec<_>>().join("\n")
    }

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        report::json(self)
    }
}

#[cfg(test)]
mod tests;
