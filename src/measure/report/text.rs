//! Numbers, names and tables, as all reports write them.

use serde::Serialize;

/// Pretty JSON of a report, with a newline at the end.
pub(in crate::measure) fn json(report: &impl Serialize) -> String {
    serde_json::to_string_pretty(report).expect("a report holds only numbers and strings") + "\n"
}

/// Three significant digits, for rates of a CPU and of a large GPU alike.
pub(in crate::measure) fn significant(x: f64) -> String {
    let digits = 2 - x.abs().max(1e-9).log10().floor() as i32;
    format!("{x:.*}", digits.clamp(0, 9) as usize)
}

/// A share that somebody has chosen, in per cent: `0.5` for 0.005, without the digits that binary fractions add.
pub fn percent(share: f64) -> String {
    let text = format!("{:.9}", share * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A batch shape in a table: `8 × 512`, or `8 packed, ≤ 512` where sequences follow each other without padding.
pub fn shape_name(batch: usize, seq_len: usize, packed: bool) -> String {
    if packed { format!("{batch} packed, ≤ {seq_len}") } else { format!("{batch} × {seq_len}") }
}

/// A table for a terminal.
pub(in crate::measure) fn table<const N: usize>(columns: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(columns);
    for cells in rows {
        table.add_row(cells);
    }
    table.to_string()
}

/// A table in Markdown.
pub(in crate::measure) fn markdown<const N: usize>(
    columns: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&columns) + &line(&["---"; N]);
    for cells in rows {
        text += &line(&cells.each_ref().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_they_were_chosen() {
        let shares = [0.005, 0.007, 0.07, 0.02, 0.5, 1.0, 1e-8, 1.0 / 3.0];
        assert_eq!(shares.map(percent), ["0.5", "0.7", "7", "2", "50", "100", "0.000001", "33.333333333"]);
    }

    #[test]
    fn three_digits_count() {
        assert_eq!(
            [0.010_46, 0.1046, 1.0, 35.66, 391.4, 1023.0].map(significant),
            ["0.0105", "0.105", "1.00", "35.7", "391", "1023"]
        );
    }
}
