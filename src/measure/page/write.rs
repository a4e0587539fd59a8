//! Text, tables and lists as markup.

use std::fmt::{self, Display, Write};

/// A text of any content, as markup that shows it.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                // XML has no way to say these.
                c if c.is_control() || ['\u{fffe}', '\u{ffff}'].contains(&c) => {
                    f.write_char(char::REPLACEMENT_CHARACTER)?
                }
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A table that scrolls by itself where it is wider than the page.
pub(super) fn table<const N: usize>(
    caption: &str,
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows = rows.into_iter().map(|row| row.to_vec());
    any_table(caption, &columns.map(str::to_owned), rows)
}

fn any_table(caption: &str, columns: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let label = Escaped(caption);
    let mut text = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{label}\" tabindex=\"0\">\n<table>\n<caption>{label}</caption>\n<thead><tr>"
    );
    for column in columns {
        text += &format!("<th scope=\"col\">{}</th>", Escaped(column));
    }
    text += "</tr></thead>\n<tbody>\n";
    for row in rows {
        text += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let cell = Escaped(cell);
            text += &if i == 0 { format!("<th scope=\"row\">{cell}</th>") } else { format!("<td>{cell}</td>") };
        }
        text += "</tr>\n";
    }
    text + "</tbody>\n</table>\n</div>\n"
}

/// The lines of a list.
pub(super) fn list(lines: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let lines: String = lines.into_iter().map(|line| format!("<li>{}</li>\n", Escaped(line.as_ref()))).collect();
    if lines.is_empty() { lines } else { format!("<ul>\n{lines}</ul>\n") }
}

/// A part that can be folded.
pub(super) fn details(summary: &str, body: &str) -> String {
    format!("<details>\n<summary>{}</summary>\n{body}</details>\n", Escaped(summary))
}

/// The Markdown of a report, which has paragraphs, tables and lists, and no other markup.
pub(super) fn markdown(text: &str, caption: &str) -> String {
    let mut html = String::new();
    let mut lines = text.lines().peekable();
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    let is_rule = |line: &str| line.chars().all(|c| "|- ".contains(c));
    while let Some(line) = lines.next() {
        if line.starts_with('|') {
            let columns = cells(line);
            let mut rows = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('|')) {
                if !is_rule(line) {
                    rows.push(cells(line));
                }
            }
            html += &any_table(caption, &columns, rows.into_iter());
        } else if let Some(first) = line.strip_prefix("- ") {
            let mut items = vec![first];
            while let Some(line) = lines.next_if(|line| line.starts_with("- ")) {
                items.push(line.trim_start_matches("- "));
            }
            html += &list(items);
        } else if !line.trim().is_empty() {
            html += &format!("<p>{}</p>\n", Escaped(&line.replace('*', "")));
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_shown_as_text() {
        assert_eq!(
            Escaped("<b a=\"'\"> & \u{0}\u{7f}é").to_string(),
            "&lt;b a=&quot;&#39;&quot;&gt; &amp; \u{fffd}\u{fffd}é"
        );
    }

    #[test]
    fn markdown_becomes_paragraphs_tables_and_lists() {
        let text = "A *line*.\n\n| a | b |\n| --- | --- |\n| 1 × 2 | <x> |\n| – | 4 |\n\n- one\n- two\nend\n";
        let html = markdown(text, "cap");
        for part in [
            "<p>A line.</p>",
            "<caption>cap</caption>",
            "<th scope=\"col\">b</th>",
            "<th scope=\"row\">1 × 2</th><td>&lt;x&gt;</td>",
            "<th scope=\"row\">–</th><td>4</td>",
            "<li>one</li>\n<li>two</li>",
            "<p>end</p>",
        ] {
            assert!(html.contains(part), "{part} is missing in: {html}");
        }
        assert_eq!(html.matches("<tr>").count(), 3);
        roxmltree::Document::parse(&format!("<div>{html}</div>")).unwrap();
    }
}
