//! The fields of a body or the parameters of a query. They are taken one by one, and all
//! errors are collected.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::text::percent_decode;
use crate::web::admin::problem::{Code, FieldError, Problem};

/// The limit of reported errors; a body could cause thousands.
const MAX_ERRORS: usize = 100;

/// Named values that have not been taken yet, and the errors so far.
#[derive(Debug, Default)]
pub(super) struct Fields {
    values: BTreeMap<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    pub(super) fn of_body(body: &[u8]) -> Result<Self, Problem> {
        if let Ok(Pairs(fields)) = serde_json::from_slice(body) {
            return Ok(Self::new(fields));
        }
        // All of it is read, since skipped parts are not validated.
        match serde_json::from_slice::<Value>(body) {
            Ok(_) => Err(Problem::invalid_field("body", "must be an object")),
            Err(_) => Err(Problem::new(Code::MalformedBody, "The body is not JSON.")),
        }
    }

    pub(super) fn of_query(query: &str) -> Result<Self, Problem> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| not_utf8(""))?;
            let value = decode(value).ok_or_else(|| not_utf8(&name))?;
            Ok((name, Value::String(value)))
        });
        Ok(Self::new(decoded.collect::<Result<_, Problem>>()?))
    }

    fn new(given: Vec<(String, Value)>) -> Self {
        let mut fields = Self::default();
        let mut repeated = BTreeSet::new();
        for (name, value) in given {
            match fields.values.entry(name) {
                Entry::Vacant(free) => drop(free.insert(value)),
                Entry::Occupied(taken) => drop(repeated.insert(taken.key().clone())),
            }
        }
        for name in &repeated {
            fields.refuse(shown(name), "must be given only once");
        }
        fields
    }

    /// Adds an error for a field.
    pub(super) fn refuse(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) {
        self.errors.push(FieldError { field: field.into(), message: message.into() });
    }

    /// Adds an error for each of these fields that is missing. None of them may have been
    /// taken.
    pub(super) fn require(&mut self, fields: &[&'static str]) {
        for field in fields {
            if !self.values.contains_key(*field) {
                self.refuse(*field, "is required");
            }
        }
    }

    /// Takes a field that is a string. Returns `None` if it is missing or wrong; the latter
    /// adds an error.
    pub(super) fn text<T, E: Display>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match self.values.remove(field)? {
            Value::String(text) => {
                read(&text).map_err(|error| self.refuse(field, error.to_string())).ok()
            }
            _ => {
                self.refuse(field, "must be a string");
                None
            }
        }
    }

    /// Takes a field of any type.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.values.remove(field)
    }

    /// Takes a field that is a whole number. Returns `None` as for [`Fields::text`].
    pub(super) fn number(&mut self, field: &'static str) -> Option<u64> {
        let number = self.values.remove(field)?.as_u64();
        if number.is_none() {
            self.refuse(field, "must be a whole number, 0 or more");
        }
        number
    }

    /// Takes a field that is a list. Returns `None` as for [`Fields::text`].
    pub(super) fn list(&mut self, field: &'static str) -> Option<Vec<Value>> {
        match self.values.remove(field)? {
            Value::Array(list) => Some(list),
            _ => {
                self.refuse(field, "must be a list of strings");
                None
            }
        }
    }

    /// The value made from the fields, if there are no errors and no fields left over.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, Problem> {
        for name in std::mem::take(&mut self.values).into_keys() {
            self.refuse(shown(&name), "is unknown");
        }
        self.errors.truncate(MAX_ERRORS);
        value.filter(|_| self.errors.is_empty()).ok_or_else(|| Problem::invalid(self.errors))
    }
}

/// The members of a JSON object, repeated ones included.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

/// A field's name as an error may show it, unless it could be a misplaced credential.
fn shown(name: &str) -> Cow<'static, str> {
    const MAX_LEN: usize = 32;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if (1..=MAX_LEN).contains(&name.len()) && name.bytes().all(plain) {
        Cow::Owned(name.to_owned())
    } else {
        Cow::Borrowed("?")
    }
}

fn not_utf8(name: &str) -> Problem {
    Problem::invalid_field(shown(name), "must be UTF-8, percent-encoded")
}

/// Decodes `application/x-www-form-urlencoded`. Returns `None` for text that is not UTF-8,
/// so that different texts are never treated as equal.
fn decode(text: &str) -> Option<String> {
    let mut decoded = text.replace('+', " ").into_bytes();
    let len = percent_decode(&mut decoded);
    decoded.truncate(len);
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_like_a_form() {
        for (text, decoded) in [
            ("a+b%20c%2B%c3%A9", Some("a b c+é")),
            ("100%", Some("100%")),
            ("%4", Some("%4")),
            ("%zz%41", Some("%zzA")),
            ("%25%34%31", Some("%41")),
            ("%ff", None),
            ("%ed%a0%80", None),
        ] {
            assert_eq!(decode(text).as_deref(), decoded, "{text}");
        }
    }

    #[test]
    fn case_39_a_name_that_could_be_a_credential_is_not_repeated() {
        assert_eq!(shown("created_at"), "created_at");
        for hidden in ["", "a b", "é", "<b>", &"a".repeat(33), &format!("v_{}", "a".repeat(48))] {
            assert_eq!(shown(hidden), "?", "{hidden}");
        }
    }

    #[test]
    fn all_errors_are_listed_up_to_a_limit() {
        let body: Vec<String> = (0..5_000).map(|i| format!("\"f{i}\":{i}")).collect();
        let mut fields = Fields::of_body(format!("{{{}}}", body.join(",")).as_bytes()).unwrap();
        fields.require(&["name"]);
        let problem = format!("{:?}", fields.finish(Some(())).unwrap_err());
        assert_eq!(problem.matches("FieldError").count(), MAX_ERRORS);
        assert!(problem.contains("is required"));
    }
}
