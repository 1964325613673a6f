//! Partitions of the requests in the audit log: made ahead and when needed, and dropped by purges.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, Outcome, RequestEvent, UsageQuery,
};
use keygate::{AuditError, AuditLog, AuditSink, PostgresStore, Timestamp};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::postgres_support::{Role, Schema, count, key};

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

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn partitions_are_made_ahead_when_a_store_opens_and_when_records_come_near_their_end() {
    let schema = Schema::new();
    let store = schema.store().await;
    let db = schema.db().await;
    let end = async || partitions(&db).await.last().unwrap().2.unwrap();
    let made = partitions(&db).await;
    assert_eq!((&*made[0].0, made[0].1), ("requests_before", None), "{made:?}");
    assert!(made.windows(2).all(|pair| pair[0].2 == pair[1].1), "without gaps: {made:?}");
    assert!(end().await > now().saturating_add(WEEK * 4).unix_micros(), "{made:?}");
    // As if time had passed.
    let (last, start, _) = made.last().unwrap();
    let drop_last = format!("DROP TABLE {last}");
    db.batch_execute(&drop_last).await.unwrap();
    drop(schema.store().await);
    assert_eq!(partitions(&db).await, made);
    db.batch_execute(&drop_last).await.unwrap();
    store.record(&[request(1, now())]).await.unwrap();
    assert_ne!(partitions(&db).await, made, "those ahead are enough");
    let near = Timestamp::from_unix_micros(start.unwrap() - 1).unwrap();
    store.record(&[request(2, near)]).await.unwrap();
    assert_eq!(partitions(&db).await, made);
    // A store of narrower partitions leaves those that are there.
    drop(schema.options().partition_width(HOUR).connect().await.unwrap());
    assert_eq!(partitions(&db).await, made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn records_of_any_time_are_written_and_counted_once() {
    let schema = Schema::new();
    let store = schema.options().partition_width(HOUR).connect().await.unwrap();
    let db = schema.db().await;
    db.batch_execute("DROP TABLE requests_before").await.unwrap();
    let times = [
        Timestamp::MIN,
        Timestamp::from_unix_micros(-1).unwrap(),
        now().saturating_sub(YEAR * 20),
        now().saturating_sub(HOUR * 30),
        now(),
        now().saturating_add(HOUR * 20),
        now().saturating_add(YEAR),
        now().saturating_add(YEAR * 73),
        Timestamp::MAX,
    ];
    let batch: Vec<_> = (1..).zip(times).map(|(number, at)| request(number, at)).collect();
    for _ in 0..2 {
        store.record(&batch).await.unwrap();
    }
    // One of them is new.
    let new = [batch[0].clone(), request(99, now()), batch[3].clone(), batch[3].clone()];
    store.record(&new).await.unwrap();
    let mut expected = [&batch[..], &new[1..2]].concat();
    expected.sort_by_key(|record| std::cmp::Reverse((record.at, record.id)));
    assert_eq!(read(&store).await, expected);
    assert_eq!(counted(&store).await, 10);
    let made = partitions(&db).await;
    assert!(made.len() <= 14, "{made:?}");
    // Those far ahead are wide.
    let (_, start, end) = made.last().unwrap();
    assert_eq!(end.unwrap() - start.unwrap(), 64 * 3_600_000_000);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn many_partitions_make_new_ones_wider() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    // A clock that jumps ahead week by week.
    for week in 1..=400 {
        store.record(&[request(week.into(), now().saturating_add(WEEK * week))]).await.unwrap();
    }
    let made = partitions(&db).await.len();
    assert!((60..260).contains(&made), "{made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_stores_make_the_same_partitions_at_once() {
    for _ in 0..5 {
        let schema = Schema::new();
        let (store, db) = hourly(&schema).await;
        let stores = [store, schema.options().partition_width(HOUR).connect().await.unwrap()];
        let write = |number: u64| {
            let store = stores[number as usize % 2].clone();
            let times = [3, 5, 9].map(|hours| hours_ago(hours).saturating_add(HOUR / 2));
            let batch: Vec<_> = times.map(|at| request(number / 2, at)).to_vec();
            async move { store.record(&batch).await }
        };
        let writes = (0..8).map(write).collect::<JoinSet<_>>().join_all().await;
        assert!(writes.iter().all(Result::is_ok), "{writes:?}");
        assert_eq!(read(&stores[0]).await.len(), 12);
        let made = partitions(&db).await;
        assert!(made.windows(2).all(|pair| pair[0].2 <= pair[1].1), "{made:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_purge_drops_old_partitions_beside_a_writer() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 30).await;
    let instant = hours_ago(10).saturating_add(HOUR / 2);
    // One of the same partition, on each side.
    let near =
        [request(100, instant.saturating_sub(Duration::from_micros(1))), request(101, instant)];
    store.record(&near).await.unwrap();
    assert_eq!(older(&db, instant).await.len(), 20);
    let write = async {
        for number in 1_000.. {
            store.record(&[request(number, now())]).await.unwrap();
        }
    };
    let purged = tokio::select! {
        purged = store.purge_before(instant) => purged.unwrap(),
        () = write => unreachable!("it writes until dropped"),
    };
    // The record of that half hour is from the instant, and is kept.
    assert_eq!(purged, 21);
    assert_eq!((older(&db, instant).await, left_over(&db).await), (vec![], 0));
    let old = format!("SELECT count(*) FROM requests WHERE at < {}", instant.unix_micros());
    assert_eq!(count(&db, &old).await, 0);
    let recent = format!(
        "SELECT count(*) FROM requests WHERE at >= {} AND at < {}",
        instant.unix_micros(),
        hours_ago(0).unix_micros()
    );
    assert_eq!(count(&db, &recent).await, 11);
    assert_eq!(store.purge_before(instant).await.unwrap(), 0);
    // What is delivered late is written.
    store.record(&[request(102, hours_ago(20))]).await.unwrap();
    assert_eq!(store.purge_before(instant).await.unwrap(), 1);
    // Partitions of the present and of the future stay.
    let left = partitions(&db).await;
    store.purge_before(Timestamp::MAX).await.unwrap();
    let present = |(_, _, end): &Partition| *end > Some(now().unix_micros());
    let stay: Vec<_> = left.into_iter().filter(present).collect();
    assert!(stay.len() >= 5 && partitions(&db).await == stay, "{stay:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn the_records_of_a_large_partition_are_counted_approximately() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    store.record(&[request(0, hours_ago(3))]).await.unwrap();
    let fill = format!(
        "INSERT INTO requests (key, at, id, org, method, endpoint, status, outcome) \
         SELECT lpad(to_hex(n % 999), 32, '0')::uuid, {} + n, lpad(to_hex(n), 32, '0')::uuid, \
         'acme', 'GET', '/v1/things/' || n, 200, 'allowed' FROM generate_series(1, 300000) AS n",
        hours_ago(3).unix_micros()
    );
    db.batch_execute(&fill).await.unwrap();
    let purged = store.purge_before(hours_ago(1)).await.unwrap();
    assert!((270_000..330_000).contains(&purged), "{purged}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_purge_that_died_half_way_is_finished_by_the_next() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 5).await;
    let detach =
        format!("SELECT detach_partitions('{}', {})", schema.name, hours_ago(2).unix_micros());
    assert_eq!(count(&db, &detach).await, 3);
    assert_eq!((left_over(&db).await, read(&store).await.len()), (3, 2));
    // Whatever that one purges.
    assert_eq!(store.purge_before(Timestamp::MIN).await.unwrap(), 3);
    assert_eq!((left_over(&db).await, read(&store).await.len()), (0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn requests_of_a_partition_that_stays_in_use_are_purged_and_others_are_written() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 5).await;
    // As a backup does.
    let backup = schema.lock("SELECT count(*) FROM requests").await;
    let mut written = 0;
    let write = async {
        for number in 1_000.. {
            store.record(&[request(number, now())]).await.unwrap();
            written += 1;
        }
    };
    let purged = tokio::select! {
        purged = store.purge_before(hours_ago(2)) => purged.unwrap(),
        () = write => unreachable!("it writes until dropped"),
    };
    assert_eq!(purged, 3);
    assert!(written > 0, "writes wait for attempts to detach, and not for the backup");
    assert_eq!(older(&db, hours_ago(2)).await.len(), 3);
    backup.batch_execute("COMMIT").await.unwrap();
    assert_eq!(store.purge_before(hours_ago(2)).await.unwrap(), 0);
    assert_eq!((older(&db, hours_ago(2)).await, left_over(&db).await), (vec![], 0));
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_role_that_does_not_own_the_tables_makes_and_drops_partitions_if_it_may_write_and_delete()
{
    let (schema, role) = (Schema::new(), Role::new().await);
    let (owner, db) = hourly(&schema).await;
    record_hours(&owner, 5).await;
    let run = async |sql: &str| {
        let sql = sql.replace("{schema}", &schema.name).replace("{role}", &role.name);
        db.batch_execute(&sql).await.unwrap();
    };
    run("GRANT USAGE ON SCHEMA {schema} TO {role}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}")
    .await;
    let options = schema.options_at(&role.url()).partition_width(HOUR);
    let store = options.connect().await.unwrap();
    assert_eq!(store.purge_before(hours_ago(3)).await.unwrap(), 2);
    assert_eq!((older(&db, hours_ago(3)).await, left_over(&db).await), (vec![], 0));
    store.record(&[request(9, now().saturating_add(WEEK))]).await.unwrap();

    // A role that may not delete requests drops none, and one that may not insert adds none.
    run("REVOKE DELETE ON requests FROM {role}").await;
    let refused = store.purge_before(hours_ago(1)).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(older(&db, hours_ago(1)).await.len(), 2);
    run("REVOKE INSERT ON requests FROM {role}").await;
    let add = format!("SELECT make_partitions('{}', '{{1}}', 1, false)", schema.name);
    for (become_it, reset) in [
        ("SET SESSION AUTHORIZATION {role}", "RESET SESSION AUTHORIZATION"),
        ("SET ROLE {role}", "RESET ROLE"),
    ] {
        run(become_it).await;
        let refused = db.batch_execute(&add).await.unwrap_err();
        assert!(format!("{refused:?}").contains("lacks INSERT"), "{become_it}: {refused:?}");
        run(reset).await;
    }

    // Without the right to execute the function, records of times without partition wait.
    run("GRANT INSERT ON requests TO {role}; \
         REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
    .await;
    let ahead = request(1, now().saturating_add(YEAR));
    let waits = store.record(std::slice::from_ref(&ahead)).await;
    assert!(matches!(waits, Err(AuditError::Unavailable(_))), "{waits:?}");
    assert!(format!("{waits:?}").contains("make_partitions"), "{waits:?}");
    run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}").await;
    store.record(std::slice::from_ref(&ahead)).await.unwrap();
    assert_eq!(read(&owner).await[0], ahead);
}

/// Otherwise whoever may create a schema could run statements with the owner's rights.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn the_functions_change_no_table_of_another_owner() {
    let (schema, role) = (Schema::new(), Role::new().await);
    drop(schema.store().await);
    let db = schema.db().await;
    let other = Schema::new();
    let set_up = format!(
        "GRANT USAGE ON SCHEMA {0} TO {1}; CREATE SCHEMA {2} AUTHORIZATION {1}; \
         SET SESSION AUTHORIZATION {1}; \
         CREATE TABLE {2}.requests (at bigint NOT NULL) PARTITION BY RANGE (at)",
        schema.name, role.name, other.name
    );
    db.batch_execute(&set_up).await.unwrap();
    for call in [
        "make_partitions('{other}', '{1}', 3600000000, false)",
        "detach_partitions('{other}', 1)",
        "drop_partition('{other}', '{other}.requests')",
    ] {
        let call = format!("SELECT {}.{}", schema.name, call.replace("{other}", &other.name));
        let refused = db.batch_execute(&call).await.unwrap_err();
        assert!(format!("{refused:?}").contains("does not belong to"), "{call}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn partitions_are_made_and_dropped_while_another_one_is_vacuumed() {
    let schema = Schema::new();
    let (store, db) = hourly(&schema).await;
    record_hours(&store, 5).await;
    let (newest, ..) = older(&db, hours_ago(0)).await.pop().unwrap();
    // The lock of VACUUM.
    let lock = format!("LOCK TABLE {newest} IN SHARE UPDATE EXCLUSIVE MODE");
    let vacuum = schema.lock(&lock).await;
    store.record(&[request(9, now().saturating_add(YEAR))]).await.unwrap();
    assert_eq!(store.purge_before(hours_ago(2)).await.unwrap(), 3);
    assert_eq!((older(&db, hours_ago(2)).await, left_over(&db).await), (vec![], 0));
    vacuum.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_partition_of_any_width_asked_for_lasts_an_hour_to_a_year() {
    for width in [i64::MIN, -1, 0, 1, 300 * 365 * 24 * 3_600_000_000, i64::MAX] {
        let schema = Schema::new();
        let (_store, db) = hourly(&schema).await;
        let add = format!("SELECT make_partitions('{}', '{{}}', {width}, false)", schema.name);
        count(&db, &add).await;
        let made = partitions(&db).await;
        for (name, start, end) in &made[1..] {
            let hours = (end.unwrap() - start.unwrap()) / 3_600_000_000;
            assert!((1..=365 * 24).contains(&hours), "{width}: {name} {hours}");
        }
        assert!(made.len() >= 5, "{width}: {made:?}");
    }
}
