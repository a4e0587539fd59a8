//! What a plane has around and across it: its axes, and, of ratios, the line that parts wins from losses.

use plotters::chart::ChartContext;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::marks::{Canvas, Drawn, INK, TEXT_SIZE, font, text};
use super::place::TokenAxis;
use super::{GRID, LEFT, RIGHT, SLOWER};

/// The axes of a plane: tokens to the right, values upwards.
pub(super) struct Axes<'a> {
    pub(super) tokens: &'a TokenAxis,
    /// What either is, in words.
    pub(super) names: [&'a str; 2],
    /// How many labels the values have, about.
    pub(super) labels: usize,
    pub(super) label: &'a dyn Fn(&f64) -> String,
}

impl Axes<'_> {
    pub(super) fn draw<X, Y>(&self, chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>) -> Drawn
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .x_labels(self.tokens.most_labels(TEXT_SIZE))
            .x_label_formatter(&|tokens| format!("{tokens:.0}"))
            .x_label_style(font(TEXT_SIZE).color(&INK))
            .x_desc(self.names[0])
            .y_labels(self.labels)
            .y_label_formatter(&self.label)
            .y_label_style(font(TEXT_SIZE).color(&INK))
            .y_desc(self.names[1])
            .axis_desc_style(font(TEXT_SIZE).color(&INK))
            .draw()
    }
}

/// Draws the line at the height `one`, where SAF and PAF take as long, across a plane that ends at `right`, and beside it on which side
/// PAF wins.
pub(super) fn draw_one(canvas: &Canvas, one: i32, right: i32) -> Drawn {
    canvas.draw(&PathElement::new([(LEFT, one), (right + RIGHT, one)], INK.stroke_width(2)))?;
    text(canvas, "PAF faster", (right + 10, one - 12), TEXT_SIZE, HPos::Left, INK, true)?;
    text(canvas, "PAF slower", (right + 10, one + 14), TEXT_SIZE, HPos::Left, SLOWER, true)
}
