//! Purges without statistics, as after a restore, and two purges at once.

use keygate::store::PostgresOptions;
use keygate::{AuditLog, Timestamp};
use tokio_postgres::Client;

use crate::large::{Work, count, work_so_far};
use crate::postgres_support::{
    administrator, in_schema, in_session, schema_of, sessions_end, unique,
};

/// Fills tables without statistics. If the indexes are created afterwards, as in a restore,
/// the server knows the number of rows.
async fn fill(db: &Client, schema: &str, rows: u64, indexed_afterwards: bool) {
    let indexes = ["requests", "changes"].map(|table| {
        let (drop, make) = (
            format!("DROP INDEX {schema}.{table}_by_time;"),
            format!("CREATE INDEX {table}_by_time ON {schema}.{table} (at);"),
        );
        if indexed_afterwards { (drop, make) } else { Default::default() }
    });
    let [(drop_requests, make_requests), (drop_changes, make_changes)] = indexes;
    let sql = format!(
        "ALTER TABLE {schema}.requests SET (autovacuum_enabled = off); \
         ALTER TABLE {schema}.changes SET (autovacuum_enabled = off); \
         {drop_requests} {drop_changes} \
         INSERT INTO {schema}.requests (key, at, id, org, method, endpoint, status, outcome) \
             SELECT lpad(to_hex(n % 999), 32, '0')::uuid, n / 60, lpad(to_hex(n), 32, '0')::uuid, \
             'acme', 'GET', '/v1/things/' || n, 200, 'allowed' \
             FROM generate_series(0, {rows} - 1) AS n; \
         INSERT INTO {schema}.changes (key, at, id, org, actor, action, phase) \
             SELECT lpad(to_hex(n % 999), 32, '0')::uuid, n / 60, lpad(to_hex(n), 32, '0')::uuid, \
             'acme', 'ada', 'updated', 'begun' FROM generate_series(0, {rows} - 1) AS n; \
         {make_requests} {make_changes}"
    );
    db.batch_execute(&sql).await.unwrap();
}

async fn left(db: &Client, schema: &str) -> u64 {
    let left = format!(
        "SELECT (SELECT count(*) FROM {schema}.requests) + (SELECT count(*) FROM {schema}.changes)"
    );
    count(db, &left).await
}

const LATER: Timestamp = Timestamp::MAX;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_purge_without_statistics_reads_each_record_a_few_times() {
    const ROWS: u64 = 30_000;
    for (indexed_afterwards, prepared) in [(false, true), (true, true), (true, false)] {
        in_schema(move |options| async move {
            let (schema, db, name) = (schema_of(&options), administrator().await, unique("kg"));
            let store = in_session(&schema, &name).prepared(prepared).connect().await.unwrap();
            fill(&db, &schema, ROWS, indexed_afterwards).await;
            let analysed = format!(
                "SELECT count(*) FROM pg_statistic WHERE starelid IN \
                 ('{schema}.requests'::regclass, '{schema}.changes'::regclass)"
            );
            let before = work_so_far(&db, &schema).await;
            assert_eq!(store.purge_before(LATER).await.unwrap(), 2 * ROWS);
            drop(store);
            sessions_end(&name).await;
            let Work { scanned, entries, fetched } = work_so_far(&db, &schema).await.since(before);
            println!("{scanned} scanned, {entries} entries, {fetched} fetched");
            assert_eq!(count(&db, &analysed).await, 0, "the tables have no statistics");
            assert_eq!(scanned, 0, "no table is scanned");
            // Once to find it, once to lock it, and once to find it again.
            assert!(entries <= 5 * 2 * ROWS && fetched <= 5 * 2 * ROWS, "{entries}, {fetched}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_purges_at_once_remove_each_record_once() {
    const ROWS: u64 = 20_000;
    in_schema(|options: PostgresOptions| async move {
        let (schema, db) = (schema_of(&options), administrator().await);
        let stores =
            [options.clone().connect().await.unwrap(), options.clone().connect().await.unwrap()];
        for _ in 0..3 {
            fill(&db, &schema, ROWS, false).await;
            let purges = stores
                .clone()
                .map(|store| tokio::spawn(async move { store.purge_before(LATER).await.unwrap() }));
            let mut purged = 0;
            for purge in purges {
                purged += purge.await.unwrap();
            }
            assert_eq!(purged, 2 * ROWS);
            assert_eq!(left(&db, &schema).await, 0);
        }
    })
    .await;
}
