//! The result of one run of the GEMM's measurement, and what can be said of it.

use serde::{Deserialize, Serialize};

use crate::measure::report::{DeviceState, Machine, Spread};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/gemm/1";

/// M, N, K.
pub type Shape = (usize, usize, usize);

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// Commit that it was built from; `+changes` if there were uncommitted ones.
    pub git_revision: Option<String>,
    /// When it began, seconds since 1970.
    pub unix_time_s: u64,
    /// What it ran on.
    pub machine: Machine,
    /// Version of cuBLASLt, if it was there.
    pub cublaslt_version: Option<usize>,
    /// Element type.
    pub dtype: String,
    /// How it was measured, in words.
    pub method: String,
    /// Tensor cores' rate at the highest clock, FLOP/s.
    pub peak_flops_per_s: Option<f64>,
    /// One shape each.
    pub cases: Vec<Case>,
}

/// Everything that was measured on one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it, with units")]
pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Distinct pairs of operands in rotation.
    pub pairs: usize,
    pub flops: f64,
    pub state_after: Option<DeviceState>,
    pub rows: Vec<Row>,
}

/// One way to compute the product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `paf-cuda` or `cuBLASLt`.
    pub by: String,
    /// `product`, or `bias+gelu_new`.
    pub what: String,
    /// Kernel and tile, where it is ours.
    pub variant: Option<String>,
    /// Whether it was what the planner chose.
    pub planned: bool,
    /// Whether consecutive products overlapped (programmatic dependent launch).
    pub overlap: bool,
    /// Every sample, µs a product, in the order of the rounds.
    pub samples_us: Vec<f64>,
    /// Their median, µs.
    pub median_us: Spread,
    /// FLOP/s over the median, in 10¹².
    pub tflops: f64,
    /// That over the peak.
    pub peak_share: Option<f64>,
    /// Median of the paired ratios: time of cuBLASLt for the same over this one's.
    pub peer_over_this: Option<Spread>,
}

pub(super) const PRODUCT: &str = "product";
/// With bias and activation.
pub(super) const GELU: &str = "bias+gelu_new";

/// Ratios over a set of shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Number of shapes.
    pub shapes: usize,
    /// Geometric mean of the peer's time over ours.
    pub geometric_mean: f64,
    /// The least ratio, and its shape.
    pub least: (f64, Shape),
}

impl Case {
    fn shape(&self) -> Shape {
        (self.m, self.n, self.k)
    }

    /// The planned variant's row.
    fn planned(&self, what: &str, overlap: bool) -> Option<&Row> {
        self.rows.iter().find(|row| row.planned && row.what == what && row.overlap == overlap)
    }
}

impl Report {
    /// Geometric mean and least of the planned variants' ratios to the peer, over shapes whose M `wanted` names; `None` if
    /// there are none, or no peer.
    pub fn summary(&self, what: &str, overlap: bool, wanted: impl Fn(usize) -> bool) -> Option<Summary> {
        let ratios: Vec<(f64, Shape)> = self
            .cases
            .iter()
            .filter(|case| wanted(case.m))
            .filter_map(|case| Some((case.planned(what, overlap)?.peer_over_this?.median, case.shape())))
            .collect();
        let &least = ratios.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
        let logs: f64 = ratios.iter().map(|(ratio, _)| ratio.ln()).sum();
        Some(Summary { shapes: ratios.len(), geometric_mean: (logs / ratios.len() as f64).exp(), least })
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
        let mut table = comfy_table::Table::new();
        let header = ["M × N × K", "what", "by", "µs", "TFLOP/s", "of peak", "cuBLASLt / this"];
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(header);
        for case in &self.cases {
            for row in &case.rows {
                let by = row.variant.as_deref().unwrap_or(&row.by);
                let planned = if row.planned { "* " } else { "" };
                let overlapped = if row.overlap { " overlapped" } else { "" };
                table.add_row([
                    format!("{} × {} × {}", case.m, case.n, case.k),
                    row.what.clone(),
                    format!("{planned}{by}{overlapped}"),
                    format!("{:.2} ± {:.2}", row.median_us.median, row.median_us.half_width()),
                    format!("{:.0}", row.tflops),
                    row.peak_share.map_or_else(|| "–".to_owned(), |share| format!("{:.0} %", share * 100.0)),
                    row.peer_over_this.map_or_else(|| "–".to_owned(), |ratio| format!("{:.3}", ratio.median)),
                ]);
            }
        }
        table.to_string() + "\n* planned\n"
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
            let Some(Summary { shapes, least: (ratio, (_, n, k)), .. }) = self.summary(PRODUCT, false, wanted) else {
                return;
            };
            text += &format!(
                "| {name} | {shapes} | {} | {ratio:.3}, {n} × {k} | {} | {} | {} |\n",
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

    /// Pretty JSON, with a newline at the end.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("the report holds only numbers and strings") + "\n"
    }
}
