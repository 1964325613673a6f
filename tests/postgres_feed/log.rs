//! The audit log of an earlier version, partitioned while it is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, ChangeAction, ChangeEvent,
    ChangePhase, Outcome, RequestEvent,
};
use keygate::{AuditLog, AuditSink, Timestamp};
use tokio_postgres::Client;

use crate::postgres_support::{Role, Schema, count, key};
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
        let mut written = 0;
        while !is_ended.load(Ordering::Relaxed) {
            written += older.execute(&insert, &[&now().unix_micros()]).await.unwrap();
        }
        written
    });
    let stores = [schema.options().connect(), schema.options().connect()];
    let [store, other] = stores.map(tokio::spawn);
    let (store, _other) = (store.await.unwrap().unwrap(), other.await.unwrap().unwrap());
    eventually("the first partition has an end", async || endless(&db).await == 0).await;
    assert!(partitions(&db).await >= 4);
    ended.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    assert!(written > 0);
    assert_eq!(count(&db, &file("requests_before")).await, before, "the table was copied");
    let all = ROWS + written.cast_signed();
    assert_eq!(count(&db, "SELECT count(*) FROM requests").await, all);
    assert_eq!(ends_announced(&db).await, 0);

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

/// Takes the log back to the time when the first partition was about to end at this instant.
async fn about_to_end(db: &Client, end: Timestamp) {
    eventually("the first partition has an end", async || endless(db).await == 0).await;
    let end = end.unix_micros();
    let back = format!(
        "BEGIN; DO $$ DECLARE part regclass; BEGIN FOR part IN SELECT inhrelid::regclass \
         FROM pg_inherits WHERE inhparent = 'requests'::regclass LOOP \
         EXECUTE format('ALTER TABLE requests DETACH PARTITION %s', part); \
         IF part <> 'requests_before'::regclass THEN EXECUTE format('DROP TABLE %s', part); END IF; \
         END LOOP; END $$; ALTER TABLE requests ATTACH PARTITION requests_before \
         FOR VALUES FROM (MINVALUE) TO (MAXVALUE); ALTER TABLE requests_before \
         ADD CONSTRAINT at_before_{end} CHECK (at < {end}) NOT VALID; COMMIT"
    );
    db.batch_execute(&back).await.unwrap();
}

/// The constraints that announce an end of the first partition.
async fn ends_announced(db: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'at_before%' \
               AND connamespace = current_schema()::regnamespace";
    count(db, sql).await
}

/// What a call that may or may not take long answers.
async fn make(schema: &Schema, db: &Client, may_take_long: bool) -> Result<Option<i64>, String> {
    let week = DAY.as_micros() * 7;
    let sql = format!("SELECT make_partitions('{}', '{{}}', {week}, {may_take_long})", schema.name);
    db.query_one(&sql, &[]).await.map(|row| row.get(0)).map_err(|error| format!("{error:?}"))
}

/// Until its end is checked, the first partition refuses requests of later times.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn an_end_that_another_process_announced_is_carried_through() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    fill(&db).await;
    let store = schema.store().await;
    about_to_end(&db, now().saturating_add(DAY * 8)).await;
    // A call that others wait for scans nothing.
    assert_eq!(make(&schema, &db, false).await, Ok(None));
    let scanned = "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'at_before%' \
                   AND connamespace = current_schema()::regnamespace AND convalidated";
    assert_eq!(count(&db, scanned).await, 0);
    let ahead = request(1, now().saturating_add(DAY * 365));
    let batch = [request(2, now()), ahead.clone()];
    eventually("the first partition ends", async || store.record(&batch).await.is_ok()).await;
    assert_eq!((endless(&db).await, ends_announced(&db).await), (0, 0));
    let query = AuditQuery::new(key(1).org, AuditScope::KeyRequests(key(1).id));
    assert_eq!(store.page(&query).await.unwrap().records[0], ahead);
    assert_eq!(count(&db, "SELECT count(*) FROM requests").await, ROWS + 2);
}

/// Whatever kept the first partition from its end, requests are written then.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn an_end_that_was_announced_and_cannot_be_is_withdrawn_in_time() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    fill(&db).await;
    let store = schema.store().await;
    store.record(&[request(1, now())]).await.unwrap();
    about_to_end(&db, now().saturating_sub(DAY)).await;
    store.record(&[request(2, now())]).await.unwrap();
    eventually("the first partition has an end", async || endless(&db).await == 0).await;
    let query = AuditQuery::new(key(1).org, AuditScope::KeyRequests(key(1).id));
    assert_eq!(store.page(&query).await.unwrap().records.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn no_end_is_announced_while_the_owner_cannot_create_partitions() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    fill(&db).await;
    let owner = Role::new().await;
    let owned = format!(
        "ALTER TABLE requests OWNER TO {1}; GRANT USAGE ON SCHEMA {0} TO {1}",
        schema.name, owner.name
    );
    db.batch_execute(&owned).await.unwrap();
    let store = schema.store().await;
    let refused = make(&schema, &db, true).await.unwrap_err();
    assert!(refused.contains("lacks CREATE on the schema"), "{refused}");
    assert_eq!((endless(&db).await, ends_announced(&db).await), (1, 0));
    let ahead = request(1, now().saturating_add(DAY * 365));
    store.record(&[ahead]).await.unwrap();
    db.batch_execute(&format!("DELETE FROM requests WHERE at > {}", now().unix_micros()))
        .await
        .unwrap();
    let grant = format!("GRANT CREATE ON SCHEMA {} TO {}", schema.name, owner.name);
    db.batch_execute(&grant).await.unwrap();
    let _store = schema.store().await;
    eventually("the first partition has an end", async || endless(&db).await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn what_partitions_would_lose_keeps_a_log_from_being_upgraded() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    for (make, end, told) in [
        (
            "ALTER TABLE requests ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE requests DISABLE ROW LEVEL SECURITY",
            "Disable row-level security",
        ),
        ("CREATE UNIQUE INDEX mine ON requests (id)", "DROP INDEX mine", "Drop that index"),
    ] {
        db.batch_execute(make).await.unwrap();
        let refused = schema.options().connect().await.unwrap_err();
        assert!(format!("{refused:?}").contains(told), "{refused:?}");
        assert_eq!(count(&db, "SELECT version FROM schema_version").await, 1);
        db.batch_execute(end).await.unwrap();
    }
    drop(schema.store().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn rights_on_columns_outlast_the_upgrade() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    let role = Role::new().await;
    db.batch_execute(&format!("GRANT SELECT (org, at) ON requests TO {}", role.name))
        .await
        .unwrap();
    drop(schema.store().await);
    for (column, granted) in [("org", 1), ("at", 1), ("endpoint", 0)] {
        let sql = format!(
            "SELECT has_column_privilege('{}', 'requests', '{column}', 'SELECT')::int::bigint",
            role.name
        );
        assert_eq!(count(&db, &sql).await, granted, "{column}");
    }
}

/// A view on the table of the earlier version.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_partition_that_cannot_be_dropped_keeps_nothing_else_from_being_purged() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    db.batch_execute("CREATE VIEW mine AS SELECT * FROM requests").await.unwrap();
    let store = schema.store().await;
    let old = now().saturating_sub(DAY * 40);
    let change =
        AuditEvent::Change(ChangeEvent::new("ada", ChangeAction::Created, ChangePhase::Begun));
    let batch = [request(1, old), AuditRecord { event: change, ..request(2, old) }];
    store.record(&batch).await.unwrap();
    // As if weeks had passed.
    let passed = format!(
        "BEGIN; ALTER TABLE requests DETACH PARTITION requests_before; \
         ALTER TABLE requests ATTACH PARTITION requests_before FOR VALUES FROM (MINVALUE) TO ({0}); \
         CREATE TABLE requests_old PARTITION OF requests FOR VALUES FROM ({0}) TO ({1}); COMMIT",
        now().saturating_sub(DAY * 20).unix_micros(),
        now().saturating_sub(DAY * 10).unix_micros()
    );
    db.batch_execute(&passed).await.unwrap();
    store.record(&[request(3, now().saturating_sub(DAY * 15))]).await.unwrap();
    let refused = store.purge_before(now()).await;
    assert!(format!("{refused:?}").contains("purged_requests_"), "{refused:?}");
    assert_eq!(count(&db, "SELECT count(*) FROM changes").await, 0);
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'purged%' AND relkind = 'r' \
                AND relnamespace = current_schema()::regnamespace";
    assert_eq!(count(&db, left).await, 1);
    db.batch_execute("DROP VIEW mine").await.unwrap();
    assert_eq!(store.purge_before(now()).await.unwrap(), 1);
    assert_eq!(count(&db, left).await, 0);
}
