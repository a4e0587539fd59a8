//! When a measurement is to be doubted: the one place for these rules.

use std::fmt::{self, Display};

use super::report::{self, DeviceState, Run, Spread};

/// Share of its value by which the clock of the multiprocessors may move between the samples' beginning and their end. A clock moves by
/// steps of 15 MHz, less than a hundredth, all the time; times move in proportion.
pub const CLOCK_SHARE: f64 = 0.05;

/// How near a device may come to the temperature at which it slows down, °C.
pub const TEMPERATURE_MARGIN_C: u32 = 3;

/// What NVML may report as the reason of a clock without harm: nothing, idleness, the power limit (whose clocks are then what
/// [`CLOCK_SHARE`] is about), and clocks that somebody has chosen.
const HARMLESS_REASONS: [&str; 6] =
    ["0x0", "NONE", "GPU_IDLE", "SW_POWER_CAP", "APPLICATIONS_CLOCKS_SETTING", "USER_DEFINED_CLOCKS"];

/// The names in `ThrottleReasons(A | B)`.
fn reasons(state: &DeviceState) -> impl Iterator<Item = &str> {
    let text = state.throttle_reasons.as_deref().unwrap_or_default();
    text.trim_start_matches("ThrottleReasons(").trim_end_matches(')').split('|').map(str::trim)
}

/// By what share of its value a clock has moved.
fn change(before_mhz: u32, after_mhz: u32) -> f64 {
    f64::from(after_mhz) / f64::from(before_mhz) - 1.0
}

/// What of a device's state did not hold still between two moments, or was bad at one of them.
#[derive(Debug, Clone, PartialEq)]
enum Moved<'a> {
    Clock { name: &'static str, before_mhz: u32, after_mhz: u32, limited: bool },
    Throttled(Vec<&'a str>),
    Hot { temperature_c: u32, limit_c: u32 },
}

impl Display for Moved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clock { name, before_mhz, after_mhz, limited } => {
                let why = if *limited { ", at the power limit" } else { "" };
                let change = change(*before_mhz, *after_mhz) * 100.0;
                write!(f, "{name} from {before_mhz} to {after_mhz} MHz ({change:+.0} %){why}")
            }
            Self::Throttled(reasons) => write!(f, "clocks throttled: {}", reasons.join(", ")),
            Self::Hot { temperature_c, limit_c } => {
                write!(f, "{temperature_c} °C, where clocks are lowered from {limit_c} °C on")
            }
        }
    }
}

impl Moved<'_> {
    /// How bad it is beside its like.
    fn extent(&self) -> f64 {
        match *self {
            Self::Clock { before_mhz, after_mhz, .. } => change(before_mhz, after_mhz).abs(),
            Self::Throttled(_) => 0.0,
            Self::Hot { temperature_c, limit_c } => f64::from(temperature_c) - f64::from(limit_c),
        }
    }

    /// What measurements that are alike in it have in common, in words.
    fn kind(&self) -> String {
        match self {
            Self::Clock { name, .. } => format!("{name} moved by more than {} %", report::percent(CLOCK_SHARE)),
            Self::Throttled(_) => self.to_string(),
            Self::Hot { .. } => format!("within {TEMPERATURE_MARGIN_C} °C of where clocks are lowered"),
        }
    }
}

fn moved<'a>(before: Option<&'a DeviceState>, after: Option<&'a DeviceState>) -> Vec<Moved<'a>> {
    let mut found = Vec::new();
    // The clock of an idle device says nothing.
    let is_idle = |state: &&DeviceState| reasons(state).any(|reason| reason == "GPU_IDLE");
    if let (Some(before), Some(after)) = (before.filter(|of| !is_idle(of)), after.filter(|of| !is_idle(of))) {
        let clocks = [
            ("SM clock", before.sm_clock_mhz, after.sm_clock_mhz),
            ("memory clock", before.memory_clock_mhz, after.memory_clock_mhz),
        ];
        let limited = reasons(after).any(|reason| reason == "SW_POWER_CAP");
        for (name, before, after) in clocks {
            let Some((before_mhz, after_mhz)) = before.zip(after) else { continue };
            // Written so that a clock of 0 counts as moved.
            if change(before_mhz, after_mhz).abs() <= CLOCK_SHARE {
                continue;
            }
            found.push(Moved::Clock { name, before_mhz, after_mhz, limited });
        }
    }
    let both = || [before, after].into_iter().flatten();
    let mut bad: Vec<&str> = both().flat_map(reasons).collect();
    bad.retain(|reason| !reason.is_empty() && !HARMLESS_REASONS.contains(reason));
    bad.sort_unstable();
    bad.dedup();
    if !bad.is_empty() {
        found.push(Moved::Throttled(bad));
    }
    let hottest = both().filter_map(|state| state.temperature_c.zip(state.temperature_limit_c));
    if let Some((temperature_c, limit_c)) =
        hottest.max_by_key(|&(temperature, limit)| i64::from(temperature) - i64::from(limit))
        && temperature_c + TEMPERATURE_MARGIN_C >= limit_c
    {
        found.push(Moved::Hot { temperature_c, limit_c });
    }
    found
}

/// Half of a row's interval, as a share of the median.
fn width((_, median): &(String, Spread)) -> f64 {
    median.half_width() / median.median
}

/// A row with how far its interval reaches to either side.
fn noisy_row(row: &(String, Spread)) -> String {
    format!("{} ± {:.1} %", row.0, width(row) * 100.0)
}

/// What these rules look at in one case of a measurement.
pub(super) struct Case<'a> {
    /// Its name.
    pub name: String,
    /// What else there is to say of it, word by word.
    pub said: &'a [String],
    /// The device before and after the samples.
    pub states: [Option<&'a DeviceState>; 2],
    /// The rows' names and medians.
    pub rows: Vec<(String, Spread)>,
}

impl Case<'_> {
    fn moved(&self) -> Vec<Moved<'_>> {
        moved(self.states[0], self.states[1])
    }

    /// The rows whose intervals are wider than the target, a share of the median to either side; none where there was no target.
    fn noisy(&self, target: Option<f64>) -> impl Iterator<Item = &(String, Spread)> {
        self.rows.iter().filter(move |(_, median)| target.is_some_and(|target| !median.is_within(target)))
    }
}

/// All that casts doubt on what a result file says.
pub(super) struct Doubts<'a> {
    run: &'a Run,
    target: Option<f64>,
    cases: Vec<Case<'a>>,
}

impl<'a> Doubts<'a> {
    /// Of that run, whose medians were to have intervals no wider than the target.
    pub fn new(run: &'a Run, target: Option<f64>, cases: impl Iterator<Item = Case<'a>>) -> Self {
        Self { run, target, cases: cases.collect() }
    }

    /// That a test has slowed the run down.
    fn planted(&self) -> Option<String> {
        self.run.planted.as_ref().map(|planted| format!("times that a test has made longer: {planted}"))
    }

    /// `noise above ± 0.5 %`
    fn noise(&self) -> String {
        format!("noise above ± {} %", self.target.map(report::percent).unwrap_or_default())
    }

    /// Case by case, each line beginning with the case's name.
    pub fn lines(&self) -> Vec<String> {
        let of_case = |case: &Case| {
            let mut lines: Vec<_> = case.moved().iter().map(Moved::to_string).collect();
            let noisy: Vec<_> = case.noisy(self.target).map(noisy_row).collect();
            if !noisy.is_empty() {
                lines.push(format!("{}: {}", self.noise(), noisy.join(", ")));
            }
            let lines = lines.into_iter().map(|line| format!("{}: {line}", case.name));
            case.said.iter().cloned().chain(lines).collect::<Vec<_>>()
        };
        self.planted().into_iter().chain(self.cases.iter().flat_map(of_case)).collect()
    }

    /// Kind by kind, a line each: of how many, and the worst of them.
    pub fn grouped(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.planted().into_iter().collect();
        for said in self.cases.iter().flat_map(|case| case.said) {
            if !lines.contains(said) {
                lines.push(said.clone());
            }
        }

        let mut kinds: Vec<(String, Vec<(&str, Moved)>)> = Vec::new();
        for case in &self.cases {
            for moved in case.moved() {
                let (kind, found) = (moved.kind(), (case.name.as_str(), moved));
                match kinds.iter_mut().find(|(other, _)| *other == kind) {
                    Some((_, all)) => all.push(found),
                    None => kinds.push((kind, vec![found])),
                }
            }
        }
        let observed = self.cases.iter().filter(|case| case.states.iter().any(Option::is_some)).count();
        lines.extend(kinds.iter().map(|(kind, found)| {
            let all = format!("{kind} in {} of {observed} measurements", found.len());
            let worst = found.iter().max_by(|a, b| a.1.extent().total_cmp(&b.1.extent()));
            match worst.map(|(name, worst)| (name, worst.to_string())) {
                Some((name, worst)) if found.len() == 1 => format!("{name}: {worst}"),
                // Else the kind says all that there is.
                Some((name, worst)) if worst != *kind => format!("{all}, at worst {name}: {worst}"),
                _ => all,
            }
        }));

        let noisy = self.cases.iter().flat_map(|case| case.noisy(self.target).map(move |row| (&case.name, row)));
        let noisy: Vec<_> = noisy.collect();
        let rows: usize = self.cases.iter().map(|case| case.rows.len()).sum();
        if let Some((name, row)) = noisy.iter().max_by(|a, b| width(a.1).total_cmp(&width(b.1))) {
            let (noise, worst) = (self.noise(), noisy_row(row));
            lines.push(match noisy.len() {
                1 => format!("{name}: {noise}: {worst}"),
                count => format!("{noise} in {count} of {rows} rows, at worst {name}: {worst}"),
            });
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sm_clock_mhz: u32, reasons: &str, temperature_c: u32) -> DeviceState {
        DeviceState {
            sm_clock_mhz: Some(sm_clock_mhz),
            memory_clock_mhz: Some(2619),
            power_w: Some(300.0),
            power_limit_w: Some(700.0),
            temperature_c: Some(temperature_c),
            temperature_limit_c: Some(87),
            throttle_reasons: Some(format!("ThrottleReasons({reasons})")),
        }
    }

    fn in_words(moved: Vec<Moved>) -> Vec<String> {
        moved.iter().map(Moved::to_string).collect()
    }

    fn between(before: &DeviceState, after: &DeviceState) -> Vec<String> {
        in_words(moved(Some(before), Some(after)))
    }

    #[test]
    fn a_steady_device_is_no_reason_to_warn() {
        let steady = state(1980, "0x0", 50);
        assert_eq!(between(&steady, &steady), [] as [String; 0]);
        // A few steps, idle before, limited by power with little effect, clocks that somebody has chosen.
        for reasons in ["GPU_IDLE", "SW_POWER_CAP", "APPLICATIONS_CLOCKS_SETTING | SW_POWER_CAP", "NONE"] {
            assert_eq!(between(&state(1980, reasons, 40), &state(1890, "SW_POWER_CAP", 60)), [] as [String; 0]);
        }
        // Where nothing ran, nothing slowed down.
        assert_eq!(between(&state(345, "GPU_IDLE", 40), &steady), [] as [String; 0]);
        assert_eq!(between(&steady, &state(345, "GPU_IDLE", 40)), [] as [String; 0]);
        // What is not known is no reason either.
        let unknown = DeviceState { sm_clock_mhz: None, temperature_c: None, throttle_reasons: None, ..steady.clone() };
        assert_eq!(between(&unknown, &steady), [] as [String; 0]);
        assert_eq!(moved(None, Some(&steady)), []);
        assert_eq!(moved(None, None), []);
    }

    #[test]
    fn clocks_that_moved_are_named_with_both_values() {
        let (high, low) = (state(1980, "0x0", 50), state(1470, "SW_POWER_CAP", 60));
        assert_eq!(between(&high, &low), ["SM clock from 1980 to 1470 MHz (-26 %), at the power limit"]);
        assert_eq!(between(&low, &high), ["SM clock from 1470 to 1980 MHz (+35 %)"]);
        let slow = DeviceState { memory_clock_mhz: Some(1593), ..high.clone() };
        assert_eq!(between(&high, &slow), ["memory clock from 2619 to 1593 MHz (-39 %)"]);
        // Just beyond the share, and just within it.
        assert_eq!(between(&state(2000, "0x0", 50), &state(1899, "0x0", 50)).len(), 1);
        assert_eq!(between(&state(2000, "0x0", 50), &state(1901, "0x0", 50)).len(), 0);
        assert_eq!(between(&state(0, "0x0", 50), &high).len(), 1);
    }

    #[test]
    fn throttling_and_heat_at_either_moment_are_named() {
        let cool = state(1980, "0x0", 50);
        let hot = state(1980, "SW_POWER_CAP | HW_THERMAL_SLOWDOWN | HW_SLOWDOWN", 86);
        let expected =
            ["clocks throttled: HW_SLOWDOWN, HW_THERMAL_SLOWDOWN", "86 °C, where clocks are lowered from 87 °C on"];
        assert_eq!(between(&cool, &hot), expected);
        assert_eq!(between(&hot, &cool), expected);
        assert_eq!(in_words(moved(None, Some(&hot))), expected);
        assert_eq!(between(&cool, &state(1980, "SYNC_BOOST", 83)), ["clocks throttled: SYNC_BOOST"]);
        assert_eq!(between(&cool, &state(1980, "0x0", 84)), ["84 °C, where clocks are lowered from 87 °C on"]);
    }

    const PLANTED: &str = "PAF_PLANT_SLOWDOWN=gemm:1.05";

    fn run(planted: bool) -> Run {
        Run { planted: planted.then(|| PLANTED.into()), ..Run::begin("s/1", crate::measure::machine::host()) }
    }

    fn case<'a>(name: &str, states: [Option<&'a DeviceState>; 2], rows: &[(&str, f64)]) -> Case<'a> {
        let spread = |half: f64| Spread { median: 100.0, low: 100.0 - half, high: 100.0, confidence: 0.96 };
        let rows = rows.iter().map(|&(name, half)| (name.to_owned(), spread(half))).collect();
        Case { name: name.into(), said: &[], states, rows }
    }

    const ROWS: [(&str, f64); 3] = [("a", 0.4), ("b", 3.06), ("c", 0.5)];

    #[test]
    fn a_planted_slowdown_is_a_reason() {
        for planted in [false, true] {
            let run = run(planted);
            let doubts = Doubts::new(&run, None, std::iter::empty());
            let expected = planted.then(|| format!("times that a test has made longer: {PLANTED}"));
            assert_eq!(doubts.lines(), Vec::from_iter(expected.clone()));
            assert_eq!(doubts.grouped(), Vec::from_iter(expected));
        }
    }

    #[test]
    fn rows_that_missed_the_target_are_named() {
        let noisy = |of: &Case, target| of.noisy(target).map(noisy_row).collect::<Vec<_>>();
        let rows = case("1 × 16", [None; 2], &ROWS);
        assert_eq!(noisy(&rows, Some(0.005)), ["b ± 3.1 %"]);
        assert_eq!(noisy(&rows, Some(0.04)), [] as [String; 0]);
        assert_eq!(noisy(&rows, None), [] as [String; 0]);
        // Too few samples for an interval of 95 %, however narrow.
        let mut one = case("1 × 16", [None; 2], &[("d", 0.0)]);
        one.rows[0].1.confidence = 0.5;
        assert_eq!(noisy(&one, Some(0.5)), ["d ± 0.0 %"]);
    }

    #[test]
    fn each_line_begins_with_its_case() {
        let (run, boosted) = (run(false), state(1980, "SYNC_BOOST", 50));
        let said = ["the cache is damaged".to_owned()];
        let cases = || [Case { said: &said, ..case("1 × 16", [None, Some(&boosted)], &ROWS) }].into_iter();
        let expected =
            ["the cache is damaged", "1 × 16: clocks throttled: SYNC_BOOST", "1 × 16: noise above ± 0.5 %: b ± 3.1 %"];
        // What there is but once is said in the same words where the lines are by kind.
        assert_eq!(Doubts::new(&run, Some(0.005), cases()).lines(), expected);
        assert_eq!(Doubts::new(&run, Some(0.005), cases()).grouped(), expected);
        assert_eq!(Doubts::new(&run, None, cases()).lines(), expected[..2]);
        assert_eq!(Doubts::new(&run, None, cases()).grouped(), expected[..2]);
    }

    #[test]
    fn what_many_cases_have_in_common_is_one_line() {
        let run = run(true);
        let high = state(1980, "0x0", 50);
        let low = state(1470, "SW_POWER_CAP", 50);
        let (lower, hot) = (state(1380, "SYNC_BOOST", 85), state(1980, "SYNC_BOOST", 86));
        let said = ["the cache is damaged".to_owned()];
        let cases = [
            case("1 × 16", [Some(&high), Some(&low)], &ROWS),
            Case { said: &said, ..case("1 × 32", [Some(&high), Some(&lower)], &[("a", 0.6), ("b", 0.1)]) },
            Case { said: &said, ..case("1 × 64", [Some(&hot), Some(&hot)], &[("a", 0.1), ("b", 4.0)]) },
            case("1 × 96", [Some(&high), Some(&high)], &[]),
            // Of this one nothing is known of the device.
            case("1 × 128", [None; 2], &[("a", 0.1)]),
        ];
        let doubts = Doubts::new(&run, Some(0.005), cases.into_iter());
        assert_eq!(
            doubts.grouped(),
            [
                "times that a test has made longer: PAF_PLANT_SLOWDOWN=gemm:1.05",
                "the cache is damaged",
                "SM clock moved by more than 5 % in 2 of 4 measurements, at worst 1 × 32: SM clock from 1980 to 1380 MHz (-30 %)",
                "clocks throttled: SYNC_BOOST in 2 of 4 measurements",
                "within 3 °C of where clocks are lowered in 2 of 4 measurements, at worst 1 × 64: 86 °C, where clocks are lowered from 87 °C on",
                "noise above ± 0.5 % in 3 of 8 rows, at worst 1 × 64: b ± 4.0 %",
            ]
        );
        assert_eq!(doubts.lines().len(), 1 + 2 + 2 + 2 + 2 + 3);
    }
}
