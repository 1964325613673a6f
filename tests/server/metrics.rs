//! `/metrics` against what was sent, and against the audit log.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{poll, unknown_key};
use crate::{AUDIT_STRICT, KEYS, Key, Server, new_key};

/// All samples: each name with its labels, and its value.
fn scrape(server: &Server) -> BTreeMap<String, f64> {
    let reply = server.get("/metrics");
    assert_eq!(reply.status, 200);
    let text = String::from_utf8(reply.body).unwrap();
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    samples.map(sample).collect()
}

/// The samples of that name, without the ones that are zero.
fn of(samples: &BTreeMap<String, f64>, name: &str) -> BTreeMap<String, u64> {
    let of_name = samples.iter().filter_map(|(sample, value)| {
        let label = sample.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?;
        let (_, value_of_label) = label.split_once('=')?;
        assert_eq!(value.fract(), 0.0, "{sample}");
        Some((value_of_label.trim_matches('"').to_owned(), *value as u64))
    });
    of_name.filter(|(_, value)| *value > 0).collect()
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// How many requests the log has of each outcome.
fn logged(keys: &[&Key]) -> BTreeMap<String, u64> {
    let mut outcomes = BTreeMap::new();
    for record in keys.iter().flat_map(|key| key.records()) {
        let outcome = record["outcome"].as_str().unwrap().to_owned();
        *outcomes.entry(outcome).or_default() += record["count"].as_u64().unwrap();
    }
    outcomes
}

fn metrics_equal_the_log(delivery: (&str, &str)) {
    let server = Server::start(&[delivery, ("KEYGATE_SCOPES", "a=A,b=B")]);
    let of_scopes = |scopes: Value| {
        let body = json!({"name": "CI", "expiration": "never", "scopes": scopes});
        Key::create(&server, &body)
    };
    let (all, one) = (of_scopes(json!("all")), of_scopes(json!(["a"])));
    let (revoked, walled) = (of_scopes(json!("all")), of_scopes(json!("all")));
    assert_eq!(revoked.patch(json!({"status": "revoked"})).status, 200);
    assert_eq!(walled.patch(json!({"ip_allowlist": ["192.0.2.1"]})).status, 200);
    for _ in 0..5 {
        assert_eq!(all.status(), 200);
    }
    for status in ["404", "503"] {
        all.ask("GET", &format!("/v1/status/{status}"), &[]);
    }
    assert_eq!(one.ask("GET", "/v1/scoped/b", &[]).status, 403);
    // More than have a record each, so that the others are summed.
    for _ in 0..30 {
        assert_eq!(revoked.status(), 401);
    }
    for _ in 0..4 {
        assert_eq!(walled.status(), 403);
    }
    for _ in 0..3 {
        assert_eq!(Key::foreign(&server, &unknown_key()).status(), 401);
    }
    for junk in ["x", "vsp_sk_short"] {
        assert_eq!(Key::foreign(&server, junk).status(), 401);
    }
    server.get("/v1/whoami");

    let verified = of(&scrape(&server), "keygate_verifications_total");
    // The scope is checked below the layer, after the verification.
    let sent =
        [("allowed", 8), ("ip_not_allowed", 4), ("malformed", 2), ("revoked", 30), ("unknown", 3)];
    assert_eq!(verified, counts(&sent));
    let expected =
        [("allowed", 7), ("insufficient_scope", 1), ("ip_not_allowed", 4), ("revoked", 30)];
    poll("all requests are in the log", || {
        (logged(&[&all, &one, &revoked, &walled]) == counts(&expected)).then_some(())
    });
    let alone = revoked.records().iter().filter(|record| record["count"] == 1).count() as u64;
    // Four creations and two edits besides.
    let mut written = counts(&[("summed", 30 - alone), ("written", 42 + 6)]);
    written.retain(|_, count| *count > 0);
    let samples = poll("the counts of the audit log", || {
        let samples = scrape(&server);
        (of(&samples, "keygate_audit_records_total") == written).then_some(samples)
    });
    assert_eq!(samples["keygate_audit_queue_records"], 0.0);
    // A malformed credential takes no time that is worth measuring.
    assert_eq!(samples["keygate_verification_duration_seconds_count"], 45.0);
    let finds = "keygate_store_duration_seconds_count{operation=\"find_by_digest\",outcome=\"ok\"}";
    assert_eq!(samples[finds], 45.0);
}

#[test]
fn metrics_equal_the_log_in_strict_delivery() {
    metrics_equal_the_log(AUDIT_STRICT);
}

#[test]
fn metrics_equal_the_log_in_buffered_delivery() {
    metrics_equal_the_log(("KEYGATE_AUDIT", "buffered"));
}

#[test]
fn case_39_no_label_names_a_key_an_organisation_a_path_or_an_address() {
    let server = Server::start(&[]);
    let key = Key::create(&server, &new_key("a-name"));
    key.ask("GET", "/v1/a-path", &[]);
    server.client().ask("GET", KEYS, &["x-demo-org: an-organisation"]);
    let text = String::from_utf8(server.get("/metrics").body).unwrap();
    for secret in
        ["a-name", "a-path", "an-organisation", "demo", "127.0.0.1", &key.id, &key.secret[7..20]]
    {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    let labels = ["outcome=", "operation=", "result=", "le=", "quantile="];
    for label in text.split(['{', ',']).skip(1).filter(|part| part.contains("=\"")) {
        assert!(labels.iter().any(|known| label.starts_with(known)), "{label}");
    }
}
