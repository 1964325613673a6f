//! Rotation with overlap, over HTTP.

use std::time::Duration;

use axum::http::Method;
use axum::http::header::IF_MATCH;
use keygate::Delivery;
use keygate::manager::RequestInfo;
use serde_json::{Value, json};

use crate::kit::{Api, Reply, request, with_header};

fn overlapping() -> Api {
    let day = Duration::from_secs(86_400);
    Api::with(|builder| builder.max_overlap(day).delivery(Delivery::strict()))
}

struct Rotated {
    path: String,
    old: String,
    new: String,
}

/// Rotates a new key named `k`.
async fn rotated(api: &Api, overlap: u64) -> Rotated {
    let (path, old) = api.create_secret("k").await;
    let reply = rotate(api, &path, json!(overlap)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let new = reply.json()["secret"].as_str().unwrap().to_owned();
    Rotated { path, old, new }
}

async fn rotate(api: &Api, path: &str, overlap: Value) -> Reply {
    let body = json!({"confirm_name": "k", "overlap_seconds": overlap});
    api.post(&format!("{path}/rotate"), body).await
}

#[tokio::test]
async fn case_59_an_overlap_is_shown_and_over_at_its_end() {
    let api = overlapping();
    assert_eq!(api.get("/keys").await.json()["max_overlap_seconds"], 86_400);
    let Rotated { path, old, new } = rotated(&api, 3_600).await;
    let until = || async { api.get(&path).await.json()["previous_secret_until"].clone() };
    assert_eq!(until().await, "2026-01-31T13:00:00Z");
    assert_eq!((api.verifies(&old).await, api.verifies(&new).await), (true, true));
    api.advance(3_599);
    let admission = api.keys.admit(&old, RequestInfo::new("GET", "/")).await.unwrap();
    admission.finish(200).await.unwrap();
    let page = api.get(&format!("{path}/audit")).await.json();
    assert_eq!(page["records"][0]["secret"], "previous");
    api.advance(1);
    assert_eq!((api.verifies(&old).await, api.verifies(&new).await), (false, true));
    assert_eq!(until().await, Value::Null);
    assert_eq!(api.get("/keys").await.json()["keys"][0]["previous_secret_until"], Value::Null);
}

#[tokio::test]
async fn case_59_deleting_the_previous_secret_ends_it() {
    let api = overlapping();
    let Rotated { path, old, new } = rotated(&api, 3_600).await;
    let previous = format!("{path}/previous-secret");
    let stale = with_header(request(Method::DELETE, &previous), IF_MATCH, "\"1\"");
    assert_eq!(api.send(stale).await.code(), "stale_revision");
    assert!(api.verifies(&old).await);
    let matching = with_header(request(Method::DELETE, &previous), IF_MATCH, "\"2\"");
    for ended in [api.send(matching).await, api.delete(&previous).await] {
        assert_eq!((ended.status.as_u16(), ended.header("etag")), (200, "\"3\""));
        assert_eq!(ended.json()["previous_secret_until"], Value::Null);
        assert_eq!((api.verifies(&old).await, api.verifies(&new).await), (false, true));
    }
    // Without the field, the old secret ends with the rotation.
    let reply = api.rotate(&path, "k").await;
    assert_eq!(reply.json()["key"]["previous_secret_until"], Value::Null);
    assert!(!api.verifies(&new).await);
    assert_eq!(api.of("other").delete(&previous).await.code(), "not_found");
}

#[tokio::test]
async fn an_overlap_that_is_too_long_or_no_number_is_refused() {
    for (api, at_most) in [(Api::new(), 0), (overlapping(), 86_400)] {
        let path = api.create_path("k").await;
        let values = format!("{} {} -1 0.5 \"0\" null [0] 1e300 true", at_most + 1, u64::MAX);
        for value in values.split(' ').map(|value| value.parse::<Value>().unwrap()) {
            let reply = rotate(&api, &path, value.clone()).await;
            assert_eq!(reply.fields(), ["overlap_seconds"], "{value}");
        }
        assert_eq!(api.get(&path).await.json()["revision"], 1);
        assert_eq!(rotate(&api, &path, json!(at_most)).await.status, 200);
    }
}
