//! The cost of a verification: calls of the store, and heap allocations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]
#![cfg(feature = "tokio")]

use std::future::Future;
use std::hint::black_box;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use async_trait::async_trait;
use keygate::audit::AuditRecord;
use keygate::manager::{IssuedKey, RequestInfo};
use keygate::runtime::{BoxFuture, TokioRuntime};
use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision};
use keygate::*;

/// A memory store that counts its look-ups. Its methods return the boxed future of the inner
/// store, so that it adds no allocation.
#[derive(Debug, Default)]
struct Counted {
    inner: MemoryStore,
    found: Arc<AtomicUsize>,
}

type Found<'a> = BoxFuture<'a, Result<Option<Arc<ApiKey>>, StoreError>>;

#[async_trait]
impl KeyStore for Counted {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.inner.insert(key, limit).await
    }
    fn find_by_digest<'a, 'b, 'async_trait>(&'a self, digest: &'b KeyDigest) -> Found<'async_trait>
    where
        'a: 'async_trait,
        'b: 'async_trait,
    {
        self.found.fetch_add(1, SeqCst);
        self.inner.find_by_digest(digest)
    }
    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.inner.get(org, id).await
    }
    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.inner.list(org).await
    }
    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.inner.replace(key, expected).await
    }
    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.inner.delete(org, id, expected).await
    }
    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.inner.record_uses(uses).await
    }
}

/// A memory store answers at once, so no runtime has to run and none is counted.
fn now<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("the future is pending"),
    }
}

const ROUNDS: u64 = 100;

struct Bench {
    runtime: tokio::runtime::Runtime,
    found: Arc<AtomicUsize>,
    keys: KeyManager,
    actor: Actor,
}

impl Bench {
    fn new() -> Self {
        Self::on(Counted::default(), |counted| counted)
    }

    /// The runtime runs for changes only, so that no background task interferes.
    fn on<S: KeyStore>(counted: Counted, store: impl FnOnce(Counted) -> S) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = Arc::clone(&counted.found);
        let tokio = TokioRuntime::new(runtime.handle().clone());
        let keys = KeyManager::builder(store(counted)).runtime(tokio).build().unwrap();
        let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
        Self { runtime, found, keys, actor }
    }

    fn create(&self, new: NewKey) -> IssuedKey {
        self.runtime.block_on(self.keys.create(&self.actor, new)).unwrap()
    }

    /// Allocations and look-ups of `times` verifications, after a few warm-up runs.
    fn measure(
        &self,
        name: &str,
        credential: &str,
        ip: Option<IpAddr>,
        allowed: bool,
    ) -> (u64, u64) {
        let verify = || {
            for _ in 0..ROUNDS {
                assert_eq!(
                    black_box(now(self.keys.verify(black_box(credential), ip))).is_ok(),
                    allowed
                );
            }
        };
        verify();
        let found = self.found.load(SeqCst);
        let AllocationInfo { count_total, count_current, bytes_total, .. } = measure(verify);
        let found = self.found.load(SeqCst) - found;
        println!(
            "{name}: {ROUNDS} verifications, {found} look-ups, {count_total} allocations of {bytes_total} bytes"
        );
        assert_eq!(count_current, 0, "{name}: memory is left allocated");
        (count_total, found as u64)
    }
}

#[test]
fn the_counter_counts() {
    let counted = measure(|| drop(black_box(Box::new(black_box(1)))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn an_allowed_request_costs_one_look_up_and_at_most_one_allocation() {
    let b = Bench::new();
    let open = b.create(NewKey::named("open").unwrap());
    let secret = open.secret.expose_secret();
    let (allocations, found) = b.measure("allowed", secret, None, true);
    assert!(allocations <= ROUNDS && found == ROUNDS);

    // Also with an allowlist to search and an expiry to check.
    let entries = (0..50).map(|i| format!("10.{i}.0.0/16"));
    let new = NewKey::named("restricted").unwrap().allow(entries).unwrap();
    let restricted = b.create(new.expires(Expiration::OneDay));
    let secret = restricted.secret.expose_secret();
    let ip = "10.49.0.1".parse().ok();
    let (allocations, found) = b.measure("allowed by the last of 50", secret, ip, true);
    assert!(allocations <= ROUNDS && found == ROUNDS);
    // Each one was noted as a use, although noting it allocated nothing.
    let report = b.runtime.block_on(b.keys.shutdown(Duration::from_secs(20)));
    assert!(report.is_complete());
    let list = now(b.keys.list(b.actor.org())).unwrap();
    assert!(list.iter().all(|key| key.last_used_at.is_some()));
}

#[test]
fn a_store_behind_an_arc_costs_no_more_than_the_store() {
    let b = Bench::on(Counted::default(), Arc::new);
    let issued = b.create(NewKey::named("shared").unwrap());
    let secret = issued.secret.expose_secret();
    let (allocations, found) = b.measure("allowed, store in an Arc", secret, None, true);
    assert!(allocations <= ROUNDS && found == ROUNDS);
}

#[test]
fn case_07_a_refused_request_costs_no_more_than_an_allowed_one() {
    let b = Bench::new();
    let revoked = b.create(NewKey::named("revoked").unwrap());
    b.runtime.block_on(b.keys.update(&b.actor, &revoked.key.id, KeyPatch::revoke())).unwrap();
    let unknown = Bench::new().create(NewKey::named("unknown").unwrap());
    for (name, issued) in [("revoked", revoked), ("unknown", unknown)] {
        let (allocations, found) = b.measure(name, issued.secret.expose_secret(), None, false);
        assert!(allocations <= ROUNDS && found == ROUNDS, "{name}");
    }
}

#[test]
fn case_05_a_malformed_key_costs_no_look_up_and_no_allocation() {
    let b = Bench::new();
    let issued = b.create(NewKey::named("CI").unwrap());
    let secret = issued.secret.expose_secret();
    let long = "a".repeat(64 * 1024);
    let typo = format!("{}{}", &secret[..54], if secret.ends_with('a') { 'b' } else { 'a' });
    for (name, credential) in [
        ("empty", ""),
        ("junk", "hello"),
        ("64 KiB", &long),
        ("typo", &typo),
        ("cut off", &secret[..54]),
    ] {
        assert_eq!(b.measure(name, credential, None, false), (0, 0), "{name}");
    }
}

#[derive(Debug)]
struct NoSink;

#[async_trait]
impl AuditSink for NoSink {
    async fn record(&self, _: &[AuditRecord]) -> Result<(), AuditError> {
        Ok(())
    }
}

#[test]
fn case_48_a_summed_refusal_costs_less_than_one_with_its_own_record() {
    let cost = |alone| {
        let b = Bench::new();
        let revoked = b.create(NewKey::named("revoked").unwrap());
        b.runtime.block_on(b.keys.update(&b.actor, &revoked.key.id, KeyPatch::revoke())).unwrap();
        let store = MemoryStore::new();
        now(store.insert(
            &now(b.keys.get(b.actor.org(), &revoked.key.id)).unwrap(),
            OrgLimit::at_most(1),
        ))
        .unwrap();
        let keys = KeyManager::builder(store)
            .runtime(TokioRuntime::new(b.runtime.handle().clone()))
            .audit_sink(NoSink)
            .delivery(Delivery::buffered().sum_refusals(alone, Duration::from_secs(3_600)))
            .build()
            .unwrap();
        let refuse = || {
            for _ in 0..ROUNDS {
                let path = "/v1/organisations/acme/orders/".repeat(30);
                let request = RequestInfo::new("GET", path);
                assert!(now(keys.admit(revoked.secret.expose_secret(), request)).is_err());
            }
        };
        refuse();
        let AllocationInfo { count_total, bytes_total, .. } = measure(refuse);
        println!("{alone} alone: {count_total} allocations of {bytes_total} bytes");
        (count_total, bytes_total)
    };
    let (summed, alone) = (cost(0), cost(u32::MAX));
    // The path of the request, and the future of the store.
    assert!(summed.0 <= 2 * ROUNDS, "{summed:?}");
    assert!(summed.0 < alone.0 && summed.1 < alone.1, "{summed:?}, {alone:?}");
}

#[cfg(feature = "tower")]
#[test]
fn case_47_a_long_path_or_method_is_not_copied_whole() {
    use http::{Method, Request, Response, StatusCode, header::AUTHORIZATION};
    use tower::{Layer, ServiceExt, service_fn};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tokio = TokioRuntime::new(runtime.handle().clone());
    let builder = KeyManager::builder(MemoryStore::new()).audit(MemoryAuditLog::new());
    let keys = builder.delivery(Delivery::buffered()).runtime(tokio).build().unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    let create =
        |name| runtime.block_on(keys.create(&actor, NewKey::named(name).unwrap())).unwrap();
    let (good, revoked) = (create("good"), create("revoked"));
    runtime.block_on(keys.update(&actor, &revoked.key.id, KeyPatch::revoke())).unwrap();

    let service = ApiKeyLayer::new(keys.clone()).layer(service_fn(async |_: Request<()>| {
        Ok::<_, std::convert::Infallible>(Response::new(String::new()))
    }));
    let cost = |key: &IssuedKey, method: &str, path: &str, expected: StatusCode| {
        let request = || {
            let mut request = Request::builder().uri(path).body(()).unwrap();
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
            let credential = format!("Bearer {}", key.secret.expose_secret());
            request.headers_mut().insert(AUTHORIZATION, credential.try_into().unwrap());
            request
        };
        let ask = |request| {
            let answer = now(service.clone().oneshot(request)).unwrap();
            assert_eq!(answer.status(), expected);
        };
        // A thread copies a key that it uses often.
        for _ in 0..16 {
            ask(request());
        }
        let request = request();
        measure(|| ask(request))
    };
    for (key, expected) in [(&good, StatusCode::OK), (&revoked, StatusCode::UNAUTHORIZED)] {
        let usual = cost(key, "GET", "/v1/things/that/have/a/path", expected);
        for text in ["a", "0", ".", "/", "%252561", "vsp_sk_"] {
            let long = text.repeat(60_000 / text.len());
            let path = cost(key, "GET", &format!("/{long}"), expected);
            let method = text != "/";
            let method = method.then(|| cost(key, &long, "/", expected));
            for info in [Some(path), method].into_iter().flatten() {
                let more = info.bytes_total.saturating_sub(usual.bytes_total);
                assert!(more < 10_000, "{text}: {more} bytes more");
                let more = info.count_total.saturating_sub(usual.count_total);
                assert!(more <= 2, "{text}: {more} allocations more");
            }
        }
    }
    assert!(runtime.block_on(keys.shutdown(Duration::from_secs(20))).is_complete());
}
