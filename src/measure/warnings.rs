//! When a measurement is to be doubted: the one place for these rules.

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

/// What of a device's state did not hold still between the two moments, or was bad at one of them, in words.
pub(super) fn moved(before: Option<&DeviceState>, after: Option<&DeviceState>) -> Vec<String> {
    let mut lines = Vec::new();
    // The clock of an idle device says nothing.
    let is_idle = |state: &&DeviceState| reasons(state).any(|reason| reason == "GPU_IDLE");
    if let (Some(before), Some(after)) = (before.filter(|of| !is_idle(of)), after.filter(|of| !is_idle(of))) {
        let clocks = [
            ("SM clock", before.sm_clock_mhz, after.sm_clock_mhz),
            ("memory clock", before.memory_clock_mhz, after.memory_clock_mhz),
        ];
        for (name, before, now) in clocks {
            let Some((before, now)) = before.zip(now) else { continue };
            let change = f64::from(now) / f64::from(before) - 1.0;
            // Written so that a clock of 0 counts as moved.
            if change.abs() <= CLOCK_SHARE {
                continue;
            }
            let limited = reasons(after).any(|reason| reason == "SW_POWER_CAP");
            let why = if limited { ", at the power limit" } else { "" };
            lines.push(format!("{name} from {before} to {now} MHz ({:+.0} %){why}", change * 100.0));
        }
    }
    let both = || [before, after].into_iter().flatten();
    let mut bad: Vec<&str> = both().flat_map(reasons).collect();
    bad.retain(|reason| !reason.is_empty() && !HARMLESS_REASONS.contains(reason));
    bad.sort_unstable();
    bad.dedup();
    if !bad.is_empty() {
        lines.push(format!("clocks throttled: {}", bad.join(", ")));
    }
    let hottest = both().filter_map(|state| state.temperature_c.zip(state.temperature_limit_c));
    if let Some((temperature, limit)) =
        hottest.max_by_key(|&(temperature, limit)| i64::from(temperature) - i64::from(limit))
        && temperature + TEMPERATURE_MARGIN_C >= limit
    {
        lines.push(format!("{temperature} °C, where clocks are lowered from {limit} °C on"));
    }
    lines
}

/// Which rows' intervals are wider than the target, a share of the median to either side, in words; `None` if none is, or there was no
/// target.
pub(super) fn noisy(rows: impl Iterator<Item = (String, Spread)>, target: Option<f64>) -> Option<String> {
    let target = target?;
    let percent = |of: &Spread| of.half_width() / of.median * 100.0;
    let missed = rows.filter(|(_, median)| !median.is_within(target));
    let missed: Vec<_> = missed.map(|(name, median)| format!("{name} ± {:.1} %", percent(&median))).collect();
    (!missed.is_empty()).then(|| format!("noise above ± {} %: {}", report::percent(target), missed.join(", ")))
}

/// What a run says of itself: that a test has slowed it down.
pub(super) fn of_run(run: &Run) -> impl Iterator<Item = String> {
    run.planted.iter().map(|planted| format!("times that a test has made longer: {planted}"))
}

/// All of it about one case, each line beginning with the case's name.
pub(super) fn of_case(
    name: &str,
    states: [Option<&DeviceState>; 2],
    rows: impl Iterator<Item = (String, Spread)>,
    target: Option<f64>,
) -> Vec<String> {
    let lines = moved(states[0], states[1]).into_iter().chain(noisy(rows, target));
    lines.map(|line| format!("{name}: {line}")).collect()
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

    fn between(before: &DeviceState, after: &DeviceState) -> Vec<String> {
        moved(Some(before), Some(after))
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
        assert_eq!(moved(None, Some(&steady)), [] as [String; 0]);
        assert_eq!(moved(None, None), [] as [String; 0]);
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
        assert_eq!(moved(None, Some(&hot)), expected);
        assert_eq!(between(&cool, &state(1980, "SYNC_BOOST", 83)), ["clocks throttled: SYNC_BOOST"]);
        assert_eq!(between(&cool, &state(1980, "0x0", 84)), ["84 °C, where clocks are lowered from 87 °C on"]);
    }

    #[test]
    fn a_planted_slowdown_is_a_reason() {
        let mut run = Run::begin("s/1", crate::measure::machine::host());
        assert_eq!(of_run(&run).count(), 0);
        run.planted = Some("PAF_PLANT_SLOWDOWN=gemm:1.05".into());
        assert!(of_run(&run).eq(["times that a test has made longer: PAF_PLANT_SLOWDOWN=gemm:1.05"]));
    }

    #[test]
    fn rows_that_missed_the_target_are_named() {
        let spread = |half: f64| Spread { median: 100.0, low: 100.0 - half, high: 100.0, confidence: 0.96 };
        let rows =
            || [("a", 0.4), ("b", 3.06), ("c", 0.5)].map(|(name, half)| (name.to_owned(), spread(half))).into_iter();
        assert_eq!(noisy(rows(), Some(0.005)).as_deref(), Some("noise above ± 0.5 %: b ± 3.1 %"));
        assert_eq!(noisy(rows(), Some(0.04)), None);
        assert_eq!(noisy(rows(), None), None);
        // Too few samples for an interval of 95 %, however narrow.
        let one = Spread { confidence: 0.5, ..spread(0.0) };
        assert!(noisy([("d".to_owned(), one)].into_iter(), Some(0.5)).is_some());
        assert_eq!(
            of_case("1 × 16", [None, Some(&state(1980, "SYNC_BOOST", 50))], rows(), Some(0.005)),
            ["1 × 16: clocks throttled: SYNC_BOOST", "1 × 16: noise above ± 0.5 %: b ± 3.1 %"]
        );
    }
}
