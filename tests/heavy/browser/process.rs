//! chromedriver and its session, ended when dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Client, PATIENCE};

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
        let end = mark.to_owned();
        // Read all output, so that the process never blocks on a full pipe.
        std::thread::spawn(move || {
            let mut printed = String::new();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once(&end) {
                    let _ = sender.send(Ok(rest.to_owned()));
                }
                printed = printed + &line + "\n";
            }
            let _ = sender.send(Err(printed));
        });
        let said = says.recv_timeout(PATIENCE);
        let said = said.unwrap_or_else(|_| panic!("{command:?} does not print {mark:?}"));
        said.map(|rest| (process, rest))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// chromedriver, for one browser.
#[derive(Debug)]
pub(crate) struct Driver {
    _process: Process,
    address: SocketAddr,
    profile: TempDir,
}

impl Driver {
    pub(crate) fn start() -> Self {
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

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder of the browser's profile.
    pub(crate) fn profile(&self) -> String {
        self.profile.path().display().to_string()
    }
}

/// The driver's session. Its browser ends with it.
#[derive(Debug)]
pub(crate) struct Session {
    driver: Driver,
    path: String,
}

impl Session {
    pub(crate) fn new(driver: Driver, id: &str) -> Self {
        Self { driver, path: format!("/session/{id}") }
    }

    /// A command that is not part of WebDriver.
    pub(crate) fn post(&self, command: &str, body: Value) -> Value {
        let target = format!("{}/{command}", self.path);
        let reply = Client::connect(self.driver.address).ask_json("POST", &target, &[], body);
        assert_eq!(reply.status, 200, "{command}: {}", reply.text());
        reply.json()["value"].clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Quits the browser. An answer means that it has ended.
        let (address, path) = (self.driver.address, &self.path);
        let mut client = Client::connect(address);
        client.send(format!("DELETE {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"));
        let _ = client.try_reply(false);
    }
}
