//! The speedup as a picture: SAF's time over that of PAF beside the number of tokens, with the region where PAF loses.
//!
//! What is drawn is collected in `series`, where it goes is decided in `place`, what a point looks like is in `marks`, what a plane
//! has around it in `plane`. The picture depends on the result files alone: coordinates are whole pixels, and text needs no font to
//! be measured.

mod complexity;
mod marks;
mod place;
mod plane;
mod series;

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

pub use self::complexity::complexity;
use self::marks::{Canvas, Drawn, INK, LABEL_SIZE, LINE_HEIGHT, Legend, TEXT_SIZE, TITLE_SIZE};
use self::marks::{colour, interval, marker, text};
use self::place::{TokenAxis, extent, side_by_side, text_width};
use self::plane::{Axes, draw_one};
use self::series::{Panel, Point, Shape};
use super::report::Report;
use crate::error::Result;

/// Height of the plane of a panel, px.
const PLANE_HEIGHT: i32 = 480;
/// Room left of the planes, for the axis of ratios, and right of them, for the names of the regions.
const LEFT: i32 = 92;
const RIGHT: i32 = 104;
/// Room above the legend, for the title; above a plane, for its title; below it, for the axis of tokens without the shapes'
/// labels.
const ABOVE_LEGEND: i32 = 48;
const ABOVE_PLANE: i32 = 60;
const BELOW_PLANE: i32 = 72;
/// Between the edge of the picture and the names of the axes.
const EDGE: i32 = 10;
/// From a plane down to the shapes' labels.
const LABELS_BELOW_PLANE: i32 = 26;
/// Between the schedules of a shape, and between shapes.
const SCHEDULE_STEP: i32 = 10;
const SHAPE_GAP: f64 = 8.0;
/// Of the range of ratios, so much is left free at either end.
const FREE_SHARE: f64 = 0.08;
const LEAST_RATIO_RANGE: f64 = 0.1;

const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const BAND: RGBColor = RGBColor(0x55, 0x66, 0x88);
const SLOWER: RGBColor = RGBColor(0xa6, 0x1e, 0x12);
const SLOWER_REGION: RGBColor = RGBColor(0xfb, 0xe3, 0xdf);

const TITLE: &str = "Speedup of parallel attention and FFN (PAF) over serial (SAF)";
const TOKENS: &str = "tokens of the batch (batch × seq_len, or the sum of lengths), log scale";
const RATIO: &str = "SAF’s time / PAF’s time (median of paired ratios)";

/// The ratios of `reports` as an SVG document: a panel for each model, element type, device, design and mode, whose shapes
/// may come from several files. A marker is filled if its whole interval lies above 1, so that PAF wins, and hollow if not.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) if a file has no cases, a ratio has no baseline in its mode or is none, a
/// shape was measured twice under the same conditions, or there is no parallel variant.
pub fn svg(reports: &[Report]) -> Result<String> {
    let panels = series::panels(reports)?;
    let mut document = String::new();
    Figure::new(&panels).draw(&mut document).expect("writing into a string does not fail");
    Ok(document)
}

/// What the panels have in common.
struct Figure<'a> {
    panels: &'a [Panel<'a>],
    schedules: Vec<&'a str>,
    seq_lens: Vec<usize>,
    tokens: TokenAxis,
    /// Ends of the axis of ratios; 1 is between them.
    ratios: (f64, f64),
    width: i32,
    /// Height of the shapes' labels.
    labels_height: i32,
    /// Lowest confidence of the intervals, 0.95 at most.
    confidence: f64,
}

impl<'a> Figure<'a> {
    fn new(panels: &'a [Panel<'a>]) -> Self {
        let schedules = series::schedules(panels);
        let shapes = || panels.iter().flat_map(|panel| &panel.shapes);
        let ratios = || shapes().flat_map(|shape| &shape.points).map(|point| point.ratio);

        let room = |shape: &Shape| (shape.tokens, shape_width(shape, schedules.len()));
        let rooms: Vec<Vec<_>> = panels.iter().map(|panel| panel.shapes.iter().map(room).collect()).collect();
        let tokens = TokenAxis::new(&rooms);
        let title_width = |title: String, bold| text_width(&title, TEXT_SIZE, bold).ceil() as i32;
        let titles =
            panels.iter().map(|panel| title_width(panel.title(), true).max(title_width(panel.subtitle(), false)));
        let width = LEFT + titles.fold(tokens.width, i32::max) + RIGHT;

        let (low, high) = extent(ratios().flat_map(|ratio| [ratio.low, 1.0, ratio.high]));
        let free = FREE_SHARE * (high - low).max(LEAST_RATIO_RANGE);
        Self {
            panels,
            seq_lens: series::seq_lens(panels),
            tokens,
            ratios: ((low - free).max(0.0), high + free),
            width,
            labels_height: LINE_HEIGHT * shapes().map(|shape| shape.label().len()).max().unwrap_or(0) as i32,
            confidence: ratios().map(|ratio| ratio.confidence).fold(0.95, f64::min),
            schedules,
        }
    }

    fn draw(&self, document: &mut String) -> Drawn {
        let legend = Legend::new(&self.schedules, &self.seq_lens, self.confidence, self.width - LEFT);
        let header = ABOVE_LEGEND + legend.height;
        let panel_height = ABOVE_PLANE + PLANE_HEIGHT + BELOW_PLANE + self.labels_height;
        let height = header + panel_height * self.panels.len() as i32;
        let canvas = SVGBackend::with_string(document, (self.width as u32, height as u32)).into_drawing_area();
        canvas.fill(&WHITE)?;
        text(&canvas, TITLE, (LEFT, ABOVE_LEGEND / 2 + 2), TITLE_SIZE, HPos::Left, INK, true)?;
        legend.draw(&canvas, (LEFT, ABOVE_LEGEND))?;
        for (i, panel) in self.panels.iter().enumerate() {
            self.draw_panel(&canvas, panel, header + panel_height * i as i32 + ABOVE_PLANE)?;
        }
        canvas.present()
    }

    /// Draws a panel whose plane begins at the height `top`.
    fn draw_panel(&self, canvas: &Canvas, panel: &Panel, top: i32) -> Drawn {
        let (right, bottom) = (LEFT + self.tokens.width, top + PLANE_HEIGHT);
        text(canvas, &panel.title(), (LEFT, top - 34), TEXT_SIZE, HPos::Left, INK, true)?;
        text(canvas, &panel.subtitle(), (LEFT, top - 16), TEXT_SIZE, HPos::Left, INK, false)?;

        let below = BELOW_PLANE + self.labels_height;
        let area = canvas.clone().shrink((0, top), (right as u32, (PLANE_HEIGHT + below) as u32));
        let mut chart = ChartBuilder::on(&area)
            .margin_left(EDGE)
            .margin_bottom(EDGE)
            .set_label_area_size(LabelAreaPosition::Left, LEFT - EDGE)
            .set_label_area_size(LabelAreaPosition::Bottom, below - EDGE)
            .build_cartesian_2d(
                (self.tokens.ends.0..self.tokens.ends.1).log_scale().base(2.0),
                self.ratios.0..self.ratios.1,
            )?;

        // What lies under the points: the region of losses, a band for each shape, the grid.
        let pixel = |tokens, ratio| chart.plotting_area().map_coordinate(&(tokens, ratio));
        let one = pixel(self.tokens.ends.0, 1.0).1;
        let wanted: Vec<_> = panel.shapes.iter().map(|shape| f64::from(pixel(shape.tokens as f64, 1.0).0)).collect();
        let widths: Vec<_> = panel.shapes.iter().map(|shape| shape_width(shape, self.schedules.len())).collect();
        let places = side_by_side(&wanted, &widths, f64::from(LEFT), f64::from(right));
        canvas.draw(&Rectangle::new([(LEFT, one), (right + RIGHT, bottom)], SLOWER_REGION.filled()))?;
        for (place, width) in places.iter().zip(&widths) {
            let half = (width - SHAPE_GAP / 2.0) / 2.0;
            let ends = [(place - half).round() as i32, (place + half).round() as i32];
            let end = bottom + LABELS_BELOW_PLANE + self.labels_height + 4;
            canvas.draw(&Rectangle::new([(ends[0], top), (ends[1], end)], BAND.mix(0.08).filled()))?;
        }
        let label = |ratio: &f64| format!("{ratio:.2}");
        Axes { tokens: &self.tokens, names: [TOKENS, RATIO], labels: 8, label: &label }.draw(&mut chart)?;
        draw_one(canvas, one, right)?;

        let places: Vec<_> = places.into_iter().map(|place| place.round() as i32).collect();
        let height = |ratio| chart.plotting_area().map_coordinate(&(self.tokens.ends.0, ratio)).1;
        let label_line = |line: usize| bottom + LABELS_BELOW_PLANE + LINE_HEIGHT * line as i32 + LINE_HEIGHT / 2;
        for (line, name) in ["batch ×", "seq_len"].into_iter().enumerate() {
            text(canvas, name, (LEFT - 8, label_line(line)), LABEL_SIZE, HPos::Right, INK, false)?;
        }
        self.draw_trends(canvas, &panel.shapes, &places, &height)?;
        for (shape, &x) in panel.shapes.iter().zip(&places) {
            for (line, label) in shape.label().iter().enumerate() {
                text(canvas, label, (x, label_line(line)), LABEL_SIZE, HPos::Center, INK, false)?;
            }
            self.draw_points(canvas, shape, x, &height)?;
        }
        Ok(())
    }

    /// Draws the points of a shape around `x`.
    fn draw_points(&self, canvas: &Canvas, shape: &Shape, x: i32, height: &dyn Fn(f64) -> i32) -> Drawn {
        let index = self.seq_lens.iter().position(|&seq_len| seq_len == shape.seq_len()).unwrap_or(0);
        for point in &shape.points {
            let (x, colour) = (x + self.shift(point), colour(point.schedule, &self.schedules));
            interval(canvas, x, (height(point.ratio.high), height(point.ratio.low)), colour)?;
            marker(canvas, (x, height(point.ratio.median)), index, colour, point.is_win())?;
        }
        Ok(())
    }

    /// Draws thin lines from batch to larger batch of sequences of the same length.
    fn draw_trends(&self, canvas: &Canvas, shapes: &[Shape], places: &[i32], height: &dyn Fn(f64) -> i32) -> Drawn {
        for &seq_len in &self.seq_lens {
            for &schedule in &self.schedules {
                let alike = |shape: &Shape| shape.seq_len() == seq_len && !shape.has_lengths();
                let line: Vec<_> = std::iter::zip(shapes, places)
                    .filter(|(shape, _)| alike(shape))
                    .filter_map(|(shape, place)| {
                        let point = shape.points.iter().find(|point| point.schedule == schedule)?;
                        Some((place + self.shift(point), height(point.ratio.median)))
                    })
                    .collect();
                if line.len() > 1 {
                    let style = colour(schedule, &self.schedules).mix(0.4).stroke_width(1);
                    canvas.draw(&PathElement::new(line, style))?;
                }
            }
        }
        Ok(())
    }

    /// How far right of its shape's place a point is, by its schedule.
    fn shift(&self, point: &Point) -> i32 {
        let i = self.schedules.iter().position(|&name| name == point.schedule).unwrap_or(0) as i32;
        (2 * i + 1 - self.schedules.len() as i32) * SCHEDULE_STEP / 2
    }
}

/// Room that a shape needs on the axis of tokens, px.
fn shape_width(shape: &Shape, schedules: usize) -> f64 {
    let label = shape.label().iter().map(|line| text_width(line, LABEL_SIZE, false)).fold(0.0, f64::max);
    f64::from(schedules as i32 * SCHEDULE_STEP).max(label) + SHAPE_GAP
}

#[cfg(test)]
mod tests;
