//! An earlier result beside a new one: which rows have become slower.
//!
//! Rows are matched by shape and variant; what the planner chose is matched with what it chose then, whatever that was. The two runs
//! are not paired, so a row's ratio is that of two independent medians ([`ratio_of_medians`]). It counts as slower where the ratio's
//! interval lies above 1 and the ratio above 1 + threshold. The interval is about what the samples of the two runs can tell; the
//! threshold is for what they cannot: another card of the same kind, another temperature, or what else one run has and the other has
//! not. It also keeps a comparison of hundreds of rows, of which a few are outside their intervals by chance, from crying wolf: with
//! samples as quiet as [`NOISE`](super::timing::NOISE) asks, 2 % is more than five standard errors.
//!
//! Neither helps where something else keeps the device busy for as long as a row of short kernels is sampled, tens of milliseconds: such
//! samples agree with each other. Therefore what looks slower is measured once more, and counts if it is slower then, too
//! ([`Comparison::confirm`]).

pub(super) mod timings;

use std::collections::BTreeSet;

use super::report::{self, Run, Spread};
use super::statistics::{CONFIDENCE, ratio_of_medians};
use crate::error::{Error, Result};

/// What two results have to share to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name and version of the file's layout, hence of the command that made it.
    pub schema: String,
    /// The GPU, or processor and threads.
    pub device: String,
    /// Element type.
    pub dtype: String,
    /// Dimensions and where weights come from; empty for single kernels.
    pub model: String,
    /// What was measured of it, of which one at least has to be the same.
    pub shapes: Vec<String>,
}

impl Identity {
    /// Whether results of the other can be compared with those of this one.
    ///
    /// # Errors
    /// [`Error::Mismatch`], which names the first difference.
    pub fn check(&self, baseline: &Self) -> Result<()> {
        let parts = [
            ("schema", &baseline.schema, &self.schema),
            ("device", &baseline.device, &self.device),
            ("dtype", &baseline.dtype, &self.dtype),
            ("model", &baseline.model, &self.model),
        ];
        if let Some((what, theirs, ours)) = parts.into_iter().find(|(_, theirs, ours)| theirs != ours) {
            return Err(Error::mismatch("baseline", what, theirs, ours));
        }
        if !self.shapes.iter().any(|shape| baseline.shapes.contains(shape)) {
            let shapes = |of: &[String]| if of.is_empty() { "none".to_owned() } else { of.join("; ") };
            let (theirs, ours) = (shapes(&baseline.shapes), shapes(&self.shapes));
            return Err(Error::mismatch("baseline", "list of shapes", theirs, format!("one at least of {ours}")));
        }
        Ok(())
    }
}

/// The samples of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// For a table.
    pub name: String,
    /// What it is found by in another result.
    pub key: String,
    /// Index of the shape that it is of, among those that were measured.
    pub case: usize,
    /// Whether it is this crate's: what a peer does is shown, but no regression.
    pub ours: bool,
    /// µs.
    pub samples_us: Vec<f64>,
}

/// A result that can be compared with an earlier one.
pub trait Timed {
    /// What made it.
    fn run(&self) -> &Run;
    /// What it is a result of.
    fn identity(&self) -> Identity;
    /// Its rows.
    fn timings(&self) -> Vec<Timing>;
}

/// What has become of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Slower by more than noise and threshold.
    Slower,
    /// That, but not when it was measured again.
    Once,
    /// Faster likewise.
    Faster,
    /// Neither.
    Same,
    /// Too few samples of one of the two for an interval of 95 %: not judged.
    TooFew,
    /// A peer's, which is not judged.
    Peer,
}

/// A row that both results have.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// What it is found by in another result.
    pub key: String,
    /// Index of its shape in the new result.
    pub case: usize,
    /// Median before and now, µs.
    pub median_us: [f64; 2],
    /// Time now over time before.
    pub ratio: Spread,
    /// What that means.
    pub verdict: Verdict,
    /// The ratio when it was measured again, if it was.
    pub again: Option<f64>,
}

/// Two results beside each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What else is not the same: builds, drivers and portable kernels, which may be what the comparison is about.
    pub differences: Vec<String>,
    /// Share by which a time must have changed to count.
    pub threshold: f64,
    /// What both have, in the order of the new one.
    pub rows: Vec<Row>,
    /// Rows that only the new one has.
    pub only_now: Vec<String>,
    /// Rows that only the earlier one has.
    pub only_before: Vec<String>,
}

/// Compares a result with an earlier one of the same kind.
///
/// # Errors
/// [`Error::Mismatch`] if they are not of the same kind ([`Identity`]), have no row in common, or have too few samples of all that they
/// have in common; [`Error::Verification`] if a time is not a positive number.
pub fn compare(now: &impl Timed, baseline: &impl Timed, threshold: f64) -> Result<Comparison> {
    now.identity().check(&baseline.identity())?;
    let mut before = baseline.timings();
    let (mut rows, mut only_now) = (Vec::new(), Vec::new());
    for timing in now.timings() {
        let Some(at) = before.iter().position(|earlier| earlier.key == timing.key) else {
            only_now.push(timing.name);
            continue;
        };
        let earlier = before.remove(at);
        let ratio = ratio_of_medians(&timing.samples_us, &earlier.samples_us);
        let ratio = ratio.ok_or_else(|| Error::Verification(format!("{}: a time is not positive", timing.name)))?;
        let verdict = match () {
            () if !timing.ours => Verdict::Peer,
            () if ratio.confidence < CONFIDENCE => Verdict::TooFew,
            () if ratio.low > 1.0 && ratio.value > 1.0 + threshold => Verdict::Slower,
            () if ratio.high < 1.0 && ratio.value < 1.0 / (1.0 + threshold) => Verdict::Faster,
            () => Verdict::Same,
        };
        let median = |samples| super::statistics::Median::of(samples).map_or(f64::NAN, |median| median.value);
        let median_us = [median(&earlier.samples_us), median(&timing.samples_us)];
        let Timing { name, key, case, .. } = timing;
        rows.push(Row { name, key, case, median_us, ratio: ratio.into(), verdict, again: None });
    }
    if rows.is_empty() {
        let expected = "one at least, of the same shape and variant";
        return Err(Error::mismatch("baseline", "number of rows in common", 0, expected));
    }
    if rows.iter().all(|row: &Row| matches!(row.verdict, Verdict::TooFew | Verdict::Peer))
        && rows.iter().any(|row| row.verdict == Verdict::TooFew)
    {
        let expected = "one at least, with six samples in both results";
        return Err(Error::mismatch("baseline", "number of rows that can be judged", 0, expected));
    }
    let only_before = before.into_iter().map(|timing| timing.name).collect();
    let differences = differences(now.run(), baseline.run());
    Ok(Comparison { differences, threshold, rows, only_now, only_before })
}

fn differences(now: &Run, before: &Run) -> Vec<String> {
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let kernels = |run: &Run| if run.machine.portable { "portable" } else { "the device's" }.to_owned();
    let of = |run: &Run| [run.version.clone(), known(&run.git_revision), known(&run.machine.driver), kernels(run)];
    let names = ["version", "git revision", "driver", "kernels"].into_iter();
    let pairs = names.zip(of(before).into_iter().zip(of(now)));
    pairs
        .filter(|(_, (before, now))| before != now)
        .map(|(name, (before, now))| format!("{name} {before}, now {now}"))
        .collect()
}

impl Comparison {
    /// The rows that have become slower.
    pub fn regressions(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.verdict == Verdict::Slower)
    }

    /// The shapes, by index, of the rows that have become slower: those to be measured again.
    pub fn doubtful(&self) -> BTreeSet<usize> {
        self.regressions().map(|row| row.case).collect()
    }

    /// Takes in what a second measurement of [some shapes](Self::doubtful), beside the same baseline, says of the rows that have become
    /// slower: one that is not slower there, either, has not.
    pub fn confirm(&mut self, again: &Self) {
        for row in self.rows.iter_mut().filter(|row| row.verdict == Verdict::Slower) {
            let Some(second) = again.rows.iter().find(|second| second.key == row.key) else { continue };
            row.again = Some(second.ratio.median);
            if second.verdict != Verdict::Slower {
                row.verdict = Verdict::Once;
            }
        }
    }

    /// The table for a terminal, and under it the rows without a partner.
    pub fn table(&self) -> String {
        let columns = ["row", "before, µs", "now, µs", "now / before", "95 % interval", ""];
        let cells = self.rows.iter().map(|row| {
            let Spread { median, low, high, .. } = row.ratio;
            let verdict = match row.verdict {
                Verdict::Slower => "SLOWER",
                Verdict::Once => "slower once",
                Verdict::Faster => "faster",
                Verdict::Same => "same",
                Verdict::TooFew => "too few samples",
                Verdict::Peer => "peer",
            };
            [
                row.name.clone(),
                format!("{:.2}", row.median_us[0]),
                format!("{:.2}", row.median_us[1]),
                format!("{median:.3}"),
                format!("{low:.3} to {high:.3}"),
                verdict.to_owned(),
            ]
        });
        let mut text = report::table(columns, cells) + "\n";
        if !self.differences.is_empty() {
            text += &format!("before and now: {}\n", self.differences.join("; "));
        }
        let again = |row: &Row| Some(format!("{}: {:.3}, then {:.3}", row.name, row.ratio.median, row.again?));
        let again: Vec<_> = self.rows.iter().filter_map(again).collect();
        if !again.is_empty() {
            text += &format!("slower, so measured again:\n  {}\n", again.join("\n  "));
        }
        for (whose, names) in [("this run", &self.only_now), ("the baseline", &self.only_before)] {
            if !names.is_empty() {
                text += &format!("only in {whose}: {}\n", names.join("; "));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_distr::{Distribution, LogNormal};
    use rand_pcg::Pcg64Mcg;

    use super::*;
    use crate::measure::machine;

    struct Result {
        run: Run,
        identity: Identity,
        timings: Vec<Timing>,
    }

    impl Timed for Result {
        fn run(&self) -> &Run {
            &self.run
        }

        fn identity(&self) -> Identity {
            self.identity.clone()
        }

        fn timings(&self) -> Vec<Timing> {
            self.timings.clone()
        }
    }

    fn result(timings: Vec<Timing>) -> Result {
        let text = |text: &str| text.to_owned();
        let (schema, device, dtype, model) = (text("s/1"), text("card"), text("bf16"), text("m"));
        let identity = Identity { schema, device, dtype, model, shapes: vec![text("1 × 8"), text("1 × 9")] };
        Result { run: Run::begin("s/1", machine::host()), identity, timings }
    }

    fn timing(key: &str, samples_us: Vec<f64>) -> Timing {
        Timing {
            name: format!("row {key}"),
            key: key.into(),
            case: usize::from(key > "b"),
            ours: key != "peer",
            samples_us,
        }
    }

    fn constant(key: &str, us: f64) -> Timing {
        timing(key, vec![us; 11])
    }

    #[test]
    fn rows_are_matched_and_judged() {
        let before = result(["a", "b", "c", "d", "peer", "gone"].map(|key| constant(key, 100.0)).to_vec());
        let now = [("b", 103.0), ("new", 1.0), ("a", 101.9), ("c", 97.0), ("peer", 150.0), ("d", 98.5)];
        let now = result(now.map(|(key, us)| constant(key, us)).to_vec());
        let comparison = compare(&now, &before, 0.02).unwrap();
        let verdicts: Vec<_> = comparison.rows.iter().map(|row| (row.name.as_str(), row.verdict)).collect();
        assert_eq!(
            verdicts,
            [
                ("row b", Verdict::Slower),
                ("row a", Verdict::Same),
                ("row c", Verdict::Faster),
                ("row peer", Verdict::Peer),
                ("row d", Verdict::Same)
            ]
        );
        assert_eq!(
            (comparison.only_now.as_slice(), comparison.only_before.as_slice()),
            (&["row new".into()][..], &["row gone".into()][..])
        );
        assert_eq!(comparison.regressions().map(|row| row.median_us).collect::<Vec<_>>(), [[100.0, 103.0]]);
        let table = comparison.table();
        for part in ["SLOWER", "1.030", "only in this run: row new\n", "only in the baseline: row gone\n"] {
            assert!(table.contains(part), "{part:?} is missing in {table}");
        }
        assert_eq!(comparison.differences, [] as [String; 0]);
        let mut other = result(vec![constant("a", 100.0)]);
        (other.run.git_revision, other.run.machine.driver) = (Some("abc".into()), Some("580.1".into()));
        other.run.machine.portable = true;
        let table = compare(&other, &before, 0.02).unwrap().table();
        for part in ["before and now: ", "driver unknown, now 580.1", "kernels the device's, now portable\n"] {
            assert!(table.contains(part), "{part:?} is missing in {table}");
        }
        // Large, but within the noise.
        let noisy = result(vec![timing("a", (0..11).map(|i| 90.0 + 4.0 * f64::from(i)).collect())]);
        assert_eq!(compare(&noisy, &before, 0.02).unwrap().rows[0].verdict, Verdict::Same);
    }

    #[test]
    fn what_is_slower_once_is_not_slower() {
        let of = |times: &[(&str, f64)]| result(times.iter().map(|&(key, us)| constant(key, us)).collect());
        let before = of(&["a", "b", "c", "d", "e"].map(|key| (key, 100.0)));
        let compare = |times: &[(&str, f64)]| compare(&of(times), &before, 0.02).unwrap();
        let mut comparison = compare(&[("a", 100.0), ("b", 101.0), ("c", 103.0), ("d", 104.0), ("e", 105.0)]);
        assert_eq!(comparison.doubtful(), BTreeSet::from([1]));
        // One row is there no more: nothing speaks against what was seen. That another is slower now was not asked.
        comparison.confirm(&compare(&[("b", 150.0), ("d", 101.0), ("e", 103.0)]));
        let verdicts: Vec<_> = comparison.rows.iter().map(|row| (row.verdict, row.again)).collect();
        assert_eq!(
            verdicts,
            [
                (Verdict::Same, None),
                (Verdict::Same, None),
                (Verdict::Slower, None),
                (Verdict::Once, Some(1.01)),
                (Verdict::Slower, Some(1.03))
            ]
        );
        assert_eq!(comparison.regressions().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["c", "e"]);
        let table = comparison.table();
        for part in ["slower once", "measured again:\n  row d: 1.040, then 1.010\n  row e: 1.050, then 1.030\n"] {
            assert!(table.contains(part), "{part:?} is missing in {table}");
        }
    }

    #[test]
    fn what_is_not_comparable_is_refused_with_both_values() {
        let before = result(vec![constant("a", 1.0)]);
        let changed = |change: fn(&mut Identity)| {
            let mut now = result(vec![constant("a", 1.0)]);
            change(&mut now.identity);
            compare(&now, &before, 0.02).unwrap_err().to_string()
        };
        for (message, parts) in [
            (changed(|identity| identity.schema = "s/2".into()), ["schema", "s/1", "s/2"]),
            (changed(|identity| identity.device = "other".into()), ["device", "card", "other"]),
            (changed(|identity| identity.dtype = "f16".into()), ["dtype", "bf16", "f16"]),
            (changed(|identity| identity.model = "n".into()), ["model", "is m", "expected n"]),
            (changed(|identity| identity.shapes = vec!["2 × 8".into()]), ["shapes", "1 × 8; 1 × 9", "2 × 8"]),
            (changed(|identity| identity.shapes.clear()), ["shapes", "1 × 8; 1 × 9", "none"]),
        ] {
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let nothing = compare(&result(vec![constant("b", 1.0)]), &before, 0.02).unwrap_err().to_string();
        assert!(nothing.contains("rows in common is 0"), "{nothing}");
        assert!(matches!(compare(&result(vec![constant("a", 0.0)]), &before, 0.02), Err(Error::Verification(_))));
    }

    #[test]
    fn what_has_too_few_samples_is_not_judged() {
        let rows = |few: usize| result(vec![timing("a", vec![100.0; few]), constant("b", 100.0)]);
        let slower = result(vec![constant("a", 200.0), constant("b", 100.0)]);
        for (few, verdict) in [(1, Verdict::TooFew), (5, Verdict::TooFew), (6, Verdict::Slower)] {
            let comparison = compare(&slower, &rows(few), 0.02).unwrap();
            assert_eq!((comparison.rows[0].verdict, comparison.rows[1].verdict), (verdict, Verdict::Same), "{few}");
            assert_eq!(comparison.table().contains("too few samples"), few < 6);
            let verdict = if few < 6 { verdict } else { Verdict::Faster };
            assert_eq!(compare(&rows(few), &slower, 0.02).unwrap().rows[0].verdict, verdict, "{few}");
        }
        // Nothing that can be judged must not read as nothing that is slower.
        let (one, peer) = (timing("a", vec![100.0]), constant("peer", 100.0));
        let error = compare(&slower, &result(vec![one.clone()]), 0.02).unwrap_err().to_string();
        assert!(error.contains("rows that can be judged is 0") && error.contains("six samples"), "{error}");
        let both = result(vec![one, peer.clone()]);
        assert!(compare(&both, &both, 0.02).is_err());
        let peer = result(vec![peer]);
        assert_eq!(compare(&peer, &peer, 0.02).unwrap().rows[0].verdict, Verdict::Peer);
    }

    /// In how many of a thousand comparisons a row is slower that takes `factor` times as long, where a sample's noise is `sigma`.
    fn found(factor: f64, sigma: f64, rounds: usize) -> usize {
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        let mut times = |median: f64| {
            let normal = LogNormal::new(median.ln(), sigma).unwrap();
            (0..rounds).map(|_| normal.sample(&mut rng)).collect::<Vec<_>>()
        };
        let mut slower = || {
            let (now, before) = (result(vec![timing("a", times(factor))]), result(vec![timing("a", times(1.0))]));
            compare(&now, &before, 0.02).unwrap().regressions().next().is_some()
        };
        (0..1000).filter(|_| slower()).count()
    }

    #[test]
    fn a_slowdown_of_5_percent_is_found_and_none_is_not() {
        for (sigma, rounds) in [(0.005, 11), (0.01, 39), (0.02, 134)] {
            assert_eq!(found(1.05, sigma, rounds), 1000, "{sigma}, {rounds}");
            assert_eq!(found(1.0, sigma, rounds), 0, "{sigma}, {rounds}");
            // Less than the threshold is hardly ever one.
            assert!(found(1.01, sigma, rounds) < 20, "{sigma}, {rounds}");
        }
    }
}
