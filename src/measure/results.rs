//! Result files, whichever command wrote them.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::report::{self, Run};
use super::warnings::Doubts;
use super::{attention, compare, complexity, gemm, norm, peak, plan, trace};

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Results {
    /// Of `paf speedup`.
    Speedup(report::Report),
    /// Of `paf compare`.
    Compare(compare::Report),
    /// Of `paf plan`.
    Plan(plan::Report),
    /// Of `paf complexity`.
    Complexity(complexity::Report),
    /// Of `paf kernels gemm`.
    Gemm(gemm::Report),
    /// Of `paf kernels attention`.
    Attention(attention::Report),
    /// Of `paf kernels norm`.
    Norm(norm::Report),
    /// Of `paf peak`.
    Peak(peak::Report),
}

/// Why a text holds no results.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is not JSON, has no schema, or not what its schema says.
    #[error("is no result of {writers}: {0}", writers = commands("or"))]
    Json(#[from] serde_json::Error),
    /// It is of another version, or from elsewhere.
    #[error("has schema {0:?}, this build reads {read:?}", read = readable())]
    Schema(String),
}

/// The schemas of result files, each with the command that writes such files with `--json`. Of a timeline there is
/// [`trace::Trace`]; the others are what [`Results::parse`] reads.
pub const SCHEMAS: [(&str, &str); 9] = [
    (report::SCHEMA, "paf speedup"),
    (compare::SCHEMA, "paf compare"),
    (plan::SCHEMA, "paf plan"),
    (complexity::SCHEMA, "paf complexity"),
    (trace::SCHEMA, "paf trace"),
    (gemm::SCHEMA, "paf kernels gemm"),
    (attention::SCHEMA, "paf kernels attention"),
    (norm::SCHEMA, "paf kernels norm"),
    (peak::SCHEMA, "paf peak"),
];

/// Those that [`Results::parse`] reads.
fn readable() -> Vec<&'static str> {
    SCHEMAS.into_iter().map(|(schema, _)| schema).filter(|schema| *schema != trace::SCHEMA).collect()
}

/// The commands that write them, in words: `paf speedup`, `paf compare` and so on, with `and` or `or` before the last one.
pub fn commands(conjunction: &str) -> String {
    let names = SCHEMAS.map(|(_, command)| format!("`{command}`"));
    let (last, others) = names.split_last().expect("there are schemas");
    format!("{} {conjunction} {last}", others.join(", "))
}

/// The schema that a result file's text states.
///
/// # Errors
/// [`Unreadable::Json`] if it states none.
pub fn schema(text: &str) -> Result<String, Unreadable> {
    #[derive(Deserialize)]
    struct Schema {
        schema: String,
    }
    let Schema { schema } = serde_json::from_str(text)?;
    Ok(schema)
}

impl Results {
    /// Reads a result file's text, by the schema that it states.
    ///
    /// # Errors
    /// [`Unreadable`], which follows a file's name.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        fn of<T: DeserializeOwned>(text: &str, results: impl FnOnce(T) -> Results) -> Result<Results, Unreadable> {
            Ok(results(serde_json::from_str(text)?))
        }
        let schema = schema(text)?;
        match schema.as_str() {
            report::SCHEMA => of(text, Self::Speedup),
            compare::SCHEMA => of(text, Self::Compare),
            plan::SCHEMA => of(text, Self::Plan),
            complexity::SCHEMA => of(text, Self::Complexity),
            gemm::SCHEMA => of(text, Self::Gemm),
            attention::SCHEMA => of(text, Self::Attention),
            norm::SCHEMA => of(text, Self::Norm),
            peak::SCHEMA => of(text, Self::Peak),
            _ => Err(Unreadable::Schema(schema)),
        }
    }

    /// When, by what build, on what machine.
    pub fn run(&self) -> &Run {
        match self {
            Self::Speedup(report) => &report.run,
            Self::Compare(report) => &report.run,
            Self::Plan(report) => &report.run,
            Self::Complexity(report) => &report.run,
            Self::Gemm(report) => &report.run,
            Self::Attention(report) => &report.run,
            Self::Norm(report) => &report.run,
            Self::Peak(report) => &report.run,
        }
    }

    /// How it was measured, in words.
    pub fn method(&self) -> &str {
        match self {
            Self::Speedup(report) => &report.method,
            Self::Compare(report) => &report.method,
            Self::Plan(report) => &report.method,
            Self::Complexity(report) => &report.method,
            Self::Gemm(report) => &report.method,
            Self::Attention(report) => &report.method,
            Self::Norm(report) => &report.method,
            Self::Peak(report) => &report.method,
        }
    }

    fn doubts(&self) -> Doubts<'_> {
        match self {
            Self::Speedup(report) => report.doubts(),
            Self::Compare(report) => report.doubts(),
            Self::Plan(report) => report.doubts(),
            Self::Complexity(report) => report.doubts(),
            Self::Gemm(report) => report.doubts(),
            Self::Attention(report) => report.doubts(),
            Self::Norm(report) => report.doubts(),
            Self::Peak(report) => report.doubts(),
        }
    }

    /// What casts doubt on what was measured, a line for each kind of doubt, with how many rows or measurements it is about and the worst.
    pub fn warnings(&self) -> Vec<String> {
        self.doubts().grouped()
    }

    /// The tables at a glance, in Markdown: of comparisons SAF beside PAF, ours beside PyTorch's; of the others all that there is.
    pub fn summary(&self) -> String {
        match self {
            Self::Speedup(report) => report.summary(),
            Self::Compare(report) => report.summary(),
            others => others.markdown(),
        }
    }

    /// Its tables, in Markdown.
    pub fn markdown(&self) -> String {
        match self {
            Self::Speedup(report) => report.markdown(),
            Self::Compare(report) => report.markdown(),
            Self::Plan(report) => report.markdown(),
            Self::Complexity(report) => report.markdown(),
            Self::Gemm(report) => report.markdown(),
            Self::Attention(report) => report.markdown(),
            Self::Norm(report) => report.markdown(),
            Self::Peak(report) => report.markdown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_a_command_writes_has_its_schema() {
        let mut documents: Vec<_> = super::super::schema::documents().iter().map(|document| document.schema).collect();
        let mut schemas = SCHEMAS.map(|(schema, _)| schema);
        documents.sort_unstable();
        schemas.sort_unstable();
        assert_eq!(documents, schemas);
    }

    #[test]
    fn every_schema_but_a_timelines_is_read() {
        for (schema, command) in SCHEMAS {
            let error = Results::parse(&format!("{{\"schema\": {schema:?}}}")).unwrap_err();
            assert_eq!(matches!(error, Unreadable::Schema(_)), schema == trace::SCHEMA, "{error}");
            assert!(Results::parse("").unwrap_err().to_string().contains(&format!("`{command}`")));
        }
        let error = Results::parse("{\"schema\": \"other/1\"}").unwrap_err().to_string();
        assert!(error.contains(peak::SCHEMA) && !error.contains(trace::SCHEMA), "{error}");
        assert!(commands("and").ends_with("`paf kernels norm` and `paf peak`"));
    }
}
