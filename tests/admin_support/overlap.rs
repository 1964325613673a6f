//! Rotation with overlap, over HTTP.

use std::time::Duration;

use axum::http::Method;
use axum::http::header::IF_MATCH;
use keygate::Delivery;
use keygate::manager::RequestInfo;
use serde_json::{Value, json};

use crate::admin_support::{Api, Reply, request, with_header};

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
    let created = api.create("k").await;
    let path = format!("/keys/{}", created["key"]["id"].as_str().unwrap());
    let reply = rotate(api, &path, json!(overlap)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let secret = |issued: &Value| issued["secret"].as_str().unwrap().to_owned();
    Rotated { path, old: secret(&created), new: secret(&reply.json()) }
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
    api.clock.advance(3_599);
    assert!(api.verifies(&old).await);
    api.clock.advance(1);
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
    assert_eq!(api.of("other").delete(&previous).await.code(), "not_found");
}

#[tokio::test]
async fn without_the_field_the_old_secret_ends_at_once() {
    let api = overlapping();
    let created = api.create("k").await;
    let path = format!("/keys/{}", created["key"]["id"].as_str().unwrap());
    let reply = api.post(&format!("{path}/rotate"), json!({"confirm_name": "k"})).await;
    assert_eq!(reply.json()["key"]["previous_secret_until"], Value::Null);
    assert!(!api.verifies(created["secret"].as_str().unwrap()).await);
}

#[tokio::test]
async fn an_overlap_that_is_too_long_or_no_number_is_refused_by_name_and_nothing_is_changed() {
    for (api, at_most) in [(Api::new(), 0), (overlapping(), 86_400)] {
        let path = api.create_path("k").await;
        let values = [
            json!(at_most + 1),
            json!(u64::MAX),
            json!(-1),
            json!(0.5),
            json!("0"),
            json!(null),
            json!([0]),
            json!(1e300),
            json!(true),
        ];
        for value in values {
            let reply = rotate(&api, &path, value.clone()).await;
            assert_eq!(reply.code(), "validation_failed", "{value}");
            assert_eq!(reply.json()["errors"][0]["field"], "overlap_seconds", "{value}");
        }
        assert_eq!(api.get(&path).await.json()["revision"], 1);
        assert_eq!(rotate(&api, &path, json!(at_most)).await.status, 200);
    }
}

#[tokio::test]
async fn without_overlaps_the_list_says_so() {
    let list = Api::new().get("/keys").await.json();
    assert_eq!(list["max_overlap_seconds"], 0);
}

#[tokio::test]
async fn case_59_the_log_says_which_secret_was_used() {
    let api = overlapping();
    let Rotated { path, old, new } = rotated(&api, 60).await;
    for secret in [&old, &new] {
        let admission = api.keys.admit(secret, RequestInfo::new("GET", "/")).await.unwrap();
        admission.finish(200).await.unwrap();
        api.clock.advance(1);
    }
    api.clock.advance(60);
    api.keys.admit(&old, RequestInfo::new("GET", "/")).await.unwrap_err();
    let page = api.get(&format!("{path}/audit")).await.json();
    let records = page["records"].as_array().unwrap();
    let seen: Vec<_> = records.iter().map(|r| (&r["outcome"], &r["secret"])).collect();
    let expected = [["expired", "previous"], ["allowed", "current"], ["allowed", "previous"]];
    assert_eq!(json!(seen), json!(expected));
}
