//! Who may use the management API: hosts and organisations.

use std::net::SocketAddr;

use serde_json::json;

use crate::support::Client;
use crate::{KEYS, Key, Server, new_key};

#[test]
fn case_57_a_foreign_host_with_a_matching_origin_is_refused() {
    for (listen, ours, foreign) in [
        ("127.0.0.1:0", &["127.0.0.1", "localhost", "[::1]"][..], "192.0.2.7"),
        ("localhost:0", &["127.0.0.1", "localhost", "[::1]"], "192.0.2.7"),
        ("0.0.0.0:0", &["127.0.0.1", "localhost", "192.0.2.7"], "localhost.evil.example"),
    ] {
        let server = Server::start(&[("KEYGATE_ADDR", listen)]);
        let port = server.address.port();
        let status = |host: &str, method: &str, body: &str| {
            let mut client = Client::connect(SocketAddr::from(([127, 0, 0, 1], port)));
            client.send(format!(
                "{method} {KEYS} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
            client.reply().status
        };
        let new = new_key("x").to_string();
        let both = |host: &str| (status(host, "GET", ""), status(host, "POST", &new));
        for host in [foreign, "evil.example"] {
            assert_eq!(both(&format!("{host}:{port}")), (403, 403), "{listen}: {host}");
        }
        assert_eq!(both("localhost:1"), (403, 403), "another port");
        for host in ours {
            assert_eq!(both(&format!("{host}:{port}")), (200, 201), "{listen}: {host}");
        }
    }
}

#[test]
fn case_20_an_empty_organisation_is_refused() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let mut client = server.client();
    for header in ["x-demo-org:", "x-demo-org:   ", &format!("x-demo-org: {}", "o".repeat(256))] {
        for target in [KEYS, &key.path()] {
            let reply = client.ask("GET", target, &[header]);
            assert_eq!((reply.status, &reply.json()["code"]), (401, &json!("unauthenticated")));
        }
        assert_eq!(client.ask_json("POST", KEYS, &[header], new_key("x")).status, 401, "{header}");
    }
    client.send(b"GET /settings/api/keys HTTP/1.1\r\nHost: h\r\nx-demo-org: caf\xc3\xa9\r\n\r\n");
    assert_eq!(client.reply().status, 401);
    for (org, keys) in [("demo", 1), ("other", 0), ("*", 0), ("Demo", 0)] {
        let list = client.ask("GET", KEYS, &[&format!("x-demo-org: {org}")]).json();
        assert_eq!(list["keys"].as_array().map(Vec::len), Some(keys), "{org}");
    }
}
