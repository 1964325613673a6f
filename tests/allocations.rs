//! The heap allocations of a verification.
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
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use keygate::manager::{IssuedKey, KeyManagerBuilder, RequestInfo};
use keygate::runtime::TokioRuntime;
use keygate::*;

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
    keys: KeyManager,
    actor: Actor,
}

impl Bench {
    fn new() -> Self {
        Self::on(MemoryStore::new(), |builder| builder)
    }

    /// The runtime runs for changes only, so that no background task interferes.
    fn on(store: impl KeyStore, more: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tokio = TokioRuntime::new(runtime.handle().clone());
        let keys = more(KeyManager::builder(store).runtime(tokio)).build().unwrap();
        let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
        Self { runtime, keys, actor }
    }

    fn audited(delivery: Delivery) -> Self {
        Self::on(MemoryStore::new(), |builder| {
            builder.audit(MemoryAuditLog::new()).delivery(delivery)
        })
    }

    fn create(&self, new: NewKey) -> IssuedKey {
        self.runtime.block_on(self.keys.create(&self.actor, new)).unwrap()
    }

    fn revoked(&self) -> IssuedKey {
        let issued = self.create(NewKey::named("revoked").unwrap());
        let revoked = self.keys.update(&self.actor, &issued.key.id, KeyPatch::revoke());
        self.runtime.block_on(revoked).unwrap();
        issued
    }

    /// The allocations of [`ROUNDS`] verifications, after as many to warm up.
    fn measure(&self, name: &str, credential: &str, ip: Option<IpAddr>, allowed: bool) -> u64 {
        let verify = || {
            for _ in 0..ROUNDS {
                let verified = black_box(now(self.keys.verify(black_box(credential), ip)));
                assert_eq!(verified.is_ok(), allowed);
            }
        };
        verify();
        let AllocationInfo { count_total, count_current, bytes_total, .. } = measure(verify);
        println!(
            "{name}: {ROUNDS} verifications, {count_total} allocations of {bytes_total} bytes"
        );
        assert_eq!(count_current, 0, "{name}: memory is left allocated");
        count_total
    }
}

#[test]
fn the_counter_counts() {
    let counted = measure(|| drop(black_box(Box::new(black_box(1)))));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn an_allowed_request_costs_at_most_one_allocation() {
    let b = Bench::new();
    let open = b.create(NewKey::named("open").unwrap());
    assert!(b.measure("allowed", open.secret.expose_secret(), None, true) <= ROUNDS);

    // Also with an allowlist to search and an expiry to check.
    let entries = (0..50).map(|i| format!("10.{i}.0.0/16"));
    let new = NewKey::named("restricted").unwrap().allow(entries).unwrap();
    let restricted = b.create(new.expires(Expiration::OneDay));
    let secret = restricted.secret.expose_secret();
    let ip = "10.49.0.1".parse().ok();
    assert!(b.measure("allowed by the last of 50", secret, ip, true) <= ROUNDS);
    // Each one was noted as a use, although noting it allocated nothing.
    let report = b.runtime.block_on(b.keys.shutdown(Duration::from_secs(20)));
    assert!(report.is_complete());
    let list = now(b.keys.list(b.actor.org())).unwrap();
    assert!(list.iter().all(|key| key.last_used_at.is_some()));
}

#[test]
fn a_store_behind_an_arc_costs_no_more_than_the_store() {
    let b = Bench::on(Arc::new(MemoryStore::new()), |builder| builder);
    let issued = b.create(NewKey::named("shared").unwrap());
    let secret = issued.secret.expose_secret();
    assert!(b.measure("allowed, store in an Arc", secret, None, true) <= ROUNDS);
}

#[test]
fn case_07_a_refused_request_costs_no_more_than_an_allowed_one() {
    let b = Bench::new();
    let unknown = Bench::new().create(NewKey::named("unknown").unwrap());
    for (name, issued) in [("revoked", b.revoked()), ("unknown", unknown)] {
        let allocations = b.measure(name, issued.secret.expose_secret(), None, false);
        assert!(allocations <= ROUNDS, "{name}");
    }
}

#[test]
fn case_05_a_malformed_key_costs_no_allocation() {
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
        assert_eq!(b.measure(name, credential, None, false), 0, "{name}");
    }
}

#[test]
fn case_48_a_summed_refusal_costs_less_than_one_with_its_own_record() {
    let cost = |alone| {
        let delivery = Delivery::buffered().sum_refusals(alone, Duration::from_secs(3_600));
        let b = Bench::audited(delivery);
        let revoked = b.revoked();
        let refuse = || {
            for _ in 0..ROUNDS {
                let path = "/v1/organisations/acme/orders/".repeat(30);
                let request = RequestInfo::new("GET", path);
                assert!(now(b.keys.admit(revoked.secret.expose_secret(), request)).is_err());
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

    let b = Bench::audited(Delivery::buffered());
    let (good, revoked) = (b.create(NewKey::named("good").unwrap()), b.revoked());
    let service = ApiKeyLayer::new(b.keys.clone()).layer(service_fn(async |_: Request<()>| {
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
    assert!(b.runtime.block_on(b.keys.shutdown(Duration::from_secs(20))).is_complete());
}
