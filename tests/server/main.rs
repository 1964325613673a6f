//! The example server, run as a program and tested over raw HTTP/1.1.
#![cfg(all(feature = "admin", unix))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod addresses;
mod bodies;
mod credentials;
mod ends;
mod hosts;
mod leaks;
mod metrics;
#[cfg(feature = "sqlite")]
mod operate;
mod routes;
mod settings;
#[path = "../support/mod.rs"]
mod support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use support::{Client, Reply, example_server, poll};

const KEYS: &str = "/settings/api/keys";
const AUDIT_STRICT: (&str, &str) = ("KEYGATE_AUDIT", "strict");

/// A server process, killed when dropped.
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
        let mut server = Self::spawn(folder, env);
        server.address = poll("the server prints its address", || {
            let ended = server.child.try_wait().unwrap();
            let output = server.output();
            assert_eq!(ended, None, "it ended: {output}");
            let line = output.lines().find_map(|line| line.strip_prefix("settings: http://"))?;
            Some(line.split('/').next().unwrap().parse().unwrap())
        });
        server
    }

    fn spawn<V: AsRef<OsStr>>(folder: &Path, env: &[(&str, V)]) -> Self {
        let mut command = example_server();
        command.env("KEYGATE_STORE", "memory:").current_dir(folder);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::<Mutex<String>>::default();
        let readers = vec![
            copy_lines(child.stdout.take().unwrap(), &output),
            copy_lines(child.stderr.take().unwrap(), &output),
        ];
        Self { child, address: SocketAddr::from(([0; 4], 0)), output, readers }
    }

    fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Sends a request without a key.
    fn get(&self, target: &str) -> Reply {
        self.client().ask("GET", target, &[])
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
        (status, self.output())
    }

    /// Stops the server with SIGTERM. Returns all output.
    fn stop(self) -> String {
        self.signal("-TERM");
        let (status, output) = self.ended();
        assert!(status.success(), "{status}: {output}");
        output
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

/// A body that creates a key.
fn new_key(name: &str) -> Value {
    json!({ "name": name, "expiration": "never" })
}

/// A key, and the server that it is sent to.
struct Key {
    server: SocketAddr,
    id: String,
    secret: String,
}

impl Key {
    fn create(server: &Server, body: &Value) -> Self {
        Self::issued(server, &server.client().ask_json("POST", KEYS, &[], body))
    }

    fn named(server: &Server, name: &str) -> Self {
        Self::create(server, &new_key(name))
    }

    /// The key in the answer to a creation or a rotation.
    fn issued(server: &Server, reply: &Reply) -> Self {
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
        let body = reply.json();
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        Self { server: server.address, id: text(&body["key"]["id"]), secret: text(&body["secret"]) }
    }

    /// A credential that the server's API has not issued.
    fn foreign(server: &Server, secret: &str) -> Self {
        Self { server: server.address, id: String::new(), secret: secret.to_owned() }
    }

    fn client(&self) -> Client {
        Client::connect(self.server)
    }

    fn path(&self) -> String {
        format!("{KEYS}/{}", self.id)
    }

    /// The key as the API shows it.
    fn shown(&self) -> Value {
        self.client().ask("GET", &self.path(), &[]).json()
    }

    fn patch(&self, body: Value) -> Reply {
        self.client().ask_json("PATCH", &self.path(), &[], body)
    }

    fn rotate(&self, body: Value) -> Reply {
        self.client().ask_json("POST", &format!("{}/rotate", self.path()), &[], body)
    }

    fn delete(&self, confirm: &str) -> Reply {
        let target = format!("{}?confirm_name={confirm}", self.path());
        self.client().ask("DELETE", &target, &[])
    }

    fn authorization(&self) -> String {
        format!("Authorization: Bearer {}", self.secret)
    }

    /// Sends a request with the key.
    fn ask(&self, method: &str, target: &str, headers: &[&str]) -> Reply {
        let authorization = self.authorization();
        let headers = [&[&*authorization], headers].concat();
        self.client().ask(method, target, &headers)
    }

    fn status(&self) -> u16 {
        self.ask("GET", "/v1/whoami", &[]).status
    }

    /// Sends a request of HTTP/1.1 with the key, and leaves the answer unread.
    fn send(&self, client: &mut Client, target: &str) {
        let line = self.authorization();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n"));
    }

    /// Its audit records, newest first.
    fn records(&self) -> Vec<Value> {
        let reply = self.client().ask("GET", &format!("{}/audit?limit=200", self.path()), &[]);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["records"].as_array().expect("records").clone()
    }

    /// Waits until there are this many records; they follow shortly after the answers.
    fn await_records(&self, count: usize) -> Vec<Value> {
        poll(&format!("{count} records"), || {
            Some(self.records()).filter(|records| records.len() >= count)
        })
    }

    /// Waits until a request with the key is admitted.
    fn await_use(&self) {
        poll("a last-used time", || self.shown()["last_used_at"].as_str().map(|_| ()));
    }
}

/// Asserts that a text has the form of a key: the prefix and 48 letters and digits.
fn assert_key(text: &str, prefix: &str) {
    let rest = text.strip_prefix(prefix).expect("the prefix");
    assert!(rest.len() == 48 && rest.bytes().all(|b| b.is_ascii_alphanumeric()));
}

fn is_time(value: &Value) -> bool {
    let is_time = |text: &str| text.ends_with('Z') && text.parse::<keygate::Timestamp>().is_ok();
    value.as_str().is_some_and(is_time)
}
