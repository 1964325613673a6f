//! JSON values that preserve repeated fields.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value, as detailed as the API needs it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Json {
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// A whole number that is not negative.
    Number(u64),
    /// `null`, a boolean or another number.
    Other,
}

impl Json {
    /// Parses a whole body; `None` if it is not JSON. All of it is parsed, as deep as
    /// `serde_json` goes, since skipped parts are not validated.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = map.next_entry()? {
            object.push(field);
        }
        Ok(Json::Object(object))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order() {
        let parsed = Json::parse(br#" {"b": [null, 1, -1, 0.5, true], "a": "\u00e9", "b": {}} "#);
        let list =
            Json::List(vec![Json::Other, Json::Number(1), Json::Other, Json::Other, Json::Other]);
        let fields = [("b", list), ("a", Json::Text("é".into())), ("b", Json::Object(Vec::new()))];
        let fields = fields.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(parsed, Some(Json::Object(fields.into())));
    }

    #[test]
    fn case_24_invalid_json_is_refused_at_any_depth() {
        let deep = "[".repeat(100_000);
        let closed = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        for body in [
            "",
            " ",
            "{",
            "{}{}",
            "{} x",
            "{'a':1}",
            "{\"a\":1,}",
            "nul",
            "\u{feff}{}",
            "01",
            "{\"a\":[\"\\ud800\"]}",
            "{\"\\udc00\":1}",
            "[\"\n\"]",
            "[\"\\x\"]",
            &deep,
            &closed,
        ] {
            assert_eq!(Json::parse(body.as_bytes()), None, "{body:.40}");
        }
        assert_eq!(Json::parse(b"{\"a\":{\"b\":\"\xff\"}}"), None);
        assert_eq!(Json::parse(b"[\"\xed\xa0\x80\"]"), None);
    }
}
