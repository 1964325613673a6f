//! A server in a process of its own, for benches that drive it from outside.

use std::env;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

/// Killed when dropped.
pub(crate) struct Server {
    process: Child,
    /// Its lines before the one with a URL.
    pub(crate) said: Vec<String>,
    pub(crate) address: SocketAddr,
    last_line: Option<JoinHandle<String>>,
}

impl Server {
    /// Starts it; its first line with a URL says where it listens.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        let address = lines.find_map(|line| {
            let line = line.unwrap();
            let address = line.split("http://").nth(1).and_then(|url| url.split('/').next());
            let address = address.map(|address| address.parse().unwrap());
            if address.is_none() {
                said.push(line);
            }
            address
        });
        // Read on, so that it never writes into a closed pipe.
        let rest = || lines.map_while(Result::ok).last().unwrap_or_default();
        let address = address.expect("a server that listens");
        Self { process, said, address, last_line: Some(thread::spawn(rest)) }
    }

    /// The example server on keys in that SQLite file, built as this bench is.
    pub(crate) fn example(file: &Path) -> Command {
        // target/release/deps/…
        let program = env::current_exe().unwrap();
        let release = program.ancestors().nth(2).unwrap();
        let mut build = Command::new(env!("CARGO"));
        // What cargo says of this bench would make build scripts run again, such as ring's.
        for (name, _) in env::vars() {
            if name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_") {
                build.env_remove(name);
            }
        }
        // Not quiet: with other features than the bench's, it takes minutes.
        build.args(["build", "--release", "--all-features", "-p", "keygate-examples"]);
        build.args(["--example", "server"]);
        build.arg("--target-dir").arg(release.parent().unwrap());
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        let mut command = Command::new(release.join("examples/server"));
        let store = format!("sqlite:{}", file.display());
        command.env("KEYGATE_ADDR", "127.0.0.1:0").env("KEYGATE_STORE", store);
        command
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as a supervisor does; its last line.
    pub(crate) fn stop(mut self) -> String {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
        self.last_line.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
