//! The settings of the server, right and wrong.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{poll, unknown_key};
use crate::{AUDIT_STRICT, KEYS, Key, Server, assert_key, new_key};

#[test]
fn a_route_needs_the_scope_that_its_path_names() {
    let scopes = "reports:read=Read reports, reports:write=Change reports";
    let server = Server::start(&[("KEYGATE_SCOPES", scopes), AUDIT_STRICT]);
    let list = server.get(KEYS).json();
    let write = json!({"name": "reports:write", "description": "Change reports"});
    assert_eq!(list["scopes"][1], write);
    let key = |scopes: Value| {
        let new = json!({ "name": "key", "expiration": "never", "scopes": scopes });
        Key::create(&server, &new)
    };
    let (reader, all) = (key(json!(["reports:read"])), key(json!("all")));
    for (key, scope, status) in [
        (&reader, "reports:read", 200),
        (&reader, "reports%3Aread", 200),
        (&reader, "reports:write", 403),
        (&reader, "reports", 403),
        (&all, "reports:write", 200),
        (&all, "anything", 200),
    ] {
        let reply = key.ask("GET", &format!("/v1/scoped/{scope}"), &[]);
        assert_eq!(reply.status, status, "{scope}");
        let outcome = if status == 200 { "allowed" } else { "insufficient_scope" };
        assert_eq!(key.records()[0]["outcome"], outcome, "{scope}");
    }
    let without = server.client().ask_json("POST", KEYS, &[], new_key("x"));
    assert_eq!((without.status, &without.json()["errors"][0]["field"]), (422, &json!("scopes")));
}

#[test]
fn keys_issued_before_keygate_are_adopted_from_the_file_at_each_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.csv");
    let text = "acme_live_0123456789abcdef0123456789abcdef";
    let digest = Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let lines = [
        "org,name,key_prefix,sha256_hex".to_owned(),
        format!("demo,\"old, but good\",acme_live_0123,{digest}"),
        format!("demo,twice,acme_live_0123,{digest}"),
        format!("demo,{text},acme_live_0123,{}", digest.replace('0', "1")),
        "demo,short,acme_live_0123,abcd".to_owned(),
        String::new(),
        "demo,three,acme_live_0123".to_owned(),
        format!("demo,base64,acme_live_0123,{}", "A".repeat(43)),
    ];
    std::fs::write(&file, lines.join("\r\n")).unwrap();
    let env = [
        ("KEYGATE_STORE", "sqlite:keys.db"),
        ("KEYGATE_EXISTING_KEYS", "old.csv"),
        ("KEYGATE_EXISTING_FORMAT", "acme_live_:32"),
        ("KEYGATE_SCOPES", "reports:read=Read reports"),
    ];
    for report in ["1 adopted, 0 there already", "0 adopted, 1 there already"] {
        let server = Server::start_in(folder.path(), &env);
        assert_eq!(Key::foreign(&server, text).status(), 200);
        let listed = server.get(KEYS).json();
        assert_eq!(listed["keys"].as_array().unwrap().len(), 1, "{listed}");
        assert_eq!(listed["keys"][0]["name"], "old, but good");
        assert_eq!(listed["keys"][0]["scopes"], "all");
        let output = server.stop();
        for part in [
            report,
            "line 3: digest",
            "line 4: ",
            "line 5: sha256_hex",
            "line 7: 3 fields",
            "line 8: sha256_hex",
        ] {
            assert!(output.contains(part), "{part}: {output}");
        }
        assert!(!output.contains(text) && !output.contains(&digest), "{output}");
    }
}

#[test]
fn keys_begin_with_the_prefix_that_is_set_and_a_start_with_another_one_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let start = |prefix| {
        let env = [("KEYGATE_STORE", "sqlite:keys.db"), ("KEYGATE_KEY_PREFIX", prefix)];
        Server::start_in(folder.path(), &env)
    };
    let warning = "a prefix that is not configured";
    let server = start("acme_live_");
    let key = Key::named(&server, "key");
    assert_key(&key.secret, "acme_live_");
    assert_eq!(key.status(), 200);
    assert_eq!(key.shown()["key_prefix"], key.secret[.."acme_live_".len() + 5]);
    assert_eq!(Key::foreign(&server, &unknown_key()).status(), 401);
    assert!(!server.stop().contains(warning));
    assert!(start("new_").stop().contains(warning));
}

#[test]
fn a_key_is_taken_from_the_header_that_is_set() {
    let server = Server::start(&[("KEYGATE_KEY_HEADER", "x-api-key")]);
    let key = Key::named(&server, "key");
    let in_header = format!("x-api-key: {}", key.secret);
    let ask = |headers: &[&str]| server.client().ask("GET", "/v1/whoami", headers);
    assert_eq!(ask(&[&in_header]).status, 200);
    assert_eq!(key.status(), 200);
    let twice = ask(&[&in_header, &key.authorization()]);
    assert_eq!((twice.status, &twice.json()["code"]), (400, &json!("invalid_request")));
    assert!(ask(&[]).text().contains("`x-api-key: <key>`"));
}

#[test]
fn environments_and_limits_of_organisations_are_those_that_are_set() {
    let server = Server::start(&[
        ("KEYGATE_ENVIRONMENTS", "live=vsp_sk_,test=vsp_sk_test_"),
        ("KEYGATE_ORG_LIMITS", "demo=2"),
    ]);
    let live = Key::named(&server, "live");
    assert_key(&live.secret, "vsp_sk_");
    let body = json!({ "name": "test", "expiration": "never", "environment": "test" });
    let test = Key::create(&server, &body);
    assert_key(&test.secret, "vsp_sk_test_");
    assert_eq!((live.status(), test.status()), (200, 200));
    let list = server.get(KEYS).json();
    assert_eq!(list["environments"][1], json!({ "name": "test", "prefix": "vsp_sk_test_" }));
    assert_eq!(list["keys"][1]["environment"], "test");
    assert_eq!(list["limits"]["max_keys"], 2);
}

#[test]
fn case_59_old_secrets_work_for_the_overlap_that_is_set() {
    for (settings, max) in [(&[][..], 0), (&[("KEYGATE_ROTATION_OVERLAP", "3600")][..], 3_600)] {
        let server = Server::start(settings);
        let key = Key::named(&server, "key");
        assert_eq!(server.get(KEYS).json()["max_overlap_seconds"], max);
        let rotate = |overlap| {
            key.rotate(json!({ "confirm_name": "key", "overlap_seconds": overlap })).status
        };
        assert_eq!((rotate(max + 1), key.status()), (422, 200));
        assert_eq!(rotate(max), 200);
        assert_eq!(key.status(), if max > 0 { 200 } else { 401 });
    }
}

/// Starts a server that refuses its settings, and asserts that it names the wrong one.
fn assert_refused(name: &str, value: &OsStr) {
    let mut server = Server::spawn(&std::env::current_dir().unwrap(), &[(name, value)]);
    let case = format!("{name}={value:?}");
    poll(&format!("{case}: the end"), || server.child.try_wait().unwrap());
    let (status, output) = server.ended();
    assert!(!status.success(), "{case}: {status}");
    assert!(output.contains(name) && !output.contains("panicked"), "{case}: {output}");
}

#[test]
fn a_wrong_setting_keeps_the_server_from_starting_and_is_named() {
    let server = Server::start(&[]);
    let taken = server.address.to_string();
    for (name, values) in [
        ("KEYGATE_ADDR", &["nonsense", "127.0.0.1:99999", "127.0.0.1", &taken][..]),
        (
            "KEYGATE_STORE",
            &["mysql://localhost/x", "memory", "keygate.db", ":", "sqlite:README.md"],
        ),
        ("KEYGATE_AUDIT", &["lax", "Strict", "strict "]),
        ("KEYGATE_TRUSTED_PROXIES", &["10.0.0.0/33", "10.0.0.1/8", "localhost", "127.0.0.1;::1"]),
        ("KEYGATE_PROXY_HEADER", &["X Real IP", "x-real-ip:", "\u{e9}"]),
        ("KEYGATE_GEOIP", &["/nonexistent/countries.mmdb"]),
        ("KEYGATE_KEY_HEADER", &["x api key", "x-api-key:", "authorization", "Host"]),
        (
            "KEYGATE_ENVIRONMENTS",
            &["live", "live=SK_", "live=a_,live=b_", "live=a_,test=a_", "L=a_"],
        ),
        ("KEYGATE_ORG_LIMITS", &["big", "big=many", "big=-1"]),
        ("KEYGATE_EXISTING_FORMAT", &["acme_live_", "acme_live_:x", "acme_live_:8", "vsp_sk_:48"]),
        ("KEYGATE_EXISTING_KEYS", &["missing.csv"]),
        ("KEYGATE_KEY_PREFIX", &["sk", "SK_", "1sk_", "abcdefghijklmnopqrstuvwxyz_", "a b_"]),
        ("KEYGATE_SCOPES", &["Read=x", "=x", "a=x,a=y", "a=x,", ","]),
        ("KEYGATE_ROTATION_OVERLAP", &["1h", "-1", "3600.5", "yes", "99999999999999999999"]),
    ] {
        for value in values {
            assert_refused(name, OsStr::new(value));
        }
        assert_refused(name, OsStr::from_bytes(b"not UTF-8: \xff"));
    }
}
