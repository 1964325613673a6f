//! The rows of the table: routers, and the requests that they get.

use std::future::Future;
use std::hint::black_box;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::handler::Handler;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use axum::routing::get;
use axum::{Extension, Router};
use getrandom::SysRng;
use http_body_util::BodyExt;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use keygate::audit::AuditRecord;
use keygate::manager::{RateLimit, RateLimits};
use keygate::runtime::TokioRuntime;
use keygate::{
    Actor, ApiKeyLayer, AuditError, AuditSink, Delivery, Expiration, KeyFormat, KeyManager,
    KeyPatch, MemoryStore, NewKey, OrgId, Scopes, VerifiedKey,
};
use tokio::runtime::{self, Runtime};
use tower::Service;

use crate::by_hand::{ByHand, Claims, Everybody, Jwt, Static, Verify};
use crate::support::all_on;

/// Takes records and forgets them: what a database takes is another bench.
#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl AuditSink for Nowhere {
    async fn record(&self, _: &[AuditRecord]) -> Result<(), AuditError> {
        Ok(())
    }
}

/// For the manager's own tasks.
pub(crate) fn one_thread() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Its own tasks run on that runtime, not on the thread that makes the requests.
pub(crate) fn manager(runtime: &Runtime) -> KeyManager {
    let runtime = TokioRuntime::new(runtime.handle().clone());
    let builder = KeyManager::builder(MemoryStore::new()).runtime(runtime);
    builder.audit_sink(Nowhere).delivery(Delivery::buffered()).build().unwrap()
}

pub(crate) fn without_audit(runtime: &Runtime) -> KeyManager {
    let runtime = TokioRuntime::new(runtime.handle().clone());
    KeyManager::builder(MemoryStore::new()).runtime(runtime).build().unwrap()
}

pub(crate) fn with_all(runtime: &Runtime) -> KeyManager {
    let runtime = TokioRuntime::new(runtime.handle().clone());
    let builder = KeyManager::builder(MemoryStore::new()).runtime(runtime);
    all_on(builder.audit_sink(Nowhere).delivery(Delivery::buffered())).build().unwrap()
}

/// With a rate limit that no request reaches.
pub(crate) fn with_limit(runtime: &Runtime) -> KeyManager {
    let runtime = TokioRuntime::new(runtime.handle().clone());
    let limits = RateLimits::new(RateLimit::new(1_000_000_000, Duration::from_secs(1)).unwrap());
    let builder = KeyManager::builder(MemoryStore::new()).runtime(runtime).rate_limiter(limits);
    builder.audit_sink(Nowhere).delivery(Delivery::buffered()).build().unwrap()
}

/// A router and the requests that it gets.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    router: Router,
    method: Method,
    uri: Uri,
    host: HeaderValue,
    authorization: HeaderValue,
    expected: StatusCode,
}

impl Row {
    fn new(name: &'static str, router: Router, credential: &str, expected: StatusCode) -> Self {
        Self {
            name,
            // As `axum::serve` does, so that layers are not applied at each request.
            router: router.with_state(()),
            method: Method::GET,
            uri: Uri::from_static("/v1/things"),
            host: HeaderValue::from_static("api.example.com"),
            authorization: HeaderValue::try_from(format!("Bearer {credential}")).unwrap(),
            expected,
        }
    }

    /// The row with another path.
    fn at(mut self, path: &str) -> Self {
        self.uri = path.parse().unwrap();
        self
    }

    /// The row with another method.
    fn with(mut self, method: &str) -> Self {
        self.method = method.parse().unwrap();
        self
    }

    /// One request as a server makes it, answered and read to its end.
    pub(crate) fn ask(&mut self) {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(HOST, self.host.clone());
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        let peer = SocketAddr::from(([203, 0, 113, 7], 50_000));
        request.extensions_mut().insert(ConnectInfo(peer));
        let mut response = finish(self.router.call(request)).unwrap();
        assert_eq!(response.status(), self.expected, "{}", self.name);
        while let Some(frame) = finish(response.body_mut().frame()) {
            black_box(frame.unwrap());
        }
    }
}

/// How often a request waited for room in the audit queue.
pub(crate) static WAITED: AtomicU64 = AtomicU64::new(0);

/// Polls to the end. Nothing here waits but for room in the audit queue.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    if let Poll::Ready(done) = future.as_mut().poll(&mut cx) {
        return done;
    }
    WAITED.fetch_add(1, Relaxed);
    loop {
        thread::yield_now();
        if let Poll::Ready(done) = future.as_mut().poll(&mut cx) {
            return done;
        }
    }
}

pub(crate) const NO_AUTH: usize = 0;
pub(crate) const COMPARE: usize = 2;
pub(crate) const BY_HAND: usize = 4;
pub(crate) const KEYGATE: usize = 5;

/// The refusals come last.
pub(crate) fn rows(
    keys: &KeyManager,
    without_audit: &KeyManager,
    all: &KeyManager,
    limited: &KeyManager,
) -> Vec<Row> {
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    let entries = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "203.0.113.0/24"];
    let new = NewKey::named("CI deploy").unwrap().expires(Expiration::OneYear);
    let new = new.allow(entries).unwrap();
    let create = |keys: &KeyManager| finish(keys.create(&actor, new.clone())).unwrap();
    let (key, revoked) = (create(keys), create(keys));
    let (unaudited, within) = (create(without_audit), create(limited));
    let scopes = Scopes::only(["reports:read"]).unwrap();
    let scoped = new.clone().environment("test").scopes(scopes);
    let scoped = finish(all.create(&actor, scoped)).unwrap();
    finish(keys.update(&actor, &revoked.key.id, KeyPatch::revoke())).unwrap();
    let (key, revoked) = (key.secret.expose_secret(), revoked.secret.expose_secret());
    let long = |text: &str| format!("/{}", text.repeat(60_000 / text.len()));
    let unknown = KeyFormat::default().generate(&mut SysRng).unwrap();
    let last = if key.ends_with('a') { 'b' } else { 'a' };
    let malformed = format!("{}{last}", &key[..key.len() - 1]);
    let expected = Static(HeaderValue::try_from(format!("Bearer {key}")).unwrap());

    let secret = [7; 32];
    let exp = jsonwebtoken::get_current_timestamp() + 86_400;
    let claims = Claims { sub: "CI deploy".into(), org: "acme".into(), exp };
    let signing = EncodingKey::from_secret(&secret);
    let token = jsonwebtoken::encode(&Header::default(), &claims, &signing).unwrap();
    let jwt = Jwt(Arc::new((DecodingKey::from_secret(&secret), Validation::default())));

    let plain = route(async || "here you are");
    let of_claims = route(async |Extension(claims): Extension<Arc<Claims>>| {
        black_box((&claims.sub, &claims.org));
        "here you are"
    });
    let of_key = route(async |key: VerifiedKey| {
        black_box((key.name(), key.org()));
        "here you are"
    });
    let keygate = of_key.clone().layer(ApiKeyLayer::new(keys.clone()));
    let by_hand = of_key.clone().layer(ByHand(Verify(without_audit.clone())));
    let requires = ApiKeyLayer::new(all.clone()).require_scope("reports:read").unwrap();
    let requires = requires.key_header(HeaderName::from_static("x-api-key"));
    let all_on = of_key.clone().layer(requires);
    let with_limit = of_key.clone().layer(ApiKeyLayer::new(limited.clone()));
    let silent = of_key.layer(ApiKeyLayer::new(without_audit.clone()));
    let (ok, no) = (StatusCode::OK, StatusCode::UNAUTHORIZED);
    vec![
        Row::new("no auth", plain.clone(), key, ok),
        Row::new("no-op layer", plain.clone().layer(ByHand(Everybody)), key, ok),
        Row::new("static compare", plain.layer(ByHand(expected)), key, ok),
        Row::new("JWT decode", of_claims.layer(ByHand(jwt)), &token, ok),
        Row::new("verify by hand", by_hand, unaudited.secret.expose_secret(), ok),
        Row::new("keygate", keygate.clone(), key, ok),
        Row::new("keygate, no audit", silent, unaudited.secret.expose_secret(), ok),
        Row::new("keygate, rate limit", with_limit, within.secret.expose_secret(), ok),
        Row::new("keygate, all on", all_on, scoped.secret.expose_secret(), ok),
        Row::new("keygate: unknown", keygate.clone(), unknown.expose_secret(), no),
        Row::new("keygate: malformed", keygate.clone(), &malformed, no),
        Row::new("keygate: revoked", keygate.clone(), revoked, no),
        Row::new("revoked, 60 kB letters", keygate.clone(), revoked, no).at(&long("a")),
        Row::new("revoked, 60 kB digits", keygate.clone(), revoked, no).at(&long("0")),
        Row::new("revoked, 60 kB escaped", keygate.clone(), revoked, no).at(&long("%252530")),
        Row::new("revoked, 60 kB prefixes", keygate.clone(), revoked, no).at(&long("vsp_sk_")),
        Row::new("revoked, 60 kB method", keygate, revoked, no).with(&long("a")[1..]),
    ]
}

fn route<T: 'static>(handler: impl Handler<T, ()>) -> Router {
    Router::new().route("/v1/things", get(handler))
}
