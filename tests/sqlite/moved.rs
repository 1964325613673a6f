//! A file that is removed, moved or replaced while a store has it open.

use std::fs;
use std::path::{Path, PathBuf};

use keygate::audit::{AuditQuery, AuditScope};
use keygate::store::KeyUse;
use keygate::{AuditError, AuditLog, AuditSink, KeyStore, SqliteStore, StoreError};

use crate::files::{LIMIT, assert_sound, at, chain, change, key, new_store, org, raw};
use crate::support::{capture_logs, eventually, logs};

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn moved(path: &Path) {
    fs::rename(path, beside(path, ".moved")).unwrap();
}

fn put_back(path: &Path) {
    fs::rename(beside(path, ".moved"), path).unwrap();
}

/// Changes, audit records and the probe are refused for that reason.
async fn assert_refused(store: &SqliteStore, reason: &str) {
    let new = key(&org("acme"));
    let uses = [KeyUse { id: new.id, at: at(5) }];
    for refused in [
        store.insert(&new, LIMIT).await,
        store.delete(&new.org, &new.id, None).await,
        store.record_uses(&uses).await,
        store.record_uses(&[]).await,
    ] {
        match refused {
            Err(error @ StoreError::Unavailable(_)) => {
                assert!(chain(&error).contains(reason), "{}", chain(&error));
            }
            other => panic!("{reason}: {other:?}"),
        }
    }
    let recorded = store.record(&[change(&new, at(5), 5)]).await;
    assert!(matches!(recorded, Err(AuditError::Unavailable(_))), "{recorded:?}");
    let purged = store.purge_before(at(9)).await;
    assert!(matches!(purged, Err(AuditError::Unavailable(_))), "{purged:?}");
}

#[tokio::test]
async fn a_file_that_is_gone_accepts_no_changes_and_can_still_be_read() {
    for part in ["", "-wal", "-shm"] {
        let (_folder, path, store) = new_store();
        let present = key(&org("acme"));
        store.insert(&present, LIMIT).await.unwrap();
        let part = beside(&path, part);
        moved(&part);

        assert_refused(&store, &format!("{} is missing", part.display())).await;
        let found = store.find_by_digest(&present.digest).await.unwrap();
        assert_eq!(found.as_deref(), Some(&present));
        assert_eq!(store.list(&present.org).await.unwrap().len(), 1);
        let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
        assert!(store.page(&query).await.unwrap().records.is_empty());

        // No data was lost: the same file is back in its place.
        put_back(&part);
        store.record_uses(&[]).await.unwrap();
        store.insert(&key(&org("acme")), LIMIT).await.unwrap();
        assert_eq!(store.list(&present.org).await.unwrap().len(), 2);
        assert_sound(&path);
    }
}

#[tokio::test]
async fn a_removed_file_accepts_no_changes() {
    let (_folder, path, store) = new_store();
    let present = key(&org("acme"));
    store.insert(&present, LIMIT).await.unwrap();
    for part in ["", "-wal", "-shm"] {
        fs::remove_file(beside(&path, part)).unwrap();
    }
    assert_refused(&store, "keys.db is missing").await;
    assert!(store.find_by_digest(&present.digest).await.unwrap().is_some());
}

#[tokio::test]
async fn a_replaced_file_is_neither_written_nor_read() {
    for part in ["", "-wal", "-shm"] {
        let (_folder, path, store) = new_store();
        let present = key(&org("acme"));
        store.insert(&present, LIMIT).await.unwrap();
        let part = beside(&path, part);
        moved(&part);
        fs::copy(beside(&part, ".moved"), &part).unwrap();

        // The replacement is noticed without a change.
        let look_ups_fail = async || match store.find_by_digest(&present.digest).await {
            Err(error @ StoreError::Unavailable(_)) => Some(error),
            other => other.map(|_| None).unwrap(),
        };
        let error = eventually("look-ups are refused", look_ups_fail).await;
        let reason = format!("{} is no longer the file that was opened", part.display());
        assert!(chain(&error).contains(&reason), "{}", chain(&error));
        let listed = store.list(&present.org).await;
        assert!(matches!(listed, Err(StoreError::Unavailable(_))), "{listed:?}");
        assert_refused(&store, &reason).await;

        put_back(&part);
        assert!(store.find_by_digest(&present.digest).await.unwrap().is_some());
        store.record_uses(&[]).await.unwrap();
    }
}

/// A look-up that would be answered from memory is refused at once as well.
#[tokio::test]
async fn a_key_that_was_just_found_is_not_found_again_beside_another_file() {
    let (_folder, path, store) = new_store();
    let present = key(&org("acme"));
    store.insert(&present, LIMIT).await.unwrap();
    for _ in 0..2 {
        assert!(store.find_by_digest(&present.digest).await.unwrap().is_some());
    }
    moved(&path);
    fs::copy(beside(&path, ".moved"), &path).unwrap();
    let found = store.find_by_digest(&present.digest).await;
    assert!(matches!(found, Err(StoreError::Unavailable(_))), "{found:?}");
}

#[tokio::test]
async fn a_link_that_points_to_another_file_is_noticed() {
    let (folder, path, store) = new_store();
    drop(store);
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let store = SqliteStore::open(&link).unwrap();
    store.insert(&key(&org("acme")), LIMIT).await.unwrap();
    let other = folder.path().join("other.db");
    drop(SqliteStore::open(&other).unwrap());
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    assert_refused(&store, "link.db is no longer the file that was opened").await;
}

#[tokio::test]
async fn closing_a_replaced_file_leaves_the_new_one_and_its_log_unchanged() {
    let (folder, path, old) = new_store();
    old.insert(&key(&org("old")), LIMIT).await.unwrap();
    let backup = folder.path().join("backup");
    raw(&path).execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    old.insert(&key(&org("old")), LIMIT).await.unwrap();
    for part in ["-wal", "-shm"] {
        fs::remove_file(beside(&path, part)).unwrap();
    }
    fs::rename(&backup, &path).unwrap();

    let new = SqliteStore::open(&path).unwrap();
    new.insert(&key(&org("new")), LIMIT).await.unwrap();
    let threads = || fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let before = threads();
    drop(old);
    eventually("the threads of the old store end", async || threads() < before).await;
    new.insert(&key(&org("new")), LIMIT).await.unwrap();
    let reopened = SqliteStore::open(&path).unwrap();
    assert_eq!(reopened.list(&org("new")).await.unwrap().len(), 2);
    assert_eq!(reopened.list(&org("old")).await.unwrap().len(), 1);
    assert_sound(&path);
}

#[tokio::test]
async fn a_file_that_is_gone_is_logged_at_intervals() {
    let (_folder, path, store) = new_store();
    moved(&path);
    capture_logs();
    let unknown = key(&org("acme"));
    eventually("a line", async || {
        store.find_by_digest(&unknown.digest).await.unwrap();
        logs().contains("keys.db is missing").then_some(())
    })
    .await;
    for _ in 0..3 {
        store.record_uses(&[]).await.unwrap_err();
    }
    let message = logs();
    assert_eq!(message.matches("is missing").count(), 1, "{message}");
    assert!(message.contains("stop the service, restore the right file"), "{message}");
}
