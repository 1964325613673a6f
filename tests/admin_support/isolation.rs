//! Organisations cannot see each other's keys.

use axum::http::Method;
use keygate::{KeyStore, OrgId};
use serde_json::json;

use crate::admin_support::{Api, NO_KEY, actor, request, with_header, with_json};

#[tokio::test]
async fn case_19_another_organisations_key_does_not_exist() {
    let api = Api::new();
    let issued = api.create("k").await;
    let path = format!("/keys/{}", issued["key"]["id"].as_str().unwrap());
    let theirs = api.of("other");
    let stored = || async { api.store.list(actor("acme").org()).await.unwrap() };
    let (before, records) = (stored().await, api.log.len());
    for made in [
        |path: &str| request(Method::GET, path),
        |path: &str| request(Method::HEAD, path),
        |path: &str| with_json(request(Method::PATCH, path), json!({"status": "revoked"})),
        |path: &str| {
            let patch = with_json(request(Method::PATCH, path), json!({"status": "revoked"}));
            with_header(patch, "if-match", "\"7\"")
        },
        |path: &str| {
            with_json(
                request(Method::POST, &format!("{path}/rotate")),
                json!({"confirm_name": "k"}),
            )
        },
        |path: &str| {
            with_json(
                request(Method::POST, &format!("{path}/rotate")),
                json!({"confirm_name": "?"}),
            )
        },
        |path: &str| request(Method::DELETE, &format!("{path}?confirm_name=k")),
        |path: &str| request(Method::DELETE, &format!("{path}?confirm_name=x")),
        |path: &str| request(Method::GET, &format!("{path}/audit")),
    ] {
        let reply = theirs.send(made(&path)).await;
        let absent = api.send(made(&format!("/keys/{NO_KEY}"))).await;
        assert_eq!(reply.status, 404);
        assert_eq!((reply.headers, reply.body), (absent.headers, absent.body));
    }
    assert_eq!(stored().await, before);
    assert_eq!(api.log.len(), records, "a refused change is not in the log");
    assert!(api.verifies(issued["secret"].as_str().unwrap()).await);
    assert_eq!(theirs.get("/keys").await.json()["keys"], json!([]));
}

#[tokio::test]
async fn case_20_no_organisation_is_a_wildcard() {
    let api = Api::new();
    let path = api.create_path("k").await;
    assert!(OrgId::new("").is_err());
    for org in ["*", "%", "_", "acme ", "Acme", "acme/", "null"] {
        let other = api.of(org);
        assert_eq!(other.get("/keys").await.json()["keys"], json!([]), "{org}");
        assert_eq!(other.get(&path).await.code(), "not_found", "{org}");
    }
}

#[tokio::test]
async fn an_invalid_id_is_not_found() {
    let api = Api::new();
    let issued = api.create("k").await;
    let id = issued["key"]["id"].as_str().unwrap();
    let others = [
        "x".to_owned(),
        "%ff".to_owned(),
        "%00".to_owned(),
        id.replace('-', ""),
        format!("%7b{id}%7d"),
        format!("{id}%20"),
        issued["secret"].as_str().unwrap().to_owned(),
    ];
    for other in others.iter().filter(|other| *other != id) {
        let reply = api.get(&format!("/keys/{other}")).await;
        assert_eq!(reply.code(), "not_found", "{other}");
        assert!(!reply.text().contains(other.as_str()));
        let path = format!("/keys/{other}");
        assert_eq!(api.patch(&path, json!({"name": "x"})).await.code(), "not_found");
        let rotate = json!({"confirm_name": "k"});
        assert_eq!(api.post(&format!("{path}/rotate"), rotate).await.code(), "not_found");
        assert_eq!(api.delete(&format!("{path}?confirm_name=k")).await.code(), "not_found");
        assert_eq!(api.get(&format!("{path}/audit")).await.code(), "not_found");
    }
    let upper = format!("/keys/{}", id.to_uppercase());
    assert_eq!(api.get(&upper).await.json()["id"], id, "the same UUID (RFC 9562)");
    assert_eq!(api.get(&format!("/keys/{id}")).await.json()["revision"], 1);
}
