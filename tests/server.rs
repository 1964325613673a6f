//! The example server, run as a program and tested over raw HTTP/1.1.
#![cfg(all(feature = "admin", unix))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Client, Reply, assert_no_leak, example_server, poll, unknown_key};

const KEYS: &str = "/settings/api/keys";
const AUDIT_STRICT: (&str, &str) = ("KEYGATE_AUDIT", "strict");

fn command(env: &[(&str, &OsStr)]) -> Command {
    let mut command = example_server();
    command.env("KEYGATE_STORE", "memory:").envs(env.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running server, killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(env: &[(&str, &str)]) -> Self {
        Self::start_in(&std::env::current_dir().unwrap(), env)
    }

    /// Starts the server in that working directory.
    fn start_in(folder: &Path, env: &[(&str, &str)]) -> Self {
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, OsStr::new(value))).collect();
        let mut child = command(&env).current_dir(folder).spawn().unwrap();
        let output = Arc::<Mutex<String>>::default();
        let readers = vec![
            copy_lines(child.stdout.take().unwrap(), &output),
            copy_lines(child.stderr.take().unwrap(), &output),
        ];
        let address = SocketAddr::from(([0; 4], 0));
        let mut server = Self { child, address, output, readers };
        server.address = poll("the server prints its address", || {
            let output = server.output.lock().unwrap().clone();
            assert_eq!(server.child.try_wait().unwrap(), None, "it ended: {output}");
            let line = output.lines().find_map(|line| line.strip_prefix("settings: http://"))?;
            Some(line.split('/').next().unwrap().parse().unwrap())
        });
        server
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Waits for the end. Returns the exit status and all output.
    fn ended(mut self) -> (ExitStatus, String) {
        let status = poll("the server ends", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let output = self.output.lock().unwrap().clone();
        (status, output)
    }

    fn stop(self) -> (ExitStatus, String) {
        self.signal("-TERM");
        self.ended()
    }

    /// The peak resident memory of the process, in KiB.
    #[cfg(target_os = "linux")]
    fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy_lines(from: impl Read + Send + 'static, to: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let line = line.unwrap_or_else(|error| format!("unreadable: {error}"));
            to.lock().unwrap().push_str(&(line + "\n"));
        }
    })
}

/// A key created by the server's own management API.
struct Key {
    id: String,
    secret: String,
}

impl Key {
    fn create(server: &Server, body: &Value) -> Self {
        let reply = server.client().ask_json("POST", KEYS, &[], body);
        assert_eq!(reply.status, 201, "{}", reply.text());
        Self::issued(&reply)
    }

    fn named(server: &Server, name: &str) -> Self {
        Self::create(server, &json!({ "name": name, "expiration": "never" }))
    }

    fn issued(reply: &Reply) -> Self {
        let body = reply.json();
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        Self { id: text(&body["key"]["id"]), secret: text(&body["secret"]) }
    }

    fn path(&self) -> String {
        format!("{KEYS}/{}", self.id)
    }

    fn patch(&self, server: &Server, body: &Value) -> Reply {
        server.client().ask_json("PATCH", &self.path(), &[], body)
    }

    fn authorization(&self) -> String {
        format!("Authorization: Bearer {}", self.secret)
    }

    /// Sends a request with the key.
    fn ask(&self, server: &Server, method: &str, target: &str, headers: &[&str]) -> Reply {
        let authorization = self.authorization();
        let headers = [&[authorization.as_str()], headers].concat();
        server.client().ask(method, target, &headers)
    }

    fn status(&self, server: &Server) -> u16 {
        self.ask(server, "GET", "/v1/whoami", &[]).status
    }

    /// Its audit records, newest first.
    fn records(&self, server: &Server) -> Vec<Value> {
        let target = format!("{}/audit?limit=200", self.path());
        let reply = server.client().ask("GET", &target, &[]);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["records"].as_array().expect("records").clone()
    }

    /// Waits until there are this many records; they follow shortly after the answers.
    fn await_records(&self, server: &Server, count: usize) -> Vec<Value> {
        poll(&format!("{count} records"), || {
            Some(self.records(server)).filter(|records| records.len() >= count)
        })
    }

    /// Waits until a request with the key is admitted.
    fn await_use(&self, server: &Server) {
        poll("a last-used time", || {
            let key = server.client().ask("GET", &self.path(), &[]).json();
            (!key["last_used_at"].is_null()).then_some(())
        });
    }
}

/// Whether a text has the form of a key: the prefix and 48 letters and digits.
fn is_key(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == 48 && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn is_time(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|time| time.ends_with('Z') && time.parse::<keygate::Timestamp>().is_ok())
}

// -------------------------------------------------------------------- keys

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
        let new = json!({ "name": "x", "expiration": "never" }).to_string();
        for host in [foreign, "evil.example"] {
            let host = format!("{host}:{port}");
            assert_eq!(
                (status(&host, "GET", ""), status(&host, "POST", &new)),
                (403, 403),
                "{host}"
            );
        }
        assert_eq!(status("localhost:1", "GET", ""), 403, "another port");
        for host in ours {
            let host = format!("{host}:{port}");
            assert_eq!(
                (status(&host, "GET", ""), status(&host, "POST", &new)),
                (200, 201),
                "{host}"
            );
        }
    }
}

#[test]
fn a_key_works_from_creation_to_deletion() {
    let server = Server::start(&[]);
    let mut client = server.client();

    let new = json!({ "name": "CI deploy", "expiration": "1_month" });
    let created = client.ask_json("POST", KEYS, &[], &new);
    assert_eq!(created.status, 201, "{}", created.text());
    let key = Key::issued(&created);
    assert!(is_key(&key.secret, "vsp_sk_"), "the shape of a secret");
    assert_eq!(created.header("location"), Some(&*key.path()));
    let view = created.json()["key"].clone();
    assert_eq!(view["name"], "CI deploy");
    assert_eq!(view["key_prefix"], key.secret[..12]);
    assert_eq!((&view["status"], &view["expired"]), (&json!("active"), &json!(false)));
    assert!(is_time(&view["created_at"]) && is_time(&view["expires_at"]), "{view}");
    assert_eq!((&view["last_used_at"], &view["rotated_at"]), (&Value::Null, &Value::Null));
    assert_eq!((&view["ip_allowlist"], &view["revision"]), (&json!([]), &json!(1)));

    let whoami = key.ask(&server, "GET", "/v1/whoami", &[]);
    assert_eq!(whoami.status, 200);
    let expected = json!({ "org": "demo", "key_id": key.id, "key_name": "CI deploy" });
    assert_eq!(whoami.json(), expected);

    let revoked = key.patch(&server, &json!({ "status": "revoked" }));
    assert_eq!((revoked.status, &revoked.json()["status"]), (200, &json!("revoked")));
    assert_eq!(key.status(&server), 401);
    let enabled = key.patch(&server, &json!({ "status": "active", "name": "CI" }));
    assert_eq!((enabled.status, &enabled.json()["name"]), (200, &json!("CI")));
    assert_eq!(key.ask(&server, "GET", "/v1/whoami", &[]).json()["key_name"], "CI");

    let rotate = format!("{}/rotate", key.path());
    let wrong = client.ask_json("POST", &rotate, &[], json!({ "confirm_name": "CI deploy" }));
    assert_eq!((wrong.status, &wrong.json()["code"]), (422, &json!("confirmation_mismatch")));
    let rotated = client.ask_json("POST", &rotate, &[], json!({ "confirm_name": "CI" }));
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    let new_key = Key::issued(&rotated);
    assert!(is_key(&new_key.secret, "vsp_sk_") && new_key.secret != key.secret);
    assert_eq!(new_key.id, key.id);
    assert_eq!(rotated.json()["key"]["expires_at"], view["expires_at"]);
    assert_eq!((key.status(&server), new_key.status(&server)), (401, 200));

    // Every request with a known secret is in the log. The old secret is unknown now.
    let records = new_key.await_records(&server, 4);
    assert_eq!(records.len(), 4, "{records:?}");
    for (record, (status, outcome)) in
        records.iter().zip([(200, "allowed"), (200, "allowed"), (401, "revoked"), (200, "allowed")])
    {
        assert!(is_time(&record["timestamp"]), "{record}");
        let mut rest = record.clone();
        rest["timestamp"] = Value::Null;
        let expected = json!({
            "timestamp": null, "method": "GET", "endpoint": "/v1/whoami", "ip": "127.0.0.1",
            "country": null, "status": status, "outcome": outcome, "count": 1, "secret": "current",
        });
        assert_eq!(rest, expected);
    }

    let target = new_key.path();
    let wrong = client.ask("DELETE", &format!("{target}?confirm_name=ci"), &[]);
    assert_eq!((wrong.status, new_key.status(&server)), (422, 200));
    let deleted = client.ask("DELETE", &format!("{target}?confirm_name=CI"), &[]);
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    assert_eq!(new_key.status(&server), 401);
    assert_eq!(client.ask("GET", &target, &[]).status, 404);
    assert_eq!(client.ask("GET", KEYS, &[]).json()["keys"], json!([]));
}

#[test]
fn the_demo_routes_work_as_described() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        let reply = key.ask(&server, method, "/v1/status/418?x=1", &[]);
        assert_eq!(reply.status, 418, "{method}");
    }
    let records = key.await_records(&server, 8);
    for (record, method) in records.iter().rev().zip(["GET", "HEAD", "POST", "PUT"]) {
        assert_eq!((&record["method"], &record["status"]), (&json!(method), &json!(418)));
        assert_eq!(record["endpoint"], "/v1/status/418");
    }
    for (code, status) in [(200, 200), (204, 204), (304, 304), (503, 503), (101, 400), (99, 400)] {
        let reply = key.ask(&server, "GET", &format!("/v1/status/{code}"), &[]);
        assert_eq!(reply.status, status, "{code}");
    }
    let started = Instant::now();
    let reply = key.ask(&server, "GET", "/v1/slow/50", &[]);
    assert_eq!(reply.status, 200);
    assert!(started.elapsed() >= Duration::from_millis(50));
    assert_eq!(server.client().ask("GET", "/healthz", &[]).status, 200);
    for target in ["/v1/whoami", "/v1/status/200", "/v1/slow/0", "/v1/scoped/any"] {
        let reply = server.client().ask("GET", target, &[]);
        assert_eq!(reply.status, 401, "{target}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"api\""), "{target}");
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn healthz_reports_the_failing_part() {
    let folder = tempfile::TempDir::new().unwrap();
    let server =
        Server::start_in(folder.path(), &[("KEYGATE_STORE", "sqlite:keygate.db"), AUDIT_STRICT]);
    let health = || {
        let reply = server.client().ask("GET", "/healthz", &[]);
        (reply.status, reply.json())
    };
    let all_works = json!({"lookups": true, "changes": true, "audit_log": true});
    assert_eq!(health(), (200, all_works.clone()));

    // Another process has an open write transaction.
    let key = Key::named(&server, "key");
    let other = rusqlite::Connection::open(folder.path().join("keygate.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(key.status(&server), 503, "its record cannot be written");
    let (status, body) = health();
    assert_eq!((status, &body["lookups"], &body["audit_log"]), (200, &json!(true), &json!(false)));
    other.execute_batch("ROLLBACK").unwrap();
    poll("it recovers", || (key.status(&server) == 200).then_some(()));
    poll("all works", || (health() == (200, all_works.clone())).then_some(()));

    other.execute_batch("ALTER TABLE keys RENAME TO no_keys").unwrap();
    let (status, body) = health();
    assert_eq!((status, &body["lookups"]), (503, &json!(false)));
    let (_, output) = server.stop();
    assert!(output.contains("a part does not work"), "{output}");
}

#[test]
fn a_refusal_leaves_the_connection_usable() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let mut client = server.client();
    let good = key.authorization();
    for _ in 0..3 {
        let reply = client.ask("GET", "/v1/whoami", &[]);
        assert_eq!(reply.status, 401);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        let length = reply.header("content-length").map(|length| length.parse::<usize>().unwrap());
        assert_eq!(length, Some(reply.body.len()));
        assert_eq!(reply.json()["status"], 401);
        let head = client.ask("HEAD", "/v1/whoami", &["Authorization: Bearer x"]);
        assert_eq!((head.status, head.body.len()), (401, 0));
        assert_eq!(client.ask("GET", "/v1/whoami", &[&good]).status, 200);
    }
}

#[test]
fn an_answer_before_the_body_is_read_fails_no_later_request() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let good = key.authorization();
    let bad = "Authorization: Bearer x";
    let json = "Content-Type: application/json";
    let show = key.path();
    for (method, target, headers, status) in [
        ("POST", "/v1/whoami", &[][..], 401),
        ("POST", "/v1/whoami", &[bad], 401),
        ("POST", "/v1/whoami", &["Authorization: Bearer a b"], 400),
        ("PUT", "/v1/unknown", &[bad], 401),
        ("PUT", "/v1/unknown", &[&good], 404),
        ("DELETE", "/v1/whoami", &[&good], 405),
        ("POST", "/v1/status/200", &[&good], 200),
        ("GET", "/v1/slow/0", &[&good], 200),
        ("POST", "/healthz", &[], 405),
        ("POST", "/nothing", &[], 404),
        ("POST", "/settings", &[json], 405),
        ("POST", "/settings/nothing", &[json], 404),
        ("POST", KEYS, &["X-Demo-Org:"], 401),
        ("POST", KEYS, &[json, "Sec-Fetch-Site: cross-site"], 403),
        ("POST", KEYS, &["Content-Type: text/plain"], 415),
        ("POST", &format!("{KEYS}?x=1"), &[json], 422),
        ("PUT", KEYS, &[json], 405),
        ("GET", KEYS, &[json], 200),
        ("POST", "/settings/api/nothing", &[json], 404),
        ("PATCH", &format!("{KEYS}/nothing"), &[json], 404),
        ("DELETE", &format!("{show}?confirm_name=other"), &["Content-Type: text/plain"], 415),
        ("DELETE", &format!("{show}?confirm_name=other"), &[json], 422),
    ] {
        let case = format!("{method} {target} {headers:?}");
        for body in [&b"0123456789"[..], &[b'x'; 60_000]] {
            let mut client = server.client();
            for _ in 0..3 {
                let reply = client.ask_with_late_body(method, target, headers, body);
                assert_eq!(reply.status, status, "{case}");
                let next = client.ask("GET", "/healthz", &[]);
                assert_eq!(next.status, 200, "{case}");
            }
        }
    }
    // A body that is declared too long is refused unread.
    let long = [b' '; 100_000];
    let mut client = server.client();
    let reply = client.ask_with_late_body("POST", KEYS, &[json], &long);
    assert_eq!(reply.status, 413);
    assert_eq!(client.ask("GET", "/healthz", &[]).status, 200);
}

#[test]
fn a_read_or_missing_body_leaves_the_connection_open() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let mut client = server.client();
    for (body, status) in [
        (json!({ "name": "another", "expiration": "never" }), 201),
        (json!({ "name": "", "expiration": "never" }), 422),
        (json!({ "name": "x".repeat(60_000), "expiration": "never" }), 422),
    ] {
        let reply = client.ask_json("POST", KEYS, &[], body);
        assert_eq!((reply.status, reply.closes()), (status, false), "{}", reply.text());
    }
    for headers in [&["Content-Length: 0"][..], &[], &["Content-Length: 0", &key.authorization()]] {
        let reply = client.ask("POST", "/v1/whoami", headers);
        assert!(!reply.closes(), "{headers:?}");
    }
}

// ------------------------------------------------------------------ credentials

#[test]
fn case_02_03_04_the_header_is_parsed_from_the_raw_request() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let (good, secret) = (key.authorization(), &key.secret);
    let mut client = server.client();
    for line in [
        format!("authorization: bearer {secret}"),
        format!("AUTHORIZATION:BEARER    {secret}"),
        format!("Authorization: \t Bearer {secret} \t "),
    ] {
        assert_eq!(client.ask("GET", "/v1/whoami", &[&line]).status, 200, "{line}");
    }
    for lines in [
        [good.as_str(), good.as_str()],
        [&good, "Authorization: Basic dTpw"],
        ["authorization: Basic dTpw", &good],
        [&good, "Authorization:"],
    ] {
        let reply = client.ask("GET", "/v1/whoami", &lines);
        let challenge = "Bearer realm=\"api\", error=\"invalid_request\"";
        assert_eq!((reply.status, reply.header("www-authenticate")), (400, Some(challenge)));
    }
    let joined = format!("{good}, Bearer {secret}");
    assert_eq!(client.ask("GET", "/v1/whoami", &[&joined]).status, 400);
    let query = format!("/v1/whoami?api_key={secret}&access_token={secret}");
    assert_eq!(client.ask("GET", &query, &[]).status, 401);
}

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
    };
    flood(8);
    #[cfg(target_os = "linux")]
    let before = server.peak_memory();
    flood(192);
    #[cfg(target_os = "linux")]
    {
        let grown = server.peak_memory() - before;
        assert!(grown < 4_096, "192 requests of 64 KiB left {grown} KiB behind");
    }
    // More than the server reads at all: refused, or the connection is closed.
    let mut client = server.client();
    client.send(request(&[b"Authorization: Bearer ", &[b'a'; 1 << 20][..]].concat()));
    if let Ok(reply) = client.try_reply(false) {
        assert!((400..500).contains(&reply.status), "{}", reply.status);
    }
    assert_eq!(key.status(&server), 200, "the server is running");
    assert_eq!(key.await_records(&server, 1).len(), 1, "no other request is recorded for the key");
}

#[test]
fn case_07_bad_keys_cannot_be_distinguished_on_the_wire() {
    for audit in ["buffered", "strict"] {
        let server = Server::start(&[("KEYGATE_AUDIT", audit)]);
        let revoked = Key::named(&server, "revoked");
        revoked.patch(&server, &json!({ "status": "revoked" }));
        let deleted = Key::named(&server, "deleted");
        let target = format!("{}?confirm_name=deleted", deleted.path());
        assert_eq!(server.client().ask("DELETE", &target, &[]).status, 204);
        let rotated = Key::named(&server, "rotated");
        let confirm = json!({ "confirm_name": "rotated" });
        let target = format!("{}/rotate", rotated.path());
        assert_eq!(server.client().ask_json("POST", &target, &[], confirm).status, 200);

        let mut client = server.client();
        let mut ask = |method: &str, secret: &str| {
            client.ask(method, "/v1/whoami", &[&format!("Authorization: Bearer {secret}")])
        };
        for method in ["GET", "HEAD", "POST"] {
            let unknown = ask(method, &unknown_key());
            assert_eq!(unknown.status, 401);
            let challenge = "Bearer realm=\"api\", error=\"invalid_token\"";
            assert_eq!(unknown.header("www-authenticate"), Some(challenge));
            let malformed = [
                revoked.secret[1..].to_owned(),
                format!("{}0", revoked.secret),
                revoked.secret.to_uppercase(),
                "x".to_owned(),
                revoked.id.clone(),
            ];
            for secret in
                [&revoked.secret, &deleted.secret, &rotated.secret].into_iter().chain(&malformed)
            {
                assert_eq!(ask(method, secret).but_date(), unknown.but_date(), "{audit} {method}");
            }
        }
    }
}

#[test]
fn case_12_forwarding_headers_are_ignored_without_trusted_proxies() {
    let server = Server::start(&[]);
    let new = json!({ "name": "k", "expiration": "never", "ip_allowlist": ["203.0.113.0/24"] });
    let key = Key::create(&server, &new);
    for header in ["X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9"] {
        assert_eq!(key.ask(&server, "GET", "/v1/whoami", &[header]).status, 403, "{header}");
    }
    key.patch(&server, &json!({ "ip_allowlist": ["127.0.0.0/8"] }));
    let reply = key.ask(&server, "GET", "/v1/whoami", &["X-Forwarded-For: 203.0.113.9"]);
    assert_eq!(reply.status, 200);
    let records = key.await_records(&server, 3);
    assert!(records.iter().all(|record| record["ip"] == "127.0.0.1"), "{records:?}");
    assert_eq!(records[2]["outcome"], "ip_not_allowed");
    assert_eq!(records[2]["status"], 403);
}

#[test]
fn case_11_13_14_behind_a_trusted_proxy_its_header_decides() {
    let server =
        Server::start(&[("KEYGATE_TRUSTED_PROXIES", " 127.0.0.1 , 10.0.0.0/8,"), AUDIT_STRICT]);
    let allowed = ["203.0.113.0/24", "2001:db8::/32"];
    let new = json!({ "name": "k", "expiration": "never", "ip_allowlist": allowed });
    let key = Key::create(&server, &new);
    for (headers, status, ip) in [
        (&["X-Forwarded-For: 203.0.113.9"][..], 200, json!("203.0.113.9")),
        (&["x-forwarded-for: 6.6.6.6, 203.0.113.9:4711, 10.1.2.3"], 200, json!("203.0.113.9")),
        (
            &["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: [2001:db8::1]:443"],
            200,
            json!("2001:db8::1"),
        ),
        (&["X-Forwarded-For: 203.0.113.9, 198.51.100.1"], 403, json!("198.51.100.1")),
        (&["X-Forwarded-For: 203.0.113.9, unknown"], 403, Value::Null),
        (&["X-Forwarded-For: 10.0.0.5"], 403, Value::Null),
        (&["Forwarded: for=203.0.113.9"], 403, Value::Null),
        (&["X-Real-Ip: 203.0.113.9"], 403, Value::Null),
        (&[], 403, Value::Null),
    ] {
        assert_eq!(key.ask(&server, "GET", "/v1/whoami", headers).status, status, "{headers:?}");
        let record = key.records(&server)[0].clone();
        assert_eq!((&record["ip"], &record["status"]), (&ip, &json!(status)), "{headers:?}");
    }
}

#[test]
fn case_52_the_header_that_proxies_write_can_be_chosen() {
    type Row<'a> = (&'a [&'a str], u16, Value);
    let found = |header: &str, rows: &[Row<'_>]| {
        let proxies = ("KEYGATE_TRUSTED_PROXIES", "127.0.0.1");
        let server = Server::start(&[proxies, ("KEYGATE_PROXY_HEADER", header), AUDIT_STRICT]);
        let new = json!({ "name": "k", "expiration": "never", "ip_allowlist": ["203.0.113.0/24"] });
        let key = Key::create(&server, &new);
        for (headers, status, ip) in rows {
            let reply = key.ask(&server, "GET", "/v1/whoami", headers);
            assert_eq!(reply.status, *status, "{headers:?}");
            assert_eq!(key.records(&server)[0]["ip"], *ip, "{headers:?}");
        }
    };
    let client = || json!("203.0.113.9");
    found(
        "Forwarded",
        &[
            (&["Forwarded: for=\"6.6.6.6", "Forwarded: for=203.0.113.9"], 200, client()),
            (&["Forwarded: for=\"6.6.6.6, for=203.0.113.9"], 200, client()),
            (&["Forwarded: \u{e9}\"", "Forwarded: x", "Forwarded: for=203.0.113.9"], 200, client()),
            (&["Forwarded: for=203.0.113.9", "Forwarded: for=\""], 403, Value::Null),
            (&["X-Forwarded-For: 203.0.113.9"], 403, Value::Null),
        ],
    );
    found(
        "CF-Connecting-IP",
        &[
            (&["cf-connecting-ip: 203.0.113.9", "X-Forwarded-For: 6.6.6.6"], 200, client()),
            (&["CF-Connecting-IP: 203.0.113.9", "CF-Connecting-IP: 203.0.113.9"], 403, Value::Null),
            (&["CF-Connecting-IP: 203.0.113.9, 203.0.113.9"], 403, Value::Null),
            (&["X-Forwarded-For: 203.0.113.9"], 403, Value::Null),
            (&[], 403, Value::Null),
        ],
    );
}

#[test]
fn case_20_an_empty_organisation_is_refused() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let mut client = server.client();
    for header in ["x-demo-org:", "x-demo-org:   ", &format!("x-demo-org: {}", "o".repeat(256))] {
        for target in [KEYS.to_owned(), key.path(), format!("{}/audit", key.path())] {
            let reply = client.ask("GET", &target, &[header]);
            assert_eq!((reply.status, &reply.json()["code"]), (401, &json!("unauthenticated")));
        }
        let new = json!({ "name": "x", "expiration": "never" });
        assert_eq!(client.ask_json("POST", KEYS, &[header], new).status, 401, "{header}");
    }
    client.send(b"GET /settings/api/keys HTTP/1.1\r\nHost: h\r\nx-demo-org: caf\xc3\xa9\r\n\r\n");
    assert_eq!(client.reply().status, 401);
    // No organisation is a wildcard, and none sees keys of another.
    for other in ["x-demo-org: other", "x-demo-org: *", "x-demo-org: %", "x-demo-org: Demo"] {
        assert_eq!(client.ask("GET", KEYS, &[other]).json()["keys"], json!([]), "{other}");
        assert_eq!(client.ask("GET", &key.path(), &[other]).status, 404, "{other}");
    }
    let list = client.ask("GET", KEYS, &["x-demo-org: demo"]).json();
    assert_eq!(list["keys"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["limits"], json!({ "max_keys": 20, "max_ips_per_key": 50 }));
}

// ---------------------------------------------------------------------- faults

#[test]
fn case_36_a_client_that_disconnects_leaves_an_aborted_record() {
    for audit in ["buffered", "strict"] {
        let server = Server::start(&[("KEYGATE_AUDIT", audit)]);
        let key = Key::named(&server, "key");
        let mut client = server.client();
        let line = key.authorization();
        client.send(format!("GET /v1/slow/600000?x=1 HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n"));
        key.await_use(&server);
        assert_eq!(key.records(&server), Vec::<Value>::new(), "the request is still under way");
        drop(client);
        let record = key.await_records(&server, 1)[0].clone();
        assert_eq!(record["outcome"], "aborted", "{record}");
        assert_eq!(record["status"], Value::Null, "{record}");
        assert_eq!(record["endpoint"], "/v1/slow/600000", "{record}");
        assert_eq!(key.status(&server), 200);
    }
}

const COMPLETE: &str =
    "stopped; ShutdownReport { unfinished_changes: 0, unwritten_records: 0, unwritten_uses: 0 }";

#[test]
fn case_37_at_sigterm_the_queue_is_drained_and_the_log_says_so() {
    for signal in ["-TERM", "-INT"] {
        let server = Server::start(&[]);
        let key = Key::named(&server, "key");
        let mut client = server.client();
        let line = key.authorization();
        let one = format!("GET /v1/status/204 HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n");
        client.send(one.repeat(300));
        for _ in 0..300 {
            assert_eq!(client.reply().status, 204);
        }
        server.signal(signal);
        drop(client);
        let (status, output) = server.ended();
        assert!(status.success(), "{status}: {output}");
        assert!(output.lines().any(|line| line == COMPLETE), "{output}");
    }
}

/// A copy of the file is a backup after the service has stopped, as the guide says.
#[test]
fn after_sigterm_the_file_alone_holds_every_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keygate.db");
    for number in 0..3 {
        let store = format!("sqlite:{}", path.display());
        let server = Server::start(&[("KEYGATE_STORE", &store)]);
        Key::named(&server, &format!("key {number}"));
        assert!(server.stop().0.success());
        assert!(!path.with_extension("db-wal").exists(), "a write-ahead log is left");
    }
}

#[test]
fn case_37_at_sigterm_requests_under_way_are_answered_and_no_others() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let mut client = server.client();
    let line = key.authorization();
    client.send(format!("GET /v1/slow/1500 HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n"));
    key.await_use(&server);
    server.signal("-TERM");
    poll("new connections are refused", || TcpStream::connect(server.address).err());
    let reply = client.reply();
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(String::from_utf8_lossy(&reply.body).contains("1500"));
    let (status, output) = server.ended();
    assert!(status.success(), "{status}: {output}");
    assert!(output.lines().any(|line| line == COMPLETE), "{output}");
}

// ----------------------------------------------------------------------- leaks

#[test]
fn case_39_a_canary_key_appears_only_where_it_was_issued() {
    let server = Server::start(&[("RUST_LOG", "trace")]);
    let key = Key::named(&server, "canary");
    let (secret, good) = (key.secret.as_str(), key.authorization());
    let path = key.path();
    let mut client = server.client();
    let mut replies = Vec::new();
    let mut note = |reply: Reply| replies.push(reply.text());

    // As a credential, valid or malformed.
    for target in ["/v1/whoami", "/v1/status/418", "/healthz", "/settings", KEYS, "/nothing"] {
        for line in [
            good.clone(),
            format!("{good}!"),
            format!("{good}, Bearer {secret}"),
            format!("Authorization: Basic {secret}"),
            format!("Authorization: {secret}"),
            format!("X-Api-Key: {secret}"),
            format!("Cookie: session={secret}"),
            format!("Referer: http://h/?{secret}"),
            format!("X-Forwarded-For: {secret}"),
            format!("User-Agent: {secret}"),
        ] {
            note(client.ask("GET", target, &[&line]));
            note(client.ask("GET", target, &[&line, &good]));
        }
    }
    for target in [
        format!("/v1/whoami?api_key={secret}"),
        format!("/v1/{secret}"),
        format!("/v1/{secret}?{secret}={secret}"),
        format!("/{secret}"),
        format!("/settings/{secret}"),
        format!("{KEYS}/{secret}"),
        format!("{KEYS}/{secret}/audit"),
        format!("{path}/{secret}"),
        format!("{path}?{secret}=1"),
        format!("{path}/audit?limit={secret}"),
        format!("{path}/audit?before={secret}"),
        format!("{path}/audit?{secret}=1"),
    ] {
        note(client.ask("GET", &target, &[]));
        note(client.ask("GET", &target, &[&good]));
    }
    // As any other text.
    note(client.ask("GET", KEYS, &[&format!("x-demo-org: {secret}")]));
    note(client.ask("DELETE", &format!("{path}?confirm_name={secret}"), &[]));
    note(client.ask("DELETE", &format!("{KEYS}/{secret}?confirm_name=canary"), &[]));
    for body in [
        json!({ "name": "x", "expiration": secret }),
        json!({ "name": [secret], "expiration": "never" }),
        json!({ "name": format!("{secret}{secret}"), "expiration": "never" }),
        json!({ "name": format!("{secret}\u{202e}"), "expiration": "never" }),
        json!({ "name": "x", "expiration": "never", "ip_allowlist": [secret] }),
        json!({ "name": "x", "expiration": "never", "ip_allowlist": [format!("10.0.0.1/{secret}")] }),
        json!({ "name": "x", "expiration": "never", "ip_allowlist": secret }),
        json!({ "name": "x", "expiration": "never", secret: 1 }),
        json!({ "confirm_name": secret }),
        json!({ "status": secret }),
        json!(secret),
        json!([secret]),
    ] {
        note(client.ask_json("POST", KEYS, &[], &body));
        note(client.ask_json("PATCH", &path, &[], &body));
        note(client.ask_json("POST", &format!("{path}/rotate"), &[], &body));
    }
    note(client.ask_json("POST", KEYS, &[], secret));
    note(client.ask_json("POST", KEYS, &[], format!("{{\"name\":\"{secret}\",\"name\":\"x\"}}")));
    note(client.ask_json("POST", KEYS, &[], format!("{{\"{secret}\":1,\"{secret}\":2}}")));
    let new = json!({ "name": "x", "expiration": "never" });
    for header in [
        format!("If-Match: \"{secret}\""),
        format!("Sec-Fetch-Site: {secret}"),
        format!("Origin: http://{secret}"),
        format!("Origin: {secret}"),
    ] {
        note(client.ask_json("PATCH", &path, &[&header], &new));
    }
    for (line, length) in [(format!("Content-Type: {secret}"), "2"), (String::new(), secret)] {
        let line = if line.is_empty() { "X: y" } else { &line };
        let mut client = server.client();
        client.send(format!(
            "POST {KEYS} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n{line}\r\n\r\n{{}}"
        ));
        note(client.reply());
    }
    for request in [
        format!("GET {secret} HTTP/1.1\r\nHost: h\r\n\r\n"),
        format!("GET / {secret}\r\nHost: h\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: h\r\n{secret}\r\n\r\n"),
        format!("GET http://{secret}/v1/whoami HTTP/1.1\r\nHost: h\r\n{good}\r\n\r\n"),
    ] {
        let mut client = server.client();
        client.send(request);
        note(client.reply());
    }

    // An answer to HEAD has no body that could contain the path.
    note(client.ask("HEAD", &format!("/v1/status/{secret}"), &[&good]));
    poll("the path of the last request, redacted", || {
        let records = key.records(&server);
        records.iter().any(|record| record["endpoint"] == "/v1/status/[REDACTED]").then_some(())
    });
    note(client.ask_json("PATCH", &path, &[], json!({ "status": "revoked" })));
    note(client.ask("GET", "/v1/whoami", &[&good]));
    for target in [path.clone(), format!("{path}/audit?limit=200"), KEYS.to_owned()] {
        note(client.ask("GET", &target, &[]));
    }
    for reply in &replies {
        assert_no_leak("answer", reply, secret);
    }
    let (status, output) = server.stop();
    assert!(status.success() && output.contains("refused"), "{output}");
    assert_no_leak("log", &output, secret);
}

#[test]
fn case_39_a_key_as_the_name_of_a_key_is_in_no_log() {
    let server = Server::start(&[("RUST_LOG", "trace")]);
    let canary = unknown_key();
    let key = Key::named(&server, "key");
    let named = json!({ "name": canary, "expiration": "never" });
    let created = server.client().ask_json("POST", KEYS, &[], named);
    let renamed = key.patch(&server, &json!({ "name": canary }));
    for reply in [created, renamed] {
        assert_eq!(reply.status, 422);
        assert_no_leak("answer", &reply.text(), &canary);
    }
    let (_, output) = server.stop();
    assert_no_leak("log", &output, &canary);
}

#[test]
fn case_39_a_key_in_a_numeric_field_is_not_repeated() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    for route in ["status", "slow"] {
        let reply = key.ask(&server, "GET", &format!("/v1/{route}/{}", key.secret), &[]);
        assert_eq!(reply.status, 400);
        assert_no_leak("answer", &reply.text(), &key.secret);
    }
}

#[test]
fn case_40_answers_with_a_secret_are_not_stored_and_do_not_redirect() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let new = json!({ "name": "key", "expiration": "never" });
    let created = client.ask_json("POST", KEYS, &[], new);
    let key = Key::issued(&created);
    let confirm = json!({ "confirm_name": "key" });
    let rotated = client.ask_json("POST", &format!("{}/rotate", key.path()), &[], confirm);
    for (reply, status) in [(&created, 201), (&rotated, 200)] {
        assert_eq!(reply.status, status);
        let cache = reply.header("cache-control").expect("a rule for caches");
        assert!(cache.split(',').any(|rule| rule.trim() == "no-store"), "{cache}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        for header in ["refresh", "etag"] {
            let value = reply.header(header).unwrap_or_default();
            assert_no_leak(header, value, reply.json()["secret"].as_str().unwrap());
        }
    }
    assert_eq!(rotated.header("location"), None);
}

#[test]
fn case_41_a_hostile_path_stays_inert() {
    let server = Server::start(&[("RUST_LOG", "trace"), AUDIT_STRICT]);
    let key = Key::named(&server, "key");
    for path in [
        "/v1/status/%0d%0a%20INFO%20forged",
        "/v1/status/%3Cimg%20src=x%20onerror=alert(1)%3E",
        "/v1/status/%00%1b%5b31m%e2%80%ae",
        "/v1/status/..%2f..%2fsettings",
        "/v1/slow/%ff",
    ] {
        let reply = key.ask(&server, "GET", &format!("{path}?q=%0d%0aforged"), &[]);
        assert_eq!(reply.status, 400, "{path}");
        let kind = reply.header("content-type").unwrap_or_default();
        let inert = kind.starts_with("text/plain") || kind.ends_with("json");
        assert!(inert || reply.body.is_empty(), "{path}: {kind}");
        assert_eq!(key.records(&server)[0]["endpoint"], path, "the path is recorded unchanged");
    }
    // Sent raw, they are not a valid path.
    let line = key.authorization();
    let before = key.records(&server).len();
    for target in ["/v1/<img onerror=x>", "/v1/a\r\nX-Forged: 1", "/v1/a\0", "/v1/a\x1b[31m"] {
        let mut client = server.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n"));
        assert_eq!(client.reply().status, 400, "{target:?}");
    }
    assert_eq!(key.records(&server).len(), before);
    let (_, output) = server.stop();
    assert!(!output.contains("forged") && !output.contains('\u{1b}'), "{output}");
}

// -------------------------------------------------------------------- settings

#[test]
fn strict_records_are_written_before_the_answer() {
    let server = Server::start(&[AUDIT_STRICT]);
    let key = Key::named(&server, "key");
    for count in 1..=20 {
        assert_eq!(key.ask(&server, "GET", "/v1/status/200", &[]).status, 200);
        assert_eq!(key.records(&server).len(), count);
    }
}

#[test]
fn buffered_records_and_uses_arrive() {
    let server = Server::start(&[("KEYGATE_AUDIT", "buffered")]);
    let key = Key::named(&server, "key");
    assert_eq!(key.status(&server), 200);
    key.await_records(&server, 1);
    key.await_use(&server);
}

#[test]
fn a_route_needs_the_scope_that_its_path_names() {
    let scopes = "reports:read=Read reports, reports:write=Change reports";
    let server = Server::start(&[("KEYGATE_SCOPES", scopes), AUDIT_STRICT]);
    let list = server.client().ask("GET", KEYS, &[]).json();
    assert_eq!(
        list["scopes"][1],
        json!({"name": "reports:write", "description": "Change reports"})
    );
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
        let reply = key.ask(&server, "GET", &format!("/v1/scoped/{scope}"), &[]);
        assert_eq!(reply.status, status, "{scope}");
        let record = key.records(&server).remove(0);
        if status == 200 {
            assert_eq!(reply.json(), key.ask(&server, "GET", "/v1/whoami", &[]).json());
            assert_eq!(record["outcome"], "allowed");
        } else {
            let challenge =
                format!("Bearer realm=\"api\", error=\"insufficient_scope\", scope=\"{scope}\"");
            assert_eq!(reply.header("www-authenticate"), Some(&*challenge));
            assert_eq!(reply.json()["code"], "insufficient_scope");
            assert_eq!(
                (&record["outcome"], &record["status"]),
                (&json!("insufficient_scope"), &json!(403))
            );
        }
    }
    let edit = reader.patch(&server, &json!({ "scopes": ["reports:write"] }));
    assert_eq!(edit.status, 200, "{}", edit.text());
    assert_eq!(reader.ask(&server, "GET", "/v1/scoped/reports:read", &[]).status, 403);
    let without =
        server.client().ask_json("POST", KEYS, &[], json!({ "name": "x", "expiration": "never" }));
    assert_eq!((without.status, &without.json()["errors"][0]["field"]), (422, &json!("scopes")));
}

#[test]
fn without_scopes_every_key_has_full_access_and_nothing_is_said_of_them() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    assert_eq!(key.ask(&server, "GET", "/v1/scoped/reports:read", &[]).status, 200);
    let list = server.client().ask("GET", KEYS, &[]);
    assert!(!list.text().contains("scope"), "{}", list.text());
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
        let key = Key { secret: text.to_owned(), id: String::new() };
        assert_eq!(key.status(&server), 200);
        let listed = server.client().ask("GET", KEYS, &[]).json();
        assert_eq!(listed["keys"].as_array().unwrap().len(), 1, "{listed}");
        assert_eq!(listed["keys"][0]["name"], "old, but good");
        assert_eq!(listed["keys"][0]["scopes"], "all");
        server.signal("-TERM");
        let (status, output) = server.ended();
        assert!(status.success() && output.contains(report), "{output}");
        for line in [
            "line 3: digest",
            "line 4: ",
            "line 5: sha256_hex",
            "line 7: 3 fields",
            "line 8: sha256_hex",
        ] {
            assert!(output.contains(line), "{line}: {output}");
        }
        assert!(!output.contains(text) && !output.contains(&digest), "{output}");
    }
}

#[test]
fn keys_begin_with_the_prefix_that_is_set() {
    let server = Server::start(&[("KEYGATE_KEY_PREFIX", "acme_live_")]);
    let key = Key::named(&server, "key");
    assert!(is_key(&key.secret, "acme_live_"));
    assert_eq!(key.status(&server), 200);
    let shown = server.client().ask("GET", &key.path(), &[]).json()["key_prefix"].clone();
    assert_eq!(shown, key.secret[.."acme_live_".len() + 5]);
    let other = Key { secret: unknown_key(), id: String::new() };
    assert_eq!(other.status(&server), 401);
}

#[test]
fn a_start_with_another_prefix_says_that_there_are_keys_of_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let start = |prefix| {
        let env = [("KEYGATE_STORE", "sqlite:keys.db"), ("KEYGATE_KEY_PREFIX", prefix)];
        Server::start_in(folder.path(), &env)
    };
    let warning = "a prefix that is not configured";
    let server = start("old_");
    Key::named(&server, "key");
    assert!(!server.stop().1.contains(warning));
    assert!(start("new_").stop().1.contains(warning));
}

#[test]
fn a_key_is_taken_from_the_header_that_is_set() {
    let server = Server::start(&[("KEYGATE_KEY_HEADER", "x-api-key")]);
    let key = Key::named(&server, "key");
    let in_header = format!("x-api-key: {}", key.secret);
    let ask = |headers: &[&str]| server.client().ask("GET", "/v1/whoami", headers);
    assert_eq!(ask(&[&in_header]).status, 200);
    assert_eq!(key.status(&server), 200);
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
    assert!(is_key(&live.secret, "vsp_sk_"));
    let body = json!({ "name": "test", "expiration": "never", "environment": "test" });
    let test = Key::create(&server, &body);
    assert!(is_key(&test.secret, "vsp_sk_test_"));
    assert_eq!((live.status(&server), test.status(&server)), (200, 200));
    let list = server.client().ask("GET", "/settings/api/keys", &[]).json();
    assert_eq!(list["environments"][1], json!({ "name": "test", "prefix": "vsp_sk_test_" }));
    assert_eq!(list["keys"][1]["environment"], "test");
    assert_eq!(list["limits"]["max_keys"], 2);
}

#[test]
fn case_59_old_secrets_work_for_the_overlap_that_is_set() {
    for (settings, max) in [(&[][..], 0), (&[("KEYGATE_ROTATION_OVERLAP", "3600")][..], 3_600)] {
        let server = Server::start(settings);
        let key = Key::named(&server, "key");
        let list = server.client().ask("GET", "/settings/api/keys", &[]).json();
        assert_eq!(list["max_overlap_seconds"], max);
        let rotate = |overlap: u64| {
            let body = json!({ "confirm_name": "key", "overlap_seconds": overlap }).to_string();
            let path = format!("{}/rotate", key.path());
            server.client().ask_json("POST", &path, &[], body).status
        };
        assert_eq!((rotate(max + 1), key.status(&server)), (422, 200));
        assert_eq!(rotate(max), 200);
        assert_eq!(key.status(&server), if max > 0 { 200 } else { 401 });
    }
}

/// Starts a server that is to refuse its settings, and says what it complains of.
fn startup_error(name: &str, value: &OsStr) -> String {
    let mut child = command(&[(name, value)]).spawn().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let output = Arc::<Mutex<String>>::default();
    let readers = [copy_lines(stdout, &output), copy_lines(stderr, &output)];
    let give_up = Instant::now() + support::PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if output.lock().unwrap().contains("settings: http://") || Instant::now() > give_up {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name}={value:?}: the server started");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    for reader in readers {
        reader.join().unwrap();
    }
    assert!(!status.success(), "{name}={value:?}: {status}");
    let output = output.lock().unwrap().clone();
    assert!(!output.contains("panicked"), "{name}={value:?}: {output}");
    output
}

#[test]
fn a_wrong_setting_keeps_the_server_from_starting_and_is_named() {
    for (name, values) in [
        ("KEYGATE_ADDR", &["nonsense", "127.0.0.1:99999", "127.0.0.1"][..]),
        ("KEYGATE_STORE", &["mysql://localhost/x", "memory", "keygate.db", ":"]),
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
            let message = startup_error(name, OsStr::new(value));
            assert!(message.contains(name), "{name}={value}: {message}");
        }
    }
}

#[test]
fn a_taken_address_keeps_the_server_from_starting_and_is_named() {
    let server = Server::start(&[]);
    let message = startup_error("KEYGATE_ADDR", OsStr::new(&server.address.to_string()));
    assert!(message.contains("KEYGATE_ADDR"), "{message}");
}

#[test]
fn a_setting_that_is_not_utf8_is_an_error() {
    for name in [
        "KEYGATE_ADDR",
        "KEYGATE_STORE",
        "KEYGATE_AUDIT",
        "KEYGATE_TRUSTED_PROXIES",
        "KEYGATE_PROXY_HEADER",
        "KEYGATE_GEOIP",
        "KEYGATE_KEY_PREFIX",
        "KEYGATE_SCOPES",
        "KEYGATE_ROTATION_OVERLAP",
    ] {
        let message = startup_error(name, &OsString::from_vec(b"strict\xff".to_vec()));
        assert!(message.contains(name), "{name}: {message}");
    }
}

// --------------------------------------------------------------------- restarts

#[test]
fn keys_audit_log_and_last_use_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    // The default: `keygate.db` in the working directory.
    let settings = [("KEYGATE_STORE", "")];
    let server = Server::start_in(folder.path(), &settings);
    let key = Key::named(&server, "lasting");
    let revoked = Key::named(&server, "revoked");
    assert_eq!(revoked.patch(&server, &json!({ "status": "revoked" })).status, 200);
    assert_eq!((key.status(&server), revoked.status(&server)), (200, 401));
    assert_eq!(key.ask(&server, "GET", "/v1/status/418", &[]).status, 418);
    // No waiting for the queues: stopping drains them.
    let (status, output) = server.stop();
    assert!(status.success(), "{output}");
    assert!(output.contains("store: sqlite:keygate.db"), "{output}");
    assert!(folder.path().join("keygate.db").exists());

    let file = format!("sqlite:{}", folder.path().join("keygate.db").display());
    for settings in [settings, [("KEYGATE_STORE", &*file)]] {
        let server = Server::start_in(folder.path(), &settings);
        let shown = server.client().ask("GET", &key.path(), &[]).json();
        assert_eq!((&shown["name"], &shown["revision"]), (&json!("lasting"), &json!(1)));
        assert!(is_time(&shown["last_used_at"]), "{shown}");
        let records = key.records(&server);
        let statuses: Vec<_> = records.iter().rev().map(|record| &record["status"]).collect();
        assert_eq!(statuses[..2], [&json!(200), &json!(418)], "{records:?}");
        assert_eq!(revoked.records(&server)[0]["outcome"], "revoked");
        // As before the restart, the key works and the revoked one does not.
        assert_eq!((key.status(&server), revoked.status(&server)), (200, 401));
        assert_eq!(
            server.client().ask("GET", KEYS, &[]).json()["keys"].as_array().unwrap().len(),
            2
        );
        let (status, output) = server.stop();
        assert!(status.success(), "{output}");
        assert_no_leak("the output", &output, &key.secret);
        let file = std::fs::read(folder.path().join("keygate.db")).unwrap();
        assert_no_leak("the file", &String::from_utf8_lossy(&file), &key.secret);
    }
}

#[test]
fn a_killed_server_loses_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("KEYGATE_STORE", ""), AUDIT_STRICT];
    let server = Server::start_in(folder.path(), &settings);
    let key = Key::named(&server, "lasting");
    assert_eq!(key.status(&server), 200);
    server.signal("-KILL");
    assert!(!server.ended().0.success());
    let server = Server::start_in(folder.path(), &settings);
    assert_eq!(key.records(&server).len(), 1, "a strict record is durable");
    assert_eq!(key.status(&server), 200);
}

#[test]
fn a_foreign_file_keeps_the_server_from_starting_and_is_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "somebody's notes").unwrap();
    let message = startup_error("KEYGATE_STORE", OsStr::new(&format!("sqlite:{}", path.display())));
    assert!(message.contains("KEYGATE_STORE") && message.contains("notes.txt"), "{message}");
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's notes");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
