//! Helpers of the integration tests: a store and a sink that can fail, a clock, captured logs,
//! and a raw HTTP client.
#![allow(dead_code, reason = "each test crate uses its part")]

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use getrandom::SysRng;
use keygate::audit::{AuditPage, AuditQuery, AuditRecord};
use keygate::runtime::{BoxFuture, Clock, ManualClock};
use keygate::store::{KeyDigest, KeyImport, KeyUse, OrgLimit, Revision};
use keygate::{
    ApiKey, AuditError, AuditLog, AuditSink, KeyFormat, KeyId, KeyStore, MemoryAuditLog,
    MemoryStore, OrgId, StoreError, Timestamp,
};
use tokio::sync::Notify;

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

/// Holds a look-up until the test opens it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) reached: Notify,
    pub(crate) opened: Notify,
}

/// What a look-up by digest does.
#[derive(Clone, Debug, Default)]
pub(crate) enum Find {
    #[default]
    Honest,
    Fails,
    Corrupt,
    Hangs,
    Slow(Duration),
    /// Finds this key for every digest.
    Always(Arc<ApiKey>),
    HeldBefore(Arc<Gate>),
    HeldAfter(Arc<Gate>),
}

/// A method of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Insert,
    Find,
    Get,
    List,
    Replace,
    Delete,
    Uses,
}

type Hook = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync>;

/// A `MemoryStore` that records its calls. A test can delay each call or make it fail, before
/// and after the store does its part, and can break the look-ups by digest.
#[derive(Default)]
pub(crate) struct SpyStore {
    pub(crate) inner: MemoryStore,
    calls: Mutex<Vec<Call>>,
    /// The digests passed to `replace`.
    pub(crate) offered: Mutex<Vec<KeyDigest>>,
    /// The uses passed to `record_uses`, call by call.
    pub(crate) uses: Mutex<Vec<Vec<KeyUse>>>,
    before: Mutex<Option<Hook>>,
    after: Mutex<Option<Hook>>,
    find: Mutex<Find>,
}

impl fmt::Debug for SpyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpyStore")
    }
}

fn hook<F>(hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Option<Hook>
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    Some(Arc::new(move |call| Box::pin(hook(call))))
}

async fn pass(hook: &Mutex<Option<Hook>>, call: Call) -> Result<(), StoreError> {
    let hook = hook.lock().unwrap().clone();
    match hook {
        Some(hook) => hook(call).await,
        None => Ok(()),
    }
}

impl SpyStore {
    pub(crate) fn before<F>(&self, each: impl Fn(Call) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        *self.before.lock().unwrap() = hook(each);
    }

    pub(crate) fn after<F>(&self, each: impl Fn(Call) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        *self.after.lock().unwrap() = hook(each);
    }

    pub(crate) fn find(&self, find: Find) {
        *self.find.lock().unwrap() = find;
    }

    pub(crate) fn heal(&self) {
        *self.before.lock().unwrap() = None;
        *self.after.lock().unwrap() = None;
        self.find(Find::Honest);
    }

    /// The number of calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// The calls since the last `take_calls`, without those of the background task.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.retain(|call| *call != Call::Uses);
        calls
    }

    pub(crate) async fn snapshot(&self, org: &OrgId) -> Vec<ApiKey> {
        let keys = self.inner.list(org).await.unwrap();
        keys.iter().map(|key| ApiKey::clone(key)).collect()
    }

    async fn around<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.calls.lock().unwrap().push(call);
        pass(&self.before, call).await?;
        let done = work.await;
        pass(&self.after, call).await?;
        done
    }

    async fn look_up(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let find = self.find.lock().unwrap().clone();
        match find {
            Find::Honest => {}
            Find::Fails => return Err(StoreError::unavailable("connection refused")),
            Find::Corrupt => return Err(StoreError::corrupt("a row that is not a key")),
            Find::Hangs => std::future::pending().await,
            Find::Slow(time) => tokio::time::sleep(time).await,
            Find::Always(key) => return Ok(Some(key)),
            Find::HeldBefore(gate) => {
                gate.reached.notify_one();
                gate.opened.notified().await;
            }
            Find::HeldAfter(gate) => {
                let found = self.inner.find_by_digest(digest).await;
                gate.reached.notify_one();
                gate.opened.notified().await;
                return found;
            }
        }
        self.inner.find_by_digest(digest).await
    }
}

#[async_trait]
impl KeyStore for SpyStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.around(Call::Insert, self.inner.insert(key, limit)).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.around(Call::Find, self.look_up(digest)).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.around(Call::Get, self.inner.get(org, id)).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.around(Call::List, self.inner.list(org)).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.offered.lock().unwrap().push(key.digest);
        self.around(Call::Replace, self.inner.replace(key, expected)).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.around(Call::Delete, self.inner.delete(org, id, expected)).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.uses.lock().unwrap().push(uses.to_vec());
        self.around(Call::Uses, self.inner.record_uses(uses)).await
    }
}

#[async_trait]
impl KeyImport for SpyStore {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        self.around(Call::Insert, self.inner.insert_all(keys)).await
    }
}

/// What the sink does with a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Sink {
    #[default]
    Works,
    Fails,
    Rejects,
    Hangs,
    Panics,
    /// Panics only for a batch with a request to that path.
    PanicsAt(&'static str),
    Slow(Duration),
}

/// A `MemoryAuditLog` whose writes can be made to fail.
#[derive(Debug, Default)]
pub(crate) struct SpySink {
    log: MemoryAuditLog,
    batches: AtomicUsize,
    sink: Mutex<Sink>,
}

impl SpySink {
    pub(crate) fn sink(&self, sink: Sink) {
        *self.sink.lock().unwrap() = sink;
    }

    /// The number of batches passed to it, written or not.
    pub(crate) fn batches(&self) -> usize {
        self.batches.load(Ordering::SeqCst)
    }

    /// The number of records it holds.
    pub(crate) fn len(&self) -> usize {
        self.log.len()
    }
}

#[async_trait]
impl AuditSink for SpySink {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        let sink = *self.sink.lock().unwrap();
        match sink {
            Sink::Works => {}
            Sink::Fails => return Err(AuditError::unavailable("disk full")),
            Sink::Rejects => return Err(AuditError::rejected("no such column")),
            Sink::Hangs => std::future::pending().await,
            Sink::Panics => panic!("the sink is broken"),
            Sink::PanicsAt(path) if format!("{batch:?}").contains(path) => panic!("poisoned"),
            Sink::PanicsAt(_) => {}
            Sink::Slow(time) => tokio::time::sleep(time).await,
        }
        self.log.record(batch).await
    }
}

#[async_trait]
impl AuditLog for SpySink {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        self.log.page(query).await
    }

    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        self.log.purge_before(instant).await
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

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct LogOfThisThread;

impl Write for LogOfThisThread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts to capture log lines, down to `TRACE`. A test sees the lines of its own thread.
/// `#[tokio::test]` runs a test on one thread, so these are all.
pub(crate) fn capture_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
            .with_writer(|| LogOfThisThread)
            .init();
    });
    LOG.with_borrow_mut(Vec::clear);
}

/// The lines that this thread has logged since [`capture_logs`].
pub(crate) fn logs() -> String {
    LOG.with_borrow(|log| String::from_utf8_lossy(log).into_owned())
}

/// The number of lines of this thread that contain all of these texts.
pub(crate) fn log_lines(parts: &[&str]) -> usize {
    logs().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

/// Asserts that a text contains no part of a key's secret.
pub(crate) fn assert_no_leak(place: &str, text: &str, key: &str) {
    const SHOWN: usize = 12; // of a key with the default prefix, for recognition
    const PART: usize = 10;
    for part in key.as_bytes()[SHOWN..].windows(PART) {
        let part = std::str::from_utf8(part).unwrap();
        if let Some(at) = text.find(part) {
            let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let line = text[start..].lines().next().unwrap_or_default();
            panic!("{place}: part of the key leaked: {line}");
        }
    }
}

/// The example server, built with the tests: `cargo test` does that, but not with `--test`.
pub(crate) fn example_server() -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join("server");
    assert!(program.exists(), "run `cargo build --example server --all-features` first");
    let mut command = Command::new(program);
    command.env_clear().env("KEYGATE_ADDR", "127.0.0.1:0").stdin(Stdio::null());
    command
}

/// An HTTP/1.1 client that sends any bytes. Like other clients, it reconnects after an answer
/// that closes the connection.
pub(crate) struct Client {
    to: SocketAddr,
    stream: TcpStream,
    unread: Vec<u8>,
    is_closed: bool,
}

/// An answer as it was received.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The header lines, unchanged.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { to, stream, unread: Vec::new(), is_closed: false }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if self.is_closed {
            *self = Self::connect(self.to);
        }
        // A server that has already refused may have closed the connection; its answer tells.
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends a request without a body and reads the answer.
    pub(crate) fn ask(&mut self, method: &str, target: &str, headers: &[&str]) -> Reply {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let host = self.to;
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"));
        self.try_reply(method == "HEAD").unwrap()
    }

    /// Sends a JSON request and reads the answer.
    pub(crate) fn ask_json(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: impl std::fmt::Display,
    ) -> Reply {
        let (host, body) = (self.to, body.to_string());
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        self.send(format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{lines}\r\n{body}",
            body.len()
        ));
        self.try_reply(false).unwrap()
    }

    /// Sends the head of a request, and the body only after the answer has arrived.
    pub(crate) fn ask_with_late_body(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &[u8],
    ) -> Reply {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        let host = self.to;
        self.send(format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {length}\r\n\r\n"
        ));
        let reply = self.try_reply(method == "HEAD").unwrap();
        let _ = self.stream.write_all(body);
        reply
    }

    pub(crate) fn reply(&mut self) -> Reply {
        self.try_reply(false).unwrap()
    }

    /// Reads one answer. Returns an error if the server closes without one.
    pub(crate) fn try_reply(&mut self, to_head: bool) -> io::Result<Reply> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            self.read_more()?;
        };
        let head = String::from_utf8(self.unread.drain(..end + 4).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap();
        let status = u16::from_str(status).unwrap();
        let headers: Vec<String> = lines.map(str::to_owned).collect();
        let mut reply = Reply { status, headers, body: Vec::new() };
        assert_eq!(reply.header("transfer-encoding"), None, "this client does not read chunks");
        let empty = to_head || matches!(status, 100..=199 | 204 | 304);
        let length = reply.header("content-length").filter(|_| !empty);
        let length = length.map_or(0, |length| length.parse().unwrap());
        while self.unread.len() < length {
            self.read_more()?;
        }
        reply.body = self.unread.drain(..length).collect();
        self.is_closed = reply.closes();
        Ok(reply)
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16_384];
        match self.stream.read(&mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.unread.extend_from_slice(&bytes[..read]);
                Ok(())
            }
        }
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Whether the answer closes its connection.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The parts that must be equal in answers that cannot be distinguished.
    pub(crate) fn but_date(&self) -> (u16, Vec<&str>, &[u8]) {
        let is_date = |line: &&str| line.to_ascii_lowercase().starts_with("date:");
        let headers = self.headers.iter().map(String::as_str).filter(|line| !is_date(line));
        (self.status, headers.collect(), &self.body)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The whole answer as text, to search for leaks.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}", self.headers.join("\n"), String::from_utf8_lossy(&self.body))
    }
}
