//! The record of a key, with its digest or without.

use std::borrow::Borrow;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::allowlist::Allowlist;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::org::OrgId;
use crate::record::attributes::Attributes;
use crate::record::{ApiKey, PreviousSecret, Revision, Status};
use crate::runtime::clock::Timestamp;
use crate::serialize::read::{any_text, entries, read_by_fields, text};

/// A key's record together with the digests of its secrets, to be written and read by serde,
/// for a backup or a store of your own.
///
/// Wraps an [`ApiKey`], an `Arc` of one or a reference to one. An [`ApiKey`] itself is
/// written without the digest and cannot be read. The digest does not give the key away,
/// but whoever can replace it decides which key is accepted.
///
/// ```
/// use keygate::store::WithDigest;
/// use keygate::ApiKey;
///
/// let key = ApiKey::sample(1);
/// let text = serde_json::to_string(&WithDigest(&key))?;
/// let WithDigest(read) = serde_json::from_str(&text)?;
/// assert_eq!(read, key);
///
/// assert!(!serde_json::to_string(&key)?.contains("digest"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithDigest<K = ApiKey>(pub K);

/// Without the digest; see [`WithDigest`].
impl Serialize for ApiKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_key(self, None, serializer)
    }
}

impl<K: Borrow<ApiKey>> Serialize for WithDigest<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let key = self.0.borrow();
        serialize_key(key, Some(&key.digest), serializer)
    }
}

fn serialize_key<S: Serializer>(
    key: &ApiKey,
    with: Option<&KeyDigest>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    // Each by its name, so that none is forgotten.
    let ApiKey {
        digest: _,
        previous,
        expires_at,
        allowlist,
        status,
        id,
        org,
        name,
        key_prefix,
        created_at,
        rotated_at,
        last_used_at,
        revision,
        attributes,
    } = key;
    let mut fields = serializer.serialize_struct("ApiKey", 13 + usize::from(with.is_some()))?;
    fields.serialize_field("id", id)?;
    fields.serialize_field("org", org)?;
    fields.serialize_field("name", name)?;
    fields.serialize_field("key_prefix", key_prefix)?;
    fields.serialize_field("status", status)?;
    fields.serialize_field("created_at", created_at)?;
    fields.serialize_field("expires_at", expires_at)?;
    fields.serialize_field("rotated_at", rotated_at)?;
    fields.serialize_field("last_used_at", last_used_at)?;
    fields.serialize_field("allowlist", allowlist)?;
    fields.serialize_field("revision", revision)?;
    fields.serialize_field("attributes", attributes)?;
    match with {
        None => fields.serialize_field("previous_until", &previous.map(|secret| secret.until))?,
        Some(digest) => {
            fields.serialize_field("digest", &::hex::encode(digest.as_bytes()))?;
            fields.serialize_field("previous", &previous.map(Previous))?;
        }
    }
    fields.end()
}

read_by_fields! {
    WithDigest<ApiKey>: "the record of a key with its digest", with_digest;
    Previous: "the digest and the end of a previous secret", previous;
}

fn with_digest<'de, D: Deserializer<'de>>(fields: D) -> Result<WithDigest<ApiKey>, D::Error> {
    ApiKeyFields::deserialize(fields).map(WithDigest)
}

fn previous<'de, D: Deserializer<'de>>(fields: D) -> Result<Previous, D::Error> {
    PreviousFields::deserialize(fields).map(Previous)
}

/// In the order in which they are written, for formats without names.
#[derive(Deserialize)]
#[serde(remote = "ApiKey")]
struct ApiKeyFields {
    id: KeyId,
    org: OrgId,
    #[serde(deserialize_with = "stored_name")]
    name: KeyName,
    #[serde(deserialize_with = "any_text")]
    key_prefix: String,
    status: Status,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    rotated_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    #[serde(deserialize_with = "stored_allowlist")]
    allowlist: Allowlist,
    revision: Revision,
    attributes: Attributes,
    #[serde(deserialize_with = "digest")]
    digest: KeyDigest,
    // Missing in what a version without overlaps has written.
    #[serde(default, deserialize_with = "optional_previous")]
    previous: Option<PreviousSecret>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Previous(#[serde(with = "PreviousFields")] PreviousSecret);

#[derive(Serialize, Deserialize)]
#[serde(remote = "PreviousSecret")]
struct PreviousFields {
    #[serde(serialize_with = "hex", deserialize_with = "digest")]
    digest: KeyDigest,
    until: Timestamp,
}

fn optional_previous<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PreviousSecret>, D::Error> {
    let previous = Option::<Previous>::deserialize(deserializer)?;
    Ok(previous.map(|Previous(secret)| secret))
}

fn hex<S: Serializer>(digest: &KeyDigest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&::hex::encode(digest.as_bytes()))
}

/// An earlier version may have accepted a name that is refused now.
fn stored_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyName, D::Error> {
    text(deserializer, "the name of a key", |name| KeyName::restore(name))
}

/// A damaged list allows no address, and its owner can repair it.
fn stored_allowlist<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Allowlist, D::Error> {
    entries(deserializer).map(Allowlist::restore)
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyDigest, D::Error> {
    text(deserializer, "64 hexadecimal digits, not all of them zero", |text| {
        let bytes = ::hex::decode(text).unwrap_or_default();
        KeyDigest::from_slice(&bytes)
            .map_err(|_| "a key digest is 64 hexadecimal digits, not all of them zero")
    })
}
