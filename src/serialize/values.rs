//! Single values: ids, names, times, addresses, limits.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::allowlist::Allowlist;
use crate::audit::changed::{ChangedFields, ChangedFieldsError, StoredField};
use crate::audit::country::CountryCode;
use crate::audit::log::AuditCursor;
use crate::audit::record::{AuditId, ChangeAction, ChangePhase, Outcome};
use crate::key::expiration::Expiration;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::network::Network;
use crate::org::OrgId;
use crate::record::attributes::{Attributes, AttributesError, Metadata, StoredAttributes};
use crate::record::{OrgLimit, Revision, SecretUsed, Status};
use crate::runtime::clock::Timestamp;
use crate::serialize::read::{AnyText, entries, known, number, read_by_fields, text};

/// Types that are written by `Display`, and how they are read.
macro_rules! texts {
    ($($type:ty: $expected:literal, $parse:expr;)+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text(deserializer, $expected, $parse)
            }
        }
    )+};
}

texts! {
    AuditCursor: "a cursor from an audit page", str::parse;
    AuditId: "the id of an audit record", str::parse;
    CountryCode: "a country code", str::parse;
    KeyId: "a key id", str::parse;
    KeyName: "the name of a key", str::parse;
    Network: "an IP address or CIDR range", str::parse;
    OrgId: "an organisation id", str::parse;
    SecretUsed: "current or previous", str::parse;
    Status: "active or revoked", str::parse;
    Timestamp: "an RFC 3339 time", str::parse;
    // A later version may have written a name that this one does not know.
    Outcome: "the outcome of a request", |name| known(Self::restore(name));
    ChangeAction: "the action of a change", |name| known(Self::restore(name));
    ChangePhase: "the phase of a change", |name| known(Self::restore(name));
    // `FromStr` is for customers, who cannot choose an instant.
    Expiration: "an expiration or an RFC 3339 time", |text| {
        text.parse().or_else(|error| text.parse().map(Self::At).map_err(|_| error))
    };
}

impl Serialize for Revision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number(deserializer).map(Self::new)
    }
}

/// As a number, or nothing for no limit.
impl Serialize for OrgLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OrgLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number::<D, Option<u32>>(deserializer).map(|max| max.map_or(Self::NONE, Self::at_most))
    }
}

/// As a list of texts.
impl Serialize for Allowlist {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}

/// By [`Allowlist::parse`]. In the record of a key, the list is read by
/// [`Allowlist::restore`] instead.
impl<'de> Deserialize<'de> for Allowlist {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(entries(deserializer)?).map_err(|error| {
            let number = error.index().saturating_add(1);
            D::Error::custom(format_args!("entry {number}: {}", error.problem()))
        })
    }
}

/// As the text that a store keeps, but not quoted.
impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoredAttributes::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StoredAttributes::deserialize(deserializer).map_err(|_| D::Error::custom(AttributesError))
    }
}

/// As the list that a store keeps, but not quoted.
impl Serialize for ChangedFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.stored().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ChangedFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Vec::<StoredField<'_>>::deserialize(deserializer);
        stored.map(Self::restore).map_err(|_| D::Error::custom(ChangedFieldsError))
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

// Within the limits of the type. In `Attributes`, they are not checked, since these have been
// stored already.
read_by_fields! {
    Metadata: "names and values", metadata;
}

fn metadata<'de, D: Deserializer<'de>>(fields: D) -> Result<Metadata, D::Error> {
    let texts = BTreeMap::<AnyText, AnyText>::deserialize(fields)?;
    let mut pairs = texts.into_iter();
    pairs
        .try_fold(Metadata::new(), |all, (AnyText(name), AnyText(text))| all.with(name, text))
        .map_err(D::Error::custom)
}
