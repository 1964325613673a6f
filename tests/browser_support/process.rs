//! The programs of a browser test, each ended when dropped.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use keygate::runtime::Clock;
use keygate::{Actor, KeyManager, OrgId, SqliteStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::PATIENCE;
use crate::support::{Client, Reply, example_server};

/// A child that is killed when dropped.
#[derive(Debug)]
struct Process(Child);

impl Process {
    /// Starts it and returns the text after `mark` in the first line that contains it, or all
    /// output if the process ends without such a line.
    fn start(command: &mut Command, mark: &str) -> Result<(Self, String), String> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Self(child.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
        let output = process.0.stdout.take().unwrap();
        let (sender, says) = mpsc::channel();
        // Read all output, so that the process never blocks on a full pipe.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        let deadline = Instant::now() + PATIENCE;
        let mut printed = String::new();
        loop {
            match says.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.split_once(mark) {
                    Some((_, rest)) => return Ok((process, rest.to_owned())),
                    None => printed = printed + &line + "\n",
                },
                Err(RecvTimeoutError::Disconnected) => return Err(printed),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{command:?} does not print its address: {printed}")
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example server, on its own SQLite file.
#[derive(Debug)]
pub(crate) struct Server {
    // Declared before the folder, so that it ends first.
    _process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Server {
    pub(super) fn start(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = example_server();
        command.current_dir(folder.path()).envs(variables.iter().copied());
        let started = Process::start(&mut command, "settings: http://");
        let (process, rest) =
            started.unwrap_or_else(|output| panic!("{command:?} has ended: {output}"));
        let address = rest.split('/').next().unwrap().parse().unwrap();
        Self { _process: process, address, folder }
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The settings page.
    pub(crate) fn page(&self) -> String {
        self.origin() + "/settings"
    }

    /// Sends a request to the server, bypassing the browser.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// The server's database file.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("keygate.db")
    }

    /// A manager on the server's file, with another clock.
    pub(crate) fn library(&self, clock: impl Clock) -> KeyManager {
        let store = SqliteStore::open(self.file()).unwrap();
        let builder = KeyManager::builder(store.clone()).audit(store);
        builder.clock(clock).build().unwrap()
    }

    /// All keys, as the API lists them.
    pub(crate) fn keys(&self) -> Vec<Value> {
        let reply = self.client().ask("GET", "/settings/api/keys", &[]);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["keys"].as_array().expect("keys").clone()
    }

    /// The only key with that name, as the API lists it.
    pub(crate) fn key(&self, name: &str) -> Value {
        let named: Vec<_> = self.keys().into_iter().filter(|key| key["name"] == name).collect();
        assert_eq!(named.len(), 1, "keys named {name}");
        named[0].clone()
    }

    /// Creates a key through the API. Returns its secret.
    pub(crate) fn create(&self, name: &str) -> String {
        let body = json!({ "name": name, "expiration": "never" });
        let reply = self.client().ask_json("POST", "/settings/api/keys", &[], body);
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()["secret"].as_str().expect("a secret").to_owned()
    }

    /// The answer of the API to a request with the key.
    pub(crate) fn whoami(&self, secret: &str) -> u16 {
        self.call(secret, "/v1/whoami")
    }

    /// The status of the answer to a `GET` with the key.
    pub(crate) fn call(&self, secret: &str, target: &str) -> u16 {
        let authorization = format!("Authorization: Bearer {secret}");
        self.client().ask("GET", target, &[&authorization]).status
    }
}

/// Serves a router of the test until the test ends. Returns its origin.
pub(crate) async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    origin
}

/// A stand-in for a host's login.
pub(crate) async fn login(mut request: Request, next: Next) -> Response {
    let org = OrgId::new("demo").unwrap();
    request.extensions_mut().insert(Actor::new(org, "a person"));
    next.run(request).await
}

/// chromedriver, for one browser.
#[derive(Debug)]
pub(super) struct Driver {
    _process: Process,
    address: SocketAddr,
    profile: TempDir,
}

impl Driver {
    pub(super) fn start() -> Self {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0");
        // It takes a free port of IPv6, and ends if the same port of IPv4 is in use.
        let (process, rest) = (0..10)
            .find_map(|_| match Process::start(&mut command, "started successfully on port ") {
                Err(output) if output.contains("port not available") => None,
                started => Some(started.unwrap_or_else(|output| panic!("chromedriver: {output}"))),
            })
            .expect("a free port for chromedriver");
        let port = rest.trim_end_matches('.').parse().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { _process: process, address, profile: tempfile::tempdir().unwrap() }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder of the browser's profile.
    pub(super) fn profile(&self) -> String {
        self.profile.path().display().to_string()
    }
}

/// The driver's session. Its browser ends with it.
#[derive(Debug)]
pub(super) struct Session {
    driver: Driver,
    path: String,
}

impl Session {
    pub(super) fn new(driver: Driver, id: &str) -> Self {
        Self { driver, path: format!("/session/{id}") }
    }

    /// A command that is not part of WebDriver.
    pub(super) fn post(&self, command: &str, body: Value) -> Value {
        let target = format!("{}/{command}", self.path);
        let reply = self.ask("POST", &target, &body.to_string()).unwrap();
        assert_eq!(reply.status, 200, "{command}: {}", reply.text());
        reply.json()["value"].clone()
    }

    fn ask(&self, method: &str, target: &str, body: &str) -> io::Result<Reply> {
        let mut client = Client::connect(self.driver.address);
        let (host, length) = (self.driver.address, body.len());
        // The driver accepts no other host name.
        client.send(format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        client.try_reply(false)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Quits the browser. An answer means that it has ended.
        let _ = self.ask("DELETE", &self.path, "");
    }
}
