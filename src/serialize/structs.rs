//! Plain structs. Their fields are repeated here; if one is missing, this does not compile.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::audit::changed::ChangedFields;
use crate::audit::country::CountryCode;
use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::key::id::KeyId;
use crate::org::{Actor, OrgId};
use crate::record::{KeyUse, Limits, SecretUsed};
use crate::runtime::clock::Timestamp;
use crate::serialize::read::{AnyText, any_text, number, read_by_fields};

/// Structs, each with its fields as they are written.
macro_rules! structs {
    ($($type:ident: $expected:literal, $fields:ident;)+) => {
        read_by_fields! { $($type: $expected, $fields::deserialize;)+ }

        $(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $fields::serialize(self, serializer)
            }
        }
)+
    };
}

structs! {
    Actor: "an actor", ActorFields;
    AuditRecord: "an audit record", AuditRecordFields;
    ChangeEvent: "a change", ChangeEventFields;
    KeyUse: "a use of a key", KeyUseFields;
    Limits: "limits", LimitsFields;
    RequestEvent: "a request", RequestEventFields;
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Actor")]
struct ActorFields {
    #[serde(getter = "Actor::org")]
    org: OrgId,
    #[serde(
        getter = "Actor::shared_name",
        serialize_with = "shown",
        deserialize_with = "any_text"
    )]
    name: Arc<str>,
}

impl From<ActorFields> for Actor {
    fn from(actor: ActorFields) -> Self {
        Self::new(actor.org, actor.name)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "AuditRecord")]
struct AuditRecordFields {
    id: AuditId,
    at: Timestamp,
    org: OrgId,
    key: KeyId,
    event: AuditEvent,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ChangeEvent")]
struct ChangeEventFields {
    #[serde(serialize_with = "shown", deserialize_with = "any_text")]
    actor: Arc<str>,
    action: ChangeAction,
    phase: ChangePhase,
    // Missing in what an earlier version has written.
    #[serde(default)]
    fields: ChangedFields,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "KeyUse")]
struct KeyUseFields {
    id: KeyId,
    at: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Limits")]
struct LimitsFields {
    #[serde(deserialize_with = "number")]
    max_keys: u32,
    #[serde(deserialize_with = "number")]
    max_ips_per_key: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "RequestEvent")]
struct RequestEventFields {
    #[serde(deserialize_with = "any_text")]
    method: Cow<'static, str>,
    #[serde(deserialize_with = "any_text")]
    endpoint: Box<str>,
    #[serde(default, with = "ip")]
    ip: Option<IpAddr>,
    country: Option<CountryCode>,
    #[serde(default, deserialize_with = "number")]
    status: Option<u16>,
    outcome: Outcome,
    #[serde(deserialize_with = "number")]
    count: u32,
    #[serde(default = "current")]
    secret: SecretUsed,
}

/// What a record of a version without overlaps means.
fn current() -> SecretUsed {
    SecretUsed::Current
}

fn shown<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// As a text in every format.
mod ip {
    use super::*;

    pub(super) fn serialize<S: Serializer>(ip: &Option<IpAddr>, to: S) -> Result<S::Ok, S::Error> {
        ip.map(|ip| ip.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        let text = Option::<AnyText>::deserialize(from)?;
        let parse = |AnyText(text)| text.parse().map_err(|_| D::Error::custom("not an IP address"));
        text.map(parse).transpose()
    }
}

/// As `{"request": …}` or `{"change": …}`.
impl Serialize for AuditEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = "AuditEvent";
        match self {
            Self::Request(event) => serializer.serialize_newtype_variant(name, 0, "request", event),
            Self::Change(event) => serializer.serialize_newtype_variant(name, 1, "change", event),
        }
    }
}

read_by_fields! {
    AuditEvent: "a request or a change", event;
}

fn event<'de, D: Deserializer<'de>>(fields: D) -> Result<AuditEvent, D::Error> {
    // Not an enum to serde, which would repeat an unknown name.
    #[derive(Deserialize)]
    struct Kinds {
        request: Option<RequestEvent>,
        change: Option<ChangeEvent>,
    }

    match Kinds::deserialize(fields)? {
        Kinds { request: Some(event), change: None } => Ok(AuditEvent::Request(event)),
        Kinds { request: None, change: Some(event) } => Ok(AuditEvent::Change(event)),
        _ => Err(D::Error::custom("an event is either a request or a change")),
    }
}
