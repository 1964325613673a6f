//! This test program as a separate process.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(crate) fn this_program() -> Command {
    Command::new(env::current_exe().unwrap())
}

/// Another process, killed when dropped.
pub(crate) struct Peer {
    process: Child,
    orders: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts a process that runs the ignored test with that name. The command is
    /// [`this_program`], or runs it.
    pub(crate) fn start(mut program: Command, child: &str, variables: &[(&str, &OsStr)]) -> Self {
        let mut process = program
            .args(["--ignored", "--exact", "--nocapture", child])
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, orders, lines }
    }

    pub(crate) fn order(&mut self, line: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line that is not from the test harness.
    pub(crate) fn says(&mut self) -> String {
        loop {
            let line = self.lines.next().expect("the other process has ended").unwrap();
            if let Some(message) = line.strip_prefix('@') {
                return message.to_owned();
            }
        }
    }

    pub(crate) fn end(mut self) {
        self.orders = None;
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
