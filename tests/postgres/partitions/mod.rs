//! Partitions of the requests in the audit log: what their tests share.

mod dropping;
mod making;
mod rights;

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, Outcome, RequestEvent, UsageQuery,
};
use keygate::{AuditLog, AuditSink, PostgresStore, Timestamp};
use tokio_postgres::Client;

use crate::postgres_support::{Schema, count, key};

const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The start of an hour, this long before the tests began.
pub(crate) fn hours_ago(hours: u64) -> Timestamp {
    static BEGUN: LazyLock<Timestamp> = LazyLock::new(now);
    let micros = BEGUN.unix_micros();
    let hour = Timestamp::from_unix_micros(micros - micros % 3_600_000_000).unwrap();
    hour.saturating_sub(HOUR * u32::try_from(hours).unwrap())
}

pub(crate) fn request(number: u64, at: Timestamp) -> AuditRecord {
    let mut event = RequestEvent::new("GET", format!("/v1/things/{number}"), Outcome::Allowed);
    event.status = Some(200);
    AuditRecord {
        id: AuditId::from_bytes(u128::from(number).to_be_bytes()),
        at,
        org: key(1).org,
        key: key(1).id,
        event: AuditEvent::Request(event),
    }
}

/// A partition's name, its first instant, and the first one after it.
type Partition = (String, Option<i64>, Option<i64>);

async fn partitions(db: &Client) -> Vec<Partition> {
    let sql = "SELECT inhrelid::regclass::text, \
               substring(bound FROM 'FROM \\(''?(-?[0-9]+)')::bigint AS starts, \
               substring(bound FROM 'TO \\(''?(-?[0-9]+)')::bigint FROM (SELECT inhrelid, \
               pg_get_expr(relpartbound, oid) AS bound FROM pg_inherits JOIN pg_class ON oid = inhrelid \
               WHERE inhparent = 'requests'::regclass) AS bounds ORDER BY starts NULLS FIRST";
    let rows = db.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// The partitions of which all records are older.
async fn older(db: &Client, instant: Timestamp) -> Vec<Partition> {
    let is_older = |end: Option<i64>| end.is_some_and(|end| end <= instant.unix_micros());
    partitions(db).await.into_iter().filter(|(_, _, end)| is_older(*end)).collect()
}

/// Tables that were detached and not dropped.
async fn left_over(db: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_class WHERE relname LIKE 'purged%' AND relkind = 'r' \
               AND relnamespace = current_schema()::regnamespace";
    count(db, sql).await
}

/// All requests of the key, newest first.
pub(crate) async fn read(store: &PostgresStore) -> Vec<AuditRecord> {
    let query = AuditQuery::new(key(1).org, AuditScope::KeyRequests(key(1).id)).limit(200);
    let page = store.page(&query).await.unwrap();
    assert_eq!(page.older, None);
    page.records
}

pub(crate) async fn counted(store: &PostgresStore) -> u64 {
    let query = UsageQuery::new(key(1).org, key(1).id, Timestamp::MIN, Timestamp::MAX);
    store.usage(&query).await.unwrap().iter().map(|hour| hour.counts.allowed).sum()
}

/// A store whose partitions are an hour wide, as yet without any, and a session.
pub(crate) async fn hourly(schema: &Schema) -> (PostgresStore, Client) {
    let store = schema.options().partition_width(HOUR).connect().await.unwrap();
    let db = schema.db().await;
    for (name, ..) in partitions(&db).await {
        db.batch_execute(&format!("DROP TABLE {name}")).await.unwrap();
    }
    (store, db)
}

/// Records one request in the middle of each of these hours, oldest first.
async fn record_hours(store: &PostgresStore, hours: u64) {
    for number in (1..=hours).rev() {
        let at = hours_ago(number).saturating_add(HOUR / 2);
        store.record(&[request(number, at)]).await.unwrap();
    }
}
