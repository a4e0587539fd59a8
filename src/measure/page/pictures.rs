//! Pictures in the page.

use super::write::Escaped;

/// An SVG document within the page, with what it shows in words; it scrolls by itself where it is wider than the page.
pub(super) fn figure(svg: &str, title: &str, caption: &str) -> String {
    let (title, caption) = (Escaped(title), Escaped(caption));
    // The element alone, without what may stand before it, and with a title as its first child.
    let element = svg.find("<svg").map_or(svg, |start| &svg[start..]);
    let (open, rest) = element.split_once('>').unwrap_or((element, ""));
    let open = open.replacen("<svg", "<svg role=\"img\"", 1);
    format!(
        "<figure>\n<div class=\"scroll\" role=\"region\" aria-label=\"{title}\" tabindex=\"0\">\n{open}><title>{title}</title>{rest}</div>\n\
         <figcaption>{caption}</figcaption>\n</figure>\n"
    )
}
