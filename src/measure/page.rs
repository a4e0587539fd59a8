//! Result files as one page: HTML that needs nothing else, neither scripts nor another host, and is well-formed XML.
//!
//! What a section says is in `sections`, how tables are written in `write`, what is drawn in `pictures` and `timeline`. Whatever comes
//! from a file is escaped.

mod pictures;
mod sections;
mod timeline;
mod write;

pub use timeline::Trace;

use self::sections::Section;
use self::write::Escaped;
use super::results::{self, Results};
use super::trace;
use crate::error::{Error, Result};

/// One file of the folder that the page is made of.
#[derive(Debug)]
pub struct File {
    /// Its name, as the page gives it.
    pub name: String,
    /// What it holds.
    pub content: Content,
}

/// What a file holds.
#[derive(Debug)]
pub enum Content {
    /// Results with a schema.
    Results(Box<Results>),
    /// A timeline, and, if `paf trace` wrote it, all that the file says.
    Trace(Trace, Option<Box<trace::Trace>>),
    /// Something else: why it is not shown.
    Other(String),
}

impl File {
    /// Reads a file's text: results, or a timeline in Chrome's trace format.
    pub fn read(name: impl Into<String>, text: &str) -> Self {
        let name = name.into();
        let content = if Trace::is_one(text) { timeline(text) } else { results(text) };
        Self { name, content }
    }
}

fn timeline(text: &str) -> Content {
    let ours = results::schema(text).is_ok_and(|schema| schema == trace::SCHEMA);
    let whole = || if ours { serde_json::from_str(text).map(Some) } else { Ok(None) };
    match (Trace::parse(text), whole()) {
        (Ok(drawn), Ok(whole)) => Content::Trace(drawn, whole),
        (Err(error), _) => Content::Other(error.to_string()),
        (_, Err(error)) => Content::Other(format!("is no result of `paf trace`: {error}")),
    }
}

fn results(text: &str) -> Content {
    Results::parse(text)
        .map_or_else(|error| Content::Other(error.to_string()), |results| Content::Results(Box::new(results)))
}

const STYLE: &str = include_str!("page/style.css");
const TITLE: &str = "Parallel attention and FFN beside serial: what was measured";

/// The page.
///
/// # Errors
/// [`Error::Mismatch`] if no file holds results or a timeline.
pub fn html(files: &[File]) -> Result<String> {
    if files.iter().all(|file| matches!(file.content, Content::Other(_))) {
        return Err(Error::Mismatch {
            operation: "report",
            what: "number of result files",
            got: format!("0 of {} files", files.len()),
            expected: "at least 1".into(),
        });
    }
    let sections: Vec<Section> = sections::all(files);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n<p>{}</p>\n</header>\n",
        Escaped(&sections::summary(files)),
        title = Escaped(TITLE),
    );
    page += "<nav aria-label=\"Sections\">\n<ul>\n";
    for Section { id, title, .. } in &sections {
        page += &format!("<li><a href=\"#{id}\">{title}</a></li>\n");
    }
    page += "</ul>\n</nav>\n<main>\n";
    for Section { id, title, body } in &sections {
        page += &format!(
            "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n{body}</section>\n"
        );
    }
    Ok(page + "</main>\n</body>\n</html>\n")
}

#[cfg(test)]
mod tests;
