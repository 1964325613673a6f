//! The example server for a long time:
//! `KEYGATE_SOAK_MINUTES=30 cargo bench -p keygate-benches --bench soak`.
//!
//! It has its keys in a SQLite file, with buffered audit. This process asks it about
//! 400 times a second, well below what it could answer: with good, revoked, unknown,
//! malformed and no keys, from an address that is not allowed, for slow answers, and
//! as a client that goes away; and changes keys of several organisations meanwhile.
//! What it should hold all the time is looked at every 10 seconds: memory, file
//! descriptors and threads. In the end there is an audit record of each answer to a
//! request with a known key, and of each change. What the server could not do because
//! the disk was busy with other things (503) is counted apart.
//!
//! | variable | default | |
//! |---|---|---|
//! | `KEYGATE_SOAK_MINUTES` | 1 | how long |
//! | `KEYGATE_SOAK_RATE` | 400 | requests a second |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod support;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use getrandom::SysRng;
use keygate::KeyFormat;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::support::client::{Answer, Client};
use crate::support::server::Server;

const ORGS: usize = 4;
/// An organisation may have 20; these besides the ones that are never changed.
const CHANGING: usize = 14;
const CALLERS: u32 = 16;
/// Between two changes in one organisation.
const CHANGE_EVERY: Duration = Duration::from_millis(500);
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Whoever asks there has gone before the answer.
const NEVER_AWAITED: &str = "/v1/slow/3000";
/// Whoever asks there goes away at once.
const NEVER_READ: &str = "/v1/status/299";
const TARGET: f64 = 10.0;

// ---- what is counted ----

#[derive(Default)]
struct Tally {
    answers: u64,
    /// Those to requests with a known key, by the outcome that is to be recorded.
    recorded: BTreeMap<&'static str, u64>,
    /// Requests with a known key whose client has gone away.
    aborted: u64,
    /// Requests with a known key of which it is not known what became.
    in_doubt: u64,
    changes: u64,
    /// Those of which that is not known either.
    changes_in_doubt: u64,
    unavailable: u64,
    slowest: Duration,
    odd: u64,
}

impl Tally {
    fn is_odd(&mut self, what: &str) {
        self.odd += 1;
        if self.odd <= 20 {
            println!("odd: {what}");
        }
    }
}

#[derive(Clone, Default)]
struct Counts(Arc<Mutex<Tally>>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap()
    }

    /// An answer with the status that it should have; `outcome` is what its record
    /// should say, where there should be one.
    fn answer(
        &self,
        asked: &str,
        expected: u16,
        outcome: Option<&'static str>,
        begun: Instant,
        answer: &io::Result<Answer>,
    ) {
        let mut tally = self.lock();
        tally.slowest = tally.slowest.max(begun.elapsed());
        tally.answers += 1;
        match answer {
            Ok(answer) if answer.status == expected => {
                if let Some(outcome) = outcome {
                    *tally.recorded.entry(outcome).or_default() += 1;
                }
            }
            other => {
                tally.in_doubt += u64::from(outcome.is_some());
                match other {
                    Ok(answer) if answer.status == 503 => tally.unavailable += 1,
                    odd => {
                        let odd =
                            odd.as_ref().map(|a| (a.status, String::from_utf8_lossy(&a.body)));
                        tally.is_odd(&format!("{asked}: {expected} expected, {odd:?}"));
                    }
                }
            }
        }
    }
}

fn number(below: usize) -> usize {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    (u64::from_be_bytes(bytes) % below as u64) as usize
}

fn one_of<T>(items: &[T]) -> &T {
    &items[number(items.len())]
}

// ---- the keys ----

/// Those of one organisation that stay as they are.
struct Steady {
    good: Vec<(String, String)>,
    revoked: String,
    elsewhere: String,
}

/// One of those that are changed all the time.
struct Changing {
    id: String,
    name: String,
    secret: String,
    revoked: bool,
}

/// The management API for one organisation.
struct Manager {
    client: Client,
    login: String,
    counts: Counts,
    /// There was a change of which nobody knows whether it took place.
    in_doubt: bool,
}

impl Manager {
    fn new(address: SocketAddr, org: usize, counts: Counts) -> Self {
        let (client, login) = (Client::new(address, 50), format!("X-Demo-Org: org-{org}\r\n"));
        Self { client, login, counts, in_doubt: false }
    }

    /// The JSON of the answer, if it is the one that is expected.
    async fn ask(&mut self, method: &str, path: &str, body: &str, expected: u16) -> Option<Value> {
        let (begun, target) = (Instant::now(), format!("/settings{path}"));
        let answer = self.client.ask(method, &target, &self.login, body).await;
        self.counts.answer(&format!("{method} {target}"), expected, None, begun, &answer);
        let answer = answer.ok().filter(|answer| answer.status == expected)?;
        Some(serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    async fn change(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
        expected: u16,
    ) -> Option<Value> {
        let answer = self.ask(method, &format!("/api/keys{path}"), body, expected).await;
        let mut tally = self.counts.lock();
        match &answer {
            Some(_) => tally.changes += 1,
            None => (tally.changes_in_doubt, self.in_doubt) = (tally.changes_in_doubt + 1, true),
        }
        answer
    }

    async fn create(&mut self, name: &str, allowlist: &[&str]) -> Option<Changing> {
        let body = json!({ "name": name, "expiration": "1_year", "ip_allowlist": allowlist });
        let made = self.change("POST", "", &body.to_string(), 201).await?;
        let (id, secret) = (text(&made["key"]["id"]), text(&made["secret"]));
        Some(Changing { id, name: name.to_owned(), secret, revoked: false })
    }

    async fn steady(&mut self) -> Option<Steady> {
        let mut good = Vec::new();
        for allowlist in [&[][..], &["127.0.0.0/8"], &["::1", "127.0.0.1"]] {
            let key = self.create("steady", allowlist).await?;
            good.push((key.id, key.secret));
        }
        let revoked = self.create("revoked", &[]).await?;
        let body = r#"{"status":"revoked"}"#;
        self.change("PATCH", &format!("/{}", revoked.id), body, 200).await?;
        let elsewhere = self.create("elsewhere", &["192.0.2.0/24"]).await?.secret;
        Some(Steady { good, revoked: revoked.secret, elsewhere })
    }

    /// Makes one change, or looks; and sees what the key may do afterwards.
    async fn work(&mut self, keys: &mut Vec<Changing>, steady: &Steady) {
        if self.in_doubt {
            keys.clear();
            return self.begin_anew().await;
        }
        // Whatever comes to nothing has been counted, and is cleared up next time.
        let _ = match number(10) {
            0..=2 if keys.len() < CHANGING => self.add(keys).await,
            0..=2 => self.delete(keys).await,
            3 | 4 if !keys.is_empty() => self.edit(keys).await,
            5 | 6 if !keys.is_empty() => self.rotate(keys).await,
            7 => self.list(keys.len()).await,
            8 => self.open_page().await,
            _ => self.read_audit_log(&one_of(&steady.good).0).await,
        };
    }

    async fn begin_anew(&mut self) {
        // What was given up may still take place a little later.
        sleep(Duration::from_secs(3)).await;
        let Some(listed) = self.ask("GET", "/api/keys", "", 200).await else { return };
        self.in_doubt = false;
        for key in changing(&listed) {
            let path = format!("/{}?confirm_name={}", text(&key["id"]), text(&key["name"]));
            self.change("DELETE", &path, "", 204).await;
        }
    }

    async fn add(&mut self, keys: &mut Vec<Changing>) -> Option<()> {
        let key = self.create(&format!("CI-{}", number(1_000)), &[]).await?;
        self.use_of(&key).await;
        keys.push(key);
        Some(())
    }

    async fn delete(&mut self, keys: &mut Vec<Changing>) -> Option<()> {
        let key = keys.swap_remove(number(keys.len()));
        let path = format!("/{}?confirm_name={}", key.id, key.name);
        self.change("DELETE", &path, "", 204).await?;
        self.is_refused(&key.secret).await;
        Some(())
    }

    async fn edit(&mut self, keys: &mut [Changing]) -> Option<()> {
        let place = number(keys.len());
        let key = &mut keys[place];
        key.revoked = !key.revoked;
        key.name = format!("CI-{}", 1_000 + number(1_000));
        let status = if key.revoked { "revoked" } else { "active" };
        let body = json!({ "status": status, "name": key.name }).to_string();
        self.change("PATCH", &format!("/{}", key.id), &body, 200).await?;
        self.use_of(key).await;
        Some(())
    }

    async fn rotate(&mut self, keys: &mut [Changing]) -> Option<()> {
        let place = number(keys.len());
        let key = &mut keys[place];
        let body = json!({ "confirm_name": key.name }).to_string();
        let rotated = self.change("POST", &format!("/{}/rotate", key.id), &body, 200).await?;
        let old = std::mem::replace(&mut key.secret, text(&rotated["secret"]));
        self.is_refused(&old).await;
        self.use_of(key).await;
        Some(())
    }

    async fn list(&mut self, keys: usize) -> Option<()> {
        let listed = self.ask("GET", "/api/keys", "", 200).await?;
        let found = changing(&listed).count();
        if found != keys {
            self.counts.lock().is_odd(&format!("{found} keys are listed instead of {keys}"));
        }
        Some(())
    }

    async fn open_page(&mut self) -> Option<()> {
        for path in ["", "/api/openapi.json", "/api/keys/no-such-key"] {
            let expected = if path.ends_with("key") { 404 } else { 200 };
            self.ask("GET", path, "", expected).await?;
        }
        Some(())
    }

    /// Some pages, from the newest on.
    async fn read_audit_log(&mut self, id: &str) -> Option<()> {
        let mut cursor = String::new();
        for _ in 0..3 {
            let path = format!("/api/keys/{id}/audit?limit=200{cursor}");
            let page = self.ask("GET", &path, "", 200).await?;
            cursor = format!("&before={}", page["older"].as_str()?);
        }
        Some(())
    }

    async fn use_of(&mut self, key: &Changing) {
        let (expected, outcome) = if key.revoked { (401, "revoked") } else { (200, "allowed") };
        self.verify(&key.secret, expected, Some(outcome)).await;
    }

    async fn is_refused(&mut self, secret: &str) {
        self.verify(secret, 401, None).await;
    }

    async fn verify(&mut self, secret: &str, expected: u16, outcome: Option<&'static str>) {
        let (begun, login) = (Instant::now(), bearer(secret));
        let answer = self.client.ask("GET", "/v1/whoami", &login, "").await;
        self.counts.answer("a changed key", expected, outcome, begun, &answer);
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Those of the listed keys that are changed all the time.
fn changing(listed: &Value) -> impl Iterator<Item = &Value> {
    let keys = listed["keys"].as_array().into_iter().flatten();
    keys.filter(|key| key["name"].as_str().is_some_and(|name| name.starts_with("CI-")))
}

// ---- the requests ----

fn bearer(secret: &str) -> String {
    format!("Authorization: Bearer {secret}\r\n")
}

/// Well-formed, and nobody's.
fn unknown() -> String {
    KeyFormat::default().generate(&mut SysRng).unwrap().expose_secret().to_owned()
}

fn malformed() -> String {
    let mut key = unknown();
    match number(4) {
        0 => key.push('x'),
        1 => key.truncate(number(40)),
        2 => key = key.repeat(2 + number(20)),
        _ => {
            // One letter is another one, and the checksum does not fit.
            let last = key.pop().unwrap();
            key.push(if last == '0' { '1' } else { '0' });
        }
    }
    key
}

struct Caller {
    address: SocketAddr,
    client: Client,
    keys: Arc<[Steady]>,
    counts: Counts,
}

impl Caller {
    async fn call(&mut self) {
        let org = number(self.keys.len());
        let good = bearer(&one_of(&self.keys[org].good).1);
        let allowed = Some("allowed");
        match number(100) {
            0..=49 => self.ask("GET", "/v1/whoami", &good, 200, allowed).await,
            50..=59 => {
                let status = *one_of(&[200, 201, 204, 301, 304, 400, 404, 418, 429, 500, 503]);
                let method = *one_of(&["GET", "POST", "PUT", "HEAD", "DELETE"]);
                self.ask(method, &format!("/v1/status/{status}"), &good, status, allowed).await;
            }
            60..=64 => {
                let target = format!("/v1/slow/{}", one_of(&[5, 20, 100]));
                self.ask("GET", &target, &good, 200, allowed).await;
            }
            65 | 66 => self.ask("GET", "/v1/nowhere", &good, 404, allowed).await,
            67..=75 => {
                let revoked = bearer(&self.keys[org].revoked);
                self.ask("GET", "/v1/whoami", &revoked, 401, Some("revoked")).await;
            }
            76..=80 => {
                let elsewhere = bearer(&self.keys[org].elsewhere);
                let outcome = Some("ip_not_allowed");
                self.ask("GET", "/v1/whoami", &elsewhere, 403, outcome).await;
            }
            81..=86 => self.ask("GET", "/v1/whoami", &bearer(&unknown()), 401, None).await,
            87..=92 => self.ask("GET", "/v1/whoami", &bearer(&malformed()), 401, None).await,
            93 | 94 => self.ask("GET", "/v1/whoami", "", 401, None).await,
            95 => self.ask("GET", "/healthz", "", 200, None).await,
            96 => self.go_away("/v1/whoami", &good[..good.len() / 2], Duration::ZERO).await,
            97 => {
                self.counts.lock().aborted += 1;
                self.go_away(NEVER_READ, &format!("{good}\r\n"), Duration::ZERO).await;
            }
            _ => {
                self.counts.lock().aborted += 1;
                let pause = Duration::from_millis(20 + number(100) as u64);
                self.go_away(NEVER_AWAITED, &format!("{good}\r\n"), pause).await;
            }
        }
    }

    async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        expected: u16,
        outcome: Option<&'static str>,
    ) {
        let begun = Instant::now();
        let answer = self.client.ask(method, target, headers, "").await;
        let asked = format!("{method} {target}");
        self.counts.answer(&asked, expected, outcome, begun, &answer);
    }

    /// Sends that, which may be less than a request, and closes the connection.
    async fn go_away(&self, target: &str, rest: &str, pause: Duration) {
        let gone = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let request = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n{rest}", self.address);
            stream.write_all(request.as_bytes()).await?;
            sleep(pause).await;
            io::Result::Ok(())
        };
        if let Err(error) = gone.await {
            self.counts.lock().is_odd(&format!("{target}: {error}"));
        }
    }
}

// ---- the server, seen from outside ----

struct Sample {
    memory: f64,
    files: usize,
    threads: u64,
}

impl Sample {
    fn of(process: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Self {
            memory: field("VmRSS:") as f64 / 1024.0,
            files: fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
            threads: field("Threads:"),
        }
    }
}

/// The database with its log, in MiB.
fn size(file: &Path) -> f64 {
    let length = |end: &str| {
        let path = PathBuf::from(format!("{}{end}", file.display()));
        path.metadata().map_or(0, |file| file.len())
    };
    (length("") + length("-wal")) as f64 / f64::from(1 << 20)
}

/// Looks at it every 10 seconds until then, and prints what it sees.
async fn watch(server: &Server, file: &Path, counts: &Counts, until: Instant) -> Vec<Sample> {
    println!(
        "{:>8}{:>10}{:>7}{:>9}{:>10}{:>12}{:>13}{:>9}{:>6}{:>6}",
        "seconds",
        "RSS MiB",
        "fds",
        "threads",
        "file MiB",
        "requests/s",
        "slowest ms",
        "changes",
        "503s",
        "odd"
    );
    let (begun, mut samples, mut before) = (Instant::now(), Vec::new(), 0);
    let mut ticks = interval(SAMPLE_EVERY);
    ticks.tick().await;
    while Instant::now() < until {
        ticks.tick().await;
        let sample = Sample::of(server.id());
        let mut tally = counts.lock();
        let rate = (tally.answers - before) as f64 / SAMPLE_EVERY.as_secs_f64();
        println!(
            "{:>8.0}{:>10.1}{:>7}{:>9}{:>10.1}{rate:>12.0}{:>13.1}{:>9}{:>6}{:>6}",
            begun.elapsed().as_secs_f64(),
            sample.memory,
            sample.files,
            sample.threads,
            size(file),
            tally.slowest.as_secs_f64() * 1e3,
            tally.changes,
            tally.unavailable,
            tally.odd,
        );
        (before, tally.slowest) = (tally.answers, Duration::ZERO);
        drop(tally);
        samples.push(sample);
    }
    samples
}

// ---- the whole ----

fn variable(name: &str, default: f64) -> f64 {
    env::var(name).map_or(default, |value| value.parse().expect(name))
}

async fn soak() {
    let minutes = variable("KEYGATE_SOAK_MINUTES", 1.0);
    let rate = variable("KEYGATE_SOAK_RATE", 400.0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keygate.db");
    let server = Server::start(Server::example(&file).env("RUST_LOG", "warn"));
    let (address, counts) = (server.address, Counts::default());
    println!("{minutes} minutes, {rate} requests a second");

    let mut managers: Vec<_> =
        (0..ORGS).map(|org| Manager::new(address, org, counts.clone())).collect();
    let mut steady = Vec::new();
    for manager in &mut managers {
        let its = loop {
            match manager.steady().await {
                Some(its) => break its,
                // Other processes keep the disk busy.
                None => sleep(Duration::from_secs(1)).await,
            }
        };
        steady.push(its);
    }
    let steady: Arc<[Steady]> = steady.into();
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut tasks = JoinSet::new();
    for (org, mut manager) in managers.into_iter().enumerate() {
        let steady = Arc::clone(&steady);
        tasks.spawn(async move {
            let (mut keys, mut ticks) = (Vec::new(), interval(CHANGE_EVERY));
            while Instant::now() < until {
                ticks.tick().await;
                manager.work(&mut keys, &steady[org]).await;
            }
        });
    }
    for n in 0..CALLERS {
        // Some connections live for a request, some for hundreds.
        let client = Client::new(address, 1 + n * n);
        let mut caller =
            Caller { address, client, keys: Arc::clone(&steady), counts: counts.clone() };
        tasks.spawn(async move {
            let mut ticks = interval(Duration::from_secs_f64(f64::from(CALLERS) / rate));
            while Instant::now() < until {
                ticks.tick().await;
                caller.call().await;
            }
        });
    }
    let samples = watch(&server, &file, &counts, until).await;
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    stop_while_answering(server, &steady, &counts).await;
    report(&file, &samples, &counts.lock());
}

/// What is under way at SIGTERM is answered, and recorded.
async fn stop_while_answering(server: Server, steady: &[Steady], counts: &Counts) {
    let mut tasks = JoinSet::new();
    for keys in steady {
        let (mut client, login) = (Client::new(server.address, 1), bearer(&keys.good[0].1));
        let counts = counts.clone();
        tasks.spawn(async move {
            let begun = Instant::now();
            let answer = client.ask("GET", "/v1/slow/1000", &login, "").await;
            counts.answer("at SIGTERM", 200, Some("allowed"), begun, &answer);
        });
    }
    sleep(Duration::from_millis(300)).await;
    let stopped = tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
    println!("{stopped}");
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

fn report(file: &Path, samples: &[Sample], tally: &Tally) {
    let file = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let count = |sql: &str| -> u64 {
        let counted = file.query_row(sql, [], |row| row.get::<_, i64>(0));
        u64::try_from(counted.unwrap()).unwrap()
    };
    let gone = format!("endpoint IN ('{NEVER_AWAITED}', '{NEVER_READ}')");
    let mut right = true;
    println!("answers: {}, 503s: {}, odd: {}", tally.answers, tally.unavailable, tally.odd);
    for (outcome, answers) in &tally.recorded {
        let sql = "SELECT count(*) FROM all_requests WHERE NOT";
        let rows = count(&format!("{sql} {gone} AND outcome = '{outcome}'"));
        println!("records of {outcome}: {rows} of {answers}");
        right &= (*answers..=answers + tally.in_doubt).contains(&rows);
    }
    let rows = count(&format!("SELECT count(*) FROM all_requests WHERE {gone}"));
    println!("records of clients that went away: {rows} of at most {}", tally.aborted);
    right &= rows <= tally.aborted;
    let aborted = format!("SELECT count(*) FROM all_requests WHERE {gone} AND outcome = 'aborted'");
    println!("  as aborted: {}", count(&aborted));
    let rows = count("SELECT count(*) FROM changes");
    let in_doubt = tally.changes_in_doubt;
    println!("records of changes: {rows} of {}, in doubt {in_doubt}", tally.changes);
    // One that came to nothing may have a second record, which says so.
    right &= (tally.changes..=tally.changes + 2 * in_doubt).contains(&rows);
    let answered: u64 = tally.recorded.values().sum();
    let rows = count(&format!("SELECT count(*) FROM all_requests WHERE NOT {gone}"));
    println!("records of answers: {rows} of {answered}, in doubt {}", tally.in_doubt);
    right &= (answered..=answered + tally.in_doubt).contains(&rows);

    // A fifth of the time warms up: caches, pools and the file's log come to their size.
    let warm = &samples[samples.len() / 5..];
    let edge = (warm.len() / 4).clamp(1, 6);
    let mean = |samples: &[Sample]| {
        samples.iter().map(|sample| sample.memory).sum::<f64>() / samples.len() as f64
    };
    let (first, last) = (mean(&warm[..edge]), mean(&warm[warm.len() - edge..]));
    let growth = (last / first - 1.0) * 100.0;
    let (begin, end) = (&warm[0], &warm[warm.len() - 1]);
    println!("file descriptors: {} first, {} last", begin.files, end.files);
    println!("threads: {} first, {} last", begin.threads, end.threads);
    println!("memory: {first:.1} MiB, then {last:.1} MiB: {growth:+.1} % (target within {TARGET})");
    assert!(right, "the records are not those of the answers");
    assert_eq!(tally.odd, 0, "some answers were odd");
}

fn main() {
    let mut one_thread = tokio::runtime::Builder::new_current_thread();
    one_thread.enable_all().build().unwrap().block_on(soak());
}
