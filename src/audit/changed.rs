//! What a change of a key changed: fields, with their values before and after.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::record::ApiKey;
use crate::runtime::clock::Timestamp;
use crate::scopes::{Scope, Scopes};

/// The fields of a key that a change has changed.
///
/// A creation lists every field that was set, and a deletion every field that the key had.
/// Secrets and digests are never listed.
///
/// A log keeps them as one opaque text: it writes [`to_string`](ToString::to_string) and
/// reads with [`str::parse`]. The text is a JSON array (RFC 8259), `[]` if there are none,
/// without characters below U+0020.
///
/// ```
/// use keygate::audit::{ChangedFields, FieldValue};
///
/// let stored = r#"[{"name":"status","before":"active","after":"revoked"}]"#;
/// let fields: ChangedFields = stored.parse()?;
/// assert_eq!(fields[0].name, "status");
/// assert_eq!(fields[0].after, FieldValue::Text("revoked".to_owned()));
/// assert_eq!(fields.to_string(), stored);
/// # Ok::<(), keygate::error::ChangedFieldsError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedFields(Vec<ChangedField>);

/// One field of a key that was changed.
///
/// No fields will be added to this type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedField {
    /// Its name: `name`, `status`, `key_prefix`, `expires_at`, `ip_allowlist`, `scopes`,
    /// `previous_secret_until`, `metadata`, or one of another version.
    pub name: Cow<'static, str>,
    /// The value before the change.
    pub before: FieldValue,
    /// The value after the change.
    pub after: FieldValue,
}

/// The value of a field that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldValue {
    /// The field has no value: a key without expiry, or one that is not there yet, or is
    /// no longer there.
    Absent,
    /// One value. Times are in the form of [`Timestamp`], full access is `all`.
    Text(String),
    /// Several: networks, scopes, or metadata as `name=value`.
    List(Vec<String>),
}

/// Reads the value of one field from a key.
type Read = fn(&ApiKey) -> FieldValue;

/// All fields that can change.
const FIELDS: [(&str, Read); 8] = [
    ("name", |key| key.name.as_str().into()),
    ("status", |key| key.status.as_str().into()),
    ("key_prefix", |key| key.key_prefix.as_str().into()),
    ("expires_at", |key| key.expires_at.into()),
    ("ip_allowlist", |key| FieldValue::List(key.allowlist.entries())),
    ("scopes", |key| (&key.attributes.scopes).into()),
    ("previous_secret_until", |key| key.previous.map(|previous| previous.until).into()),
    ("metadata", |key| {
        let pairs = key.attributes.metadata.iter();
        FieldValue::List(pairs.map(|(name, value)| format!("{name}={value}")).collect())
    }),
];

impl ChangedFields {
    /// The fields in which two records of a key differ. `None` is a key that is not there.
    pub(crate) fn between(before: Option<&ApiKey>, after: Option<&ApiKey>) -> Self {
        let changed = FIELDS.iter().filter_map(|(name, read)| {
            let is_edit = before.is_some() && after.is_some();
            let value = |key: Option<&ApiKey>| match key.map(read) {
                // A creation or deletion does not list what is empty.
                Some(FieldValue::List(list)) if list.is_empty() && !is_edit => FieldValue::Absent,
                value => value.unwrap_or(FieldValue::Absent),
            };
            let (before, after) = (value(before), value(after));
            let name = Cow::Borrowed(*name);
            (before != after).then_some(ChangedField { name, before, after })
        });
        Self(changed.collect())
    }
}

impl Deref for ChangedFields {
    type Target = [ChangedField];

    fn deref(&self) -> &[ChangedField] {
        &self.0
    }
}

impl FromIterator<ChangedField> for ChangedFields {
    fn from_iter<I: IntoIterator<Item = ChangedField>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

impl From<&str> for FieldValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Option<Timestamp>> for FieldValue {
    fn from(time: Option<Timestamp>) -> Self {
        time.map_or(Self::Absent, |time| Self::Text(time.to_string()))
    }
}

impl From<&Scopes> for FieldValue {
    fn from(scopes: &Scopes) -> Self {
        match scopes.named() {
            None => "all".into(),
            Some(scopes) => Self::List(scopes.iter().map(Scope::to_string).collect()),
        }
    }
}

/// For a person: a dash, the text, or the entries separated by commas.
impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.pad(text),
            Self::List(list) if !list.is_empty() => f.pad(&list.join(", ")),
            Self::List(_) | Self::Absent => f.pad("-"),
        }
    }
}

/// The stored form.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredField<'a> {
    name: Cow<'a, str>,
    #[serde(default)]
    before: Value,
    #[serde(default)]
    after: Value,
}

impl ChangedFields {
    pub(crate) fn stored(&self) -> Vec<StoredField<'_>> {
        let stored = |field: &ChangedField| StoredField {
            name: Cow::Owned(field.name.to_string()),
            before: field.before.to_json(),
            after: field.after.to_json(),
        };
        self.iter().map(stored).collect()
    }

    pub(crate) fn restore(stored: Vec<StoredField<'_>>) -> Self {
        let field = |stored: StoredField<'_>| ChangedField {
            name: Cow::Owned(stored.name.into_owned()),
            before: FieldValue::restore(stored.before),
            after: FieldValue::restore(stored.after),
        };
        stored.into_iter().map(field).collect()
    }
}

impl FieldValue {
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Absent => Value::Null,
            Self::Text(text) => Value::from(text.as_str()),
            Self::List(list) => Value::from(list.as_slice()),
        }
    }

    /// A value of a type that this version does not know is shown as its JSON text.
    fn restore(stored: Value) -> Self {
        let texts = |list: &Vec<Value>| {
            list.iter().map(|entry| entry.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        match stored {
            Value::Null => Self::Absent,
            Value::String(text) => Self::Text(text),
            other => match other.as_array().and_then(texts) {
                Some(list) => Self::List(list),
                None => Self::Text(other.to_string()),
            },
        }
    }
}

/// Writes the text that [`str::parse`] reads.
impl fmt::Display for ChangedFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(&self.stored()).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for ChangedFields {
    type Err = ChangedFieldsError;

    fn from_str(text: &str) -> Result<Self, ChangedFieldsError> {
        let stored = serde_json::from_str(text).map_err(|_| ChangedFieldsError)?;
        Ok(Self::restore(stored))
    }
}

/// A text is not a form of [`ChangedFields`]. The error does not contain the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the stored fields of a change are not a valid JSON array")]
pub struct ChangedFieldsError;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowlist::Allowlist;
    use crate::key::digest::KeyDigest;
    use crate::key::name::KeyName;
    use crate::record::attributes::Metadata;
    use crate::record::{PreviousSecret, Status};
    use proptest::prelude::*;

    /// A key that differs from the sample in every field that can change.
    fn changed() -> ApiKey {
        let mut key = ApiKey {
            name: KeyName::new("Renamed").unwrap(),
            status: Status::Revoked,
            key_prefix: "vsp_sk_other".to_owned(),
            expires_at: Some(Timestamp::MAX),
            allowlist: Allowlist::parse(["10.0.0.0/8", "192.0.2.1"]).unwrap(),
            digest: KeyDigest::of("other"),
            previous: Some(PreviousSecret { digest: KeyDigest::of("old"), until: Timestamp::MIN }),
            ..ApiKey::sample(1)
        };
        key.attributes.scopes = Scopes::only(["reports:read"]).unwrap();
        key.attributes.metadata = Metadata::new().with("plan", "pro").unwrap();
        key
    }

    #[test]
    fn every_field_that_differs_is_listed_with_both_values() {
        let fields = ChangedFields::between(Some(&ApiKey::sample(1)), Some(&changed()));
        let lines: Vec<_> =
            fields.iter().map(|f| format!("{}: {} / {}", f.name, f.before, f.after)).collect();
        assert_eq!(
            lines,
            [
                "name: Deploy / Renamed",
                "status: active / revoked",
                "key_prefix: vsp_sk_4fT9x / vsp_sk_other",
                "expires_at: - / 9999-12-31T23:59:59.999999Z",
                "ip_allowlist: - / 10.0.0.0/8, 192.0.2.1",
                "scopes: all / reports:read",
                "previous_secret_until: - / 0001-01-01T00:00:00Z",
                "metadata: - / plan=pro",
            ]
        );
        let emptied = ChangedFields::between(Some(&changed()), Some(&ApiKey::sample(1)));
        let after = emptied.iter().find(|field| field.name == "ip_allowlist").map(|f| &f.after);
        assert_eq!(after, Some(&FieldValue::List(Vec::new())));
        assert!(ChangedFields::between(Some(&changed()), Some(&changed())).is_empty());
    }

    #[test]
    fn a_creation_and_a_deletion_list_what_the_key_has() {
        let created = ChangedFields::between(None, Some(&ApiKey::sample(1)));
        let names: Vec<_> = created.iter().map(|field| field.name.as_ref()).collect();
        assert_eq!(names, ["name", "status", "key_prefix", "scopes"]);
        assert!(created.iter().all(|field| field.before == FieldValue::Absent));
        let deleted = ChangedFields::between(Some(&changed()), None);
        assert_eq!(deleted.len(), FIELDS.len());
        assert!(deleted.iter().all(|field| field.after == FieldValue::Absent));
    }

    #[test]
    fn case_39_no_digest_is_listed() {
        let text = ChangedFields::between(None, Some(&changed())).to_string();
        for digest in changed().digests() {
            let bytes = digest.as_bytes();
            assert!(!text.contains(&hex::encode(bytes)) && !text.contains(&format!("{bytes:?}")));
        }
    }

    #[test]
    fn a_value_of_another_version_is_shown_as_its_json() {
        let stored = r#"[{"name":"rate","before":50,"after":{"per":"minute"},"later":true}]"#;
        let fields: ChangedFields = stored.parse().unwrap();
        assert_eq!(fields[0].before.to_string(), "50");
        assert_eq!(fields[0].after.to_string(), r#"{"per":"minute"}"#);
        for text in ["", "null", "{}", r#"[{}]"#, r#"[{"name":7}]"#, "[] []"] {
            assert_eq!(text.parse::<ChangedFields>(), Err(ChangedFieldsError), "{text}");
        }
    }

    fn value() -> impl Strategy<Value = FieldValue> {
        prop_oneof![
            Just(FieldValue::Absent),
            any::<String>().prop_map(FieldValue::Text),
            proptest::collection::vec(any::<String>(), 0..3).prop_map(FieldValue::List),
        ]
    }

    proptest! {
        #[test]
        fn fields_come_back(fields in proptest::collection::vec((any::<String>(), value(), value()), 0..4)) {
            let fields: ChangedFields = fields
                .into_iter()
                .map(|(name, before, after)| ChangedField { name: name.into(), before, after })
                .collect();
            let text = fields.to_string();
            prop_assert!(!text.contains(|c| c < ' '), "no line feed, no U+0000");
            prop_assert_eq!(text.parse(), Ok(fields));
        }
    }
}
