//! The tower layer and the axum extractor, in process: what gets in, what is answered, what is recorded.
#![cfg(feature = "axum")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::{Future, Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path};
use axum::routing::{any, get};
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use keygate::{
    Actor, AdmitError, Allowlist, ApiKey, ApiKeyLayer, AuditEvent, AuditLog, AuditQuery,
    AuditScope, BoxFuture, ClientIp, CountryCode, CountryLookup, Delivery, Expiration, KeyDigest,
    KeyFormat, KeyId, KeyManager, KeyManagerBuilder, KeyName, KeyPatch, KeyStore, Network, NewKey,
    OrgId, OrgLimit, Outcome, PeerAddr, ProxyHeader, RequestEvent, RequestInfo, ResponseBody,
    ResponseFuture, SystemRandom, Timestamp, VerifiedKey, VerifyError, WhenFull,
};
use serde_json::Value;
use support::{
    Find, Gate, Hands, PATIENCE, Sink, SpySink, SpyStore, assert_no_leak, capture_logs, eventually,
    logs,
};
use tokio::sync::Notify;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::classify::{ServerErrorsAsFailures, SharedClassifier};
use tower_http::cors::CorsLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

const START: &str = "2026-01-31T12:00:00Z";
const PEER: &str = "192.0.2.7";
/// Far longer than any deadline set here, far shorter than a hang.
const SOON: Duration = Duration::from_secs(10);

/// A manager, and everything around it that a test may spoil or look into.
struct World {
    store: Arc<SpyStore>,
    sink: Arc<SpySink>,
    clock: Hands,
    keys: KeyManager,
    actor: Actor,
}

impl World {
    /// Strict, so that what is recorded is recorded when the answer is there.
    fn new() -> Self {
        Self::with(|builder| builder.delivery(Delivery::strict()))
    }

    fn with(configure: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder) -> Self {
        capture_logs();
        let store = Arc::new(SpyStore::default());
        let sink = Arc::new(SpySink::default());
        let clock = Hands::at(START);
        let builder =
            KeyManager::builder(Arc::clone(&store)).audit(Arc::clone(&sink)).clock(clock.clone());
        let keys = configure(builder).build().unwrap();
        let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
        Self { store, sink, clock, keys, actor }
    }

    fn layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.keys.clone())
    }

    /// Makes a key; its record and its text.
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

    /// The requests recorded for a key, oldest first.
    async fn requests(&self, id: KeyId) -> Vec<RequestEvent> {
        let scope = AuditScope::KeyRequests(id);
        let query = AuditQuery::new(self.actor.org().clone(), scope).limit(200);
        let page = self.sink.page(&query).await.unwrap();
        assert_eq!(page.older, None, "more records than this helper reads");
        let events = page.records.into_iter().rev().map(|record| match record.event {
            AuditEvent::Request(request) => request,
            other => panic!("{other:?}"),
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

/// What a caller gets.
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

    /// The body as a problem (RFC 9457) that fits the answer.
    fn problem(&self) -> Value {
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json");
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["title"], self.status.canonical_reason().unwrap());
        assert!(problem["type"].is_string());
        problem
    }
}

/// A service behind the layer, whatever it is made with.
type Ask = Box<dyn Fn(Request<()>) -> BoxFuture<'static, Answer>>;

/// The same service in axum, and as a plain tower service over another body.
fn hosts(layer: &ApiKeyLayer) -> [(&'static str, Ask); 2] {
    [("axum", in_axum(router().layer(layer.clone()))), ("tower", in_tower(layer))]
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

fn in_tower(layer: &ApiKeyLayer) -> Ask {
    let service = layer.layer(service_fn(greet_in_tower));
    Box::new(move |request| {
        let service = service.clone();
        Box::pin(async move {
            let request = request.map(|()| Unshared::of(""));
            Answer::read(service.oneshot(request).await.unwrap()).await
        })
    })
}

/// A body that may be sent to another thread and not be shared with one.
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

/// A key of the default format that no store has.
fn unknown_key() -> String {
    let key = KeyFormat::default().generate(&SystemRandom).unwrap();
    key.expose_secret().to_owned()
}

/// `text` as a key of the default format.
fn well_formed(text: &str) -> String {
    let key = signed(text);
    KeyFormat::default().digest(&key).expect("well-formed");
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

// ---------------------------------------------------------------- credentials

#[tokio::test]
async fn case_01_no_header_is_a_bare_challenge() {
    let world = World::new();
    for (host, ask) in hosts(&world.layer()) {
        let answer = ask(request("/", &[])).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{host}");
        assert_eq!(answer.challenge(), Some("Bearer realm=\"api\""), "{host}");
        assert_eq!(answer.problem()["code"], Value::Null, "{host}: no error code");
    }
    assert_eq!(world.store.calls(), 0);
}

#[tokio::test]
async fn case_02_the_scheme_is_case_insensitive_and_spaces_are_skipped() {
    let world = World::new();
    let (_, key) = world.key().await;
    for (host, ask) in hosts(&world.layer()) {
        for scheme in ["Bearer ", "bearer ", "BEARER ", "bEARER     "] {
            let answer = ask(request("/", &[format!("{scheme}{key}").as_bytes()])).await;
            assert_eq!(
                (answer.status, answer.text()),
                (StatusCode::OK, "key"),
                "{host} {scheme:?}"
            );
        }
    }
}

#[tokio::test]
async fn case_03_two_authorization_lines_are_refused_whatever_they_say() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    let good = format!("Bearer {key}");
    let bad = format!("Bearer {}", unknown_key());
    for lines in [
        [good.as_str(), good.as_str()],
        [&good, &bad],
        [&bad, &good],
        [&good, "Basic dTpw"],
        ["Basic dTpw", &good],
        ["", &good],
        ["Basic dTpw", "Basic dTpw"],
    ] {
        for layer in [world.layer(), world.layer().optional()] {
            for (host, ask) in hosts(&layer) {
                let answer = ask(request("/", &lines.map(str::as_bytes))).await;
                assert_invalid_request(&answer, host);
            }
        }
    }
    assert_eq!(world.store.calls(), before, "refused unseen");
}

fn assert_invalid_request(answer: &Answer, case: &str) {
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{case}");
    let challenge = "Bearer realm=\"api\", error=\"invalid_request\"";
    assert_eq!(answer.challenge(), Some(challenge), "{case}");
    assert_eq!(answer.problem()["code"], "invalid_request", "{case}");
}

#[tokio::test]
async fn case_04_two_credentials_in_one_line_are_refused() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    for line in [
        format!("Bearer {key},Bearer {key}"),
        format!("Bearer {key}, {}", unknown_key()),
        format!("Bearer {key} {key}"),
        format!("Bearer {key},"),
        format!("Bearer ,{key}"),
        format!("Bearer {key}, Basic dTpw"),
    ] {
        for layer in [world.layer(), world.layer().optional()] {
            for (host, ask) in hosts(&layer) {
                assert_invalid_request(&ask(request("/", &[line.as_bytes()])).await, host);
            }
        }
    }
    assert_eq!(world.store.calls(), before, "refused unseen");
}

#[tokio::test]
async fn case_04_a_key_anywhere_else_never_authenticates() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    let elsewhere = || {
        let query = ["api_key", "access_token", "key", "Authorization"];
        let queries = query.map(|name| request(&format!("/?{name}={key}"), &[]));
        let bearer = format!("Bearer {key}");
        let mut requests = Vec::from(queries);
        requests.push(request(&format!("/{key}"), &[]));
        for name in ["x-api-key", "api-key", "proxy-authorization", "x-authorization"] {
            requests.push(with_header(request("/", &[]), name, &key));
            requests.push(with_header(request("/", &[]), name, &bearer));
        }
        requests.push(with_header(request("/", &[]), "cookie", &format!("api_key={key}")));
        for scheme in ["", "Basic ", "ApiKey ", "Token ", "Bearer_", "Bearer:"] {
            requests.push(request("/", &[format!("{scheme}{key}").as_bytes()]));
        }
        requests
    };
    for (host, ask) in hosts(&world.layer()) {
        for request in elsewhere() {
            let case = format!("{host} {request:?}");
            assert_eq!(ask(request).await.status, StatusCode::UNAUTHORIZED, "{case}");
        }
    }
    for (host, ask) in hosts(&world.layer().optional()) {
        for request in elsewhere() {
            let case = format!("{host} {request:?}");
            let answer = ask(request).await;
            assert!(
                answer.status == StatusCode::UNAUTHORIZED || answer.text() == "nobody",
                "{case}"
            );
        }
    }
    assert_eq!(world.store.calls(), before, "never looked up");
}

#[tokio::test]
async fn case_05_what_is_no_key_is_refused_unseen() {
    let world = World::new();
    let huge = [b"Bearer ", &[b'a'; 65_536][..]].concat();
    let huge_with_commas = [b"Bearer ", &[b','; 65_536][..]].concat();
    let long = [b"Bearer ", &[b'a'; 257][..]].concat();
    let tab = format!("Bearer\t{}", unknown_key());
    for (host, ask) in hosts(&world.layer()) {
        for line in [&b""[..], b" ", b"Bearer", b"Bearer ", b"Bearer    ", b"bearer\t"] {
            let answer = ask(request("/", &[line])).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{host} {line:?}");
        }
        for line in [
            &huge[..],
            &huge_with_commas,
            &long,
            b"Bearer \xff\xfe\x80",
            "Bearer clé".as_bytes(),
            tab.as_bytes(),
        ] {
            assert_invalid_token(&ask(request("/", &[line])).await, host);
        }
    }
    assert_eq!(world.store.calls(), 0);
}

fn assert_invalid_token(answer: &Answer, case: &str) {
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{case}");
    let challenge = "Bearer realm=\"api\", error=\"invalid_token\"";
    assert_eq!(answer.challenge(), Some(challenge), "{case}");
    assert_eq!(answer.problem()["code"], "invalid_token", "{case}");
}

#[tokio::test]
async fn case_06_a_malformed_key_is_refused_like_an_unknown_one_and_unseen() {
    let world = World::new();
    let (_, key) = world.key().await;
    let mut typo = key.clone();
    let last = typo.pop().unwrap();
    typo.push(if last == '0' { '1' } else { '0' });
    let malformed = [
        typo,
        key.replacen("vsp_sk_", "vsp_pk_", 1),
        key.replacen("vsp_sk_", "VSP_SK_", 1),
        key["vsp_sk_".len()..].to_owned(),
        key[..key.len() - 1].to_owned(),
        format!("{key}0"),
        format!("{key}="),
        format!("\"{key}\""),
        format!("vsp_sk_{}", "0".repeat(48)),
        key.to_lowercase(),
        // The checksum is right, and nothing else.
        signed(&"0".repeat(41)),
        signed(&"0".repeat(43)),
        signed(&format!("{}-", "0".repeat(41))),
    ];
    well_formed(&"0".repeat(42));
    for layer in [world.layer(), world.layer().optional()] {
        for (host, ask) in hosts(&layer) {
            let unknown = ask(bearer(&unknown_key())).await;
            assert_invalid_token(&unknown, host);
            let before = world.store.calls();
            for malformed in &malformed {
                assert_eq!(ask(bearer(malformed)).await, unknown, "{host} {malformed}");
            }
            assert_eq!(world.store.calls(), before, "{host}: never looked up");
        }
    }
}

#[tokio::test]
async fn case_07_unknown_revoked_expired_deleted_and_rotated_cannot_be_told_apart() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let world = World::with(|builder| builder.delivery(delivery));
        let (revoked, revoked_key) = world.key().await;
        world.revoke(&revoked).await;
        let day = NewKey::named("day").unwrap().expires(Expiration::OneDay);
        let (expired, expired_key) = world.issue(day).await;
        world.clock.set(expired.expires_at.unwrap());
        let (deleted, deleted_key) = world.key().await;
        world.delete(&deleted).await;
        let (rotated, rotated_key) = world.key().await;
        world.keys.rotate(&world.actor, &rotated.id).await.unwrap();

        for layer in [world.layer(), world.layer().optional()] {
            for (host, ask) in hosts(&layer) {
                let before = world.store.calls();
                let unknown = ask(bearer(&unknown_key())).await;
                let calls = world.store.calls() - before;
                assert_invalid_token(&unknown, host);
                assert_eq!(calls, 1, "{host}: one look-up");
                for key in [&revoked_key, &expired_key, &deleted_key, &rotated_key] {
                    let before = world.store.calls();
                    assert_eq!(ask(bearer(key)).await, unknown, "{host}");
                    assert_eq!(world.store.calls() - before, calls, "{host}");
                }
            }
        }
    }
}

#[tokio::test]
async fn case_08_what_is_stored_of_a_key_is_no_credential() {
    let world = World::new();
    // A digest of which every byte may stand in a header.
    let fits = |b: &u8| (0x21..=0xff).contains(b) && *b != 0x7f && *b != b',';
    let (secret, digest) = loop {
        let secret = KeyFormat::default().generate(&SystemRandom).unwrap();
        let digest = secret.digest();
        if digest.as_bytes().iter().all(fits) {
            break (secret, digest);
        }
    };
    let key = ApiKey { digest, ..stored_key() };
    world.store.insert(&key, OrgLimit::NONE).await.unwrap();
    let digest = digest.as_bytes();
    let hex = digest.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    let base64 = base64(digest);
    let texts = [
        hex.clone(),
        hex.to_uppercase(),
        format!("vsp_sk_{hex}"),
        well_formed(&hex[..42]),
        well_formed(&hex[22..]),
        base64.clone(),
        base64.trim_end_matches('=').to_owned(),
        base64.replace('+', "-").replace('/', "_"),
        format!("vsp_sk_{base64}"),
        format!("sha256:{hex}"),
        key.id.to_string(),
        key.id.to_string().replace('-', ""),
        format!("vsp_sk_{}", key.id),
        key.key_prefix.clone(),
    ];
    for (host, ask) in hosts(&world.layer()) {
        let raw = [b"Bearer ", &digest[..]].concat();
        assert_invalid_token(&ask(request("/", &[&raw])).await, host);
        for text in &texts {
            assert_invalid_token(&ask(bearer(text)).await, &format!("{host} {text}"));
        }
        // The same record lets the key itself in.
        assert_eq!(ask(bearer(secret.expose_secret())).await.text(), "stored");
    }
}

/// A key as a store may hold it.
fn stored_key() -> ApiKey {
    ApiKey {
        id: KeyId::random(&SystemRandom).unwrap(),
        org: OrgId::new("acme").unwrap(),
        name: KeyName::new("stored").unwrap(),
        digest: KeyDigest::of("something"),
        created_at: Timestamp::parse(START).unwrap(),
        ..ApiKey::sample(0)
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0, |word, byte| word << 8 | usize::from(*byte));
        let word = word << (8 * (3 - three.len()));
        for digit in 0..4 {
            let shown = digit <= three.len();
            text.push(if shown { DIGITS[word >> (18 - 6 * digit) & 63].into() } else { '=' });
        }
    }
    text
}

#[tokio::test]
async fn case_09_a_store_that_finds_the_wrong_record_lets_nobody_in() {
    // A record with a digest of zeros cannot even be made.
    assert!(KeyDigest::from_slice(&[0; 32]).is_err());
    assert!(KeyDigest::from_slice(&[]).is_err());

    let world = World::new();
    let (other, _) = world.key().await;
    for wrong in [
        ApiKey::clone(&other),
        ApiKey { digest: KeyDigest::of(""), ..stored_key() },
        ApiKey { digest: KeyDigest::from_slice(&[255; 32]).unwrap(), ..stored_key() },
    ] {
        let id = wrong.id;
        world.store.find(Find::Always(Arc::new(wrong)));
        for (host, ask) in hosts(&world.layer()) {
            assert_invalid_token(&ask(bearer(&unknown_key())).await, host);
        }
        assert_eq!(world.requests(id).await, [], "no request of that key");
    }
}

#[tokio::test]
async fn case_10_a_key_is_expired_from_its_very_instant_on() {
    let world = World::new();
    let at = Timestamp::parse("2026-02-01T00:00:00Z").unwrap();
    let micro = Duration::from_micros(1);
    let new = NewKey::named("key").unwrap().expires(Expiration::At(at));
    let (record, key) = world.issue(new).await;
    let before = at.saturating_sub(micro);
    let mut outcomes = Vec::new();
    for (now, allowed) in [
        (before, true),
        (at, false),
        (at.saturating_add(micro), false),
        (Timestamp::MAX, false),
        // The clock steps back: as documented, the key is valid again.
        (before, true),
        (record.created_at.saturating_sub(Duration::from_secs(1)), true),
        (Timestamp::MIN, true),
        (at, false),
    ] {
        world.clock.set(now);
        for (host, ask) in hosts(&world.layer()) {
            let answer = ask(bearer(&key)).await;
            let status = if allowed { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            assert_eq!(answer.status, status, "{host} at {now}");
            outcomes.push(if allowed { Outcome::Allowed } else { Outcome::Expired });
        }
    }
    // The log is ordered by time, which did not only go forward.
    let mut found: Vec<_> =
        world.requests(record.id).await.iter().map(|r| r.outcome.as_str()).collect();
    let mut expected: Vec<_> = outcomes.into_iter().map(Outcome::as_str).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    // By a clock that has stepped back by ages, the earlier uses were in the future.
    assert!(world.keys.shutdown(PATIENCE).await.is_complete());
    assert_eq!(world.stored(record.id).await.last_used_at, Some(Timestamp::MIN));
}

// ------------------------------------------------------------------ client ip

fn behind_proxies(world: &World, header: ProxyHeader) -> ApiKeyLayer {
    let proxies: [Network; 2] = ["10.0.0.0/8", "2001:db8:aaaa::/48"].map(|n| n.parse().unwrap());
    world.layer().client_ip(ClientIp::behind(proxies, header))
}

fn forwarded(key: &str, peer: &str, header: &'static str, lines: &[&str]) -> Request<()> {
    let request = from_peer(bearer(key), peer);
    lines.iter().fold(request, |request, line| with_header(request, header, line))
}

/// Asks with a key for `192.0.2.0/24` and `2001:db8::/32` only, and says what came of it.
async fn decide(
    world: &World,
    layer: &ApiKeyLayer,
    peer: &str,
    header: &'static str,
    lines: &[&str],
) -> (u16, Option<IpAddr>) {
    let (record, key) = world.key_for(&["192.0.2.0/24", "2001:db8::/32"]).await;
    let mut results = Vec::new();
    for (_, ask) in hosts(layer) {
        let answer = ask(forwarded(&key, peer, header, lines)).await;
        let event = world.last_request(record.id).await;
        assert_eq!(event.status, Some(answer.status.as_u16()));
        let allowed = answer.status == StatusCode::OK;
        let outcome = if allowed { Outcome::Allowed } else { Outcome::IpNotAllowed };
        assert_eq!(event.outcome, outcome);
        results.push((answer.status.as_u16(), event.ip));
    }
    world.delete(&record).await;
    assert_eq!(results[0], results[1], "axum and tower agree");
    results[0]
}

const XFF: &str = "x-forwarded-for";

#[tokio::test]
async fn case_11_a_forged_leftmost_entry_neither_decides_nor_is_recorded() {
    let world = World::new();
    let layer = behind_proxies(&world, ProxyHeader::XForwardedFor);
    for (lines, decision) in [
        // The client claims an allowed address; the proxy saw another.
        (&["192.0.2.1, 203.0.113.9"][..], (403, ip("203.0.113.9"))),
        (&["192.0.2.1", "203.0.113.9"], (403, ip("203.0.113.9"))),
        (&["192.0.2.1, 203.0.113.9, 10.0.0.2"], (403, ip("203.0.113.9"))),
        (&["6.6.6.6, 192.0.2.1"], (200, ip("192.0.2.1"))),
    ] {
        let (status, ip) = decide(&world, &layer, "10.0.0.1", XFF, lines).await;
        assert_eq!((status, ip), (decision.0, Some(decision.1)), "{lines:?}");
    }
}

#[tokio::test]
async fn case_12_forwarding_headers_of_others_are_ignored() {
    let world = World::new();
    let xff = behind_proxies(&world, ProxyHeader::XForwardedFor);
    let rfc = behind_proxies(&world, ProxyHeader::Forwarded);
    let claim = &["192.0.2.1"];
    let forwarded = &["for=192.0.2.1"];
    // No proxy: the peer counts, whatever it claims.
    for (layer, header, lines) in [
        (&xff, XFF, claim),
        (&rfc, "forwarded", forwarded),
        (&world.layer(), XFF, claim),
        (&world.layer(), "forwarded", forwarded),
        (&world.layer(), "x-real-ip", claim),
    ] {
        let decision = decide(&world, layer, "203.0.113.5", header, lines).await;
        assert_eq!(decision, (403, Some(ip("203.0.113.5"))), "{header}");
    }
    // Unless proxies are named, nobody is one.
    let decision = decide(&world, &world.layer(), "10.0.0.1", XFF, claim).await;
    assert_eq!(decision, (403, Some(ip("10.0.0.1"))));
    // A proxy, but not the header that it writes: the address is not known.
    for (layer, header, lines) in
        [(&xff, "forwarded", forwarded), (&rfc, XFF, claim), (&xff, "x-real-ip", claim)]
    {
        let decision = decide(&world, layer, "10.0.0.1", header, lines).await;
        assert_eq!(decision, (403, None), "{header}");
    }
}

#[tokio::test]
async fn case_13_every_spelling_gives_the_right_address_or_none() {
    let world = World::new();
    let xff = behind_proxies(&world, ProxyHeader::XForwardedFor);
    let known = |status, text: &str| (status, Some(ip(text)));
    for (lines, decision) in [
        (&["192.0.2.1:4711"][..], known(200, "192.0.2.1")),
        (&["[2001:db8::1]:443"], known(200, "2001:db8::1")),
        (&["2001:DB8:0::1"], known(200, "2001:db8::1")),
        (&["::ffff:192.0.2.1"], known(200, "192.0.2.1")),
        (&["192.0.2.1", "10.9.9.9"], known(200, "192.0.2.1")),
        (&["6.6.6.6", "192.0.2.1", "2001:db8:aaaa::1"], known(200, "192.0.2.1")),
        (&["192.0.2.1,, ,10.1.1.1,"], known(200, "192.0.2.1")),
        (&["192.0.2.1", "", " , "], known(200, "192.0.2.1")),
        (&["unknown, 192.0.2.1"], known(200, "192.0.2.1")),
        (&["192.0.2.1, unknown"], (403, None)),
        (&["192.0.2.1, _obf"], (403, None)),
        (&["192.0.2.1", "010.0.0.1"], (403, None)),
        (&["192.0.2.1, 10.0.0.1%eth0"], (403, None)),
        (&["192.0.2.1;10.0.0.1"], (403, None)),
    ] {
        let found = decide(&world, &xff, "10.0.0.1", XFF, lines).await;
        assert_eq!(found, decision, "{lines:?}");
    }
    let rfc = behind_proxies(&world, ProxyHeader::Forwarded);
    for (lines, decision) in [
        (&["for=192.0.2.1;proto=https"][..], known(200, "192.0.2.1")),
        (&["for=6.6.6.6, FOR=\"[2001:db8::1]:443\""], known(200, "2001:db8::1")),
        (&["for=192.0.2.1", "for=10.0.0.3"], known(200, "192.0.2.1")),
        (&["for=192.0.2.1, for=_hidden"], (403, None)),
        (&["for=192.0.2.1;for=192.0.2.1"], (403, None)),
        (&["for=\"192.0.2.1"], (403, None)),
        (&["for=192.0.2.1", "for=\"10.0.0.3"], (403, None)),
        (&["for=\"10.0.0.3", "for=192.0.2.1"], known(200, "192.0.2.1")),
    ] {
        let found = decide(&world, &rfc, "10.0.0.1", "forwarded", lines).await;
        assert_eq!(found, decision, "{lines:?}");
    }
}

#[tokio::test]
async fn case_14_an_unknown_address_is_on_no_allowlist() {
    let world = World::new();
    let layer = behind_proxies(&world, ProxyHeader::XForwardedFor);
    for lines in [&["10.0.0.2, 10.0.0.3"][..], &[], &[""]] {
        let decision = decide(&world, &layer, "10.0.0.1", XFF, lines).await;
        assert_eq!(decision, (403, None), "{lines:?}");
    }
    // Not even on one that every address is on.
    let (everybody, key) = world.key_for(&["0.0.0.0/0", "::/0"]).await;
    let (free, free_key) = world.key().await;
    for layer in [world.layer(), layer] {
        for (host, ask) in hosts(&layer) {
            let no_peer = |key: &str| {
                let mut request = bearer(key);
                request.extensions_mut().remove::<PeerAddr>();
                with_header(request, XFF, "192.0.2.1")
            };
            let answer = ask(no_peer(&key)).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{host}");
            assert_eq!(world.last_request(everybody.id).await.ip, None);
            assert_eq!(ask(no_peer(&free_key)).await.status, StatusCode::OK, "{host}");
            assert_eq!(world.last_request(free.id).await.ip, None);
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{host}");
        }
    }
}

#[tokio::test]
async fn case_15_a_mapped_address_is_the_ipv4_one() {
    let world = World::new();
    for list in [&["10.0.0.0/8"][..], &["::ffff:10.0.0.0/104"], &["::ffff:10.0.0.1"]] {
        let (record, key) = world.key_for(list).await;
        for (host, ask) in hosts(&world.layer()) {
            for (peer, status) in [
                ("::ffff:10.0.0.1", StatusCode::OK),
                ("10.0.0.1", StatusCode::OK),
                ("::ffff:11.0.0.1", StatusCode::FORBIDDEN),
                ("::10.0.0.1", StatusCode::FORBIDDEN),
            ] {
                let answer = ask(from_peer(bearer(&key), peer)).await;
                assert_eq!(answer.status, status, "{host} {peer} {list:?}");
                let shown = world.last_request(record.id).await.ip;
                assert_eq!(shown, Some(ip(peer).to_canonical()), "{host} {peer}");
            }
        }
        let shown = world.stored(record.id).await.allowlist.entries();
        assert!(shown.iter().all(|entry| entry.starts_with("10.0.0.")), "{shown:?}");
    }
}

#[tokio::test]
async fn case_17_a_stored_allowlist_that_does_not_parse_allows_nobody() {
    let world = World::new();
    for damaged in [&["10.0.0.0/8", "10.0.0."][..], &[""], &["0.0.0.0/0", "x"], &["null"]] {
        let secret = KeyFormat::default().generate(&SystemRandom).unwrap();
        let allowlist = Allowlist::restore(damaged);
        let key = ApiKey { digest: secret.digest(), allowlist, ..stored_key() };
        world.store.insert(&key, OrgLimit::NONE).await.unwrap();
        for (host, ask) in hosts(&world.layer()) {
            for peer in ["10.0.0.1", "192.0.2.7", "::1"] {
                let answer = ask(from_peer(bearer(secret.expose_secret()), peer)).await;
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{host} {peer} {damaged:?}");
                assert_eq!(world.last_request(key.id).await.outcome, Outcome::IpNotAllowed);
            }
        }
    }
}

#[test]
fn case_20_an_organisation_without_a_name_cannot_be_made() {
    assert!(OrgId::new("").is_err());
    assert!(OrgId::new("\0").is_err());
}

// -------------------------------------------------------- concurrency, faults

#[tokio::test]
async fn case_30_a_key_deleted_during_its_verification_does_not_come_back() {
    // The look-up finds the key first and answers late, or comes late itself.
    let held: [fn(Arc<Gate>) -> Find; 2] = [Find::HeldAfter, Find::HeldBefore];
    for hold in held {
        let world = World::new();
        let (deleted, key) = world.key().await;
        let (other, other_key) = world.key().await;
        let ask = in_axum(router().layer(world.layer()));

        let gate = Arc::new(Gate::default());
        world.store.find(hold(Arc::clone(&gate)));
        let late = tokio::spawn(ask(bearer(&key)));
        gate.reached.notified().await;
        world.delete(&deleted).await;
        gate.opened.notify_one();
        let late = late.await.unwrap();
        assert!([StatusCode::OK, StatusCode::UNAUTHORIZED].contains(&late.status));
        world.store.find(Find::Honest);

        for _ in 0..3 {
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::UNAUTHORIZED);
        }
        // Once the uses are written, that of the deleted key was, too.
        assert_eq!(ask(bearer(&other_key)).await.status, StatusCode::OK);
        eventually("a last-used time", PATIENCE, async || {
            world.stored(other.id).await.last_used_at
        })
        .await;
        let ids: Vec<_> =
            world.keys.list(world.actor.org()).await.unwrap().iter().map(|key| key.id).collect();
        assert_eq!(ids, [other.id]);
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn case_28_a_request_that_starts_after_a_change_returned_sees_it() {
    let world = World::new();
    for (_, ask) in hosts(&world.layer()) {
        let (record, key) = world.key().await;
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
        world.revoke(&record).await;
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::UNAUTHORIZED);
        world.keys.update(&world.actor, &record.id, KeyPatch::enable()).await.unwrap();
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
        let rotated = world.keys.rotate(&world.actor, &record.id).await.unwrap();
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::UNAUTHORIZED);
        let key = rotated.secret.expose_secret();
        assert_eq!(ask(bearer(key)).await.status, StatusCode::OK);
        world.delete(&record).await;
        assert_eq!(ask(bearer(key)).await.status, StatusCode::UNAUTHORIZED);
    }
}

fn assert_unavailable(answer: &Answer, case: &str) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{case}");
    let retry = answer.headers[RETRY_AFTER].to_str().unwrap().parse::<u32>();
    assert!(retry.is_ok_and(|seconds| seconds >= 1), "{case}");
    assert_eq!(answer.challenge(), None, "{case}: it is not the credential's fault");
    assert_eq!(answer.problem()["code"], "unavailable", "{case}");
}

#[tokio::test]
async fn case_32_a_store_that_fails_or_hangs_is_503_in_time_and_recovers() {
    let deadline = Duration::from_millis(50);
    let world = World::with(|builder| builder.store_deadline(deadline));
    let (record, key) = world.key().await;
    for layer in [world.layer(), world.layer().optional()] {
        for (host, ask) in hosts(&layer) {
            for broken in
                [Find::Fails, Find::Hangs, Find::Corrupt, Find::Slow(Duration::from_secs(60))]
            {
                let case = format!("{host} {broken:?}");
                world.store.find(broken);
                let answer = tokio::time::timeout(SOON, ask(bearer(&key))).await;
                assert_unavailable(&answer.expect("an answer in time"), &case);
                assert!(!world.keys.health().await.lookups.works(), "{case}");
                // What needs no store gets its answer all the same.
                assert_invalid_token(&ask(bearer("junk")).await, &case);

                world.store.find(Find::Honest);
                assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{case}");
                assert!(world.keys.health().await.lookups.works(), "{case}");
            }
            // Slow is not broken, up to the deadline.
            world.store.find(Find::Slow(deadline / 4));
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{host}");
            world.store.find(Find::Honest);
        }
    }
    let said = logs();
    assert!(said.contains("connection refused"), "{said}");
    // Requests that nobody could verify are no requests of the key.
    let shutdown = world.keys.shutdown(PATIENCE).await;
    assert!(shutdown.is_complete(), "{shutdown:?}");
    let outcomes = world.requests(record.id).await;
    assert_eq!(outcomes.len(), 2 * 2 * 5);
    assert!(outcomes.iter().all(|request| request.outcome == Outcome::Allowed));
}

#[tokio::test]
async fn case_32_the_log_says_that_the_store_was_too_slow() {
    let world = World::with(|builder| builder.store_deadline(Duration::from_millis(50)));
    let (_, key) = world.key().await;
    world.store.find(Find::Hangs);
    assert_unavailable(&in_axum(router().layer(world.layer()))(bearer(&key)).await, "hangs");
    assert!(logs().contains("deadline"), "{}", logs());
}

#[tokio::test]
async fn case_35_strict_a_sink_that_errs_hangs_or_panics_is_503_in_time_and_counted() {
    for broken in [Sink::Fails, Sink::Rejects, Sink::Hangs, Sink::Panics] {
        let delivery = Delivery::strict().deadline(Duration::from_millis(100));
        let world = World::with(|builder| builder.delivery(delivery));
        let (record, key) = world.key().await;
        let (revoked, revoked_key) = world.key().await;
        world.revoke(&revoked).await;
        let written = world.keys.audit_stats().written;
        for (count, (host, ask)) in hosts(&world.layer()).into_iter().enumerate() {
            let count = count as u64;
            let case = format!("{host} {broken:?}");
            world.sink.sink(broken);
            for key in [&key, &revoked_key] {
                let answer = tokio::time::timeout(SOON, ask(bearer(key))).await;
                assert_unavailable(&answer.expect("an answer in time"), &case);
            }
            // The writer counts once its own call has ended.
            eventually("both losses are counted", PATIENCE, async || {
                (world.keys.audit_stats().failed == 2 * (count + 1)).then_some(())
            })
            .await;
            // Nobody is recorded who is not known.
            assert_invalid_token(&ask(bearer(&unknown_key())).await, &case);

            world.sink.sink(Sink::Works);
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{case}: it recovers");
            assert_eq!(world.requests(record.id).await.len() as u64, count + 1, "{case}");
        }
        let stats = world.keys.audit_stats();
        assert_eq!((stats.failed, stats.queued, stats.shed), (4, 0, 0), "{broken:?}");
        assert_eq!(stats.written, written + 2, "{broken:?}");
        assert!(logs().contains("audit records were not written"), "{broken:?}: in the log, too");
    }
}

#[tokio::test]
async fn case_35_buffered_a_sink_that_errs_or_hangs_loses_nothing() {
    for broken in [Sink::Fails, Sink::Hangs] {
        let delivery =
            Delivery::buffered().linger(Duration::ZERO).deadline(Duration::from_millis(100));
        let world = World::with(|builder| builder.delivery(delivery));
        let (record, key) = world.key().await;
        let written = world.keys.audit_stats().written;
        let tried = world.sink.batches();
        world.sink.sink(broken);
        for (host, ask) in hosts(&world.layer()) {
            for _ in 0..3 {
                let answer = tokio::time::timeout(SOON, ask(bearer(&key))).await;
                assert_eq!(answer.expect("an answer").status, StatusCode::OK, "{host} {broken:?}");
            }
        }
        eventually("it was tried, and tried again", PATIENCE, async || {
            (world.sink.batches() >= tried + 2).then_some(())
        })
        .await;
        assert_eq!(world.requests(record.id).await, [], "{broken:?}");
        let stats = world.keys.audit_stats();
        assert_eq!((stats.queued, stats.failed), (6, 0), "{broken:?}: waiting, not lost");
        assert!(logs().contains("will be retried"), "{broken:?}");

        world.sink.sink(Sink::Works);
        eventually("all are written", PATIENCE, async || {
            (world.keys.audit_stats().queued == 0).then_some(())
        })
        .await;
        let outcomes = world.requests(record.id).await;
        assert_eq!(outcomes.len(), 6, "{broken:?}: each once");
        let stats = world.keys.audit_stats();
        assert_eq!((stats.written - written, stats.failed, stats.shed), (6, 0, 0), "{broken:?}");
    }
}

#[tokio::test]
async fn case_35_buffered_a_sink_that_panics_at_one_record_loses_that_one_and_says_so() {
    let world = World::with(|builder| builder.delivery(Delivery::buffered()));
    let (record, key) = world.key().await;
    world.sink.sink(Sink::PanicsAt("/poison"));
    let ask = in_axum(router().layer(world.layer()));
    for path in ["/a", "/poison", "/b"] {
        assert_eq!(ask(bearer_at(path, &key)).await.status, StatusCode::OK);
    }
    eventually("the batch is dealt with", PATIENCE, async || {
        (world.keys.audit_stats().queued == 0).then_some(())
    })
    .await;
    let endpoints: Vec<_> =
        world.requests(record.id).await.into_iter().map(|request| request.endpoint).collect();
    assert_eq!(endpoints, ["/a".into(), "/b".into()]);
    assert_eq!(world.keys.audit_stats().failed, 1);
    assert!(logs().contains("the sink panicked"), "{}", logs());
    // It goes on.
    assert_eq!(ask(bearer_at("/c", &key)).await.status, StatusCode::OK);
    eventually("the next record", PATIENCE, async || {
        (world.requests(record.id).await.len() == 3).then_some(())
    })
    .await;
}

#[derive(Debug)]
struct Atlas;

impl CountryLookup for Atlas {
    fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        assert!(!ip.is_loopback(), "off the map");
        CountryCode::new("DE").filter(|_| ip.is_ipv4())
    }
}

#[tokio::test]
async fn the_country_of_the_address_is_recorded() {
    let world = World::with(|builder| builder.delivery(Delivery::strict()).countries(Atlas));
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    for (peer, country) in [("192.0.2.1", Some("DE")), ("2001:db8::1", None)] {
        assert_eq!(ask(from_peer(bearer(&key), peer)).await.status, StatusCode::OK);
        let event = world.last_request(record.id).await;
        assert_eq!(event.country.as_ref().map(CountryCode::as_str), country);
    }
}

#[tokio::test]
async fn case_35_a_country_lookup_that_panics_stops_neither_requests_nor_the_log() {
    let delivery = Delivery::buffered().linger(Duration::from_millis(50));
    let world = World::with(|builder| builder.delivery(delivery).countries(Atlas));
    let (record, key) = world.key().await;
    let written = world.keys.audit_stats().written;
    let ask = in_axum(router().layer(world.layer()));
    for peer in ["127.0.0.1", "192.0.2.1"] {
        assert_eq!(ask(from_peer(bearer(&key), peer)).await.status, StatusCode::OK);
    }
    eventually("the queue is empty", PATIENCE, async || {
        (world.keys.audit_stats().queued == 0).then_some(())
    })
    .await;
    let stats = world.keys.audit_stats();
    assert_eq!(stats.written - written + stats.failed, 2, "nothing is lost uncounted: {stats:?}");
    let answer = ask(from_peer(bearer(&key), "192.0.2.1")).await;
    assert_eq!(answer.status, StatusCode::OK, "the writer goes on");
    eventually("the next record", PATIENCE, async || world.requests(record.id).await.pop()).await;
}

fn two_places() -> Delivery {
    Delivery::buffered().capacity(2).deadline(Duration::from_millis(100))
}

#[tokio::test]
async fn case_35_a_full_queue_that_sheds_answers_everybody_and_counts() {
    let world = World::with(|builder| builder.delivery(two_places().when_full(WhenFull::Shed)));
    let (_, key) = world.key().await;
    let before = world.keys.audit_stats();
    world.sink.sink(Sink::Fails);
    let ask = in_axum(router().layer(world.layer()));
    for _ in 0..10 {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    }
    let stats = world.keys.audit_stats();
    assert_eq!((stats.shed, stats.queued), (8, 2));
    assert!(logs().contains("records are dropped"));
    world.sink.sink(Sink::Works);
    assert!(world.keys.shutdown(PATIENCE).await.is_complete());
    let stats = world.keys.audit_stats();
    assert_eq!(stats.written - before.written + stats.shed + stats.failed, 10);
}

#[tokio::test]
async fn case_35_a_full_queue_that_waits_refuses_before_a_request_is_handled() {
    let world = World::with(|builder| builder.delivery(two_places()));
    let (record, key) = world.key().await;
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    world.sink.sink(Sink::Fails);
    let handled = Arc::new(AtomicUsize::new(0));
    let handler = {
        let handled = Arc::clone(&handled);
        async move || {
            handled.fetch_add(1, Ordering::SeqCst);
        }
    };
    let ask = in_axum(Router::new().route("/", get(handler)).layer(world.layer()));
    for _ in 0..2 {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    }
    let answer = tokio::time::timeout(SOON, ask(bearer(&key))).await;
    assert_unavailable(&answer.expect("an answer in time"), "no room");
    // A refusal has room of its own, and is summed where that is taken.
    for _ in 0..3 {
        assert_invalid_token(&ask(bearer(&revoked_key)).await, "no room");
    }
    assert_eq!(handled.load(Ordering::SeqCst), 2);
    world.sink.sink(Sink::Works);
    eventually("it recovers", PATIENCE, async || {
        (ask(bearer(&key)).await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert!(world.keys.shutdown(PATIENCE).await.is_complete());
    assert_eq!(world.requests(record.id).await.len(), 3);
    let refused = world.requests(revoked.id).await;
    assert_eq!(refused.iter().map(|request| request.count).sum::<u32>(), 3);
}

#[tokio::test]
async fn case_35_a_full_queue_lets_a_request_wait_for_room() {
    let delivery = Delivery::buffered().capacity(2);
    let world = World::with(|builder| builder.delivery(delivery));
    let (record, key) = world.key().await;
    world.sink.sink(Sink::Slow(Duration::from_millis(20)));
    let ask = in_axum(router().layer(world.layer()));
    for _ in 0..10 {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    }
    assert!(world.keys.shutdown(PATIENCE).await.is_complete());
    assert_eq!(world.requests(record.id).await.len(), 10);
}

#[tokio::test]
async fn case_35_a_request_refused_for_a_full_queue_is_in_the_log() {
    let world = World::with(|builder| builder.delivery(two_places()));
    let (_, key) = world.key().await;
    world.sink.sink(Sink::Fails);
    let ask = in_axum(router().layer(world.layer()));
    for _ in 0..2 {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    }
    capture_logs();
    assert_unavailable(&ask(bearer(&key)).await, "no room");
    let said = logs();
    assert!(said.contains("queue is full"), "the operator is told why: {said:?}");
}

/// A store that answers at once, and one that has to be waited for.
fn at_once_and_later() -> [Find; 2] {
    [Find::Honest, Find::Slow(Duration::from_millis(1))]
}

/// A service in which a request stays until the test lets it go.
fn stuck(world: &World, arrived: &Arc<Notify>, go_on: &Arc<Notify>) -> Ask {
    let (arrived, go_on) = (Arc::clone(arrived), Arc::clone(go_on));
    let handler = async move || {
        arrived.notify_one();
        go_on.notified().await;
        StatusCode::ACCEPTED
    };
    in_axum(Router::new().route("/stuck", get(handler)).layer(world.layer()))
}

#[tokio::test]
async fn case_36_a_request_dropped_in_the_handler_is_recorded_as_aborted() {
    let deliveries = [Delivery::strict(), Delivery::buffered()];
    for (delivery, find) in deliveries.iter().flat_map(|d| at_once_and_later().map(|f| (d, f))) {
        let world = World::with(|builder| builder.delivery(delivery.clone()));
        let (record, key) = world.key().await;
        world.store.find(find);
        let (arrived, go_on) = <(Arc<Notify>, Arc<Notify>)>::default();
        let ask = stuck(&world, &arrived, &go_on);
        let mut under_way = ask(bearer_at("/stuck?x=1", &key));
        tokio::select! {
            answer = &mut under_way => panic!("{answer:?}"),
            () = arrived.notified() => {}
        }
        drop(under_way);
        let event =
            eventually("a record", PATIENCE, async || world.requests(record.id).await.pop()).await;
        assert_eq!((event.outcome, event.status), (Outcome::Aborted, None));
        assert_eq!((&*event.method, &*event.endpoint), ("GET", "/stuck"));
        assert_eq!(event.ip, Some(ip(PEER)));
        assert_eq!(world.requests(record.id).await.len(), 1);
    }
}

#[tokio::test]
async fn case_36_a_request_dropped_before_it_was_verified_leaves_no_record() {
    let world = World::new();
    let (record, key) = world.key().await;
    let gate = Arc::new(Gate::default());
    world.store.find(Find::HeldAfter(Arc::clone(&gate)));
    let ask = in_axum(router().layer(world.layer()));
    drop(ask(bearer(&key)));
    let mut under_way = ask(bearer(&key));
    tokio::select! {
        answer = &mut under_way => panic!("{answer:?}"),
        () = gate.reached.notified() => {}
    }
    drop(under_way);
    assert!(world.keys.shutdown(PATIENCE).await.is_complete());
    assert_eq!(world.requests(record.id).await, []);
}

#[tokio::test]
async fn case_36_a_service_that_fails_or_panics_leaves_an_aborted_record() {
    let world = World::new();
    let (record, key) = world.key().await;
    let panics = async || -> &'static str { panic!("a mistake in the handler") };
    let ask = in_axum(Router::new().route("/", get(panics)).layer(world.layer()));
    assert!(tokio::spawn(ask(bearer(&key))).await.unwrap_err().is_panic());
    let event =
        eventually("a record", PATIENCE, async || world.requests(record.id).await.pop()).await;
    assert_eq!((event.outcome, event.status), (Outcome::Aborted, None));

    let fails = service_fn(|_: Request<()>| ready(Err::<Response<Unshared>, _>("no upstream")));
    let answer = world.layer().layer(fails).oneshot(bearer(&key)).await;
    assert_eq!(answer.err(), Some("no upstream"), "its own error, as it is");
    eventually("a second record", PATIENCE, async || {
        (world.requests(record.id).await.len() == 2).then_some(())
    })
    .await;
    assert_eq!(world.last_request(record.id).await.outcome, Outcome::Aborted);
}

#[tokio::test]
async fn case_37_shutdown_writes_what_is_queued_to_a_slow_sink() {
    let delivery = Delivery::buffered().batch(10);
    let world = World::with(|builder| builder.delivery(delivery));
    let (record, key) = world.key().await;
    world.sink.sink(Sink::Slow(Duration::from_millis(20)));
    let ask = in_axum(router().layer(world.layer()));
    for _ in 0..100 {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    }
    assert!(world.keys.audit_stats().queued >= 50, "the sink is slower than the requests");
    let report = world.keys.shutdown(PATIENCE).await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(world.requests(record.id).await.len(), 100);
    assert!(world.stored(record.id).await.last_used_at.is_some(), "the last use, too");
    // Afterwards nobody is let in whose request could not be recorded.
    assert_unavailable(&ask(bearer(&key)).await, "after the shutdown");
}

#[tokio::test]
async fn case_37_shutdown_waits_for_requests_under_way_and_no_longer() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let world = World::with(|builder| builder.delivery(delivery));
        let (record, key) = world.key().await;
        let (arrived, go_on) = <(Arc<Notify>, Arc<Notify>)>::default();
        let ask = stuck(&world, &arrived, &go_on);
        let under_way = tokio::spawn(ask(bearer_at("/stuck", &key)));
        arrived.notified().await;
        let started = Instant::now();
        let (report, answer) = tokio::join!(world.keys.shutdown(SOON * 6), async {
            go_on.notify_one();
            under_way.await.unwrap()
        });
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        assert!(report.is_complete(), "{report:?}");
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        assert_eq!(world.last_request(record.id).await.status, Some(202));
    }
}

/// The losses that the log speaks of.
fn logged_losses() -> u64 {
    let logs = logs();
    let lines = logs.lines().filter(|line| line.contains("audit records were not written"));
    let counts = lines.map(|line| {
        let count = line.split("records=").nth(1).expect("a count");
        count.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    counts.sum()
}

async fn lose_at_shutdown(sink: Sink, delivery: Delivery, shutdown: Duration) {
    let world = World::with(|builder| builder.delivery(delivery.linger(Duration::ZERO)));
    let (_, key) = world.key().await;
    let tried = world.sink.batches();
    world.sink.sink(sink);
    let ask = in_axum(router().layer(world.layer()));
    for _ in 0..50 {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    }
    eventually("the sink has begun", PATIENCE, async || {
        (world.sink.batches() > tried).then_some(())
    })
    .await;
    let started = Instant::now();
    let report = world.keys.shutdown(shutdown).await;
    assert!(started.elapsed() < shutdown + SOON, "{:?}", started.elapsed());
    assert_eq!(report.unwritten_records, 50);
    assert!(!report.is_complete());
    // The process ends now: what is not in the log yet will never be.
    assert_eq!(logged_losses(), 50, "each loss is in the log, too");
    assert_eq!(world.keys.audit_stats().failed, 50);
}

#[tokio::test]
async fn case_37_what_a_broken_sink_did_not_take_is_counted_and_logged() {
    let delivery = Delivery::buffered().deadline(Duration::from_millis(50));
    for broken in [Sink::Hangs, Sink::Fails] {
        lose_at_shutdown(broken, delivery.clone(), Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn case_37_a_sink_hung_beyond_the_shutdown_deadline_is_counted_and_logged() {
    lose_at_shutdown(Sink::Hangs, Delivery::buffered(), Duration::from_millis(200)).await;
}

#[tokio::test]
async fn case_37_a_manager_that_is_dropped_still_writes() {
    let World { store, sink, clock: _, keys, actor } = World::new();
    let issued = keys.create(&actor, NewKey::named("key").unwrap()).await.unwrap();
    let world_layer = ApiKeyLayer::new(keys.clone());
    let ask = in_axum(router().layer(world_layer));
    let before = sink.len();
    assert_eq!(ask(bearer(issued.secret.expose_secret())).await.status, StatusCode::OK);
    drop((ask, keys));
    eventually("its record", PATIENCE, async || (sink.len() == before + 1).then_some(())).await;
    eventually("its last use", PATIENCE, async || {
        store.get(actor.org(), &issued.key.id).await.unwrap()?.last_used_at
    })
    .await;
}

// ---------------------------------------------------------------------- leaks

#[tokio::test]
async fn case_39_a_canary_key_appears_nowhere() {
    let world = World::new();
    let issued = world.keys.create(&world.actor, NewKey::named("canary").unwrap()).await.unwrap();
    let key = issued.secret.expose_secret().to_owned();
    let bad = unknown_key();
    let mut seen = vec![("issued", format!("{issued:?} {} {:?}", issued.secret, issued.secret))];
    let mut note = |place: &'static str, text: String| seen.push((place, text));

    // Every way to send it; as it is, and as one that nobody knows.
    for key in [&key, &bad] {
        for layer in [world.layer(), world.layer().optional()] {
            for (_, ask) in hosts(&layer) {
                for scheme in ["Bearer ", "bearer  ", "Basic ", "ApiKey ", "", "Bearer", "Bearer:"]
                {
                    let line = format!("{scheme}{key}");
                    note("header", format!("{:?}", ask(request("/", &[line.as_bytes()])).await));
                }
                for line in [
                    format!("Bearer {key},Bearer {key}"),
                    format!("Bearer {key}!"),
                    format!("Bearer {key} x"),
                    format!("Bearer x{key}"),
                    format!("Bearer {}", key.repeat(5)),
                    format!("Bearer {key}\u{e9}"),
                ] {
                    let answer = ask(request("/", &[line.as_bytes()])).await;
                    note("malformed", format!("{answer:?}"));
                }
                let line = format!("Bearer {key}");
                let lines = [line.as_bytes(), line.as_bytes()];
                note("two lines", format!("{:?}", ask(request("/", &lines)).await));
                for path in [format!("/?api_key={key}"), format!("/v1/{key}/x")] {
                    note("path, alone", format!("{:?}", ask(request(&path, &[])).await));
                    note("path, and header", format!("{:?}", ask(bearer_at(&path, key)).await));
                }
                for header in ["x-api-key", "cookie", "forwarded", XFF, "user-agent", "host"] {
                    let answer = ask(with_header(bearer(key), header, key)).await;
                    note("other header", format!("{answer:?}"));
                }
            }
        }
        // Behind proxies, forwarding headers are read.
        for header in [ProxyHeader::XForwardedFor, ProxyHeader::Forwarded] {
            let ask = in_axum(router().layer(behind_proxies(&world, header)));
            for name in [XFF, "forwarded"] {
                let answer = ask(forwarded(key, "10.0.0.1", name, &[key])).await;
                note("forwarding header", format!("{answer:?}"));
            }
        }
    }

    // A refused one, a fault of the store, a fault of the sink.
    let ask = in_axum(router().layer(world.layer()));
    for find in [Find::Fails, Find::Corrupt] {
        world.store.find(find);
        note("store fails", format!("{:?}", ask(bearer(&key)).await));
        let error = world.keys.verify(&key, None).await.unwrap_err();
        note("verify error", format!("{error} {error:?}"));
    }
    world.store.find(Find::Honest);
    for sink in [Sink::Rejects, Sink::Panics] {
        world.sink.sink(sink);
        note("sink fails", format!("{:?}", ask(bearer(&key)).await));
        world.sink.sink(Sink::Works);
    }
    let allowlist = Allowlist::parse(["203.0.113.1"]).unwrap();
    world.keys.update(&world.actor, &issued.key.id, KeyPatch::restrict(allowlist)).await.unwrap();
    note("not allowed", format!("{:?}", ask(bearer(&key)).await));
    let free = KeyPatch::restrict(Allowlist::default());
    world.keys.update(&world.actor, &issued.key.id, free).await.unwrap();

    // A handler that panics with all it knows.
    let panics = async |verified: VerifiedKey, request: axum::extract::Request| -> &'static str {
        panic!("{verified:?} {request:?} {:?} {:?}", request.headers(), request.extensions())
    };
    let panicking = in_axum(Router::new().route("/", get(panics)).layer(world.layer()));
    let panic = tokio::spawn(panicking(bearer(&key))).await.unwrap_err().into_panic();
    let message = panic.downcast_ref::<String>().expect("a message").clone();
    assert!(message.contains("authorization") && message.contains("VerifiedKey"), "{message}");
    note("panic", message);

    // The text of a key where another text belongs.
    let error = KeyFormat::new(&key).unwrap_err();
    note("prefix", format!("{error} {error:?}"));
    let error = key.parse::<KeyId>().unwrap_err();
    note("id", format!("{error} {error:?}"));
    let error = Allowlist::parse([&key]).unwrap_err();
    note("allowlist", format!("{error} {error:?}"));
    let error = key.parse::<Network>().unwrap_err();
    note("network", format!("{error} {error:?}"));
    let error = key.parse::<Expiration>().unwrap_err();
    note("expiration", format!("{error} {error:?}"));
    let error = key.parse::<keygate::AuditCursor>().unwrap_err();
    note("cursor", format!("{error} {error:?}"));
    note("damaged allowlist", format!("{:?}", Allowlist::restore([&key])));
    let error = KeyName::new(format!("{key}{key}")).unwrap_err();
    note("name", format!("{error} {error:?}"));
    let error = OrgId::new(format!("{key}\0")).unwrap_err();
    note("organisation", format!("{error} {error:?}"));

    // Everything that can be printed.
    let info = || RequestInfo::new("GET", "/");
    let admission = world.keys.admit(&key, info()).await.unwrap();
    note("admission", format!("{admission:?}"));
    note("verified", format!("{:?} {:?}", admission.key(), admission.key().record()));
    admission.finish(200).await.unwrap();
    let malformed = KeyFormat::default().digest(format!("{key}!")).unwrap_err();
    note("malformed key", format!("{malformed} {malformed:?}"));
    world.revoke(&issued.key).await;
    for credential in [key.clone(), bad.clone(), format!("{key}!"), format!("{key}{key}")] {
        let error = world.keys.verify(&credential, None).await.unwrap_err();
        note("verify error", format!("{error} {error:?} {error:#?}"));
        let error = world.keys.admit(&credential, info()).await.unwrap_err();
        note("admit error", format!("{error} {error:?} {error:#?}"));
    }
    let layer = world.layer();
    let service = layer.layer(service_fn(greet_in_tower));
    let future = service.clone().call(bearer(&key).map(|()| Unshared::of("")));
    note("future", format!("{future:?}"));
    drop(future);
    note("layer", format!("{layer:?} {:?}", layer.clone().optional()));
    note("manager", format!("{:?} {:#?}", world.keys, world.keys));
    let stored = world.keys.list(world.actor.org()).await.unwrap();
    note("database", format!("{:?} {stored:?}", world.store));
    let records = world.requests(issued.key.id).await;
    note("audit log", format!("{:?} {records:?}", world.sink));
    note("log", logs());

    assert!(seen.iter().any(|(place, text)| *place == "log" && text.contains("refused")));
    assert!(seen.iter().any(|(place, text)| *place == "audit log" && text.contains("[REDACTED]")));
    for (place, text) in &seen {
        assert_no_leak(place, text, &key);
        assert_no_leak(place, text, &bad);
    }
}

#[tokio::test]
async fn case_39_the_complaint_about_a_missing_layer_repeats_no_key() {
    capture_logs();
    let key = unknown_key();
    let unguarded = in_axum(Router::new().route("/{key}", get(async |_: VerifiedKey| ())));
    let answer = unguarded(bearer_at(&format!("/{key}"), &key)).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_no_leak("answer", &format!("{answer:?}"), &key);
    assert_no_leak("log", &logs(), &key);
}

/// Sends a key within these paths, `KEY` standing for it, and looks at what is recorded.
async fn key_in_paths(paths: &[&str], spelt: fn(&str) -> String) {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    for path in paths {
        let path = path.replace("KEY", &spelt(&key));
        assert_eq!(ask(bearer_at(&path, &key)).await.status, StatusCode::OK, "{path}");
        let endpoint = world.last_request(record.id).await.endpoint;
        assert_no_leak("endpoint", &endpoint, &key);
    }
}

#[tokio::test]
async fn case_39_a_key_in_a_path_is_blotted_out() {
    let paths = ["/KEY", "/v1/KEY/KEY", "/v1/xKEYx/KEY", "/v1/KEY.json", "/vsp_sk_/KEY", "/a,KEY"];
    key_in_paths(&paths, str::to_owned).await;
    // At the end of what is kept of a path, too.
    for length in 1_990..2_050 {
        key_in_paths(&[&format!("/{}KEY", "x".repeat(length))], str::to_owned).await;
    }
}

#[tokio::test]
async fn case_39_a_key_in_a_path_is_blotted_out_behind_a_second_prefix() {
    let paths = ["/vsp_sk_KEY", "/vsp_sk_vsp_sk_KEY", "/x_vsp_sk_abcKEY", "/vsp_KEY"];
    key_in_paths(&paths, str::to_owned).await;
}

#[tokio::test]
async fn case_39_a_key_in_a_path_is_blotted_out_percent_encoded() {
    key_in_paths(&["/KEY", "/v1/KEY/x"], |key| key.replace('_', "%5F")).await;
    key_in_paths(&["/KEY", "/v1/KEY/x"], |key| key.replace('_', "%5f")).await;
}

#[tokio::test]
async fn case_39_the_service_is_given_the_credential_marked_as_sensitive() {
    let world = World::new();
    let (_, key) = world.key().await;
    let print = async |headers: HeaderMap| format!("{headers:?}");
    let routes = || Router::new().route("/", get(print));
    for layer in [world.layer(), world.layer().optional()] {
        let answer = in_axum(routes().layer(layer))(bearer(&key)).await;
        assert!(answer.text().contains("\"authorization\": Sensitive"), "{}", answer.text());
    }
}

#[tokio::test]
async fn case_39_optional_marks_as_sensitive_what_it_lets_through_as_anonymous() {
    let world = World::new();
    let (_, key) = world.key().await;
    let print = async |headers: HeaderMap| format!("{headers:?}");
    let ask = in_axum(Router::new().route("/", get(print)).layer(world.layer().optional()));
    let answer = ask(request("/", &[format!("ApiKey {key}").as_bytes()])).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_no_leak("printed headers", answer.text(), &key);
}

#[tokio::test]
async fn case_41_a_path_is_inert_in_the_audit_record_and_in_the_log() {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    for path in [
        "/%0d%0a2026-01-01T00:00:00Z%20ERROR%20forged",
        "/%3Cimg%20src=x%20onerror=alert(1)%3E",
        "/%00%1b[31m%e2%80%ae",
        "/a%2fb/../c//d;x=1",
        "/%",
        "//evil.example/",
    ] {
        let answer = ask(bearer_at(&format!("{path}?q=%0d%0a"), &key)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(&*world.last_request(record.id).await.endpoint, path, "exactly as it came");
    }
    // The extractor's complaint comes from a request that nobody has checked.
    let unguarded = in_axum(Router::new().fallback(async |_: VerifiedKey| ()));
    capture_logs();
    let path = "/x%0d%0aERROR%20forged/\u{85}\u{202e}";
    assert_eq!(unguarded(bearer_at(path, &key)).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let said = logs();
    assert_eq!(said.lines().count(), 1, "{said:?}");
    assert!(said.contains("ApiKeyLayer"), "{said:?}");
    assert!(said.trim_end().chars().all(|c| !c.is_control()), "{said:?}");
}

#[tokio::test]
async fn case_41_what_is_no_visible_character_is_not_recorded_as_it_came() {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    // Servers take UTF-8 in a path: an escape sequence's C1 introducer, a next
    // line, and what turns the text behind it round.
    for hostile in ['\u{9b}', '\u{85}', '\u{202e}', '\u{2066}', '\u{200b}', '\u{2028}'] {
        let answer = ask(bearer_at(&format!("/a{hostile}31mb"), &key)).await;
        assert_eq!(answer.status, StatusCode::OK);
        let endpoint = world.last_request(record.id).await.endpoint;
        assert!(!endpoint.contains(hostile), "{endpoint:?}");
    }
}

#[tokio::test]
async fn a_path_is_recorded_at_a_bounded_length() {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    let path = format!("/{}", "é".repeat(20_000));
    assert_eq!(ask(bearer_at(&path, &key)).await.status, StatusCode::OK);
    let endpoint = world.last_request(record.id).await.endpoint;
    assert!(endpoint.len() <= RequestEvent::MAX_ENDPOINT_LEN, "{}", endpoint.len());
    assert!(endpoint.starts_with('/') && endpoint.ends_with('…'));
}

#[tokio::test]
async fn a_method_is_recorded_at_a_bounded_length() {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    let mut request = bearer(&key);
    *request.method_mut() = Method::from_bytes(&[b'A'; 20_000]).unwrap();
    assert_eq!(ask(request).await.status, StatusCode::OK);
    let method = world.last_request(record.id).await.method;
    assert!(method.len() <= RequestEvent::MAX_ENDPOINT_LEN, "a method of {}", method.len());
}

// -------------------------------------------------------------------- answers

#[tokio::test]
async fn every_answer_is_that_of_the_table() {
    let world = World::with(|builder| {
        builder.delivery(Delivery::strict()).store_deadline(Duration::from_millis(100))
    });
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    let (_, restricted_key) = world.key_for(&["203.0.113.77"]).await;
    let (_, key) = world.key().await;
    let realm = "Bearer realm=\"acme\"";
    let invalid_request = format!("{realm}, error=\"invalid_request\"");
    let invalid_token = format!("{realm}, error=\"invalid_token\"");
    let good = format!("Bearer {key}");
    let two = [good.as_bytes(), good.as_bytes()];
    for (host, ask) in hosts(&world.layer().realm("acme")) {
        let mut answers = Vec::new();
        for (case, request, status, challenge, code) in [
            ("no credentials", request("/", &[]), 401, Some(realm), None),
            (
                "two lines",
                request("/", &two),
                400,
                Some(&*invalid_request),
                Some("invalid_request"),
            ),
            (
                "two in one",
                bearer(&format!("{key},{key}")),
                400,
                Some(&*invalid_request),
                Some("invalid_request"),
            ),
            ("malformed", bearer("x"), 401, Some(&*invalid_token), Some("invalid_token")),
            ("unknown", bearer(&unknown_key()), 401, Some(&*invalid_token), Some("invalid_token")),
            ("revoked", bearer(&revoked_key), 401, Some(&*invalid_token), Some("invalid_token")),
            ("ip not allowed", bearer(&restricted_key), 403, None, Some("forbidden")),
        ] {
            let answer = ask(request).await;
            assert_eq!(answer.status.as_u16(), status, "{host}: {case}");
            assert_eq!(answer.challenge(), challenge, "{host}: {case}");
            assert_eq!(
                answer.headers.get_all(WWW_AUTHENTICATE).iter().count(),
                challenge.iter().count()
            );
            assert_eq!(answer.headers.get(RETRY_AFTER), None, "{host}: {case}");
            let problem = answer.problem();
            assert_eq!(problem["code"].as_str(), code, "{host}: {case}");
            answers.push((case, answer));
        }
        let bodies = |name| &answers.iter().find(|(case, _)| *case == name).unwrap().1;
        assert_eq!(bodies("malformed"), bodies("unknown"), "{host}");
        assert_eq!(bodies("revoked"), bodies("unknown"), "{host}");
        // Generic: it says neither what is not allowed nor who was asking.
        let forbidden = bodies("ip not allowed").text().to_lowercase();
        for word in ["address", "allowlist", "ip", "192", "203", "key"] {
            let mut words = forbidden.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(!words.any(|found| found == word), "{host}: {forbidden}");
        }
        world.store.find(Find::Fails);
        assert_unavailable(&ask(bearer(&key)).await, host);
        world.store.find(Find::Honest);
    }
}

#[tokio::test]
async fn the_reason_of_a_refusal_is_told_to_the_operator() {
    let world = World::new();
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    let (_, restricted_key) = world.key_for(&["203.0.113.77"]).await;
    let day = NewKey::named("day").unwrap().expires(Expiration::OneDay);
    let (expired, expired_key) = world.issue(day).await;
    world.clock.set(expired.expires_at.unwrap());
    for (host, ask) in hosts(&world.layer()) {
        for (key, reason) in [
            (&*revoked_key, "revoked"),
            (&expired_key, "expired"),
            (&restricted_key, "allowlist"),
            (&unknown_key(), "no such key"),
            ("junk", "well-formed"),
        ] {
            capture_logs();
            assert!(!ask(bearer(key)).await.status.is_success(), "{host}");
            let said = logs();
            assert!(said.contains(reason), "{host}: nothing of {reason:?}: {said:?}");
        }
    }
}

#[tokio::test]
async fn a_realm_stays_within_its_quotes() {
    let world = World::new();
    for (realm, clean) in [
        ("a\"b", None),
        ("x\", error=\"none", None),
        ("back\\slash", None),
        ("a\r\nSet-Cookie: x=1", None),
        ("\u{0}\u{7f}é", None),
        ("", Some("")),
        ("Acme API, v2", Some("Acme API, v2")),
    ] {
        let ask = in_axum(router().layer(world.layer().realm(realm)));
        for (request, tail) in [(request("/", &[]), ""), (bearer("x"), ", error=\"invalid_token\"")]
        {
            let answer = ask(request).await;
            let value = answer.headers[WWW_AUTHENTICATE].as_bytes();
            let value = std::str::from_utf8(value).unwrap();
            let quoted = value.strip_prefix("Bearer realm=\"").unwrap_or_else(|| panic!("{value}"));
            let inner =
                quoted.strip_suffix(&format!("\"{tail}")).unwrap_or_else(|| panic!("{value}"));
            // What is left is the inside of one quoted string.
            let mut chars = inner.chars();
            while let Some(c) = chars.next() {
                assert_ne!(c, '"', "{value}");
                assert!(c != '\\' || chars.next().is_some(), "{value}");
                assert!(c == ' ' || c.is_ascii_graphic(), "{value}");
            }
            assert!(clean.is_none_or(|clean| clean == inner), "{value}");
        }
    }
}

#[tokio::test]
async fn optional_lets_the_anonymous_through_and_nobody_with_a_bad_key() {
    let world = World::new();
    let (record, key) = world.key().await;
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    let (_, restricted_key) = world.key_for(&["203.0.113.77"]).await;
    for (host, ask) in hosts(&world.layer().optional()) {
        for anonymous in [request("/", &[]), request("/", &[b"Basic dTpw"])] {
            let answer = ask(anonymous).await;
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, "nobody"), "{host}");
        }
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
        for (bad, status) in [
            ("junk", 401),
            (&*unknown_key(), 401),
            (&revoked_key, 401),
            (&restricted_key, 403),
            ("", 401),
        ] {
            assert_eq!(ask(bearer(bad)).await.status.as_u16(), status, "{host} {bad}");
        }
        world.store.find(Find::Fails);
        assert_unavailable(&ask(bearer(&key)).await, host);
        assert_eq!(ask(request("/", &[])).await.text(), "nobody", "{host}: the store is not asked");
        world.store.find(Find::Honest);
    }
    assert_eq!(world.requests(record.id).await.len(), 2, "the anonymous leave no record");
}

#[tokio::test]
async fn keys_and_the_tokens_of_another_issuer_share_a_route() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    let jwt = format!("eyJhbGciOiJIUzI1NiJ9.{}.c2ln", "a".repeat(2_000));
    let both = world.layer().optional().ignore_foreign_tokens();
    for (host, ask) in hosts(&both) {
        for foreign in [&*jwt, "eyJ", "vsp_pk_1", &key["vsp_sk_".len()..]] {
            let answer = ask(bearer(foreign)).await;
            assert_eq!(
                (answer.status, answer.text()),
                (StatusCode::OK, "nobody"),
                "{host} {foreign}"
            );
        }
        // What begins as a key of this service is one, or is refused.
        for bad in ["vsp_sk_", "vsp_sk_x", &format!("{key}0"), &format!("vsp_sk_{jwt}")] {
            assert_invalid_token(&ask(bearer(bad)).await, host);
        }
        for two in [format!("{jwt}, Bearer {key}"), format!("{jwt} {key}"), format!("{key},{jwt}")]
        {
            assert!(ask(bearer(&two)).await.status.is_client_error(), "{host}");
        }
        let lines = [format!("Bearer {jwt}"), format!("Bearer {key}")];
        let answer = ask(request("/", &lines.each_ref().map(|line| line.as_bytes()))).await;
        assert_invalid_request(&answer, host);
    }
    assert_eq!(world.store.calls(), before, "never looked up");
    for (host, ask) in hosts(&both) {
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
    }
    // Where a key is needed, such a token is none.
    for (host, ask) in hosts(&world.layer().ignore_foreign_tokens()) {
        let answer = ask(bearer(&jwt)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{host}");
        assert_eq!(answer.challenge(), Some("Bearer realm=\"api\""), "{host}");
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
    }
    // And unless they are ignored, they are bad keys.
    for (host, ask) in hosts(&world.layer().optional()) {
        assert_invalid_token(&ask(bearer(&jwt)).await, host);
    }
}

#[tokio::test]
async fn a_handler_that_insists_on_a_key_refuses_the_anonymous_like_the_layer() {
    let world = World::new();
    let insist = async |key: VerifiedKey| key.name().to_string();
    let routes = || Router::new().route("/", get(insist));
    for realm in ["api", "acme"] {
        let layer = world.layer().realm(realm);
        let required = in_axum(routes().layer(layer.clone()))(request("/", &[])).await;
        let optional = in_axum(routes().layer(layer.optional()))(request("/", &[])).await;
        assert_eq!(optional.status, StatusCode::UNAUTHORIZED);
        assert_eq!(optional.challenge(), required.challenge(), "the layer's own realm");
        assert_eq!(optional.problem(), required.problem());
    }
}

#[tokio::test]
async fn a_refusal_before_the_body_is_read_closes_the_connection_of_http_1() {
    let world = World::new();
    let (_, key) = world.key().await;
    let (restricted, restricted_key) = world.key_for(&["203.0.113.77"]).await;
    world.revoke(&restricted).await;
    let insist = Router::new().route("/", any(async |_: VerifiedKey| "in"));
    let missing = in_axum(insist.clone());
    let optional = in_axum(insist.layer(world.layer().optional()));
    let later = [("extractor", optional), ("no layer", missing)];
    for (host, ask) in hosts(&world.layer()).into_iter().chain(later) {
        for (name, value) in [("content-length", "10"), ("transfer-encoding", "chunked")] {
            for version in [Version::HTTP_10, Version::HTTP_11] {
                let with_body = |credential: &[&[u8]]| {
                    let mut request = with_header(request("/", credential), name, value);
                    *request.version_mut() = version;
                    request
                };
                let bad =
                    [None, Some("x"), Some("a b"), Some(&unknown_key()), Some(&restricted_key)]
                        .map(|credential| credential.map(|key| format!("Bearer {key}")));
                for credential in bad {
                    let lines = credential.as_deref().map(str::as_bytes);
                    let answer = ask(with_body(lines.as_slice())).await;
                    assert_eq!(answer.headers["connection"], "close", "{host} {credential:?}");
                    let mut request = with_body(lines.as_slice());
                    *request.version_mut() = Version::HTTP_2;
                    assert!(!ask(request).await.headers.contains_key("connection"), "{host}");
                }
                if host == "no layer" {
                    continue;
                }
                world.store.find(Find::Fails);
                let good = format!("Bearer {key}");
                let answer = ask(with_body(&[good.as_bytes()])).await;
                assert_eq!(
                    (answer.status.as_u16(), &answer.headers["connection"]),
                    (503, &HeaderValue::from_static("close"))
                );
                world.store.find(Find::Honest);
                // What the service does with a body is its own affair.
                let answer = ask(with_body(&[good.as_bytes()])).await;
                assert_eq!(
                    (answer.status, answer.headers.get("connection")),
                    (StatusCode::OK, None)
                );
            }
        }
        for request in [request("/", &[]), with_header(bearer("x"), "content-length", "0")] {
            assert_eq!(ask(request).await.headers.get("connection"), None, "{host}");
        }
    }
}

#[tokio::test]
async fn the_extractor_names_the_missing_layer() {
    let world = World::new();
    let (_, key) = world.key().await;
    let routes = Router::new()
        .route("/required", get(async |_: VerifiedKey| "in"))
        .route("/optional", get(async |_: Option<VerifiedKey>| "in"));
    let ask = in_axum(routes);
    for path in ["/required", "/optional"] {
        for request in [bearer_at(path, &key), request(path, &[])] {
            capture_logs();
            let answer = ask(request).await;
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
            assert!(answer.text().contains("ApiKeyLayer"), "{}", answer.text());
            answer.problem();
            assert!(logs().contains("ApiKeyLayer"), "the operator is told, too");
        }
    }
}

// ---------------------------------------------------------------------- tower

/// Ready only after `poll_ready`, and its clone is not.
#[derive(Default)]
struct Reserving {
    reserved: bool,
    out: Arc<AtomicUsize>,
}

impl Clone for Reserving {
    fn clone(&self) -> Self {
        Self { reserved: false, out: Arc::clone(&self.out) }
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        if self.reserved {
            self.out.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Service<Request<Full<Bytes>>> for Reserving {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.reserved {
            if self.out.fetch_add(1, Ordering::SeqCst) > 0 {
                self.out.fetch_sub(1, Ordering::SeqCst);
                return Poll::Ready(Err("no room"));
            }
            self.reserved = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        assert!(std::mem::take(&mut self.reserved), "called without being ready");
        self.out.fetch_sub(1, Ordering::SeqCst);
        ready(Ok(Response::new(Full::default())))
    }
}

#[tokio::test]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    let world = World::new();
    let (_, key) = world.key().await;
    let inner = Reserving::default();
    let out = Arc::clone(&inner.out);
    let mut service = world.layer().layer(inner);
    let with_body = |request: Request<()>| request.map(|()| Full::<Bytes>::default());
    for find in at_once_and_later() {
        world.store.find(find);
        for _ in 0..3 {
            let ready = service.ready().await.unwrap();
            let answer = ready.call(with_body(bearer(&key))).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            // A refused request gives back what was reserved for it.
            for refused in ["x", &unknown_key()] {
                let ready = service.ready().await.unwrap();
                let answer = ready.call(with_body(bearer(refused))).await.unwrap();
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
                assert_eq!(out.load(Ordering::SeqCst), 0);
            }
        }
    }
    // A service that is not ready is not, behind the layer either.
    let mut reserved = service.clone();
    reserved.ready().await.unwrap();
    let refused = service.ready().await.map(drop);
    assert_eq!(refused.unwrap_err(), "no room");
}

#[tokio::test]
async fn what_is_reserved_is_kept_while_the_store_is_asked_and_given_back_with_the_request() {
    let world = World::new();
    let (_, key) = world.key().await;
    let gate = Arc::new(Gate::default());
    world.store.find(Find::HeldBefore(Arc::clone(&gate)));
    let inner = Reserving::default();
    let out = Arc::clone(&inner.out);
    let mut service = world.layer().layer(inner);
    let request = || bearer(&key).map(|()| Full::<Bytes>::default());
    let mut under_way = service.ready().await.unwrap().call(request());
    tokio::select! {
        _ = &mut under_way => panic!("an answer"),
        () = gate.reached.notified() => {}
    }
    assert_eq!(out.load(Ordering::SeqCst), 1);
    assert_eq!(service.ready().await.map(drop), Err("no room"), "what is left is a clone");
    drop(under_way);
    assert_eq!(out.load(Ordering::SeqCst), 0);
    let under_way = service.ready().await.unwrap().call(request());
    gate.opened.notify_one();
    assert_eq!(under_way.await.unwrap().status(), StatusCode::OK);
}

/// The stack's answers to a browser's preflight and to a request without a key.
async fn stacked<S, B>(order: &str, service: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
    B: HttpBody<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let origin = |request| with_header(request, "origin", "https://app.example");
    let mut preflight =
        with_header(origin(request("/", &[])), "access-control-request-method", "GET");
    *preflight.method_mut() = Method::OPTIONS;
    let ask = async |request: Request<()>| {
        let request = request.map(|()| Full::<Bytes>::default());
        Answer::read(service.clone().oneshot(request).await.unwrap()).await
    };
    let answer = ask(origin(request("/", &[]))).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{order}");
    let cors_is_outside = order.find("cors") < order.find("key");
    let header = "access-control-allow-origin";
    assert_eq!(answer.headers.contains_key(header), cors_is_outside, "{order}");
    let answer = ask(preflight).await;
    assert_eq!(answer.status == StatusCode::OK, cors_is_outside, "{order}");
}

fn key(world: &World) -> ApiKeyLayer {
    world.layer()
}

fn cors(_: &World) -> CorsLayer {
    CorsLayer::new().allow_origin(tower_http::cors::Any)
}

fn timeout(_: &World) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, PATIENCE)
}

fn trace(_: &World) -> TraceLayer<SharedClassifier<ServerErrorsAsFailures>> {
    TraceLayer::new_for_http()
}

/// A test of all these orders, from the outside in.
macro_rules! orders {
    ($($($layer:ident)+;)+) => {
        #[tokio::test]
        async fn the_layer_goes_together_with_those_of_tower_http_in_any_order() {
            let world = World::new();
            $(
                let builder = ServiceBuilder::new();
                $(let builder = builder.layer($layer(&world));)+
                let service = builder.service(service_fn(async |_: Request<_>| {
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }));
                stacked(stringify!($($layer)+), service).await;
            )+
        }
    };
}

// `CorsLayer` and `TimeoutLayer` do not go directly around `TraceLayer`, whose body has no
// default.
orders! {
        key trace cors timeout;
        key trace timeout cors;
        cors key trace timeout;
        cors timeout key trace;
        timeout key trace cors;
        timeout cors key trace;
        trace key cors timeout;
        trace key timeout cors;
        trace cors key timeout;
        trace cors timeout key;
        trace timeout key cors;
        trace timeout cors key;
}

#[tokio::test]
async fn the_key_of_an_admitted_request_is_in_the_extensions_of_its_answer() {
    let world = World::new();
    let (record, key) = world.key().await;
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    let service = world.layer().optional().layer(service_fn(greet_in_tower));
    let ask = async |request: Request<()>| {
        let answer = service.clone().oneshot(request.map(|()| Unshared::of(""))).await.unwrap();
        answer.extensions().get::<VerifiedKey>().map(VerifiedKey::id)
    };
    assert_eq!(ask(bearer(&key)).await, Some(record.id));
    for refused in [request("/", &[]), bearer("x"), bearer(&unknown_key()), bearer(&revoked_key)] {
        assert_eq!(ask(refused).await, None);
    }
    // One that could not be recorded was not let in.
    world.sink.sink(Sink::Rejects);
    assert_eq!(ask(bearer(&key)).await, None);
}

#[test]
fn futures_and_services_can_be_sent_whatever_the_bodies() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    type Inner = tower::util::BoxCloneService<Request<Unshared>, Response<Unshared>, Infallible>;
    is_send::<ResponseFuture<Inner, Unshared, Unshared>>();
    is_send::<ResponseBody<Unshared>>();
    is_shared::<ApiKeyLayer>();
    is_shared::<KeyManager>();
    is_shared::<VerifiedKey>();
    is_shared::<VerifyError>();
    is_shared::<AdmitError>();
}

/// A body that knows its length only when asked for it.
struct Sized20(Option<Bytes>);

impl HttpBody for Sized20 {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(20)
    }
}

#[tokio::test]
async fn a_body_keeps_its_length_through_the_layer() {
    let world = World::new();
    let (_, key) = world.key().await;
    let service = world.layer().layer(service_fn(|_: Request<()>| {
        let body = Sized20(Some(Bytes::from_static(&[b'x'; 20])));
        ready(Ok::<_, Infallible>(Response::new(body)))
    }));
    let answer = service.clone().oneshot(bearer(&key)).await.unwrap();
    assert_eq!(answer.body().size_hint().exact(), Some(20));
    assert!(!answer.body().is_end_stream());
    assert_eq!(Answer::read(answer).await.body.len(), 20);

    let refusal = service.oneshot(bearer("x")).await.unwrap();
    let length = refusal.body().size_hint().exact().expect("a length");
    let mut body = refusal.into_body();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frame.len() as u64, length);
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_peer_of_axum_goes_before_one_of_another_server() {
    let world = World::new();
    let (record, key) = world.key().await;
    let mut request = from_peer(bearer(&key), "203.0.113.1").map(|()| Body::empty());
    let peer: SocketAddr = "192.0.2.1:5".parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    let router = router().layer(world.layer());
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::OK);
    assert_eq!(world.last_request(record.id).await.ip, Some(peer.ip()));
}

// -------------------------------------------------------------------- records

#[tokio::test]
async fn the_endpoint_is_the_whole_path_of_the_request_without_its_query() {
    let world = World::new();
    let (record, key) = world.key().await;
    let things = || Router::new().route("/things/{id}", get(async |_: VerifiedKey| "thing"));
    let nested = |inner: Router| Router::new().nest("/v1", Router::new().nest("/deep", inner));
    for (app, path, status) in [
        (nested(things().layer(world.layer())), "/v1/deep/things/7", 200),
        (nested(things()).layer(world.layer()), "/v1/deep/things/7", 200),
        (nested(things().route_layer(world.layer())), "/v1/deep/things/7", 200),
        (
            Router::new().nest_service("/v1/deep", things().layer(world.layer())),
            "/v1/deep/things/7",
            200,
        ),
        (nested(things()).layer(world.layer()), "/v1/deep/nothing", 404),
        (Router::new().merge(things().layer(world.layer())), "/things/7", 200),
    ] {
        let answer = in_axum(app)(bearer_at(&format!("{path}?a=/b&c#d"), &key)).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        let event = world.last_request(record.id).await;
        assert_eq!((&*event.endpoint, event.status), (path, Some(status)));
    }
    assert_eq!(world.requests(record.id).await.len(), 6, "one record a request");
}

#[tokio::test]
async fn method_status_and_address_are_recorded_for_every_method() {
    let world = World::new();
    let (record, key) = world.key().await;
    let status = async |Path(code): Path<u16>| StatusCode::from_u16(code).unwrap();
    let ask = in_axum(Router::new().route("/{code}", any(status)).layer(world.layer()));
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"];
    for (method, code) in methods.into_iter().zip([200, 204, 301, 418, 404, 500, 503, 599, 999]) {
        let mut request = bearer_at(&format!("/{code}"), &key);
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(ask(request).await.status.as_u16(), code, "{method}");
        let event = world.last_request(record.id).await;
        assert_eq!(event, {
            let mut event = RequestEvent::new(method, format!("/{code}"), Outcome::Allowed);
            event.ip = Some(ip(PEER));
            event.status = Some(code);
            event
        });
    }
}

#[tokio::test]
async fn there_is_one_record_for_each_request_with_a_known_key() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let world = World::with(|builder| builder.delivery(delivery));
        let (allowed, allowed_key) = world.key().await;
        let (revoked, revoked_key) = world.key().await;
        world.revoke(&revoked).await;
        let (restricted, restricted_key) = world.key_for(&["203.0.113.77"]).await;
        let day = NewKey::named("day").unwrap().expires(Expiration::OneDay);
        let (expired, expired_key) = world.issue(day).await;
        world.clock.set(expired.expires_at.unwrap());
        let before = world.sink.len();

        for (_, ask) in hosts(&world.layer()) {
            for key in [&allowed_key, &revoked_key, &restricted_key, &expired_key] {
                ask(bearer(key)).await;
            }
            // Nobody knows these.
            for request in [
                bearer(&unknown_key()),
                bearer("x"),
                request("/", &[]),
                bearer(&format!("{allowed_key},")),
            ] {
                ask(request).await;
            }
        }
        assert!(world.keys.shutdown(PATIENCE).await.is_complete());
        assert_eq!(world.sink.len() - before, 2 * 4);
        for (key, status, outcome) in [
            (&allowed, 200, Outcome::Allowed),
            (&revoked, 401, Outcome::Revoked),
            (&restricted, 403, Outcome::IpNotAllowed),
            (&expired, 401, Outcome::Expired),
        ] {
            let events = world.requests(key.id).await;
            let found: Vec<_> = events.iter().map(|event| (event.status, event.outcome)).collect();
            assert_eq!(found, [(Some(status), outcome); 2]);
        }
    }
}

#[tokio::test]
async fn a_strict_record_is_written_before_the_answer_is_there() {
    let world = World::new();
    let (record, key) = world.key().await;
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    world.sink.sink(Sink::Slow(Duration::from_millis(20)));
    for (count, (_, ask)) in hosts(&world.layer()).into_iter().enumerate() {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
        assert_eq!(world.requests(record.id).await.len(), count + 1);
        assert_eq!(ask(bearer(&revoked_key)).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(world.requests(revoked.id).await.len(), count + 1);
    }
    // And no answer while it is not.
    world.sink.sink(Sink::Hangs);
    let ask = in_axum(router().layer(world.layer()));
    let mut under_way = ask(bearer(&key));
    let tried = world.sink.batches();
    tokio::select! {
        answer = &mut under_way => panic!("{answer:?}"),
        () = eventually("the sink is asked", PATIENCE, async || {
            (world.sink.batches() > tried).then_some(())
        }) => {}
    }
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(pin!(under_way).poll(&mut cx).is_pending());
}

#[tokio::test]
async fn a_buffered_answer_does_not_wait_for_its_record_which_follows() {
    let world = World::with(|builder| builder.delivery(Delivery::buffered()));
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    assert_eq!(world.requests(record.id).await, [], "not on the request's path");
    eventually("a record", PATIENCE, async || world.requests(record.id).await.pop()).await;
}

#[tokio::test]
async fn the_last_use_follows_and_only_of_admitted_requests() {
    let world = World::new();
    let (used, used_key) = world.key().await;
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    let (restricted, restricted_key) = world.key_for(&["203.0.113.77"]).await;
    let day = NewKey::named("day").unwrap().expires(Expiration::OneDay);
    let (expired, expired_key) = world.issue(day).await;
    let now = expired.expires_at.unwrap();
    world.clock.set(now);
    let ask = in_axum(router().layer(world.layer()));
    for key in [&revoked_key, &restricted_key, &expired_key] {
        assert!(!ask(bearer(key)).await.status.is_success());
    }
    let calls = world.store.calls();
    assert_eq!(ask(bearer(&used_key)).await.status, StatusCode::OK);
    assert_eq!(world.store.calls(), calls + 1, "no write on the request's path");
    let at =
        eventually("a last-used time", PATIENCE, async || world.stored(used.id).await.last_used_at)
            .await;
    assert_eq!(at, now, "when the key was verified");
    for refused in [revoked, restricted, expired] {
        assert_eq!(world.stored(refused.id).await.last_used_at, None);
    }
}

#[tokio::test]
async fn a_use_is_no_change() {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    ask(bearer(&key)).await;
    let used = eventually("a last-used time", PATIENCE, async || {
        Some(world.stored(record.id).await).filter(|key| key.last_used_at.is_some())
    })
    .await;
    assert_eq!(ApiKey { last_used_at: None, ..ApiKey::clone(&used) }, *record);
}

#[tokio::test]
async fn a_manager_without_an_audit_log_verifies_all_the_same() {
    let store = Arc::new(SpyStore::default());
    let keys = KeyManager::builder(Arc::clone(&store)).build().unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    let issued = keys.create(&actor, NewKey::named("key").unwrap()).await.unwrap();
    let ask = in_axum(router().layer(ApiKeyLayer::new(keys.clone())));
    assert_eq!(ask(bearer(issued.secret.expose_secret())).await.status, StatusCode::OK);
    assert_invalid_token(&ask(bearer(&unknown_key())).await, "unknown");
    assert!(keys.shutdown(PATIENCE).await.is_complete());
}
