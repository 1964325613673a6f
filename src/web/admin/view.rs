//! Keys and audit records as shown by the API.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::audit::changed::ChangedField;
use crate::audit::log::{AuditCursor, AuditPage};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::audit::usage::{Usage, UsageBucket};
use crate::key::formats::Environment;
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::creation::IssuedKey;
use crate::org::OrgId;
use crate::record::{ApiKey, Limits};
use crate::runtime::clock::Timestamp;
use crate::scopes::{Scope, Scopes};
use crate::web::admin::precondition::etag;

/// Serialised as its `Display` text.
struct Shown<T>(T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[derive(Serialize)]
struct KeyView<'a> {
    id: Shown<KeyId>,
    name: &'a str,
    key_prefix: &'a str,
    status: &'static str,
    expired: bool,
    expires_at: Option<Shown<Timestamp>>,
    last_used_at: Option<Shown<Timestamp>>,
    created_at: Shown<Timestamp>,
    rotated_at: Option<Shown<Timestamp>>,
    ip_allowlist: Vec<String>,
    revision: u32,
    created_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<ScopesView<'a>>,
    previous_secret_until: Option<Shown<Timestamp>>,
}

impl<'a> KeyView<'a> {
    fn new(keys: &'a KeyManager, key: &'a ApiKey) -> Self {
        Self {
            id: Shown(key.id),
            name: key.name.as_str(),
            key_prefix: &key.key_prefix,
            status: key.status.as_str(),
            expired: key.is_expired(keys.now()),
            expires_at: key.expires_at.map(Shown),
            last_used_at: key.last_used_at.map(Shown),
            created_at: Shown(key.created_at),
            rotated_at: key.rotated_at.map(Shown),
            ip_allowlist: key.allowlist.entries(),
            revision: key.revision.get(),
            created_by: key.attributes.created_by.as_deref(),
            previous_secret_until: key.previous_until(keys.now()).map(Shown),
            environment: keys.environment_of(key),
            scopes: keys.scopes().map(|_| ScopesView(&key.attributes.scopes)),
        }
    }
}

/// Stored scopes that cannot be read are shown as what they amount to: an empty list.
struct ScopesView<'a>(&'a Scopes);

impl Serialize for ScopesView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.named() {
            None => serializer.serialize_str("all"),
            Some(scopes) => serializer.collect_seq(scopes.iter().map(Scope::as_str)),
        }
    }
}

#[derive(Serialize)]
pub(super) struct KeysView<'a> {
    keys: Vec<KeyView<'a>>,
    limits: Value,
    max_overlap_seconds: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    environments: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<Value>>,
}

impl<'a> KeysView<'a> {
    pub(super) fn new(keys: &'a KeyManager, org: &OrgId, list: &'a [Arc<ApiKey>]) -> Self {
        let Limits { max_keys, max_ips_per_key } = keys.limits(org);
        let environment =
            |of: &Environment| json!({"name": of.name(), "prefix": of.format().prefix()});
        let scope = |(name, description): (&Scope, &str)| json!({"name": name.as_str(), "description": description});
        Self {
            keys: list.iter().map(|key| KeyView::new(keys, key)).collect(),
            limits: json!({"max_keys": max_keys, "max_ips_per_key": max_ips_per_key}),
            max_overlap_seconds: keys.max_overlap().as_secs(),
            environments: keys.environments().map(environment).collect(),
            scopes: keys.scopes().map(|catalog| catalog.iter().map(scope).collect()),
        }
    }
}

/// A page of requests or of changes.
#[derive(Serialize)]
pub(super) struct PageView<R> {
    records: Vec<R>,
    older: Option<Shown<AuditCursor>>,
    newer: Option<Shown<AuditCursor>>,
}

impl<R> PageView<R> {
    fn new(page: &AuditPage, records: Vec<R>) -> Self {
        Self { records, older: page.older.map(Shown), newer: page.newer.map(Shown) }
    }
}

impl<'a> PageView<RequestView<'a>> {
    pub(super) fn of_requests(page: &'a AuditPage) -> Self {
        Self::new(page, page.records.iter().filter_map(RequestView::of).collect())
    }
}

impl<'a> PageView<ChangeView<'a>> {
    pub(super) fn of_changes(keys: &KeyManager, page: &'a AuditPage) -> Self {
        let records = page.records.iter().filter_map(|record| ChangeView::of(keys, record));
        Self::new(page, records.collect())
    }
}

#[derive(Serialize)]
pub(super) struct RequestView<'a> {
    timestamp: Shown<Timestamp>,
    method: &'a str,
    endpoint: &'a str,
    ip: Option<IpAddr>,
    country: Option<&'a str>,
    status: Option<u16>,
    outcome: &'static str,
    count: u32,
    secret: &'static str,
}

impl<'a> RequestView<'a> {
    /// `None` for a record that is not a request; the query's scope excludes them.
    fn of(record: &'a AuditRecord) -> Option<Self> {
        let AuditEvent::Request(request) = &record.event else { return None };
        Some(Self {
            timestamp: Shown(record.at),
            method: &request.method,
            endpoint: &request.endpoint,
            ip: request.ip,
            country: request.country.as_ref().map(|country| country.as_str()),
            status: request.status,
            outcome: request.outcome.as_str(),
            count: request.count,
            secret: request.secret.as_str(),
        })
    }
}

#[derive(Serialize)]
pub(super) struct UsageView {
    unit: &'static str,
    buckets: Vec<BucketView>,
}

#[derive(Serialize)]
struct BucketView {
    start: Shown<Timestamp>,
    allowed: u64,
    errors: u64,
    refused: u64,
}

impl From<&Usage> for UsageView {
    fn from(usage: &Usage) -> Self {
        let bucket = |UsageBucket { start, counts }: &UsageBucket| BucketView {
            start: Shown(*start),
            allowed: counts.allowed,
            errors: counts.errors(),
            refused: counts.refused,
        };
        Self { unit: usage.unit.as_str(), buckets: usage.buckets.iter().map(bucket).collect() }
    }
}

#[derive(Serialize)]
pub(super) struct ChangeView<'a> {
    timestamp: Shown<Timestamp>,
    key_id: Shown<KeyId>,
    actor: &'a str,
    action: &'static str,
    phase: &'static str,
    fields: Vec<FieldView<'a>>,
}

#[derive(Serialize)]
struct FieldView<'a> {
    name: &'a str,
    before: Value,
    after: Value,
}

impl<'a> ChangeView<'a> {
    /// `None` for a record that is not a change; the query's scope excludes them.
    fn of(keys: &KeyManager, record: &'a AuditRecord) -> Option<Self> {
        let AuditEvent::Change(change) = &record.event else { return None };
        // What the API shows of a key, it shows of a change.
        let is_shown = |field: &&ChangedField| match &*field.name {
            "metadata" => false,
            "scopes" => keys.scopes().is_some(),
            _ => true,
        };
        let shown = |field: &'a ChangedField| FieldView {
            name: &field.name,
            before: field.before.to_json(),
            after: field.after.to_json(),
        };
        Some(Self {
            timestamp: Shown(record.at),
            key_id: Shown(record.key),
            actor: &change.actor,
            action: change.action.as_str(),
            phase: change.phase.as_str(),
            fields: change.fields.iter().filter(is_shown).map(shown).collect(),
        })
    }
}

/// The response with one key.
pub(super) fn key_answer(keys: &KeyManager, key: &ApiKey) -> Response {
    ([(ETAG, etag(key.revision))], Json(KeyView::new(keys, key))).into_response()
}

#[derive(Serialize)]
struct IssuedView<'a> {
    key: KeyView<'a>,
    secret: &'a str,
}

/// The response with a key and its secret, which is sent only here. Its buffer is wiped
/// after sending.
pub(super) fn issued_answer(status: StatusCode, keys: &KeyManager, issued: &IssuedKey) -> Response {
    let key = KeyView::new(keys, &issued.key);
    // Allocated in full, since a buffer that grows leaves a copy behind.
    let mut body = Zeroizing::new(Vec::with_capacity(room_for(&key)));
    let view = IssuedView { key, secret: issued.secret.expose_secret() };
    // Cannot fail: a buffer accepts any data, and the keys of all maps are strings.
    let _ = serde_json::to_writer(&mut *body, &view);
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (ETAG, etag(issued.key.revision)),
    ];
    (status, headers, Body::from(Bytes::from_owner(body))).into_response()
}

/// At least as many bytes as the response with this key and its secret has.
fn room_for(key: &KeyView<'_>) -> usize {
    let entries: usize = key.ip_allowlist.iter().map(|entry| 2 * entry.len() + 3).sum();
    let created_by = key.created_by.map_or(0, |name| 6 * name.len());
    let scopes = key.scopes.as_ref().map_or(0, |_| Scopes::MAX * (Scope::MAX_LEN + 3));
    2_048 + entries + created_by + scopes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scopes::ScopeCatalog;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn there_is_room_for_the_longest_scopes() {
        let mut key = ApiKey::sample(1);
        let names = (0..Scopes::MAX).map(|n| format!("{n:064}"));
        key.attributes.scopes = Scopes::only(names).unwrap();
        let catalog = ScopeCatalog::new([("a", "")]).unwrap();
        let keys = KeyManager::builder(MemoryStore::new()).scopes(catalog).build().unwrap();
        let view = KeyView::new(&keys, &key);
        let room = room_for(&view);
        let secret = "x".repeat(256);
        let body = serde_json::to_vec(&IssuedView { key: view, secret: &secret }).unwrap();
        assert!(body.len() <= room, "{} bytes, room for {room}", body.len());
    }
}
