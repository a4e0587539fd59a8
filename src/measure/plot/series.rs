//! What is drawn: the paired ratios of result files, by panel, batch shape and schedule.

use crate::config::Schedule;
use crate::error::{Error, Result};
use crate::measure::report::{Case, Config, Report, Spread, Variant, shape_name};

/// Ratios beyond this, or below its inverse, are no measurement.
const LARGEST_RATIO: f64 = 1e3;

/// What is compared under the same conditions: one model, element type, device, design and mode.
#[derive(Debug, PartialEq)]
pub(super) struct Panel<'a> {
    conditions: Conditions<'a>,
    /// By tokens, then by sequence length: batch shapes with a point a schedule.
    pub(super) shapes: Vec<Shape<'a>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Conditions<'a> {
    model: Option<&'a str>,
    config: &'a Config,
    design: &'a str,
    dtype: &'a str,
    device: String,
    mode: &'a str,
}

/// A batch shape and what was measured on it.
#[derive(Debug, PartialEq)]
pub(super) struct Shape<'a> {
    case: &'a Case,
    /// Valid tokens of the batch, at least 1.
    pub(super) tokens: usize,
    /// One a schedule, in the order of [`schedules`].
    pub(super) points: Vec<Point<'a>>,
}

/// SAF's time over that of PAF in one schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point<'a> {
    pub(super) schedule: &'a str,
    pub(super) ratio: Spread,
}

impl Point<'_> {
    /// Whether the whole interval says that PAF is faster.
    pub(super) fn is_win(&self) -> bool {
        self.ratio.low > 1.0
    }
}

impl Panel<'_> {
    /// The model, in words.
    pub(super) fn title(&self) -> String {
        let Conditions { model, config, design, .. } = self.conditions;
        let name = model.map_or_else(
            || {
                format!(
                    "hidden_size {}, {} heads, intermediate_size {}",
                    config.hidden_size, config.num_attention_heads, config.intermediate_size
                )
            },
            str::to_owned,
        );
        let rotary = if config.rotary_left_out { ", rotary embeddings left out" } else { "" };
        format!("{name} ({design}), {} layers{rotary}", config.num_hidden_layers)
    }

    /// What it was measured with, in words.
    pub(super) fn subtitle(&self) -> String {
        let Conditions { dtype, device, mode, .. } = &self.conditions;
        format!("{dtype} on {device}, mode {mode}")
    }
}

impl Shape<'_> {
    /// Tokens of each sequence, padding included; of packed ones, those of the longest.
    pub(super) fn seq_len(&self) -> usize {
        self.case.seq_len
    }

    /// Whether sequences are of their own lengths, padded or packed.
    pub(super) fn has_lengths(&self) -> bool {
        self.case.lengths.is_some()
    }

    /// `8 × 512` in narrow lines; where that is not all, also the tokens, which are the sum of the lengths.
    pub(super) fn label(&self) -> Vec<String> {
        let Case { batch, seq_len, packed, .. } = *self.case;
        let mut lines = if packed {
            vec![format!("{batch} packed"), format!("≤ {seq_len}")]
        } else {
            vec![format!("{batch} ×"), seq_len.to_string()]
        };
        if self.has_lengths() {
            lines.push(format!("Σ {}", self.tokens));
        }
        lines
    }

    fn is_of(&self, case: &Case) -> bool {
        let key = |case: &Case| (case.batch, case.seq_len, case.packed);
        key(self.case) == key(case) && self.case.lengths == case.lengths
    }
}

fn refuse(what: &'static str, got: impl Into<String>, expected: &str) -> Error {
    Error::Mismatch { operation: "plot", what, got: got.into(), expected: expected.into() }
}

/// The name of a schedule without what may stand behind it: `auto (fused)` and `auto (hybrid)` are one series.
fn series_name(schedule: &str) -> &str {
    schedule.split([' ', ':', '(']).next().unwrap_or(schedule)
}

/// Valid tokens of a batch.
fn tokens(case: &Case) -> Result<usize> {
    let name = || shape_name(case.batch, case.seq_len, case.packed);
    let tokens = match &case.lengths {
        Some(lengths) => lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length)),
        None => case.batch.checked_mul(case.seq_len),
    };
    tokens
        .filter(|&tokens| tokens > 0)
        .ok_or_else(|| refuse("number of tokens", format!("that of {}", name()), "at least 1, and one that can be"))
}

fn point<'a>(case: &Case, variant: &'a Variant) -> Result<Point<'a>> {
    let ratio = variant.speedup_over_saf;
    let Spread { median, low, high, .. } = ratio;
    let name =
        || format!("{}, {} {}", shape_name(case.batch, case.seq_len, case.packed), variant.schedule, variant.mode);
    if !(1.0 / LARGEST_RATIO <= low && low <= median && median <= high && high <= LARGEST_RATIO) {
        let got = format!("{median} [{low}, {high}] ({})", name());
        return Err(refuse("ratio", got, "a positive median within its interval"));
    }
    if !case.variants.iter().any(|other| other.design.starts_with("saf") && other.mode == variant.mode) {
        return Err(refuse("baseline", format!("missing ({})", name()), "the serial design (SAF) in the same mode"));
    }
    Ok(Point { schedule: series_name(&variant.schedule), ratio })
}

/// Sorts the ratios of all parallel variants into panels, in the order in which the files have them.
///
/// # Errors
/// [`Error::Mismatch`] if a file has no cases, a ratio has no baseline or is none, a shape is there twice, or there is no
/// parallel variant at all.
pub(super) fn panels(reports: &[Report]) -> Result<Vec<Panel<'_>>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for report in reports {
        let machine = &report.run.machine;
        let device = machine.name();
        if report.cases.is_empty() {
            let got = format!("0 ({} on {device})", report.model.as_deref().unwrap_or("custom dimensions"));
            return Err(refuse("number of cases in a result file", got, "at least 1"));
        }
        for case in &report.cases {
            let tokens = tokens(case)?;
            for variant in case.variants.iter().filter(|variant| variant.design.starts_with("paf")) {
                let point = point(case, variant)?;
                let conditions = Conditions {
                    model: report.model.as_deref(),
                    config: &report.config,
                    design: &variant.design,
                    dtype: &report.dtype,
                    device: device.clone(),
                    mode: &variant.mode,
                };
                let panel = entry(
                    &mut panels,
                    |panel| panel.conditions == conditions,
                    || Panel { conditions: conditions.clone(), shapes: Vec::new() },
                );
                let shape =
                    entry(&mut panel.shapes, |shape| shape.is_of(case), || Shape { case, tokens, points: Vec::new() });
                if shape.points.iter().any(|other| other.schedule == point.schedule) {
                    let got = format!(
                        "two ({}, {} {})",
                        shape_name(case.batch, case.seq_len, case.packed),
                        point.schedule,
                        variant.mode
                    );
                    return Err(refuse("number of measurements under the same conditions", got, "one"));
                }
                shape.points.push(point);
            }
        }
    }
    if panels.is_empty() {
        return Err(refuse("number of parallel variants (PAF)", "0", "at least 1"));
    }
    let order = schedules(&panels);
    for panel in &mut panels {
        panel.shapes.sort_by_key(|shape| (shape.tokens, shape.case.packed, shape.seq_len()));
        for shape in &mut panel.shapes {
            shape.points.sort_by_key(|point| order.iter().position(|&name| name == point.schedule));
        }
    }
    Ok(panels)
}

/// The element that `is` it, made if it is not there yet.
fn entry<T>(all: &mut Vec<T>, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> &mut T {
    let i = all.iter().position(is).unwrap_or_else(|| {
        all.push(make());
        all.len() - 1
    });
    &mut all[i]
}

/// Schedules that were measured: those of the library in its order, then others by name.
pub(super) fn schedules<'a>(panels: &[Panel<'a>]) -> Vec<&'a str> {
    let points = panels.iter().flat_map(|panel| &panel.shapes).flat_map(|shape| &shape.points);
    let mut names: Vec<&str> = points.map(|point| point.schedule).collect();
    let rank = |name: &str| {
        let known = Schedule::ALL.iter().position(|schedule| schedule.name() == name);
        known.unwrap_or(Schedule::ALL.len())
    };
    names.sort_by_key(|&name| (rank(name), name));
    names.dedup();
    names
}

/// Sequence lengths that were measured, ascending.
pub(super) fn seq_lens(panels: &[Panel<'_>]) -> Vec<usize> {
    let mut all: Vec<usize> = panels.iter().flat_map(|panel| &panel.shapes).map(Shape::seq_len).collect();
    all.sort_unstable();
    all.dedup();
    all
}
