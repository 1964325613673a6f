//! Faults of the store and the sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use keygate::Delivery;
use keygate::audit::Outcome;

use crate::support::{Call, Find, PATIENCE, Sink, eventually, logs, soon, unknown_key};
use crate::{
    World, assert_invalid_token, assert_unavailable, bearer, bearer_at, hosts, in_axum, router,
};

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
                assert_unavailable(&soon(ask(bearer(&key))).await, &case);
                assert!(!world.keys.health().await.lookups.works(), "{case}");
                // Requests that need no store are answered as usual.
                assert_invalid_token(&ask(bearer("junk")).await, &case);

                world.store.find(Find::Honest);
                assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{case}");
                assert!(world.keys.health().await.lookups.works(), "{case}");
            }
            // A slow answer within the deadline is not a failure.
            world.store.find(Find::Slow(deadline / 4));
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{host}");
            world.store.find(Find::Honest);
        }
    }
    assert!(logs().contains("connection refused"), "{}", logs());
    // Requests that could not be verified are not recorded for the key.
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
    assert!(logs().contains("the store did not answer within its deadline"), "{}", logs());
}

#[tokio::test]
async fn case_32_a_store_that_panics_is_503() {
    let world = World::new();
    let (_, key) = world.key().await;
    for (host, ask) in hosts(&world.layer()) {
        world.store.before(|call| async move {
            assert!(call != Call::Find, "the store of a test panics");
            Ok(())
        });
        assert_unavailable(&ask(bearer(&key)).await, host);
        assert!(logs().contains("the key store panicked"), "{}", logs());
        world.store.heal();
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{host}");
    }
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
                assert_unavailable(&soon(ask(bearer(key))).await, &case);
            }
            // The writer counts a loss only after its own call has ended.
            eventually("both losses are counted", async || {
                world.keys.audit_stats().failed == 2 * (count + 1)
            })
            .await;
            // Unverified requests are not recorded.
            assert_invalid_token(&ask(bearer(&unknown_key())).await, &case);

            world.sink.sink(Sink::Works);
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{case}: it recovers");
            assert_eq!(world.requests(record.id).await.len() as u64, count + 1, "{case}");
        }
        let stats = world.keys.audit_stats();
        assert_eq!((stats.failed, stats.queued, stats.shed), (4, 0, 0), "{broken:?}");
        assert_eq!(stats.written, written + 2, "{broken:?}");
        assert!(logs().contains("audit records were not written"), "{broken:?}: not in the log");
    }
}

#[tokio::test]
async fn case_35_buffered_a_sink_that_panics_at_one_record_loses_only_that_one_and_logs_it() {
    let world = World::with(|builder| builder.delivery(Delivery::buffered()));
    let (record, key) = world.key().await;
    world.sink.sink(Sink::PanicsAt("/poison"));
    let ask = in_axum(router().layer(world.layer()));
    for path in ["/a", "/poison", "/b"] {
        assert_eq!(ask(bearer_at(path, &key)).await.status, StatusCode::OK);
    }
    eventually("the batch is finished", async || world.keys.audit_stats().queued == 0).await;
    let endpoints: Vec<_> =
        world.requests(record.id).await.into_iter().map(|request| request.endpoint).collect();
    assert_eq!(endpoints, ["/a".into(), "/b".into()]);
    assert_eq!(world.keys.audit_stats().failed, 1);
    assert!(logs().contains("the sink panicked"), "{}", logs());
    // The writer continues.
    assert_eq!(ask(bearer_at("/c", &key)).await.status, StatusCode::OK);
    eventually("the next record", async || world.requests(record.id).await.len() == 3).await;
}

#[tokio::test]
async fn case_35_a_full_queue_that_waits_refuses_before_a_request_is_handled() {
    let delivery = Delivery::buffered().capacity(2).deadline(Duration::from_millis(100));
    let world = World::with(|builder| builder.delivery(delivery));
    let (record, key) = world.key().await;
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    world.sink.sink(Sink::Fails);
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let handler = async move || count.fetch_add(1, Ordering::SeqCst).to_string();
    let ask = in_axum(Router::new().route("/", get(handler)).layer(world.layer()));
    for _ in 0..2 {
        assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK);
    }
    assert_unavailable(&soon(ask(bearer(&key))).await, "no room");
    assert!(logs().contains("queue is full"), "the log does not give the reason: {}", logs());
    // A refusal has its own room, and is summed if that is full.
    for _ in 0..3 {
        assert_invalid_token(&ask(bearer(&revoked_key)).await, "no room");
    }
    assert_eq!(handled.load(Ordering::SeqCst), 2);
    world.sink.sink(Sink::Works);
    eventually("it recovers", async || ask(bearer(&key)).await.status == StatusCode::OK).await;
    assert!(world.keys.shutdown(PATIENCE).await.is_complete());
    assert_eq!(world.requests(record.id).await.len(), 3);
    let refused = world.requests(revoked.id).await;
    assert_eq!(refused.iter().map(|request| request.count).sum::<u32>(), 3);
}
