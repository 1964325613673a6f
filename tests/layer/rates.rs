//! Rate limits.
#![cfg(feature = "rate-limit")]

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use http::header::RETRY_AFTER;
use keygate::audit::Outcome;
use keygate::manager::{RateLimiter, RateLimits, RateStatus};
use keygate::runtime::{BoxFuture, Runtime};
use keygate::{Delivery, Metadata, NewKey, ScopeCatalog, Scopes, VerifiedKey};

use crate::support::{Sink, eventually};
use crate::{Answer, World, bearer, hosts, in_axum, router};

fn limited(limits: RateLimits) -> World {
    World::with(|builder| builder.delivery(Delivery::strict()).rate_limiter(limits))
}

fn limits(text: &str) -> RateLimits {
    RateLimits::new(text.parse().unwrap())
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn beyond_its_quota_a_key_is_refused_and_no_other_key() {
    for host in 0..2 {
        let world = limited(limits("5/h"));
        let ask = &hosts(&world.layer())[host].1;
        let ((key, secret), (_, other)) = (world.key().await, world.key().await);
        for remaining in (0..5).rev() {
            let answer = ask(bearer(&secret)).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(header(&answer, "ratelimit-policy"), "\"default\";q=5;w=3600");
            let rate = header(&answer, "ratelimit");
            assert!(rate.starts_with(&format!("\"default\";r={remaining};t=")), "{rate}");
        }
        let refused = ask(bearer(&secret)).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        let problem = refused.problem_of_type("#quota-exceeded");
        assert_eq!(problem["code"], "rate_limited");
        let wait: u64 = header(&refused, RETRY_AFTER.as_str()).parse().unwrap();
        assert!((1..=720).contains(&wait), "a fifth of an hour at most: {wait}");
        assert_eq!(header(&refused, "ratelimit-policy"), "\"default\";q=5;w=3600");
        assert!(header(&refused, "ratelimit").starts_with("\"default\";r=0;t="));
        assert_eq!(ask(bearer(&other)).await.status, StatusCode::OK);
        let last = world.last_request(key.id).await;
        assert_eq!((last.outcome, last.status), (Outcome::RateLimited, Some(429)));
        assert_eq!(world.requests(key.id).await.len(), 6);
    }
}

#[tokio::test]
async fn a_flood_beyond_the_quota_is_summed() {
    let world = limited(limits("1/h"));
    let (key, secret) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    for _ in 0..200 {
        ask(bearer(&secret)).await;
    }
    let stats = world.keys.audit_stats();
    assert_eq!(stats.written + stats.summed, 1 + 200, "the creation, and every request");
    assert!(world.requests(key.id).await.len() < 100);
}

#[tokio::test]
async fn a_quota_comes_back() {
    let world = limited(limits("20/s"));
    let (_, secret) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    let is_let_in = async || ask(bearer(&secret)).await.status == StatusCode::OK;
    eventually("a refusal", async || !is_let_in().await).await;
    eventually("the quota comes back", is_let_in).await;
}

#[tokio::test]
async fn requests_that_are_refused_otherwise_do_not_count() {
    let world = limited(limits("1/h"));
    let (walled, walled_secret) = world.key_for(&["203.0.113.77"]).await;
    let ask = in_axum(router().layer(world.layer()));
    for _ in 0..3 {
        let answer = ask(bearer(&walled_secret)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert_eq!(header(&answer, "ratelimit"), "", "the key was not counted");
    }
    assert_eq!(world.last_request(walled.id).await.outcome, Outcome::IpNotAllowed);
}

#[tokio::test]
async fn a_request_that_lacks_a_scope_counts() {
    let world = World::with(|builder| {
        let catalog = ScopeCatalog::new([("read", ""), ("write", "")]).unwrap();
        builder.delivery(Delivery::strict()).scopes(catalog).rate_limiter(limits("2/h"))
    });
    let scopes = Scopes::only(["read"]).unwrap();
    let (key, secret) = world.issue(NewKey::named("key").unwrap().scopes(scopes)).await;
    let layer = world.layer().require_scope("write").unwrap();
    let ask = in_axum(router().layer(layer));
    for remaining in [1, 0] {
        let answer = ask(bearer(&secret)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        let rate = header(&answer, "ratelimit");
        assert!(rate.starts_with(&format!("\"default\";r={remaining};t=")), "{rate}");
        assert_eq!(world.last_request(key.id).await.outcome, Outcome::InsufficientScope);
    }
    assert_eq!(ask(bearer(&secret)).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_request_that_cannot_be_recorded_is_told_its_rate_limit() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let delivery = delivery.capacity(1).deadline(Duration::from_millis(50));
        let world = World::with(|builder| builder.delivery(delivery).rate_limiter(limits("9/h")));
        let (_, secret) = world.key().await;
        let ask = in_axum(router().layer(world.layer()));
        world.sink.sink(Sink::Hangs);
        let answer = eventually("a request that is not recorded", async || {
            let answer = ask(bearer(&secret)).await;
            (answer.status == StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
        });
        assert!(header(&answer.await, "ratelimit").starts_with("\"default\";r="));
    }
}

#[tokio::test]
async fn the_host_chooses_the_limit_of_a_key() {
    let limits = limits("1/h").tier("pro", "3/h".parse().unwrap()).unwrap();
    let world = limited(limits.choose(|key| key.metadata().get("plan")));
    let ask = in_axum(router().layer(world.layer()));
    for (plan, name, quota) in [("pro", "pro", 3), ("free", "default", 1), ("", "default", 1)] {
        let metadata = Metadata::new().with("plan", plan).unwrap();
        let (_, secret) = world.issue(NewKey::named("k").unwrap().metadata(metadata)).await;
        for _ in 0..quota {
            let answer = ask(bearer(&secret)).await;
            assert_eq!(answer.status, StatusCode::OK, "{plan}");
            let policy = format!("\"{name}\";q={quota};w=3600");
            assert_eq!(header(&answer, "ratelimit-policy"), policy);
        }
        assert_eq!(ask(bearer(&secret)).await.status, StatusCode::TOO_MANY_REQUESTS, "{plan}");
    }
}

/// A limiter that fails in one way.
#[derive(Debug)]
enum Broken {
    Panics,
    Hangs,
}

#[async_trait::async_trait]
impl RateLimiter for Broken {
    async fn count(&self, _: &VerifiedKey) -> Option<RateStatus> {
        match self {
            Self::Panics => panic!("the limiter of a test panics"),
            Self::Hangs => pending().await,
        }
    }

    async fn tidy(&self) {
        panic!("the limiter of a test panics");
    }
}

/// Counts how often it is tidied, and hangs the first time.
#[derive(Debug, Default)]
struct Tidied(AtomicUsize);

#[async_trait::async_trait]
impl RateLimiter for Tidied {
    async fn count(&self, _: &VerifiedKey) -> Option<RateStatus> {
        None
    }

    async fn tidy(&self) {
        if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            pending().await
        }
    }
}

/// Tokio, without the pause between two tidyings.
#[derive(Debug)]
struct Hasty;

impl Runtime for Hasty {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let time = if time == Duration::from_secs(10) { Duration::from_millis(1) } else { time };
        Box::pin(tokio::time::sleep(time))
    }
}

#[tokio::test]
async fn idle_keys_are_forgotten_again_and_again_although_it_hung_once() {
    let limiter = Arc::new(Tidied::default());
    let _world = World::with(|builder| {
        let builder = builder.rate_limiter(Arc::clone(&limiter)).runtime(Hasty);
        builder.store_deadline(Duration::from_millis(20))
    });
    eventually("tidied three times", async || limiter.0.load(Ordering::SeqCst) >= 3).await;
}

#[tokio::test]
async fn a_limiter_that_fails_does_not_limit() {
    for broken in [Broken::Panics, Broken::Hangs] {
        let world = World::with(|builder| {
            builder.rate_limiter(broken).store_deadline(Duration::from_millis(20))
        });
        let (_, secret) = world.key().await;
        let answer = in_axum(router().layer(world.layer()))(bearer(&secret)).await;
        assert_eq!((answer.status, header(&answer, "ratelimit")), (StatusCode::OK, ""));
        assert!(crate::support::logs().contains("the rate limiter failed"));
    }
}

#[cfg(feature = "test-util")]
#[tokio::test]
async fn keys_whose_quota_is_whole_again_are_forgotten() {
    let limits = limits("1000/s");
    let keys: Vec<_> =
        (0..100).map(|n| VerifiedKey::for_test(keygate::ApiKey::sample(n))).collect();
    for key in &keys {
        assert!(limits.count(key).await.unwrap().retry_after.is_none());
    }
    eventually("they are forgotten", async || {
        limits.tidy().await;
        limits.keys() == 0
    })
    .await;
}
