//! JSON Schemas (draft 2020-12) of the result files, made of the types that read and write them: `benches/schema/` has them as files.
//!
//! A file's first field names its schema and version. A version's files stay readable: what is added later may be absent. Readers take
//! no notice of fields that they do not know.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};

use super::{attention, compare, complexity, gemm, norm, peak, plan, report, trace};

/// What describes the files of one schema and version.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// What those files have in their field `schema`, as `paf-cuda/speedup/1`.
    pub schema: &'static str,
    /// The JSON Schema, pretty, with a newline at the end.
    pub json: String,
}

impl Document {
    fn of<T: JsonSchema>(schema: &'static str) -> Self {
        let mut root = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
        RecursiveTransform(plain).transform(&mut root);
        root.insert("title".into(), schema.into());
        if let Some(name) = root.pointer_mut("/properties/schema") {
            name["const"] = schema.into();
        }
        Self { schema, json: super::report::json(&root) }
    }

    /// Name of its file: `speedup-1.json`.
    pub fn file_name(&self) -> String {
        self.schema.trim_start_matches("paf-cuda/").replace('/', "-") + ".json"
    }
}

/// Descriptions come from Rust's documentation, whose links lead nowhere here.
fn plain(schema: &mut Schema) {
    if let Some(text) = schema.get("description").and_then(|text| text.as_str()) {
        let text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
        schema.insert("description".into(), text.into());
    }
}

/// All of them.
pub fn documents() -> Vec<Document> {
    vec![
        Document::of::<report::Report>(report::SCHEMA),
        Document::of::<plan::Report>(plan::SCHEMA),
        Document::of::<compare::Report>(compare::SCHEMA),
        Document::of::<complexity::Report>(complexity::SCHEMA),
        Document::of::<gemm::Report>(gemm::SCHEMA),
        Document::of::<attention::Report>(attention::SCHEMA),
        Document::of::<norm::Report>(norm::SCHEMA),
        Document::of::<peak::Report>(peak::SCHEMA),
        Document::of::<trace::Trace>(trace::SCHEMA),
    ]
}
