//! A process is killed while it changes keys, many times (`KEYGATE_KILL_CYCLES`, by default 10).
//! Acknowledged changes are stored, and the change under way is made completely or not at all.
//! The counts of requests are those of the records.
#![cfg(all(unix, any(feature = "sqlite", feature = "postgres"), feature = "tokio"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "support/changes.rs"]
mod changes;
#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_support;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, ChangeAction, ChangePhase, Outcome,
    Position, RequestEvent, UsageBucket, UsageCounts, UsageQuery,
};
use keygate::manager::KeyManagerBuilder;
use keygate::{
    Actor, AuditLog, AuditSink, Delivery, KeyId, KeyManager, KeyStore, OrgId, Status, Timestamp,
};
use tokio::runtime::Handle;

use crate::changes::{Change, Key, Seeded, number, stored};
use crate::support::eventually;

/// Concurrent workers, each with its own organisation.
const WORKERS: u64 = 3;
/// A busy machine is slow, and a child that gives up was not killed.
const PATIENCE: Duration = Duration::from_secs(20);
/// A child is killed at the latest after it has printed this many lines.
const MOST_LINES: u64 = 120;

/// Where the keys are stored, and how sessions are recognised.
#[derive(Clone, Debug)]
struct Place {
    /// The URL of an SQLite file, or a schema of the PostgreSQL database of the tests.
    store: String,
    /// The application name that PostgreSQL shows for our sessions.
    session: String,
}

impl Place {
    fn new(store: String) -> Self {
        Self { store, session: format!("kill-{:016x}", number()) }
    }

    fn org(&self, worker: u64) -> OrgId {
        OrgId::new(format!("{}-{worker}", self.session)).unwrap()
    }
}

/// A store that is also an audit log.
trait Store: KeyStore + AuditSink + AuditLog {}
impl<S: KeyStore + AuditSink + AuditLog> Store for S {}

async fn store(place: &Place) -> Arc<dyn Store> {
    #[cfg(feature = "sqlite")]
    if place.store.starts_with("sqlite:") {
        // Often enough that processes are killed while they merge.
        let options = keygate::store::SqliteOptions::new().merge_at(60);
        return Arc::new(options.open(&place.store).unwrap());
    }
    #[cfg(feature = "postgres")]
    {
        let url = postgres_support::url();
        let options = postgres_support::in_session(&url, &place.store, &place.session);
        Arc::new(options.connect().await.unwrap())
    }
    #[cfg(not(feature = "postgres"))]
    panic!("{place:?}: no store of this build");
}

/// A manager on that store, which is also its audit log.
async fn builder(place: &Place) -> KeyManagerBuilder {
    let store = store(place).await;
    KeyManager::builder(store.clone()).audit(store)
}

/// Waits until the server has finished the statements of the killed process.
async fn sessions_end(place: &Place) {
    #[cfg(feature = "postgres")]
    if !place.store.starts_with("sqlite:") {
        let administrator = postgres_support::administrator().await;
        let sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1";
        eventually("the server has finished the statements of the killed process", async || {
            administrator.query(sessions, &[&place.session]).await.unwrap().is_empty()
        })
        .await;
    }
    // SQLite has no server.
    let _ = place;
}

impl Change {
    /// The change as it is printed on a line.
    fn line(&self) -> String {
        match self {
            Self::Create { seed, name } => format!("create {seed} {name}"),
            Self::Rotate { seed, id } => format!("rotate {seed} {id}"),
            Self::Revoke { id } => format!("revoke {id}"),
            Self::Enable { id } => format!("enable {id}"),
            Self::Rename { id, name } => format!("rename {id} {name}"),
            Self::Delete { id } => format!("delete {id}"),
        }
    }

    fn parse(words: &[&str]) -> Self {
        let id = |text: &str| text.parse().unwrap();
        let seed = |text: &str| text.parse().unwrap();
        match *words {
            ["create", s, name] => Self::Create { seed: seed(s), name: name.into() },
            ["rotate", s, key] => Self::Rotate { seed: seed(s), id: id(key) },
            ["revoke", key] => Self::Revoke { id: id(key) },
            ["enable", key] => Self::Enable { id: id(key) },
            ["rename", key, name] => Self::Rename { id: id(key), name: name.into() },
            ["delete", key] => Self::Delete { id: id(key) },
            _ => panic!("{words:?}"),
        }
    }

    fn action(&self) -> ChangeAction {
        match self {
            Self::Create { .. } => ChangeAction::Created,
            Self::Rotate { .. } => ChangeAction::Rotated,
            Self::Revoke { .. } | Self::Enable { .. } | Self::Rename { .. } => {
                ChangeAction::Updated
            }
            Self::Delete { .. } => ChangeAction::Deleted,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test: the process that is killed"]
async fn child() {
    let Ok(store) = env::var("KEYGATE_KILL_CHILD") else { return };
    let place = Place { store, session: env::var("KEYGATE_KILL_SESSION").unwrap() };
    let workers: Vec<_> =
        (0..WORKERS).map(|worker| tokio::spawn(work(place.clone(), worker))).collect();
    for worker in workers {
        worker.await.unwrap();
    }
}

/// The keys whose requests are recorded, in an organisation of their own.
const COUNTED: u8 = 3;

fn counted() -> OrgId {
    OrgId::new("counted").unwrap()
}

/// Records a batch of requests, or the same one twice.
async fn record(log: &dyn Store) {
    let batch: Vec<_> = (0..5).map(|_| a_request()).collect();
    for _ in 0..=u8::from(number().is_multiple_of(4)) {
        log.record(&batch).await.unwrap();
    }
}

/// A request of one of a few keys in one of a few hours, with any outcome.
fn a_request() -> AuditRecord {
    let any = number();
    let outcome = Outcome::ALL[any as usize % (Outcome::ALL.len() - 1)];
    let mut event = RequestEvent::new("GET", "/", outcome);
    event.status = [None, Some(200), Some(404), Some(500)][(any >> 8) as usize % 4];
    event.count = (any >> 16) as u32 % 50 + 1;
    AuditRecord {
        id: AuditId::from_bytes(u128::from(number()).to_be_bytes()),
        at: Timestamp::from_unix_micros((any >> 32).cast_signed()).unwrap(),
        org: counted(),
        key: KeyId::from_bytes([(any >> 24) as u8 % COUNTED; 16]),
        event: AuditEvent::Request(event),
    }
}

/// Checks that the counts are those of the records.
async fn check_counts(place: &Place) -> u64 {
    let log = store(place).await;
    let mut total = 0;
    for key in (0..COUNTED).map(|key| KeyId::from_bytes([key; 16])) {
        let mut expected = BTreeMap::<_, UsageCounts>::new();
        let mut query = AuditQuery::new(counted(), AuditScope::KeyRequests(key)).limit(200);
        loop {
            let page = log.page(&query).await.unwrap();
            for record in &page.records {
                let hour = expected.entry(UsageBucket::hour_of(record.at)).or_default();
                hour.add(UsageCounts::of(record).unwrap());
            }
            let Some(older) = page.older else { break };
            query = query.at(Position::Before(older));
        }
        let all = UsageQuery::new(counted(), key, Timestamp::MIN, Timestamp::MAX);
        let found = log.usage(&all).await.unwrap();
        let found: BTreeMap<_, _> =
            found.into_iter().map(|bucket| (bucket.start, bucket.counts)).collect();
        assert_eq!(found, expected, "{key}");
        let of_hour = |counts: &UsageCounts| counts.allowed + counts.errors() + counts.refused;
        total += expected.values().map(of_hour).sum::<u64>();
    }
    total
}

/// Prints a whole line at once. The full stop shows that it is not truncated.
fn say(worker: u64, line: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("\n@ {worker} {line} .\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

async fn work(place: Place, worker: u64) {
    let rng = Seeded::new(number()); // audit ids begin with random bytes
    let store = store(&place).await;
    let builder = KeyManager::builder(store.clone()).audit(store.clone()).store_deadline(PATIENCE);
    let delivery = Delivery::strict().deadline(PATIENCE);
    let keys = builder.delivery(delivery).rng(rng.clone()).build().unwrap();
    let actor = Actor::new(place.org(worker), format!("worker {worker}"));
    loop {
        record(&*store).await;
        let present = keys.list(actor.org()).await.unwrap();
        let present: Vec<_> =
            present.iter().map(|key| (key.id, key.status == Status::Revoked)).collect();
        let seed = number();
        let change = Change::pick(seed, &present);
        rng.reset(seed);
        say(worker, &format!("begin {}", change.line()));
        let secret = change.make(&keys, &actor).await.unwrap();
        say(worker, &format!("done {}", secret.as_deref().unwrap_or("-")));
    }
}

/// The lines of one worker.
#[derive(Clone, Debug, Default)]
struct Report {
    keys: BTreeMap<KeyId, Key>,
    secrets: BTreeSet<String>,
    /// The acknowledged changes that had an effect.
    done: Vec<Change>,
    in_flight: Option<Change>,
}

impl Report {
    fn hear(&mut self, words: &[&str]) {
        match words {
            ["begin", change @ ..] => {
                assert_eq!(self.in_flight, None);
                let change = Change::parse(change);
                self.secrets.extend(change.issued().map(|(_, secret)| secret));
                self.in_flight = Some(change);
            }
            ["done", secret] => {
                let change = self.in_flight.take().unwrap();
                let issued = change.issued().map_or("-".to_owned(), |(_, secret)| secret);
                assert_eq!(issued, *secret, "the parent computed another secret");
                let before = self.keys.clone();
                change.apply(&mut self.keys);
                // An edit without an effect is not a change and leaves no record.
                if self.keys != before {
                    self.done.push(change);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The begun changes in the organisation's log, oldest first.
async fn logged(keys: &KeyManager, org: &OrgId) -> Vec<(KeyId, ChangeAction)> {
    let query = AuditQuery::new(org.clone(), AuditScope::OrgChanges).limit(200);
    let page = keys.audit_page(&query).await.unwrap().unwrap();
    assert_eq!(page.older, None, "a child makes fewer changes");
    let change = |record: &AuditRecord| match &record.event {
        AuditEvent::Change(change) => {
            assert_eq!(change.phase, ChangePhase::Begun, "{record:?}");
            (record.key, change.action)
        }
        other => panic!("{other:?}"),
    };
    page.records.iter().rev().map(change).collect()
}

/// Checks that the store holds all acknowledged changes, with or without the change in flight.
async fn check(place: &Place, workers: &BTreeMap<OrgId, Report>) {
    let keys = builder(place).await.build().unwrap();
    for (org, Report { keys: acknowledged, secrets, done, in_flight }) in workers {
        let found = stored(&keys, org, secrets).await;
        let mut begun: Vec<_> = done.iter().map(|c| (c.key(), c.action())).collect();
        let logged = logged(&keys, org).await;
        let is_done = found != *acknowledged;
        if let Some(change) = in_flight {
            let mut with = acknowledged.clone();
            change.apply(&mut with);
            assert!(!is_done || found == with, "{org}, {change:?}: {found:#?} {acknowledged:#?}");
            // Every change has its record. A record without its change is allowed.
            if is_done || logged.len() > begun.len() {
                begun.push((change.key(), change.action()));
            }
        } else {
            assert!(!is_done, "{org}: {found:#?} {acknowledged:#?}");
        }
        assert_eq!(logged, begun, "{org}: the audit log, in flight {in_flight:?}");
    }
    assert!(keys.shutdown(PATIENCE).await.is_complete());
}

/// Starts a child, reads its lines and kills it at a random moment.
fn cycle(place: &Place) -> BTreeMap<OrgId, Report> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "child"])
        .env("KEYGATE_KILL_CHILD", &place.store)
        .env("KEYGATE_KILL_SESSION", &place.session)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut workers: BTreeMap<_, _> =
        (0..WORKERS).map(|worker| (place.org(worker), Report::default())).collect();
    let mut hear = |line: io::Result<String>| {
        let line = line.unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["@", worker, rest @ .., "."] = &words[..] {
            workers.get_mut(&place.org(worker.parse().unwrap())).unwrap().hear(rest);
        }
    };
    // The moment: after a number of lines, plus some microseconds.
    let (heard, pause) = (number() % MOST_LINES, Duration::from_micros(number() % 3_000));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().take(heard as usize).for_each(&mut hear);
    let moment = Instant::now() + pause;
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "it ended by itself");
    lines.for_each(hear);
    workers
}

/// Repeats the cycle as often as configured, looks at what is left and checks the store each
/// time. Returns how many cycles there were.
fn kill_repeatedly(place: &Place, mut look: impl FnMut()) -> u64 {
    let cycles: u64 = env::var("KEYGATE_KILL_CYCLES").map_or(10, |cycles| cycles.parse().unwrap());
    let runtime = Handle::current();
    let (mut all, mut counts) = (BTreeMap::new(), 0);
    for number in 0..cycles {
        let session = format!("{}-{number}", place.session);
        let killed = Place { session, ..place.clone() };
        let workers = cycle(&killed);
        look();
        runtime.block_on(sessions_end(&killed));
        runtime.block_on(check(place, &workers));
        counts = runtime.block_on(check_counts(place));
        all.extend(workers);
    }
    // The changes of earlier cycles survived the later ones.
    runtime.block_on(check(place, &all));
    let done: usize = all.values().map(|report| report.done.len()).sum();
    println!("{cycles} cycles, {done} acknowledged changes, {counts} counted requests");
    assert!(done as u64 >= cycles && counts >= cycles, "too little happened");
    cycles
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_33_a_killed_process_loses_no_change_and_leaves_none_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let place = Place::new(format!("sqlite:{}", path.display()));
    let mut merging = 0;
    let cycles = tokio::task::block_in_place(|| {
        kill_repeatedly(&place, || {
            let db = rusqlite::Connection::open(&path).unwrap();
            // The child may have been killed before it made the tables.
            let sql = "SELECT count(*) > 0 FROM recent_slices";
            merging += db.query_row(sql, [], |row| row.get(0)).unwrap_or(0);
        })
    });
    println!("{merging} were killed while a table was merged");
    // Some three in ten are.
    assert!(merging > 0 || cycles < 50, "none was killed while it merged");
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_33_a_process_killed_on_postgres_loses_no_change_and_leaves_none_half_done() {
    postgres_support::in_schema(|options| async move {
        let place = Place::new(postgres_support::schema_of(&options));
        tokio::task::block_in_place(|| kill_repeatedly(&place, || {}));
    })
    .await;
}
