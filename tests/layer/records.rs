//! The audit records of requests.

use std::pin::pin;
use std::task::Context;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::{any, get};
use http::{Method, StatusCode};
use keygate::audit::{Outcome, RequestEvent};
use keygate::{ApiKey, Delivery, KeyStore, Scopes, VerifiedKey};

use crate::support::{PATIENCE, Sink, eventually, log_lines, unknown_key};
use crate::{PEER, World, bearer, bearer_at, hosts, in_axum, ip, request, router};

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
    assert_eq!(world.requests(record.id).await.len(), 6, "one record per request");
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
        let mut expected = RequestEvent::new(method, format!("/{code}"), Outcome::Allowed);
        expected.ip = Some(ip(PEER));
        expected.status = Some(code);
        assert_eq!(event, expected);
    }
}

#[tokio::test]
async fn there_is_one_record_for_each_request_with_a_known_key() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let world = World::with(|builder| builder.delivery(delivery));
        let allowed = world.key().await;
        let [revoked, restricted, expired] = world.refused_keys().await;
        let before = world.sink.len();

        for (_, ask) in hosts(&world.layer()) {
            for (_, key) in [&allowed, &revoked, &restricted, &expired] {
                ask(bearer(key)).await;
            }
            // Requests with unknown keys.
            for request in [
                bearer(&unknown_key()),
                bearer("x"),
                request("/", &[]),
                bearer(&format!("{},", allowed.1)),
            ] {
                ask(request).await;
            }
        }
        assert!(world.keys.shutdown(PATIENCE).await.is_complete());
        assert_eq!(world.sink.len() - before, 2 * 4);
        for ((key, _), status, outcome) in [
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
async fn a_strict_record_is_written_before_the_answer() {
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
    // Without the record there is no answer.
    world.sink.sink(Sink::Hangs);
    let mut under_way = in_axum(router().layer(world.layer()))(bearer(&key));
    let tried = world.sink.batches();
    tokio::select! {
        answer = &mut under_way => panic!("{answer:?}"),
        () = eventually("the sink is asked", async || world.sink.batches() > tried) => {}
    }
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(pin!(under_way).poll(&mut cx).is_pending());
}

#[tokio::test]
async fn what_a_handler_logs_carries_the_organisation_and_the_key() {
    let world = World::new();
    let (key, secret) = world.key().await;
    let greet = async || tracing::info!("in the handler");
    let lacking = async |key: VerifiedKey| key.require_scope("reports:read");
    let app = Router::new().route("/", any(greet)).route("/scoped", any(lacking));
    let ask = in_axum(app.layer(world.layer()));
    assert_eq!(ask(bearer(&secret)).await.status, 200);
    let span = format!("request{{org=acme key={}", key.id);
    assert_eq!(log_lines(&["in the handler", &span]), 1);
    assert_eq!(log_lines(&["close", &span, "outcome=\"allowed\""]), 1);

    let mut stored = ApiKey::clone(&*world.stored(key.id).await);
    let revision = stored.revision;
    stored.attributes.scopes = Scopes::only(["other"]).unwrap();
    stored.revision = revision.next();
    world.store.replace(&stored, revision).await.unwrap();
    assert_eq!(ask(bearer_at("/scoped", &secret)).await.status, 403);
    assert_eq!(log_lines(&["close", &span, "outcome=\"insufficient_scope\""]), 1);
}
