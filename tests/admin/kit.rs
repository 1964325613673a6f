//! Shared by the tests of the management API: a router, and requests to it.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, IntoHeaderName};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use keygate::manager::KeyManagerBuilder;
use keygate::runtime::ManualClock;
use keygate::{Actor, ApiKey, KeyManager, KeyName, KeyStore, OrgId, StoreError, Timestamp};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Call, SpySink, SpyStore};

/// Every error code with its status.
pub(crate) const CODES: [(&str, u16); 14] = [
    ("malformed_body", 400),
    ("unauthenticated", 401),
    ("cross_site", 403),
    ("not_found", 404),
    ("method_not_allowed", 405),
    ("key_limit_reached", 409),
    ("conflict", 409),
    ("already_created", 409),
    ("stale_revision", 412),
    ("payload_too_large", 413),
    ("unsupported_media_type", 415),
    ("validation_failed", 422),
    ("confirmation_mismatch", 422),
    ("unavailable", 503),
];

/// The time at which every test starts.
pub(crate) const START: &str = "2026-01-31T12:00:00Z";

/// An id that belongs to no key.
pub(crate) const NO_KEY: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

/// The API over its own store, as one actor sees it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) router: Router,
    pub(crate) keys: KeyManager,
    pub(crate) store: Arc<SpyStore>,
    pub(crate) log: Arc<SpySink>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) actor: Actor,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(change: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder) -> Self {
        let (store, log) = (Arc::new(SpyStore::default()), Arc::new(SpySink::default()));
        let clock = Arc::new(ManualClock::new(START.parse::<Timestamp>().unwrap()));
        let builder = KeyManager::builder(store.clone()).audit(log.clone()).clock(clock.clone());
        let keys = change(builder).build().unwrap();
        let router = keygate::admin::router(keys.clone());
        Self { router, keys, store, log, clock, actor: actor("acme") }
    }

    /// Makes every later call of the store fail, and every page of the audit log.
    pub(crate) fn store_fails(&self) {
        self.log.unreadable.store(true, Ordering::SeqCst);
        self.store.before(|_| ready(Err(StoreError::unavailable("the disk is on fire"))));
    }

    /// Makes every later change lose to a concurrent change.
    pub(crate) fn conflict(&self) {
        self.store.before(|call| {
            let is_change = matches!(call, Call::Replace | Call::Delete);
            ready(if is_change { Err(StoreError::Conflict) } else { Ok(()) })
        });
    }

    /// Another caller renames the only key after it was read this many times.
    pub(crate) fn overtake_after(&self, reads: u8) {
        let (store, left) = (Arc::downgrade(&self.store), AtomicU8::new(reads));
        let org = self.actor.org().clone();
        self.store.after(move |call| {
            let is_last = call == Call::Get && left.fetch_sub(1, Ordering::SeqCst) == 1;
            let store = store.upgrade().filter(|_| is_last);
            let org = org.clone();
            async move {
                let Some(store) = store else { return Ok(()) };
                let key = store.snapshot(&org).await.remove(0);
                let name = KeyName::new("theirs").unwrap();
                let theirs = ApiKey { name, revision: key.revision.next(), ..key.clone() };
                store.inner.replace(&theirs, key.revision).await
            }
        });
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) fn set_time(&self, rfc3339: &str) {
        self.clock.set(rfc3339.parse::<Timestamp>().unwrap());
    }

    /// The same API for another organisation.
    pub(crate) fn of(&self, org: &str) -> Self {
        Self { actor: actor(org), ..self.clone() }
    }

    pub(crate) async fn get(&self, uri: &str) -> Reply {
        self.send(request(Method::GET, uri)).await
    }

    pub(crate) async fn post(&self, uri: &str, body: Value) -> Reply {
        self.send(with_json(request(Method::POST, uri), body)).await
    }

    pub(crate) async fn patch(&self, uri: &str, body: Value) -> Reply {
        self.send(with_json(request(Method::PATCH, uri), body)).await
    }

    pub(crate) async fn delete(&self, uri: &str) -> Reply {
        self.send(request(Method::DELETE, uri)).await
    }

    /// Creates a key of that name and returns the body of the answer.
    pub(crate) async fn create(&self, name: &str) -> Value {
        let reply = self.post("/keys", new_key(name)).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }

    /// Creates a key of that name and returns its path.
    pub(crate) async fn create_path(&self, name: &str) -> String {
        self.create_secret(name).await.0
    }

    /// Creates a key of that name and returns its path and its secret.
    pub(crate) async fn create_secret(&self, name: &str) -> (String, String) {
        let issued = self.create(name).await;
        (path_of(&issued), issued["secret"].as_str().unwrap().to_owned())
    }

    /// Rotates a key after its name was typed.
    pub(crate) async fn rotate(&self, path: &str, name: &str) -> Reply {
        self.send(rotation(path, name)).await
    }

    pub(crate) async fn verifies(&self, secret: &str) -> bool {
        self.keys.verify(secret, None).await.is_ok()
    }

    pub(crate) async fn send(&self, mut request: Request<Body>) -> Reply {
        request.extensions_mut().insert(self.actor.clone());
        send(&self.router, request).await
    }
}

/// The path of a key that was created or rotated.
pub(crate) fn path_of(issued: &Value) -> String {
    format!("/keys/{}", issued["key"]["id"].as_str().unwrap())
}

pub(crate) fn new_key(name: &str) -> Value {
    json!({"name": name, "expiration": "never"})
}

pub(crate) fn creation(name: &str) -> Request<Body> {
    with_json(request(Method::POST, "/keys"), new_key(name))
}

pub(crate) fn rotation(path: &str, name: &str) -> Request<Body> {
    with_json(request(Method::POST, &format!("{path}/rotate")), json!({"confirm_name": name}))
}

pub(crate) fn deletion(path: &str, name: &str) -> Request<Body> {
    request(Method::DELETE, &format!("{path}?confirm_name={name}"))
}

pub(crate) fn actor(org: &str) -> Actor {
    Actor::new(OrgId::new(org).unwrap(), "ada")
}

pub(crate) fn request(method: Method, uri: &str) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
}

pub(crate) fn with_json(mut request: Request<Body>, body: impl ToString) -> Request<Body> {
    *request.body_mut() = Body::from(body.to_string());
    with_header(request, CONTENT_TYPE, "application/json")
}

pub(crate) fn with_header(
    mut request: Request<Body>,
    name: impl IntoHeaderName,
    value: &str,
) -> Request<Body> {
    let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
    request.headers_mut().append(name, value);
    request
}

/// Sends the request unchanged and checks what holds for every answer: no caching, no
/// redirect, and only what the OpenAPI document describes.
pub(crate) async fn send(router: &Router, request: Request<Body>) -> Reply {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let head = method == Method::HEAD;
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let reply = Reply { status: parts.status, headers: parts.headers, body };
    crate::openapi::check(&method, &path, &reply).await;
    assert_eq!(reply.headers[CACHE_CONTROL], "no-store");
    if reply.status.is_success() {
        return reply;
    }
    assert_eq!(reply.headers[CONTENT_TYPE], "application/problem+json", "{}", reply.text());
    if !head {
        let problem = reply.json();
        let (_, status) = *CODES.iter().find(|(code, _)| problem["code"] == *code).unwrap();
        assert_eq!(reply.status, status);
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], "about:blank");
        assert_eq!(problem["title"], reply.status.canonical_reason().unwrap());
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        assert_eq!(problem["errors"].is_array(), problem["code"] == "validation_failed");
    }
    reply
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }

    /// The code of an error; empty for a success.
    pub(crate) fn code(&self) -> String {
        let json = serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The fields of a failed validation, in the order of the answer.
    pub(crate) fn fields(&self) -> Vec<String> {
        assert_eq!(self.code(), "validation_failed", "{}", self.text());
        let json = self.json();
        let errors = json["errors"].as_array().unwrap();
        assert!(errors.iter().all(|e| e["message"].as_str().is_some_and(|m| !m.is_empty())));
        errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}
