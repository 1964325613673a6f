//! Requests that end early, and shutdown.

use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use http::{Request, Response, StatusCode};
use keygate::audit::Outcome;
use keygate::{ApiKeyLayer, Delivery, KeyStore, NewKey};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Find, Gate, PATIENCE, Sink, eventually, logs};
use crate::{
    Ask, PEER, Unshared, World, assert_unavailable, at_once_and_later, bearer, bearer_at, in_axum,
    ip, router,
};

/// A service that holds a request until the test releases it.
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
        let event = eventually("a record", async || world.requests(record.id).await.pop()).await;
        assert_eq!((event.outcome, event.status), (Outcome::Aborted, None));
        assert_eq!((&*event.method, &*event.endpoint), ("GET", "/stuck"));
        assert_eq!(event.ip, Some(ip(PEER)));
        assert_eq!(world.requests(record.id).await.len(), 1);
    }
}

#[tokio::test]
async fn case_36_a_request_dropped_before_its_verification_leaves_no_record() {
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
    let event = eventually("a record", async || world.requests(record.id).await.pop()).await;
    assert_eq!((event.outcome, event.status), (Outcome::Aborted, None));

    let fails = service_fn(|_: Request<()>| ready(Err::<Response<Unshared>, _>("no upstream")));
    let answer = world.layer().layer(fails).oneshot(bearer(&key)).await;
    assert_eq!(answer.err(), Some("no upstream"), "the error is passed through unchanged");
    eventually("a second record", async || world.requests(record.id).await.len() == 2).await;
    assert_eq!(world.last_request(record.id).await.outcome, Outcome::Aborted);
}

#[tokio::test]
async fn case_37_shutdown_writes_the_queue_to_a_slow_sink() {
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
    assert!(world.stored(record.id).await.last_used_at.is_some(), "the last use is written too");
    // After the shutdown, a request that could not be recorded is not admitted.
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
        let (report, answer) = tokio::join!(world.keys.shutdown(PATIENCE * 6), async {
            go_on.notify_one();
            under_way.await.unwrap()
        });
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        assert!(report.is_complete(), "{report:?}");
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
        assert_eq!(world.last_request(record.id).await.status, Some(202));
    }
}

/// The number of lost records in the log.
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
    eventually("the sink has begun", async || world.sink.batches() > tried).await;
    let started = Instant::now();
    let report = world.keys.shutdown(shutdown).await;
    assert!(started.elapsed() < shutdown + PATIENCE, "{:?}", started.elapsed());
    assert_eq!(report.unwritten_records, 50);
    assert!(!report.is_complete());
    // The process ends now: records not written yet are lost.
    assert_eq!(logged_losses(), 50, "each loss is in the log");
    assert_eq!(world.keys.audit_stats().failed, 50);
}

#[tokio::test]
async fn case_37_records_that_a_broken_sink_did_not_write_are_counted_and_logged() {
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
    eventually("its record", async || sink.len() == before + 1).await;
    eventually("its last use", async || {
        store.get(actor.org(), &issued.key.id).await.unwrap()?.last_used_at
    })
    .await;
}
