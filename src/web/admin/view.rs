//! Keys and audit records as shown by the API.

use std::fmt::Display;
use std::net::IpAddr;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use crate::audit::log::{AuditCursor, AuditPage};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::key::id::KeyId;
use crate::manager::lifecycle::IssuedKey;
use crate::record::{ApiKey, Limits};
use crate::runtime::clock::Timestamp;
use crate::web::admin::precondition::etag;

/// Serialised as its `Display` text.
struct Shown<T>(T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[derive(Serialize)]
pub(super) struct KeyView<'a> {
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
    previous_secret_until: Option<Shown<Timestamp>>,
}

impl<'a> KeyView<'a> {
    pub(super) fn new(key: &'a ApiKey, now: Timestamp) -> Self {
        Self {
            id: Shown(key.id),
            name: key.name.as_str(),
            key_prefix: &key.key_prefix,
            status: key.status.as_str(),
            expired: key.is_expired(now),
            expires_at: key.expires_at.map(Shown),
            last_used_at: key.last_used_at.map(Shown),
            created_at: Shown(key.created_at),
            rotated_at: key.rotated_at.map(Shown),
            ip_allowlist: key.allowlist.entries(),
            revision: key.revision.get(),
            created_by: key.attributes.created_by.as_deref(),
            previous_secret_until: key.previous_until(now).map(Shown),
        }
    }
}

#[derive(Serialize)]
pub(super) struct KeysView<'a> {
    pub(super) keys: Vec<KeyView<'a>>,
    pub(super) limits: LimitsView,
    pub(super) max_overlap_seconds: u64,
}

#[derive(Serialize)]
pub(super) struct LimitsView {
    max_keys: u32,
    max_ips_per_key: u32,
}

impl From<Limits> for LimitsView {
    fn from(limits: Limits) -> Self {
        Self { max_keys: limits.max_keys, max_ips_per_key: limits.max_ips_per_key }
    }
}

#[derive(Serialize)]
pub(super) struct PageView<'a> {
    records: Vec<RecordView<'a>>,
    older: Option<Shown<AuditCursor>>,
    newer: Option<Shown<AuditCursor>>,
}

impl<'a> From<&'a AuditPage> for PageView<'a> {
    fn from(page: &'a AuditPage) -> Self {
        Self {
            records: page.records.iter().filter_map(RecordView::of).collect(),
            older: page.older.map(Shown),
            newer: page.newer.map(Shown),
        }
    }
}

#[derive(Serialize)]
struct RecordView<'a> {
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

impl<'a> RecordView<'a> {
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

/// The response with one key.
pub(super) fn key_answer(key: &ApiKey, now: Timestamp) -> Response {
    ([(ETAG, etag(key.revision))], Json(KeyView::new(key, now))).into_response()
}

#[derive(Serialize)]
struct IssuedView<'a> {
    key: KeyView<'a>,
    secret: &'a str,
}

/// The response with a key and its secret, which is sent only here. Its buffer is wiped
/// after sending.
pub(super) fn issued_answer(status: StatusCode, issued: &IssuedKey, now: Timestamp) -> Response {
    let key = KeyView::new(&issued.key, now);
    let entries: usize = key.ip_allowlist.iter().map(|entry| 2 * entry.len() + 3).sum();
    let created_by = key.created_by.map_or(0, |name| 6 * name.len());
    // Allocated in full, since a buffer that grows leaves a copy behind.
    let mut body = Zeroizing::new(Vec::with_capacity(2_048 + entries + created_by));
    let view = IssuedView { key, secret: issued.secret.expose_secret() };
    // Cannot fail: a buffer accepts any data, and the keys of all maps are strings.
    let _ = serde_json::to_writer(&mut *body, &view);
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (ETAG, etag(issued.key.revision)),
    ];
    (status, headers, Body::from(Bytes::from_owner(body))).into_response()
}
