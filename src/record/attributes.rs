//! Properties of a key that are never searched for: one JSON text in a store.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::runtime::clock::Timestamp;
use crate::scopes::Scopes;

/// Properties of a key that are never searched for.
///
/// A store keeps them as one opaque text: it writes [`to_string`](ToString::to_string) and
/// reads with [`str::parse`]. The text is a JSON object (RFC 8259), `{}` if nothing is set,
/// without characters below U+0020. Members that this version does not know are kept, so
/// that during a deployment an older process can edit a key of a newer one without loss.
///
/// ```
/// use keygate::store::Attributes;
///
/// let stored = r#"{"created_by":"ada@acme.example","colour":"green"}"#;
/// let mut attributes: Attributes = stored.parse()?;
/// assert_eq!(attributes.created_by.as_deref(), Some("ada@acme.example"));
///
/// attributes.created_by = None;
/// assert_eq!(attributes.to_string(), r#"{"colour":"green"}"#);
/// # Ok::<(), keygate::error::AttributesError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attributes {
    /// The name of the actor who created the key; `None` for keys of versions that did not
    /// store it.
    pub created_by: Option<String>,
    /// The host's own metadata.
    pub metadata: Metadata,
    /// What the key may be used for. Not stored for full access, which keys from before
    /// the service had scopes have, too.
    pub scopes: Scopes,
    /// For a key issued before keygate: the prefix of the format that it gets when it is
    /// rotated, which tells its environment. `None` from then on.
    pub adopted_into: Option<String>,
    /// When the key was last enabled after a revocation, if it was.
    pub enabled_at: Option<Timestamp>,
    /// Members written by another version.
    others: Map<String, Value>,
}

/// The stored form. The limits of [`Metadata`] are not checked: what an earlier version
/// stored must stay readable.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Attributes")]
pub(crate) struct StoredAttributes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    #[serde(default, with = "StoredMetadata", skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
    #[serde(default = "full_access", skip_serializing_if = "Scopes::is_all")]
    scopes: Scopes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adopted_into: Option<String>,
    #[serde(default, with = "rfc3339", skip_serializing_if = "Option::is_none")]
    enabled_at: Option<Timestamp>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A time as text (RFC 3339).
mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::runtime::clock::Timestamp;

    #[allow(clippy::ref_option, reason = "serde calls it with a reference to the field")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(time),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

/// The scopes of a key that was stored without any.
fn full_access() -> Scopes {
    Scopes::ALL
}

/// The attributes of `{}`.
impl Default for Attributes {
    fn default() -> Self {
        Self {
            created_by: None,
            metadata: Metadata::new(),
            scopes: Scopes::ALL,
            adopted_into: None,
            enabled_at: None,
            others: Map::new(),
        }
    }
}

/// Writes the text that [`str::parse`] reads.
impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = serde_json::Serializer::new(Vec::new());
        StoredAttributes::serialize(self, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&text.into_inner()).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Attributes {
    type Err = AttributesError;

    fn from_str(text: &str) -> Result<Self, AttributesError> {
        // Most keys of a bulk import have none, and every request may read them.
        if text == "{}" {
            return Ok(Self::default());
        }
        let mut text = serde_json::Deserializer::from_str(text);
        let attributes = StoredAttributes::deserialize(&mut text).map_err(|_| AttributesError)?;
        text.end().map_err(|_| AttributesError)?;
        Ok(attributes)
    }
}

/// A text is not a form of [`Attributes`]. The error does not contain the text, which may
/// hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the stored attributes of a key are not a valid JSON object")]
pub struct AttributesError;

/// The host's own metadata of a key, such as the customer's plan or number.
/// [`VerifiedKey::metadata`](crate::VerifiedKey::metadata) returns it without another
/// look-up. The management API neither shows nor changes it.
///
/// At most 16 values of up to 500 characters, with names of 1 to 40 characters.
///
/// ```
/// use keygate::{Metadata, NewKey};
///
/// let metadata = Metadata::new().with("plan", "pro")?.with("customer", "4711")?;
/// assert_eq!(metadata.get("plan"), Some("pro"));
/// let key = NewKey::named("CI deploy")?.metadata(metadata);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(BTreeMap<String, String>);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Metadata", transparent)]
struct StoredMetadata(BTreeMap<String, String>);

impl Metadata {
    /// The largest number of values.
    pub const MAX_TEXTS: usize = 16;
    /// The longest name, in characters.
    pub const MAX_NAME_CHARS: usize = 40;
    /// The longest value, in characters.
    pub const MAX_TEXT_CHARS: usize = 500;

    /// No metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value, or replaces the one with this name.
    ///
    /// # Errors
    ///
    /// If one of the three limits is exceeded.
    pub fn with(
        mut self,
        name: impl Into<String>,
        text: impl Into<String>,
    ) -> Result<Self, MetadataError> {
        let (name, text) = (name.into(), text.into());
        if name.is_empty() || name.chars().nth(Self::MAX_NAME_CHARS).is_some() {
            return Err(MetadataError::Name);
        }
        if text.chars().nth(Self::MAX_TEXT_CHARS).is_some() {
            return Err(MetadataError::TooLong);
        }
        if !self.0.contains_key(&name) && self.0.len() >= Self::MAX_TEXTS {
            return Err(MetadataError::TooMany);
        }
        self.0.insert(name, text);
        Ok(self)
    }

    /// The value with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All names and values, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a value cannot be added to [`Metadata`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The name is empty or too long.
    #[error("a metadata name must have 1 to {} characters", Metadata::MAX_NAME_CHARS)]
    Name,
    /// The value is too long.
    #[error("a metadata value must have at most {} characters", Metadata::MAX_TEXT_CHARS)]
    TooLong,
    /// The key has the largest number of values.
    #[error("a key must have at most {} metadata values", Metadata::MAX_TEXTS)]
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_of_another_version_survive_an_edit() {
        let stored = r#"{"created_by":"ada","later":{"a":[1,null,"x"]},"metadata":{"plan":"pro"}}"#;
        let mut attributes: Attributes = stored.parse().unwrap();
        attributes.created_by = Some("bob".into());
        let expected = stored.replace(r#""ada""#, r#""bob""#);
        let [text, expected]: [Value; 2] =
            [&attributes.to_string(), &expected].map(|text| serde_json::from_str(text).unwrap());
        assert_eq!(text, expected);
    }

    #[test]
    fn a_text_that_is_no_object_or_has_a_member_of_another_type_is_an_error() {
        let null = r#"{"created_by":null,"enabled_at":null}"#;
        assert_eq!(null.parse(), Ok(Attributes::default()));
        for text in [
            "",
            "null",
            "[]",
            "{",
            "{} {}",
            r#"{"created_by":7}"#,
            r#"{"metadata":{"plan":1}}"#,
            r#"{"enabled_at":"then"}"#,
        ] {
            assert_eq!(text.parse::<Attributes>(), Err(AttributesError), "{text}");
        }
    }

    #[test]
    fn stored_scopes_are_full_access_only_if_absent_or_all() {
        // Frozen texts: the first is of a version without scopes.
        let read = |text: &str| text.parse::<Attributes>().map(|attributes| attributes.scopes);
        for all in
            ["{}", r#"{"created_by":"ada","metadata":{"plan":"pro"}}"#, r#"{"scopes":"all"}"#]
        {
            assert_eq!(read(all), Ok(Scopes::ALL), "{all}");
        }
        assert_eq!(read(r#"{"scopes":["b","a"]}"#), Ok(Scopes::only(["b", "a"]).unwrap()));
        for damaged in [r#"{"scopes":[]}"#, r#"{"scopes":null}"#, r#"{"scopes":["a",""]}"#] {
            assert_eq!(read(damaged).unwrap().named(), Some(&[][..]), "{damaged}");
            assert_eq!(damaged.parse::<Attributes>().unwrap().to_string(), damaged);
        }
        let twice = r#"{"scopes":["a"],"scopes":"all"}"#;
        assert_eq!(read(twice), Err(AttributesError));
    }

    #[test]
    fn metadata_has_limits() {
        let long = |length| "é".repeat(length);
        assert_eq!(Metadata::new().with("", "x"), Err(MetadataError::Name));
        assert_eq!(Metadata::new().with(long(41), "x"), Err(MetadataError::Name));
        assert_eq!(Metadata::new().with("x", long(501)), Err(MetadataError::TooLong));
        let mut full = Metadata::new().with(long(40), long(500)).unwrap();
        for number in 1..16 {
            full = full.with(number.to_string(), "").unwrap();
        }
        assert_eq!(full.clone().with("one more", ""), Err(MetadataError::TooMany));
        assert_eq!(full.with("1", "replaced").unwrap().get("1"), Some("replaced"));
    }

    proptest! {
        #[test]
        fn attributes_come_back(
            created_by: Option<String>,
            texts: BTreeMap<String, String>,
            enabled in proptest::option::of(Timestamp::MIN.unix_micros()..=Timestamp::MAX.unix_micros()),
        ) {
            let enabled_at = enabled.and_then(Timestamp::from_unix_micros);
            let metadata = Metadata(texts);
            let attributes =
                Attributes { created_by, metadata, enabled_at, ..Attributes::default() };
            let text = attributes.to_string();
            prop_assert!(!text.contains(|c| c < ' '), "no line feed, no U+0000");
            prop_assert_eq!(text.parse(), Ok(attributes));
        }
    }
}
