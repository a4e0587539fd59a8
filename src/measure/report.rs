//! Result files: everything that a run found, as JSON or CSV, and tables for people.

mod checkpoint;
mod destination;
mod picks;
mod sides;
mod text;

use std::cmp::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use checkpoint::{Checkpoint, WeightFile};
pub use destination::Destination;
pub(super) use sides::Sides;
pub(super) use text::{json, markdown, significant, table};
pub use text::{percent, shape_name};

use super::plant;
use super::statistics::Median;
use super::warnings::{self, Doubts};
use crate::config::EncoderConfig;
use crate::verify::Comparison;

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/speedup/1";

/// One run of the comparison.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// `cuda` or `cpu`.
    pub backend: String,
    /// Preset that the dimensions come from.
    pub model: Option<String>,
    /// Where the weights come from, if they are not random; absent in older files, whose are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// Element type of weights and activations.
    pub dtype: String,
    /// Dimensions.
    pub config: Config,
    /// Seed of activations, and of weights that are random.
    pub seed: u64,
    /// How it was measured, in words.
    pub method: String,
    /// Half width of the medians' intervals at which sampling stops, over the median; absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_target: Option<f64>,
    /// What the machine can do at most.
    pub ceilings: Ceilings,
    /// One batch shape each.
    pub cases: Vec<Case>,
}

/// What every result file begins with.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Run {
    /// Name and version of the layout of the rest.
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// Commit that it was built from, if that is known; `+changes` if there were uncommitted ones.
    pub git_revision: Option<String>,
    /// When it began, seconds since 1970.
    pub unix_time_s: u64,
    /// What it ran on.
    pub machine: Machine,
    /// A slowdown that a test has planted in the times, by the variable that asks for it; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planted: Option<String>,
}

impl Run {
    /// This build, now.
    pub(super) fn begin(schema: &str, machine: Machine) -> Self {
        Self {
            schema: schema.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            git_revision: option_env!("PAF_GIT_REVISION").map(Into::into),
            unix_time_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            machine,
            planted: plant::trace(),
        }
    }
}

/// What it ran on.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Machine {
    /// The host's processor.
    pub cpu: String,
    /// Threads that the CPU engine uses.
    pub cpu_threads: usize,
    /// The GPU, if it was measured.
    pub device: Option<String>,
    /// Whether the kernels that run on every card were measured where there are faster ones; absent if not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub portable: bool,
    /// Its compute capability, `major.minor`.
    pub compute_capability: Option<String>,
    /// Its streaming multiprocessors.
    pub multiprocessors: Option<u32>,
    /// Version of its driver.
    pub driver: Option<String>,
    /// Newest CUDA version that the driver supports.
    pub cuda_driver_version: Option<String>,
}

impl Machine {
    /// The GPU, and by which kernels if not by its own; or the processor.
    pub fn name(&self) -> String {
        let device = self.device.as_deref().unwrap_or(&self.cpu);
        if self.portable { format!("{device}, portable kernels") } else { device.to_owned() }
    }
}

/// Dimensions, by their Hugging Face names.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Config {
    /// Layers.
    pub num_hidden_layers: usize,
    /// Width of the activations between layers.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; absent in older files, which have as many as `num_attention_heads`.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the FFN's inner layer.
    pub intermediate_size: usize,
    /// The FFN's activation function.
    pub hidden_act: String,
    /// Whether the FFN has a gate; absent in older files, whose have none.
    #[serde(default)]
    pub gated: bool,
    /// Whether a position attends only to itself and earlier ones.
    pub causal: bool,
    /// Dimensions of each head that are rotated by position, if there are any; absent in older files, too.
    pub rotary_dim: Option<usize>,
    /// Set if the model has rotary embeddings that were left out.
    pub rotary_left_out: bool,
}

impl Config {
    pub(super) fn of(config: &EncoderConfig, rotary_left_out: bool) -> Self {
        let layer = &config.layer;
        Self {
            num_hidden_layers: config.num_hidden_layers,
            hidden_size: layer.hidden_size,
            num_attention_heads: layer.num_attention_heads,
            num_key_value_heads: Some(layer.num_key_value_heads),
            head_dim: layer.head_dim,
            intermediate_size: layer.intermediate_size,
            hidden_act: layer.hidden_act.name().into(),
            gated: layer.gated,
            causal: layer.causal,
            rotary_dim: layer.rotary.map(|rotary| rotary.dim),
            rotary_left_out,
        }
    }
}

/// The two ceilings of the roofline.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Ceilings {
    /// Matrix products, FLOP/s; null where it is not known.
    pub flops_per_s: Option<f64>,
    /// Memory traffic, reads and writes together, bytes/s.
    pub bytes_per_s: f64,
    /// Where the two numbers come from.
    pub source: String,
}

/// Clocks and power at one moment; what could not be read is absent.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct DeviceState {
    /// Clock of the multiprocessors, MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory, MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Power drawn, W.
    pub power_w: Option<f64>,
    /// Limit of that, W.
    pub power_limit_w: Option<f64>,
    /// Temperature, °C.
    pub temperature_c: Option<u32>,
    /// Temperature from which on clocks may be lowered, °C; absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_limit_c: Option<u32>,
    /// Why clocks are as they are, `ThrottleReasons(A | B)` with NVML's names, or `ThrottleReasons(0x0)`.
    pub throttle_reasons: Option<String>,
}

/// All variants on one batch shape.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Case {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each, padding included; of packed sequences, those of the longest.
    pub seq_len: usize,
    /// Valid tokens of each, if some are padded or they are packed.
    pub lengths: Option<Vec<usize>>,
    /// Whether sequences follow each other without padding; absent in older files, whose do not.
    #[serde(default)]
    pub packed: bool,
    /// Floating-point operations of one call.
    pub flops: f64,
    /// Least memory traffic of one call, bytes.
    pub bytes: f64,
    /// Time that the ceilings allow, µs; absent where the ceiling of products is not known.
    pub floor_us: Option<f64>,
    /// What was checked before timing.
    pub verified: Vec<Verified>,
    /// State of the device before the samples.
    pub state_before: Option<DeviceState>,
    /// And after.
    pub state_after: Option<DeviceState>,
    /// What was compared.
    pub variants: Vec<Variant>,
}

/// A comparison with the oracle that held.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Verified {
    /// Design, plan and batch that were compared.
    pub what: String,
    /// Largest absolute error of an element.
    pub max_error: f64,
    /// What that may be at most.
    pub bound: f64,
    /// Norm of the errors over the norm of the exact result.
    pub relative_l2: f64,
    /// What that may be at most.
    pub relative_l2_bound: f64,
}

impl Verified {
    pub(super) fn new(what: String, found: Comparison) -> Self {
        let Comparison { max_error, bound, relative_l2, relative_l2_bound, .. } = found;
        Self { what, max_error, bound, relative_l2, relative_l2_bound }
    }
}

/// One way to run the layers.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Variant {
    /// Design, by its short name.
    pub design: String,
    /// Schedule; `auto` for the planner's choice.
    pub schedule: String,
    /// What that choice is: the schedule, and those variants of its kernels that are not as estimated. Absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// `eager` or `graph`.
    pub mode: String,
    /// Every sample, µs a forward call, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs.
    pub median_us: Spread,
    /// FLOP/s of the products over the median time, in 10¹².
    pub tflops: f64,
    /// Floor over median.
    pub roofline_share: Option<f64>,
    /// Median of the paired ratios: time of the serial design in the same mode, as it is the faster (its serial schedule, or its
    /// planner's choice), over this one's.
    pub speedup_over_saf: Spread,
}

impl Variant {
    /// Design, schedule and mode.
    pub(super) fn name(&self) -> String {
        format!("{} {} ({})", self.design, self.schedule, self.mode)
    }
}

/// A median with its interval.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Spread {
    /// The sample median.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Probability that such an interval covers the true median: 0.95 or more, less with fewer than six samples.
    pub confidence: f64,
}

impl From<Median> for Spread {
    fn from(m: Median) -> Self {
        Self { median: m.value, low: m.low, high: m.high, confidence: m.confidence }
    }
}

impl From<Spread> for Median {
    fn from(s: Spread) -> Self {
        Self { value: s.median, low: s.low, high: s.high, confidence: s.confidence }
    }
}

impl Spread {
    pub(super) fn half_width(&self) -> f64 {
        Median::from(*self).half_width()
    }

    pub(super) fn is_within(&self, share: f64) -> bool {
        Median::from(*self).is_within(share)
    }

    /// The median with the wider side of its interval, in so many of its unit.
    pub(super) fn plus_minus(&self, unit: f64) -> String {
        format!("{:.3} ± {:.3}", self.median / unit, self.half_width() / unit)
    }

    /// Of a ratio: on which side of 1 the whole interval lies; equal if on neither.
    pub(super) fn beside_one(&self) -> Ordering {
        match (self.low, self.high) {
            (low, _) if low > 1.0 => Ordering::Greater,
            (_, high) if high < 1.0 => Ordering::Less,
            _ => Ordering::Equal,
        }
    }
}

/// Column names of the table and of the Markdown.
const COLUMNS: [&str; 8] =
    ["batch × seq", "design", "schedule", "mode", "median, ms", "TFLOP/s", "roofline", "SAF / this"];

impl Report {
    /// The cells of the table, a row a variant.
    fn cells(&self) -> impl Iterator<Item = [String; 8]> + '_ {
        self.cases.iter().flat_map(|case| {
            case.variants.iter().map(move |v| {
                [
                    shape_name(case.batch, case.seq_len, case.packed),
                    v.design.clone(),
                    v.schedule_name(),
                    v.mode.clone(),
                    v.median_us.plus_minus(1e3),
                    significant(v.tflops),
                    v.roofline_share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", share * 100.0)),
                    v.speedup_over_saf.plus_minus(1.0),
                ]
            })
        })
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        table(COLUMNS, self.cells())
    }

    /// The table in Markdown, and under it, where the planner chose, what.
    pub fn markdown(&self) -> String {
        let picks = self.picks();
        let lead = if picks.is_empty() { "" } else { "\n" };
        let lines: String = picks.iter().map(|line| format!("- {line}\n")).collect();
        markdown(COLUMNS, self.cells()) + lead + &lines
    }

    /// One line of CSV a variant, medians in µs, with a header.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "batch,seq_len,design,schedule,mode,samples,median_us,low_us,high_us,tflops,roofline_share,\
             speedup_over_saf,speedup_low,speedup_high,plan\n",
        );
        for case in &self.cases {
            for v in &case.variants {
                let (time, ratio) = (v.median_us, v.speedup_over_saf);
                let share = v.roofline_share.map_or_else(String::new, |share| share.to_string());
                text += &format!(
                    "{},{},{},{},{},{},{},{},{},{},{share},{},{},{},{}\n",
                    case.batch,
                    case.seq_len,
                    v.design,
                    v.schedule,
                    v.mode,
                    v.samples_us.len(),
                    time.median,
                    time.low,
                    time.high,
                    v.tflops,
                    ratio.median,
                    ratio.low,
                    ratio.high,
                    v.plan.as_deref().unwrap_or_default()
                );
            }
        }
        text
    }

    /// In words: where the parallel design loses or makes no difference, which a table of wins hides.
    pub fn losses(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for case in &self.cases {
            for v in case.variants.iter().filter(|v| v.design.starts_with("paf")) {
                let Spread { median, low, high, .. } = v.speedup_over_saf;
                let verdict = match v.speedup_over_saf.beside_one() {
                    Ordering::Less => "is slower than SAF",
                    Ordering::Equal => "makes no difference that shows",
                    Ordering::Greater => continue,
                };
                lines.push(format!(
                    "{}: {} {verdict}: {median:.3} [{low:.3}, {high:.3}]",
                    shape_name(case.batch, case.seq_len, case.packed),
                    v.name()
                ));
            }
        }
        lines
    }

    /// What casts doubt on the times.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let cases = self.cases.iter().map(|case| warnings::Case {
            name: shape_name(case.batch, case.seq_len, case.packed),
            said: &[],
            states: [case.state_before.as_ref(), case.state_after.as_ref()],
            rows: case.variants.iter().map(|v| (v.name(), v.median_us)).collect(),
        });
        Doubts::new(&self.run, self.noise_target, cases)
    }

    /// The same, a line each, case by case.
    pub fn warnings(&self) -> Vec<String> {
        self.doubts().lines()
    }

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        json(self)
    }
}
