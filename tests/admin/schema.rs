//! The part of JSON Schema that the OpenAPI document uses.

use serde_json::Value;

/// Resolves `$ref`; returns any other value unchanged.
pub(crate) fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(reference) = value["$ref"].as_str() else { return value };
    let pointer = reference.strip_prefix('#').expect("references stay within the document");
    document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

/// Why the value does not match the schema. Patterns and formats are left to schemathesis. An
/// unknown keyword is an error, so that nothing is silently skipped.
pub(crate) fn misfit(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = resolve(document, schema);
    let fits = |schema: &Value| misfit(document, schema, value);
    let unless = |fault: bool, keyword: &str| {
        if fault { Err(format!("{keyword}: {value}")) } else { Ok(()) }
    };
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        match keyword.as_str() {
            "type" => unless(!has_type(rule, value), keyword)?,
            "enum" => unless(!rule.as_array().unwrap().contains(value), keyword)?,
            "required" => {
                let missing = |name: &Value| value.get(name.as_str().unwrap()).is_none();
                unless(rule.as_array().unwrap().iter().any(missing), keyword)?;
            }
            "properties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = rule.get(name) {
                        misfit(document, schema, value).map_err(|why| format!("{name}: {why}"))?;
                    }
                }
            }
            "additionalProperties" => {
                assert_eq!(*rule, false);
                let known = |name: &String| schema["properties"].get(name).is_some();
                unless(!value.as_object().is_none_or(|o| o.keys().all(known)), keyword)?;
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    misfit(document, rule, item)?;
                }
            }
            "allOf" => rule.as_array().unwrap().iter().try_for_each(fits)?,
            "anyOf" => unless(!rule.as_array().unwrap().iter().any(|s| fits(s).is_ok()), keyword)?,
            "oneOf" => {
                let fitting = rule.as_array().unwrap().iter().filter(|s| fits(s).is_ok());
                unless(fitting.count() != 1, keyword)?;
            }
            "minimum" => unless(value.as_i64() < rule.as_i64() && value.is_number(), keyword)?,
            "maximum" => unless(value.as_i64() > rule.as_i64() && value.is_number(), keyword)?,
            "minLength" => unless(length(value) < rule.as_u64(), keyword)?,
            "maxLength" => unless(length(value) > rule.as_u64(), keyword)?,
            "minItems" => {
                unless(value.as_array().map(|a| a.len() as u64) < rule.as_u64(), keyword)?
            }
            "maxItems" => {
                let length = value.as_array().map(|a| a.len() as u64);
                unless(length.is_some() && length > rule.as_u64(), keyword)?;
            }
            "uniqueItems" => {
                let list = value.as_array().into_iter().flatten();
                let repeated =
                    list.clone().enumerate().any(|(n, a)| list.clone().take(n).any(|b| a == b));
                unless(repeated, keyword)?;
            }
            "description" | "format" | "pattern" => {}
            unknown => panic!("this test does not know {unknown}"),
        }
    }
    Ok(())
}

fn has_type(rule: &Value, value: &Value) -> bool {
    match rule.as_str() {
        None => rule.as_array().unwrap().iter().any(|rule| has_type(rule, value)),
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(unknown) => panic!("this test does not know {unknown}"),
    }
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}
