//! Creating, reading, editing, rotating and deleting keys.

use axum::Router;
use axum::http::Method;
use keygate::store::Revision;
use keygate::{Allowlist, ApiKey, KeyStore, Limits};
use serde_json::{Value, json};

use crate::kit::{Api, START, new_key, path_of, request, send};

fn secret(issued: &Value) -> &str {
    issued["secret"].as_str().unwrap()
}

#[tokio::test]
async fn create_answers_with_the_key_and_its_secret() {
    let api = Api::new();
    let body = json!({
        "name": "  CI deploy ",
        "expiration": "1_month",
        "ip_allowlist": ["10.0.0.0/8", " ::ffff:192.0.2.1 ", "2001:DB8::/32"],
    });
    let reply = api.post("/keys", body).await;
    assert_eq!(reply.status, 201);
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("etag"), "\"1\"");
    let issued = reply.json();
    assert_eq!(issued.as_object().unwrap().len(), 2);
    let (id, secret) = (issued["key"]["id"].as_str().unwrap(), secret(&issued));
    assert_eq!(reply.header("location"), format!("/keys/{id}"));
    assert!(secret.starts_with("vsp_sk_") && secret.len() == 55);
    let key = json!({
        "id": id,
        "name": "CI deploy",
        "key_prefix": &secret[..12],
        "status": "active",
        "expired": false,
        "expires_at": "2026-02-28T12:00:00Z",
        "last_used_at": null,
        "created_at": START,
        "rotated_at": null,
        "ip_allowlist": ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"],
        "revision": 1,
        "created_by": "ada",
        "previous_secret_until": null,
    });
    assert_eq!(issued["key"], key);
    assert!(api.keys.verify(secret, Some("10.1.2.3".parse().unwrap())).await.is_ok());

    let shown = api.get(reply.header("location")).await;
    assert_eq!((shown.status.as_u16(), shown.header("etag")), (200, "\"1\""));
    let mut expected = key;
    expected["last_used_at"] = shown.json()["last_used_at"].clone();
    assert_eq!(shown.json(), expected);
}

#[tokio::test]
async fn location_is_the_path_that_the_client_used() {
    let api = Api::new();
    let nested: Router = Router::new().nest(
        "/{tenant}",
        Router::new().nest("/orgs/{id}/api", keygate::admin::router(api.keys.clone())),
    );
    let at = Api { router: nested, ..api };
    let reply = at.post("/t/orgs/7/api/keys", new_key("k")).await;
    let id = reply.json()["key"]["id"].as_str().unwrap().to_owned();
    assert_eq!(reply.header("location"), format!("/t/orgs/7/api/keys/{id}"));
    assert_eq!(at.get(reply.header("location")).await.json()["id"], id);
    assert_eq!(at.get(&format!("/t/orgs/{id}/api/keys/7")).await.code(), "not_found");
    for unknown in ["/t/orgs/7/api", "/t/orgs/7/api/x", "/t/orgs/7/api/keys/a/b/c"] {
        assert_eq!(at.get(unknown).await.code(), "not_found", "{unknown}");
        let anonymous = send(&at.router, request(Method::GET, unknown)).await;
        assert_eq!(anonymous.code(), "unauthenticated", "{unknown}");
    }
}

#[tokio::test]
async fn the_list_is_oldest_first_and_includes_the_limits() {
    let limits = Limits::default().max_keys(3).max_ips_per_key(2);
    let api = Api::with(|builder| builder.limits(limits));
    let empty = api.get("/keys").await;
    assert_eq!(empty.header("etag"), "");
    let limits = json!({"max_keys": 3, "max_ips_per_key": 2});
    assert_eq!(empty.json(), json!({"keys": [], "limits": limits, "max_overlap_seconds": 0}));
    for name in ["b", "c", "a"] {
        api.create(name).await;
        api.advance(1);
    }
    api.of("other").create("theirs").await;
    let list = api.get("/keys").await.json();
    let keys = list["keys"].as_array().unwrap();
    assert_eq!(keys.iter().map(|key| &key["name"]).collect::<Vec<_>>(), ["b", "c", "a"]);
    assert_eq!(list["limits"], limits);
    let path = format!("/keys/{}", keys[1]["id"].as_str().unwrap());
    assert_eq!(api.get(&path).await.json(), keys[1]);
}

#[tokio::test]
async fn an_edit_changes_only_the_fields_it_names() {
    let api = Api::new();
    let issued = api.create("before").await;
    let path = path_of(&issued);
    let mut expected = issued["key"].clone();
    for (patch, field, revision) in [
        (json!({"name": " after "}), ("name", json!("after")), 2),
        (json!({"status": "revoked"}), ("status", json!("revoked")), 3),
        (json!({"ip_allowlist": ["10.0.0.0/8"]}), ("ip_allowlist", json!(["10.0.0.0/8"])), 4),
        (json!({"ip_allowlist": []}), ("ip_allowlist", json!([])), 5),
        (json!({"status": "active"}), ("status", json!("active")), 6),
        (json!({"name": "last", "status": "active"}), ("name", json!("last")), 7),
        (json!({}), ("revision", json!(7)), 7),
        (json!({"name": "last", "status": "active"}), ("revision", json!(7)), 7),
    ] {
        expected[field.0] = field.1;
        expected["revision"] = json!(revision);
        let reply = api.patch(&path, patch).await;
        assert_eq!((reply.status.as_u16(), reply.json()), (200, expected.clone()));
        assert_eq!(reply.header("etag"), format!("\"{revision}\""));
        assert_eq!(api.get(&path).await.json(), expected);
        let active = expected["status"] == "active" && expected["ip_allowlist"] == json!([]);
        assert_eq!(api.verifies(secret(&issued)).await, active);
        expected["last_used_at"] = api.get(&path).await.json()["last_used_at"].clone();
    }
}

#[tokio::test]
async fn rotate_replaces_the_secret_once_it_is_confirmed() {
    let api = Api::new();
    let issued = api.create("CI ☂").await;
    let path = path_of(&issued);
    for wrong in ["", " ", "CI", "ci ☂", "CI☂", "C I ☂", "CI ☂\0"] {
        let reply = api.rotate(&path, wrong).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (422, "confirmation_mismatch"));
    }
    let without = api.post(&format!("{path}/rotate"), json!({})).await;
    assert_eq!(without.fields(), ["confirm_name"]);
    assert!(api.verifies(secret(&issued)).await);
    assert_eq!(api.get(&path).await.json()["revision"], 1);

    api.advance(60);
    let reply = api.rotate(&path, "\t CI \u{a0}\u{3000} ☂\n").await;
    assert_eq!((reply.status.as_u16(), reply.header("etag")), (200, "\"2\""));
    let rotated = reply.json();
    assert!(!api.verifies(secret(&issued)).await);
    assert!(api.verifies(secret(&rotated)).await);
    assert_eq!(rotated["key"]["rotated_at"], "2026-01-31T12:01:00Z");
    assert_eq!(rotated["key"]["key_prefix"], secret(&rotated)[..12]);
    for same in ["id", "name", "status", "expires_at", "created_at", "ip_allowlist"] {
        assert_eq!(rotated["key"][same], issued["key"][same]);
    }
}

#[tokio::test]
async fn delete_removes_the_key_once_it_is_confirmed() {
    let api = Api::new();
    let issued = api.create("a b+c").await;
    let path = path_of(&issued);
    for wrong in ["", "a+b+c", "a%20b%2B%20c", "a+b%2bC"] {
        let reply = api.delete(&format!("{path}?confirm_name={wrong}")).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (422, "confirmation_mismatch"));
    }
    assert_eq!(api.delete(&path).await.fields(), ["confirm_name"]);
    assert!(api.verifies(secret(&issued)).await);

    let reply = api.delete(&format!("{path}?confirm_name=+a++b%2Bc%20")).await;
    assert_eq!((reply.status.as_u16(), reply.text()), (204, ""));
    assert!(!api.verifies(secret(&issued)).await);
    assert_eq!(api.get(&path).await.code(), "not_found");
}

#[tokio::test]
async fn case_40_the_secret_is_in_no_other_answer() {
    let api = Api::new();
    let reply = api.post("/keys", new_key("k")).await;
    assert_eq!((reply.status.as_u16(), reply.header("cache-control")), (201, "no-store"));
    let issued = reply.json();
    let path = path_of(&issued);
    let reply = api.rotate(&path, "k").await;
    assert_eq!((reply.status.as_u16(), reply.header("cache-control")), (200, "no-store"));
    assert_eq!(reply.header("location"), "");
    let rotated = reply.json();
    for reply in [
        api.get("/keys").await,
        api.get(&path).await,
        api.patch(&path, json!({"name": "new"})).await,
        api.get(&format!("{path}/audit")).await,
        api.delete(&format!("{path}?confirm_name=new")).await,
    ] {
        assert!(reply.status.is_success());
        for issued in [&issued, &rotated] {
            assert!(!reply.text().contains(&secret(issued)[12..]));
        }
    }
}

#[tokio::test]
async fn a_key_is_expired_from_the_instant_of_its_expiry() {
    let api = Api::new();
    let reply = api.post("/keys", json!({"name": "k", "expiration": "1_day"})).await;
    let path = reply.header("location");
    api.advance(24 * 60 * 60 - 1);
    assert_eq!(api.get(path).await.json()["expired"], false);
    api.advance(1);
    let key = api.get(path).await.json();
    assert_eq!((&key["expired"], &key["status"]), (&json!(true), &json!("active")));
    assert_eq!(api.get("/keys").await.json()["keys"][0]["expired"], true);
}

#[tokio::test]
async fn an_unreadable_allowlist_is_shown_and_can_be_replaced() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let stored = api.store.snapshot(api.actor.org()).await.remove(0);
    let raw = ["10.0.0.0/8", "10.0.0."];
    let damaged = ApiKey { allowlist: Allowlist::restore(raw), ..stored };
    api.store.replace(&damaged, Revision::FIRST).await.unwrap();
    assert_eq!(api.get(&path).await.json()["ip_allowlist"], json!(raw));
    let mended = api.patch(&path, json!({"ip_allowlist": ["10.0.0.0/8"]})).await;
    assert_eq!(mended.json()["ip_allowlist"], json!(["10.0.0.0/8"]));
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let api = Api::new();
    let path = api.create_path("k").await;
    for uri in ["/keys", &path, &format!("{path}/audit")] {
        let (head, get) = (api.send(request(Method::HEAD, uri)).await, api.get(uri).await);
        assert_eq!((head.status, head.text()), (get.status, ""));
        assert_eq!(head.headers, get.headers);
        assert_eq!(head.header("content-length"), get.body.len().to_string());
    }
    let absent = api.send(request(Method::HEAD, "/keys/x")).await;
    assert_eq!((absent.status.as_u16(), absent.text()), (404, ""));
}
