//! A comparison at a glance: of each batch shape and mode the faster SAF beside the fastest PAF.

use super::{Case, Report, Spread, Variant, markdown, shape_name};

/// The fastest of both sides on one batch shape in one mode.
pub(in crate::measure) struct Fastest<'a> {
    pub(in crate::measure) case: &'a Case,
    pub(in crate::measure) mode: &'a str,
    pub(in crate::measure) saf: &'a Variant,
    pub(in crate::measure) paf: &'a Variant,
}

impl Fastest<'_> {
    /// What the interval of SAF over PAF says of PAF.
    pub(in crate::measure) fn verdict(&self) -> &'static str {
        let Spread { low, high, .. } = self.paf.speedup_over_saf;
        match (low, high) {
            (low, _) if low > 1.0 => "faster",
            (_, high) if high < 1.0 => "slower",
            _ => "no different",
        }
    }
}

const COLUMNS: [&str; 7] = ["batch × seq", "mode", "SAF, ms", "PAF, ms", "PAF's schedule", "SAF / PAF", "PAF is"];

impl Report {
    /// By shape, then mode.
    pub(in crate::measure) fn fastest(&self) -> impl Iterator<Item = Fastest<'_>> {
        self.cases.iter().flat_map(|case| {
            let mut modes: Vec<&str> = case.variants.iter().map(|variant| variant.mode.as_str()).collect();
            modes.sort_unstable();
            modes.dedup();
            let of = move |mode: &str, parallel: bool| {
                let of = case.variants.iter().filter(|v| v.mode == mode && v.design.starts_with("paf") == parallel);
                of.min_by(|a, b| a.median_us.median.total_cmp(&b.median_us.median))
            };
            let both = move |mode| Some(Fastest { case, mode, saf: of(mode, false)?, paf: of(mode, true)? });
            modes.into_iter().filter_map(both)
        })
    }

    /// That as a table in Markdown.
    pub fn summary(&self) -> String {
        let with_interval = |of: Spread, unit: f64| format!("{:.3} ± {:.3}", of.median / unit, of.half_width() / unit);
        let cells = self.fastest().map(|fastest| {
            let Fastest { case, mode, saf, paf } = fastest;
            [
                shape_name(case.batch, case.seq_len, case.packed),
                mode.to_owned(),
                with_interval(saf.median_us, 1e3),
                with_interval(paf.median_us, 1e3),
                paf.schedule_name(),
                with_interval(paf.speedup_over_saf, 1.0),
                fastest.verdict().to_owned(),
            ]
        });
        markdown(COLUMNS, cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(file: &str) -> Report {
        let path = format!("{}/benches/results/{file}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_fastest_of_each_side_stand_side_by_side() {
        let mut report = report("pythia-1.4b-h100.json");
        let spread = |median, low, high| Spread { median, low, high, confidence: 0.95 };
        for case in &mut report.cases {
            for (variant, us) in case.variants.iter_mut().zip([900.0, 800.0, 700.0, 650.0, 500.0].into_iter().cycle()) {
                variant.median_us = spread(us, us - 2.0, us + 1.0);
                variant.speedup_over_saf = spread(800.0 / us, 800.0 / us - 0.01, 800.0 / us + 0.01);
            }
        }
        let of: Vec<_> = report.fastest().map(|of| (of.saf.median_us.median, of.paf.median_us.median)).collect();
        assert_eq!(of, vec![(800.0, 500.0); report.cases.len()]);
        let summary = report.summary();
        let row = summary.lines().nth(2).unwrap();
        assert!(row.starts_with("| 1 × 128 | graph | 0.800 ± 0.002 | 0.500 ± 0.002 | "), "{summary}");
        assert!(row.ends_with(" | 1.600 ± 0.010 | faster |"), "{summary}");
        assert_eq!(summary.lines().count(), 2 + report.cases.len());
    }

    #[test]
    fn a_verdict_is_the_whole_intervals() {
        let mut report = report("pythia-1.4b-h100.json");
        for (low, high, verdict) in
            [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.99, 1.01, "no different"), (1.0, 1.1, "no different")]
        {
            for variant in &mut report.cases[0].variants {
                variant.speedup_over_saf = Spread { low, high, ..variant.speedup_over_saf };
            }
            assert_eq!(report.fastest().next().unwrap().verdict(), verdict);
        }
    }

    #[test]
    fn a_side_that_is_missing_has_no_row() {
        let mut report = report("pythia-1.4b-h100.json");
        report.cases.truncate(1);
        report.cases[0].variants.retain(|variant| variant.design.starts_with("paf"));
        assert_eq!(report.summary().lines().count(), 2);
    }
}
