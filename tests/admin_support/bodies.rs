//! Body fields: an invalid field gets 422 and is named.

use axum::http::Method;
use getrandom::SysRng;
use keygate::{KeyFormat, KeyStore};
use serde_json::{Value, json};

use crate::admin_support::{Api, Reply, request, with_json};
use crate::payloads::with_body;

async fn create(api: &Api, body: Value) -> Reply {
    api.post("/keys", body).await
}

#[tokio::test]
async fn case_22_fields_that_the_server_sets_are_refused() {
    let api = Api::new();
    for field in ["status", "digest", "id", "created_at", "org", "revision", "Name", "secret"] {
        let mut body = json!({"name": "k", "expiration": "never"});
        body[field] = json!("x");
        assert_eq!(create(&api, body).await.fields(), [field]);
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
async fn case_23_deceptive_names_are_refused() {
    let api = Api::new();
    let path = api.create_path("k").await;
    for name in
        ["", "  ", "a\0b", "a\nb", "a\u{202e}b", "a\u{200b}", &"a".repeat(101), &"a".repeat(10_240)]
    {
        let body = json!({"name": name, "expiration": "never"});
        assert_eq!(create(&api, body).await.fields(), ["name"], "{name:?}");
        assert_eq!(api.patch(&path, json!({"name": name})).await.fields(), ["name"]);
    }
}

#[tokio::test]
async fn case_54_names_with_hidden_content_are_refused_and_not_repeated() {
    let api = Api::with(|builder| builder.format(KeyFormat::new("acme_").unwrap()));
    let path = api.create_path("k").await;
    api.clock.advance(1);
    let ours = api.create("other").await["secret"].as_str().unwrap().to_owned();
    let theirs = KeyFormat::default().generate(&mut SysRng).unwrap();
    let theirs = theirs.expose_secret();
    for (name, secret) in [
        ("CI\u{1bca0}".to_owned(), "CI"),
        ("a\u{34f}b".to_owned(), "a\u{34f}"),
        ("CI \u{e0069}\u{e0067}\u{e006e}".to_owned(), "CI"),
        ("🏴\u{e0069}\u{e0067}\u{e006e}".to_owned(), "🏴"),
        (format!("Z{}", "\u{301}".repeat(40)), "\u{301}"),
        (ours.clone(), &ours[5..20]),
        (format!("CI {theirs}"), &theirs[7..20]),
        // A misspelt or truncated key is still most of a key.
        (format!("CI {}", &ours[..40]), &ours[5..20]),
        (ours[5..].to_owned(), &ours[5..20]),
    ] {
        let body = json!({"name": name, "expiration": "never"});
        for reply in [create(&api, body).await, api.patch(&path, json!({"name": name})).await] {
            assert_eq!((reply.status.as_u16(), reply.fields()), (422, vec!["name".to_owned()]));
            assert!(!reply.text().contains(secret), "{}", reply.text());
        }
    }
    let stored = api.store.inner.list(api.actor.org()).await.unwrap();
    assert_eq!(stored.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["k", "other"]);
}

#[tokio::test]
async fn case_23_names_in_any_script_are_returned_unchanged() {
    let api = Api::new();
    let longest = "é".repeat(100);
    for name in ["Ключ 密钥 مفتاح", "👩‍💻 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "<img src=x onerror=alert(1)>", "\"\\'", &longest]
    {
        assert_eq!(api.create(name).await["key"]["name"], name);
    }
    let escaped = with_json(
        request(Method::POST, "/keys"),
        r#"{"n\u0061me":"\ud83d\ude00 \u00e9","expiration":"never"}"#,
    );
    assert_eq!(api.send(escaped).await.json()["key"]["name"], "😀 é");
}

#[tokio::test]
async fn case_24_an_invalid_field_is_422_and_is_named() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let body = |field: &str, value: Value| {
        let mut body = json!({"name": "k", "expiration": "never"});
        body[field] = value;
        body
    };
    for wrong in [json!(null), json!(5), json!(true), json!(["k"]), json!({"a": "b"})] {
        for field in ["name", "expiration"] {
            assert_eq!(create(&api, body(field, wrong.clone())).await.fields(), [field]);
        }
    }
    for wrong in ["", "1_DAY", "2_days", "2030-01-01T00:00:00Z", " never", "null"] {
        assert_eq!(create(&api, body("expiration", json!(wrong))).await.fields(), ["expiration"]);
    }
    for wrong in [json!(null), json!("10.0.0.1"), json!(5), json!({}), json!([5]), json!([null])] {
        let reply = create(&api, body("ip_allowlist", wrong)).await;
        assert_eq!(reply.fields(), ["ip_allowlist"]);
    }
    for not_an_object in [json!([]), json!("k"), json!(5), json!(null), json!(true), json!([{}])] {
        for request in with_body(&path) {
            let reply = api.send(with_json(request, not_an_object.clone())).await;
            assert_eq!(reply.fields(), ["body"]);
        }
    }
    assert_eq!(create(&api, json!({})).await.fields(), ["name", "expiration"]);
    for wrong in [json!(null), json!("ACTIVE"), json!("expired"), json!(""), json!(true)] {
        assert_eq!(api.patch(&path, json!({"status": wrong})).await.fields(), ["status"]);
    }
    for field in ["name", "ip_allowlist"] {
        assert_eq!(api.patch(&path, json!({field: null})).await.fields(), [field]);
    }
    for wrong in [json!(null), json!(5), json!(["k"])] {
        let reply = api.post(&format!("{path}/rotate"), json!({"confirm_name": wrong})).await;
        assert_eq!(reply.fields(), ["confirm_name"]);
    }
}

#[tokio::test]
async fn case_24_repeated_fields_are_refused() {
    let api = Api::new();
    let path = api.create_path("k").await;
    for (method, uri, body, field) in [
        (Method::POST, "/keys", r#"{"name":"a","expiration":"never","name":"a"}"#, "name"),
        (Method::POST, "/keys", r#"{"name":"a","expiration":"never","n\u0061me":"b"}"#, "name"),
        (Method::PATCH, &path, r#"{"status":"active","status":"revoked"}"#, "status"),
        (Method::PATCH, &path, r#"{"ip_allowlist":[],"ip_allowlist":[]}"#, "ip_allowlist"),
        (
            Method::POST,
            &format!("{path}/rotate"),
            r#"{"confirm_name":"k","confirm_name":"k"}"#,
            "confirm_name",
        ),
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
    for reply in [create(&api, body).await, api.patch(&path, json!({"ip_allowlist": list})).await] {
        assert_eq!(reply.fields(), ["ip_allowlist"; 6]);
        let errors = reply.json()["errors"].clone();
        for (error, entry) in errors.as_array().unwrap().iter().zip(entries) {
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with(&format!("{entry}: ")), "{message}");
        }
    }
    let twice = json!({"ip_allowlist": ["10.0.0.1", "192.0.2.0/24", "::ffff:10.0.0.1"]});
    let reply = api.patch(&path, twice).await;
    assert_eq!(
        reply.json()["errors"],
        json!([
            {"field": "ip_allowlist", "message": "::ffff:10.0.0.1: already on the list"}
        ])
    );
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
    assert_eq!(create(&api, too_many).await.fields(), ["name", "ip_allowlist"]);
}

#[tokio::test]
async fn case_39_a_credential_in_the_wrong_place_is_not_repeated() {
    let api = Api::new();
    let issued = api.create("k").await;
    let secret = issued["secret"].as_str().unwrap();
    let path = format!("/keys/{}", issued["key"]["id"].as_str().unwrap());
    let replies = [
        create(&api, json!({"name": "x", "expiration": secret})).await,
        create(&api, json!({"name": "x", "expiration": "never", "ip_allowlist": [secret, "?"]}))
            .await,
        create(&api, json!({"name": "x", "expiration": "never", secret: 1})).await,
        api.patch(&path, json!({"status": secret, "x y": 1, "é": 1})).await,
        api.patch(&path, json!({"name": format!("{secret}\0")})).await,
    ];
    for reply in &replies {
        assert!(!reply.fields().is_empty());
        assert!(!reply.text().contains(&secret[12..]), "{}", reply.text());
    }
    assert_eq!(replies[2].fields(), ["?"]);
    assert_eq!(replies[3].fields(), ["status", "?", "?"]);
    let reply = api.post(&format!("{path}/rotate"), json!({"confirm_name": secret})).await;
    assert_eq!(reply.code(), "confirmation_mismatch");
    assert!(!reply.text().contains(&secret[12..]));
}
