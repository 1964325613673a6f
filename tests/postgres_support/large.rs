//! 200,000 keys, 1,000,000 requests and 200,000 changes: found by their indexes,
//! paged through while others write, and purged in batches.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keygate::audit::{
    AuditCursor, AuditEvent, AuditId, AuditPage, AuditQuery, AuditRecord, AuditScope, ChangeAction,
    ChangeEvent, ChangePhase, Outcome, Position, RequestEvent,
};
use keygate::store::{KeyExport, OrgLimit, PostgresOptions};
use keygate::{
    ApiKey, AuditLog, AuditSink, KeyDigest, KeyId, KeyStore, OrgId, PostgresStore, Timestamp,
};
use tokio_postgres::Client;

use crate::postgres_support::{
    administrator, in_schema, in_session, key, new_key, org, schema_of, sessions_end, unique,
};

const KEYS: u64 = 200_000;
const ORGS: u64 = 10_000;
const REQUESTS: u64 = 1_000_000;
const CHANGES: u64 = 200_000;
/// The key of every twentieth request and of every other change.
const BUSY: u64 = 0;
/// A key of the same organisation, with five records of each kind.
const QUIET: u64 = ORGS;

fn at(micros: u64) -> Timestamp {
    Timestamp::from_unix_micros(1_769_860_800_000_000 + micros.cast_signed()).unwrap()
}

fn key_number(number: u64) -> ApiKey {
    let digest = KeyDigest::of(format!("large {number}"));
    ApiKey {
        id: KeyId::from_bytes(*digest.as_bytes().first_chunk().unwrap()),
        digest,
        org: org(&format!("org-{}", number % ORGS)),
        created_at: at(KEYS - number),
        ..key(0)
    }
}

/// So many records have the same instant, three of the busy key among them: the
/// ids have to tell them apart.
const AT_ONCE: u64 = 60;

/// Whose request that is.
fn requester(number: u64) -> u64 {
    match number {
        n if n % 200_000 == 7 => QUIET,
        n if n % 20 == 0 => BUSY,
        n => 1 + n % 999,
    }
}

/// Whose change that is.
fn changed(number: u64) -> u64 {
    match number {
        n if n % 40_000 == 7 => QUIET,
        n if n % 2 == 0 => BUSY,
        n => 1 + n % 999,
    }
}

fn record(key: &ApiKey, number: u64, event: AuditEvent) -> AuditRecord {
    let id = AuditId::from_bytes(u128::from(number).to_be_bytes());
    AuditRecord { id, at: at(number / AT_ONCE), org: key.org.clone(), key: key.id, event }
}

fn request(key: &ApiKey, number: u64) -> AuditRecord {
    let request = {
        let mut event = RequestEvent::new("GET", format!("/v1/things/{number}"), Outcome::Allowed);
        event.ip = Some("192.0.2.1".parse().unwrap());
        event.status = Some(200);
        event
    };
    record(key, number, AuditEvent::Request(request))
}

fn change(key: &ApiKey, number: u64) -> AuditRecord {
    let change = ChangeEvent::new("ada", ChangeAction::Updated, ChangePhase::Begun);
    record(key, number, AuditEvent::Change(change))
}

/// The requests made with a key, newest first.
fn requests_of(number: u64) -> Vec<AuditRecord> {
    let key = key_number(number);
    let numbers = (0..REQUESTS).rev().filter(|n| requester(*n) == number);
    numbers.map(|n| request(&key, n)).collect()
}

/// The changes made to those keys, newest first.
fn changes_of(keys: &[u64]) -> Vec<AuditRecord> {
    let numbers = (0..CHANGES).rev().filter(|n| keys.contains(&changed(*n)));
    numbers.map(|n| change(&key_number(changed(n)), n)).collect()
}

/// The same rows as above, made by the server.
async fn fill(db: &Client, schema: &str) {
    let base = at(0).unix_micros();
    let template = key(0);
    let (name, prefix, allowed) =
        (template.name.as_str(), template.key_prefix.as_str(), "192.0.2.0/24");
    assert_eq!(template.allowlist.entries(), [allowed]);
    let id = "encode(substring(digest FROM 1 FOR 16), 'hex')::uuid";
    let numbered = |count| {
        format!(
            "(SELECT n, sha256(convert_to('large ' || n, 'UTF8')) AS digest \
             FROM generate_series(0, {count} - 1) AS n) AS numbered"
        )
    };
    let record = format!("id, {base} + n / {AT_ONCE}, lpad(to_hex(n), 32, '0')::uuid, org");
    let by = |rest, quiet, busy| {
        format!(
            "CASE WHEN n % {quiet} = 7 THEN {QUIET} WHEN n % {busy} = 0 THEN {BUSY} \
             ELSE 1 + n % {rest} END"
        )
    };
    let sql = format!(
        "SET search_path = {schema}; \
         INSERT INTO keys SELECT {id}, 'org-' || n % {ORGS}, '{name}', '{prefix}', digest, \
             'active', ARRAY['{allowed}'], {base} + {KEYS} - n, NULL, NULL, NULL, 1 FROM {}; \
         CREATE TEMP TABLE of_number AS SELECT n, {id} AS id, 'org-' || n % {ORGS} AS org FROM {}; \
         INSERT INTO requests SELECT {record}, 'GET', '/v1/things/' || n, '192.0.2.1', NULL, 200, \
             'allowed' FROM (SELECT n, {} AS by FROM generate_series(0, {REQUESTS} - 1) AS n) AS r \
             JOIN (SELECT n AS by, id, org FROM of_number) AS k USING (by); \
         INSERT INTO changes SELECT {record}, 'ada', 'updated', 'begun' \
             FROM (SELECT n, {} AS by FROM generate_series(0, {CHANGES} - 1) AS n) AS c \
             JOIN (SELECT n AS by, id, org FROM of_number) AS k USING (by)",
        numbered(KEYS),
        numbered(QUIET + 1),
        by(999, 200_000, 20),
        by(999, 40_000, 2),
    );
    db.batch_execute(&sql).await.unwrap();
}

async fn analyze(db: &Client, schema: &str) {
    let tables = ["organisations", "keys", "requests", "changes"].map(|t| format!("{schema}.{t}"));
    db.batch_execute(&format!("ANALYZE {}", tables.join(", "))).await.unwrap();
}

pub(crate) async fn count(db: &Client, sql: &str) -> u64 {
    db.query_one(sql, &[]).await.unwrap().get::<_, i64>(0).cast_unsigned()
}

/// What the server had to read in the schema's tables.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Rows by reading whole tables.
    pub(crate) scanned: u64,
    /// Entries of indexes.
    pub(crate) entries: u64,
    /// Rows that indexes led to.
    pub(crate) fetched: u64,
}

/// All of it so far, but for the version that each store reads when it opens.
pub(crate) async fn work_so_far(db: &Client, schema: &str) -> Work {
    // What this session itself has read is counted as well.
    db.batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    let sum = async |column: &str, view: &str| {
        let sql = format!(
            "SELECT coalesce(sum({column}), 0)::bigint FROM {view} \
             WHERE schemaname = '{schema}' AND relname <> 'schema_version'"
        );
        count(db, &sql).await
    };
    Work {
        scanned: sum("seq_tup_read", "pg_stat_user_tables").await,
        entries: sum("idx_tup_read", "pg_stat_user_indexes").await,
        fetched: sum("idx_tup_fetch", "pg_stat_user_tables").await,
    }
}

impl Work {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            scanned: self.scanned - before.scanned,
            entries: self.entries - before.entries,
            fetched: self.fetched - before.fetched,
        }
    }
}

/// What a call costs, one time with another. It is made a dozen times: from the sixth
/// on, the server may use a plan that is made without the values.
async fn work_of<F>(
    schema: &str,
    options: impl FnOnce(PostgresOptions) -> PostgresOptions,
    call: impl Fn(PostgresStore) -> F,
) -> Work
where
    F: Future<Output = ()>,
{
    const CALLS: u64 = 12;
    let db = administrator().await;
    let before = work_so_far(&db, schema).await;
    let name = unique("kg");
    let session = in_session(schema, &name).connections(1);
    let store = options(session).connect().await.unwrap();
    for _ in 0..CALLS {
        call(store.clone()).await;
    }
    // A session reports what it has done when it ends.
    drop(store);
    sessions_end(&name).await;
    let all = work_so_far(&db, schema).await.since(before);
    Work { entries: all.entries / CALLS, fetched: all.fetched / CALLS, ..all }
}

/// A call reads no whole table, and no more than that by indexes.
#[track_caller]
fn assert_little(work: Work, most: u64, what: &str) {
    println!("{what}: {work:?}");
    assert_eq!(work.scanned, 0, "{what} reads whole tables: {work:?}");
    assert!(work.entries <= most && work.fetched <= most, "{what}: {work:?}, at most {most}");
}

/// A page of 200 may cost that much: where the planner expects hardly more
/// records than fit on it, fetching and sorting them all is no mistake.
const PAGE: u64 = 1_000;

async fn assert_page_reads_little(
    schema: &str,
    options: impl FnOnce(PostgresOptions) -> PostgresOptions,
    query: AuditQuery,
    expected: &[AuditRecord],
) {
    let what = format!("{:?} {:?}: {} records", query.scope, query.position, expected.len());
    let (asked, right) = (query.clone(), Arc::new(expected.to_vec()));
    let work = work_of(schema, options, |store| {
        let (query, right) = (asked.clone(), Arc::clone(&right));
        async move {
            let page = store.page(&query).await.unwrap();
            assert!(page.records == *right, "{:?} {:?}", query.scope, query.position);
        }
    });
    assert_little(work.await, PAGE, &what);
}

/// The first page of those records, one from the middle on, and one back from there.
async fn assert_pages_read_little(
    schema: &str,
    options: fn(PostgresOptions) -> PostgresOptions,
    org: &OrgId,
    scope: AuditScope,
    all: &[AuditRecord],
) {
    let page = AuditQuery::MAX_LIMIT;
    let query = AuditQuery::new(org.clone(), scope).limit(page);
    let first = &all[..all.len().min(page)];
    assert_page_reads_little(schema, options, query.clone(), first).await;
    let Some(middle) = all.get(all.len() / 2).map(AuditCursor::of) else { return };
    let (newer, older) = (&all[..all.len() / 2], &all[all.len() / 2 + 1..]);
    let before = query.clone().at(Position::Before(middle));
    assert_page_reads_little(schema, options, before, &older[..older.len().min(page)]).await;
    let after = query.at(Position::After(middle));
    assert_page_reads_little(schema, options, after, &newer[newer.len().saturating_sub(page)..])
        .await;
}

async fn assert_calls_read_little(schema: &str, options: fn(PostgresOptions) -> PostgresOptions) {
    // Keys.
    for number in [0, ORGS - 1, KEYS / 2 + 7, KEYS - 1] {
        let wanted = key_number(number);
        let digest = wanted.digest;
        let work = work_of(schema, options, |store| async move {
            let found = store.find_by_digest(&digest).await.unwrap();
            assert_eq!(found.unwrap().digest, digest);
        });
        assert_little(work.await, 3, "find_by_digest");
        let work = work_of(schema, options, |store| {
            let wanted = wanted.clone();
            async move {
                let found = store.get(&wanted.org, &wanted.id).await.unwrap();
                assert_eq!(*found.unwrap(), wanted);
            }
        });
        assert_little(work.await, 3, "get");
        let mut list: Vec<_> =
            (0..KEYS / ORGS).map(|n| key_number(n * ORGS + number % ORGS)).collect();
        list.sort_by_key(|key| (key.created_at, key.id));
        let list = Arc::new(list);
        let work = work_of(schema, options, |store| {
            let list = Arc::clone(&list);
            async move {
                let found = store.list(&list[0].org).await.unwrap();
                assert!(found.iter().map(|key| &**key).eq(list.iter()));
            }
        });
        assert_little(work.await, 25, "list");
    }
    let unknown = KeyDigest::of("unknown");
    let work = work_of(schema, options, |store| async move {
        assert!(store.find_by_digest(&unknown).await.unwrap().is_none());
    });
    assert_little(work.await, 2, "find_by_digest of nobody's key");

    let middle = KeyId::from_bytes([0x80; 16]);
    let work = work_of(schema, options, move |store| async move {
        assert_eq!(store.export(Some(&middle), 500).await.unwrap().len(), 500);
    });
    assert_little(work.await, 510, "export");

    // Pages, of much and of little.
    for number in [BUSY, QUIET, 500] {
        let key = key_number(number);
        let requests = AuditScope::KeyRequests(key.id);
        assert_pages_read_little(schema, options, &key.org, requests, &requests_of(number)).await;
        let changes = AuditScope::KeyChanges(key.id);
        assert_pages_read_little(schema, options, &key.org, changes, &changes_of(&[number])).await;
    }
    let (busy, quiet) = (key_number(BUSY).org, key_number(500).org);
    let changes = AuditScope::OrgChanges;
    assert_pages_read_little(schema, options, &busy, changes, &changes_of(&[BUSY, QUIET])).await;
    assert_pages_read_little(schema, options, &quiet, changes, &changes_of(&[500])).await;
    assert_pages_read_little(schema, options, &org("nobody"), changes, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn among_a_million_records_each_call_reads_little_by_indexes() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        drop(options.connect().await.unwrap());
        let db = administrator().await;
        fill(&db, &schema).await;
        analyze(&db, &schema).await;
        assert_calls_read_little(&schema, |options| options).await;
        assert_calls_read_little(&schema, |options| options.prepared(false)).await;
    })
    .await;
}

/// Writes requests of that key until it is told to stop, newer ones than there
/// are and others in between; how many.
async fn write_on(store: PostgresStore, key: ApiKey, stop: Arc<AtomicBool>) -> u64 {
    let mut written = 0;
    while !stop.load(Ordering::SeqCst) {
        let late = AuditRecord {
            at: at(written * 997 % (REQUESTS / AT_ONCE)),
            ..request(&key, REQUESTS + 2 * written)
        };
        let newest = request(&key, REQUESTS + 2 * written + 1);
        store.record(&[late, newest]).await.unwrap();
        written += 1;
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_walk_through_50_000_records_misses_and_repeats_none_while_others_arrive() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let db = administrator().await;
        fill(&db, &schema).await;
        analyze(&db, &schema).await;
        let key = key_number(BUSY);
        let there_before = requests_of(BUSY);
        assert_eq!(there_before.len(), 50_000);
        let old = |records: &[AuditRecord]| -> Vec<AuditRecord> {
            let first_new = AuditId::from_bytes(u128::from(REQUESTS).to_be_bytes());
            records.iter().filter(|record| record.id < first_new).cloned().collect()
        };
        let in_order = |records: &[AuditRecord]| {
            records.windows(2).all(|pair| (pair[0].at, pair[0].id) > (pair[1].at, pair[1].id))
        };
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write_on(store.clone(), key.clone(), Arc::clone(&stop)));

        let query = AuditQuery::new(key.org, AuditScope::KeyRequests(key.id)).limit(200);
        let mut page = store.page(&query).await.unwrap();
        let mut backwards = page.records.clone();
        while let Some(older) = page.older {
            page = store.page(&query.clone().at(Position::Before(older))).await.unwrap();
            backwards.extend_from_slice(&page.records);
        }
        let mut forwards: Vec<AuditPage> = vec![page];
        while let Some(newer) = forwards.last().and_then(|page| page.newer) {
            forwards.push(store.page(&query.clone().at(Position::After(newer))).await.unwrap());
        }
        stop.store(true, Ordering::SeqCst);
        let written = writer.await.unwrap();
        assert!(written > 50, "only {written} batches were written meanwhile");

        let forwards: Vec<_> = forwards.into_iter().rev().flat_map(|page| page.records).collect();
        println!("{written} batches meanwhile; {} + {}", backwards.len(), forwards.len());
        for walk in [&backwards, &forwards] {
            // In order: none of the new ones is repeated either.
            assert!(in_order(walk));
            assert!(old(walk) == there_before);
        }
        assert!(forwards.len() > backwards.len(), "none of the new ones was met");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_purge_removes_the_older_ones_in_batches_and_lets_others_write() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let name = unique("kg");
        // A busy machine is slow, and a purge is to end even there.
        let store = in_session(&schema, &name).connect().await.unwrap();
        drop(options);
        let db = administrator().await;
        fill(&db, &schema).await;
        // What each statement removes.
        let watch = |table| {
            format!(
                "CREATE TRIGGER watch AFTER DELETE ON {schema}.{table} REFERENCING OLD TABLE AS \
                 gone FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_removed();"
            )
        };
        let note = format!(
            "CREATE TABLE {schema}.removed (transaction xid8, rows bigint, newest bigint); \
             CREATE FUNCTION {schema}.note_removed() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO {schema}.removed SELECT pg_current_xact_id(), count(*), max(at) \
             FROM gone; RETURN NULL; END'; {}{}",
            watch("requests"),
            watch("changes")
        );
        db.batch_execute(&note).await.unwrap();
        analyze(&db, &schema).await;
        let instant = at(REQUESTS / 3 / AT_ONCE);
        let old = format!(
            "SELECT (SELECT count(*) FROM {schema}.requests WHERE at < {before}) + \
             (SELECT count(*) FROM {schema}.changes WHERE at < {before})",
            before = instant.unix_micros()
        );
        let total = format!(
            "SELECT (SELECT count(*) FROM {schema}.requests) + \
             (SELECT count(*) FROM {schema}.changes)"
        );
        let (olds, before) = (count(&db, &old).await, count(&db, &total).await);
        assert_eq!(before, REQUESTS + CHANGES);
        assert!(olds > 400_000, "{olds}");

        let work = work_so_far(&db, &schema).await;
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn({
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            async move {
                let (mut writes, mut slowest) = (0, Duration::ZERO);
                while !stop.load(Ordering::SeqCst) {
                    let key = new_key(&org(&format!("meanwhile-{}", writes % 8)));
                    let begun = Instant::now();
                    store.insert(&key, OrgLimit::NONE).await.unwrap();
                    store.record(&[request(&key, REQUESTS + writes)]).await.unwrap();
                    slowest = slowest.max(begun.elapsed());
                    writes += 1;
                }
                (writes, slowest)
            }
        });
        // A snapshot, as a backup holds one: what is gone stays in its sight.
        let backup = administrator().await;
        let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class";
        backup.batch_execute(hold).await.unwrap();
        let begun = Instant::now();
        let purged = store.purge_before(instant).await;
        let took = begun.elapsed();
        stop.store(true, Ordering::SeqCst);
        let (writes, slowest) = writer.await.unwrap();
        println!("{purged:?} in {took:?}; meanwhile {writes} writes, the slowest in {slowest:?}");
        assert_eq!(purged.unwrap(), olds);
        assert_eq!(store.purge_before(instant).await.unwrap(), 0);
        // A write waits for the batch under way, and not for the purge.
        assert!(writes >= 20 && slowest < took / 5, "{writes} writes, the slowest in {slowest:?}");
        drop(store);
        sessions_end(&name).await;
        let work = work_so_far(&db, &schema).await.since(work);
        println!("reading {work:?}");
        // The few organisations fit on one page, which is read whole.
        assert!(work.scanned < REQUESTS / 100, "{work:?}");
        // Each is looked for in one index, locked, and looked for again.
        assert!(work.fetched < 5 * olds, "{work:?} for {olds} records");

        let removed = format!("SELECT transaction::text, rows, newest FROM {schema}.removed");
        let rows = db.query(&removed, &[]).await.unwrap();
        let transactions: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(transactions.len(), rows.len(), "several batches share a transaction");
        let batches: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
        assert!(batches.iter().all(|rows| *rows <= 1_000), "{batches:?}");
        assert_eq!(batches.iter().sum::<i64>().cast_unsigned(), olds);
        let newest = rows.iter().filter_map(|row| row.get::<_, Option<i64>>(2)).max().unwrap();
        assert!(newest < instant.unix_micros());
        assert_eq!(count(&db, &old).await, 0);
        assert_eq!(count(&db, &total).await, before - olds + writes);
    })
    .await;
}
