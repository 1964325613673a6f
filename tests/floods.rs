//! A flood of refusals: stored in bounded space, counted in full, and no delay for others.
#![cfg(feature = "tokio")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keygate::audit::{
    AuditEvent, AuditQuery, AuditRecord, AuditScope, AuditStats, Outcome, Position, RequestEvent,
};
use keygate::manager::{AdmitError, RequestInfo};
use keygate::*;
use tokio::task::JoinSet;

use crate::support::{PATIENCE, Sink, SpySink, TestClock, eventually, soon};

const START: &str = "2026-01-31T12:00:00Z";
/// So long that only the test clock ends a window.
const WINDOW: Duration = Duration::from_secs(3_600);
const FLOODERS: u32 = 8;

struct Setup<L> {
    log: Arc<L>,
    clock: TestClock,
    keys: KeyManager,
}

/// A key, its owner, and its text.
struct Key {
    actor: Actor,
    id: KeyId,
    secret: String,
}

impl<L: AuditSink + AuditLog> Setup<L> {
    fn on(log: L, delivery: Delivery) -> Self {
        let (log, clock) = (Arc::new(log), TestClock::at(START));
        let builder = KeyManager::builder(MemoryStore::new()).audit(Arc::clone(&log));
        let keys = builder.clock(clock.clone()).delivery(delivery).build().unwrap();
        Self { log, clock, keys }
    }

    async fn key(&self, org: &str) -> Key {
        let actor = Actor::new(OrgId::new(org).unwrap(), "ada");
        let issued = self.keys.create(&actor, NewKey::named("CI").unwrap()).await.unwrap();
        Key { actor, id: issued.key.id, secret: issued.secret.expose_secret().to_owned() }
    }

    async fn revoked_key(&self, org: &str) -> Key {
        let key = self.key(org).await;
        self.keys.update(&key.actor, &key.id, KeyPatch::revoke()).await.unwrap();
        key
    }

    /// Sends refused requests at full speed from several clients.
    async fn flood(&self, key: &Key, each: u32) {
        let mut clients = JoinSet::new();
        for client in 0..FLOODERS {
            let (keys, secret) = (self.keys.clone(), key.secret.clone());
            clients.spawn(async move {
                let path = format!("/v1/{client}/{}", "x".repeat(2_000));
                for _ in 0..each {
                    let refused = keys.admit(&secret, get(&path)).await.unwrap_err();
                    assert_eq!(refused.http_status(), 401, "{refused:?}");
                    tokio::task::yield_now().await;
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    }

    /// Sends requests and changes of another organisation until stopped. Returns the number of
    /// each.
    async fn neighbour(&self, stop: &AtomicBool) -> (usize, usize) {
        let key = self.key("neighbour").await;
        let mut made = (0, 0);
        while !stop.load(Ordering::SeqCst) || made.1 < 3 {
            for _ in 0..3 {
                let admitted = self.keys.admit(&key.secret, get("/v1/work")).await;
                admitted.unwrap().finish(200).await.unwrap();
                made.0 += 1;
            }
            let name = KeyName::new(format!("name {}", made.1)).unwrap();
            self.keys.update(&key.actor, &key.id, KeyPatch::rename(name)).await.unwrap();
            made.1 += 1;
        }
        assert_eq!(self.records(&key).await.len(), made.0);
        made
    }

    /// The recorded requests of a key, oldest first, after the queue was written.
    async fn records(&self, key: &Key) -> Vec<RequestEvent> {
        eventually("the queue is empty", async || self.keys.audit_stats().queued == 0).await;
        let query = AuditQuery::new(key.actor.org().clone(), AuditScope::KeyRequests(key.id));
        let mut position = Some(Position::Newest);
        let mut records = Vec::new();
        while let Some(at) = position {
            let page = self.log.page(&query.clone().at(at).limit(200)).await.unwrap();
            records.extend(page.records);
            position = page.older.map(Position::Before);
        }
        let event = |record: AuditRecord| match record.event {
            AuditEvent::Request(request) => request,
            event => panic!("{event:?}"),
        };
        records.into_iter().rev().map(event).collect()
    }
}

fn get(path: &str) -> RequestInfo {
    RequestInfo::new("GET", path).from_ip("192.0.2.1".parse().ok())
}

fn requests(events: &[RequestEvent]) -> u64 {
    events.iter().map(|event| u64::from(event.count)).sum()
}

fn accounted(stats: AuditStats) -> u64 {
    stats.written + stats.shed + stats.failed + stats.queued + stats.summed
}

/// So little room that a flood would fill it at once.
fn small(delivery: Delivery) -> Delivery {
    delivery.capacity(80).batch(20).sum_refusals(20, WINDOW).deadline(PATIENCE)
}

async fn assert_good_neighbours(delivery: Delivery, sink: Sink) {
    let setup = Setup::on(SpySink::default(), small(delivery));
    let key = setup.revoked_key("flooder").await;
    setup.log.sink(sink);
    let before = accounted(setup.keys.audit_stats());
    let stop = AtomicBool::new(false);
    let flood = async {
        for _ in 0..3 {
            setup.flood(&key, 500).await;
            setup.clock.set(setup.keys.now().saturating_add(WINDOW));
        }
        stop.store(true, Ordering::SeqCst);
    };
    let ((), (worked, changed)) = tokio::join!(flood, setup.neighbour(&stop));
    let flooded = u64::from(3 * 500 * FLOODERS);
    let made = before + flooded + (worked + changed + 1) as u64;
    assert_eq!(accounted(setup.keys.audit_stats()), made, "{:?}", setup.keys.audit_stats());

    assert!(setup.keys.shutdown(PATIENCE).await.is_complete());
    let stats = setup.keys.audit_stats();
    assert_eq!((stats.written, stats.shed, stats.failed, stats.summed), (made, 0, 0, 0));
    let records = setup.records(&key).await;
    assert_eq!(requests(&records), flooded);
    assert!(records.len() <= 3 * 21, "{} records of 3 windows", records.len());
    assert!(records.iter().all(|event| event.outcome == Outcome::Revoked
        && event.status == Some(401)
        && event.endpoint.starts_with("/v1/")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_48_with_a_fast_log_a_flood_is_bounded_counted_and_delays_no_other() {
    for delivery in [Delivery::buffered(), Delivery::strict()] {
        assert_good_neighbours(delivery, Sink::Works).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_48_with_a_slow_log_a_flood_is_bounded_counted_and_delays_no_other() {
    for delivery in [Delivery::buffered(), Delivery::strict()] {
        assert_good_neighbours(delivery, Sink::Slow(Duration::from_millis(150))).await;
    }
}

#[tokio::test]
async fn case_48_a_sum_is_written_when_its_window_is_over_and_shows_the_last_refusal() {
    let delivery = Delivery::buffered().sum_refusals(2, Duration::from_millis(100));
    let setup = Setup::on(SpySink::default(), delivery);
    let key = setup.revoked_key("flooder").await;
    for at in 0..50 {
        let request = get("/v1/last").from_ip(format!("192.0.2.{at}").parse::<IpAddr>().unwrap());
        setup.keys.admit(&key.secret, request).await.unwrap_err();
    }
    let last = setup.keys.now();
    // No further request arrives.
    eventually("all are on record", async || requests(&setup.records(&key).await) == 50).await;
    let records = setup.records(&key).await;
    let sum = records.iter().max_by_key(|event| event.count).unwrap();
    assert!(sum.count > 1 && *sum.endpoint == *"/v1/last");
    assert!(records.iter().any(|event| event.ip == "192.0.2.49".parse().ok()));
    let query = AuditQuery::new(key.actor.org().clone(), AuditScope::KeyRequests(key.id));
    let page = setup.log.page(&query.limit(200)).await.unwrap();
    assert!(page.records.iter().all(|record| record.at == last));
    assert_eq!(setup.keys.audit_stats().summed, 0);
}

#[tokio::test]
async fn case_48_strict_the_first_refusals_are_durable_before_the_answer_and_sums_follow() {
    let setup = Setup::on(SpySink::default(), Delivery::strict().sum_refusals(2, WINDOW));
    let key = setup.revoked_key("flooder").await;
    for made in 1..=2 {
        setup.keys.admit(&key.secret, get("/v1/first")).await.unwrap_err();
        assert_eq!(setup.log.len(), 2 + made, "in the log when the answer is there");
    }
    setup.log.sink(Sink::Hangs);
    let batches = setup.log.batches();
    for _ in 0..100 {
        let refused = setup.keys.admit(&key.secret, get("/v1/more")).await.unwrap_err();
        assert!(matches!(refused, AdmitError::Refused(_)), "{refused:?}");
    }
    assert_eq!((setup.log.batches(), setup.keys.audit_stats().summed), (batches, 100));
}

#[tokio::test]
async fn case_48_refusals_take_no_room_of_requests_and_are_summed_without_room() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let delivery = delivery.capacity(8).deadline(Duration::from_millis(200));
        let setup = Setup::on(SpySink::default(), delivery.clone());
        let good = setup.key("neighbour").await;
        let mut revoked = Vec::new();
        for org in 0..30 {
            revoked.push(setup.revoked_key(&format!("flooder {org}")).await);
        }
        setup.log.sink(Sink::Hangs);
        let refuse = |key: &Key| {
            let (keys, secret) = (setup.keys.clone(), key.secret.clone());
            tokio::spawn(async move { keys.admit(&secret, get("/")).await.map(drop) })
        };
        let refused: Vec<_> = revoked.iter().map(refuse).collect();
        eventually("two are queued, the others summed", async || {
            let stats = setup.keys.audit_stats();
            stats.queued == 2 && stats.summed == 28
        })
        .await;
        // An admitted request has all its room.
        let mut admitted = Vec::new();
        for _ in 0..8 {
            let admission = soon(setup.keys.admit(&good.secret, get("/"))).await;
            admitted.push(admission.unwrap_or_else(|error| panic!("{delivery:?}: {error:?}")));
        }
        drop(admitted);
        setup.log.sink(Sink::Works);
        for refused in refused {
            let _ = refused.await.unwrap().unwrap_err();
        }
        // Records whose callers gave up are lost and counted.
        let _ = setup.keys.shutdown(PATIENCE).await;
        let stats = setup.keys.audit_stats();
        let made = 31 + 30 + 30 + 8;
        assert_eq!((stats.written + stats.failed, stats.shed), (made, 0), "{delivery:?} {stats:?}");
        assert!(stats.failed <= 2, "{delivery:?} {stats:?}");
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_48_a_flood_adds_little_to_a_sqlite_file() {
    for delivery in [Delivery::buffered(), Delivery::strict()] {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("keys.db")).unwrap();
        let setup = Setup::on(store, delivery.sum_refusals(20, WINDOW));
        let key = setup.revoked_key("flooder").await;
        let size = || -> u64 {
            let files = std::fs::read_dir(folder.path()).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let before = size();
        // Written one by one, these would take 20 MB.
        setup.flood(&key, 1_250).await;
        assert!(setup.keys.shutdown(PATIENCE).await.is_complete());
        let added = size() - before;
        assert!(added < 2_000_000, "{added} bytes for 21 records");
        assert_eq!(requests(&setup.records(&key).await), 10_000);
    }
}
