//! Faults of the store and the sink, and changes concurrent with requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use keygate::audit::{CountryCode, CountryLookup, Outcome, WhenFull};
use keygate::{Delivery, KeyPatch};

use crate::support::{
    Call, Find, Gate, PATIENCE, Sink, capture_logs, eventually, logs, unknown_key,
};
use crate::{
    World, assert_invalid_token, assert_unavailable, bearer, bearer_at, from_peer, hosts, in_axum,
    router,
};

#[tokio::test]
async fn case_30_a_key_deleted_during_its_verification_does_not_come_back() {
    // The look-up either finds the key first and answers late, or starts late.
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
        // The use of the deleted key was written with the others.
        assert_eq!(ask(bearer(&other_key)).await.status, StatusCode::OK);
        eventually("a last-used time", async || world.stored(other.id).await.last_used_at).await;
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
                let answer = tokio::time::timeout(PATIENCE, ask(bearer(&key))).await;
                assert_unavailable(&answer.expect("an answer in time"), &case);
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
    let logged = logs();
    assert!(logged.contains("connection refused"), "{logged}");
    // Requests that could not be verified are not recorded for the key.
    let shutdown = world.keys.shutdown(PATIENCE).await;
    assert!(shutdown.is_complete(), "{shutdown:?}");
    let outcomes = world.requests(record.id).await;
    assert_eq!(outcomes.len(), 2 * 2 * 5);
    assert!(outcomes.iter().all(|request| request.outcome == Outcome::Allowed));
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
async fn case_32_the_log_says_that_the_store_was_too_slow() {
    let world = World::with(|builder| builder.store_deadline(Duration::from_millis(50)));
    let (_, key) = world.key().await;
    world.store.find(Find::Hangs);
    assert_unavailable(&in_axum(router().layer(world.layer()))(bearer(&key)).await, "hangs");
    assert!(logs().contains("the store did not answer within its deadline"), "{}", logs());
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
                let answer = tokio::time::timeout(PATIENCE, ask(bearer(key))).await;
                assert_unavailable(&answer.expect("an answer in time"), &case);
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
                let answer = tokio::time::timeout(PATIENCE, ask(bearer(&key))).await;
                assert_eq!(answer.expect("an answer").status, StatusCode::OK, "{host} {broken:?}");
            }
        }
        eventually("the sink is called at least twice", async || world.sink.batches() >= tried + 2)
            .await;
        assert_eq!(world.requests(record.id).await, [], "{broken:?}");
        let stats = world.keys.audit_stats();
        assert_eq!((stats.queued, stats.failed), (6, 0), "{broken:?}: waiting, not lost");
        assert!(logs().contains("will be retried"), "{broken:?}");

        world.sink.sink(Sink::Works);
        eventually("all records are written", async || world.keys.audit_stats().queued == 0).await;
        let outcomes = world.requests(record.id).await;
        assert_eq!(outcomes.len(), 6, "{broken:?}: each once");
        let stats = world.keys.audit_stats();
        assert_eq!((stats.written - written, stats.failed, stats.shed), (6, 0, 0), "{broken:?}");
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

#[derive(Debug)]
struct Atlas;

impl CountryLookup for Atlas {
    fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        assert!(!ip.is_loopback(), "an address without a country");
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
    eventually("the queue is empty", async || world.keys.audit_stats().queued == 0).await;
    let stats = world.keys.audit_stats();
    assert_eq!(stats.written - written + stats.failed, 2, "a loss is not counted: {stats:?}");
    let answer = ask(from_peer(bearer(&key), "192.0.2.1")).await;
    assert_eq!(answer.status, StatusCode::OK, "the writer continues");
    eventually("the next record", async || world.requests(record.id).await.pop()).await;
}

fn two_places() -> Delivery {
    Delivery::buffered().capacity(2).deadline(Duration::from_millis(100))
}

#[tokio::test]
async fn case_35_a_full_queue_that_sheds_answers_every_request_and_counts_the_losses() {
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
    let answer = tokio::time::timeout(PATIENCE, ask(bearer(&key))).await;
    assert_unavailable(&answer.expect("an answer in time"), "no room");
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
    let logged = logs();
    assert!(logged.contains("queue is full"), "the log does not give the reason: {logged:?}");
}
