//! Organisations cannot see each other's keys.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;

use crate::kit::{Api, NO_KEY, deletion, request, rotation, with_header, with_json};

#[tokio::test]
async fn case_19_another_organisations_key_does_not_exist() {
    let api = Api::new();
    let (path, secret) = api.create_secret("k").await;
    let theirs = api.of("other");
    let stored = || api.store.snapshot(api.actor.org());
    let (before, records) = (stored().await, api.log.len());
    let revoke = |path: &str| with_json(request(Method::PATCH, path), json!({"status": "revoked"}));
    type Make<'a> = &'a dyn Fn(&str) -> Request<Body>;
    let made: [Make<'_>; 9] = [
        &|path| request(Method::GET, path),
        &|path| request(Method::HEAD, path),
        &revoke,
        &|path| with_header(revoke(path), "if-match", "\"7\""),
        &|path| rotation(path, "k"),
        &|path| rotation(path, "?"),
        &|path| deletion(path, "k"),
        &|path| deletion(path, "x"),
        &|path| request(Method::GET, &format!("{path}/audit")),
    ];
    for made in made {
        let reply = theirs.send(made(&path)).await;
        let absent = api.send(made(&format!("/keys/{NO_KEY}"))).await;
        assert_eq!(reply.status, 404);
        assert_eq!((reply.headers, reply.body), (absent.headers, absent.body));
    }
    assert_eq!(stored().await, before);
    assert_eq!(api.log.len(), records, "a refused change is not in the log");
    assert!(api.verifies(&secret).await);
    assert_eq!(theirs.get("/keys").await.json()["keys"], json!([]));
}

#[tokio::test]
async fn case_20_no_organisation_is_a_wildcard() {
    let api = Api::new();
    let path = api.create_path("k").await;
    for org in ["*", "%", "_", "acme ", "Acme", "acme/", "null"] {
        let other = api.of(org);
        assert_eq!(other.get("/keys").await.json()["keys"], json!([]), "{org}");
        assert_eq!(other.get(&path).await.code(), "not_found", "{org}");
    }
}

#[tokio::test]
async fn an_invalid_id_is_not_found() {
    let api = Api::new();
    let (path, secret) = api.create_secret("k").await;
    let id = &path["/keys/".len()..];
    let (compact, braced) = (id.replace('-', ""), format!("%7b{id}%7d"));
    for other in ["x", "%ff", "%00", &compact, &braced, &format!("{id}%20"), &secret] {
        let path = format!("/keys/{other}");
        for request in [
            request(Method::GET, &path),
            with_json(request(Method::PATCH, &path), json!({"name": "x"})),
            rotation(&path, "k"),
            deletion(&path, "k"),
            request(Method::GET, &format!("{path}/audit")),
        ] {
            let reply = api.send(request).await;
            assert_eq!(reply.code(), "not_found", "{other}");
            assert!(!reply.text().contains(other), "{}", reply.text());
        }
    }
    let upper = format!("/keys/{}", id.to_uppercase());
    assert_eq!(api.get(&upper).await.json()["id"], id, "the same UUID (RFC 9562)");
    assert_eq!(api.get(&format!("/keys/{id}")).await.json()["revision"], 1);
}
