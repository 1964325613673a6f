//! The address of the client, behind proxies and without them.

use serde_json::json;

use crate::{AUDIT_STRICT, Key, Server};

/// Sends a request with each of the headers to a server with these settings. Asserts the status
/// of the answer and the address in the record.
fn check(settings: &[(&str, &str)], rows: &[(&[&str], u16, Option<&str>)]) {
    let server = Server::start(&[settings, &[AUDIT_STRICT]].concat());
    let allowed = ["203.0.113.0/24", "2001:db8::/32"];
    let new = json!({ "name": "k", "expiration": "never", "ip_allowlist": allowed });
    let key = Key::create(&server, &new);
    for (headers, status, ip) in rows {
        let reply = key.ask("GET", "/v1/whoami", headers);
        let record = key.records().remove(0);
        assert_eq!((reply.status, &record["ip"]), (*status, &json!(ip)), "{headers:?}");
        let outcome = if *status == 200 { "allowed" } else { "ip_not_allowed" };
        assert_eq!((&record["status"], &record["outcome"]), (&json!(status), &json!(outcome)));
    }
}

const PROXIES: (&str, &str) = ("KEYGATE_TRUSTED_PROXIES", " 127.0.0.1 , 10.0.0.0/8,");
const CLIENT: Option<&str> = Some("203.0.113.9");

#[test]
fn case_12_forwarding_headers_are_ignored_without_trusted_proxies() {
    let peer = Some("127.0.0.1");
    let xff = &["X-Forwarded-For: 203.0.113.9"];
    check(&[], &[(xff, 403, peer), (&["Forwarded: for=203.0.113.9"], 403, peer)]);
}

#[test]
fn case_11_13_14_behind_a_trusted_proxy_its_header_decides() {
    let rows = [
        (&["x-forwarded-for: 6.6.6.6, 203.0.113.9:4711, 10.1.2.3"][..], 200, CLIENT),
        (
            &["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: [2001:db8::1]:443"],
            200,
            Some("2001:db8::1"),
        ),
        (&["X-Forwarded-For: 203.0.113.9, 198.51.100.1"], 403, Some("198.51.100.1")),
        (&["X-Forwarded-For: 203.0.113.9, unknown"], 403, None),
        (&["Forwarded: for=203.0.113.9"], 403, None),
        (&["X-Real-Ip: 203.0.113.9"], 403, None),
        (&[], 403, None),
    ];
    check(&[PROXIES], &rows);
}

#[test]
fn case_52_the_header_that_proxies_write_can_be_chosen() {
    let forwarded = [
        (&["Forwarded: for=\"6.6.6.6", "Forwarded: for=203.0.113.9"][..], 200, CLIENT),
        (&["Forwarded: for=\"6.6.6.6, for=203.0.113.9"], 200, CLIENT),
        (&["Forwarded: \u{e9}\"", "Forwarded: x", "Forwarded: for=203.0.113.9"], 200, CLIENT),
        (&["Forwarded: for=203.0.113.9", "Forwarded: for=\""], 403, None),
        (&["X-Forwarded-For: 203.0.113.9"], 403, None),
    ];
    check(&[PROXIES, ("KEYGATE_PROXY_HEADER", "Forwarded")], &forwarded);
    let single = [
        (&["cf-connecting-ip: 203.0.113.9", "X-Forwarded-For: 6.6.6.6"][..], 200, CLIENT),
        (&["CF-Connecting-IP: 203.0.113.9", "CF-Connecting-IP: 203.0.113.9"], 403, None),
        (&["CF-Connecting-IP: 203.0.113.9, 203.0.113.9"], 403, None),
        (&["X-Forwarded-For: 203.0.113.9"], 403, None),
        (&[], 403, None),
    ];
    check(&[PROXIES, ("KEYGATE_PROXY_HEADER", "CF-Connecting-IP")], &single);
}
