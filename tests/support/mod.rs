//! Helpers of the integration tests: a store and a sink that can fail, a clock, captured logs,
//! and a raw HTTP client.
#![allow(dead_code, unused_imports, reason = "each test crate uses its part")]

mod http;
mod logs;
mod sink;
mod store;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use getrandom::SysRng;
use keygate::runtime::{Clock, ManualClock};
use keygate::{KeyFormat, OrgId, Timestamp};

pub(crate) use self::http::{Client, Reply};
pub(crate) use self::logs::{assert_no_leak, capture_logs, log_lines, logs};
pub(crate) use self::sink::{Sink, SpySink};
pub(crate) use self::store::{Call, Find, Gate, SpyStore};

/// How long a test waits for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Fails if the work hangs.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("an end in time")
}

/// The result of a poll: a condition, or a value.
pub(crate) trait Answer {
    type Value;
    fn value(self) -> Option<Self::Value>;
}

impl Answer for bool {
    type Value = ();

    fn value(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Value = T;

    fn value(self) -> Option<T> {
        self
    }
}

/// Polls until there is an answer. The test fails if there is none in time.
pub(crate) async fn eventually<A: Answer>(what: &str, mut ask: impl AsyncFnMut() -> A) -> A::Value {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await.value() {
            return answer;
        }
        assert!(Instant::now() < give_up, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// [`eventually`] without an async runtime.
pub(crate) fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < give_up, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A clock that the test sets.
#[derive(Clone, Debug)]
pub(crate) struct TestClock(Arc<ManualClock>);

impl TestClock {
    pub(crate) fn at(rfc3339: &str) -> Self {
        Self(Arc::new(ManualClock::new(rfc3339.parse::<Timestamp>().unwrap())))
    }

    pub(crate) fn set(&self, now: Timestamp) {
        self.0.set(now);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

pub(crate) fn org(id: &str) -> OrgId {
    OrgId::new(id).unwrap()
}

/// A key of the default format that is in no store.
pub(crate) fn unknown_key() -> String {
    KeyFormat::default().generate(&mut SysRng).unwrap().expose_secret().to_owned()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0, |word, byte| word << 8 | usize::from(*byte));
        let word = word << (8 * (3 - three.len()));
        for digit in 0..4 {
            let shown = digit <= three.len();
            text.push(if shown { DIGITS[word >> (18 - 6 * digit) & 63].into() } else { '=' });
        }
    }
    text
}

/// The example server.
pub(crate) fn example_server() -> Command {
    let mut command = example("server");
    command.env("KEYGATE_ADDR", "127.0.0.1:0");
    command
}

/// An example, built with the tests: `cargo test` does that, but not with `--test`.
pub(crate) fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(name);
    assert!(program.exists(), "run `cargo build --example {name} --all-features` first");
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    command
}
