//! What is put on the canvas: text, markers, intervals, and the legend that explains them.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::place::text_width;

pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

pub(super) const TITLE_SIZE: f64 = 18.0;
pub(super) const TEXT_SIZE: f64 = 13.0;
pub(super) const LABEL_SIZE: f64 = 12.0;
pub(super) const LINE_HEIGHT: i32 = 15;

pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

/// The colour of a schedule. Those of the library stay apart for colour-blind eyes; others have the rest in turn.
pub(super) fn colour(schedule: &str, schedules: &[&str]) -> RGBColor {
    const OTHERS: [RGBColor; 3] = [RGBColor(0xb0, 0x7a, 0x00), RGBColor(0x33, 0x99, 0xcc), RGBColor(0x88, 0x22, 0x55)];
    match schedule {
        "serial" => RGBColor(0x66, 0x66, 0x66),
        "two-stream" => RGBColor(0x00, 0x72, 0xb2),
        "fused" => RGBColor(0xd5, 0x5e, 0x00),
        "hybrid" => RGBColor(0x00, 0x8a, 0x66),
        "auto" => RGBColor(0xaa, 0x33, 0x99),
        other => OTHERS[schedules.iter().position(|&name| name == other).unwrap_or(0) % OTHERS.len()],
    }
}

/// Outlines of the markers of sequence lengths, shortest first; after the last comes the first again.
const MARKERS: [&[(i32, i32)]; 6] = [
    &[], // a circle
    &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    &[(0, -5), (5, 4), (-5, 4)],
    &[(0, -6), (5, 0), (0, 6), (-5, 0)],
    &[(0, 5), (5, -4), (-5, -4)],
    &[(-2, -5), (2, -5), (2, -2), (5, -2), (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2), (-5, 2), (-5, -2), (-2, -2)],
];

/// The marker of the sequence length with this index.
pub(super) fn marker(canvas: &Canvas, (x, y): (i32, i32), index: usize, colour: RGBColor, filled: bool) -> Drawn {
    let fill = if filled { colour } else { WHITE };
    let outline = MARKERS[index % MARKERS.len()];
    if outline.is_empty() {
        canvas.draw(&Circle::new((x, y), 4, fill.filled()))?;
        return canvas.draw(&Circle::new((x, y), 4, colour.stroke_width(1)));
    }
    let points: Vec<_> = outline.iter().chain(&outline[..1]).map(|(dx, dy)| (x + dx, y + dy)).collect();
    canvas.draw(&Polygon::new(points.clone(), fill.filled()))?;
    canvas.draw(&PathElement::new(points, colour.stroke_width(1)))
}

/// A bar from the height `ends.0` down to `ends.1` with a cap at either end.
pub(super) fn interval(canvas: &Canvas, x: i32, ends: (i32, i32), colour: RGBColor) -> Drawn {
    let lines = [[(x, ends.0), (x, ends.1)], [(x - 3, ends.0), (x + 3, ends.0)], [(x - 3, ends.1), (x + 3, ends.1)]];
    lines.into_iter().try_for_each(|line| canvas.draw(&PathElement::new(line, colour.stroke_width(1))))
}

/// A sans-serif font, whichever the viewer has, of `size` px.
pub(super) fn font(size: f64) -> FontDesc<'static> {
    // The SVG back end divides by this.
    ("sans-serif", size * 1.24).into_font()
}

/// A line of text with its left end, middle or right end at `at`, vertically its middle.
pub(super) fn text(
    canvas: &Canvas,
    text: &str,
    at: (i32, i32),
    size: f64,
    side: HPos,
    colour: RGBColor,
    bold: bool,
) -> Drawn {
    let font = if bold { font(size).style(FontStyle::Bold) } else { font(size) };
    let is_in_xml = |c: char| !c.is_control() && !['\u{fffe}', '\u{ffff}'].contains(&c);
    let text: String = text.chars().map(|c| if is_in_xml(c) { c } else { char::REPLACEMENT_CHARACTER }).collect();
    canvas.draw_text(&text, &font.color(&colour).pos(Pos::new(side, VPos::Center)), at)
}

/// What stands before a text of the legend.
#[derive(Clone, Copy)]
pub(super) enum Symbol {
    None,
    Interval,
    Marker {
        index: usize,
        colour: RGBColor,
        filled: bool,
    },
    /// A piece of a line, dashed or not.
    Line {
        dashed: bool,
    },
}

/// A line from point to point, of dashes if it is `dashed`.
pub(super) fn line(canvas: &Canvas, points: Vec<(i32, i32)>, colour: RGBColor, dashed: bool) -> Drawn {
    if dashed {
        canvas.draw(&DashedPathElement::new(points, 8, 5, colour))
    } else {
        canvas.draw(&PathElement::new(points, colour))
    }
}

/// What colours and markers mean, in lines.
pub(super) struct Legend {
    /// Places are relative to the legend's.
    entries: Vec<(i32, i32, Symbol, String)>,
    /// Of all lines.
    pub(super) height: i32,
}

impl Legend {
    const LINE_HEIGHT: i32 = 22;
    const SYMBOL_WIDTH: i32 = 16;
    const GAP: i32 = 18;

    /// Entries that go on a new line where they would be wider than `width`.
    pub(super) fn new(schedules: &[&str], seq_lens: &[usize], confidence: f64, width: i32) -> Self {
        let marker = |index, colour, filled| Symbol::Marker { index, colour, filled };
        let mut by_colour = vec![(Symbol::None, "PAF’s schedule, from left to right:".to_owned())];
        by_colour.extend(schedules.iter().map(|&name| (marker(0, colour(name, schedules), true), name.to_owned())));
        let mut by_outline = vec![(Symbol::None, "seq_len:".to_owned())];
        by_outline.extend(seq_lens.iter().enumerate().map(|(i, seq_len)| (marker(i, INK, true), seq_len.to_string())));
        let percent = (confidence * 100.0).floor();
        let by_interval = vec![
            (Symbol::Interval, format!("{percent:.0} % interval, if longer than the marker")),
            (marker(0, INK, true), "above 1: PAF wins".to_owned()),
            (marker(0, INK, false), "reaches 1 or less: PAF does not win".to_owned()),
        ];

        Self::of(vec![by_colour, by_outline, by_interval], width)
    }

    /// Groups of entries, each group on lines of its own.
    pub(super) fn of(groups: Vec<Vec<(Symbol, String)>>, width: i32) -> Self {
        let (mut entries, mut y) = (Vec::new(), Self::LINE_HEIGHT / 2);
        for group in groups {
            let mut x = 0;
            for (symbol, text) in group {
                let needed = Self::symbol_width(symbol) + text_width(&text, TEXT_SIZE, false).ceil() as i32;
                if x > 0 && x + needed > width {
                    (x, y) = (0, y + Self::LINE_HEIGHT);
                }
                entries.push((x, y, symbol, text));
                x += needed + Self::GAP;
            }
            y += Self::LINE_HEIGHT;
        }
        Self { entries, height: y - Self::LINE_HEIGHT / 2 }
    }

    fn symbol_width(symbol: Symbol) -> i32 {
        if matches!(symbol, Symbol::None) { 0 } else { Self::SYMBOL_WIDTH }
    }

    /// Draws it with its upper left corner at `corner`.
    pub(super) fn draw(&self, canvas: &Canvas, corner: (i32, i32)) -> Drawn {
        for (x, y, symbol, entry) in &self.entries {
            let (x, y) = (corner.0 + x, corner.1 + y);
            let middle = x + Self::SYMBOL_WIDTH / 2 - 3;
            match *symbol {
                Symbol::None => {}
                Symbol::Interval => interval(canvas, middle, (y - 7, y + 7), INK)?,
                Symbol::Marker { index, colour, filled } => marker(canvas, (middle, y), index, colour, filled)?,
                Symbol::Line { dashed } => line(canvas, vec![(x - 6, y), (x + 10, y)], INK, dashed)?,
            }
            text(canvas, entry, (x + Self::symbol_width(*symbol), y), TEXT_SIZE, HPos::Left, INK, false)?;
        }
        Ok(())
    }
}
