//! Backups and restores: the steps of the guide, and the results without them.

use std::fs;
use std::path::{Path, PathBuf};

use keygate::error::SqliteOpenError;
use keygate::store::OrgLimit;
use keygate::{
    Actor, ApiKey, AuditLog, AuditSink, KeyManager, KeyPatch, KeyStore, NewKey, SqliteStore,
};
use tempfile::TempDir;

use crate::files::{assert_sound, at, key, new_store, org, raw, request};

const PARTS: [&str; 3] = ["keys.db", "keys.db-wal", "keys.db-shm"];

/// The guide's command for a backup of a file in use.
fn back_up(path: &Path, to: &Path) {
    raw(path).execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

/// The files left by a process that is killed now.
fn killed(folder: &TempDir) -> (TempDir, PathBuf) {
    let left = tempfile::tempdir().unwrap();
    for part in PARTS {
        fs::copy(folder.path().join(part), left.path().join(part)).unwrap();
    }
    let path = left.path().join("keys.db");
    (left, path)
}

async fn insert(store: &SqliteStore, count: usize) -> Vec<ApiKey> {
    let keys: Vec<_> = (0..count).map(|n| key(&org(&format!("org-{}", n % 100)))).collect();
    for key in &keys {
        store.insert(key, OrgLimit::NONE).await.unwrap();
    }
    keys
}

/// A file that was used for some time after the backup, with its log.
async fn in_use_since(backup: &Path) -> (TempDir, PathBuf, Vec<ApiKey>, Vec<ApiKey>) {
    let (folder, path, store) = new_store();
    let old = insert(&store, 300).await;
    back_up(&path, backup);
    for round in 0..5 {
        let number = |n| request(&old[n as usize % 300], at(n), n.cast_unsigned());
        let batch: Vec<_> = (round * 4_000..(round + 1) * 4_000).map(number).collect();
        store.record(&batch).await.unwrap();
    }
    for key in &old[100..] {
        store.delete(&key.org, &key.id, None).await.unwrap();
    }
    store.purge_before(at(10_000)).await.unwrap();
    let new = insert(&store, 400).await;
    let (left, path) = killed(&folder);
    assert!(fs::metadata(left.path().join("keys.db-wal")).unwrap().len() > 0);
    (left, path, old, new)
}

#[tokio::test]
async fn a_backup_beside_the_log_of_another_file_is_refused_until_the_log_is_removed() {
    let backups = tempfile::tempdir().unwrap();
    let backup = backups.path().join("backup.db");
    let (folder, path, old, new) = in_use_since(&backup).await;

    fs::copy(&backup, &path).unwrap();
    let files = || PARTS[..2].iter().map(|part| fs::read(folder.path().join(part)).unwrap());
    let before: Vec<_> = files().collect();
    for _ in 0..3 {
        let error = SqliteStore::open(&path).unwrap_err();
        assert!(matches!(error, SqliteOpenError::Damaged { .. }), "{error:?}");
        let steps = format!("remove {0}-wal and {0}-shm", path.display());
        assert!(error.to_string().contains(&steps), "{error}");
        assert!(files().eq(before.iter().cloned()), "{error}, but the files have changed");
    }

    for part in &PARTS[1..] {
        fs::remove_file(folder.path().join(part)).unwrap();
    }
    let store = SqliteStore::open(&path).unwrap();
    for key in &old {
        assert!(store.find_by_digest(&key.digest).await.unwrap().is_some());
    }
    for key in &new {
        assert!(store.find_by_digest(&key.digest).await.unwrap().is_none());
    }
    assert_sound(&path);
}

#[tokio::test]
async fn the_guides_steps_restore_a_backup_of_a_file_in_use() {
    let (folder, path, store) = new_store();
    let keys = KeyManager::builder(store.clone()).build().unwrap();
    let actor = Actor::new(org("acme"), "ada");
    let new = || NewKey::named("key").unwrap();
    let first = keys.create(&actor, new()).await.unwrap();
    let second = keys.create(&actor, new()).await.unwrap();
    let backup = folder.path().join("backup.db");
    back_up(&path, &backup);

    keys.update(&actor, &first.key.id, KeyPatch::revoke()).await.unwrap();
    let rotated = keys.rotate(&actor, &second.key.id).await.unwrap();
    let third = keys.create(&actor, new()).await.unwrap();
    let (left, path) = killed(&folder);

    for part in PARTS {
        fs::rename(left.path().join(part), left.path().join(format!("{part}.old"))).unwrap();
    }
    fs::copy(&backup, &path).unwrap();
    let keys = KeyManager::builder(SqliteStore::open(&path).unwrap()).build().unwrap();
    // Exactly the keys of the backup, including the revoked one and the old secret of the
    // rotated one.
    for issued in [&first, &second] {
        keys.verify(issued.secret.expose_secret(), None).await.unwrap();
    }
    for issued in [&rotated, &third] {
        assert!(keys.verify(issued.secret.expose_secret(), None).await.is_err());
    }
    assert_eq!(keys.list(actor.org()).await.unwrap().len(), 2);
    keys.create(&actor, new()).await.unwrap();
    assert_sound(&path);
}

#[tokio::test]
async fn the_guides_steps_enable_the_release_of_space_for_an_older_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let opened_and_closed = || {
        drop(SqliteStore::open(&path).unwrap());
        assert!(!fs::exists(path.with_extension("db-wal")).unwrap(), "the file is closed");
    };
    opened_and_closed();
    let mode =
        || raw(&path).query_row("PRAGMA auto_vacuum", [], |row| row.get::<_, i64>(0)).unwrap();
    raw(&path)
        .execute_batch("PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = NONE; VACUUM")
        .unwrap();
    assert_eq!(mode(), 0);
    opened_and_closed();
    assert_eq!(mode(), 0);
    raw(&path).execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM").unwrap();
    assert_eq!(mode(), 2);
    SqliteStore::open(&path).unwrap();
    assert_sound(&path);
}
