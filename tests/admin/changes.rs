//! The changes of keys, over HTTP.

use keygate::{Metadata, NewKey, Scopes};
use serde_json::{Value, json};

use crate::kit::{Api, NO_KEY};
use crate::scopes;

/// What the records say, newest first: action, phase and fields.
fn told(page: &Value) -> Vec<String> {
    let records = page["records"].as_array().unwrap();
    let field = |field: &Value| format!("{} {} {}", field["name"], field["before"], field["after"]);
    let told = |record: &Value| {
        let fields: Vec<_> = record["fields"].as_array().unwrap().iter().map(field).collect();
        format!("{} {}: {}", record["action"], record["phase"], fields.join("; ")).replace('"', "")
    };
    records.iter().map(told).collect()
}

#[tokio::test]
async fn a_change_says_who_changed_what_and_when() {
    let api = Api::new();
    let issued = api.create("a").await;
    let (id, prefix) = (&issued["key"]["id"], &issued["key"]["key_prefix"]);
    let path = format!("/keys/{}", id.as_str().unwrap());
    api.advance(1);
    let entries = ["10.0.0.0/8", "2001:db8::1"];
    let patch = json!({"name": "b", "status": "revoked", "ip_allowlist": entries});
    assert_eq!(api.patch(&path, patch).await.status, 200);

    let page = api.get(&format!("{path}/changes")).await.json();
    let field = |name, before, after| json!({"name": name, "before": before, "after": after});
    let record = |timestamp, action, fields| {
        json!({
            "timestamp": timestamp, "key_id": id, "actor": "ada", "action": action,
            "phase": "begun", "fields": fields,
        })
    };
    let null = Value::Null;
    let changed = json!([
        field("name", json!("a"), json!("b")),
        field("status", json!("active"), json!("revoked")),
        field("ip_allowlist", json!([]), json!(entries)),
    ]);
    let created = json!([
        field("name", null.clone(), json!("a")),
        field("status", null.clone(), json!("active")),
        field("key_prefix", null.clone(), prefix.clone()),
    ]);
    let records = json!([
        record("2026-01-31T12:00:01Z", "updated", changed),
        record("2026-01-31T12:00:00Z", "created", created),
    ]);
    assert_eq!(page, json!({"records": records, "older": null, "newer": null}));
}

#[tokio::test]
async fn the_changes_of_all_keys_include_those_of_deleted_ones() {
    let api = Api::new();
    let path = api.create_path("a").await;
    api.create("b").await;
    api.of("globex").create("theirs").await;
    assert_eq!(api.delete(&format!("{path}?confirm_name=a")).await.status, 204);
    assert_eq!(api.get(&format!("{path}/changes")).await.code(), "not_found");

    let mut uri = "/changes?limit=1".to_owned();
    let mut names = Vec::new();
    loop {
        let page = api.get(&uri).await.json();
        names.extend(
            told(&page).into_iter().map(|line| line.split("; ").next().unwrap().to_owned()),
        );
        let Some(older) = page["older"].as_str() else { break };
        uri = format!("/changes?limit=1&before={older}");
    }
    assert_eq!(
        names,
        ["deleted begun: name a null", "created begun: name null b", "created begun: name null a"]
    );
}

#[tokio::test]
async fn case_19_the_changes_of_another_organisation_are_not_there() {
    let api = Api::new();
    let path = api.create_path("a").await;
    let other = api.of("globex");
    assert_eq!(other.get(&format!("{path}/changes")).await.code(), "not_found");
    assert_eq!(other.get(&format!("/keys/{NO_KEY}/changes")).await.code(), "not_found");
    assert_eq!(other.get("/changes").await.json()["records"], json!([]));
}

#[tokio::test]
async fn a_change_that_did_not_take_place_is_abandoned() {
    let api = Api::new();
    let path = api.create_path("a").await;
    api.conflict();
    assert_eq!(api.rotate(&path, "a").await.code(), "conflict");
    let page = api.get(&format!("{path}/changes")).await.json();
    assert!(told(&page)[0].starts_with("rotated abandoned: "), "{page}");
}

#[tokio::test]
async fn metadata_is_not_shown_and_scopes_are_only_if_the_service_has_any() {
    let new = || {
        let metadata = Metadata::new().with("plan", "internal").unwrap();
        NewKey::named("a").unwrap().metadata(metadata).scopes(Scopes::ALL)
    };
    let plain = Api::new();
    plain.keys.create(&plain.actor, new()).await.unwrap();
    let page = plain.get("/changes").await.text().to_owned();
    assert!(!page.contains("internal") && !page.contains("scopes"), "{page}");

    let scoped = scopes::api(&[("a", "")]);
    scoped.keys.create(&scoped.actor, new()).await.unwrap();
    let page = scoped.get("/changes").await.json();
    assert!(told(&page)[0].ends_with("scopes null all"), "{page}");
}
