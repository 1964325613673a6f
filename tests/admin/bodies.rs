//! Body fields: an invalid field gets 422 and is named.

use axum::http::Method;
use keygate::KeyFormat;
use serde_json::{Value, json};

use crate::kit::{Api, new_key, request, with_json};
use crate::payloads::with_body;
use crate::support::unknown_key;

#[tokio::test]
async fn case_22_fields_that_the_server_sets_are_refused() {
    let api = Api::new();
    for field in ["status", "digest", "id", "created_at", "org", "revision", "Name", "secret"] {
        let mut body = new_key("k");
        body[field] = json!("x");
        assert_eq!(api.post("/keys", body).await.fields(), [field]);
    }
    assert_eq!(api.get("/keys").await.json()["keys"], json!([]));
    let path = api.create_path("k").await;
    for field in ["expiration", "expires_at", "id", "org", "key_prefix", "revision", "digest"] {
        assert_eq!(api.patch(&path, json!({field: "x"})).await.fields(), [field]);
    }
    let rotate = json!({"confirm_name": "k", "name": "x"});
    assert_eq!(api.post(&format!("{path}/rotate"), rotate).await.fields(), ["name"]);
    assert_eq!(api.get(&path).await.json()["revision"], 1);
}

#[tokio::test]
async fn case_54_deceptive_names_are_refused_and_not_repeated() {
    let api = Api::with(|builder| builder.format(KeyFormat::new("acme_").unwrap()));
    let path = api.create_path("k").await;
    let (_, ours) = api.create_secret("other").await;
    let theirs = unknown_key();
    for (name, hidden) in [
        ("", "\0"),
        ("a\nb", "\n"),
        ("a\u{202e}b", "\u{202e}"),
        ("CI\u{1bca0}", "CI"),
        ("🏴\u{e0069}\u{e0067}\u{e006e}", "🏴"),
        (&format!("Z{}", "\u{301}".repeat(40)), "\u{301}"),
        (&"a".repeat(10_240), "aaa"),
        (&ours, &ours[5..20]),
        (&format!("CI {theirs}"), &theirs[7..20]),
        // A misspelt or truncated key is still most of a key.
        (&format!("CI {}", &ours[..40]), &ours[5..20]),
        (&ours[5..], &ours[5..20]),
    ] {
        let created = api.post("/keys", new_key(name)).await;
        for reply in [created, api.patch(&path, json!({"name": name})).await] {
            assert_eq!(reply.fields(), ["name"], "{name:?}");
            assert!(!reply.text().contains(hidden), "{}", reply.text());
        }
    }
    let stored = api.store.snapshot(api.actor.org()).await;
    assert!(
        stored.len() == 2 && stored.iter().all(|key| ["k", "other"].contains(&key.name.as_str()))
    );
}

#[tokio::test]
async fn case_23_names_in_any_script_are_returned_unchanged() {
    let api = Api::new();
    let longest = "é".repeat(100);
    for name in ["Ключ 密钥 مفتاح", "👩‍💻 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "<img src=x onerror=alert(1)>", "\"\\'", &longest]
    {
        assert_eq!(api.create(name).await["key"]["name"], name);
    }
    let escaped = r#"{"n\u0061me":"\ud83d\ude00 \u00e9","expiration":"never"}"#;
    let escaped = with_json(request(Method::POST, "/keys"), escaped);
    assert_eq!(api.send(escaped).await.json()["key"]["name"], "😀 é");
}

#[tokio::test]
async fn case_24_an_invalid_field_is_422_and_is_named() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let rotate = format!("{path}/rotate");
    let no_texts = [json!(null), json!(5), json!(true), json!(["k"]), json!({"a": "b"})];
    let no_lists = [json!(null), json!("10.0.0.1"), json!(5), json!({}), json!([5]), json!([null])];
    let no_times = ["", "1_DAY", "2_days", "2030-01-01T00:00:00Z", " never", "null"];
    let no_statuses = ["ACTIVE", "expired", ""];
    for (method, uri, field, values) in [
        (Method::POST, "/keys", "name", &no_texts[..]),
        (Method::POST, "/keys", "expiration", &no_texts),
        (Method::POST, "/keys", "expiration", &no_times.map(Value::from)),
        (Method::POST, "/keys", "ip_allowlist", &no_lists),
        (Method::PATCH, &path, "name", &no_texts),
        (Method::PATCH, &path, "status", &no_texts),
        (Method::PATCH, &path, "status", &no_statuses.map(Value::from)),
        (Method::PATCH, &path, "ip_allowlist", &no_lists),
        (Method::POST, &rotate, "confirm_name", &no_texts),
    ] {
        for value in values {
            let mut body = if uri == "/keys" { new_key("k") } else { json!({}) };
            body[field] = value.clone();
            let reply = api.send(with_json(request(method.clone(), uri), body)).await;
            assert_eq!(reply.fields(), [field], "{method} {uri}: {value}");
        }
    }
    for not_an_object in [json!([]), json!("k"), json!(5), json!(null), json!(true), json!([{}])] {
        for request in with_body(&path) {
            let reply = api.send(with_json(request, not_an_object.clone())).await;
            assert_eq!(reply.fields(), ["body"]);
        }
    }
    assert_eq!(api.post("/keys", json!({})).await.fields(), ["name", "expiration"]);
}

#[tokio::test]
async fn case_24_repeated_fields_are_refused() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let rotate = &*format!("{path}/rotate");
    for (method, uri, body, field) in [
        (Method::POST, "/keys", r#"{"name":"a","expiration":"never","name":"a"}"#, "name"),
        (Method::POST, "/keys", r#"{"name":"a","expiration":"never","n\u0061me":"b"}"#, "name"),
        (Method::PATCH, &path, r#"{"status":"active","status":"revoked"}"#, "status"),
        (Method::PATCH, &path, r#"{"ip_allowlist":[],"ip_allowlist":[]}"#, "ip_allowlist"),
        (Method::POST, rotate, r#"{"confirm_name":"k","confirm_name":"k"}"#, "confirm_name"),
    ] {
        assert_eq!(api.send(with_json(request(method, uri), body)).await.fields(), [field]);
    }
    assert_eq!(api.get(&path).await.json()["revision"], 1);
}

#[tokio::test]
async fn case_16_every_bad_entry_is_named() {
    let api = Api::new();
    let entries =
        ["10.0.0.0/33", "010.0.0.1", "10.0.0.1/8", "fe80::1%eth0", "example.com", "0x7f.1"];
    let list: Vec<&str> = ["192.0.2.1"].into_iter().chain(entries).collect();
    let path = api.create_path("k").await;
    let body = json!({"name": "k", "expiration": "never", "ip_allowlist": list});
    for reply in
        [api.post("/keys", body).await, api.patch(&path, json!({"ip_allowlist": list})).await]
    {
        assert_eq!(reply.fields(), ["ip_allowlist"; 6]);
        let errors = reply.json()["errors"].clone();
        for (error, entry) in errors.as_array().unwrap().iter().zip(entries) {
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with(&format!("{entry}: ")), "{message}");
        }
    }
    let twice = json!({"ip_allowlist": ["10.0.0.1", "192.0.2.0/24", "::ffff:10.0.0.1"]});
    let error = json!({"field": "ip_allowlist", "message": "::ffff:10.0.0.1: already on the list"});
    assert_eq!(api.patch(&path, twice).await.json()["errors"], json!([error]));
    let of = |n: u32| (0..n).map(|i| format!("10.0.0.{i}")).collect::<Vec<_>>();
    assert_eq!(api.patch(&path, json!({"ip_allowlist": of(51)})).await.fields(), ["ip_allowlist"]);
    assert_eq!(api.get(&path).await.json()["revision"], 1);
    assert_eq!(api.patch(&path, json!({"ip_allowlist": of(50)})).await.status, 200);
}

#[tokio::test]
async fn all_problems_are_reported_at_once() {
    let api = Api::new();
    let body = r#"{"name":"","expiration":"soon","ip_allowlist":["x","10.0.0.1",7,"y"],"a":1,"a":2,"b":{}}"#;
    let reply = api.send(with_json(request(Method::POST, "/keys"), body)).await;
    let mut fields = reply.fields();
    fields.sort();
    let allowlist = "ip_allowlist";
    assert_eq!(fields, ["a", "a", "b", "expiration", allowlist, allowlist, allowlist, "name"]);
    assert!(reply.text().contains("\"entry 3: must be a string\""));
    let too_many = json!({"name": "", "expiration": "never", "ip_allowlist": vec!["x"; 51]});
    assert_eq!(api.post("/keys", too_many).await.fields(), ["name", "ip_allowlist"]);
}

#[tokio::test]
async fn case_39_a_credential_in_the_wrong_place_is_not_repeated() {
    let api = Api::new();
    let (path, secret) = api.create_secret("k").await;
    let secret = &*secret;
    let replies = [
        api.post("/keys", json!({"name": "x", "expiration": secret})).await,
        api.post(
            "/keys",
            json!({"name": "x", "expiration": "never", "ip_allowlist": [secret, "?"]}),
        )
        .await,
        api.post("/keys", json!({"name": "x", "expiration": "never", secret: 1})).await,
        api.patch(&path, json!({"status": secret, "x y": 1, "é": 1})).await,
        api.patch(&path, json!({"name": format!("{secret}\0")})).await,
    ];
    for reply in &replies {
        assert!(!reply.fields().is_empty());
        assert!(!reply.text().contains(&secret[12..]), "{}", reply.text());
    }
    assert_eq!(replies[2].fields(), ["?"]);
    assert_eq!(replies[3].fields(), ["status", "?", "?"]);
    let reply = api.rotate(&path, secret).await;
    assert_eq!(reply.code(), "confirmation_mismatch");
    assert!(!reply.text().contains(&secret[12..]));
}
