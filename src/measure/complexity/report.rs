//! The result of one run: what was counted, predicted and, where there was the device, measured.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::predict::{self, Predicted};
use super::work::Block;
#[cfg(any(feature = "cuda", test))]
use crate::error::{Error, Result};
use crate::measure::devices::Description;
use crate::measure::report::{self, Checkpoint, Config, DeviceState, Run, Spread, Verified, shape_name};
#[cfg(any(feature = "cuda", test))]
use crate::measure::statistics::{Median, paired_ratio};
use crate::measure::warnings::{self, Doubts};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/complexity/1";

/// One run.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`]. Where nothing was measured, the machine is the one that computed the prediction.
    #[serde(flatten)]
    pub run: Run,
    /// Preset that the dimensions come from.
    pub model: Option<String>,
    /// Where the weights come from, if they are not random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// The parallel design, by its short name; the serial one has its norms in the same place.
    pub design: String,
    /// Element type of weights and activations.
    pub dtype: String,
    /// Dimensions.
    pub config: Config,
    /// What was counted and how it was predicted and measured, in words.
    pub method: String,
    /// Half width of the medians' intervals at which sampling stops, over the median; absent in older files and where nothing was measured,
    /// too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_target: Option<f64>,
    /// What the predictions are for.
    pub device: Description,
    /// `seq_len` from which on attention takes more FLOPs than the FFN; absent if it always does.
    pub crossover_seq_len: Option<f64>,
    /// One batch shape each.
    pub cases: Vec<Case>,
}

/// One layer on one batch shape.
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
    /// The attention block of SAF: QKV product, attention, output projection, residual sum and norm.
    pub attention: Block,
    /// The FFN block of SAF: its products, the gate if there is one, residual sum and norm.
    pub ffn: Block,
    /// The least times that the device's ceilings allow, as estimated.
    pub predicted: Predicted,
    /// Times that were measured, if there was a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What was measured on one batch shape.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Measured {
    /// What was checked before timing.
    pub verified: Vec<Verified>,
    /// State of the device before the samples.
    pub state_before: Option<DeviceState>,
    /// And after.
    pub state_after: Option<DeviceState>,
    /// A row a subject.
    pub rows: Vec<Row>,
}

/// What a time is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The attention block, over and over.
    Attention,
    /// The FFN block, over and over.
    Ffn,
    /// Layers of the serial design: the two blocks in turn.
    Saf,
    /// Layers of the parallel design, the branches on two streams.
    TwoStream,
    /// Layers of the parallel design, as the planner chose.
    Auto,
}

impl Subject {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention block",
            Self::Ffn => "FFN block",
            Self::Saf => "SAF",
            Self::TwoStream => "PAF two-stream",
            Self::Auto => "PAF auto",
        }
    }

    /// Whether both blocks may run at once.
    pub const fn is_parallel(self) -> bool {
        matches!(self, Self::TwoStream | Self::Auto)
    }
}

/// A subject's times.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Row {
    /// What it is of.
    pub subject: Subject,
    /// Schedule, and those variants of its kernels that are not as estimated.
    pub plan: String,
    /// Every sample, µs a layer, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs a layer.
    pub median_us: Spread,
    /// Of both blocks together, the overlap fraction `(attention + FFN − together) / min(attention, FFN)`, the median of the rounds':
    /// how much of the shorter block the parallel design saves. 1: it has gone under the other one; 0: nothing is saved; below: running
    /// them together takes longer than one after the other; above 1: what has gone is more than that block, the second join among it.
    pub overlap: Option<Spread>,
    /// Of layers, SAF's time over this one's, the median of the rounds'.
    pub saf_over_this: Option<Spread>,
}

impl Measured {
    /// The row of a subject.
    pub fn row(&self, subject: Subject) -> Option<&Row> {
        self.rows.iter().find(|row| row.subject == subject)
    }

    /// The parallel rows.
    pub fn parallel(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.subject.is_parallel())
    }
}

impl Case {
    /// `8 × 512`.
    pub fn name(&self) -> String {
        shape_name(self.batch, self.seq_len, self.packed)
    }

    /// The cells of the table of work.
    fn work(&self) -> [String; 7] {
        let block = |of: &Block| [of.flops / 1e9, of.bytes() / 1e6, of.flops_per_byte].map(report::significant);
        let [[a, b, c], [d, e, f]] = [block(&self.attention), block(&self.ffn)];
        [self.name(), a, b, c, d, e, f]
    }

    /// The cells of the table of predictions.
    fn predictions(&self) -> [String; 9] {
        let of = &self.predicted;
        let us = |us: f64| report::significant(us);
        [
            self.name(),
            us(of.attention_us),
            us(of.ffn_us),
            us(of.saf_us),
            us(of.paf_us),
            of.paf_bound.name().into(),
            format!("{} / {}", of.saf_kernels, of.paf_kernels),
            format!("{:.3}", of.saf_over_paf),
            format!("{:.3}", of.saf_over_paf_apart),
        ]
    }

    /// The cells of the table of measurements, a row for each way to run both blocks at once.
    fn measurements(&self) -> impl Iterator<Item = [String; 9]> + '_ {
        self.measured.iter().flat_map(move |measured| {
            let us = |row: Option<&Row>| row.map_or_else(absent, |row| interval(&row.median_us, 2));
            let [attention, ffn, saf] = [Subject::Attention, Subject::Ffn, Subject::Saf].map(|of| us(measured.row(of)));
            measured.parallel().map(move |row| {
                [
                    self.name(),
                    attention.clone(),
                    ffn.clone(),
                    saf.clone(),
                    row.subject.name().into(),
                    us(Some(row)),
                    row.overlap.as_ref().map_or_else(absent, |overlap| interval(overlap, 2)),
                    row.saf_over_this.as_ref().map_or_else(absent, |ratio| interval(ratio, 3)),
                    self.ratio_error(row).map_or_else(absent, |error| {
                        format!("{:.3}, {:+.1} %", self.predicted.saf_over_paf, error * 100.0)
                    }),
                ]
            })
        })
    }

    /// How far the predicted ratio of SAF over PAF is from a measured one, of that.
    pub fn ratio_error(&self, row: &Row) -> Option<f64> {
        Some(self.predicted.saf_over_paf / row.saf_over_this?.median - 1.0)
    }
}

/// Rows of samples, µs a layer, that were taken in the same rounds.
#[cfg(any(feature = "cuda", test))]
pub(super) fn rows(subjects: Vec<(Subject, String)>, samples: Vec<Vec<f64>>) -> Result<Vec<Row>> {
    let no_samples = || Error::Verification("a time is not a number".into());
    let of = |subject| subjects.iter().position(|(other, _)| *other == subject).map(|i| samples[i].as_slice());
    let blocks = of(Subject::Attention).zip(of(Subject::Ffn));
    let saf = of(Subject::Saf);
    let mut rows = Vec::new();
    for ((subject, plan), own) in subjects.iter().zip(&samples) {
        let overlap = blocks.filter(|_| subject.is_parallel()).map(|(attention, ffn)| {
            let fractions: Vec<f64> = std::iter::zip(attention, ffn)
                .zip(own)
                .map(|((attention, ffn), together)| (attention + ffn - together) / attention.min(*ffn))
                .collect();
            Median::of(&fractions).map(Spread::from).ok_or_else(no_samples)
        });
        let is_layer = !matches!(subject, Subject::Attention | Subject::Ffn);
        let ratio = saf.filter(|_| is_layer).map(|saf| paired_ratio(saf, own).map(Spread::from).ok_or_else(no_samples));
        rows.push(Row {
            subject: *subject,
            plan: plan.clone(),
            samples_us: own.clone(),
            median_us: Median::of(own).ok_or_else(no_samples)?.into(),
            overlap: overlap.transpose()?,
            saf_over_this: ratio.transpose()?,
        });
    }
    Ok(rows)
}

fn absent() -> String {
    "–".to_owned()
}

fn interval(of: &Spread, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", of.median, of.half_width())
}

const WORK: [&str; 7] =
    ["batch × seq", "attention, GFLOP", "attention, MB", "attention, FLOP/B", "FFN, GFLOP", "FFN, MB", "FFN, FLOP/B"];

const PREDICTIONS: [&str; 9] = [
    "batch × seq",
    "attention, µs",
    "FFN, µs",
    "SAF, µs",
    "PAF, µs",
    "PAF’s branches take",
    "kernels in a row",
    "SAF / PAF",
    "a device each",
];

const MEASUREMENTS: [&str; 9] = [
    "batch × seq",
    "attention, µs",
    "FFN, µs",
    "SAF, µs",
    "together",
    "PAF, µs",
    "overlap",
    "SAF / PAF",
    "predicted, error",
];

impl Report {
    /// Whether there are measurements.
    pub fn is_measured(&self) -> bool {
        self.cases.iter().any(|case| case.measured.is_some())
    }

    /// What it is of, and from where on attention is the more expensive block.
    fn head(&self) -> String {
        let Config { num_hidden_layers, hidden_size, num_attention_heads, intermediate_size, .. } = self.config;
        let of_checkpoint = self.checkpoint.as_ref().map(|checkpoint| checkpoint.name.as_str());
        let model = of_checkpoint.or(self.model.as_deref()).unwrap_or("custom dimensions");
        let crossover = match self.crossover_seq_len {
            Some(seq_len) => format!("attention takes more FLOPs than the FFN beyond seq_len {seq_len:.0}"),
            None => "attention takes more FLOPs than the FFN at every seq_len".into(),
        };
        format!(
            "{model} ({}), {num_hidden_layers} layers, hidden_size {hidden_size}, {num_attention_heads} heads, intermediate_size \
             {intermediate_size}, {}; {crossover}.",
            self.design, self.dtype
        )
    }

    /// What is predicted, for which device, and where its numbers come from.
    fn prediction(&self) -> String {
        let Description { name, multiprocessors, flops_per_s, bytes_per_s, l2_bytes, kernel_us, .. } = &self.device;
        format!(
            "predicted for {name}: {:.0} TFLOP/s, {:.0} GB/s, {multiprocessors} multiprocessors, L2 {:.0} MiB, {kernel_us:.2} µs from \
             kernel to dependent kernel",
            flops_per_s / 1e12,
            bytes_per_s / 1e9,
            *l2_bytes as f64 / f64::from(1 << 20),
        )
    }

    /// The terms of the prediction, a line each.
    pub fn terms(&self) -> Vec<String> {
        predict::terms(&self.device)
    }

    /// How far the predicted ratios are from the measured ones: the mean and the largest distance, for each way to run both blocks.
    pub fn errors(&self) -> Vec<String> {
        let of = |subject: Subject| {
            let rows = self.cases.iter().filter_map(|case| {
                let row = case.measured.as_ref()?.row(subject)?;
                Some((case.ratio_error(row)?, case.predicted.paf_us / row.median_us.median, case))
            });
            let rows: Vec<_> = rows.collect();
            let worst = rows.iter().max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))?;
            let mean = rows.iter().map(|row| row.0.abs()).sum::<f64>() / rows.len() as f64;
            let (low, high) =
                rows.iter().fold((f64::MAX, 0.0f64), |(low, high), row| (low.min(row.1), high.max(row.1)));
            Some(format!(
                "SAF / {}: the predicted ratio is off by {:.1} % on average, {:+.1} % at most ({}); the predicted time is {:.0} to {:.0} % \
                 of the measured one",
                subject.name(),
                mean * 100.0,
                worst.0 * 100.0,
                worst.2.name(),
                low * 100.0,
                high * 100.0
            ))
        };
        [Subject::TwoStream, Subject::Auto].into_iter().filter_map(of).collect()
    }

    /// What casts doubt on the times that were measured.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let measured = self.cases.iter().filter_map(|case| Some((case, case.measured.as_ref()?)));
        let cases = measured.map(|(case, measured)| warnings::Case {
            name: case.name(),
            said: &[],
            states: [measured.state_before.as_ref(), measured.state_after.as_ref()],
            rows: measured.rows.iter().map(|row| (row.subject.name().to_owned(), row.median_us)).collect(),
        });
        Doubts::new(&self.run, self.noise_target, cases)
    }

    /// The same, a line each, case by case.
    pub fn warnings(&self) -> Vec<String> {
        self.doubts().lines()
    }

    /// The tables for a terminal.
    pub fn table(&self) -> String {
        let mut text = self.head() + "\n\nwork of a layer:\n";
        text += &report::table(WORK, self.cases.iter().map(Case::work));
        text += &format!("\n\n{}:\n", self.prediction());
        text += &report::table(PREDICTIONS, self.cases.iter().map(Case::predictions));
        text += &format!("\n  {}", self.terms().join("\n  "));
        if self.is_measured() {
            let device = self.run.machine.name();
            text += &format!("\n\nmeasured on {device}, a layer of a stack, as a graph:\n");
            text += &report::table(MEASUREMENTS, self.cases.iter().flat_map(Case::measurements));
        }
        text + "\n"
    }

    /// The same in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = self.head() + "\n\nWork of a layer:\n\n";
        text += &report::markdown(WORK, self.cases.iter().map(Case::work));
        text += &format!("\n{}, a layer (*predicted*, not measured):\n\n", capital(&self.prediction()));
        text += &report::markdown(PREDICTIONS, self.cases.iter().map(Case::predictions));
        text += &format!("\n{}", list(&self.terms()));
        if self.is_measured() {
            let device = self.run.machine.name();
            text += &format!("\nMeasured on {device}, a layer of a stack, as a graph:\n\n");
            text += &report::markdown(MEASUREMENTS, self.cases.iter().flat_map(Case::measurements));
            text += &format!("\n{}", list(&self.errors()));
        }
        text
    }

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        report::json(self)
    }
}

fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("- {line}\n")).collect()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
