//! What this machine reaches in practice: the rates of a large product and of a large copy, to hold everything else against.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernels::Row;
use super::report::{self, DeviceState, Run};
use super::warnings::{self, Doubts};
use super::{machine, roofline};
use crate::error::{Error, Result};

/// Version of the JSON's layout.
pub const SCHEMA: &str = "paf-cuda/peak/1";

/// Two rates, as measured.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Peak {
    /// Of the fastest product, FLOP/s.
    pub flops_per_s: f64,
    /// Who did that.
    pub by: String,
    /// Of a copy, reads and writes together, bytes/s.
    pub bytes_per_s: f64,
}

impl Peak {
    fn new(flops_per_s: Option<f64>, by: &str, bytes_per_s: f64) -> Result<Self> {
        match flops_per_s.filter(|rate| rate.is_finite() && bytes_per_s.is_finite()) {
            Some(flops_per_s) => Ok(Self { flops_per_s, by: by.into(), bytes_per_s }),
            None => Err(Error::Verification(format!("{by}: the rates {flops_per_s:?} and {bytes_per_s} are no peak"))),
        }
    }

    /// The time that the two rates allow for some work, the larger of the two, µs.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn floor_us(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops_per_s).max(bytes / self.bytes_per_s) * 1e6
    }

    /// In words.
    pub fn line(&self) -> String {
        let Self { flops_per_s, by, bytes_per_s } = self;
        let [tflops, gb] = [flops_per_s / 1e12, bytes_per_s / 1e9].map(report::significant);
        format!("measured peak: product {tflops} TFLOP/s ({by}), copy {gb} GB/s")
    }
}

/// One run.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Report {
    /// Its schema is [`SCHEMA`].
    #[serde(flatten)]
    pub run: Run,
    /// `cuda` or `cpu`.
    pub backend: String,
    /// Element type of the product.
    pub dtype: String,
    /// How it was measured, in words.
    pub method: String,
    /// What was found.
    pub peak: Peak,
    /// Tensor cores' rate at the highest clock, FLOP/s; null where it is not known.
    pub peak_flops_per_s: Option<f64>,
    /// Half width of the medians' intervals at which sampling stops, over the median.
    pub noise_target: Option<f64>,
    /// After the rounds that warm up.
    pub state_before: Option<DeviceState>,
    /// After the samples.
    pub state_after: Option<DeviceState>,
    /// The products that were measured on a GPU, of which the fastest counts.
    pub rows: Vec<Row>,
}

/// Of the products' table.
const COLUMNS: [&str; 4] = ["product", "µs", "TFLOP/s", "of the tensor cores' rate"];

impl Report {
    /// The products' cells, a row each.
    fn cells(&self) -> impl Iterator<Item = [String; 4]> + '_ {
        self.rows.iter().map(|row| {
            let us = format!("{:.1} ± {:.1}", row.median_us.median, row.median_us.half_width());
            let share = row.peak_share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", share * 100.0));
            [row.name(), us, report::significant(row.tflops), share]
        })
    }

    /// For a terminal: what was found, and the products.
    pub fn text(&self) -> String {
        let table = if self.rows.is_empty() { String::new() } else { report::table(COLUMNS, self.cells()) + "\n" };
        format!("{}, {}\n{table}{}\n", self.run.machine.name(), self.dtype, self.peak.line())
    }

    /// The same in Markdown.
    pub fn markdown(&self) -> String {
        let table = if self.rows.is_empty() { String::new() } else { report::markdown(COLUMNS, self.cells()) + "\n" };
        format!("{table}{}, {}: {}\n", self.run.machine.name(), self.dtype, self.peak.line())
    }

    /// What casts doubt on the rates.
    pub(in crate::measure) fn doubts(&self) -> Doubts<'_> {
        let case = warnings::Case {
            name: "peak".into(),
            said: &[],
            states: [self.state_before.as_ref(), self.state_after.as_ref()],
            rows: self.rows.iter().map(|row| (row.name(), row.median_us)).collect(),
        };
        Doubts::new(&self.run, self.noise_target, std::iter::once(case))
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

/// What the CPU reaches.
///
/// # Errors
/// [`Error::Verification`] if a rate is not a number: a file could not keep it.
pub fn of_cpu() -> Result<Report> {
    let run = Run::begin(SCHEMA, machine::host());
    let roofline::Ceilings { flops_per_s, bytes_per_s, source } = roofline::of_cpu();
    let peak = Peak::new(flops_per_s, "paf-cuda, f32", bytes_per_s)?;
    let (backend, dtype, method) = ("cpu".into(), super::backend::CPU_ELEMENT.into(), source);
    Ok(Report {
        run,
        backend,
        dtype,
        method,
        peak,
        peak_flops_per_s: None,
        noise_target: None,
        state_before: None,
        state_after: None,
        rows: vec![],
    })
}

#[cfg(feature = "cuda")]
pub use on_device::of_device;

#[cfg(feature = "cuda")]
mod on_device {
    use super::{Peak, Report, SCHEMA};
    use crate::dtype::Dtype;
    use crate::error::{Error, Result};
    use crate::gpu::Device;
    use crate::measure::gemm;
    use crate::measure::timing::Effort;

    /// So large that every multiprocessor is busy nearly all the time.
    const SHAPE: gemm::Shape = (8192, 8192, 8192);

    /// What a device reaches: the crate's own product and, where it is there, cuBLASLt's, each verified before it is timed.
    ///
    /// # Errors
    /// As [`gemm::Experiment::run`].
    pub fn of_device(device: &Device, dtype: Dtype, effort: Effort) -> Result<Report> {
        let bytes_per_s = device.copy_bandwidth()?;
        let (variants, every_variant, peak) = (vec![], false, None);
        let products = gemm::Experiment { shapes: vec![SHAPE], dtype, variants, every_variant, peak, effort };
        let mut products = products.run(device, |_, _| ())?;
        let gemm::Case { mut rows, state_before, state_after, .. } = products.cases.remove(0);
        rows.retain(|row| row.what == gemm::PRODUCT);
        let best = rows.iter().max_by(|a, b| a.tflops.total_cmp(&b.tflops));
        let best = best.ok_or_else(|| Error::Verification("no product was measured".into()))?;
        let peak = Peak::new(Some(best.tflops * 1e12), &best.name(), bytes_per_s)?;
        let (m, n, k) = SHAPE;
        Ok(Report {
            run: crate::measure::report::Run { schema: SCHEMA.into(), ..products.run },
            backend: "cuda".into(),
            dtype: products.dtype,
            method: format!(
                "Copy: median of ten device-to-device copies of a gigabyte, or a quarter of the free memory, both directions \
                 counted. Product: the fastest of these, {m} × {n} × {k}. {}",
                products.method
            ),
            peak,
            peak_flops_per_s: products.peak_flops_per_s,
            noise_target: products.noise_target,
            state_before,
            state_after,
            rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_rate_is_the_floor() {
        let peak = Peak { flops_per_s: 7e14, by: "paf-cuda".into(), bytes_per_s: 3e12 };
        assert_eq!(peak.floor_us(7e8, 3e3), 1.0);
        assert_eq!(peak.floor_us(7e2, 3e6), 1.0);
        assert_eq!(peak.line(), "measured peak: product 700 TFLOP/s (paf-cuda), copy 3000 GB/s");
    }

    #[test]
    fn what_a_file_could_not_keep_is_refused() {
        for (flops_per_s, bytes_per_s) in
            [(None, 1.0), (Some(f64::NAN), 1.0), (Some(f64::INFINITY), 1.0), (Some(1.0), f64::NAN)]
        {
            assert!(matches!(Peak::new(flops_per_s, "x", bytes_per_s), Err(Error::Verification(_))), "{flops_per_s:?}");
        }
    }

    #[test]
    fn the_cpu_has_one_too() {
        let report = of_cpu().unwrap();
        assert!(report.peak.flops_per_s > 1e6 && report.peak.bytes_per_s > 1e6, "{:?}", report.peak);
        assert_eq!(serde_json::from_str::<Report>(&report.json()).unwrap(), report);
        assert!(report.text().contains("f32\nmeasured peak: product "), "{}", report.text());
        assert_eq!(report.warnings(), [] as [String; 0]);
    }
}
