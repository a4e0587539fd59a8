//! Whether a result file is what its schema says.

use serde_json::Value;

/// The same schema, but fields that it does not describe are refused.
pub fn strict(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(|field| *field = strict(field.take()));
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = strict(item.take())),
        _ => {}
    }
    schema
}

/// What is wrong with a result, a line each.
pub fn errors(schema: &Value, result: &Value) -> Vec<String> {
    let validator = match jsonschema::draft202012::new(schema) {
        Ok(validator) => validator,
        Err(error) => return vec![format!("{}: {error}", schema["title"])],
    };
    validator.iter_errors(result).map(|error| format!("{}: {error}", error.instance_path())).collect()
}
