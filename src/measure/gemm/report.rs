//! The result of one run of the GEMM's measurement, and what can be said of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::measure::kernels::{self, Row, Summary};
use crate::measure::peak::Peak;
use crate::measure::report::{self, DeviceState, Run};
use crate::measure::warnings::{self, Doubts};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/gemm/1";

/// M, N, K.
pub type Shape = (usize, usize, usize);

/// One run.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// Version of cuBLASLt, if it was there.
    pub cublaslt_version: Option<usize>,
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

/// Everything that was measured on one shape.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Case {
    /// Rows of the activations and of the product.
    pub m: usize,
    /// Columns of the product.
    pub n: usize,
    /// What the sums go over.
    pub k: usize,
    /// Distinct pairs of operands in rotation.
    pub pairs: usize,
    /// Floating-point operations of one product: 2 · m · n · k.
    pub flops: f64,
    /// After the rounds that warm up; absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_before: Option<DeviceState>,
    /// After the samples.
    pub state_after: Option<DeviceState>,
    /// What was compared.
    pub rows: Vec<Row>,
}

pub(in crate::measure) const PRODUCT: &str = "product";
/// The same, with the first pair of operands again and again: in the L2 cache, where they fit.
#[cfg(feature = "cuda")]
pub(super) const HOT: &str = "product, hot";
/// With bias and activation.
pub(super) const GELU: &str = "bias+gelu_new";

/// As tables have it.
pub(super) fn name((m, n, k): Shape) -> String {
    format!("{m} × {n} × {k}")
}

impl Case {
    pub(in crate::measure) fn name(&self) -> String {
        name(self.shape())
    }

    fn shape(&self) -> Shape {
        (self.m, self.n, self.k)
    }

    fn planned(&self, what: &str, overlap: bool) -> Option<&Row> {
        kernels::planned(&self.rows, what, overlap)
    }
}

impl Report {
    /// Geometric mean and least of the planned variants' ratios to the peer, over shapes whose M `wanted` names; `None` if
    /// there are none, or no peer.
    pub fn summary(&self, what: &str, overlap: bool, wanted: impl Fn(usize) -> bool) -> Option<Summary<Shape>> {
        let cases = self.cases.iter().filter(|case| wanted(case.m));
        kernels::summary(
            cases.filter_map(|case| Some((case.planned(what, overlap)?.peer_over_this?.median, case.shape()))),
        )
    }

    /// Most that bias and activation add to the planned variant's time, over the shapes of that M.
    fn most_fused(&self, m: usize) -> Option<f64> {
        let added = |case: &Case| {
            Some(case.planned(GELU, false)?.median_us.median / case.planned(PRODUCT, false)?.median_us.median - 1.0)
        };
        self.cases.iter().filter(|case| case.m == m).filter_map(added).max_by(f64::total_cmp)
    }

    /// The table for a terminal: a line for each thing measured on each shape.
    pub fn table(&self) -> String {
        let columns = ["M × N × K", "what", "by", "µs", "TFLOP/s", "of peak", "of measured", "cuBLASLt / this"];
        let rows = self.cases.iter().flat_map(|case| {
            let shape = case.name();
            case.rows.iter().map(move |row| row.cells(&shape))
        });
        report::table(columns, rows) + "\n* planned\n"
    }

    /// The planned variants beside the peer in Markdown, a line for each number of rows.
    pub fn markdown(&self) -> String {
        let mut numbers: Vec<usize> = self.cases.iter().map(|case| case.m).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut text = String::from(
            "| M | shapes | product | least, at N × K | overlapped | bias + gelu_new | that adds at most |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        let mean = |what: &str, overlap: bool, wanted: &dyn Fn(usize) -> bool| {
            self.summary(what, overlap, wanted).map_or_else(|| "–".to_owned(), |of| format!("{:.3}", of.geometric_mean))
        };
        let mut line = |name: &str, wanted: &dyn Fn(usize) -> bool, most: Option<f64>| {
            let Some(Summary { cases, least: (ratio, (_, n, k)), .. }) = self.summary(PRODUCT, false, wanted) else {
                return;
            };
            text += &format!(
                "| {name} | {cases} | {} | {ratio:.3}, {n} × {k} | {} | {} | {} |\n",
                mean(PRODUCT, false, wanted),
                mean(PRODUCT, true, wanted),
                mean(GELU, false, wanted),
                most.map_or_else(|| "–".to_owned(), |most| format!("{:.1} %", most * 100.0)),
            );
        };
        for &number in &numbers {
            line(&number.to_string(), &|m| m == number, self.most_fused(number));
        }
        let most = |wanted: &dyn Fn(usize) -> bool| {
            numbers.iter().filter(|&&m| wanted(m)).filter_map(|&m| self.most_fused(m)).max_by(f64::total_cmp)
        };
        line("≤ 512", &|m| m <= 512, most(&|m| m <= 512));
        line("≥ 2048", &|m| m >= 2048, most(&|m| m >= 2048));
        line("all", &|_| true, most(&|_| true));
        text
    }

    /// What casts doubt on the times.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let cases = self.cases.iter().map(|case| warnings::Case {
            name: case.name(),
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
