//! The tower layer and the axum extractor, in process: admission, answers and records.
#![cfg(feature = "axum")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod aborted;
mod answers;
mod client_ip;
mod credentials;
mod faults;
mod leaks;
mod places;
mod rates;
mod records;
mod scopes;
mod stack;
#[path = "../support/mod.rs"]
mod support;

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::routing::any;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use keygate::audit::{AuditEvent, AuditQuery, AuditScope, RequestEvent};
use keygate::guard::{ClientIp, PeerAddr, ProxyHeader};
use keygate::manager::KeyManagerBuilder;
use keygate::runtime::BoxFuture;
use keygate::{
    Actor, ApiKey, ApiKeyLayer, AuditLog, Delivery, Expiration, KeyId, KeyManager, KeyPatch,
    KeyStore, Network, NewKey, VerifiedKey,
};
use serde_json::Value;
use support::{Find, SpySink, SpyStore, TestClock, capture_logs, org};
use tower::{Layer, Service, ServiceExt, service_fn};

const START: &str = "2026-01-31T12:00:00Z";
const PEER: &str = "192.0.2.7";

/// A manager, and the parts around it that a test can break or inspect.
struct World {
    store: Arc<SpyStore>,
    sink: Arc<SpySink>,
    clock: TestClock,
    keys: KeyManager,
    actor: Actor,
}

impl World {
    /// Strict delivery, so that the records exist when the answer arrives.
    fn new() -> Self {
        Self::with(|builder| builder.delivery(Delivery::strict()))
    }

    fn with(configure: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder) -> Self {
        capture_logs();
        let store = Arc::new(SpyStore::default());
        let sink = Arc::new(SpySink::default());
        let clock = TestClock::at(START);
        let builder =
            KeyManager::builder(Arc::clone(&store)).audit(Arc::clone(&sink)).clock(clock.clone());
        let keys = configure(builder).build().unwrap();
        let actor = Actor::new(org("acme"), "ada");
        Self { store, sink, clock, keys, actor }
    }

    fn layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.keys.clone())
    }

    /// Creates a key. Returns its record and its text.
    async fn issue(&self, new: NewKey) -> (Arc<ApiKey>, String) {
        let issued = self.keys.create(&self.actor, new).await.unwrap();
        (issued.key, issued.secret.expose_secret().to_owned())
    }

    async fn key(&self) -> (Arc<ApiKey>, String) {
        self.issue(NewKey::named("key").unwrap()).await
    }

    async fn key_for(&self, allowlist: &[&str]) -> (Arc<ApiKey>, String) {
        self.issue(NewKey::named("key").unwrap().allow(allowlist).unwrap()).await
    }

    async fn revoke(&self, key: &ApiKey) {
        self.keys.update(&self.actor, &key.id, KeyPatch::revoke()).await.unwrap();
    }

    async fn delete(&self, key: &ApiKey) {
        self.keys.delete(&self.actor, &key.id).await.unwrap();
    }

    /// A revoked key, a restricted one and an expired one. The time is that of the expiry.
    async fn refused_keys(&self) -> [(Arc<ApiKey>, String); 3] {
        let revoked = self.key().await;
        self.revoke(&revoked.0).await;
        let restricted = self.key_for(&["203.0.113.77"]).await;
        let day = NewKey::named("day").unwrap().expires(Expiration::OneDay);
        let expired = self.issue(day).await;
        self.clock.set(expired.0.expires_at.unwrap());
        [revoked, restricted, expired]
    }

    /// The requests recorded for a key, oldest first.
    async fn requests(&self, id: KeyId) -> Vec<RequestEvent> {
        let scope = AuditScope::KeyRequests(id);
        let query = AuditQuery::new(self.actor.org().clone(), scope).limit(200);
        let page = self.sink.page(&query).await.unwrap();
        assert_eq!(page.older, None, "more records than this helper reads");
        let events = page.records.into_iter().rev().map(|record| {
            let AuditEvent::Request(request) = record.event else { panic!("{record:?}") };
            request
        });
        events.collect()
    }

    async fn last_request(&self, id: KeyId) -> RequestEvent {
        self.requests(id).await.pop().expect("a record")
    }

    async fn stored(&self, id: KeyId) -> Arc<ApiKey> {
        self.store.get(self.actor.org(), &id).await.unwrap().expect("the key")
    }
}

/// The answer that a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    async fn read<B>(response: Response<B>) -> Self
    where
        B: HttpBody<Data = Bytes>,
        B::Error: std::fmt::Debug,
    {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self { status: parts.status, headers: parts.headers, body }
    }

    fn challenge(&self) -> Option<&str> {
        self.headers.get(WWW_AUTHENTICATE).map(|value| value.to_str().unwrap())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as a problem document (RFC 9457) that matches the answer.
    fn problem(&self) -> Value {
        self.problem_of_type("about:blank")
    }

    /// The same for a type that ends so.
    fn problem_of_type(&self, end: &str) -> Value {
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json");
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["title"], self.status.canonical_reason().unwrap());
        assert!(problem["type"].as_str().unwrap().ends_with(end), "{problem}");
        problem
    }
}

/// A service behind the layer, built with any framework.
type Ask = Box<dyn Fn(Request<()>) -> BoxFuture<'static, Answer>>;

/// The same service in axum and as a plain tower service with another body type.
fn hosts(layer: &ApiKeyLayer) -> [(&'static str, Ask); 2] {
    [
        ("axum", in_axum(router().layer(layer.clone()))),
        ("tower", in_tower(layer.layer(service_fn(greet_in_tower)))),
    ]
}

fn router() -> Router {
    Router::new().route("/", any(greet)).fallback(greet)
}

async fn greet(key: Option<VerifiedKey>) -> String {
    key.map_or("nobody".into(), |key| key.name().to_string())
}

async fn greet_in_tower(request: Request<Unshared>) -> Result<Response<Unshared>, Infallible> {
    let key = request.extensions().get::<VerifiedKey>();
    let name = key.map_or("nobody".into(), |key| key.name().to_string());
    Ok(Response::new(Unshared::of(name)))
}

fn in_axum(router: Router) -> Ask {
    Box::new(move |request| {
        let router = router.clone();
        Box::pin(async move {
            let mut request = request.map(|()| Body::empty());
            if let Some(PeerAddr(peer)) = request.extensions_mut().remove() {
                request.extensions_mut().insert(ConnectInfo(peer));
            }
            Answer::read(router.oneshot(request).await.unwrap()).await
        })
    })
}

fn in_tower<S, B>(service: S) -> Ask
where
    S: Service<Request<Unshared>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes, Error: std::fmt::Debug> + Send,
{
    Box::new(move |request| {
        let service = service.clone();
        Box::pin(async move {
            let request = request.map(|()| Unshared::of(""));
            Answer::read(service.oneshot(request).await.unwrap()).await
        })
    })
}

/// A body that is `Send` but not `Sync`.
struct Unshared(Cell<Option<Bytes>>);

impl Unshared {
    fn of(text: impl Into<String>) -> Self {
        Self(Cell::new(Some(text.into().into())))
    }
}

impl HttpBody for Unshared {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A request from [`PEER`] with these `Authorization` lines.
fn request(path: &str, authorization: &[&[u8]]) -> Request<()> {
    let mut request = Request::builder().uri(path).body(()).unwrap();
    for line in authorization {
        let line = HeaderValue::from_bytes(line).unwrap();
        request.headers_mut().append(AUTHORIZATION, line);
    }
    from_peer(request, PEER)
}

fn from_peer(mut request: Request<()>, peer: &str) -> Request<()> {
    let peer = SocketAddr::new(peer.parse().unwrap(), 40_000);
    request.extensions_mut().insert(PeerAddr(peer));
    request
}

fn with_header(mut request: Request<()>, name: &'static str, value: &str) -> Request<()> {
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

fn bearer(key: &str) -> Request<()> {
    bearer_at("/", key)
}

fn bearer_at(path: &str, key: &str) -> Request<()> {
    request(path, &[format!("Bearer {key}").as_bytes()])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `text` as a key of the default format.
fn well_formed(text: &str) -> String {
    let key = signed(text);
    keygate::KeyFormat::default().digest(&key).expect("well-formed");
    key
}

/// `text` with the prefix of the default format and the right checksum.
fn signed(text: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let signed = format!("vsp_sk_{text}");
    let mut rest = crc32fast::hash(signed.as_bytes()) as usize;
    let mut checksum = [b'0'; 6];
    for place in checksum.iter_mut().rev() {
        *place = DIGITS[rest % 62];
        rest /= 62;
    }
    signed + std::str::from_utf8(&checksum).unwrap()
}

fn assert_refused(answer: &Answer, status: u16, code: &str, case: &str) {
    assert_eq!(answer.status, status, "{case}");
    let challenge = format!("Bearer realm=\"api\", error=\"{code}\"");
    assert_eq!(answer.challenge(), Some(&*challenge), "{case}");
    assert_eq!(answer.problem()["code"], code, "{case}");
}

fn assert_invalid_request(answer: &Answer, case: &str) {
    assert_refused(answer, 400, "invalid_request", case);
}

fn assert_invalid_token(answer: &Answer, case: &str) {
    assert_refused(answer, 401, "invalid_token", case);
}

const XFF: &str = "x-forwarded-for";

fn behind_proxies(world: &World, header: ProxyHeader) -> ApiKeyLayer {
    let proxies: [Network; 2] = ["10.0.0.0/8", "2001:db8:aaaa::/48"].map(|n| n.parse().unwrap());
    world.layer().client_ip(ClientIp::behind(proxies, header))
}

fn forwarded(key: &str, peer: &str, header: &'static str, lines: &[&str]) -> Request<()> {
    let request = from_peer(bearer(key), peer);
    lines.iter().fold(request, |request, line| with_header(request, header, line))
}

fn assert_unavailable(answer: &Answer, case: &str) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{case}");
    let retry = answer.headers[RETRY_AFTER].to_str().unwrap().parse::<u32>();
    assert!(retry.is_ok_and(|seconds| seconds >= 1), "{case}");
    assert_eq!(answer.challenge(), None, "{case}: a 503 has no challenge");
    assert_eq!(answer.problem()["code"], "unavailable", "{case}");
}

/// A store that answers at once, and one that answers later.
fn at_once_and_later() -> [Find; 2] {
    [Find::Honest, Find::Slow(Duration::from_millis(1))]
}
