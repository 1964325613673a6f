//! Retention on PostgreSQL: `cargo bench -p keygate-benches --bench retention`.
//!
//! A log of 30 days, each in a partition of its own, with the requests of 1,000 keys in random
//! order. Shown are how long a purge of the oldest 10 days takes, what a victim notices of it
//! who verifies a key and records a request 200 times a second, and how many rows a page reads
//! whose filter finds nothing.
//!
//! `KEYGATE_TEST_POSTGRES` names another server than the local one, `KEYGATE_BENCH_ROWS` how
//! many requests there are (3,000,000; 50,000,000 take some 10 GB and minutes to fill in).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

use std::env;
use std::iter::Rev;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use getrandom::SysRng;
use keygate::audit::{
    AuditEvent, AuditFilter, AuditId, AuditQuery, AuditRecord, AuditScope, Outcome, RequestEvent,
};
use keygate::store::{OrgLimit, PostgresOptions};
use keygate::{ApiKey, AuditLog, AuditSink, KeyId, KeyStore, OrgId, PostgresStore, Timestamp};
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_postgres::{Client, NoTls};

const DAYS: i64 = 30;
const PURGED_DAYS: i64 = 10;
const DAY: i64 = 24 * 3_600_000_000;
const KEYS: i64 = 1_000;
const PERIOD: Duration = Duration::from_millis(5);
const QUIET: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() {
    let rows: i64 = env::var("KEYGATE_BENCH_ROWS").map_or(3_000_000, |rows| rows.parse().unwrap());
    let schema = format!("keygate_bench_{:x}", std::process::id());
    let db = database().await;
    let bench = tokio::spawn(run(schema.clone(), rows)).await;
    db.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
    bench.unwrap();
}

fn url() -> String {
    env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

async fn database() -> Client {
    let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn options(schema: &str) -> PostgresOptions {
    let day = Duration::from_micros(DAY.unsigned_abs());
    PostgresOptions::from_url(&url()).unwrap().schema(schema).unwrap().partition_width(day)
}

async fn run(schema: String, rows: i64) {
    let store = options(&schema).connect().await.unwrap();
    let now = Timestamp::from(SystemTime::now()).unix_micros();
    let today = now - now % DAY;
    let begun = Instant::now();
    fill(&schema, today, rows / DAYS).await;
    println!(
        "{} requests in {DAYS} partitions, filled in {:.0?}",
        rows / DAYS * DAYS,
        begun.elapsed()
    );
    read_a_page(&schema, today).await;

    let victim = Victim::start(&store).await;
    let quiet = victim.measure(async { sleep(QUIET).await }).await;
    println!("victim, nothing beside it: {}", show(&quiet));
    let instant = Timestamp::from_unix_micros(today - (DAYS - PURGED_DAYS) * DAY).unwrap();
    let (mut purged, mut took) = (0, Duration::ZERO);
    let beside = victim.measure(async {
        let begun = Instant::now();
        purged = store.purge_before(instant).await.unwrap();
        took = begun.elapsed();
    });
    let beside = beside.await;
    println!("purge of {PURGED_DAYS} days: {took:.2?} (target 2 s), {purged} requests");
    println!("victim beside it: {}", show(&beside));
    println!("ratio of p99: {:.2} (target 2)", at(&beside, 99) / at(&quiet, 99));
}

/// Fills the partitions of the days before today, the oldest first, two at a time.
async fn fill(schema: &str, today: i64, rows: i64) {
    let db = database().await;
    let days =
        format!("ARRAY(SELECT {today} - day * {DAY} FROM generate_series(1, {DAYS}) AS day)");
    let prepare = format!(
        "SET search_path = {schema}; DO $$ DECLARE part regclass; BEGIN \
         FOR part IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'requests'::regclass \
         LOOP EXECUTE format('DROP TABLE %s', part); END LOOP; END $$; \
         SELECT make_partitions('{schema}', {days}, {DAY}, true)"
    );
    db.batch_execute(&prepare).await.unwrap();
    let next = Arc::new(Mutex::new((1..=DAYS).rev()));
    let filler = |next: Arc<Mutex<Rev<RangeInclusive<i64>>>>, schema: String| async move {
        let db = database().await;
        let set = format!("SET search_path = {schema}; SET synchronous_commit = off");
        db.batch_execute(&set).await.unwrap();
        while let Some(day) = next.lock().await.next() {
            let fill = format!(
                "INSERT INTO requests (key, at, id, org, method, endpoint, ip, status, outcome) \
                 SELECT lpad(to_hex(hashint8(n) & 1023), 32, '0')::uuid, \
                 {today} - {day} * {DAY} + n * ({DAY} / {rows}), \
                 lpad(to_hex({day} * {rows} + n), 32, '0')::uuid, 'acme', 'GET', \
                 '/v1/things/' || n % {KEYS}, '192.0.2.1', 200, 'allowed' \
                 FROM generate_series(0, {rows} - 1) AS n"
            );
            db.batch_execute(&fill).await.unwrap();
        }
    };
    let fillers = [(); 2].map(|()| tokio::spawn(filler(Arc::clone(&next), schema.to_owned())));
    for filler in fillers {
        filler.await.unwrap();
    }
    // The pages of an old partition were written to disk long ago.
    db.batch_execute("CHECKPOINT").await.unwrap();
}

/// The requests of one key that match a filter, of which there are none, from the newest on and
/// from the middle.
async fn read_a_page(schema: &str, today: i64) {
    let db = database().await;
    let mut filter = AuditFilter::default();
    filter.method = Some("PUT".to_owned());
    let key = KeyId::from_bytes(7_u128.to_be_bytes());
    let all =
        AuditQuery::new(OrgId::new("acme").unwrap(), AuditScope::KeyRequests(key)).filter(filter);
    let middle = {
        let mut half = AuditFilter::default();
        half.method = Some("PUT".to_owned());
        half.until = Timestamp::from_unix_micros(today - DAYS / 2 * DAY);
        all.clone().filter(half)
    };
    for (what, query) in [("the newest", all), ("from the middle on", middle)] {
        let before = read_so_far(&db, schema).await;
        let store = options(schema).connect().await.unwrap();
        let begun = Instant::now();
        assert!(store.page(&query).await.unwrap().records.is_empty());
        let took = begun.elapsed();
        drop(store);
        // A session reports its statistics when it ends.
        sleep(Duration::from_secs(1)).await;
        let read = read_so_far(&db, schema).await - before;
        println!(
            "a page of {what}: {read} rows read (target 1,000 and one for each partition) in {took:.1?}"
        );
    }
}

async fn read_so_far(db: &Client, schema: &str) -> i64 {
    let sql = format!(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables \
         WHERE schemaname = '{schema}' AND relname LIKE 'requests%'"
    );
    db.query_one(&sql, &[]).await.unwrap().get(0)
}

/// Verifies a key and records a request, again and again.
struct Victim {
    store: PostgresStore,
    key: ApiKey,
}

impl Victim {
    async fn start(store: &PostgresStore) -> Self {
        let key = ApiKey { org: OrgId::new("victim").unwrap(), ..ApiKey::sample(1) };
        store.insert(&key, OrgLimit::NONE).await.unwrap();
        Self { store: store.clone(), key }
    }

    /// The times in milliseconds, sorted, of the requests during that work and a second after.
    async fn measure(&self, work: impl Future<Output = ()>) -> Vec<f64> {
        let mut times = Vec::new();
        let requests = async {
            let mut ticks = interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                let due = ticks.tick().await;
                self.request().await;
                times.push(due.elapsed().as_secs_f64() * 1_000.0);
            }
        };
        let work = async {
            work.await;
            sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            () = requests => {}
            () = work => {}
        }
        times.sort_by(f64::total_cmp);
        times
    }

    async fn request(&self) {
        let found = self.store.find_by_digest(&self.key.digest).await.unwrap();
        assert!(found.is_some());
        let mut event = RequestEvent::new("GET", "/v1/things", Outcome::Allowed);
        event.status = Some(200);
        let record = AuditRecord {
            id: AuditId::from_bytes(KeyId::random(&mut SysRng).unwrap().to_bytes()),
            at: SystemTime::now().into(),
            org: self.key.org.clone(),
            key: self.key.id,
            event: AuditEvent::Request(event),
        };
        self.store.record(&[record]).await.unwrap();
    }
}

fn at(times: &[f64], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn show(times: &[f64]) -> String {
    format!(
        "p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms, of {} requests",
        at(times, 50),
        at(times, 99),
        times[times.len() - 1],
        times.len()
    )
}
