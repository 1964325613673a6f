//! Requests that need a scope: at the layer, at single routes, and in handlers.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::get;
use http::header::{CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use keygate::audit::{Outcome, RequestEvent};
use keygate::error::MissingScope;
use keygate::guard::RequireScope;
use keygate::manager::KeyManagerBuilder;
use keygate::{Allowlist, ApiKey, Delivery, KeyPatch, NewKey, ScopeCatalog, Scopes, VerifiedKey};
use tower::{ServiceBuilder, service_fn};

use crate::support::PATIENCE;
use crate::{
    Answer, Ask, PEER, World, bearer, bearer_at, greet, greet_in_tower, hosts, in_axum, in_tower,
    ip, request, router, with_header,
};

fn world(configure: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder) -> World {
    let catalog = ScopeCatalog::new([("read", ""), ("write", ""), ("admin", "")]).unwrap();
    World::with(|builder| configure(builder.delivery(Delivery::strict()).scopes(catalog)))
}

async fn key(world: &World, scopes: &[&str]) -> (Arc<ApiKey>, String) {
    let scopes = Scopes::only(scopes).unwrap();
    world.issue(NewKey::named("key").unwrap().scopes(scopes)).await
}

async fn full(world: &World) -> (Arc<ApiKey>, String) {
    world.issue(NewKey::named("full").unwrap().scopes(Scopes::ALL)).await
}

#[track_caller]
fn assert_insufficient(answer: &Answer, scope: &str, case: &str) {
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{case}");
    let challenge =
        format!("Bearer realm=\"api\", error=\"insufficient_scope\", scope=\"{scope}\"");
    assert_eq!(answer.challenge(), Some(&*challenge), "{case}");
    assert_eq!(answer.problem()["code"], "insufficient_scope", "{case}");
    let detail = format!("The API key does not have the scope `{scope}`.");
    assert_eq!(answer.problem()["detail"], detail, "{case}");
}

async fn outcomes(world: &World, key: &ApiKey) -> Vec<(Option<u16>, Outcome)> {
    let requests = world.requests(key.id).await;
    requests.iter().map(|event| (event.status, event.outcome)).collect()
}

const REFUSED: (Option<u16>, Outcome) = (Some(403), Outcome::InsufficientScope);
const ALLOWED: (Option<u16>, Outcome) = (Some(200), Outcome::Allowed);

fn require(scope: &str) -> RequireScope {
    RequireScope::new(scope).unwrap()
}

async fn reports(key: VerifiedKey) -> Result<String, MissingScope> {
    key.require_scope("write")?;
    Ok(key.name().to_string())
}

/// Each way to require `write` that there is.
fn ways(world: &World) -> Vec<(&'static str, Ask)> {
    let layer = world.layer();
    let mut ways: Vec<_> = hosts(&layer.clone().require_scope("write").unwrap()).into();
    let below = ServiceBuilder::new().layer(layer.clone()).layer(require("write"));
    ways.push(("a layer in tower", in_tower(below.service(service_fn(greet_in_tower)))));
    for (case, router) in [
        ("a route", Router::new().route("/", get(greet).layer(require("write")))),
        ("routes", router().layer(require("write"))),
        ("a nested router", Router::new().fallback_service(router().route_layer(require("write")))),
        ("a handler", Router::new().route("/", get(reports))),
    ] {
        ways.push((case, in_axum(router.layer(layer.clone()))));
    }
    ways
}

#[tokio::test]
async fn a_key_without_the_scope_is_refused_and_recorded_so_in_each_way() {
    let world = world(|builder| builder);
    let (reader, reading) = key(&world, &["read"]).await;
    let (writer, writing) = key(&world, &["read", "write"]).await;
    let (all, everything) = full(&world).await;
    let ways = ways(&world);
    for (case, ask) in &ways {
        assert_insufficient(&ask(bearer(&reading)).await, "write", case);
        for key in [&writing, &everything] {
            assert_eq!(ask(bearer(key)).await.status, StatusCode::OK, "{case}");
        }
    }
    assert_eq!(outcomes(&world, &reader).await, vec![REFUSED; ways.len()]);
    for key in [&writer, &all] {
        assert_eq!(outcomes(&world, key).await, vec![ALLOWED; ways.len()]);
    }
    let mut expected = RequestEvent::new("GET", "/", Outcome::InsufficientScope);
    expected.ip = Some(ip(PEER));
    expected.status = Some(403);
    assert!(world.requests(reader.id).await.iter().all(|event| *event == expected));
}

#[tokio::test]
async fn several_scopes_are_all_required_and_the_missing_one_is_named() {
    let world = world(|builder| builder);
    let layer = world.layer().require_scope("read").unwrap().require_scope("write").unwrap();
    for (scopes, missing) in [
        (&["read"][..], Some("write")),
        (&["write", "admin"], Some("read")),
        (&["write", "read"], None),
    ] {
        let (_, secret) = key(&world, scopes).await;
        for (case, ask) in hosts(&layer) {
            let answer = ask(bearer(&secret)).await;
            match missing {
                Some(missing) => assert_insufficient(&answer, missing, case),
                None => assert_eq!(answer.status, StatusCode::OK),
            }
        }
    }
    assert!(world.layer().require_scope("Read").is_err() && RequireScope::new("").is_err());
}

#[tokio::test]
async fn other_reasons_come_first() {
    let world = world(|builder| builder);
    let (record, secret) = key(&world, &["read"]).await;
    for (_, ask) in ways(&world) {
        let patch = KeyPatch::restrict(Allowlist::parse(["203.0.113.77"]).unwrap());
        world.keys.update(&world.actor, &record.id, patch).await.unwrap();
        let answer = ask(bearer(&secret)).await;
        assert_eq!((answer.status.as_u16(), answer.challenge()), (403, None));
        world.revoke(&record).await;
        assert_eq!(ask(bearer(&secret)).await.status, StatusCode::UNAUTHORIZED);
        let mut back = KeyPatch::enable();
        back.allowlist = Some(Allowlist::default());
        world.keys.update(&world.actor, &record.id, back).await.unwrap();
    }
}

/// What stands between the outer layer and the inner one.
async fn rebuild(request: Request<Body>, next: Next) -> axum::response::Response {
    let (parts, _) = next.run(request).await.into_parts();
    let mut response = Response::from_parts(parts, Body::from("another body"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

async fn forget_extensions(request: Request<Body>, next: Next) -> axum::response::Response {
    let (parts, body) = next.run(request).await.into_parts();
    (parts.status, parts.headers, body).into_response()
}

async fn hide(request: Request<Body>, next: Next) -> axum::response::Response {
    let mut response = next.run(request).await;
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().remove(WWW_AUTHENTICATE);
    response
}

#[tokio::test]
async fn the_outcome_is_recorded_through_what_stands_in_between() {
    let world = world(|builder| builder);
    let (record, secret) = key(&world, &["read"]).await;
    for inner in [
        router().layer(require("write")),
        Router::new().route("/", get(reports)),
        router().layer(world.layer().require_scope("write").unwrap()),
    ] {
        let before = world.requests(record.id).await.len();
        let nested = Router::new().nest("/a", Router::new().nest("/b", inner.clone()));
        let ask = in_axum(nested.layer(require("read")).layer(world.layer()));
        assert_insufficient(&ask(bearer_at("/a/b", &secret)).await, "write", "nested");

        let ask = in_axum(inner.clone().layer(middleware::from_fn(rebuild)).layer(world.layer()));
        let answer = ask(bearer(&secret)).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (403, "another body"));

        let lost = inner.clone().layer(middleware::from_fn(forget_extensions));
        let answer = in_axum(lost.layer(world.layer()))(bearer(&secret)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        let requests = world.requests(record.id).await;
        let outer = |event: &&RequestEvent| event.outcome == Outcome::InsufficientScope;
        assert_eq!(requests[before..].iter().filter(outer).count(), requests.len() - before);

        let hidden = inner.layer(middleware::from_fn(hide)).layer(world.layer());
        let answer = in_axum(hidden)(bearer(&secret)).await;
        assert_eq!((answer.status.as_u16(), answer.challenge()), (404, None));
        let event = world.last_request(record.id).await;
        assert_eq!((event.status, event.outcome), (Some(404), Outcome::InsufficientScope));
    }
}

#[tokio::test]
async fn a_handlers_own_403_is_its_own() {
    let world = world(|builder| builder);
    let (record, secret) = key(&world, &["read"]).await;
    let basic = HeaderValue::from_static("Basic realm=\"insufficient_scope\"");
    for headers in [HeaderMap::new(), [(WWW_AUTHENTICATE, basic)].into_iter().collect()] {
        let sent = headers.clone();
        let app = Router::new().route("/", get(async move || (StatusCode::FORBIDDEN, sent)));
        let answer = in_axum(app.layer(world.layer()))(bearer(&secret)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert_eq!(answer.headers.get(WWW_AUTHENTICATE), headers.get(WWW_AUTHENTICATE));
        assert_eq!(world.last_request(record.id).await.outcome, Outcome::Allowed);
    }
}

#[tokio::test]
async fn the_realm_is_the_outer_layers_and_the_scope_cannot_break_out_of_its_quotes() {
    let world = world(|builder| builder);
    let (_, secret) = key(&world, &["read"]).await;
    let (_, everything) = full(&world).await;
    let scoped = async |key: VerifiedKey, Path(scope): Path<String>| {
        key.require_scope(&scope).map(|()| scope)
    };
    let app = Router::new().route("/{scope}", get(scoped)).layer(world.layer().realm("reports"));
    let ask = in_axum(app);
    for (path, scope) in [
        ("/write", ", scope=\"write\""),
        ("/a%2Fb", ", scope=\"a/b\""),
        ("/a%22b", ""),
        ("/a%0d%0ab", ""),
        ("/READ", ""),
        ("/%F0%9F%98%80", ""),
    ] {
        let answer = ask(bearer_at(path, &secret)).await;
        let challenge = format!("Bearer realm=\"reports\", error=\"insufficient_scope\"{scope}");
        assert_eq!((answer.status.as_u16(), answer.challenge()), (403, Some(&*challenge)));
        assert_eq!(answer.problem()["code"], "insufficient_scope");
        assert_eq!(ask(bearer_at(path, &everything)).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_refusal_of_an_unread_body_announces_the_end_of_the_connection() {
    let world = world(|builder| builder);
    let (_, secret) = key(&world, &["read"]).await;
    for (case, ask) in ways(&world) {
        let sent = with_header(bearer(&secret), "content-length", "5");
        let answer = ask(sent).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{case}");
        assert_eq!(answer.headers.get(CONNECTION), Some(&"close".parse().unwrap()), "{case}");
    }
}

#[tokio::test]
async fn a_grpc_call_gets_permission_denied() {
    let world = world(|builder| builder);
    let (record, secret) = key(&world, &["read"]).await;
    let layers = [
        in_axum(router().layer(world.layer().require_scope("write").unwrap())),
        in_axum(router().layer(require("write")).layer(world.layer())),
    ];
    for ask in layers {
        let answer = ask(with_header(bearer(&secret), "content-type", "application/grpc")).await;
        assert_eq!((answer.status, answer.challenge()), (StatusCode::OK, None));
        assert_eq!(answer.headers["grpc-status"], "7");
        let message = "The API key does not have the scope `write`.";
        assert_eq!(answer.headers["grpc-message"], message);
        let event = world.last_request(record.id).await;
        assert_eq!((event.status, event.outcome), REFUSED);
    }
}

#[tokio::test]
async fn without_a_key_a_route_asks_for_one_and_without_the_layer_it_says_so() {
    let world = world(|builder| builder);
    let inner = || router().layer(require("write"));
    let answer = in_axum(inner().layer(world.layer().optional()))(request("/", &[])).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.challenge(), Some("Bearer realm=\"api\""));

    let optional = world.layer().optional().require_scope("write").unwrap();
    let answer = in_axum(router().layer(optional))(request("/", &[])).await;
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "nobody"));

    let (_, secret) = full(&world).await;
    let answer = in_axum(inner())(bearer(&secret)).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let detail = answer.problem()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("is `ApiKeyLayer` installed on this route?"), "{detail}");
    let call = with_header(bearer(&secret), "content-type", "application/grpc");
    assert_eq!(in_axum(inner())(call).await.headers["grpc-status"], "13");
}

#[tokio::test]
async fn a_flood_of_refusals_is_summed_wherever_the_scope_is_required() {
    for below in [false, true] {
        let world = world(|builder| builder.delivery(Delivery::buffered()));
        let (record, secret) = key(&world, &["read"]).await;
        let layer = world.layer();
        let ask = in_axum(if below {
            router().layer(require("write")).layer(layer)
        } else {
            router().layer(layer.require_scope("write").unwrap())
        });
        for _ in 0..30 {
            assert_eq!(ask(bearer(&secret)).await.status, StatusCode::FORBIDDEN);
        }
        assert!(world.keys.shutdown(PATIENCE).await.is_complete());
        let counts: Vec<u32> =
            world.requests(record.id).await.iter().map(|event| event.count).collect();
        assert_eq!(counts, [vec![1; 20], vec![10]].concat(), "below the layer: {below}");
        let used = world.stored(record.id).await.last_used_at;
        assert!(below || used.is_none(), "a refusal of the layer is no use of the key");
    }
}

#[tokio::test]
async fn without_a_framework_a_refusal_is_recorded_by_the_admission() {
    let world = world(|builder| builder);
    let (record, secret) = key(&world, &["read"]).await;
    let request = keygate::manager::RequestInfo::new("GET", "/reports");
    let admission = world.keys.admit(&secret, request).await.unwrap();
    assert!(admission.key().require_scope("read").is_ok());
    let missing = admission.key().require_scope("write").unwrap_err();
    assert_eq!(missing.scope().map(|scope| scope.as_str()), Some("write"));
    admission.finish_without_scope(403).await.unwrap();
    assert_eq!(outcomes(&world, &record).await, [REFUSED]);
}
