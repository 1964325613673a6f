//! 200,000 keys and 1,000,000 audit records.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keygate::audit::{AuditCursor, AuditFilter, AuditQuery, AuditRecord, AuditScope, Position};
use keygate::store::{KeyDigest, KeySearch, Search};
use keygate::{ApiKey, AuditLog, AuditSink, KeyId, KeyStore, OrgId, Timestamp};
use rusqlite::types::Value;
use rusqlite::{Connection, params, params_from_iter};

use crate::files::{LIMIT, assert_sound, at, change, key, new_store, org, raw, request};

const KEYS: u64 = 200_000;
const ORGS: u64 = 10_000;
/// Half of the requests were made with one key, the others with a thousand.
const REQUESTS: u64 = 900_000;
const CHANGES: u64 = 100_000;
const BATCH: u64 = 10_000;

fn key_number(number: u64) -> ApiKey {
    let digest = KeyDigest::of(format!("large {number}"));
    ApiKey {
        id: KeyId::from_bytes(*digest.as_bytes().first_chunk().unwrap()),
        digest,
        key_prefix: format!("vsp_sk_{:05}", number % ORGS),
        created_at: at((KEYS - number).cast_signed()),
        expires_at: Some(at(hours(number + 1))),
        last_used_at: Some(at(hours(number))),
        ..key(&org(&format!("org-{}", number % ORGS)))
    }
}

fn hours(number: u64) -> i64 {
    number.cast_signed() * 3_600_000_000
}

fn insert_keys(path: &Path) {
    let mut db = raw(path);
    let transaction = db.transaction().unwrap();
    {
        let sql = "INSERT INTO keys VALUES (?1, ?2, ?3, ?4, ?5, 'active', '', ?6, ?7, NULL, ?8, 1, '{}', NULL, NULL)";
        let mut statement = transaction.prepare(sql).unwrap();
        for number in 0..KEYS {
            let key = key_number(number);
            let row = params![
                key.id.to_bytes(),
                key.org.as_str(),
                key.name.as_str(),
                key.key_prefix,
                key.digest.as_bytes(),
                key.created_at.unix_micros(),
                key.expires_at.map(Timestamp::unix_micros),
                key.last_used_at.map(Timestamp::unix_micros),
            ];
            statement.execute(row).unwrap();
        }
    }
    transaction.commit().unwrap();
}

type Numbered = fn(u64, &[ApiKey]) -> AuditRecord;

/// Three records share an instant, so that the order depends on the ids.
fn request_number(number: u64, keys: &[ApiKey]) -> AuditRecord {
    let by = if number.is_multiple_of(2) { 0 } else { 1 + (number / 2 % 1_000) as usize };
    request(&keys[by], at((number / 3).cast_signed()), number)
}

fn change_number(number: u64, keys: &[ApiKey]) -> AuditRecord {
    let by = (number % 1_000) as usize;
    change(&keys[by], at((number / 3).cast_signed()), REQUESTS + number)
}

/// SQLite's plan for a statement.
fn plan(db: &Connection, sql: &str) -> String {
    let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let nothing = vec![Value::Null; statement.parameter_count()];
    let lines =
        statement.query_map(params_from_iter(nothing), |row| row.get::<_, String>(3)).unwrap();
    lines.map(Result::unwrap).collect::<Vec<_>>().join("; ")
}

/// The statements of `src/store/sqlite`, with their indexes.
fn assert_plans(db: &Connection) {
    let one = "SEARCH keys USING INDEX";
    let statements = [
        ("SELECT * FROM keys WHERE digest = ?1", one),
        ("SELECT * FROM keys WHERE id = ?1 AND org = ?2", one),
        ("SELECT 1 FROM keys WHERE id = ?1 OR digest = ?2", "MULTI-INDEX OR"),
        ("SELECT * FROM keys WHERE org = ?1 ORDER BY created_at, id", "INDEX keys_by_org (org=?)"),
        ("SELECT count(*) FROM keys WHERE org = ?1", "COVERING INDEX keys_by_org (org=?)"),
        ("DELETE FROM keys WHERE id = ?1 AND org = ?2", one),
        (
            "SELECT * FROM keys WHERE key_prefix = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
            "INDEX keys_by_prefix (key_prefix=? AND id>?)",
        ),
        (
            "SELECT * FROM keys WHERE (expires_at, id) > (?1, ?2) AND expires_at < ?3 \
             ORDER BY expires_at, id LIMIT ?4",
            "INDEX keys_by_expiry ((expires_at,id)>(?,?) AND expires_at<?)",
        ),
        (
            "SELECT * FROM keys WHERE (active_day, id) > (?1, ?2) AND active_day <= ?3 \
             ORDER BY active_day, id LIMIT ?4",
            "INDEX keys_by_activity ((active_day,id)>(?,?) AND active_day<?)",
        ),
    ];
    for (sql, index) in statements {
        assert_plan(db, sql, index);
    }
    for (table, run_is, scope, index) in [
        ("requests", "0", "key = ?2 AND org = ?1", "PRIMARY KEY (key=?"),
        ("sorted", "run", "key = ?2 AND org = ?1", "PRIMARY KEY (run=? AND key=?"),
        ("recent_0", "run", "key = ?2 AND org = ?1", "PRIMARY KEY (run=? AND key=?"),
        ("changes", "0", "key = ?2 AND org = ?1", "PRIMARY KEY (key=?"),
        ("changes", "0", "org = ?1 AND ?2 IS NULL", "INDEX changes_by_org (org=?"),
    ] {
        for order in ["DESC", "ASC"] {
            let sql = format!(
                "SELECT * FROM {table} WHERE {run_is} = ?8 AND {scope} \
                 AND (at, id) > (?3, ?4) AND (at, id) < (?5, ?6) \
                 ORDER BY at {order}, id {order} LIMIT ?7"
            );
            let range = "AND (at,id)>(?,?) AND (at,id)<(?,?))";
            assert_plan(db, &sql, &format!("SEARCH {table} USING {index} {range}"));
        }
    }
    let usage = "SELECT hour, allowed FROM hourly_usage \
                 WHERE key = ?1 AND org = ?2 AND hour >= ?3 AND hour < ?4 ORDER BY hour";
    assert_plan(db, usage, "PRIMARY KEY (key=? AND org=? AND hour>? AND hour<?)");
    let parts = [("requests", "?1 IS NULL", ""), ("sorted", "run = ?1", "run=? AND ")];
    for (table, run_is, run) in parts {
        let of_key = format!(
            "DELETE FROM {table} WHERE {run_is} AND (key, at, id) IN \
             (SELECT key, at, id FROM {table} WHERE {run_is} AND key = ?2 AND at < ?3 \
              ORDER BY at, id LIMIT ?4)"
        );
        let search = format!("SEARCH {table} USING PRIMARY KEY ({run}key");
        assert_plan(db, &of_key, &format!("{search}=? AND at=? AND id=?)"));
        assert_plan(db, &of_key, &format!("{search}=? AND at<?)"));
        let any = format!("SELECT 1 FROM {table} WHERE {run_is} AND key = ?2 AND at < ?3 LIMIT 1");
        assert_plan(db, &any, &format!("{search}=? AND at<?)"));
        let next =
            format!("SELECT key FROM {table} WHERE {run_is} AND key > ?2 ORDER BY key LIMIT 1");
        assert_plan(db, &next, &format!("{search}>?)"));
    }
    let all = "DELETE FROM changes WHERE (key, at, id) IN \
               (SELECT key, at, id FROM changes WHERE at < ?1 ORDER BY at LIMIT 1000)";
    assert_plan(db, all, "SEARCH changes USING PRIMARY KEY (key=? AND at=? AND id=?)");
    let contains = "EXISTS (SELECT 1 FROM sorted_runs CROSS JOIN sorted \
                    WHERE sorted_runs.newest >= ?2 AND sorted_runs.oldest <= ?2 \
                    AND sorted.run = sorted_runs.run \
                    AND sorted.key = ?1 AND sorted.at = ?2 AND sorted.id = ?3)";
    for index in [
        "SEARCH sorted_runs USING COVERING INDEX sorted_runs_by_time (newest>?)",
        "SEARCH sorted USING PRIMARY KEY (run=? AND key=? AND at=? AND id=?)",
    ] {
        let plan = plan(db, &format!("SELECT 1 WHERE {contains}"));
        assert!(plan.contains(index), "{plan}");
    }
    let slice = format!(
        "WITH RECURSIVE runs(run) AS (SELECT 0 UNION ALL SELECT run + 1 FROM runs \
         WHERE run < (SELECT max(run) FROM recent_0)) \
         INSERT OR IGNORE INTO sorted (run, key) SELECT ?7, key FROM recent_0 AS recent \
         WHERE run IN (SELECT run FROM runs) \
         AND (key, at, id) > (?1, ?2, ?3) AND (key, at, id) <= (?4, ?5, ?6) \
         AND NOT EXISTS (SELECT 1 FROM requests \
          WHERE key = recent.key AND at = recent.at AND id = recent.id) \
         AND (at > (SELECT max(newest) FROM sorted_runs WHERE run <> ?7) OR NOT {contains}) \
         ORDER BY key, at, id"
    );
    let plan = plan(db, &slice);
    for index in [
        "SEARCH recent USING PRIMARY KEY (run=? AND (key,at,id)>(?,?,?) AND (key,at,id)<(?,?,?))",
        "SEARCH requests USING PRIMARY KEY (key=? AND at=? AND id=?)",
        "SEARCH sorted USING PRIMARY KEY (run=? AND key=? AND at=? AND id=?)",
    ] {
        assert!(plan.contains(index), "{plan}");
    }
}

#[track_caller]
fn assert_plan(db: &Connection, sql: &str, expected: &str) {
    let plan = plan(db, sql);
    assert!(plan.contains(expected), "{sql}: {plan}");
    assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
}

fn newest_first(mut records: Vec<AuditRecord>) -> Vec<AuditRecord> {
    records.sort_by_key(|record| (record.at, record.id));
    records.reverse();
    records
}

fn count(db: &Connection, sql: &str) -> u64 {
    db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
}

#[test]
fn no_statement_scans_a_table_or_sorts() {
    let (_folder, path, _store) = new_store();
    assert_plans(&raw(&path));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "slow: 200,000 keys and 1,000,000 records"]
async fn many_keys_and_records_are_found_and_purged() {
    let (_folder, path, store) = new_store();
    insert_keys(&path);
    let keys: Vec<_> = (0..=1_000).map(key_number).collect();
    let requests: Numbered = request_number;
    for (count, numbered) in [(REQUESTS, requests), (CHANGES, change_number)] {
        for start in (0..count).step_by(BATCH as usize) {
            let batch: Vec<_> = (start..start + BATCH).map(|n| numbered(n, &keys)).collect();
            store.record(&batch).await.unwrap();
        }
    }
    let db = raw(&path);

    // Keys.
    for number in [0, 1, 9_999, 10_000, KEYS / 2, KEYS - 1] {
        let key = key_number(number);
        let found = store.find_by_digest(&key.digest).await.unwrap();
        assert_eq!(found.as_deref(), Some(&key));
        let known = store.get(&key.org, &key.id).await.unwrap();
        assert_eq!(known.unwrap().id, key.id);
        let list = store.list(&key.org).await.unwrap();
        let mut expected: Vec<_> =
            (0..KEYS / ORGS).map(|n| key_number(n * ORGS + number % ORGS)).collect();
        expected.sort_by_key(|key| (key.created_at, key.id));
        assert!(list.iter().map(|key| key.id).eq(expected.iter().map(|key| key.id)));
    }

    // Searches: two pages, of which each is a part of the table.
    let first = KEYS / 2;
    let with_prefix = Search::KeyPrefix(key_number(first).key_prefix);
    let expiring = Search::Expiring { from: at(hours(first + 1)), until: Timestamp::MAX };
    let unused = Search::UnusedSince(at(hours(first)));
    for (search, numbers) in [(expiring, first..first + 200), (unused, 0..200)] {
        let page = store.search(&search, None, 100).await.unwrap();
        let next = store.search(&search, page.next.as_ref(), 100).await.unwrap();
        let both = page.keys.into_iter().chain(next.keys);
        let mut found: Vec<_> = both.map(|key| key.last_used_at).collect();
        found.sort_unstable();
        // The keys of a day are ordered by id, and the last day may be begun.
        let expected = numbers.take(200 - 24).map(|number| Some(at(hours(number))));
        assert!(found.len() == 200 && expected.eq(found.into_iter().take(200 - 24)));
    }
    let alike = store.search(&with_prefix, None, 100).await.unwrap();
    assert_eq!((alike.keys.len(), alike.next), (20, None));

    // Pages.
    let query = |org: &OrgId, scope| AuditQuery::new(org.clone(), scope);
    let of = |number: usize| {
        let records = (0..REQUESTS).map(|number| request_number(number, &keys));
        newest_first(records.filter(|record| record.key == keys[number].id).collect())
    };
    let requests = |number: usize| {
        query(&keys[number].org, AuditScope::KeyRequests(keys[number].id)).limit(200)
    };
    // 450,000 of them: the first pages, and then pages from the middle on.
    let expected = of(0);
    let newest = store.page(&requests(0)).await.unwrap();
    assert!(newest.records == expected[..200]);
    let middle = Position::Before(AuditCursor::of(&expected[225_000]));
    let before = store.page(&requests(0).at(middle)).await.unwrap();
    assert!(before.records == expected[225_001..225_201]);
    let after = Position::After(before.newer.unwrap());
    let after = store.page(&requests(0).at(after)).await.unwrap();
    assert!(after.records == expected[224_801..225_001]);
    // A filter that nothing meets reads a part of the log.
    let mut filter = AuditFilter::default();
    filter.method = Some("PUT".to_owned());
    let filtered = store.page(&requests(0).filter(filter)).await.unwrap();
    assert!(filtered.records.is_empty());
    assert_eq!(filtered.older, Some(AuditCursor::of(&expected[999])));
    for number in [1, 500, 1_000] {
        let expected = of(number);
        assert_eq!(expected.len(), 450);
        let newest = store.page(&requests(number)).await.unwrap();
        assert!(newest.records == expected[..200], "the requests of key {number}");
    }
    for number in [0, 999] {
        let key = &keys[number];
        let changes = (0..CHANGES).map(|number| change_number(number, &keys));
        let (of_key, of_org) = (AuditScope::KeyChanges(key.id), AuditScope::OrgChanges);
        let all: Vec<_> = changes.filter(|record| record.org == key.org).collect();
        let own = all.iter().filter(|record| record.key == key.id).cloned().collect();
        for (scope, expected) in [(of_key, newest_first(own)), (of_org, newest_first(all))] {
            let newest = store.page(&query(&key.org, scope).limit(200)).await.unwrap();
            assert!(newest.records == expected[..expected.len().min(200)], "{scope:?}");
        }
    }
    // An organisation without records.
    let nothing = store.page(&query(&org("nobody"), AuditScope::OrgChanges)).await.unwrap();
    assert!(nothing.records.is_empty());

    // A third of each is purged during other writes.
    let instant = at((REQUESTS / 9).cast_signed());
    let old = |table| format!("SELECT count(*) FROM {table} WHERE at < {}", instant.unix_micros());
    let olds = || count(&db, &old("all_requests")) + count(&db, &old("changes"));
    let (total, older) = (REQUESTS + CHANGES, olds());
    assert!(older > 300_000 && older < 500_000, "{older}");
    let (purging, done) = (store.clone(), AtomicBool::new(false));
    let purge = async {
        let purged = purging.purge_before(instant).await.unwrap();
        done.store(true, Ordering::SeqCst);
        purged
    };
    let write = async {
        let (mut writes, mut slowest) = (0u64, Duration::ZERO);
        while !done.load(Ordering::SeqCst) {
            let begun = Instant::now();
            store.insert(&key(&org(&format!("meanwhile-{writes}"))), LIMIT).await.unwrap();
            slowest = slowest.max(begun.elapsed());
            writes += 1;
        }
        (writes, slowest)
    };
    let (purged, (writes, slowest)) = tokio::join!(purge, write);
    println!("purged {purged}; meanwhile {writes} inserts, the slowest in {slowest:?}");
    assert_eq!(purged, older);
    assert!(writes >= 20, "{writes} inserts got through");
    assert!(slowest < Duration::from_secs(2), "an insert waited for {slowest:?}");
    assert_eq!(olds(), 0);
    let left = "SELECT (SELECT count(*) FROM all_requests) + (SELECT count(*) FROM changes)";
    assert_eq!(count(&db, left), total - older);
    assert_eq!(store.purge_before(instant).await.unwrap(), 0);
    drop(db);
    assert_sound(&path);
}
