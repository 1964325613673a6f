//! Disk space: the write-ahead log, and the space that a purge releases.

use std::fs;
use std::path::Path;

use keygate::{AuditLog, AuditSink, SqliteStore};

use crate::files::{assert_sound, at, key, new_store, org, raw, request};

const MIB: u64 = 1 << 20;

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// Writes this many records, of a few hundred keys in turn.
async fn fill(store: &SqliteStore, count: i64) {
    let keys: Vec<_> = (0..300).map(|_| key(&org("acme"))).collect();
    for start in (0..count).step_by(2_000) {
        let number = |n: i64| request(&keys[n as usize % keys.len()], at(n), n.cast_unsigned());
        let batch: Vec<_> = (start..start + 2_000).map(number).collect();
        store.record(&batch).await.unwrap();
    }
}

#[tokio::test]
async fn the_write_ahead_log_is_truncated_after_a_flood() {
    let (_folder, path, store) = new_store();
    let log = path.with_extension("db-wal");
    // While a reader uses the log, it cannot be truncated.
    let mut reader = raw(&path);
    let reading = reader.transaction().unwrap();
    reading.query_row("SELECT count(*) FROM keys", [], |row| row.get::<_, i64>(0)).unwrap();
    fill(&store, 100_000).await;
    assert!(size(&log) > 12 * MIB, "{}", size(&log));
    drop(reading);
    for n in 0..3 {
        store.record(&[request(&key(&org("acme")), at(n), 1 << 40)]).await.unwrap();
    }
    assert!(size(&log) <= 8 * MIB, "{}", size(&log));
}

#[tokio::test]
async fn a_purge_releases_disk_space() {
    let (_folder, path, store) = new_store();
    fill(&store, 40_000).await;
    let checkpoint = || {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: i64 = raw(&path).query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0);
    };
    checkpoint();
    let full = size(&path);
    assert!(full > 4 * MIB, "{full}");
    assert_eq!(store.purge_before(at(40_000)).await.unwrap(), 40_000);
    checkpoint();
    assert!(size(&path) < full / 4, "{} of {full}", size(&path));
    assert_sound(&path);
}
