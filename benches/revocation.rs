//! How long a revoked key is still accepted by another process:
//! `cargo bench -p keygate-benches --bench revocation`.
//!
//! This process revokes; a second one, which has the keys in its cache, verifies them
//! in a tight loop and says when it last accepted each. What counts is the time from
//! the return of the call that revoked to the end of the last `verify` that accepted,
//! by the clock of the machine that both run on; none, where the latter came first.
//!
//! Then the second process hears of changes through a proxy that is cut just before
//! the revocation: connections are closed, or bytes are swallowed without a word.
//!
//! With `KEYGATE_TEST_POSTGRES` another PostgreSQL server than the local one is used.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

#[path = "../tests/postgres_support/proxy.rs"]
mod proxy;

use std::env;
use std::io::{BufRead, BufReader, Lines, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use keygate::manager::IssuedKey;
use keygate::store::{CacheState, PostgresOptions};
use keygate::{
    Actor, CachedStore, Denial, KeyManager, KeyPatch, NewKey, OrgId, PostgresStore, VerifiedKey,
    VerifyError,
};
use tokio::runtime::{Builder, Runtime};

use crate::proxy::{Network, Proxy, address};

const REVOCATIONS: usize = 1_000;
/// So many times is the feed cut, in each of two ways,
const CUTS: usize = 40;
/// and so many keys are revoked each time.
const KEYS_PER_CUT: usize = 5;

const MAX_STALENESS: Duration = Duration::from_millis(300);
const HEARTBEAT: Duration = Duration::from_millis(50);
const TARGET: Duration = Duration::from_millis(50);

const SCHEMA: &str = "KEYGATE_BENCH_SCHEMA";
const FEED: &str = "KEYGATE_BENCH_FEED";

fn main() {
    match (env::var(SCHEMA), env::var(FEED)) {
        (Ok(schema), Ok(feed)) => verify_what_is_asked(&schema, &feed),
        _ => revoke_and_tell(),
    }
}

fn url() -> String {
    env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn open(url: &str, schema: &str) -> PostgresStore {
    PostgresOptions::from_url(url).unwrap().schema(schema).unwrap().connect().await.unwrap()
}

fn cache(store: PostgresStore, feed: &PostgresStore) -> CachedStore {
    let feed = feed.changes().heartbeat(HEARTBEAT);
    CachedStore::builder(store, MAX_STALENESS).feed(feed).build().unwrap()
}

/// Nanoseconds, the same in both processes.
fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()
}

// ------------------------------------------------------------ the one that verifies

/// Each line names keys. They are verified until the cache has them all, which is
/// said, and then until all are refused.
fn verify_what_is_asked(schema: &str, feed: &str) {
    let runtime = runtime();
    let (cached, keys) = runtime.block_on(async {
        let feed = open(feed, schema).await;
        let cached = cache(open(&url(), schema).await, &feed);
        (cached.clone(), KeyManager::builder(cached).build().unwrap())
    });
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let mut watched: Vec<_> = line.split(' ').map(Watched::new).collect();
        while cached.health().state != CacheState::Following {
            std::thread::sleep(Duration::from_millis(1));
        }
        while watched.iter().any(|key| key.accepted < 3) {
            for key in &mut watched {
                key.hear(runtime.block_on(keys.verify(key.secret, None)));
            }
        }
        println!("warm");
        while watched.iter().any(|key| !key.refused) {
            for key in watched.iter_mut().filter(|key| !key.refused) {
                key.hear(runtime.block_on(keys.verify(key.secret, None)));
            }
        }
        let last: Vec<_> = watched.iter().map(|key| key.last.to_string()).collect();
        println!("{}", last.join(" "));
    }
}

struct Watched<'a> {
    secret: &'a str,
    last: u128,
    accepted: usize,
    refused: bool,
}

impl<'a> Watched<'a> {
    fn new(secret: &'a str) -> Self {
        Self { secret, last: 0, accepted: 0, refused: false }
    }

    fn hear(&mut self, answer: Result<VerifiedKey, VerifyError>) {
        match answer {
            Ok(_) => (self.last, self.accepted) = (now(), self.accepted + 1),
            Err(VerifyError::Denied { denial: Denial::Revoked, .. }) => self.refused = true,
            // A store that is slow for a while is asked again.
            Err(error) if error.is_unavailable() => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

// ------------------------------------------------------------- the one that revokes

fn revoke_and_tell() {
    let runtime = runtime();
    let administrator =
        match runtime.block_on(tokio_postgres::connect(&url(), tokio_postgres::NoTls)) {
            Ok((client, connection)) => {
                runtime.spawn(connection);
                client
            }
            Err(error) => return println!("no PostgreSQL server (KEYGATE_TEST_POSTGRES): {error}"),
        };
    let schema = format!("keygate_bench_{:x}", std::process::id());
    let measured = catch_unwind(AssertUnwindSafe(|| measure(&runtime, &schema)));
    let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
    runtime.block_on(administrator.batch_execute(&drop)).unwrap();
    measured.unwrap_or_else(|panic| resume_unwind(panic));
}

fn measure(runtime: &Runtime, schema: &str) {
    let (keys, proxy) = runtime.block_on(async {
        let store = open(&url(), schema).await;
        let cached = cache(store.clone(), &store);
        (KeyManager::builder(cached).build().unwrap(), Proxy::start(address(&url())).await)
    });
    println!("max_staleness {MAX_STALENESS:?}, a heartbeat each {HEARTBEAT:?}\n");
    println!("{:<24} {:>11} {:>9} {:>9} {:>9}", "feed", "revocations", "p50", "p99", "max");

    let mut peer = Peer::start(schema, &url());
    let mut times: Vec<_> = (0..REVOCATIONS)
        .flat_map(|_| runtime.block_on(revoke(&keys, &mut peer, 1, || {})))
        .collect();
    let p99 = report("in health", &mut times);

    let mut peer = Peer::start(schema, &proxy.url(&url()));
    let mut late = 0;
    let cuts = [("closed", Network::Closed), ("silent", Network::Silent)];
    for (name, network) in cuts {
        let mut times = Vec::new();
        for _ in 0..CUTS {
            let cut = || proxy.set(network);
            times.extend(runtime.block_on(revoke(&keys, &mut peer, KEYS_PER_CUT, cut)));
            proxy.set(Network::Intact);
        }
        late += times.iter().filter(|time| **time > MAX_STALENESS).count();
        report(name, &mut times);
    }
    println!();
    println!("p99 {} (target {})", millis(p99), TARGET.as_millis());
    println!("exceptions: {late} of {} (target 0)", cuts.len() * CUTS * KEYS_PER_CUT);
}

/// Revokes so many new keys at once, after that cut; how long the peer still accepted
/// each.
async fn revoke(keys: &KeyManager, peer: &mut Peer, count: usize, cut: impl Fn()) -> Vec<Duration> {
    let actor = Actor::new(OrgId::new("acme").unwrap(), "bench");
    let mut issued = Vec::new();
    for _ in 0..count {
        issued.push(keys.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap());
    }
    let secrets: Vec<_> = issued.iter().map(|key| key.secret.expose_secret()).collect();
    peer.order(&secrets.join(" "));
    assert_eq!(peer.says(), "warm");
    // Anywhere between two heartbeats.
    let mut byte = [0];
    getrandom::fill(&mut byte).unwrap();
    tokio::time::sleep(HEARTBEAT.mul_f64(f64::from(byte[0]) / 255.0)).await;
    cut();
    let revoking: Vec<_> = issued
        .iter()
        .map(|key| tokio::spawn(revoke_one(keys.clone(), actor.clone(), key.key.id)))
        .collect();
    let mut acknowledged = Vec::new();
    for revoked in revoking {
        acknowledged.push(revoked.await.unwrap());
    }
    let last = peer.says();
    for IssuedKey { key, .. } in &issued {
        keys.delete(&actor, &key.id).await.unwrap();
    }
    let nanos = |(last, acknowledged): (&str, u128)| {
        let nanos = last.parse::<u128>().unwrap().saturating_sub(acknowledged);
        Duration::from_nanos(u64::try_from(nanos).unwrap())
    };
    last.split(' ').zip(acknowledged).map(nanos).collect()
}

/// When the call returned.
async fn revoke_one(keys: KeyManager, actor: Actor, id: keygate::KeyId) -> u128 {
    keys.update(&actor, &id, KeyPatch::revoke()).await.unwrap();
    now()
}

/// Prints a line; the 99th percentile.
fn report(name: &str, times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    let [p50, p99, max] = [at(50), at(99), at(100)];
    let count = times.len();
    println!("{name:<24} {count:>11} {:>9} {:>9} {:>9}", millis(p50), millis(p99), millis(max));
    p99
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

/// This program once more, killed when dropped.
struct Peer {
    process: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(schema: &str, feed: &str) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .envs([(SCHEMA, schema), (FEED, feed)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, orders, lines }
    }

    fn order(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
    }

    fn says(&mut self) -> String {
        self.lines.next().expect("the other process has ended").unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
