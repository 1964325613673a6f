//! A header for keys beside `Authorization`, the host's own refusals, one environment.

use axum::Router;
use axum::routing::get;
use http::{HeaderName, StatusCode};
use keygate::error::MissingScope;
use keygate::guard::{Refusal, RequireScope};
use keygate::{KeyFormat, NewKey, ScopeCatalog, Scopes, VerifiedKey};
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    Unshared, World, assert_invalid_request, assert_invalid_token, bearer, bearer_at,
    greet_in_tower, hosts, in_axum, request, with_header,
};

const NAME: &str = "x-api-key";

#[tokio::test]
async fn case_04_a_key_in_the_other_header_is_accepted_and_a_second_credential_is_not() {
    let world = World::new();
    let (_, key) = world.key().await;
    let layer = world.layer().key_header(HeaderName::from_static(NAME));
    for (host, ask) in hosts(&layer) {
        let in_header = |value: &str| with_header(request("/", &[]), NAME, value);
        for value in [key.clone(), format!("  {key} ")] {
            assert_eq!(ask(in_header(&value)).await.text(), "key", "{host}");
        }
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
        for (authorization, value) in [
            (Some(format!("Bearer {key}")), key.clone()),
            (Some("Basic dTpw".to_owned()), key.clone()),
            (Some(String::new()), key.clone()),
            (None, format!("{key},{key}")),
            (None, format!("{key} {key}")),
            (None, format!("Bearer {key}")),
        ] {
            let lines: Vec<_> = authorization.iter().map(|line| line.as_bytes()).collect();
            let answer = ask(with_header(request("/", &lines), NAME, &value)).await;
            assert_invalid_request(&answer, host);
            let detail = answer.problem()["detail"].to_string();
            assert!(detail.contains("or x-api-key header"), "{detail}");
        }
        let twice = with_header(in_header(&key), NAME, &key);
        assert_invalid_request(&ask(twice).await, host);
        for malformed in [String::new(), "k".repeat(257), key.to_lowercase()] {
            assert_invalid_token(&ask(in_header(&malformed)).await, host);
        }
        let without = ask(request("/", &[])).await;
        assert_eq!(without.challenge(), Some("Bearer realm=\"api\""), "{host}");
        let detail = without.problem()["detail"].to_string();
        assert!(detail.contains("or `x-api-key: <key>`"), "{detail}");
    }
    // Without the setting, the header is ignored.
    for (host, ask) in hosts(&world.layer()) {
        let answer = ask(with_header(request("/", &[]), NAME, &key)).await;
        assert_eq!(answer.problem()["code"], serde_json::Value::Null, "{host}");
    }
}

#[tokio::test]
async fn a_host_writes_its_own_refusals_and_cannot_turn_one_into_an_admission() {
    let world = World::new();
    let (_, key) = world.key().await;
    let layer = world.layer().refusals(|refusal, response| {
        let mut response = response.map(|_| format!("{refusal:?}").into());
        if *refusal == Refusal::InvalidToken {
            *response.status_mut() = StatusCode::OK;
        }
        response
    });
    for (host, ask) in hosts(&layer) {
        let none = ask(request("/", &[])).await;
        assert_eq!((none.status.as_u16(), none.text()), (401, "NoCredentials"), "{host}");
        let invalid = ask(bearer("vsp_sk_x")).await;
        assert_eq!((invalid.status.as_u16(), invalid.text()), (401, "InvalidToken"), "{host}");
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
    }
    let service = world.layer().layer(service_fn(greet_in_tower));
    let refused = service.clone().oneshot(request("/", &[]).map(|()| Unshared::of(""))).await;
    assert_eq!(refused.unwrap().extensions().get(), Some(&Refusal::NoCredentials));
    let admitted = service.oneshot(bearer(&key).map(|()| Unshared::of(""))).await;
    assert_eq!(admitted.unwrap().extensions().get::<Refusal>(), None);
}

#[tokio::test]
async fn a_host_also_writes_the_refusals_of_inner_layers_and_handlers() {
    async fn by_hand(key: VerifiedKey) -> Result<(), MissingScope> {
        key.require_scope("write")
    }
    let world = World::with(|builder| {
        builder.scopes(ScopeCatalog::new([("read", ""), ("write", "")]).unwrap())
    });
    let new = NewKey::named("key").unwrap().scopes(Scopes::only(["read"]).unwrap());
    let (_, key) = world.issue(new).await;
    let layer = world.layer().refusals(|refusal, response| {
        let Refusal::InsufficientScope(missing) = refusal else { panic!("{refusal:?}") };
        response.map(|_| format!("needs {}", missing.scope().unwrap()).into())
    });
    let router = Router::new()
        .route("/layer", get(async || ()).layer(RequireScope::new("write").unwrap()))
        .route("/handler", get(by_hand))
        .layer(layer);
    let ask = in_axum(router);
    for path in ["/layer", "/handler"] {
        let refused = ask(bearer_at(path, &key)).await;
        assert_eq!((refused.status.as_u16(), refused.text()), (403, "needs write"), "{path}");
    }
}

#[tokio::test]
async fn case_58_a_layer_of_one_environment_refuses_the_keys_of_others_without_a_look_up() {
    let world = World::with(|builder| {
        let test = KeyFormat::new("vsp_sk_test_").unwrap();
        builder.environment("live", KeyFormat::default()).environment("test", test)
    });
    let (_, live) = world.key().await;
    let (_, test) = world.issue(NewKey::named("key").unwrap().environment("test")).await;
    for (name, good, bad) in [("live", &live, &test), ("test", &test, &live)] {
        for (host, ask) in hosts(&world.layer().environment(name)) {
            let calls = world.store.calls();
            assert_invalid_token(&ask(bearer(bad)).await, host);
            assert_eq!(world.store.calls(), calls, "{host}");
            assert_eq!(ask(bearer(good)).await.status, StatusCode::OK, "{host}");
        }
    }
    for (host, ask) in hosts(&world.layer().environment("staging")) {
        assert_invalid_token(&ask(bearer(&live)).await, host);
    }
}
