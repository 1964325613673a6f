//! Credentials in raw requests.

use serde_json::json;

use crate::support::unknown_key;
use crate::{Key, Server};

#[test]
fn case_05_junk_over_a_socket_is_4xx_in_constant_memory() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let request =
        |line: &[u8]| [b"GET /v1/whoami HTTP/1.1\r\nHost: h\r\n", line, b"\r\n\r\n"].concat();
    for line in [
        &b"Authorization:"[..],
        b"Authorization: Bearer",
        b"Authorization: Bearer \0",
        b"Authorization: Bearer \x01\x7f",
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: Bearer\r\n folded",
        b"Authorization : Bearer x",
        b"Authorization",
    ] {
        let mut client = server.client();
        client.send(request(line));
        let reply = client.reply();
        assert!((400..500).contains(&reply.status), "{line:?}: {}", reply.status);
    }
    let huge = request(&[b"Authorization: Bearer ", &[b'a'; 65_536][..]].concat());
    let mut client = server.client();
    let mut flood = |requests| {
        for _ in 0..requests {
            client.send(&huge);
            let status = client.reply().status;
            assert!((400..500).contains(&status), "{status}");
        }
        peak_memory(&server)
    };
    let before = flood(8);
    let grown = flood(192) - before;
    assert!(grown < 4_096, "192 requests of 64 KiB left {grown} KiB behind");
    // More than the server reads at all: refused, or the connection is closed.
    let mut client = server.client();
    client.send(request(&[b"Authorization: Bearer ", &[b'a'; 1 << 20][..]].concat()));
    if let Ok(reply) = client.try_reply(false) {
        assert!((400..500).contains(&reply.status), "{}", reply.status);
    }
    assert_eq!(key.status(), 200, "the server is running");
    assert_eq!(key.await_records(1).len(), 1, "no other request is recorded for the key");
}

/// The peak resident memory of the process in KiB, where the system shows it.
fn peak_memory(server: &Server) -> u64 {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())) else {
        return 0;
    };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn case_07_bad_keys_cannot_be_distinguished_on_the_wire() {
    for audit in ["buffered", "strict"] {
        let server = Server::start(&[("KEYGATE_AUDIT", audit)]);
        let [revoked, deleted, rotated] = ["a", "b", "c"].map(|name| Key::named(&server, name));
        assert_eq!(revoked.patch(json!({ "status": "revoked" })).status, 200);
        assert_eq!(deleted.delete("b").status, 204);
        assert_eq!(rotated.rotate(json!({ "confirm_name": "c" })).status, 200);
        let bad = [
            &revoked.secret,
            &deleted.secret,
            &rotated.secret,
            // Malformed:
            &revoked.secret[1..],
            &format!("{}0", revoked.secret),
            &revoked.secret.to_uppercase(),
            "x",
            &revoked.id,
        ];
        for method in ["GET", "HEAD", "POST"] {
            let ask = |secret: &str| Key::foreign(&server, secret).ask(method, "/v1/whoami", &[]);
            let unknown = ask(&unknown_key());
            let challenge = "Bearer realm=\"api\", error=\"invalid_token\"";
            let answer = (unknown.status, unknown.header("www-authenticate"));
            assert_eq!(answer, (401, Some(challenge)));
            for secret in bad {
                assert_eq!(ask(secret).but_date(), unknown.but_date(), "{audit} {method}");
            }
        }
    }
}
