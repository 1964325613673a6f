//! Whether bad keys can be told apart over HTTP: `cargo bench -p keygate-benches --bench telling_apart`.
//!
//! The example server is asked with keys that are unknown, revoked, expired and deleted,
//! 20,000 times with each, on one connection, one request after the other, in random
//! order. Their answers have to be the same, byte for byte, but for the `Date`; or else
//! it exits with 1. How long they take is compared in pairs by a rank test (Mann and
//! Whitney): the probability that a request of one class takes longer than one of the
//! other, 0.5 where nothing is to be told, and how many standard errors that is off
//! (z). Noise on the machine is alike for all, since they take turns at random. The
//! control is a malformed key, for which no store is asked: whoever sends it knows that.
//!
//! It is done on keys in memory, where it is quietest, and in SQLite. A key lives for a
//! day at least, so that the expired ones are written into the file before the server
//! starts, and are in no table but SQLite's.
//!
//! There is no target for the times. A known key that is refused has an audit record,
//! an unknown one has none, and with `KEYGATE_AUDIT=strict`, which the server inherits,
//! the answer waits until it is on disk. That tells whoever holds a whole key that it
//! existed, and nobody anything of a key that he does not hold.
//!
//! | variable | default | |
//! |---|---|---|
//! | `KEYGATE_REQUESTS` | 20000 | with keys of each class |
//! | `KEYGATE_AUDIT` | `buffered` | or `strict` |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod support;

use std::env;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use getrandom::SysRng;
use keygate::store::OrgLimit;
use keygate::{
    ApiKey, KeyFormat, KeyId, KeyName, KeyStore, OrgId, PlaintextKey, SqliteStore, Timestamp,
};
use serde_json::{Value, json};

use crate::support::Spread;
use crate::support::server::Server;

/// Of each class, so that it is not about one key's place in the store.
const KEYS: usize = 16;
/// So many requests come first, and count for nothing.
const WARM_UP: usize = 2_000;
const CONTROL: &str = "malformed";

// ---- requests ----

struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn but_date(&self) -> String {
        let is_date = |line: &&str| line.to_ascii_lowercase().starts_with("date:");
        let head: Vec<_> = self.head.split("\r\n").filter(|line| !is_date(line)).collect();
        format!("{}\r\n\r\n{}", head.join("\r\n"), self.body)
    }
}

struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream, bytes: vec![0; 16_384] }
    }

    /// The answer, and how long it took until its last byte was there.
    fn ask(&mut self, request: &str) -> (Answer, Duration) {
        let (begun, mut read) = (Instant::now(), 0);
        self.stream.write_all(request.as_bytes()).unwrap();
        loop {
            let more = self.stream.read(&mut self.bytes[read..]).unwrap();
            let took = begun.elapsed();
            assert!(more > 0, "the server has closed");
            read += more;
            if let Some(answer) = complete(&self.bytes[..read]) {
                return (answer, took);
            }
        }
    }

    /// A change by the management API; the JSON of its answer.
    fn change(&mut self, method: &str, org: &str, path: &str, body: &str) -> Value {
        let length = body.len();
        let headers = format!("X-Demo-Org: {org}\r\nContent-Type: application/json\r\n");
        let host = self.stream.peer_addr().unwrap();
        let (answer, _) = self.ask(&format!(
            "{method} /settings/api/keys{path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ));
        assert!(answer.head.starts_with("HTTP/1.1 20"), "{}", answer.but_date());
        serde_json::from_str(&answer.body).unwrap_or_default()
    }
}

/// The answer, once all of it is there.
fn complete(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = str::from_utf8(bytes).ok()?.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    assert!(body.len() <= length, "more than was asked for: {head}");
    (body.len() == length).then(|| Answer { head: head.to_owned(), body: body.to_owned() })
}

// ---- keys ----

struct Class {
    name: &'static str,
    keys: Vec<String>,
}

fn key() -> PlaintextKey {
    KeyFormat::default().generate(&mut SysRng).unwrap()
}

fn unknown() -> String {
    key().expose_secret().to_owned()
}

/// Another last letter, to which the checksum does not fit.
fn malformed() -> String {
    let mut key = unknown();
    let last = key.pop().unwrap();
    key.push(if last == '0' { '1' } else { '0' });
    key
}

/// Made, and then revoked or deleted.
fn made(client: &mut Client, name: &'static str, undo: impl Fn(&mut Client, &str)) -> String {
    let body = json!({ "name": name, "expiration": "1_year" }).to_string();
    let made = client.change("POST", name, "", &body);
    undo(client, made["key"]["id"].as_str().unwrap());
    made["secret"].as_str().unwrap().to_owned()
}

fn revoked(client: &mut Client) -> String {
    made(client, "revoked", |client, id| {
        client.change("PATCH", "revoked", &format!("/{id}"), r#"{"status":"revoked"}"#);
    })
}

fn deleted(client: &mut Client) -> String {
    made(client, "deleted", |client, id| {
        client.change("DELETE", "deleted", &format!("/{id}?confirm_name=deleted"), "");
    })
}

/// Writes keys into the file that have expired a month ago.
async fn expired(file: &Path) -> Vec<String> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let store = SqliteStore::open(file).unwrap();
    let (now, mut keys) = (Timestamp::from(SystemTime::now()), Vec::new());
    for _ in 0..KEYS {
        let key = key();
        let record = ApiKey {
            digest: key.digest(),
            expires_at: Some(now.saturating_sub(DAY * 30)),
            id: KeyId::random(&mut SysRng).unwrap(),
            org: OrgId::new("expired").unwrap(),
            name: KeyName::new("expired").unwrap(),
            created_at: now.saturating_sub(DAY * 60),
            ..ApiKey::sample(0)
        };
        store.insert(&record, OrgLimit::NONE).await.unwrap();
        keys.push(key.expose_secret().to_owned());
    }
    keys
}

fn classes(client: &mut Client, expired: Vec<String>) -> Vec<Class> {
    let mut class = |name, key: &dyn Fn(&mut Client) -> String| Class {
        name,
        keys: (0..KEYS).map(|_| key(client)).collect(),
    };
    let mut classes = vec![class("unknown", &|_| unknown()), class("revoked", &revoked)];
    classes.extend((!expired.is_empty()).then_some(Class { name: "expired", keys: expired }));
    classes.push(class("deleted", &deleted));
    classes.push(class(CONTROL, &|_| malformed()));
    classes
}

// ---- the comparison ----

fn number(below: usize) -> usize {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    (u64::from_be_bytes(bytes) % below as u64) as usize
}

/// So many times each class, in random order, each with all of its keys.
fn shuffled(classes: usize, requests: usize) -> Vec<(usize, usize)> {
    let mut order: Vec<_> = (0..classes)
        .flat_map(|class| (0..requests).map(move |request| (class, request % KEYS)))
        .collect();
    for place in (1..order.len()).rev() {
        order.swap(place, number(place + 1));
    }
    order
}

/// Microseconds of each request by class, or two answers that differ.
fn measure(
    client: &mut Client,
    classes: &[Class],
    requests: usize,
) -> Result<Vec<Vec<f64>>, String> {
    let request = |key: &String| {
        format!("GET /v1/whoami HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n\r\n")
    };
    let texts: Vec<Vec<_>> =
        classes.iter().map(|class| class.keys.iter().map(request).collect()).collect();
    for (class, key) in shuffled(classes.len(), WARM_UP / classes.len()) {
        client.ask(&texts[class][key]);
    }
    let (mut times, mut first) = (vec![Vec::with_capacity(requests); classes.len()], None);
    for (class, key) in shuffled(classes.len(), requests) {
        let (answer, took) = client.ask(&texts[class][key]);
        let (name, answer) = (classes[class].name, answer.but_date());
        let (first_name, first) = first.get_or_insert_with(|| (name, answer.clone()));
        if *first != answer || !answer.starts_with("HTTP/1.1 401 ") {
            return Err(format!("{first_name}:\n{first}\n\n{name}:\n{answer}"));
        }
        times[class].push(took.as_nanos() as f64 / 1e3);
    }
    Ok(times)
}

/// How probably one of `a` is longer than one of `b`, and how many standard errors that
/// is over 0.5. Of two that are alike, each is longer by half.
fn longer(a: &[f64], b: &[f64]) -> (f64, f64) {
    let mut all: Vec<_> = a.iter().map(|&a| (a, true)).collect();
    all.extend(b.iter().map(|&b| (b, false)));
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut before, mut ranks, mut ties) = (0.0, 0.0, 0.0);
    for alike in all.chunk_by(|one, other| one.0 == other.0) {
        let count = alike.len() as f64;
        let rank = before + (count + 1.0) / 2.0;
        ranks += rank * alike.iter().filter(|(_, of_a)| *of_a).count() as f64;
        ties += count.powi(3) - count;
        before += count;
    }
    let (a, b) = (a.len() as f64, b.len() as f64);
    let u = ranks - a * (a + 1.0) / 2.0;
    let error = (a * b / 12.0 * (a + b + 1.0 - ties / ((a + b) * (a + b - 1.0)))).sqrt();
    (u / (a * b), (u - a * b / 2.0) / error)
}

/// Prints it pair by pair; the one that is told best, the control aside.
fn report(store: &str, classes: &[Class], times: &[Vec<f64>]) -> (f64, String) {
    for (class, times) in classes.iter().zip(times) {
        println!("{store:<8}{:<10}{}", class.name, Spread::of(times.clone()).show(2));
    }
    let mut worst = (0.0, String::new());
    for one in 1..classes.len() {
        for other in 0..one {
            let (p, z) = longer(&times[one], &times[other]);
            let pair = format!("{} > {}", classes[one].name, classes[other].name);
            let deviation = (p - 0.5).abs();
            // The standard error of n requests of each is 1 / sqrt(6 n).
            let needed = (1.5 / deviation.powi(2)).ceil();
            let told = if z.abs() < 3.0 {
                "not told".to_owned()
            } else {
                format!("told by about {needed} of each")
            };
            println!("{store:<8}{pair:<22}{p:>8.4}  z {z:>+8.2}  {told}");
            if classes[one].name != CONTROL && deviation >= worst.0 {
                worst = (deviation, format!("{store}: {pair}"));
            }
        }
    }
    println!();
    worst
}

fn main() -> ExitCode {
    let requests = env::var("KEYGATE_REQUESTS").map_or(20_000, |n| n.parse().expect("a number"));
    let audit = env::var("KEYGATE_AUDIT").unwrap_or_else(|_| "buffered".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keygate.db");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let expired = runtime.block_on(expired(&file));
    println!("{requests} requests of each class, audit {audit}");
    println!("microseconds: median (middle half); the probability that one takes longer; z");
    println!();
    let mut worst = (0.0, String::new());
    for (store, expired) in [("memory", Vec::new()), ("SQLite", expired)] {
        let mut command = Server::example(&file);
        if store == "memory" {
            command.env("KEYGATE_STORE", "memory:");
        }
        let server = Server::start(&mut command);
        let mut client = Client::new(server.address);
        let classes = classes(&mut client, expired);
        let times = match measure(&mut client, &classes, requests) {
            Ok(times) => times,
            Err(differ) => {
                println!("{store}: answers differ\n{differ}");
                return ExitCode::FAILURE;
            }
        };
        drop(client);
        server.stop();
        let its = report(store, &classes, &times);
        worst = if its.0 >= worst.0 { its } else { worst };
    }
    println!("all answers are alike, byte for byte, but for their Date");
    println!("greatest deviation from 0.5 over all pairs: {:.4} ({})", worst.0, worst.1);
    ExitCode::SUCCESS
}
