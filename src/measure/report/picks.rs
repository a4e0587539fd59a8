//! What the planner chose in a comparison.

use super::{Report, Variant, shape_name};
use crate::measure::statistics::{Median, paired_ratio};

impl Variant {
    /// `fused`, or `auto: fused` where the planner has chosen it.
    pub(in crate::measure) fn schedule_name(&self) -> String {
        let chosen = self.plan.as_ref().and_then(|plan| plan.split(' ').next());
        chosen.map_or_else(|| self.schedule.clone(), |chosen| format!("{}: {chosen}", self.schedule))
    }
}

impl Report {
    /// In words: what the planner chose, and how far that is from the best of the schedules that were measured beside it.
    pub fn picks(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for case in &self.cases {
            for pick in &case.variants {
                let Some(plan) = &pick.plan else { continue };
                let beside = |v: &&Variant| v.plan.is_none() && v.design == pick.design && v.mode == pick.mode;
                let best = case.variants.iter().filter(beside);
                let best = best.min_by(|a, b| a.median_us.median.total_cmp(&b.median_us.median));
                let distance = best.and_then(|best| {
                    let ratio = paired_ratio(&pick.samples_us, &best.samples_us)?;
                    Some(format!(", {} the best of the schedules as estimated, {}", distance(ratio), best.schedule))
                });
                let shape = shape_name(case.batch, case.seq_len, case.packed);
                let Variant { design, mode, .. } = pick;
                lines.push(format!("{shape}: {design} auto ({mode}) is {plan}{}", distance.unwrap_or_default()));
            }
        }
        lines
    }
}

/// A ratio of times, with its interval, as a distance in per cent.
fn distance(ratio: Median) -> String {
    let percent = |ratio: f64| (ratio - 1.0) * 100.0;
    let word = if ratio.value > 1.0 { "slower" } else { "faster" };
    let (size, low, high) = (percent(ratio.value).abs(), percent(ratio.low), percent(ratio.high));
    format!("{size:.1} % [{low:+.1}, {high:+.1}] {word} than")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn variant(design: &str, schedule: &str, plan: Option<&str>, us: f64) -> Value {
        let spread = json!({"median": us, "low": us, "high": us, "confidence": 0.95});
        let mut variant = json!({
            "design": design,
            "schedule": schedule,
            "mode": "graph",
            "samples_us": vec![us; 6],
            "median_us": spread,
            "tflops": 1.0,
            "roofline_share": null,
            "speedup_over_saf": spread,
        });
        if let Some(plan) = plan {
            variant["plan"] = plan.into();
        }
        variant
    }

    /// An old file, with other rows in its first case.
    fn report(variants: Vec<Value>) -> Report {
        let mut report: Value = serde_json::from_str(&old()).unwrap();
        report["cases"] = json!([report["cases"][0]]);
        report["cases"][0]["variants"] = variants.into();
        serde_json::from_value(report).unwrap()
    }

    /// A result file as it was before there were picks.
    fn old() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/pythia-1.4b-h200.json");
        let mut report: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for case in report["cases"].as_array_mut().unwrap() {
            case["variants"].as_array_mut().unwrap().retain(|variant| variant["schedule"] != "auto");
        }
        report.to_string()
    }

    #[test]
    fn the_pick_stands_beside_the_best_schedule() {
        let tuned = "fused attention=sm90:rows64";
        let report = report(vec![
            variant("saf-pre", "serial", None, 1000.0),
            variant("saf-pre", "auto", Some("serial"), 1010.0),
            variant("paf-pre-two", "two-stream", None, 900.0),
            variant("paf-pre-two", "fused", None, 800.0),
            variant("paf-pre-two", "auto", Some(tuned), 780.0),
        ]);
        assert_eq!(
            report.picks(),
            [
                "1 × 128: saf-pre auto (graph) is serial, 1.0 % [+1.0, +1.0] slower than the best of the schedules as \
                 estimated, serial",
                "1 × 128: paf-pre-two auto (graph) is fused attention=sm90:rows64, 2.5 % [-2.5, -2.5] faster than the best \
                 of the schedules as estimated, fused",
            ]
        );
        let markdown = report.markdown();
        assert!(markdown.contains("| paf-pre-two | auto: fused | graph |"), "{markdown}");
        assert!(markdown.ends_with("estimated, fused\n") && markdown.contains("\n\n- 1 × 128: saf-pre"), "{markdown}");
        assert!(report.csv().lines().last().unwrap().ends_with(",fused attention=sm90:rows64"));
        let again: Report = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(again, report);
    }

    #[test]
    fn alone_it_is_beside_nothing() {
        let report = report(vec![variant("paf-pre-two", "auto", Some("hybrid"), 780.0)]);
        assert_eq!(report.picks(), ["1 × 128: paf-pre-two auto (graph) is hybrid"]);
    }

    #[test]
    fn old_files_have_no_picks_and_stay_as_they_are() {
        let report: Report = serde_json::from_str(&old()).unwrap();
        assert_eq!(report.picks(), [] as [String; 0]);
        assert!(report.markdown().ends_with("|\n"));
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let (old, new): (Value, Value) =
            (serde_json::from_str(&old()).unwrap(), serde_json::from_str(&report.json()).unwrap());
        let first = |report: &Value| keys(&report["cases"][0]["variants"][0]);
        assert_eq!(first(&old), first(&new));
    }
}
