//! Audit records and last-used times on their way to the sink and the store: what arrives, when, and what is said about the rest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "tokio")]

use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, pending};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keygate::*;
use proptest::prelude::*;
use tokio::sync::watch;

// ---- the parts that the tests are made of ----

const SOON: Duration = Duration::from_secs(10);

/// Far longer than anything here takes, and far shorter than what hangs.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("in time")
}

/// Waits until the condition holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Polls once: what is ready now has waited for nothing.
fn poll_once<T>(work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match work.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn org() -> OrgId {
    OrgId::new("acme").unwrap()
}

fn ada() -> Actor {
    Actor::new(org(), "ada")
}

fn new_key() -> NewKey {
    NewKey::named("CI").unwrap()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn get(path: impl Into<Box<str>>) -> RequestInfo {
    RequestInfo::new("GET", path).from_ip("192.0.2.1".parse().ok())
}

/// What a sink does with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    #[default]
    Write,
    Err,
    Reject,
    Hang,
    WriteAndHang,
    Panic,
}

/// A memory log that answers as it was told and remembers every call.
#[derive(Debug, Default)]
struct Sink {
    log: MemoryAuditLog,
    /// For the next calls.
    plan: Mutex<VecDeque<Answer>>,
    /// For all calls after those.
    then: Mutex<Answer>,
    /// For calls that hold a record of `/bad`.
    bad: Mutex<Answer>,
    /// While this is true, calls wait.
    held: watch::Sender<bool>,
    calls: Mutex<Vec<Vec<AuditRecord>>>,
    acknowledged: Mutex<Vec<AuditId>>,
}

impl Sink {
    fn plan(&self, answers: impl IntoIterator<Item = Answer>) {
        self.plan.lock().unwrap().extend(answers);
    }

    fn then(&self, answer: Answer) {
        *self.then.lock().unwrap() = answer;
    }

    fn bad(&self, answer: Answer) {
        *self.bad.lock().unwrap() = answer;
    }

    fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// The sizes of the batches so far.
    fn sizes(&self) -> Vec<usize> {
        self.calls.lock().unwrap().iter().map(Vec::len).collect()
    }

    fn ids(&self, call: usize) -> Vec<AuditId> {
        self.calls.lock().unwrap()[call].iter().map(|record| record.id).collect()
    }

    async fn called(&self) {
        eventually("the sink is called", || !self.calls.lock().unwrap().is_empty()).await;
    }

    /// The endpoints that were acknowledged, in that order.
    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Every record that was acknowledged was so once, and is in the log.
    fn assert_each_once(&self, expected: usize) {
        let ids = self.acknowledged.lock().unwrap();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "acknowledged twice");
        assert_eq!((ids.len(), self.log.len()), (expected, expected));
    }
}

#[async_trait]
impl AuditSink for Sink {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        self.calls.lock().unwrap().push(batch.to_vec());
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let planned = self.plan.lock().unwrap().pop_front();
        let mut answer = planned.unwrap_or(*self.then.lock().unwrap());
        if answer == Answer::Write && batch.iter().any(|record| endpoint(record) == Some("/bad")) {
            answer = *self.bad.lock().unwrap();
        }
        if matches!(answer, Answer::Write | Answer::WriteAndHang) {
            self.log.record(batch).await?;
        }
        match answer {
            Answer::Write => {
                self.acknowledged.lock().unwrap().extend(batch.iter().map(|record| record.id));
                Ok(())
            }
            Answer::Err => Err(AuditError::unavailable("disk full")),
            Answer::Reject => Err(AuditError::rejected("too long for its column")),
            Answer::Hang | Answer::WriteAndHang => pending().await,
            Answer::Panic => panic!("the sink of a test panics"),
        }
    }
}

fn request(record: &AuditRecord) -> Option<&RequestEvent> {
    match &record.event {
        AuditEvent::Request(request) => Some(request),
        _ => None,
    }
}

fn endpoint(record: &AuditRecord) -> Option<&str> {
    request(record).map(|request| &*request.endpoint)
}

/// A manager that writes to such a sink, and a key.
struct Bench {
    store: Arc<MemoryStore>,
    sink: Arc<Sink>,
    keys: KeyManager,
    secret: String,
    id: KeyId,
}

async fn bench(delivery: Delivery) -> Bench {
    bench_with(delivery, |builder| builder).await
}

async fn bench_with(
    delivery: Delivery,
    more: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder,
) -> Bench {
    let (store, sink) = (Arc::new(MemoryStore::new()), Arc::new(Sink::default()));
    // Made elsewhere, so that the sink has seen nothing yet.
    let maker = KeyManager::builder(store.clone()).build().unwrap();
    let issued = maker.create(&ada(), new_key()).await.unwrap();
    let builder = KeyManager::builder(store.clone()).audit_sink(sink.clone()).delivery(delivery);
    let keys = more(builder).build().unwrap();
    let secret = issued.secret.expose_secret().to_owned();
    Bench { store, sink, keys, secret, id: issued.key.id }
}

impl Bench {
    async fn admit(&self, path: &str) -> Result<Admission, AdmitError> {
        self.keys.admit(&self.secret, get(path)).await
    }

    /// A whole request.
    async fn handle(&self, path: &str) -> Result<(), AdmitError> {
        Ok(self.admit(path).await?.finish(200).await?)
    }

    async fn key(&self) -> Arc<ApiKey> {
        self.store.get(&org(), &self.id).await.unwrap().unwrap()
    }

    async fn requests(&self) -> Vec<RequestEvent> {
        let query = AuditQuery::new(org(), AuditScope::KeyRequests(self.id)).limit(200);
        let page = self.sink.log.page(&query).await.unwrap();
        page.records.iter().rev().filter_map(request).cloned().collect()
    }

    /// Waits until nothing is queued, and checks that nothing is missing.
    async fn settled(&self, made: u64) -> AuditStats {
        eventually("all is written or given up", || {
            let stats = self.keys.audit_stats();
            stats.queued == 0 && stats.written + stats.shed + stats.failed >= made
        })
        .await;
        let stats = self.keys.audit_stats();
        assert_eq!(stats.written + stats.shed + stats.failed, made, "{stats:?}");
        stats
    }
}

/// What this test logs, from here on. Only for tests on a single thread.
struct Logged(usize);

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct LogWriter;

impl std::io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    fn from_here() -> Self {
        static INSTALLED: OnceLock<()> = OnceLock::new();
        INSTALLED.get_or_init(|| {
            let all =
                tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE);
            let subscriber =
                all.with_ansi(false).with_thread_names(true).with_writer(|| LogWriter).finish();
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
        Self(LOG.lock().unwrap().len())
    }

    /// How many lines of this test, which has its own thread, say all of this.
    fn lines(&self, parts: &[&str]) -> usize {
        let log = String::from_utf8(LOG.lock().unwrap()[self.0..].to_vec()).unwrap();
        let thread = std::thread::current().name().unwrap().to_owned();
        let ours = log.lines().filter(|line| line.contains(&thread));
        ours.filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

// ---- strict delivery ----

#[tokio::test]
async fn strict_an_answer_leaves_only_after_its_record_is_acknowledged() {
    let b = bench(Delivery::strict()).await;
    b.sink.hold(true);
    let admission = b.admit("/v1/a").await.unwrap();
    let mut finish = pin!(admission.finish(418));
    assert!(poll_once(finish.as_mut()).is_none());
    b.sink.called().await;
    assert!(poll_once(finish.as_mut()).is_none(), "the sink has it, and has not answered");
    assert_eq!(b.keys.audit_stats().queued, 1);
    b.sink.hold(false);
    soon(finish).await.unwrap();
    assert_eq!((b.sink.acknowledged(), b.keys.audit_stats().written), (1, 1));
    let expected = {
        let mut event = RequestEvent::new("GET", "/v1/a", Outcome::Allowed);
        event.ip = "192.0.2.1".parse().ok();
        event.status = Some(418);
        event
    };
    assert_eq!(b.requests().await, [expected]);
}

#[tokio::test]
async fn strict_a_refusal_waits_for_its_record_too() {
    let b = bench(Delivery::strict()).await;
    b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await.unwrap();
    b.sink.calls.lock().unwrap().clear();
    b.sink.hold(true);
    let mut refused = pin!(b.admit("/v1/a"));
    assert!(poll_once(refused.as_mut()).is_none());
    b.sink.called().await;
    assert!(poll_once(refused.as_mut()).is_none());
    b.sink.hold(false);
    let refused = soon(refused).await.unwrap_err();
    assert!(matches!(
        refused,
        AdmitError::Refused(VerifyError::Denied { denial: Denial::Revoked, .. })
    ));
    let record = &b.requests().await[0];
    assert_eq!((record.status, record.outcome), (Some(401), Outcome::Revoked));
}

#[tokio::test]
async fn each_refusal_of_a_known_key_leaves_its_record_and_an_unknown_key_none() {
    let clock = Timestamp::from(std::time::SystemTime::now());
    let b = bench(Delivery::strict()).await;
    let stranger = bench(Delivery::strict()).await.secret;
    assert!(b.keys.admit(&stranger, get("/unknown")).await.is_err());
    assert!(b.keys.admit("junk", get("/malformed")).await.is_err());
    assert_eq!((b.sink.sizes(), b.keys.audit_stats()), (vec![], AuditStats::default()));

    let edit = async |change: fn(&mut ApiKey)| {
        let key = b.key().await;
        let mut edited = ApiKey { revision: key.revision.next(), ..ApiKey::clone(&key) };
        change(&mut edited);
        b.store.replace(&edited, key.revision).await.unwrap();
    };
    edit(|key| key.status = Status::Revoked).await;
    assert_eq!(b.admit("/1").await.unwrap_err().http_status(), 401);
    edit(|key| (key.status, key.expires_at) = (Status::Active, Some(key.created_at))).await;
    assert_eq!(b.admit("/2").await.unwrap_err().http_status(), 401);
    edit(|key| {
        key.expires_at = None;
        key.allowlist = Allowlist::parse(["10.0.0.0/8"]).unwrap();
    })
    .await;
    assert_eq!(b.admit("/3").await.unwrap_err().http_status(), 403);
    edit(|key| key.allowlist = Allowlist::restore(["?"])).await;
    assert_eq!(b.admit("/4").await.unwrap_err().http_status(), 403);
    let records = b.requests().await;
    let said: Vec<_> = records.iter().map(|r| (&*r.endpoint, r.status, r.outcome)).collect();
    assert_eq!(
        said,
        [
            ("/1", Some(401), Outcome::Revoked),
            ("/2", Some(401), Outcome::Expired),
            ("/3", Some(403), Outcome::IpNotAllowed),
            ("/4", Some(403), Outcome::IpNotAllowed),
        ]
    );
    let times = b.sink.calls.lock().unwrap().concat();
    assert!(times.iter().all(|record| record.at >= clock && record.key == b.id));
}

#[tokio::test]
async fn case_35_strict_a_sink_that_errs_hangs_or_panics_is_an_error_and_the_next_record_is_fine() {
    let logged = Logged::from_here();
    let b = bench(Delivery::strict().deadline(millis(100))).await;
    let mut made = 0;
    for answer in [Answer::Err, Answer::Reject, Answer::Panic, Answer::Hang, Answer::WriteAndHang] {
        b.sink.plan([answer]);
        let admission = b.admit("/v1/a").await.unwrap();
        soon(admission.finish(200)).await.expect_err(&format!("{answer:?}"));
        let stats = b.settled(made + 1).await;
        assert_eq!(stats.failed, made / 2 + 1, "{answer:?}");
        b.handle("/v1/b").await.unwrap();
        made += 2;
    }
    let said = ["ERROR", "audit records were not written", "records=1", "disk full"];
    assert_eq!(logged.lines(&said), 1, "the operator learns why");
    assert_eq!(logged.lines(&said[..2]), 1, "a log line that repeats is throttled");

    // A refusal whose record fails is a 503, and says nothing of the key.
    b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await.unwrap();
    for answer in [Answer::Err, Answer::Reject, Answer::Panic, Answer::Hang] {
        b.sink.plan([answer]);
        let refused = soon(b.admit("/v1/c")).await.unwrap_err();
        assert!(matches!(refused, AdmitError::NotRecorded(_)), "{answer:?}: {refused:?}");
        assert_eq!(refused.http_status(), 503);
    }
}

/// Panics before it has made a future.
#[derive(Debug)]
struct PanicsAtOnce;

impl AuditSink for PanicsAtOnce {
    fn record<'a, 'b, 'async_trait>(
        &'a self,
        _: &'b [AuditRecord],
    ) -> Pin<Box<dyn Future<Output = Result<(), AuditError>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        Self: 'async_trait,
    {
        panic!("the sink of a test panics at once")
    }
}

#[tokio::test]
async fn case_35_a_sink_that_panics_at_once_ends_nothing() {
    let b = bench_with(Delivery::strict(), |builder| builder.audit_sink(PanicsAtOnce)).await;
    for made in 1..4 {
        assert!(soon(b.handle("/")).await.is_err());
        assert_eq!(b.settled(made).await.failed, made);
    }
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
}

#[tokio::test]
async fn strict_records_of_concurrent_requests_share_batches() {
    let b = bench(Delivery::strict().batch(60)).await;
    b.sink.hold(true);
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let (keys, secret) = (b.keys.clone(), b.secret.clone());
            tokio::spawn(async move {
                let admission = keys.admit(&secret, get("/")).await.unwrap();
                admission.finish(200).await.unwrap();
            })
        })
        .collect();
    eventually("all wait", || b.keys.audit_stats().queued == 100).await;
    b.sink.hold(false);
    for request in requests {
        soon(request).await.unwrap();
    }
    b.sink.assert_each_once(100);
    let sizes = b.sink.sizes();
    assert!(sizes.len() <= 3 && sizes.iter().all(|size| *size <= 60), "{sizes:?}");
}

#[tokio::test]
async fn strict_a_full_queue_is_refused_at_once_and_nobody_is_marked_as_admitted() {
    let b = bench(Delivery::strict().capacity(2)).await;
    b.sink.hold(true);
    let (one, other) = (b.admit("/1").await.unwrap(), b.admit("/2").await.unwrap());
    let (mut one, mut other) = (pin!(one.finish(200)), pin!(other.finish(200)));
    assert!(poll_once(one.as_mut()).is_none() && poll_once(other.as_mut()).is_none());
    let refused = poll_once(pin!(b.admit("/3"))).expect("at once").unwrap_err();
    assert!(matches!(refused, AdmitError::NotRecorded(DeliveryError::Full)), "{refused:?}");
    b.sink.hold(false);
    soon(one).await.unwrap();
    soon(other).await.unwrap();
    b.handle("/4").await.unwrap();
    b.settled(3).await;
    b.sink.assert_each_once(3);
}

// ---- buffered delivery ----

#[tokio::test]
async fn buffered_a_request_waits_for_nothing_and_its_record_follows() {
    let log = Arc::new(MemoryAuditLog::new());
    let keys = KeyManager::builder(MemoryStore::new()).audit(log).build().unwrap();
    let issued = keys.create(&ada(), new_key()).await.unwrap();
    let request = keys.admit(issued.secret.expose_secret(), get("/v1/a"));
    let admission = poll_once(pin!(request)).expect("admitted at once").unwrap();
    poll_once(pin!(admission.finish(200))).expect("finished at once").unwrap();
    let finished = Instant::now();
    let query = AuditQuery::new(org(), AuditScope::KeyRequests(issued.key.id));
    let page = loop {
        let page = keys.audit_page(&query).await.unwrap().unwrap();
        assert!(finished.elapsed() < SOON, "never");
        if !page.records.is_empty() {
            break page;
        }
        tokio::time::sleep(millis(5)).await;
    };
    assert_eq!((page.records.len(), endpoint(&page.records[0])), (1, Some("/v1/a")));
}

#[tokio::test]
async fn buffered_records_gather_into_batches_no_larger_than_configured() {
    let b = bench(Delivery::buffered().batch(10)).await;
    for _ in 0..95 {
        b.handle("/").await.unwrap();
    }
    b.settled(95).await;
    b.sink.assert_each_once(95);
    let sizes = b.sink.sizes();
    assert_eq!((sizes.iter().sum::<usize>(), sizes.iter().max()), (95, Some(&10)));

    let b = bench(Delivery::buffered()).await;
    for _ in 0..95 {
        b.handle("/").await.unwrap();
    }
    b.settled(95).await;
    assert!(b.sink.sizes().len() <= 2, "{:?}", b.sink.sizes());
}

#[tokio::test]
async fn case_35_buffered_a_failing_sink_is_retried_until_everything_has_arrived_once() {
    let b = bench(Delivery::buffered().batch(7).deadline(millis(100))).await;
    b.sink.plan([Answer::Err, Answer::Err, Answer::Hang, Answer::Write, Answer::Err]);
    for _ in 0..50 {
        b.handle("/").await.unwrap();
    }
    let stats = b.settled(50).await;
    assert_eq!(stats, {
        let mut s = stats;
        (s.written, s.failed, s.shed) = (50, 0, 0);
        s
    });
    b.sink.assert_each_once(50);
    let retried = b.sink.ids(0);
    for call in 1..4 {
        assert_eq!(b.sink.ids(call)[..retried.len()], retried, "in order, and nothing overtaken");
    }
}

#[tokio::test]
async fn case_35_buffered_a_batch_that_timed_out_though_written_comes_again_with_the_same_ids() {
    let b = bench(Delivery::buffered().deadline(millis(50))).await;
    b.sink.plan([Answer::WriteAndHang]);
    for _ in 0..5 {
        b.handle("/").await.unwrap();
    }
    assert_eq!(b.settled(5).await.written, 5);
    assert_eq!(b.sink.sizes(), [5, 5]);
    assert_eq!(b.sink.ids(0), b.sink.ids(1));
    b.sink.assert_each_once(5);
}

#[tokio::test]
async fn case_35_buffered_a_record_that_is_rejected_holds_up_no_other_and_is_counted() {
    for answer in [Answer::Reject, Answer::Panic] {
        let logged = Logged::from_here();
        let b = bench(Delivery::buffered()).await;
        b.sink.bad(answer);
        for path in ["/1", "/bad", "/2", "/3", "/bad", "/4"] {
            b.handle(path).await.unwrap();
        }
        let stats = b.settled(6).await;
        assert_eq!((stats.written, stats.failed), (4, 2), "{answer:?}");
        b.sink.assert_each_once(4);
        let arrived: Vec<_> = b.requests().await.into_iter().map(|r| r.endpoint).collect();
        assert_eq!(arrived, ["/1", "/2", "/3", "/4"].map(Into::into));
        assert_eq!(logged.lines(&["ERROR", "not written", "records=1"]), 1, "throttled");
        b.handle("/5").await.unwrap();
        b.settled(7).await;
    }
}

#[tokio::test]
async fn case_35_buffered_a_sink_that_fails_while_the_bad_record_is_sought_loses_nothing() {
    let b = bench(Delivery::buffered().deadline(millis(50))).await;
    b.sink.bad(Answer::Reject);
    // The whole batch is rejected for its bad record; then, one by one: an error,
    // the bad one, a hang, and one that is written.
    b.sink.plan([Answer::Write, Answer::Err, Answer::Write, Answer::Hang]);
    for path in ["/1", "/bad", "/2", "/3"] {
        b.handle(path).await.unwrap();
    }
    let stats = b.settled(4).await;
    assert_eq!((stats.written, stats.failed), (3, 1));
    b.sink.assert_each_once(3);
}

#[tokio::test]
async fn a_strict_record_among_buffered_ones_fails_alone() {
    let b = bench(Delivery::buffered().deadline(millis(200))).await;
    b.sink.plan([Answer::Err]);
    for _ in 0..3 {
        b.handle("/").await.unwrap();
    }
    // The change is strict: it fails, while the requests are tried again. Its record may
    // have been written all the same, so that another takes it back.
    let failed = b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await;
    assert!(matches!(failed, Err(ManageError::Unavailable(_))), "{failed:?}");
    let stats = b.settled(5).await;
    assert_eq!((stats.written, stats.failed), (4, 1));
    b.sink.assert_each_once(4);
    assert_eq!(b.key().await.status, Status::Active);
}

// ---- a full queue ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_a_burst_of_100_000_through_64_places_loses_none() {
    let b = bench(Delivery::buffered().capacity(64).deadline(Duration::from_secs(60))).await;
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let (keys, secret) = (b.keys.clone(), b.secret.clone());
            tokio::spawn(async move {
                for _ in 0..2_000 {
                    let admission = keys.admit(&secret, get("/")).await.unwrap();
                    admission.finish(200).await.unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        tokio::time::timeout(Duration::from_secs(60), client).await.unwrap().unwrap();
    }
    assert_eq!(b.settled(100_000).await.written, 100_000);
    b.sink.assert_each_once(100_000);
    // 64 places, and at most one record of each client that was let in meanwhile.
    assert!(b.sink.sizes().iter().all(|size| *size <= 64 + 50));
}

#[tokio::test]
async fn case_35_wait_with_a_sink_that_hangs_requests_are_refused_in_time_and_all_are_accounted_for()
 {
    let b = bench(Delivery::buffered().capacity(8).deadline(millis(100))).await;
    b.sink.then(Answer::Hang);
    let requests: Vec<_> = (0..40)
        .map(|_| {
            let (keys, secret) = (b.keys.clone(), b.secret.clone());
            tokio::spawn(async move {
                let admission = keys.admit(&secret, get("/")).await?;
                Ok::<_, AdmitError>(admission.finish(200).await?)
            })
        })
        .collect();
    let (mut admitted, mut refused) = (0, 0);
    for request in requests {
        match soon(request).await.unwrap() {
            Ok(()) => admitted += 1,
            Err(error) => {
                assert!(matches!(error, AdmitError::NotRecorded(DeliveryError::Full)), "{error}");
                assert_eq!(error.http_status(), 503);
                refused += 1;
            }
        }
    }
    assert_eq!((admitted, refused), (8, 32));
    let stats = b.keys.audit_stats();
    assert_eq!((stats.queued, stats.written, stats.failed, stats.shed), (8, 0, 0, 0));
    b.sink.then(Answer::Write);
    assert_eq!(b.settled(8).await.written, 8);
    b.handle("/").await.expect("it recovers by itself");
}

#[tokio::test]
async fn requests_that_never_end_keep_neither_requests_nor_a_revocation_waiting() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let b = bench(delivery.capacity(1).deadline(millis(200))).await;
        let mut under_way = Vec::new();
        for _ in 0..5 {
            under_way.push(b.admit("/endless").await.expect("nothing is queued"));
        }
        b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await.expect("a change goes through");
        // All of them find room for what they leave.
        drop(under_way);
        assert_eq!(b.settled(6).await.written, 6);
    }
}

#[tokio::test]
async fn wait_who_came_first_is_let_in_as_soon_as_there_is_room() {
    let b = bench(Delivery::buffered().capacity(1)).await;
    b.handle("/1").await.unwrap();
    let mut second = pin!(b.admit("/2"));
    assert!(poll_once(second.as_mut()).is_none(), "there is no room");
    b.settled(1).await;
    let second = poll_once(second.as_mut()).expect("there is").unwrap();
    second.finish(200).await.unwrap();
    assert!(poll_once(pin!(b.admit("/3"))).is_none(), "there is none again");
    // The third gave up while it waited, and is not lost silently either.
    let stats = b.settled(3).await;
    assert_eq!((stats.written, stats.failed), (2, 1));
}

#[tokio::test]
async fn wait_nobody_waits_for_room_while_the_writer_waits_for_company() {
    let delivery = Delivery::buffered().capacity(4).linger(Duration::from_secs(60));
    let b = bench(delivery.deadline(millis(300))).await;
    let slow = b.admit("/slow").await.unwrap();
    for _ in 0..12 {
        b.handle("/").await.expect("the sink works, and there could be room");
    }
    slow.finish(200).await.unwrap();
    assert!(soon(b.keys.shutdown(SOON)).await.is_complete());
    b.sink.assert_each_once(13);
}

#[tokio::test]
async fn shed_with_a_blocked_sink_no_request_waits_and_exactly_the_surplus_is_shed() {
    let logged = Logged::from_here();
    let delivery = Delivery::buffered().capacity(10).batch(4).when_full(WhenFull::Shed);
    let b = bench(delivery).await;
    b.sink.hold(true);
    for at in 0..50 {
        if at == 10 {
            b.sink.called().await; // what is in the sink's hands counts as well
        }
        let admission = poll_once(pin!(b.admit("/"))).expect("admitted at once").unwrap();
        poll_once(pin!(admission.finish(200))).expect("finished at once").unwrap();
    }
    let stats = b.keys.audit_stats();
    assert_eq!((stats.queued, stats.shed, stats.written, stats.failed), (10, 40, 0, 0));
    assert_eq!(logged.lines(&["WARN", "records are dropped"]), 1, "no flood of log lines");
    b.sink.hold(false);
    let stats = b.settled(50).await;
    assert_eq!((stats.written, stats.shed), (10, 40));
    b.handle("/").await.unwrap();
    assert_eq!(b.settled(51).await.written, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shed_a_burst_of_200_000_loses_none_uncounted() {
    let b = bench(Delivery::buffered().capacity(1_024).when_full(WhenFull::Shed)).await;
    let burst = async || {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (keys, secret) = (b.keys.clone(), b.secret.clone());
                tokio::spawn(async move {
                    for _ in 0..25_000 {
                        let admission = keys.admit(&secret, get("/")).await.unwrap();
                        admission.finish(200).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for client in clients {
            tokio::time::timeout(Duration::from_secs(60), client).await.unwrap().unwrap();
        }
    };
    // Nothing is written meanwhile: what has no room is known exactly.
    b.sink.hold(true);
    burst().await;
    let stats = b.keys.audit_stats();
    assert_eq!((stats.queued, stats.shed, stats.written), (1_024, 100_000 - 1_024, 0));
    // And with a sink that works while more come.
    b.sink.hold(false);
    burst().await;
    assert!(soon(b.keys.shutdown(SOON)).await.is_complete());
    let stats = b.keys.audit_stats();
    assert_eq!((stats.written + stats.shed, stats.failed, stats.queued), (200_000, 0, 0));
    b.sink.assert_each_once(usize::try_from(stats.written).unwrap());
}

#[tokio::test]
async fn shed_changes_and_strict_records_are_never_shed() {
    let b = bench(Delivery::buffered().capacity(1).when_full(WhenFull::Shed)).await;
    b.sink.hold(true);
    b.handle("/").await.unwrap();
    b.sink.called().await;
    let ada = ada();
    let mut change = pin!(b.keys.update(&ada, &b.id, KeyPatch::revoke()));
    assert!(poll_once(change.as_mut()).is_none());
    b.sink.hold(false);
    soon(change).await.unwrap();
    let stats = b.settled(2).await;
    assert_eq!((stats.written, stats.shed), (2, 0));

    let b = bench(Delivery::strict().capacity(1).when_full(WhenFull::Shed)).await;
    b.sink.hold(true);
    let mut held = pin!(b.admit("/").await.unwrap().finish(200));
    assert!(poll_once(held.as_mut()).is_none());
    assert!(b.admit("/").await.is_err());
    b.sink.hold(false);
    soon(held).await.unwrap();
    assert_eq!(b.settled(1).await.shed, 0);
}

#[tokio::test]
async fn a_change_waits_for_no_batch_of_requests_and_needs_no_room_of_theirs() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let b = bench(delivery.capacity(30).batch(5)).await;
        b.sink.hold(true);
        for _ in 0..30 {
            drop(b.admit("/").await.unwrap());
        }
        b.sink.called().await;
        let refused = b.keys.admit(&b.secret, get("/"));
        assert!(poll_once(pin!(refused)).is_none_or(|full| full.is_err()), "it is full");
        let ada = ada();
        let mut change = pin!(b.keys.update(&ada, &b.id, KeyPatch::revoke()));
        assert!(poll_once(change.as_mut()).is_none());
        eventually("the change is on its way", || b.sink.calls.lock().unwrap().len() == 2).await;
        let last = b.sink.calls.lock().unwrap().last().cloned().unwrap();
        assert!(last.len() == 1 && request(&last[0]).is_none(), "{last:?}");
        b.sink.hold(false);
        soon(change).await.unwrap();
    }
}

// ---- requests that never end ----

#[tokio::test]
async fn case_36_a_request_that_is_dropped_leaves_a_record_marked_aborted() {
    for delivery in
        [Delivery::strict(), Delivery::buffered(), Delivery::buffered().when_full(WhenFull::Shed)]
    {
        let b = bench(delivery.clone()).await;
        drop(b.admit("/dropped").await.unwrap());
        // A `finish` that is never polled has not happened.
        drop(b.admit("/unpolled").await.unwrap().finish(200));
        b.settled(2).await;
        let records = b.requests().await;
        let said: Vec<_> = records.iter().map(|r| (&*r.endpoint, r.status, r.outcome)).collect();
        let aborted = |path| (path, None, Outcome::Aborted);
        assert_eq!(said, [aborted("/dropped"), aborted("/unpolled")], "{delivery:?}");
    }
}

#[tokio::test]
async fn case_36_an_answer_that_nobody_waits_for_any_more_is_on_record_all_the_same() {
    let b = bench(Delivery::strict()).await;
    b.sink.hold(true);
    {
        let mut finish = pin!(b.admit("/").await.unwrap().finish(200));
        assert!(poll_once(finish.as_mut()).is_none());
    }
    b.sink.hold(false);
    b.settled(1).await;
    assert_eq!(b.requests().await[0].outcome, Outcome::Allowed);
}

#[tokio::test]
async fn case_36_an_abort_is_on_record_even_if_the_queue_is_full() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let b = bench(delivery.capacity(3).deadline(millis(50))).await;
        b.sink.hold(true);
        let mut open = Vec::new();
        for at in 0..5 {
            open.push(b.admit(&format!("/{at}")).await.unwrap());
        }
        drop(open.drain(..3));
        assert!(b.admit("/full").await.is_err());
        drop(open);
        assert_eq!(b.keys.audit_stats().queued, 5);
        b.sink.hold(false);
        b.settled(5).await;
        let outcomes: Vec<_> = b.requests().await.iter().map(|r| r.outcome).collect();
        assert_eq!(outcomes, [Outcome::Aborted; 5]);
    }
}

// ---- the end ----

#[tokio::test]
async fn case_37_shutdown_writes_what_is_queued_and_then_takes_no_more() {
    for delivery in [
        Delivery::strict(),
        Delivery::buffered().linger(Duration::from_secs(60)),
        Delivery::buffered().linger(Duration::from_secs(60)).when_full(WhenFull::Shed),
    ] {
        let b = bench(delivery.batch(10).clone()).await;
        for _ in 0..35 {
            drop(b.admit("/").await.unwrap());
        }
        let report = soon(b.keys.shutdown(Duration::from_secs(5))).await;
        assert!(report.is_complete(), "{report:?}");
        b.sink.assert_each_once(35);
        let change = b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await;
        assert!(matches!(change, Err(ManageError::Unavailable(_))), "{change:?}");
        assert_eq!(b.key().await.status, Status::Active);
        assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete(), "twice");
        b.sink.assert_each_once(35);
    }
}

#[tokio::test]
async fn case_37_after_shutdown_requests_are_refused_as_unavailable() {
    for delivery in
        [Delivery::strict(), Delivery::buffered(), Delivery::buffered().when_full(WhenFull::Shed)]
    {
        let b = bench(delivery.clone()).await;
        assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
        let late = b.admit("/").await.map(|admission| admission.key().clone());
        let refused = late.expect_err(&format!("{delivery:?}"));
        assert!(matches!(refused, AdmitError::NotRecorded(DeliveryError::Closed)));
        assert_eq!(refused.http_status(), 503);
    }
}

#[tokio::test]
async fn case_37_shutdown_waits_for_requests_that_are_still_being_handled() {
    let b = bench(Delivery::buffered()).await;
    let admission = b.admit("/slow").await.unwrap();
    let mut shutdown = pin!(b.keys.shutdown(Duration::from_secs(5)));
    assert!(poll_once(shutdown.as_mut()).is_none());
    b.sink.hold(false);
    tokio::task::yield_now().await;
    assert!(poll_once(shutdown.as_mut()).is_none());
    admission.finish(200).await.unwrap();
    assert!(soon(shutdown).await.is_complete());
    b.sink.assert_each_once(1);
}

#[tokio::test]
async fn case_37_a_request_that_ends_after_shutdown_gave_up_is_not_lost_silently() {
    let logged = Logged::from_here();
    let b = bench(Delivery::buffered()).await;
    let admission = b.admit("/slow").await.unwrap();
    let _ = soon(b.keys.shutdown(millis(50))).await;
    let finished = admission.finish(200).await;
    let stats = b.settled(1).await;
    assert!(
        stats.written == 1 || finished.is_err() || logged.lines(&["ERROR", "not written"]) == 1
    );
}

#[tokio::test]
async fn case_37_shutdown_gives_up_at_its_deadline_and_says_what_is_lost() {
    assert_gives_up(Delivery::buffered().batch(2).deadline(millis(50)), []).await;
}

#[tokio::test]
async fn case_37_shutdown_does_not_wait_for_a_sink_that_may_take_longer() {
    assert_gives_up(Delivery::buffered().deadline(SOON * 6), []).await;
}

#[tokio::test]
async fn case_37_shutdown_does_not_wait_for_the_search_for_a_rejected_record() {
    let delivery = Delivery::buffered().deadline(millis(200));
    assert_gives_up(delivery, [Answer::Reject]).await;
}

async fn assert_gives_up(delivery: Delivery, plan: impl IntoIterator<Item = Answer>) {
    let logged = Logged::from_here();
    let b = bench(delivery).await;
    b.handle("/").await.unwrap();
    b.settled(1).await;
    b.sink.plan(plan);
    b.sink.then(Answer::Hang);
    for _ in 0..10 {
        b.handle("/").await.unwrap();
    }
    let report = soon(b.keys.shutdown(millis(300))).await;
    assert_eq!((report.unwritten_records, report.is_complete()), (10, false));
    let stats = b.keys.audit_stats();
    assert_eq!((stats.failed, stats.queued), (10, 0), "a loss that is not yet counted");
    assert!(logged.lines(&["ERROR", "audit records were not written"]) >= 1);
}

#[tokio::test]
async fn case_37_a_sink_that_recovers_in_time_gets_everything_at_shutdown() {
    let b = bench(Delivery::buffered()).await;
    b.sink.plan([Answer::Err, Answer::Err, Answer::Err]);
    for _ in 0..5 {
        b.handle("/").await.unwrap();
    }
    let report = soon(b.keys.shutdown(Duration::from_secs(5))).await;
    assert!(report.is_complete(), "{report:?}");
    b.sink.assert_each_once(5);
}

#[tokio::test]
async fn a_shutdown_that_has_all_the_time_in_the_world_panics_nothing() {
    let b = bench(Delivery::buffered()).await;
    b.handle("/").await.unwrap();
    assert!(soon(b.keys.shutdown(Duration::MAX)).await.is_complete());
    b.sink.assert_each_once(1);
}

#[tokio::test]
async fn case_37_dropping_the_last_handle_still_writes_the_queue() {
    let b = bench(Delivery::buffered().linger(Duration::from_secs(60))).await;
    for _ in 0..5 {
        b.handle("/").await.unwrap();
    }
    let admission = b.admit("/open").await.unwrap();
    let other = b.keys.clone();
    let Bench { sink, keys, .. } = b;
    drop(keys);
    drop(other);
    assert_eq!(sink.acknowledged(), 0, "an open request is a handle");
    drop(admission);
    eventually("all is written", || sink.acknowledged() == 6).await;
    sink.assert_each_once(6);
}

#[test]
fn case_37_when_the_runtime_ends_what_is_left_is_counted_and_logged() {
    // In the middle of a batch, and of the search for a record that is rejected.
    for plan in [vec![], vec![Answer::Reject]] {
        let logged = Logged::from_here();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let keys = runtime.block_on(async {
            let b = bench(Delivery::buffered().batch(3)).await;
            b.sink.plan(plan.clone());
            b.sink.then(Answer::Hang);
            for _ in 0..5 {
                b.handle("/").await.unwrap();
            }
            eventually("the sink hangs", || b.sink.sizes().len() > plan.len()).await;
            b.keys
        });
        drop(runtime);
        let stats = keys.audit_stats();
        assert_eq!((stats.failed, stats.queued), (5, 0), "after {plan:?}");
        assert!(logged.lines(&["ERROR", "audit records were not written"]) >= 1);
    }
}

// ---- countries, counts, no sink ----

/// Knows one address, and is asked for every one.
#[derive(Debug)]
struct Countries(Arc<Mutex<Vec<IpAddr>>>);

impl CountryLookup for Countries {
    fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        self.0.lock().unwrap().push(ip);
        (ip == "192.0.2.1".parse::<IpAddr>().unwrap()).then(|| CountryCode::new("de").unwrap())
    }
}

#[tokio::test]
async fn countries_are_filled_in_for_requests_with_a_known_address() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let asked = Arc::default();
        let lookup = Countries(Arc::clone(&asked));
        let b = bench_with(delivery, |builder| builder.countries(lookup)).await;
        b.keys.update(&ada(), &b.id, KeyPatch::rename(KeyName::new("b").unwrap())).await.unwrap();
        let (known, other) = ("192.0.2.1".parse().ok(), "2001:db8::1".parse().ok());
        b.sink.plan([Answer::Write]);
        for ip in [known, other, None] {
            let request = get("/").from_ip(ip);
            b.keys.admit(&b.secret, request).await.unwrap().finish(200).await.unwrap();
        }
        b.settled(4).await;
        let countries: Vec<_> = b.requests().await.iter().map(|r| r.country).collect();
        assert_eq!(countries, [CountryCode::new("DE"), None, None]);
        assert_eq!(*asked.lock().unwrap(), [known.unwrap(), other.unwrap()]);
    }
}

#[derive(Debug)]
struct PanickingCountries;

impl CountryLookup for PanickingCountries {
    fn country(&self, _: IpAddr) -> Option<CountryCode> {
        panic!("the country look-up of a test panics")
    }
}

#[tokio::test]
async fn case_35_a_country_lookup_that_panics_costs_the_country_and_not_the_record() {
    let b = bench_with(Delivery::buffered(), |builder| builder.countries(PanickingCountries)).await;
    for _ in 0..3 {
        b.handle("/").await.unwrap();
    }
    let stats = b.settled(3).await;
    assert_eq!((stats.written, stats.failed), (3, 0));
    b.handle("/").await.expect("and the next request is fine");
}

/// Blocks until it is let go, or for far longer than the test waits.
#[derive(Debug)]
struct SlowCountries {
    asked: Arc<Mutex<bool>>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl CountryLookup for SlowCountries {
    fn country(&self, _: IpAddr) -> Option<CountryCode> {
        *self.asked.lock().unwrap() = true;
        let _ = self.go.lock().unwrap().recv_timeout(SOON * 3);
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_country_lookup_holds_up_no_request() {
    let (asked, (go, going)) = (Arc::default(), mpsc::channel());
    let lookup = SlowCountries { asked: Arc::clone(&asked), go: Mutex::new(going) };
    let b = bench_with(Delivery::buffered(), |builder| builder.countries(lookup)).await;
    b.handle("/1").await.unwrap();
    // Not with a timer of the runtime, one of whose threads is blocked.
    while !*asked.lock().unwrap() {
        std::thread::sleep(millis(1));
    }
    let started = Instant::now();
    b.handle("/2").await.unwrap();
    let waited = started.elapsed();
    let _ = (go.send(()), go.send(()));
    b.settled(2).await;
    assert!(waited < SOON, "{waited:?}");
}

#[tokio::test]
async fn the_counts_add_up_to_the_records_made() {
    let delivery =
        Delivery::buffered().capacity(20).batch(6).when_full(WhenFull::Shed).deadline(millis(50));
    let b = bench(delivery).await;
    b.sink.bad(Answer::Reject);
    b.sink.plan([Answer::Err, Answer::Hang]);
    for at in 0..60 {
        b.handle(if at % 5 == 0 { "/bad" } else { "/good" }).await.unwrap();
        let stats = b.keys.audit_stats();
        assert_eq!(stats.written + stats.shed + stats.failed + stats.queued, at + 1);
    }
    let stats = b.settled(60).await;
    // Of the 20 that found room, every fifth was bad.
    assert_eq!((stats.written, stats.failed, stats.shed), (16, 4, 40));
    b.sink.assert_each_once(16);
}

#[tokio::test]
async fn without_a_sink_nothing_is_logged_and_everything_else_works() {
    let keys = KeyManager::builder(MemoryStore::new()).build().unwrap();
    let issued = keys.create(&ada(), new_key()).await.unwrap();
    let id = issued.key.id;
    keys.update(&ada(), &id, KeyPatch::rename(KeyName::new("b").unwrap())).await.unwrap();
    let rotated = keys.rotate(&ada(), &id).await.unwrap();
    let admission = keys.admit(rotated.secret.expose_secret(), get("/")).await.unwrap();
    assert_eq!(admission.key().id(), id);
    poll_once(pin!(admission.finish(200))).unwrap().unwrap();
    keys.update(&ada(), &id, KeyPatch::revoke()).await.unwrap();
    let refused = keys.admit(rotated.secret.expose_secret(), get("/")).await.unwrap_err();
    assert_eq!(refused.http_status(), 401);
    assert!(keys.audit_log().is_none());
    assert_eq!(keys.audit_stats(), AuditStats::default());
    let query = AuditQuery::new(org(), AuditScope::OrgChanges);
    assert!(keys.audit_page(&query).await.is_none());
    assert!(soon(keys.shutdown(Duration::from_secs(5))).await.is_complete());
    assert!(keys.list(&org()).await.unwrap()[0].last_used_at.is_some());
}

// ---- last-used times ----

/// A memory store that remembers what last uses it was given, and fails or
/// hangs as it was told.
#[derive(Debug, Default)]
struct Uses {
    inner: MemoryStore,
    calls: Mutex<Vec<Vec<KeyUse>>>,
    plan: Mutex<VecDeque<Answer>>,
    then: Mutex<Answer>,
}

#[async_trait]
impl KeyStore for Uses {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.inner.insert(key, limit).await
    }
    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.inner.find_by_digest(digest).await
    }
    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.inner.get(org, id).await
    }
    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.inner.list(org).await
    }
    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.inner.replace(key, expected).await
    }
    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.inner.delete(org, id, expected).await
    }
    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.calls.lock().unwrap().push(uses.to_vec());
        let planned = self.plan.lock().unwrap().pop_front();
        let answer = planned.unwrap_or(*self.then.lock().unwrap());
        match answer {
            Answer::Write => self.inner.record_uses(uses).await,
            Answer::Hang => pending().await,
            Answer::Panic => panic!("the store of a test panics"),
            _ => Err(StoreError::unavailable("locked")),
        }
    }
}

struct UseBench {
    store: Arc<Uses>,
    clock: Arc<ManualClock>,
    keys: KeyManager,
}

fn use_bench() -> UseBench {
    let store = Arc::new(Uses::default());
    let start = Timestamp::parse("2027-01-01T00:00:00Z").unwrap();
    let clock = Arc::new(ManualClock::new(start));
    let builder = KeyManager::builder(store.clone()).clock(clock.clone());
    let keys = builder.store_deadline(millis(100)).build().unwrap();
    UseBench { store, clock, keys }
}

impl UseBench {
    async fn create(&self, new: NewKey) -> (String, KeyId) {
        let issued = self.keys.create(&ada(), new).await.unwrap();
        (issued.secret.expose_secret().to_owned(), issued.key.id)
    }

    fn calls(&self) -> Vec<Vec<KeyUse>> {
        self.store.calls.lock().unwrap().clone()
    }

    async fn last_used(&self, id: KeyId) -> Option<Timestamp> {
        self.keys.get(&org(), &id).await.unwrap().last_used_at
    }

    async fn called(&self, times: usize) {
        eventually("the store is given uses", || self.calls().len() >= times).await;
    }
}

#[tokio::test]
async fn a_thousand_uses_of_a_key_become_a_write_or_two() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    for _ in 0..1_000 {
        b.keys.verify(&secret, None).await.unwrap();
        b.clock.advance(Duration::from_micros(1));
        tokio::task::yield_now().await;
    }
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    let calls = b.calls();
    assert!(calls.len() <= 4, "{} writes", calls.len());
    assert!(calls.iter().all(|uses| uses.len() == 1 && uses[0].id == id), "{calls:?}");
    let last = b.clock.now().saturating_sub(Duration::from_micros(1));
    assert_eq!(b.last_used(id).await, Some(last));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uses_on_many_threads_are_written_as_one_for_each_key() {
    let b = use_bench();
    let (one, other) = (b.create(new_key()).await, b.create(new_key()).await);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (keys, secrets) = (b.keys.clone(), [one.0.clone(), other.0.clone()]);
            tokio::spawn(async move {
                for _ in 0..100 {
                    for secret in &secrets {
                        keys.verify(secret, None).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    for uses in b.calls() {
        assert!(uses.len() <= 2 && (uses.len() < 2 || uses[0].id != uses[1].id), "{uses:?}");
    }
    assert!(b.last_used(one.1).await.is_some() && b.last_used(other.1).await.is_some());
}

#[tokio::test]
async fn a_use_can_be_read_back() {
    let keys = KeyManager::builder(MemoryStore::new()).build().unwrap();
    let issued = keys.create(&ada(), new_key()).await.unwrap();
    for _ in 0..2 {
        let before = keys.now();
        let used = Instant::now();
        keys.verify(issued.secret.expose_secret(), None).await.unwrap();
        while keys.get(&org(), &issued.key.id).await.unwrap().last_used_at < Some(before) {
            assert!(used.elapsed() < SOON, "never");
            tokio::time::sleep(millis(5)).await;
        }
    }
}

#[tokio::test]
async fn last_used_times_never_move_back() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    let late = b.clock.now();
    b.keys.verify(&secret, None).await.unwrap();
    b.called(1).await;
    for _ in 0..2 {
        b.clock.set(late.saturating_sub(Duration::from_secs(60)));
        b.keys.verify(&secret, None).await.unwrap();
    }
    b.called(2).await;
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    assert_eq!(b.last_used(id).await, Some(late));

    // Nor among the uses that have not been written yet.
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    b.keys.verify(&secret, None).await.unwrap();
    b.clock.set(late.saturating_sub(Duration::from_secs(60)));
    b.keys.verify(&secret, None).await.unwrap();
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    assert_eq!(b.last_used(id).await, Some(late));
}

#[tokio::test]
async fn case_56_a_last_use_in_the_future_is_replaced_by_the_next() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    let (right, wrong) = (b.clock.now(), Timestamp::parse("2099-01-01T00:00:00Z").unwrap());
    b.clock.set(wrong);
    b.keys.verify(&secret, None).await.unwrap();
    b.called(1).await;
    assert_eq!(b.last_used(id).await, Some(wrong));
    b.clock.set(right);
    b.keys.verify(&secret, None).await.unwrap();
    b.called(2).await;
    assert_eq!(b.last_used(id).await, Some(right), "written already");

    // Nor does it stay in a batch that has not been written, or could not be.
    b.store.plan.lock().unwrap().push_back(Answer::Err);
    b.clock.set(wrong);
    b.keys.verify(&secret, None).await.unwrap();
    b.called(3).await;
    b.clock.set(right.saturating_add(millis(1)));
    b.keys.verify(&secret, None).await.unwrap();
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    assert_eq!(b.last_used(id).await, Some(right.saturating_add(millis(1))));
}

#[tokio::test]
async fn uses_that_could_not_be_written_are_written_later() {
    for failure in [Answer::Err, Answer::Hang] {
        let b = use_bench();
        b.store.plan.lock().unwrap().push_back(failure);
        let (secret, id) = b.create(new_key()).await;
        let first = b.clock.now();
        b.keys.verify(&secret, None).await.unwrap();
        b.called(1).await;
        assert_eq!(b.last_used(id).await, None);
        // Without another use to remind it of that.
        b.called(2).await;
        assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
        assert_eq!(b.last_used(id).await, Some(first), "{failure:?}");
    }
}

#[tokio::test]
async fn a_store_that_panics_over_a_use_is_given_the_next_all_the_same() {
    let b = use_bench();
    b.store.plan.lock().unwrap().push_back(Answer::Panic);
    let (secret, id) = b.create(new_key()).await;
    b.keys.verify(&secret, None).await.unwrap();
    b.called(1).await;
    b.keys.verify(&secret, None).await.unwrap();
    b.called(2).await;
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    assert!(b.last_used(id).await.is_some());
}

#[tokio::test]
async fn a_refused_request_is_no_use() {
    let b = use_bench();
    let (revoked, id) = b.create(new_key()).await;
    b.keys.update(&ada(), &id, KeyPatch::revoke()).await.unwrap();
    let (restricted, _) = b.create(new_key().allow(["10.0.0.0/8"]).unwrap()).await;
    let (expired, _) = b.create(new_key().expires(Expiration::OneDay)).await;
    b.clock.advance(Duration::from_secs(86_400));
    let (unknown, _) = use_bench().create(new_key()).await;
    for secret in [&revoked, &restricted, &expired, &unknown, "junk"] {
        b.keys.verify(secret, None).await.unwrap_err();
        b.keys.admit(secret, get("/")).await.unwrap_err();
    }
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    assert_eq!(b.calls(), [] as [Vec<KeyUse>; 0]);

    // Neither is one that was refused because it could not be recorded.
    let b = bench(Delivery::strict().capacity(1)).await;
    let held = b.store.list(&org()).await.unwrap();
    assert_eq!(held[0].last_used_at, None);
    b.keys.shutdown(Duration::from_secs(5)).await.is_complete().then_some(()).unwrap();
    b.admit("/").await.unwrap_err();
    let report = soon(b.keys.shutdown(Duration::from_secs(5))).await;
    assert!(report.is_complete(), "a use was noted: {report:?}");
}

#[tokio::test]
async fn admitted_requests_are_uses_and_shutdown_writes_them_at_once() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    drop(b.keys.admit(&secret, get("/")).await.unwrap());
    assert_eq!(b.calls(), [] as [Vec<KeyUse>; 0]);
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
    assert_eq!(b.last_used(id).await, Some(b.clock.now()));
}

#[tokio::test]
async fn dropping_the_last_handle_still_writes_the_uses() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    b.keys.verify(&secret, None).await.unwrap();
    let UseBench { store, keys, clock } = b;
    drop(keys);
    let read = async || store.get(&org(), &id).await.unwrap().unwrap().last_used_at;
    let deadline = Instant::now() + SOON;
    while read().await != Some(clock.now()) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(millis(2)).await;
    }
}

#[tokio::test]
async fn case_37_shutdown_counts_the_uses_that_it_could_not_write() {
    for failure in [Answer::Err, Answer::Hang] {
        for held in [false, true] {
            let logged = Logged::from_here();
            let b = use_bench();
            *b.store.then.lock().unwrap() = failure;
            for _ in 0..3 {
                let (secret, _) = b.create(new_key()).await;
                b.keys.verify(&secret, None).await.unwrap();
            }
            if held {
                b.called(1).await;
            }
            let report = soon(b.keys.shutdown(millis(20))).await;
            assert_eq!(
                (report.unwritten_uses, report.unwritten_records),
                (3, 0),
                "{failure:?} {held}"
            );
            assert!(logged.lines(&["ERROR", "last-used times were not written"]) >= 1);
        }
    }
}

// ---- pages ----

/// Records that often share their time.
fn records() -> impl Strategy<Value = Vec<AuditRecord>> {
    let record = (0i64..6, any::<u8>(), 0u8..2, any::<bool>());
    proptest::collection::vec(record, 0..40).prop_map(|all| {
        let made = all.into_iter().enumerate().map(|(at, (time, shuffle, key, change))| {
            let mut id = [0; 16];
            (id[14], id[15]) = (shuffle, u8::try_from(at).unwrap());
            let event = if change {
                AuditEvent::Change(ChangeEvent::new(
                    "ada",
                    ChangeAction::Updated,
                    ChangePhase::Begun,
                ))
            } else {
                AuditEvent::Request({
                    let mut event = RequestEvent::new("GET", "/", Outcome::Allowed);
                    event.status = Some(200);
                    event
                })
            };
            AuditRecord {
                id: AuditId::from_bytes(id),
                at: Timestamp::from_unix_micros(time).unwrap(),
                org: org(),
                key: KeyId::from_bytes([key; 16]),
                event,
            }
        });
        made.collect()
    })
}

fn page(log: &MemoryAuditLog, scope: AuditScope, position: Position, limit: usize) -> AuditPage {
    let query = AuditQuery::new(org(), scope).at(position).limit(limit);
    poll_once(pin!(log.page(&query))).unwrap().unwrap()
}

fn write(log: &MemoryAuditLog, records: &[AuditRecord]) {
    poll_once(pin!(log.record(records))).unwrap().unwrap();
}

proptest! {
    #[test]
    fn pages_walk_over_every_record_once_in_both_directions(
        records in records(),
        later in records(),
        limit in 1usize..7,
        which in 0u8..4,
    ) {
        let key = KeyId::from_bytes([which % 2; 16]);
        let scope = match which {
            0 => AuditScope::OrgChanges,
            1 => AuditScope::KeyChanges(key),
            _ => AuditScope::KeyRequests(key),
        };
        let in_scope = |record: &&AuditRecord| match scope {
            AuditScope::OrgChanges => request(record).is_none(),
            AuditScope::KeyChanges(key) => record.key == key && request(record).is_none(),
            AuditScope::KeyRequests(key) => record.key == key && request(record).is_some(),
        };
        let log = MemoryAuditLog::new();
        write(&log, &records);
        write(&log, &records); // again, as after a batch that timed out
        let mut expected: Vec<_> = records.iter().filter(in_scope).cloned().collect();
        expected.sort_by_key(|record| std::cmp::Reverse((record.at, record.id)));

        let mut pages = vec![page(&log, scope, Position::Newest, limit)];
        prop_assert_eq!(pages[0].newer, None);
        while let Some(older) = pages.last().unwrap().older {
            // What arrives meanwhile, and is newer, moves nothing.
            let later: Vec<_> = later.iter().map(|record| AuditRecord {
                at: record.at.saturating_add(Duration::from_secs(1)),
                ..record.clone()
            }).collect();
            write(&log, &later);
            let cursor = older.to_string().parse().unwrap();
            pages.push(page(&log, scope, Position::Before(cursor), limit));
            let last = pages.last().unwrap();
            prop_assert!(!last.records.is_empty() && last.newer.is_some());
            prop_assert!(pages.len() <= expected.len(), "round in circles");
        }
        let walked: Vec<_> = pages.iter().flat_map(|page| page.records.clone()).collect();
        prop_assert_eq!(&walked, &expected);
        let full = pages.iter().rev().skip(1).all(|page| page.records.len() == limit);
        prop_assert!(full, "only the last page may be short");

        // And back again, over the same records, to those that arrived since.
        let mut back = Vec::new();
        let mut newer = pages.last().unwrap().newer;
        while let Some(cursor) = newer {
            let page = page(&log, scope, Position::After(cursor), limit);
            prop_assert!(page.older.is_some());
            back.splice(0..0, page.records);
            prop_assert!(back.len() <= expected.len() + later.len(), "round in circles");
            newer = page.newer;
        }
        if pages.len() > 1 {
            back.retain(|record| record.at < Timestamp::from_unix_micros(1_000_000).unwrap());
            let on_last_page = pages.last().unwrap().records.len();
            prop_assert_eq!(&back[..], &expected[..expected.len() - on_last_page]);
        }
    }

    #[test]
    fn purging_removes_exactly_what_is_older(records in records(), before in 0i64..7) {
        let log = MemoryAuditLog::new();
        write(&log, &records);
        let instant = Timestamp::from_unix_micros(before).unwrap();
        let old = records.iter().filter(|record| record.at < instant).count();
        let purged = poll_once(pin!(log.purge_before(instant))).unwrap().unwrap();
        prop_assert_eq!((purged, log.len()), (old as u64, records.len() - old));
        for scope in [AuditScope::OrgChanges, AuditScope::KeyRequests(KeyId::from_bytes([0; 16]))] {
            let page = page(&log, scope, Position::Newest, 200);
            prop_assert!(page.records.iter().all(|record| record.at >= instant));
        }
    }
}

#[test]
fn a_full_memory_log_drops_its_oldest_records_and_counts_them() {
    let log = MemoryAuditLog::with_capacity(3);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let many = records().new_tree(&mut runner).unwrap();
    let mut records = proptest::strategy::ValueTree::current(&many);
    records.sort_by_key(|record| (record.at, record.id));
    assert!(records.len() > 3, "{}", records.len());
    write(&log, &records);
    assert_eq!((log.len(), log.dropped()), (3, records.len() as u64 - 3));
    let newest = page(&log, AuditScope::OrgChanges, Position::Newest, 200).records;
    assert!(newest.iter().all(|record| records[records.len() - 3..].contains(record)));
}
