//! The audit log of an earlier version, partitioned while it is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, Outcome, RequestEvent,
};
use keygate::{AuditLog, AuditSink, Timestamp};
use tokio_postgres::Client;

use crate::postgres_support::{count, key};
use crate::support::eventually;
use crate::upgrade::{VERSION_1, earlier_schema};

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// More than the size up to which a table is scanned at once.
const ROWS: i64 = 120_000;

fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The requests of 100 days.
async fn fill(db: &Client) {
    let sql = format!(
        "INSERT INTO requests (key, at, id, org, method, endpoint, status, outcome) \
         SELECT lpad(to_hex(n % 999), 32, '0')::uuid, {} + n * 72000000::bigint, \
         lpad(to_hex(n), 32, '0')::uuid, 'acme', 'GET', '/v1/things/' || n, 200, 'allowed' \
         FROM generate_series(1, {ROWS}) AS n",
        now().saturating_sub(DAY * 100).unix_micros()
    );
    db.batch_execute(&sql).await.unwrap();
}

fn request(number: u64, at: Timestamp) -> AuditRecord {
    AuditRecord {
        id: AuditId::from_bytes(u128::from(number).to_be_bytes()),
        at,
        org: key(1).org,
        key: key(1).id,
        event: AuditEvent::Request(RequestEvent::new("GET", "/v1/things", Outcome::Allowed)),
    }
}

/// How many partitions have no end.
async fn endless(db: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_inherits JOIN pg_class ON oid = inhrelid \
               WHERE inhparent = 'requests'::regclass \
               AND pg_get_expr(relpartbound, oid) LIKE '%TO (MAXVALUE)'";
    count(db, sql).await
}

async fn partitions(db: &Client) -> i64 {
    count(db, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'requests'::regclass").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_large_log_becomes_the_first_partition_while_an_older_version_writes() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    fill(&db).await;
    let file = |table| format!("SELECT pg_relation_filenode('{table}')::bigint");
    let before = count(&db, &file("requests")).await;
    let ended = Arc::new(AtomicBool::new(false));
    let (older, is_ended) = (schema.db().await, Arc::clone(&ended));
    let writer = tokio::spawn(async move {
        let insert = "INSERT INTO requests (key, at, id, org, method, endpoint, status, outcome) \
                      SELECT gen_random_uuid(), $1, gen_random_uuid(), 'acme', 'GET', '/', 200, \
                      'allowed' ON CONFLICT DO NOTHING RETURNING key";
        let insert = older.prepare(insert).await.unwrap();
        let (mut written, mut slowest) = (0, Duration::ZERO);
        while !is_ended.load(Ordering::Relaxed) {
            let begun = Instant::now();
            written += older.execute(&insert, &[&now().unix_micros()]).await.unwrap();
            slowest = slowest.max(begun.elapsed());
        }
        (written, slowest)
    });
    let stores = [schema.options().connect(), schema.options().connect()];
    let [store, other] = stores.map(tokio::spawn);
    let (store, _other) = (store.await.unwrap().unwrap(), other.await.unwrap().unwrap());
    eventually("the first partition has an end", async || endless(&db).await == 0).await;
    assert!(partitions(&db).await >= 4);
    ended.store(true, Ordering::Relaxed);
    let (written, slowest) = writer.await.unwrap();
    eprintln!("{written} requests of the older version, the slowest in {slowest:?}");
    assert!(written > 0 && slowest < Duration::from_secs(2), "{written}, {slowest:?}");
    assert_eq!(count(&db, &file("requests_before")).await, before, "the table was copied");
    let all = ROWS + written.cast_signed();
    assert_eq!(count(&db, "SELECT count(*) FROM requests").await, all);
    let checks = "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'at_before%' \
                  AND connamespace = current_schema()::regnamespace";
    assert_eq!(count(&db, checks).await, 0);

    // Its requests are purged one by one until all of them are old.
    let purged = store.purge_before(now().saturating_sub(DAY * 90)).await.unwrap();
    assert_eq!(count(&db, "SELECT count(*) FROM requests").await, all - purged.cast_signed());
    assert!((11_990..12_010).contains(&purged), "{purged}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_log_with_requests_from_the_future_is_used_and_partitioned_once_they_are_gone() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    let wrong = now().saturating_add(DAY * 365 * 73);
    let insert = format!(
        "INSERT INTO requests (key, at, id, org, method, endpoint, status, outcome) VALUES \
         ('{0}', {1}, '{0}', 'acme', 'GET', '/', 200, 'allowed')",
        key(1).id,
        wrong.unix_micros()
    );
    db.batch_execute(&insert).await.unwrap();
    let store = schema.store().await;
    let present = request(1, now());
    store.record(std::slice::from_ref(&present)).await.unwrap();
    let query = AuditQuery::new(key(1).org, AuditScope::KeyRequests(key(1).id));
    let times: Vec<_> =
        store.page(&query).await.unwrap().records.iter().map(|record| record.at).collect();
    assert_eq!(times, [wrong, present.at]);
    assert_eq!((endless(&db).await, partitions(&db).await), (1, 1));
    db.batch_execute(&format!("DELETE FROM requests WHERE at = {}", wrong.unix_micros()))
        .await
        .unwrap();
    drop(schema.store().await);
    assert_eq!(endless(&db).await, 0);
    assert!(partitions(&db).await >= 4);
}

/// Until its end is checked, the first partition refuses requests of later times.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_request_from_far_ahead_is_written_while_the_first_partition_is_about_to_end() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    fill(&db).await;
    let store = schema.store().await;
    eventually("the first partition has an end", async || endless(&db).await == 0).await;
    let end = now().saturating_add(DAY * 8).unix_micros();
    let back = format!(
        "BEGIN; DO $$ DECLARE part regclass; BEGIN FOR part IN SELECT inhrelid::regclass \
         FROM pg_inherits WHERE inhparent = 'requests'::regclass LOOP \
         EXECUTE format('ALTER TABLE requests DETACH PARTITION %s', part); END LOOP; END $$; \
         ALTER TABLE requests ATTACH PARTITION requests_before \
         FOR VALUES FROM (MINVALUE) TO (MAXVALUE); ALTER TABLE requests_before \
         ADD CONSTRAINT at_before_{end} CHECK (at < {end}) NOT VALID; \
         DO $$ DECLARE part regclass; BEGIN FOR part IN SELECT oid::regclass FROM pg_class \
         WHERE relname LIKE 'requests_2%' AND relkind = 'r' \
         AND relnamespace = current_schema()::regnamespace LOOP \
         EXECUTE format('DROP TABLE %s', part); END LOOP; END $$; COMMIT"
    );
    db.batch_execute(&back).await.unwrap();
    let ahead = request(1, now().saturating_add(DAY * 365));
    store.record(&[request(2, now()), ahead.clone()]).await.unwrap();
    assert_eq!(endless(&db).await, 0);
    let query = AuditQuery::new(key(1).org, AuditScope::KeyRequests(key(1).id));
    assert_eq!(store.page(&query).await.unwrap().records[0], ahead);
    assert_eq!(count(&db, "SELECT count(*) FROM requests").await, ROWS + 2);
}
