//! A process is killed during its changes, many times. Acknowledged changes are stored, and a
//! change under way is made completely or not at all.
//!
//! | variable | default | |
//! |---|---|---|
//! | `KEYGATE_KILL_CYCLES` | 10 | how often |
//! | `KEYGATE_KILL_STORE` | a new SQLite file | the URL of the store, SQLite or PostgreSQL |
//! | `KEYGATE_KILL_SCHEMA` | `keygate` | the schema in that PostgreSQL database |
//! | `KEYGATE_TEST_POSTGRES` | `postgres://postgres@127.0.0.1:5432/test` | for the test that makes and drops a schema of its own |
#![cfg(all(unix, any(feature = "sqlite", feature = "postgres"), feature = "tokio"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keygate::PostgresStore;
use keygate::audit::{AuditEvent, AuditQuery, AuditScope, ChangeAction, ChangePhase, Position};
use keygate::error::RandomError;
#[cfg(feature = "postgres")]
use keygate::store::PostgresOptions;
use keygate::{
    Actor, Delivery, Denial, KeyDigest, KeyFormat, KeyId, KeyManager, KeyManagerBuilder, KeyName,
    KeyPatch, NewKey, OrgId, Random, Status, SystemRandom, VerifyError,
};
use tokio::runtime::Runtime;

/// Concurrent workers, each with its own organisation.
const WORKERS: u64 = 3;
/// A busy machine is slow, and a child that gives up was not killed.
const PATIENCE: Duration = Duration::from_secs(20);
/// A cycle ends by itself after this many lines.
const MOST_LINES: u64 = 120;

/// Where the keys are stored, and how sessions are recognised.
#[derive(Clone, Debug)]
struct Place {
    url: String,
    /// The schema in PostgreSQL.
    schema: String,
    /// The application name that PostgreSQL shows for our sessions.
    session: String,
}

impl Place {
    fn in_session(&self, session: &str) -> Self {
        Self { session: session.to_owned(), ..self.clone() }
    }
}

/// A manager on that store, which is also its audit log.
async fn builder(place: &Place) -> KeyManagerBuilder {
    #[cfg(feature = "sqlite")]
    if place.url.starts_with("sqlite:") {
        let store = keygate::SqliteStore::open(&place.url).unwrap();
        return KeyManager::builder(store.clone()).audit(store);
    }
    #[cfg(feature = "postgres")]
    if place.url.starts_with("postgres") {
        let store = postgres(place).await;
        return KeyManager::builder(store.clone()).audit(store);
    }
    panic!("{}: no store of this build", place.url);
}

#[cfg(feature = "postgres")]
async fn postgres(place: &Place) -> PostgresStore {
    let mut config: tokio_postgres::Config = place.url.parse().unwrap();
    config.application_name(&place.session);
    let options = PostgresOptions::new(config).schema(&place.schema).unwrap();
    options.deadline(PATIENCE).connect().await.unwrap()
}

#[cfg(feature = "postgres")]
async fn administrator(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A server finishes the statements of a killed process. Waits until it has.
async fn sessions_end(place: &Place) {
    #[cfg(feature = "postgres")]
    if place.url.starts_with("postgres") {
        let administrator = administrator(&place.url).await;
        let sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1";
        let give_up = Instant::now() + Duration::from_secs(20);
        while !administrator.query(sessions, &[&place.session]).await.unwrap().is_empty() {
            assert!(Instant::now() < give_up, "sessions of a dead process are left");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    // SQLite has no server.
    let _ = place;
}

fn number() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom.fill(&mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

// ------------------------------------------------------------------ changes

/// Random bytes that the parent can compute too, so that it knows the secret of a change that
/// was not acknowledged.
#[derive(Clone, Debug)]
struct Seeded(Arc<(Mutex<u64>, AtomicU64)>);

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(Arc::new((Mutex::new(seed), AtomicU64::new(0))))
    }

    fn reset(&self, seed: u64) {
        *self.0.0.lock().unwrap() = seed;
        self.0.1.store(0, Ordering::SeqCst);
    }
}

impl Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        let seed = *self.0.0.lock().unwrap();
        for chunk in bytes.chunks_mut(32) {
            let count = self.0.1.fetch_add(1, Ordering::SeqCst);
            let digest = KeyDigest::of([seed.to_be_bytes(), count.to_be_bytes()].concat());
            chunk.copy_from_slice(&digest.as_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// One change, as it is printed on a line.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Create { seed: u64, name: String },
    Rotate { seed: u64, id: KeyId },
    Revoke { id: KeyId },
    Enable { id: KeyId },
    Rename { id: KeyId, name: String },
    Delete { id: KeyId },
}

impl Change {
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

    /// The secret that the change issues, and the id if it creates a key.
    fn issued(&self) -> Option<(KeyId, String)> {
        let (Self::Create { seed, .. } | Self::Rotate { seed, .. }) = self else { return None };
        let random = Seeded::new(*seed);
        let secret = KeyFormat::default().generate(&random).unwrap().expose_secret().to_owned();
        match self {
            Self::Rotate { id, .. } => Some((*id, secret)),
            _ => Some((KeyId::random(&random).unwrap(), secret)),
        }
    }

    fn key(&self) -> KeyId {
        match self {
            Self::Create { .. } => self.issued().unwrap().0,
            Self::Rotate { id, .. }
            | Self::Revoke { id }
            | Self::Enable { id }
            | Self::Rename { id, .. }
            | Self::Delete { id } => *id,
        }
    }
}

// -------------------------------------------------------------------- child

#[test]
#[ignore = "not a test: the process that is killed"]
fn child() {
    let Ok(url) = env::var("KEYGATE_KILL_CHILD") else { return };
    let schema = env::var("KEYGATE_KILL_CHILD_SCHEMA").unwrap();
    let place = Place { url, schema, session: env::var("KEYGATE_KILL_CYCLE").unwrap() };
    runtime().block_on(async {
        let workers: Vec<_> =
            (0..WORKERS).map(|worker| tokio::spawn(work(place.clone(), worker))).collect();
        for worker in workers {
            worker.await.unwrap();
        }
    });
}

/// Prints a whole line at once.
fn say(worker: u64, line: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("\n@ {worker} {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

async fn work(place: Place, worker: u64) {
    let random = Seeded::new(number()); // audit ids begin with random bytes
    let builder = builder(&place).await.store_deadline(PATIENCE);
    let delivery = Delivery::strict().deadline(PATIENCE);
    let keys = builder.delivery(delivery).random(random.clone()).build().unwrap();
    let org = OrgId::new(format!("{}-{worker}", place.session)).unwrap();
    let actor = Actor::new(org, format!("worker {worker}"));
    loop {
        let present = keys.list(actor.org()).await.unwrap();
        let one = present.get(number() as usize % present.len().max(1));
        let (seed, name) = (number(), format!("name-{}", number() % 10));
        let change = match (one, number() % 10) {
            (Some(key), 0..=3) => Change::Rotate { seed, id: key.id },
            (Some(key), 4 | 5) if key.status == Status::Active => Change::Revoke { id: key.id },
            (Some(key), 4 | 5) => Change::Enable { id: key.id },
            (Some(key), 6) => Change::Rename { id: key.id, name: format!("{name}-new") },
            (Some(key), 7) => Change::Delete { id: key.id },
            (Some(key), _) if present.len() >= 8 => Change::Delete { id: key.id },
            _ => Change::Create { seed, name },
        };
        random.reset(seed);
        say(worker, &format!("begin {}", change.line()));
        let secret = match &change {
            Change::Create { name, .. } => {
                Some(keys.create(&actor, NewKey::named(name).unwrap()).await.unwrap().secret)
            }
            Change::Rotate { id, .. } => Some(keys.rotate(&actor, id).await.unwrap().secret),
            Change::Revoke { id } => {
                keys.update(&actor, id, KeyPatch::revoke()).await.unwrap();
                None
            }
            Change::Enable { id } => {
                keys.update(&actor, id, KeyPatch::enable()).await.unwrap();
                None
            }
            Change::Rename { id, name } => {
                let name = KeyName::new(name).unwrap();
                keys.update(&actor, id, KeyPatch::rename(name)).await.unwrap();
                None
            }
            Change::Delete { id } => {
                keys.delete(&actor, id).await.unwrap();
                None
            }
        };
        let secret = secret.as_ref().map_or("-", |secret| secret.expose_secret());
        say(worker, &format!("done {secret}"));
    }
}

// ------------------------------------------------------------------- parent

/// A key, as seen from outside.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    name: String,
    revoked: bool,
    revision: u32,
    /// The only one of all issued secrets that works for it.
    secret: String,
}

/// The lines of one worker.
#[derive(Clone, Debug, Default)]
struct Report {
    keys: BTreeMap<KeyId, Key>,
    secrets: BTreeSet<String>,
    acknowledged: usize,
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
                apply(&mut self.keys, &change);
                self.acknowledged += 1;
                // An edit without an effect is not a change and leaves no record.
                if self.keys != before {
                    self.done.push(change);
                }
            }
            other => panic!("{other:?}"),
        }
    }

    /// The two allowed states: all acknowledged changes, without and with the change in
    /// flight.
    fn possible(&self) -> Vec<BTreeMap<KeyId, Key>> {
        let mut possible = vec![self.keys.clone()];
        if let Some(change) = &self.in_flight {
            let mut with = self.keys.clone();
            apply(&mut with, change);
            possible.push(with);
        }
        possible
    }
}

fn apply(keys: &mut BTreeMap<KeyId, Key>, change: &Change) {
    let issued = change.issued();
    if let (Change::Create { name, .. }, Some((id, secret))) = (change, issued.clone()) {
        keys.insert(id, Key { name: name.clone(), revoked: false, revision: 1, secret });
        return;
    }
    if let Change::Delete { id } = change {
        keys.remove(id).unwrap();
        return;
    }
    let key = keys.get_mut(&change.key()).unwrap();
    let before = key.clone();
    match change {
        Change::Rotate { .. } => key.secret = issued.unwrap().1,
        Change::Revoke { .. } => key.revoked = true,
        Change::Enable { .. } => key.revoked = false,
        Change::Rename { name, .. } => key.name.clone_from(name),
        Change::Create { .. } | Change::Delete { .. } => {}
    }
    if *key != before {
        key.revision += 1; // an edit without an effect does not count
    }
}

/// The stored state, read through the library: each key with the secret that works for it.
async fn found(keys: &KeyManager, org: &OrgId, report: &Report) -> BTreeMap<KeyId, Key> {
    let mut secrets = BTreeMap::<KeyId, Vec<String>>::new();
    for secret in &report.secrets {
        match keys.verify(secret, None).await {
            Ok(key) => {
                assert_eq!((key.record().status, key.org()), (Status::Active, org));
                secrets.entry(key.id()).or_default().push(secret.clone());
            }
            Err(VerifyError::Denied { denial: Denial::Revoked, key }) => {
                secrets.entry(key.id).or_default().push(secret.clone());
            }
            Err(VerifyError::Unknown) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    let mut found = BTreeMap::new();
    for key in keys.list(org).await.unwrap() {
        let leading = secrets.remove(&key.id).unwrap_or_default();
        assert_eq!(leading.len(), 1, "secrets that work for {key:?}: {leading:?}");
        let shown = Key {
            name: key.name.as_str().to_owned(),
            revoked: key.status == Status::Revoked,
            revision: key.revision.get(),
            secret: leading.concat(),
        };
        found.insert(key.id, shown);
    }
    assert!(secrets.is_empty(), "secrets of keys that are not listed: {secrets:?}");
    found
}

/// The begun changes in the organisation's log, oldest first.
async fn logged(keys: &KeyManager, org: &OrgId) -> Vec<(KeyId, ChangeAction)> {
    let mut query = AuditQuery::new(org.clone(), AuditScope::OrgChanges).limit(200);
    let mut records = Vec::new();
    loop {
        let page = keys.audit_page(&query).await.unwrap().unwrap();
        records.extend(page.records);
        match page.older {
            Some(older) => query = query.at(Position::Before(older)),
            None => break,
        }
    }
    let change = |record: &keygate::audit::AuditRecord| match &record.event {
        AuditEvent::Change(change) => {
            assert_eq!(change.phase, ChangePhase::Begun, "{record:?}");
            (record.key, change.action)
        }
        other => panic!("{other:?}"),
    };
    records.iter().rev().map(change).collect()
}

/// Counts of what a cycle showed about the change in flight.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: usize,
    done: usize,
    not_done: usize,
    rotations_in_flight: usize,
}

async fn check(place: &Place, workers: &BTreeMap<OrgId, Report>, tally: &mut Tally) {
    let keys = builder(place).await.build().unwrap();
    for (org, report) in workers {
        let found = found(&keys, org, report).await;
        let possible = report.possible();
        assert!(
            possible.contains(&found),
            "{org}, in flight {:?}:\n found {found:#?}\n acknowledged {:#?}",
            report.in_flight,
            report.keys
        );
        let mut begun: Vec<_> = report.done.iter().map(|c| (c.key(), c.action())).collect();
        let logged = logged(&keys, org).await;
        if let Some(change) = &report.in_flight {
            // Every change has its record. A record without its change is allowed.
            let is_done = found != report.keys;
            if is_done || logged.len() > begun.len() {
                begun.push((change.key(), change.action()));
            }
            *(if is_done { &mut tally.done } else { &mut tally.not_done }) += 1;
            tally.rotations_in_flight += usize::from(matches!(change, Change::Rotate { .. }));
        }
        assert_eq!(logged, begun, "{org}: the audit log, in flight {:?}", report.in_flight);
        tally.acknowledged += report.acknowledged;
    }
    assert!(keys.shutdown(Duration::from_secs(10)).await.is_complete());
}

/// Starts a child, reads its lines and kills it at a random moment.
fn cycle(place: &Place) -> BTreeMap<OrgId, Report> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "child"])
        .env("KEYGATE_KILL_CHILD", &place.url)
        .env("KEYGATE_KILL_CHILD_SCHEMA", &place.schema)
        .env("KEYGATE_KILL_CYCLE", &place.session)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let org = |worker: &str| OrgId::new(format!("{}-{worker}", place.session)).unwrap();
    let mut workers: BTreeMap<_, _> =
        (0..WORKERS).map(|worker| (org(&worker.to_string()), Report::default())).collect();
    let mut hear = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["@", worker, rest @ ..] = &words[..] {
            workers.get_mut(&org(worker)).unwrap().hear(rest);
        }
    };
    // The moment: after a number of lines, plus some microseconds.
    let (heard, pause) = (number() % MOST_LINES, Duration::from_micros(number() % 3_000));
    let mut line = String::new();
    for _ in 0..heard {
        line.clear();
        lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            break;
        }
        hear(&line);
    }
    let moment = Instant::now() + pause;
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert_eq!(status.signal(), Some(9), "it ended by itself: {stderr}");
    // The lines printed before it died. A truncated line does not count.
    let mut rest = String::new();
    io::Read::read_to_string(&mut lines, &mut rest).unwrap();
    rest.split_inclusive('\n').filter(|line| line.ends_with('\n')).for_each(&mut hear);
    workers
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Repeats the cycle as often as configured and checks the store each time.
fn kill_repeatedly(place: &Place) {
    let cycles: u64 = env::var("KEYGATE_KILL_CYCLES").map_or(10, |cycles| cycles.parse().unwrap());
    let runtime = runtime();
    let (mut tally, mut all) = (Tally::default(), BTreeMap::new());
    for number in 0..cycles {
        let killed = place.in_session(&format!("{}-{number}", place.session));
        let workers = cycle(&killed);
        runtime.block_on(sessions_end(&killed));
        runtime.block_on(check(place, &workers, &mut tally));
        all.extend(workers);
    }
    println!("{cycles} cycles: {tally:?}");
    // The changes of earlier cycles survived the later ones.
    runtime.block_on(check(place, &all, &mut Tally::default()));
    assert!(tally.acknowledged as u64 >= cycles, "too little happened: {tally:?}");
}

#[cfg(feature = "sqlite")]
#[test]
fn case_33_a_killed_process_loses_no_change_and_leaves_none_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.db");
    let url = env::var("KEYGATE_KILL_STORE").unwrap_or(format!("sqlite:{}", file.display()));
    let schema = env::var("KEYGATE_KILL_SCHEMA").unwrap_or("keygate".to_owned());
    kill_repeatedly(&Place { url, schema, session: format!("kill-{:016x}", number()) });
}

/// A schema that is dropped with its content, even when the test fails.
#[cfg(feature = "postgres")]
struct OwnSchema(Place);

#[cfg(feature = "postgres")]
impl Drop for OwnSchema {
    fn drop(&mut self) {
        let Place { url, schema, .. } = &self.0;
        let sql = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
        let dropped =
            runtime().block_on(async { administrator(url).await.batch_execute(&sql).await });
        // A second panic would hide the first one.
        assert!(dropped.is_ok() || std::thread::panicking(), "{dropped:?}");
    }
}

#[cfg(feature = "postgres")]
#[test]
#[ignore = "needs PostgreSQL"]
fn case_33_a_process_killed_on_postgres_loses_no_change_and_leaves_none_half_done() {
    let url = env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or("postgres://postgres@127.0.0.1:5432/test".to_owned());
    let run = format!("{:016x}", number());
    let (schema, session) = (format!("keygate_kill_{run}"), format!("kill-{run}"));
    let schema = OwnSchema(Place { url, schema, session });
    kill_repeatedly(&schema.0);
}
