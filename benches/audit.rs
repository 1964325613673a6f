//! The audit pipeline under more than its sink can take: `cargo bench -p keygate-benches --bench audit`.
//!
//! First with SQLite as the sink, against that sink alone, given the same batches: how
//! much is written in the long run, and in how much memory. Then a burst of 1,000,000
//! records through 65,536 places to a slower sink, waiting for room or shedding: each
//! record is written or counted as shed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod support;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use getrandom::SysRng;
use keygate::audit::{AuditEvent, AuditId, AuditRecord, Outcome, RequestEvent, WhenFull};
use keygate::manager::RequestInfo;
use keygate::{
    Actor, AuditError, AuditSink, Delivery, KeyId, KeyManager, MemoryStore, NewKey, OrgId,
    SqliteStore, Timestamp,
};

use crate::support::{Spread, forget_peak, peak_memory};

const CAPACITY: usize = 65_536;
const BATCH: usize = 1_000;
const PRODUCERS: usize = 4;
const BURST: usize = 1_000_000;
const ROUNDS: usize = 5;
/// More than the queue holds, so that the sink's pace is the pipeline's.
const TURN: usize = 150_000;
const PATIENCE: Duration = Duration::from_secs(120);

fn delivery() -> Delivery {
    Delivery::buffered().capacity(CAPACITY).batch(BATCH).deadline(PATIENCE)
}

/// A manager that delivers to that sink, and a key of it.
async fn manager(sink: impl AuditSink, delivery: Delivery) -> (KeyManager, Arc<str>) {
    let store = Arc::new(MemoryStore::new());
    // Without the sink, which is to get requests alone.
    let maker = KeyManager::builder(Arc::clone(&store)).build().unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    let issued = maker.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap();
    let keys = KeyManager::builder(store).audit_sink(sink).delivery(delivery).build().unwrap();
    (keys, issued.secret.expose_secret().into())
}

/// Makes so many requests, several at a time.
async fn produce(keys: &KeyManager, secret: &Arc<str>, requests: usize) {
    let producer = || {
        let (keys, secret) = (keys.clone(), Arc::clone(secret));
        tokio::spawn(async move {
            for _ in 0..requests / PRODUCERS {
                let request =
                    RequestInfo::new("GET", "/v1/things").from_ip("192.0.2.1".parse().ok());
                let admission = keys.admit(&secret, request).await.unwrap();
                admission.finish(200).await.unwrap();
                // As whoever waits for the next request does.
                tokio::task::yield_now().await;
            }
        })
    };
    for producer in (0..PRODUCERS).map(|_| producer()).collect::<Vec<_>>() {
        producer.await.unwrap();
    }
}

async fn written(keys: &KeyManager, records: u64) {
    while keys.audit_stats().written < records {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

// ---- in the long run ----

/// Such records as the pipeline makes.
fn batch(key: KeyId, made: &mut u64) -> Vec<AuditRecord> {
    let record = |_| {
        *made += 1;
        AuditRecord {
            id: AuditId::from_bytes(u128::from(*made).to_be_bytes()),
            at: Timestamp::from_unix_micros(1_800_000_000_000_000 + *made as i64).unwrap(),
            org: OrgId::new("acme").unwrap(),
            key,
            event: AuditEvent::Request({
                let mut event = RequestEvent::new("GET", "/v1/things", Outcome::Allowed);
                event.ip = "192.0.2.1".parse().ok();
                event.status = Some(200);
                event
            }),
        }
    };
    (0..BATCH).map(record).collect()
}

async fn long_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("audit.db")).unwrap();
    let (keys, secret) = manager(store.clone(), delivery()).await;
    let (mut alone, mut piped, mut ratios, mut peaks) = (vec![], vec![], vec![], vec![]);
    let (key, mut made) = (KeyId::random(&mut SysRng).unwrap(), 0);
    for round in 1..=ROUNDS {
        forget_peak();
        let started = Instant::now();
        produce(&keys, &secret, TURN).await;
        written(&keys, (round * TURN) as u64).await;
        let by_pipeline = TURN as f64 / started.elapsed().as_secs_f64();
        peaks.push(peak_memory());

        let mut took = Duration::ZERO;
        for _ in 0..TURN / BATCH {
            let batch = batch(key, &mut made);
            let started = Instant::now();
            store.record(&batch).await.unwrap();
            took += started.elapsed();
        }
        let by_sink = TURN as f64 / took.as_secs_f64();
        alone.push(by_sink);
        piped.push(by_pipeline);
        ratios.push(by_pipeline / by_sink);
    }
    assert!(keys.shutdown(PATIENCE).await.is_complete());
    println!("SQLite, records a second: median (middle half) of {ROUNDS} rounds of {TURN}");
    println!("{:<18}{}", "the sink alone", Spread::of(alone).show(0));
    println!("{:<18}{}", "the pipeline", Spread::of(piped).show(0));
    println!("{:<18}{} of the sink alone", "", Spread::of(ratios).show(2));
    println!("{:<18}{} MiB", "peak memory", Spread::of(peaks).show(1));
}

// ---- a burst ----

/// Slower than the requests, and counts.
#[derive(Clone, Default)]
struct SlowSink(Arc<AtomicU64>);

impl fmt::Debug for SlowSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlowSink")
    }
}

#[async_trait]
impl AuditSink for SlowSink {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.0.fetch_add(batch.len() as u64, Relaxed);
        Ok(())
    }
}

/// Says how many records were accounted for.
async fn burst(name: &str, when_full: WhenFull) -> u64 {
    let sink = SlowSink::default();
    let (keys, secret) = manager(sink.clone(), delivery().when_full(when_full)).await;
    forget_peak();
    let started = Instant::now();
    produce(&keys, &secret, BURST).await;
    let made = started.elapsed().as_secs_f64();
    assert!(keys.shutdown(PATIENCE).await.is_complete());
    let (written, stats) = (sink.0.load(Relaxed), keys.audit_stats());
    println!(
        "{name:<18}{written:>8} written  {:>8} shed  in {made:.1} s  peak memory {:.1} MiB",
        stats.shed,
        peak_memory()
    );
    assert_eq!((stats.written, stats.failed, stats.queued), (written, 0, 0));
    assert!(stats.shed == 0 || when_full == WhenFull::Shed);
    written + stats.shed
}

#[tokio::main]
async fn main() {
    println!("memory at the start: {:.1} MiB\n", peak_memory());
    long_run().await;
    println!("\na burst of {BURST} records through {CAPACITY} places");
    let accounted =
        burst("waiting", WhenFull::Wait).await + burst("shedding", WhenFull::Shed).await;
    let ratio = accounted as f64 / (2 * BURST) as f64;
    println!("accounted for: {ratio} of the records, {accounted} (target 1)");
    assert_eq!(accounted, 2 * BURST as u64);
}
