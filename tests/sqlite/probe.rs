//! `record_uses(&[])`: the probe whether the store accepts changes.

use std::path::Path;

use keygate::{KeyStore, StoreError};

use crate::files::{Immutable, LIMIT, assert_sound, key, new_store, org, raw};

/// The whole content of the file, as SQL.
fn dump(path: &Path) -> Vec<String> {
    let db = raw(path);
    let mut rows = Vec::new();
    for table in ["keys", "requests", "changes", "sqlite_schema"] {
        let mut statement = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            rows.push(format!("{:?}", (0..columns).map(|n| row.get_ref(n)).collect::<Vec<_>>()));
        }
    }
    for setting in ["user_version", "application_id", "schema_version"] {
        let value: i64 = db.query_row(&format!("PRAGMA {setting}"), [], |row| row.get(0)).unwrap();
        rows.push(format!("{setting} {value}"));
    }
    rows
}

#[tokio::test]
async fn the_probe_writes_and_changes_nothing() {
    let (_folder, path, store) = new_store();
    store.insert(&key(&org("acme")), LIMIT).await.unwrap();
    let (rows, before) = (dump(&path), crate::races::commits(&path));
    for _ in 0..3 {
        store.record_uses(&[]).await.unwrap();
    }
    assert_eq!(crate::races::commits(&path), before + 3);
    assert_eq!(dump(&path), rows);
    assert_sound(&path);
}

#[tokio::test]
#[ignore = "needs root and a file system with `chattr +i`"]
async fn the_probe_fails_while_the_file_is_read_only() {
    let (_folder, path, store) = new_store();
    store.insert(&key(&org("acme")), LIMIT).await.unwrap();
    let log = path.with_extension("db-wal");
    let immutable = Immutable::make(&log);
    let probed = store.record_uses(&[]).await;
    let inserted = store.insert(&key(&org("acme")), LIMIT).await;
    drop(immutable);
    for refused in [probed, inserted] {
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    store.record_uses(&[]).await.unwrap();
    assert_eq!(store.list(&org("acme")).await.unwrap().len(), 1);
}
