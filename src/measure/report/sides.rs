//! A comparison at a glance: of each batch shape and mode SAF beside PAF.

use std::cmp::Ordering;

use super::{Case, Report, Variant, markdown, shape_name};

/// Both sides on one batch shape in one mode: of SAF the faster row, which ratios are over; of PAF the planner's choice, or the fastest row
/// where nobody planned. The fastest of many rows would be the luckiest: some have the same kernels.
pub(in crate::measure) struct Sides<'a> {
    pub(in crate::measure) case: &'a Case,
    pub(in crate::measure) mode: &'a str,
    pub(in crate::measure) saf: &'a Variant,
    pub(in crate::measure) paf: &'a Variant,
}

impl Sides<'_> {
    /// What the interval of SAF over PAF says of PAF.
    pub(in crate::measure) fn verdict(&self) -> &'static str {
        match self.paf.speedup_over_saf.beside_one() {
            Ordering::Greater => "faster",
            Ordering::Less => "slower",
            Ordering::Equal => "no different",
        }
    }
}

const COLUMNS: [&str; 7] = ["batch × seq", "mode", "SAF, ms", "PAF, ms", "PAF's schedule", "SAF / PAF", "PAF is"];

impl Case {
    /// In modes by name.
    pub(in crate::measure) fn sides(&self) -> impl Iterator<Item = Sides<'_>> {
        let mut modes: Vec<&str> = self.variants.iter().map(|variant| variant.mode.as_str()).collect();
        modes.sort_unstable();
        modes.dedup();
        modes.into_iter().filter_map(|mode| {
            let of = |parallel| {
                self.variants.iter().filter(move |v| v.mode == mode && v.design.starts_with("paf") == parallel)
            };
            let by_time = |a: &&Variant, b: &&Variant| a.median_us.median.total_cmp(&b.median_us.median);
            let saf = of(false).min_by(by_time)?;
            let paf = of(true).find(|v| v.plan.is_some()).or_else(|| of(true).min_by(by_time))?;
            Some(Sides { case: self, mode, saf, paf })
        })
    }
}

impl Report {
    /// By shape, then mode.
    pub(in crate::measure) fn sides(&self) -> impl Iterator<Item = Sides<'_>> {
        self.cases.iter().flat_map(Case::sides)
    }

    /// SAF beside PAF, a line for each batch shape and mode, in Markdown: SAF's faster row, and PAF as the planner chose it, or its fastest
    /// row where nobody planned.
    pub fn summary(&self) -> String {
        let cells = self.sides().map(|sides| {
            let Sides { case, mode, saf, paf } = sides;
            [
                shape_name(case.batch, case.seq_len, case.packed),
                mode.to_owned(),
                saf.median_us.plus_minus(1e3),
                paf.median_us.plus_minus(1e3),
                paf.schedule_name(),
                paf.speedup_over_saf.plus_minus(1.0),
                sides.verdict().to_owned(),
            ]
        });
        markdown(COLUMNS, cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::report::Spread;

    /// Design, mode, plan if it is the planner's, µs, SAF's time over that with its interval.
    type Row<'a> = (&'a str, &'a str, Option<&'a str>, f64, [f64; 3]);

    /// A result with these rows.
    fn report(rows: &[Row<'_>]) -> Report {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/pythia-1.4b-h100.json");
        let mut report: Report = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        report.cases.truncate(1);
        let spread = |[low, median, high]: [f64; 3]| Spread { median, low, high, confidence: 0.95 };
        let row = |&(design, mode, plan, us, ratio): &Row<'_>| Variant {
            design: design.into(),
            schedule: if plan.is_some() { "auto" } else { "fused" }.into(),
            plan: plan.map(Into::into),
            mode: mode.into(),
            median_us: spread([us - 2.0, us, us + 1.0]),
            speedup_over_saf: spread(ratio),
            ..report.cases[0].variants[0].clone()
        };
        report.cases[0].variants = rows.iter().map(row).collect();
        report
    }

    #[test]
    fn the_planners_choice_stands_beside_the_faster_saf() {
        let saf = [1.0; 3];
        let report = report(&[
            ("saf-pre", "graph", None, 900.0, saf),
            ("saf-pre", "graph", Some("serial"), 800.0, saf),
            ("paf-pre", "graph", None, 490.0, [1.62, 1.63, 1.64]),
            ("paf-pre", "graph", Some("fused wide-second=x"), 500.0, [1.59, 1.6, 1.605]),
            ("saf-pre", "eager", Some("serial"), 1000.0, saf),
            ("paf-pre", "eager", None, 700.0, [1.4, 1.43, 1.44]),
            ("paf-pre", "eager", None, 600.0, [1.5, 1.6, 1.7]),
        ]);
        let lines = [
            "| 1 × 128 | eager | 1.000 ± 0.002 | 0.600 ± 0.002 | fused | 1.600 ± 0.100 | faster |",
            "| 1 × 128 | graph | 0.800 ± 0.002 | 0.500 ± 0.002 | auto: fused | 1.600 ± 0.010 | faster |",
        ];
        assert_eq!(report.summary().lines().skip(2).collect::<Vec<_>>(), lines);
    }

    #[test]
    fn a_verdict_is_the_whole_intervals() {
        for (ratio, verdict) in [
            ([1.01, 1.1, 1.2], "faster"),
            ([0.8, 0.9, 0.99], "slower"),
            ([0.99, 1.0, 1.01], "no different"),
            ([1.0, 1.05, 1.1], "no different"),
        ] {
            let rows = [("saf-post", "graph", None, 2.0, [1.0; 3]), ("paf-post", "graph", None, 1.0, ratio)];
            assert_eq!(report(&rows).sides().next().unwrap().verdict(), verdict);
        }
    }

    #[test]
    fn a_side_that_is_missing_has_no_row() {
        let report = report(&[("paf-post", "graph", None, 1.0, [1.0; 3])]);
        assert_eq!(report.summary().lines().count(), 2);
    }
}
