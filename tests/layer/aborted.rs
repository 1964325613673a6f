//! Requests that end early.

use std::future::{pending, ready};
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::{Request, Response, StatusCode};
use keygate::Delivery;
use keygate::audit::Outcome;
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::{Find, Gate, PATIENCE, eventually};
use crate::{PEER, Unshared, World, at_once_and_later, bearer, bearer_at, in_axum, ip, router};

#[tokio::test]
async fn case_36_a_request_dropped_in_the_handler_is_recorded_as_aborted() {
    let deliveries = [Delivery::strict(), Delivery::buffered()];
    for (delivery, find) in deliveries.iter().flat_map(|d| at_once_and_later().map(|f| (d, f))) {
        let world = World::with(|builder| builder.delivery(delivery.clone()));
        let (record, key) = world.key().await;
        world.store.find(find);
        let arrived = Arc::new(Notify::new());
        let reached = Arc::clone(&arrived);
        let handler = async move || {
            reached.notify_one();
            pending::<StatusCode>().await
        };
        let ask = in_axum(Router::new().route("/stuck", get(handler)).layer(world.layer()));
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
