//! A file of an earlier version is upgraded when it is opened.

use keygate::audit::{AuditEvent, AuditQuery, AuditRecord, AuditScope, UsageQuery};
use keygate::store::{KeySearch, Search};
use keygate::{ApiKey, AuditLog, AuditSink, KeyStore, SqliteStore, Timestamp};
use rusqlite::params;

use crate::files::{LIMIT, assert_sound, at, key, new_path, org, raw, request};
use crate::recent::{Logs, when};

/// The schema before changes had fields, requests were counted and operators could search.
const VERSION_4: &str = "
    PRAGMA application_id = 0x6B677465;
    PRAGMA user_version = 4;
    CREATE TABLE keys (
        id BLOB NOT NULL PRIMARY KEY, org TEXT NOT NULL, name TEXT NOT NULL,
        key_prefix TEXT NOT NULL, digest BLOB NOT NULL UNIQUE, status TEXT NOT NULL,
        allowlist TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER,
        rotated_at INTEGER, last_used_at INTEGER, revision INTEGER NOT NULL,
        attributes TEXT NOT NULL DEFAULT '{}', previous_digest BLOB, previous_until INTEGER
    ) STRICT;
    CREATE INDEX keys_by_org ON keys (org, created_at, id);
    CREATE UNIQUE INDEX keys_by_previous_digest ON keys (previous_digest)
        WHERE previous_digest IS NOT NULL;
    CREATE TABLE requests (
        key BLOB NOT NULL, at INTEGER NOT NULL, id BLOB NOT NULL, org TEXT NOT NULL,
        method TEXT NOT NULL, endpoint TEXT NOT NULL, ip TEXT, country TEXT, status INTEGER,
        outcome TEXT NOT NULL, count INTEGER NOT NULL DEFAULT 1,
        secret TEXT NOT NULL DEFAULT 'current', PRIMARY KEY (key, at, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX requests_by_time ON requests (at);
    CREATE TABLE changes (
        key BLOB NOT NULL, at INTEGER NOT NULL, id BLOB NOT NULL, org TEXT NOT NULL,
        actor TEXT NOT NULL, action TEXT NOT NULL, phase TEXT NOT NULL,
        PRIMARY KEY (key, at, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX changes_by_org ON changes (org, at, id);
    CREATE INDEX changes_by_time ON changes (at);";

#[tokio::test]
async fn keys_and_records_of_an_earlier_version_are_kept_and_found() {
    let (_folder, path) = new_path();
    let earlier = raw(&path);
    earlier.execute_batch(VERSION_4).unwrap();
    let old = ApiKey { last_used_at: Some(at(5)), ..key(&org("acme")) };
    let row = params![
        old.id.to_bytes(),
        old.name.as_str(),
        old.key_prefix,
        old.digest.as_bytes(),
        old.created_at.unix_micros(),
        old.expires_at.map(Timestamp::unix_micros),
        old.last_used_at.map(Timestamp::unix_micros),
    ];
    let insert = "INSERT INTO keys VALUES \
                  (?1, 'acme', ?2, ?3, ?4, 'active', '', ?5, ?6, NULL, ?7, 1, '{}', NULL, NULL)";
    earlier.execute(insert, row).unwrap();
    let insert = "INSERT INTO changes VALUES \
                  (?1, ?2, zeroblob(16), 'acme', 'ada', 'updated', 'begun')";
    earlier.execute(insert, params![old.id.to_bytes(), at(2).unix_micros()]).unwrap();
    let insert = "INSERT INTO requests (key, at, id, org, method, endpoint, ip, status, outcome) \
                  VALUES (?1, ?2, ?3, 'acme', 'GET', ?4, '192.0.2.1', 200, 'allowed')";
    let requests: Vec<_> = (1..7).map(|n| request(&old, at(n), n.cast_unsigned())).collect();
    for record in &requests {
        let AuditEvent::Request(event) = &record.event else { panic!("{record:?}") };
        let (key, at, id) = (old.id.to_bytes(), record.at.unix_micros(), record.id.to_bytes());
        earlier.execute(insert, params![key, at, id, event.endpoint]).unwrap();
    }
    drop(earlier);

    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.find_by_digest(&old.digest).await.unwrap().as_deref(), Some(&old));
    for search in [
        Search::KeyPrefix(old.key_prefix.clone()),
        Search::Expiring { from: at(0), until: Timestamp::MAX },
        Search::UnusedSince(at(6)),
    ] {
        let found = store.search(&search, None, 10).await.unwrap().keys;
        assert!(found.len() == 1 && *found[0] == old, "{search:?}: {found:?}");
    }
    let changes = AuditQuery::new(old.org.clone(), AuditScope::KeyChanges(old.id));
    let [record] = &store.page(&changes).await.unwrap().records[..] else { panic!() };
    let AuditEvent::Change(change) = &record.event else { panic!("{record:?}") };
    assert!(change.fields.is_empty());
    let all = AuditQuery::new(old.org.clone(), AuditScope::KeyRequests(old.id));
    let newest_first = |records: &[AuditRecord]| records.iter().rev().cloned().collect::<Vec<_>>();
    assert_eq!(store.page(&all).await.unwrap().records, newest_first(&requests));
    // What is new works. A request that is given again is stored once.
    let new = request(&old, at(7), 7);
    store.record(&[requests[2].clone(), new.clone()]).await.unwrap();
    let requests = [requests, vec![new]].concat();
    assert_eq!(store.page(&all).await.unwrap().records, newest_first(&requests));
    let usage = UsageQuery::new(old.org.clone(), old.id, Timestamp::MIN, Timestamp::MAX);
    let hours = store.usage(&usage).await.unwrap();
    assert!(hours.len() == 1 && hours[0].counts.allowed == 1, "{hours:?}");
    store.insert(&key(&org("acme")), LIMIT).await.unwrap();
    assert_eq!(store.purge_before(at(4)).await.unwrap(), 3 + 1);
    assert_eq!(store.page(&all).await.unwrap().records, newest_first(&requests[3..]));
    drop(store);
    assert_sound(&path);
}

/// Takes a file back to the schema before full tables became sorted runs: all that was merged is
/// in `requests`.
const BACK_TO_VERSION_9: &str = "
    INSERT INTO requests
        SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count, secret
        FROM sorted;
    DROP VIEW all_requests;
    DROP TABLE sorted;
    DROP TABLE sorted_runs;
    CREATE VIEW all_requests AS SELECT * FROM requests;
    PRAGMA user_version = 9;";

#[tokio::test]
async fn recent_requests_of_an_earlier_version_are_merged_once() {
    let mut logs = Logs::new(9);
    let mut number = 0;
    // Until one table is half merged and the other one has rows.
    loop {
        logs.record(false, [number]).await;
        logs.handle(false).record_uses(&[]).await.unwrap();
        number += 1;
        let [_, sorted, a, b, slices] = logs.places();
        if sorted > 0 && a > 0 && b > 0 && slices == 2 {
            break;
        }
        assert!(number < 120, "{:?}", logs.places());
    }
    logs.handles = [None, None];
    raw(&logs.path).execute_batch(BACK_TO_VERSION_9).unwrap();
    logs.reopen();
    logs.assert_equal().await;

    // Some of these are given again.
    for number in 0..number + 24 {
        logs.record(number % 2 == 0, [number]).await;
        logs.assert_equal().await;
    }
    let [requests, sorted, ..] = logs.places();
    assert!(requests > 0 && sorted > 18, "{:?}", logs.places());
    for before in [20, 50] {
        let purged = logs.handle(true).purge_before(when(before)).await.unwrap();
        assert_eq!(purged, logs.model.purge_before(when(before)).await.unwrap());
        logs.assert_equal().await;
    }
    assert_eq!(logs.places(), [0; 5]);
    assert_sound(&logs.path);
}
