//! Result files, whichever command wrote them.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::report::{self, Run};
use super::{attention, compare, complexity, gemm, norm, peak, plan};

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
    #[error(
        "is no result of `paf speedup`, `paf compare`, `paf plan`, `paf complexity`, `paf kernels` or `paf peak`: {0}"
    )]
    Json(#[from] serde_json::Error),
    /// It is of another version, or from elsewhere.
    #[error("has schema {0:?}, this build reads {SCHEMAS:?}")]
    Schema(String),
}

/// The schemas that [`Results::parse`] reads.
pub const SCHEMAS: [&str; 8] = [
    report::SCHEMA,
    compare::SCHEMA,
    plan::SCHEMA,
    complexity::SCHEMA,
    gemm::SCHEMA,
    attention::SCHEMA,
    norm::SCHEMA,
    peak::SCHEMA,
];

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
