//! Purges without statistics, as after a restore, and two purges at once.

use keygate::{AuditLog, PostgresStore, Timestamp};
use tokio_postgres::Client;

use crate::large::{Work, records, without_autovacuum, work_of};
use crate::postgres_support::{Schema, count};

/// Fills tables without statistics. If the indexes are created afterwards, as in a restore,
/// the server knows the number of rows.
async fn fill(db: &Client, rows: u64, indexed_afterwards: bool) {
    let (drop, make) = if indexed_afterwards {
        (
            "DROP INDEX requests_at_idx; DROP INDEX changes_by_time;",
            "CREATE INDEX requests_at_idx ON requests (at); \
             CREATE INDEX changes_by_time ON changes (at);",
        )
    } else {
        Default::default()
    };
    let by_hand = without_autovacuum(db).await;
    let sql = format!(
        "{by_hand} {drop} \
         INSERT INTO requests (key, at, id, org, method, endpoint, status, outcome) \
             SELECT lpad(to_hex(n % 999), 32, '0')::uuid, n / 60, lpad(to_hex(n), 32, '0')::uuid, \
             'acme', 'GET', '/v1/things/' || n, 200, 'allowed' \
             FROM generate_series(0, {rows} - 1) AS n; \
         INSERT INTO changes (key, at, id, org, actor, action, phase) \
             SELECT lpad(to_hex(n % 999), 32, '0')::uuid, n / 60, lpad(to_hex(n), 32, '0')::uuid, \
             'acme', 'ada', 'updated', 'begun' FROM generate_series(0, {rows} - 1) AS n; \
         {make}"
    );
    db.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_purge_without_statistics_reads_each_record_a_few_times() {
    const ROWS: u64 = 30_000;
    for (indexed_afterwards, prepared) in [(false, true), (true, true), (true, false)] {
        let schema = Schema::new();
        drop(schema.store().await);
        let db = schema.db().await;
        fill(&db, ROWS, indexed_afterwards).await;
        let work = work_of((&schema, &db), schema.options().prepared(prepared), async |store| {
            assert_eq!(store.purge_before(Timestamp::MAX).await.unwrap(), 2 * ROWS);
        });
        let Work { scanned, entries, fetched } = work.await;
        let analysed = "SELECT count(*) FROM pg_statistic \
                        WHERE starelid IN ('requests'::regclass, 'changes'::regclass)";
        assert_eq!(count(&db, analysed).await, 0, "the tables have no statistics");
        assert_eq!(scanned, 0, "no table is scanned");
        // Once to find it, once to lock it, and once to find it again.
        assert!(entries <= 5 * 2 * ROWS && fetched <= 5 * 2 * ROWS, "{entries}, {fetched}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_purges_at_once_remove_each_record_once() {
    const ROWS: u64 = 20_000;
    let schema = Schema::new();
    let (a, b) = (schema.store().await, schema.store().await);
    let db = schema.db().await;
    for _ in 0..3 {
        fill(&db, ROWS, false).await;
        let purge = |store: &PostgresStore| {
            let store = store.clone();
            tokio::spawn(async move { store.purge_before(Timestamp::MAX).await.unwrap() })
        };
        let (a, b) = tokio::join!(purge(&a), purge(&b));
        assert_eq!(a.unwrap() + b.unwrap(), 2 * ROWS);
        assert_eq!(records(&db, "true").await, 0);
    }
}
