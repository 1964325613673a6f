//! Limits reached, races lost, a store that is down.

use axum::http::Method;
use keygate::Limits;
use serde_json::json;

use crate::admin_support::{Api, request, with_json};

#[tokio::test]
async fn the_limits_of_the_manager_apply() {
    let limits = Limits::default().max_keys(2).max_ips_per_key(1);
    let api = Api::with(|builder| builder.limits(limits));
    let two = json!(["192.0.2.1", "192.0.2.2"]);
    let body = json!({"name": "k", "expiration": "never", "ip_allowlist": two});
    assert_eq!(api.post("/keys", body).await.fields(), ["ip_allowlist"]);
    let path = api.create_path("one").await;
    let reply = api.patch(&path, json!({"ip_allowlist": two})).await;
    assert_eq!(reply.fields(), ["ip_allowlist"]);
    assert!(reply.text().contains("at most 1 entries"));

    api.patch(&path, json!({"status": "revoked"})).await;
    api.create("two").await;
    let third = api.post("/keys", json!({"name": "three", "expiration": "never"})).await;
    assert_eq!((third.status.as_u16(), third.code().as_str()), (409, "key_limit_reached"));
    assert_eq!(api.get("/keys").await.json()["keys"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_store_that_is_down_is_503_on_every_route() {
    let api = Api::new();
    let path = api.create_path("k").await;
    api.store_fails();
    for request in [
        request(Method::GET, "/keys"),
        with_json(request(Method::POST, "/keys"), json!({"name": "k", "expiration": "never"})),
        request(Method::GET, &path),
        with_json(request(Method::PATCH, &path), json!({"name": "new"})),
        with_json(request(Method::POST, &format!("{path}/rotate")), json!({"confirm_name": "k"})),
        request(Method::DELETE, &format!("{path}?confirm_name=k")),
        request(Method::GET, &format!("{path}/audit")),
    ] {
        let reads = request.method() == Method::GET;
        let reply = api.send(request).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "unavailable"));
        assert_eq!(reply.header("retry-after"), "1");
        let detail = if reads {
            "The keys cannot be read at present. Try again shortly."
        } else {
            "Nothing was changed. Try again shortly."
        };
        assert!(reply.text().contains(detail), "{}", reply.text());
        assert!(!reply.text().contains("fire"), "the cause is shown to the operator only");
    }
}

#[tokio::test]
async fn a_change_that_always_conflicts_is_409() {
    let api = Api::new();
    let path = api.create_path("k").await;
    api.conflict();
    let reply = api.patch(&path, json!({"name": "new"})).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (409, "conflict"));
    let reply = api.post(&format!("{path}/rotate"), json!({"confirm_name": "k"})).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (409, "conflict"));
}
