//! Times of blocks and layers beside the length of sequences, predicted and measured, and their ratio.

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::marks::{Canvas, Drawn, INK, LABEL_SIZE, Legend, Symbol, TEXT_SIZE, TITLE_SIZE};
use super::marks::{colour, interval, line, marker, text};
use super::place::{TokenAxis, extent, text_width};
use super::plane::{Axes, draw_one};
use super::{ABOVE_LEGEND, EDGE, FREE_SHARE, LEAST_RATIO_RANGE, LEFT, RIGHT, SLOWER_REGION};
use crate::error::{Error, Result};
use crate::measure::complexity::{Case, Report, Subject};
use crate::measure::report::{Spread, significant};

/// Heights of a panel's two planes, and room above them and below, px.
const TIMES_HEIGHT: i32 = 340;
const RATIOS_HEIGHT: i32 = 240;
const ABOVE_TIMES: i32 = 40;
const ABOVE_RATIOS: i32 = 24;
const BELOW_PLANE: i32 = 52;
/// Of the range of ratios, so much is left free below, where the region of losses has its name.
const FREE_BELOW: f64 = 0.14;
/// Room that a point has on the axis, px.
const POINT_WIDTH: f64 = 70.0;
/// Times and ratios beyond are no measurement, nor a prediction.
const LARGEST: f64 = 1e9;
const LARGEST_RATIO: f64 = 1e3;

/// What is drawn in one colour.
#[derive(Clone, Copy, PartialEq)]
enum Series {
    Attention,
    Ffn,
    Saf,
    /// With the subject that was measured.
    Paf(Subject),
    /// Each block on a device of its own.
    Apart,
}

impl Series {
    fn colour(self) -> RGBColor {
        match self {
            Self::Attention => RGBColor(0x00, 0x72, 0xb2),
            Self::Ffn => RGBColor(0xd5, 0x5e, 0x00),
            Self::Saf => RGBColor(0x66, 0x66, 0x66),
            Self::Paf(Subject::TwoStream) => RGBColor(0x00, 0x8a, 0x66),
            Self::Paf(_) => colour("auto", &[]),
            Self::Apart => RGBColor(0xb0, 0x7a, 0x00),
        }
    }

    /// Which outline its markers have.
    fn outline(self) -> usize {
        match self {
            Self::Attention => 0,
            Self::Ffn => 1,
            Self::Saf => 2,
            Self::Paf(Subject::TwoStream) => 5,
            Self::Paf(_) => 3,
            Self::Apart => 4,
        }
    }
}

/// A point: `seq_len`, the value, and what interval it has if it was measured.
type Point = (f64, f64, Option<Spread>);

/// Points that a line connects.
struct Line {
    series: Series,
    measured: bool,
    points: Vec<Point>,
}

/// Cases with as many sequences, by their lengths.
struct Panel<'a> {
    name: String,
    cases: Vec<&'a Case>,
}

impl Panel<'_> {
    fn line(&self, series: Series, measured: bool, value: impl Fn(&Case) -> Option<(f64, Option<Spread>)>) -> Line {
        let point = |case: &&Case| value(case).map(|(y, spread)| (case.seq_len as f64, y, spread));
        Line { series, measured, points: self.cases.iter().filter_map(point).collect() }
    }

    /// Times of a layer, µs.
    fn times(&self) -> Vec<Line> {
        let predicted = |series, us: fn(&Case) -> f64| self.line(series, false, move |case| Some((us(case), None)));
        let measured = |series, subject| {
            self.line(series, true, move |case| {
                let of = case.measured.as_ref()?.row(subject)?.median_us;
                Some((of.median, Some(of)))
            })
        };
        vec![
            predicted(Series::Saf, |case| case.predicted.saf_us),
            predicted(Series::Paf(Subject::Auto), |case| case.predicted.paf_us),
            predicted(Series::Ffn, |case| case.predicted.ffn_us),
            predicted(Series::Attention, |case| case.predicted.attention_us),
            measured(Series::Saf, Subject::Saf),
            measured(Series::Paf(Subject::TwoStream), Subject::TwoStream),
            measured(Series::Paf(Subject::Auto), Subject::Auto),
            measured(Series::Ffn, Subject::Ffn),
            measured(Series::Attention, Subject::Attention),
        ]
    }

    /// SAF's time over PAF's.
    fn ratios(&self) -> Vec<Line> {
        let measured = |subject| {
            self.line(Series::Paf(subject), true, move |case| {
                let of = case.measured.as_ref()?.row(subject)?.saf_over_this?;
                Some((of.median, Some(of)))
            })
        };
        vec![
            self.line(Series::Apart, false, |case| Some((case.predicted.saf_over_paf_apart, None))),
            self.line(Series::Paf(Subject::Auto), false, |case| Some((case.predicted.saf_over_paf, None))),
            measured(Subject::TwoStream),
            measured(Subject::Auto),
        ]
    }
}

fn refuse(what: &'static str, got: impl ToString, expected: &str) -> Error {
    Error::Mismatch { operation: "plot", what, got: got.to_string(), expected: expected.into() }
}

/// Panels in the order of the cases; refuses what cannot be drawn.
fn panels(report: &Report) -> Result<Vec<Panel<'_>>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for case in &report.cases {
        let layout = if case.packed {
            " packed"
        } else if case.lengths.is_some() {
            " padded"
        } else {
            ""
        };
        let name = format!("batch {}{layout}", case.batch);
        let i = panels.iter().position(|panel| panel.name == name).unwrap_or_else(|| {
            panels.push(Panel { name, cases: Vec::new() });
            panels.len() - 1
        });
        if case.seq_len == 0 || panels[i].cases.iter().any(|other| other.seq_len == case.seq_len) {
            return Err(refuse("seq_len", case.name(), "above 0, and each batch size and seq_len once"));
        }
        panels[i].cases.push(case);
    }
    for panel in &mut panels {
        panel.cases.sort_by_key(|case| case.seq_len);
        for (lines, most, what) in [(panel.times(), LARGEST, "time"), (panel.ratios(), LARGEST_RATIO, "ratio")] {
            for &(seq_len, y, spread) in lines.iter().flat_map(|line| &line.points) {
                let ends = spread.map_or([y, y], |spread| [spread.low, spread.high]);
                if !(1.0 / most <= ends[0] && ends[0] <= y && y <= ends[1] && ends[1] <= most) {
                    return Err(refuse(
                        what,
                        format!("{y} {ends:?} (seq_len {seq_len})"),
                        "positive, within its interval",
                    ));
                }
            }
        }
    }
    if panels.is_empty() {
        return Err(refuse("number of cases in a result file", 0, "at least 1"));
    }
    Ok(panels)
}

/// Times of blocks and layers, and SAF's time over PAF's, beside `seq_len`: an SVG document with a panel for each batch size. What is
/// predicted is dashed and hollow, what was measured solid and filled, with intervals.
///
/// # Errors
/// [`Error::Mismatch`] if there are no cases, a shape is there twice, or a value is no time or ratio.
pub fn complexity(report: &Report) -> Result<String> {
    let panels = panels(report)?;
    let mut document = String::new();
    Figure::new(report, &panels).draw(&mut document).expect("writing into a string does not fail");
    Ok(document)
}

struct Figure<'a> {
    report: &'a Report,
    panels: &'a [Panel<'a>],
    seq_lens: TokenAxis,
    titles: [String; 3],
    width: i32,
}

impl<'a> Figure<'a> {
    fn new(report: &'a Report, panels: &'a [Panel<'a>]) -> Self {
        let boxes = |panel: &Panel| panel.cases.iter().map(|case| (case.seq_len, POINT_WIDTH)).collect();
        let seq_lens = TokenAxis::new(&panels.iter().map(boxes).collect::<Vec<_>>());
        let title = match report.is_measured() {
            true => "Attention and FFN blocks, and both together: predicted and measured",
            false => "Attention and FFN blocks, and both together: predicted",
        };
        let config = &report.config;
        let model = report.model.clone().unwrap_or_else(|| {
            format!("hidden_size {}, intermediate_size {}", config.hidden_size, config.intermediate_size)
        });
        let model = format!("{model} ({}), {}, a layer", report.design, report.dtype);
        let mut on = format!("predicted for {}", report.device.name);
        if report.is_measured() {
            on += &format!("; measured on {}", report.run.machine.name());
        }
        let titles = [title.to_owned(), model, on];
        let widths = titles.iter().zip([TITLE_SIZE, TEXT_SIZE, TEXT_SIZE]);
        let widest =
            widths.map(|(title, size)| text_width(title, size, true).ceil() as i32).fold(seq_lens.width, i32::max);
        Self { report, panels, titles, width: LEFT + widest + RIGHT, seq_lens }
    }

    fn legend(&self) -> Legend {
        let measured = self.report.is_measured();
        let entry = |series: Series, name: &str| {
            (Symbol::Marker { index: series.outline(), colour: series.colour(), filled: true }, name.to_owned())
        };
        let mut by_colour = vec![
            entry(Series::Attention, "attention block"),
            entry(Series::Ffn, "FFN block"),
            entry(Series::Saf, "SAF: one after the other"),
        ];
        by_colour
            .push(entry(Series::Paf(Subject::Auto), if measured { "PAF (measured: auto)" } else { "PAF: at once" }));
        if measured {
            by_colour.push(entry(Series::Paf(Subject::TwoStream), "PAF two-stream"));
        }
        by_colour.push(entry(Series::Apart, "if each block had a device of its own"));
        let mut by_line = vec![(
            Symbol::Line { dashed: true },
            "predicted (hollow): estimates of the least that the device allows".to_owned(),
        )];
        if measured {
            by_line.push((Symbol::Line { dashed: false }, "measured (filled)".to_owned()));
            by_line.push((Symbol::Interval, "its 95 % interval".to_owned()));
        }
        Legend::of(vec![by_colour, by_line], self.width - LEFT)
    }

    fn draw(&self, document: &mut String) -> Drawn {
        let legend = self.legend();
        let header = ABOVE_LEGEND + 2 * 18 + legend.height;
        let panel_height = ABOVE_TIMES + TIMES_HEIGHT + BELOW_PLANE + ABOVE_RATIOS + RATIOS_HEIGHT + BELOW_PLANE;
        let height = header + panel_height * self.panels.len() as i32;
        let canvas = SVGBackend::with_string(document, (self.width as u32, height as u32)).into_drawing_area();
        canvas.fill(&WHITE)?;
        text(&canvas, &self.titles[0], (LEFT, ABOVE_LEGEND / 2 + 2), TITLE_SIZE, HPos::Left, INK, true)?;
        text(&canvas, &self.titles[1], (LEFT, ABOVE_LEGEND + 4), TEXT_SIZE, HPos::Left, INK, true)?;
        text(&canvas, &self.titles[2], (LEFT, ABOVE_LEGEND + 22), TEXT_SIZE, HPos::Left, INK, false)?;
        legend.draw(&canvas, (LEFT, ABOVE_LEGEND + 2 * 18))?;
        for (i, panel) in self.panels.iter().enumerate() {
            let top = header + panel_height * i as i32 + ABOVE_TIMES;
            text(&canvas, &panel.name, (LEFT, top - 16), TEXT_SIZE, HPos::Left, INK, true)?;
            self.draw_times(&canvas, panel, top)?;
            self.draw_ratios(&canvas, panel, top + TIMES_HEIGHT + BELOW_PLANE + ABOVE_RATIOS)?;
        }
        canvas.present()
    }

    fn draw_times(&self, canvas: &Canvas, panel: &Panel, top: i32) -> Drawn {
        let lines = panel.times();
        let (low, high) = extent(values(&lines));
        let axis = (low / 1.3..high * 1.3).log_scale();
        let label = |us: &f64| significant(*us);
        self.draw_plane(canvas, (top, TIMES_HEIGHT), axis, "µs a layer, log scale", &label, |place| {
            self.draw_crossover(canvas, panel, top, place)?;
            lines.iter().try_for_each(|line| draw_line(canvas, line, place))
        })
    }

    fn draw_ratios(&self, canvas: &Canvas, panel: &Panel, top: i32) -> Drawn {
        let lines = panel.ratios();
        let (low, high) = extent(values(&lines).chain([1.0]));
        let range = (high - low).max(LEAST_RATIO_RANGE);
        let (low, high) = ((low - FREE_BELOW * range).max(0.0), high + FREE_SHARE * range);
        let label = |ratio: &f64| format!("{ratio:.2}");
        self.draw_plane(canvas, (top, RATIOS_HEIGHT), low..high, "SAF’s time / PAF’s time", &label, |place| {
            let (right, bottom) = (LEFT + self.seq_lens.width, top + RATIOS_HEIGHT);
            let one = place(self.seq_lens.ends.0, 1.0).1;
            canvas
                .draw(&Rectangle::new([(LEFT + 1, one), (right + RIGHT, bottom)], SLOWER_REGION.mix(0.6).filled()))?;
            draw_one(canvas, one, right)?;
            lines.iter().try_for_each(|line| draw_line(canvas, line, place))
        })
    }

    /// Where attention's FLOPs pass the FFN's, if that is between the least and the largest `seq_len`.
    fn draw_crossover(
        &self,
        canvas: &Canvas,
        panel: &Panel,
        top: i32,
        place: &dyn Fn(f64, f64) -> (i32, i32),
    ) -> Drawn {
        let (low, high) = extent(panel.cases.iter().map(|case| case.seq_len as f64));
        let Some(seq_len) = self.report.crossover_seq_len.filter(|seq_len| (low..=high).contains(seq_len)) else {
            return Ok(());
        };
        let x = place(seq_len, 1.0).0;
        line(canvas, vec![(x, top), (x, top + TIMES_HEIGHT)], INK, true)?;
        let label = format!("attention’s FLOPs pass the FFN’s: {seq_len:.0}");
        // On the side that has more room.
        let at = if x - LEFT > self.seq_lens.width / 2 { (x - 6, HPos::Right) } else { (x + 6, HPos::Left) };
        text(canvas, &label, (at.0, top + TIMES_HEIGHT - 12), LABEL_SIZE, at.1, INK, false)
    }

    /// A plane of so much height from `top` on, with its axes; `draw` puts the rest there, where it is told places.
    fn draw_plane<Y>(
        &self,
        canvas: &Canvas,
        (top, height): (i32, i32),
        axis: Y,
        name: &str,
        label: &dyn Fn(&f64) -> String,
        draw: impl FnOnce(&dyn Fn(f64, f64) -> (i32, i32)) -> Drawn,
    ) -> Drawn
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let right = LEFT + self.seq_lens.width;
        let area = canvas.clone().shrink((0, top), (right as u32, (height + BELOW_PLANE) as u32));
        let mut chart = ChartBuilder::on(&area)
            .margin_left(EDGE)
            .margin_bottom(EDGE)
            .set_label_area_size(LabelAreaPosition::Left, LEFT - EDGE)
            .set_label_area_size(LabelAreaPosition::Bottom, BELOW_PLANE - EDGE)
            .build_cartesian_2d((self.seq_lens.ends.0..self.seq_lens.ends.1).log_scale().base(2.0), axis)?;
        let names = ["seq_len, log scale", name];
        Axes { tokens: &self.seq_lens, names, labels: 6, label }.draw(&mut chart)?;
        draw(&|x, y| chart.plotting_area().map_coordinate(&(x, y)))
    }
}

/// What has to have room on the axis.
fn values(lines: &[Line]) -> impl Iterator<Item = f64> + '_ {
    let points = lines.iter().flat_map(|line| &line.points);
    points.flat_map(|(_, y, spread)| spread.map_or([*y, *y], |spread| [spread.low, spread.high]))
}

fn draw_line(canvas: &Canvas, of: &Line, place: &dyn Fn(f64, f64) -> (i32, i32)) -> Drawn {
    let colour = of.series.colour();
    let places: Vec<_> = of.points.iter().map(|&(x, y, _)| place(x, y)).collect();
    if places.len() > 1 {
        line(canvas, places.clone(), colour, !of.measured)?;
    }
    for (&(x, _, spread), &at) in of.points.iter().zip(&places) {
        if let Some(spread) = spread {
            interval(canvas, at.0, (place(x, spread.high).1, place(x, spread.low).1), colour)?;
        }
        marker(canvas, at, of.series.outline(), colour, of.measured)?;
    }
    Ok(())
}
