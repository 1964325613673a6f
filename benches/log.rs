//! The audit log of SQLite with few and many keys: `cargo bench -p keygate-benches --bench log`.
//!
//! First what a record costs in the long run, merges included, against a bare append of the
//! same rows to a table without an index. Then how long a purge of 1,000,000 records takes,
//! and how long other writes wait meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use getrandom::SysRng;
use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, Outcome, RequestEvent,
};
use keygate::{AuditLog, AuditSink, KeyId, OrgId, SqliteStore, Timestamp};
use rusqlite::{Connection, params};

use crate::support::{Spread, processor_time};

const BATCH: usize = 1_000;
const ROUNDS: usize = 3;
/// Of one round: several merges.
const ROWS: usize = 1_000_000;
/// So many batches are made ahead, which is not measured.
const MADE: usize = 100;

/// Records as the pipeline makes them, of these keys in random order.
struct Records {
    org: OrgId,
    keys: Vec<KeyId>,
    made: u64,
    random: u64,
}

impl Records {
    fn of(keys: usize) -> Self {
        let key = |_| KeyId::random(&mut SysRng).unwrap();
        Self {
            org: OrgId::new("acme").unwrap(),
            keys: (0..keys).map(key).collect(),
            made: 0,
            random: 7,
        }
    }

    fn at(number: u64) -> Timestamp {
        Timestamp::from_unix_micros(1_800_000_000_000_000 + number.cast_signed()).unwrap()
    }

    fn next(&mut self) -> AuditRecord {
        self.made += 1;
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let mut event = RequestEvent::new("GET", "/v1/things", Outcome::Allowed);
        (event.ip, event.status) = ("192.0.2.1".parse().ok(), Some(200));
        AuditRecord {
            id: AuditId::from_bytes((9 << 64 | u128::from(self.made)).to_be_bytes()),
            at: Self::at(self.made),
            org: self.org.clone(),
            key: self.keys[self.random as usize % self.keys.len()],
            event: AuditEvent::Request(event),
        }
    }

    fn batch(&mut self) -> Vec<AuditRecord> {
        (0..BATCH).map(|_| self.next()).collect()
    }
}

// ---- what a record costs ----

/// Microseconds for each record: of the processor, and until it is written.
#[derive(Default)]
struct Cost {
    processor: Vec<f64>,
    wall: Vec<f64>,
    /// The longest batch, in milliseconds.
    longest: f64,
}

impl Cost {
    fn show(&self, name: &str) {
        println!(
            "{name:<14}{:>22}{:>22}{:>14.0} ms",
            Spread::of(self.processor.clone()).show(2),
            Spread::of(self.wall.clone()).show(2),
            self.longest
        );
    }
}

/// Writes a round of batches, and adds what that has cost.
async fn measured(
    cost: &mut Cost,
    records: &mut Records,
    mut write: impl AsyncFnMut(&[AuditRecord]),
) {
    let (mut processor, mut wall) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROWS / BATCH / MADE {
        let batches: Vec<_> = (0..MADE).map(|_| records.batch()).collect();
        let before = processor_time();
        for batch in &batches {
            let started = Instant::now();
            write(batch).await;
            let took = started.elapsed();
            wall += took;
            cost.longest = cost.longest.max(took.as_secs_f64() * 1e3);
        }
        processor += processor_time() - before;
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / ROWS as f64;
    cost.processor.push(each(processor));
    cost.wall.push(each(wall));
}

/// A bare append to a table without an index.
struct Floor(Connection);

impl Floor {
    fn open(path: &Path) -> Self {
        let db = Connection::open(path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE requests (
                 key BLOB NOT NULL, at INTEGER NOT NULL, id BLOB NOT NULL, org TEXT NOT NULL,
                 method TEXT NOT NULL, endpoint TEXT NOT NULL, ip TEXT, country TEXT,
                 status INTEGER, outcome TEXT NOT NULL, count INTEGER NOT NULL,
                 secret TEXT NOT NULL
             ) STRICT",
        )
        .unwrap();
        Self(db)
    }

    fn write(&self, batch: &[AuditRecord]) {
        let transaction = self.0.unchecked_transaction().unwrap();
        let sql =
            "INSERT INTO requests VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL, ?8, ?9, ?10, ?11)";
        let mut row = transaction.prepare_cached(sql).unwrap();
        for record in batch {
            let AuditEvent::Request(request) = &record.event else { continue };
            row.execute(params![
                record.key.to_bytes(),
                record.at.unix_micros(),
                record.id.to_bytes(),
                record.org.as_str(),
                request.method,
                request.endpoint,
                request.ip.map(|ip| ip.to_string()),
                request.status,
                request.outcome.as_str(),
                request.count,
                request.secret.as_str(),
            ])
            .unwrap();
        }
        drop(row);
        transaction.commit().unwrap();
    }
}

async fn costs() {
    println!(
        "microseconds for each of {ROWS} records in batches of {BATCH}: median (middle half) of {ROUNDS}"
    );
    println!("{:<14}{:>22}{:>22}{:>17}", "keys", "processor", "wall", "longest batch");
    let counts = [1, 1_000, 10_000];
    let folder = tempfile::tempdir().unwrap();
    let floor = Floor::open(&folder.path().join("floor.db"));
    let stores =
        counts.map(|keys| SqliteStore::open(folder.path().join(format!("{keys}.db"))).unwrap());
    let mut records = counts.map(Records::of);
    let (mut bare, mut costs) = (Cost::default(), counts.map(|_| Cost::default()));
    for _ in 0..ROUNDS {
        measured(&mut bare, &mut records[1], async |batch| floor.write(batch)).await;
        for ((store, records), cost) in stores.iter().zip(&mut records).zip(&mut costs) {
            measured(cost, records, async |batch| store.record(batch).await.unwrap()).await;
        }
    }
    bare.show("bare append");
    for (count, cost) in counts.iter().zip(&costs) {
        cost.show(&count.to_string());
    }
    let floor = Spread::of(bare.processor).median;
    let times = costs.map(|cost| format!("{:.1}", Spread::of(cost.processor).median / floor));
    println!("times the processor time of the bare append: {}", times.join(", "));
}

// ---- pages ----

/// Recent requests are in as many runs as there can be before they are merged.
async fn pages() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("pages.db")).unwrap();
    let mut records = Records::of(10_000);
    for _ in 0..199 {
        store.record(&records.batch()).await.unwrap();
    }
    let page = async |key: KeyId| {
        let query = AuditQuery::new(records.org.clone(), AuditScope::KeyRequests(key));
        let started = Instant::now();
        let found = store.page(&query).await.unwrap().records.len();
        (found, started.elapsed().as_secs_f64() * 1e3)
    };
    let unknown = KeyId::random(&mut SysRng).unwrap();
    let (mut some, mut none) = (vec![], vec![]);
    for key in records.keys.iter().take(200) {
        some.push(page(*key).await.1);
        none.push(page(unknown).await.1);
    }
    println!("\nmilliseconds for a page among 199,000 recent requests of 10,000 keys:");
    println!("{:<14}{}", "some 20", Spread::of(some).show(2));
    println!("{:<14}{}", "none", Spread::of(none).show(2));
}

// ---- purging ----

const PURGED: usize = 1_000_000;
const PURGED_KEYS: usize = 4_000;

/// Writes a record; says for how many milliseconds.
async fn wait(store: &SqliteStore, records: &mut Records) -> f64 {
    let record = records.next();
    let started = Instant::now();
    store.record(&[record]).await.unwrap();
    started.elapsed().as_secs_f64() * 1e3
}

/// Purges all records while another task writes.
async fn purge() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("purge.db");
    let store = SqliteStore::open(&path).unwrap();
    let mut records = Records::of(PURGED_KEYS);
    for _ in 0..PURGED / BATCH {
        store.record(&records.batch()).await.unwrap();
    }
    let (full, until) = (size(&path), Records::at(records.made + 1));
    let (purging, is_done) = (store.clone(), AtomicBool::new(false));
    let purge = async {
        let started = Instant::now();
        let purged = purging.purge_before(until).await.unwrap();
        is_done.store(true, Relaxed);
        (purged, started.elapsed().as_secs_f64())
    };
    let mut alone = vec![];
    for _ in 0..1_000 {
        alone.push(wait(&store, &mut records).await);
    }
    let write = async {
        let mut waits = vec![];
        while !is_done.load(Relaxed) {
            waits.push(wait(&store, &mut records).await);
        }
        waits
    };
    let ((purged, took), beside) = tokio::join!(purge, write);
    println!("\npurge of {purged} records of {PURGED_KEYS} keys: {took:.1} s");
    println!("milliseconds that a write waits:  median      99 %   longest (target 50)");
    for (name, mut waits) in [("alone", alone), ("beside the purge", beside)] {
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
        println!(
            "{name:<17}({:>5} writes) {:>14.1}{:>10.1}{:>10.1}",
            waits.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    drop((store, purging));
    println!("the file: {:.0} MiB before, {:.0} MiB after", full, size(&path));
    assert_eq!(purged, PURGED as u64);
}

/// In MiB.
fn size(path: &Path) -> f64 {
    fs::metadata(path).unwrap().len() as f64 / f64::from(1 << 20)
}

#[tokio::main]
async fn main() {
    costs().await;
    pages().await;
    purge().await;
}
