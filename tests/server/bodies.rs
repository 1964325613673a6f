//! What becomes of the connection: unread bodies, read ones, and junk.

use serde_json::json;

use crate::{KEYS, Key, Server, new_key};

#[test]
fn an_answer_before_the_body_is_read_fails_no_later_request() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let good = key.authorization();
    let bad = "Authorization: Bearer x";
    let json = "Content-Type: application/json";
    let delete = format!("{}?confirm_name=other", key.path());
    let short = [&b"0123456789"[..], &[b'x'; 60_000]];
    // A body that is declared too long is refused unread.
    let long = [&[b' '; 100_000][..]];
    for (method, target, headers, bodies, status) in [
        ("POST", "/v1/whoami", &[][..], &short[..], 401),
        ("POST", "/v1/whoami", &[bad], &short, 401),
        ("POST", "/v1/whoami", &["Authorization: Bearer a b"], &short, 400),
        ("PUT", "/v1/unknown", &[bad], &short, 401),
        ("PUT", "/v1/unknown", &[&good], &short, 404),
        ("DELETE", "/v1/whoami", &[&good], &short, 405),
        ("POST", "/v1/status/200", &[&good], &short, 200),
        ("GET", "/v1/slow/0", &[&good], &short, 200),
        ("POST", "/healthz", &[], &short, 405),
        ("POST", "/nothing", &[], &short, 404),
        ("POST", "/settings", &[json], &short, 405),
        ("POST", "/settings/nothing", &[json], &short, 404),
        ("POST", KEYS, &["X-Demo-Org:"], &short, 401),
        ("POST", KEYS, &[json, "Sec-Fetch-Site: cross-site"], &short, 403),
        ("POST", KEYS, &["Content-Type: text/plain"], &short, 415),
        ("POST", &format!("{KEYS}?x=1"), &[json], &short, 422),
        ("PUT", KEYS, &[json], &short, 405),
        ("GET", KEYS, &[json], &short, 200),
        ("POST", KEYS, &[json], &long, 413),
        ("POST", "/settings/api/nothing", &[json], &short, 404),
        ("PATCH", &format!("{KEYS}/nothing"), &[json], &short, 404),
        ("DELETE", &delete, &["Content-Type: text/plain"], &short, 415),
        ("DELETE", &delete, &[json], &short, 422),
    ] {
        let case = format!("{method} {target} {headers:?}");
        for body in bodies {
            let mut client = server.client();
            for _ in 0..3 {
                let reply = client.ask_with_late_body(method, target, headers, body);
                assert_eq!(reply.status, status, "{case}");
                let next = client.ask("GET", "/healthz", &[]);
                assert_eq!(next.status, 200, "{case}");
            }
        }
    }
}

#[test]
fn a_read_or_missing_body_leaves_the_connection_open() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let mut client = server.client();
    for (name, status) in [("another", 201), ("", 422), (&*"x".repeat(60_000), 422)] {
        let reply = client.ask_json("POST", KEYS, &[], new_key(name));
        assert_eq!((reply.status, reply.closes()), (status, false), "{}", reply.text());
    }
    let good = key.authorization();
    for (method, headers, status) in [
        ("POST", &["Content-Length: 0"][..], 401),
        ("POST", &[], 401),
        ("POST", &["Content-Length: 0", &good], 405),
        ("GET", &[], 401),
        ("HEAD", &["Authorization: Bearer x"], 401),
        ("GET", &[&good], 200),
    ] {
        let reply = client.ask(method, "/v1/whoami", headers);
        assert_eq!((reply.status, reply.closes()), (status, false), "{method} {headers:?}");
        if status == 401 && method != "HEAD" {
            assert_eq!(reply.header("content-type"), Some("application/problem+json"));
            assert_eq!(reply.json()["status"], json!(401));
        }
    }
}
