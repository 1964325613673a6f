//! What one organisation notices of its neighbours:
//! `cargo bench -p keygate-benches --bench neighbours`.
//!
//! A victim makes 100 requests and 10 changes a second through a service on PostgreSQL
//! with a buffered audit log, first alone, and then beside each kind of trouble that
//! others can make. Shown are the times as the victim's client sees them, their ratios
//! to those of the quiet round, and how many of its requests and changes failed.
//!
//! The troublemakers and the victim run in the process of the service, on the same
//! processors: part of each ratio is that they take time from it. The rows "past keygate"
//! show how much: their requests go to a route without keys.
//!
//! `KEYGATE_TEST_POSTGRES` names another server than the local one,
//! `KEYGATE_BENCH_SECONDS` how long a round lasts (10).
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
mod support;

use std::env;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::routing::get;
use getrandom::SysRng;
use keygate::audit::AuditRecord;
use keygate::store::PostgresOptions;
use keygate::{
    Actor, ApiKeyLayer, AuditError, AuditSink, KeyId, KeyManager, KeyPatch, NewKey, OrgId,
    PostgresStore,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_postgres::NoTls;

use crate::proxy::{Network, Proxy, address};
use crate::support::client::Client;

const REQUESTS_PER_SECOND: u32 = 100;
const CHANGES_PER_SECOND: u32 = 10;
/// Connections of a flood, each of which sends its next request once the last one is answered.
const FLOOD: usize = 4;
const CREATIONS_AT_ONCE: usize = 57;
/// One way between the service and its database, where that is slow.
const DISTANCE: Duration = Duration::from_millis(5);
const SLOW_BATCH: Duration = Duration::from_millis(150);

#[tokio::main]
async fn main() {
    println!(
        "| beside | requests: p50, p99 in ms | changes: p50, p99 in ms | ratios of p99 | failed |"
    );
    println!("|---|---|---|---|---|");
    let near = World::start(&url()).await;
    let quiet = near.round("nothing", None, Neighbour::Nothing).await;
    for (name, statement) in [
        ("a locked row", near.lock_of_a_row()),
        ("a locked organisation", near.lock_of_an_organisation()),
        ("a locked table of the audit log", near.lock_of_the_log()),
    ] {
        let db = database().await;
        db.batch_execute(&format!("BEGIN; {statement}")).await.unwrap();
        near.round(name, Some(&quiet), Neighbour::Edits).await;
        db.batch_execute("ROLLBACK").await.unwrap();
    }
    let long = format!("/v1/{}", "a".repeat(60_000));
    let short = || "/v1/whoami".to_owned();
    // Past the layer: what the flood itself costs on the processors that it shares.
    let past = |path: &str| path.replacen("/v1/", "/past/", 1);
    let (revoked, good) = (near.revoked.clone(), near.good.clone());
    let floods = [
        ("a flood past keygate", Neighbour::Flood(past(&short()), good.clone())),
        ("60 kB paths past keygate", Neighbour::Flood(past(&long), good.clone())),
        ("a flood of refusals", Neighbour::Flood(short(), revoked.clone())),
        ("60 kB paths, revoked key", Neighbour::Flood(long.clone(), revoked.clone())),
        ("60 kB paths, good key", Neighbour::Flood(long, good)),
        ("57 creations at a time", Neighbour::Creations),
    ];
    for (name, neighbour) in floods {
        near.round(name, Some(&quiet), neighbour).await;
    }
    near.slow.store(true, Ordering::Relaxed);
    let name = "a slow audit log (150 ms a batch)";
    let slow = near.round(name, Some(&quiet), Neighbour::Nothing).await;
    let name = "the same and a flood of refusals (ratios to the row above)";
    near.round(name, Some(&slow), Neighbour::Flood(short(), revoked)).await;
    near.slow.store(false, Ordering::Relaxed);
    near.end().await;

    let proxy = Proxy::start(address(&url())).await;
    let distant = World::start(&proxy.url(&url())).await;
    proxy.set(Network::Slow(DISTANCE));
    let name = "nothing, 5 ms from the database";
    let quiet = distant.round(name, None, Neighbour::Nothing).await;
    let name = "57 creations at a time, 5 ms from the database";
    distant.round(name, Some(&quiet), Neighbour::Creations).await;
    proxy.set(Network::Intact);
    distant.end().await;
}

/// What others do meanwhile.
#[derive(Clone)]
enum Neighbour {
    Nothing,
    /// Edits the key whose row is locked, over and over.
    Edits,
    /// Requests with that target and key, on several connections at full speed.
    Flood(String, String),
    /// Creates and deletes keys, so many at a time.
    Creations,
}

/// A service on a schema of its own.
struct World {
    schema: String,
    keys: KeyManager,
    address: SocketAddr,
    slow: Arc<AtomicBool>,
    /// Of the neighbour.
    actor: Actor,
    id: KeyId,
    good: String,
    revoked: String,
}

/// Writes to PostgreSQL, and takes its time.
#[derive(Debug)]
struct SlowSink {
    store: PostgresStore,
    slow: Arc<AtomicBool>,
}

#[async_trait]
impl AuditSink for SlowSink {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        if self.slow.load(Ordering::Relaxed) {
            sleep(SLOW_BATCH).await;
        }
        self.store.record(batch).await
    }
}

impl World {
    async fn start(url: &str) -> Self {
        let id = KeyId::random(&mut SysRng).unwrap().to_string();
        let schema = format!("keygate_bench_{}", id.replace('-', ""));
        let options = PostgresOptions::from_url(url).unwrap().schema(&schema).unwrap();
        let store = options.connect().await.unwrap();
        let slow = Arc::new(AtomicBool::new(false));
        let sink = SlowSink { store: store.clone(), slow: Arc::clone(&slow) };
        let keys = KeyManager::builder(store.clone()).audit_sink(sink).audit_log(store);
        let keys = keys.build().unwrap();

        let actor = Actor::new(OrgId::new("neighbour").unwrap(), "bench");
        let good = keys.create(&actor, NewKey::named("good").unwrap()).await.unwrap();
        let revoked = keys.create(&actor, NewKey::named("revoked").unwrap()).await.unwrap();
        keys.update(&actor, &revoked.key.id, KeyPatch::revoke()).await.unwrap();

        let api = Router::new()
            .route("/whoami", get(async || "it is you"))
            .fallback(async || "not found")
            .layer(ApiKeyLayer::new(keys.clone()));
        let app: Router = Router::new().nest("/v1", api);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let [good_secret, revoked] =
            [&good, &revoked].map(|issued| issued.secret.expose_secret().to_owned());
        Self { schema, keys, address, slow, actor, id: good.key.id, good: good_secret, revoked }
    }

    fn lock_of_a_row(&self) -> String {
        format!("SELECT 1 FROM {}.keys WHERE id = '{}' FOR UPDATE", self.schema, self.id)
    }

    fn lock_of_an_organisation(&self) -> String {
        format!("SELECT 1 FROM {}.organisations WHERE org = 'neighbour' FOR UPDATE", self.schema)
    }

    fn lock_of_the_log(&self) -> String {
        format!("LOCK TABLE {}.requests IN ACCESS EXCLUSIVE MODE", self.schema)
    }

    /// Lets the victim work beside that, and shows how it went.
    async fn round(&self, name: &str, quiet: Option<&Times>, neighbour: Neighbour) -> Times {
        let mut others = JoinSet::new();
        self.begin(&mut others, neighbour);
        // The neighbours are at work, and connections are open.
        sleep(Duration::from_secs(2)).await;
        let (requests, changes) = tokio::join!(self.requests(), self.changes());
        others.shutdown().await;
        let times = Times { requests, changes };
        times.show(name, quiet);
        times
    }

    fn begin(&self, others: &mut JoinSet<()>, neighbour: Neighbour) {
        match neighbour {
            Neighbour::Nothing => {}
            Neighbour::Edits => {
                for number in 0..FLOOD {
                    let (keys, actor, id) = (self.keys.clone(), self.actor.clone(), self.id);
                    others.spawn(async move {
                        for round in 0.. {
                            let name = format!("edit {number} {round}").parse().unwrap();
                            let _ = keys.update(&actor, &id, KeyPatch::rename(name)).await;
                            let _ = keys.create(&actor, NewKey::named("new").unwrap()).await;
                        }
                    });
                }
            }
            Neighbour::Flood(target, secret) => {
                for _ in 0..FLOOD {
                    let (target, address) = (target.clone(), self.address);
                    let headers = format!("Authorization: Bearer {secret}\r\n");
                    others.spawn(async move {
                        let mut client = Client::new(address, u32::MAX);
                        loop {
                            let _ = client.ask("GET", &target, &headers, "").await;
                        }
                    });
                }
            }
            Neighbour::Creations => {
                for _ in 0..CREATIONS_AT_ONCE {
                    let (keys, actor) = (self.keys.clone(), self.actor.clone());
                    others.spawn(async move {
                        loop {
                            let new = NewKey::named("new").unwrap();
                            if let Ok(issued) = keys.create(&actor, new).await {
                                let _ = keys.delete(&actor, &issued.key.id).await;
                            }
                            // The limit and a busy service answer at once.
                            sleep(Duration::from_millis(1)).await;
                        }
                    });
                }
            }
        }
    }

    async fn requests(&self) -> Round {
        let victim = Actor::new(OrgId::new("victim").unwrap(), "bench");
        let issued = self.keys.create(&victim, NewKey::named("victim").unwrap()).await.unwrap();
        let headers = format!("Authorization: Bearer {}\r\n", issued.secret.expose_secret());
        let mut client = Client::new(self.address, u32::MAX);
        let mut round = Round::default();
        let mut ticks = ticks(REQUESTS_PER_SECOND);
        for _ in 0..REQUESTS_PER_SECOND * seconds() {
            ticks.tick().await;
            let begun = Instant::now();
            let answer = client.ask("GET", "/v1/whoami", &headers, "").await;
            round.add(begun, answer.is_ok_and(|answer| answer.status == 200));
        }
        // Failing that, the next round has one key less.
        let _ = self.keys.delete(&victim, &issued.key.id).await;
        round
    }

    /// Creates a key, renames, rotates and deletes it, and so on.
    async fn changes(&self) -> Round {
        let victim = Actor::new(OrgId::new("victim of changes").unwrap(), "bench");
        let mut round = Round::default();
        let mut ticks = ticks(CHANGES_PER_SECOND);
        let mut key: Option<KeyId> = None;
        for number in 0..CHANGES_PER_SECOND * seconds() {
            ticks.tick().await;
            let begun = Instant::now();
            let done = match (key, number % 4) {
                (None, _) => match self.keys.create(&victim, NewKey::named("k").unwrap()).await {
                    Ok(issued) => {
                        key = Some(issued.key.id);
                        true
                    }
                    Err(_) => false,
                },
                (Some(id), 1) => {
                    let name = format!("name {number}").parse().unwrap();
                    self.keys.update(&victim, &id, KeyPatch::rename(name)).await.is_ok()
                }
                (Some(id), 2) => self.keys.rotate(&victim, &id).await.is_ok(),
                (Some(id), _) => {
                    key = None;
                    self.keys.delete(&victim, &id).await.is_ok()
                }
            };
            round.add(begun, done);
        }
        round
    }

    async fn end(self) {
        println!("{:?}", self.keys.shutdown(Duration::from_secs(5)).await);
        let drop = format!("DROP SCHEMA {} CASCADE", self.schema);
        database().await.batch_execute(&drop).await.unwrap();
    }
}

/// The calls of one kind in a round.
#[derive(Default)]
struct Round {
    times: Vec<Duration>,
    failed: usize,
}

impl Round {
    fn add(&mut self, begun: Instant, done: bool) {
        self.times.push(begun.elapsed());
        self.failed += usize::from(!done);
    }

    /// In milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.times.clone();
        times.sort();
        let at = (times.len() * percent / 100).min(times.len() - 1);
        times[at].as_secs_f64() * 1_000.0
    }
}

struct Times {
    requests: Round,
    changes: Round,
}

impl Times {
    fn show(&self, name: &str, quiet: Option<&Self>) {
        let both =
            |round: &Round| format!("{:.2}, {:.2}", round.percentile(50), round.percentile(99));
        let ratios = quiet.map_or(String::new(), |quiet| {
            let ratio = |a: &Round, b: &Round| a.percentile(99) / b.percentile(99);
            let requests = ratio(&self.requests, &quiet.requests);
            let changes = ratio(&self.changes, &quiet.changes);
            format!("{requests:.1} (target 2), {changes:.1} (target 4)")
        });
        let failed = |round: &Round| format!("{} of {}", round.failed, round.times.len());
        println!(
            "| {name} | {} | {} | {ratios} | {}, {} |",
            both(&self.requests),
            both(&self.changes),
            failed(&self.requests),
            failed(&self.changes)
        );
    }
}

fn ticks(per_second: u32) -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn seconds() -> u32 {
    env::var("KEYGATE_BENCH_SECONDS").map_or(10, |seconds| seconds.parse().unwrap())
}

fn url() -> String {
    env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

/// A connection that keygate knows nothing of.
async fn database() -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
