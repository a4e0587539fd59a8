//! The result of one run of attention's measurement, and what can be said of it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::measure::kernels::{self, Row, Summary};
use crate::measure::peak::Peak;
use crate::measure::report::{self, DeviceState, Run, Spread};
use crate::measure::statistics::paired_ratio;
use crate::measure::warnings::{self, Doubts};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/attention/1";

/// Dimensions of one attention. Written `8x16x512x64`, `1x32/8x4096x128:causal`: batch, heads (and those of keys and values,
/// if they are fewer), seq_len, head_dim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Tokens of each sequence.
    pub seq_len: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether a position attends only to itself and earlier ones.
    pub causal: bool,
}

/// One run.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// What the peer is, if it was there.
    pub peer: Option<PeerVersion>,
    /// Element type.
    pub dtype: String,
    /// How it was measured, in words.
    pub method: String,
    /// Half width of the medians' intervals at which sampling stops, over the median; absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_target: Option<f64>,
    /// Tensor cores' rate at the highest clock, FLOP/s.
    pub peak_flops_per_s: Option<f64>,
    /// What this device reaches, as measured before; absent in older files, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_peak: Option<Peak>,
    /// One shape each.
    pub cases: Vec<Case>,
}

/// What the peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PeerVersion {
    /// Version of PyTorch.
    pub torch: String,
    /// Version of its cuDNN, as that numbers them.
    pub cudnn: Option<u64>,
    /// The device, as PyTorch calls it.
    pub device: String,
}

/// Everything that was measured on one shape.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Case {
    /// The dimensions.
    #[serde(flatten)]
    pub shape: Shape,
    /// Sets of operands that the cold rows go through.
    pub sets: usize,
    /// Floating-point operations: 4 · batch · heads · seq_len² · head_dim, with a causal mask half of that.
    pub flops: f64,
    /// State of the device after the rounds that warm up; absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_before: Option<DeviceState>,
    /// State of the device after the samples.
    pub state_after: Option<DeviceState>,
    /// What was compared.
    pub rows: Vec<Row>,
}

/// The same operands again and again, so that they are in the L2 cache where they fit: as after the product that made them.
pub(super) const HOT: &str = "hot";
/// Operands that rotate through three times the L2 cache.
pub(super) const COLD: &str = "cold";

/// Names of the peer's back ends.
pub(super) const CUDNN: &str = "cuDNN";
pub(super) const FLASH: &str = "FlashAttention-2";

impl Shape {
    /// 4 · batch · heads · seq_len² · head_dim, with a causal mask half of that.
    pub fn flops(&self) -> f64 {
        let all = 4.0 * (self.batch * self.heads * self.head_dim) as f64 * (self.seq_len as f64).powi(2);
        if self.causal { all / 2.0 } else { all }
    }

    /// Rows and columns of the packed QKV product.
    pub fn qkv(&self) -> (usize, usize) {
        (self.batch * self.seq_len, (self.heads + 2 * self.key_value_heads) * self.head_dim)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { batch, heads, key_value_heads, seq_len, head_dim, causal } = self;
        write!(f, "{batch}x{heads}")?;
        if key_value_heads != heads {
            write!(f, "/{key_value_heads}")?;
        }
        write!(f, "x{seq_len}x{head_dim}{}", if causal { ":causal" } else { "" })
    }
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::InvalidConfig {
            field: "shapes",
            got: text.to_owned(),
            expected: "BATCHxHEADSxSEQ_LENxHEAD_DIM, none of them 0, e.g. 8x16x512x64, with fewer key and value heads \
                       1x32/8x4096x128, with a causal mask 4x16x4096x64:causal"
                .into(),
        })
    }
}

fn parse(text: &str) -> Option<Shape> {
    let (numbers, causal) = match text.split_once(':') {
        Some((numbers, "causal")) => (numbers, true),
        Some(_) => return None,
        None => (text, false),
    };
    let positive = |text: &str| text.parse().ok().filter(|&number| number > 0);
    let mut parts = numbers.split('x');
    let batch = positive(parts.next()?)?;
    let heads = parts.next()?;
    let (heads, key_value_heads) = heads.split_once('/').unwrap_or((heads, heads));
    let (heads, key_value_heads): (usize, usize) = (positive(heads)?, positive(key_value_heads)?);
    let (seq_len, head_dim) = (positive(parts.next()?)?, positive(parts.next()?)?);
    let whole = parts.next().is_none() && heads.is_multiple_of(key_value_heads);
    whole.then_some(Shape { batch, heads, key_value_heads, seq_len, head_dim, causal })
}

impl Case {
    fn planned(&self, what: &str) -> Option<&Row> {
        kernels::planned(&self.rows, what, false)
    }

    /// Time of a back end over the planned variant's.
    fn ratio(&self, backend: &str, what: &str) -> Option<Spread> {
        let peer = self.rows.iter().find(|row| row.by == backend && row.what == what)?;
        paired_ratio(&peer.samples_us, &self.planned(what)?.samples_us).map(Spread::from)
    }
}

impl Report {
    /// Geometric mean and least of cuDNN's time over the planned variants', on operands that were in the cache (`cold`:
    /// that were not); `None` without a peer.
    pub fn summary(&self, cold: bool) -> Option<Summary<Shape>> {
        self.summary_of(CUDNN, if cold { COLD } else { HOT })
    }

    fn summary_of(&self, backend: &str, what: &str) -> Option<Summary<Shape>> {
        kernels::summary(self.cases.iter().filter_map(|case| Some((case.ratio(backend, what)?.median, case.shape))))
    }

    /// The table for a terminal: a line for each thing measured on each shape.
    pub fn table(&self) -> String {
        let columns =
            ["batch × heads × seq × dim", "operands", "by", "µs", "TFLOP/s", "of peak", "of measured", "cuDNN / this"];
        let rows = self.cases.iter().flat_map(|case| {
            let shape = case.shape.to_string();
            case.rows.iter().map(move |row| row.cells(&shape))
        });
        report::table(columns, rows) + "\n* planned\n"
    }

    /// The planned variants beside the peers in Markdown, a line a shape.
    pub fn markdown(&self) -> String {
        let absent = || "–".to_owned();
        let columns = [
            "batch × heads × seq × dim",
            "kernel",
            "µs",
            "TFLOP/s",
            "cuDNN / this",
            "FlashAttention-2 / this",
            "cuDNN / this, cold",
        ];
        let cells = self.cases.iter().filter_map(|case| {
            let row = case.planned(HOT)?;
            let ratio = |backend, what| {
                let ratio: Option<Spread> = case.ratio(backend, what);
                ratio.map_or_else(absent, |ratio| ratio.plus_minus(1.0))
            };
            Some([
                case.shape.to_string(),
                row.variant.clone().unwrap_or_default(),
                format!("{:.2} ± {:.2}", row.median_us.median, row.median_us.half_width()),
                format!("{:.0}", row.tflops),
                ratio(CUDNN, HOT),
                ratio(FLASH, HOT),
                ratio(CUDNN, COLD),
            ])
        });
        let mean = |backend, what| {
            self.summary_of(backend, what).map_or_else(absent, |of| format!("{:.3}", of.geometric_mean))
        };
        let [name, none] = ["geometric mean", ""].map(str::to_owned);
        let means = [name, none.clone(), none.clone(), none, mean(CUDNN, HOT), mean(FLASH, HOT), mean(CUDNN, COLD)];
        report::markdown(columns, cells.chain([means]))
    }

    /// What casts doubt on the times.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let cases = self.cases.iter().map(|case| warnings::Case {
            name: case.shape.to_string(),
            said: &[],
            states: [case.state_before.as_ref(), case.state_after.as_ref()],
            rows: case.rows.iter().map(|row| (row.name(), row.median_us)).collect(),
        });
        Doubts::new(&self.run, self.noise_target, cases)
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

    #[test]
    fn shapes_are_read_back() {
        for text in ["8x16x512x64", "1x32/8x4096x128:causal", "1x1x1x32", "4x16x4096x64:causal"] {
            assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
        }
        for bad in ["", "8x16x512", "8x16x512x64x1", "8x16/3x512x64", "0x16x512x64", "8x16x512x64:full", "8x-1x512x64"]
        {
            let message = bad.parse::<Shape>().unwrap_err().to_string();
            assert!(message.contains(bad) && message.contains("8x16x512x64"), "{message}");
        }
    }

    #[test]
    fn a_causal_mask_halves_the_work() {
        let flops = |text: &str| text.parse::<Shape>().unwrap().flops();
        assert_eq!(flops("2x3x5x7"), 4.0 * 2.0 * 3.0 * 25.0 * 7.0);
        assert_eq!(flops("2x3x5x7:causal") * 2.0, flops("2x3x5x7"));
    }
}
