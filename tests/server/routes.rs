//! The life of a key, the demo routes and the health check.

use serde_json::{Value, json};

use crate::support::poll;
use crate::{AUDIT_STRICT, KEYS, Key, Server, assert_key, is_time};

#[test]
fn a_key_works_from_creation_to_deletion() {
    let server = Server::start(&[]);
    let new = json!({ "name": "CI deploy", "expiration": "1_month" });
    let created = server.client().ask_json("POST", KEYS, &[], &new);
    let key = Key::issued(&server, &created);
    assert_key(&key.secret, "vsp_sk_");
    assert_eq!((created.status, created.header("location")), (201, Some(&*key.path())));
    let view = created.json()["key"].clone();
    assert!(is_time(&view["created_at"]) && is_time(&view["expires_at"]), "{view}");
    assert_eq!((&view["name"], &view["status"]), (&json!("CI deploy"), &json!("active")));
    assert_eq!((&view["last_used_at"], &view["ip_allowlist"]), (&Value::Null, &json!([])));

    let whoami = key.ask("GET", "/v1/whoami", &[]);
    let expected = json!({ "org": "demo", "key_id": key.id, "key_name": "CI deploy" });
    assert_eq!((whoami.status, whoami.json()), (200, expected));
    let revoked = key.patch(json!({ "status": "revoked" }));
    assert_eq!((revoked.status, &revoked.json()["status"]), (200, &json!("revoked")));
    assert_eq!(key.status(), 401);
    let enabled = key.patch(json!({ "status": "active", "name": "CI" }));
    assert_eq!((enabled.status, &enabled.json()["name"]), (200, &json!("CI")));
    assert_eq!(key.ask("GET", "/v1/whoami", &[]).json()["key_name"], "CI");

    let wrong = key.rotate(json!({ "confirm_name": "CI deploy" }));
    assert_eq!((wrong.status, &wrong.json()["code"]), (422, &json!("confirmation_mismatch")));
    let rotated = key.rotate(json!({ "confirm_name": "CI" }));
    let new_key = Key::issued(&server, &rotated);
    assert_key(&new_key.secret, "vsp_sk_");
    assert_eq!(new_key.id, key.id);
    assert_eq!(rotated.json()["key"]["expires_at"], view["expires_at"]);
    assert_eq!((key.status(), new_key.status()), (401, 200));

    // Every request with a known secret is in the log. The old secret is unknown now.
    let mut records = new_key.await_records(4);
    let expected = [(200, "allowed"), (200, "allowed"), (401, "revoked"), (200, "allowed")];
    assert_eq!(records.len(), expected.len(), "{records:?}");
    for (record, (status, outcome)) in records.iter_mut().zip(expected) {
        assert!(is_time(&record["timestamp"].take()), "{record}");
        let expected = json!({
            "timestamp": null, "method": "GET", "endpoint": "/v1/whoami", "ip": "127.0.0.1",
            "country": null, "status": status, "outcome": outcome, "count": 1, "secret": "current",
        });
        assert_eq!(*record, expected);
    }

    assert_eq!((new_key.delete("ci").status, new_key.status()), (422, 200));
    let deleted = new_key.delete("CI");
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    assert_eq!(new_key.status(), 401);
    assert_eq!(server.get(&new_key.path()).status, 404);
    assert_eq!(server.get(KEYS).json()["keys"], json!([]));
}

#[test]
fn the_demo_routes_work_as_described() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"];
    for method in methods {
        let reply = key.ask(method, "/v1/status/418?x=1", &[]);
        assert_eq!(reply.status, 418, "{method}");
    }
    let records = key.await_records(methods.len());
    for (record, method) in records.iter().rev().zip(methods) {
        assert_eq!((&record["method"], &record["status"]), (&json!(method), &json!(418)));
        assert_eq!(record["endpoint"], "/v1/status/418");
    }
    for (target, status) in [
        ("/v1/status/200", 200),
        ("/v1/status/204", 204),
        ("/v1/status/304", 304),
        ("/v1/status/503", 503),
        ("/v1/status/101", 400),
        ("/v1/status/99", 400),
        ("/v1/slow/50", 200),
        // Without scopes, every key has full access.
        ("/v1/scoped/reports:read", 200),
    ] {
        assert_eq!(key.ask("GET", target, &[]).status, status, "{target}");
    }
    let list = server.get(KEYS);
    assert!(!list.text().contains("scope"), "{}", list.text());
    for target in ["/v1/whoami", "/v1/status/200", "/v1/slow/0", "/v1/scoped/any"] {
        let reply = server.get(target);
        assert_eq!(reply.status, 401, "{target}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"api\""), "{target}");
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn healthz_reports_the_failing_part() {
    let folder = tempfile::tempdir().unwrap();
    let server =
        Server::start_in(folder.path(), &[("KEYGATE_STORE", "sqlite:keygate.db"), AUDIT_STRICT]);
    let health = || {
        let reply = server.get("/healthz");
        (reply.status, reply.json())
    };
    let all_work = || {
        let (status, body) = health();
        let parts = ["lookups", "changes", "audit_log", "last_uses"];
        status == 200 && parts.iter().all(|part| body[part] == json!(true))
    };
    assert!(all_work(), "{:?}", health());

    // Another process has an open write transaction.
    let key = Key::named(&server, "key");
    let other = rusqlite::Connection::open(folder.path().join("keygate.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(key.status(), 503, "its record cannot be written");
    let (status, body) = health();
    assert_eq!((status, &body["lookups"], &body["audit_log"]), (200, &json!(true), &json!(false)));
    other.execute_batch("ROLLBACK").unwrap();
    poll("it recovers", || (key.status() == 200).then_some(()));
    poll("all parts work", || all_work().then_some(()));
    let (_, body) = health();
    assert_eq!(body["queued_records"], json!(0));
    assert!(body["seconds_since_last_record"].is_u64(), "{body}");

    other.execute_batch("ALTER TABLE keys RENAME TO no_keys").unwrap();
    let (status, body) = health();
    assert_eq!((status, &body["lookups"]), (503, &Value::Bool(false)));
    let output = server.stop();
    assert!(output.contains("a part does not work"), "{output}");
}
