//! A full disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keygate::audit::{AuditQuery, AuditScope, Position};
use keygate::store::OrgLimit;
use keygate::{
    Actor, AuditError, AuditLog, AuditSink, Delivery, KeyManager, KeyStore, Limits, ManageError,
    NewKey, SqliteStore, StoreError,
};
use tempfile::TempDir;

use crate::files::{assert_sound, at, key, org, request};

/// A file system of 2 MiB, in memory.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "keygate-test"])
            .arg(folder.path())
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs cannot be mounted here");
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Uses up all remaining space.
    fn fill(&self) {
        let mut filler =
            File::options().create(true).append(true).open(self.file("filler")).unwrap();
        for size in [4096, 512, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        // Truncate the file first: a child that another test is starting may hold it open for
        // a moment and keep its space allocated.
        File::create(self.file("filler")).unwrap();
        fs::remove_file(self.file("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// All requests in the log of a key.
async fn requests(store: &SqliteStore, key: &keygate::ApiKey) -> usize {
    let query = AuditQuery::new(key.org.clone(), AuditScope::KeyRequests(key.id)).limit(200);
    let mut page = store.page(&query).await.unwrap();
    let mut count = page.records.len();
    while let Some(older) = page.older {
        page = store.page(&query.clone().at(Position::Before(older))).await.unwrap();
        count += page.records.len();
    }
    count
}

/// Repeats a call until the free space inside the file is used up too.
async fn until_refused<E>(mut call: impl AsyncFnMut() -> Result<(), E>) -> E {
    for _ in 0..20_000 {
        if let Err(error) = call().await {
            return error;
        }
    }
    panic!("the disk is never full")
}

async fn fills_up(path: &Path, disk: &SmallDisk) {
    let store = SqliteStore::open(path).unwrap();
    let acme = org("acme");
    let first = key(&acme);
    store.insert(&first, OrgLimit::NONE).await.unwrap();
    let mut acknowledged = vec![first.clone()];
    let (mut batches, mut number) = (0, 0);
    let mut batch = || -> Vec<_> {
        number += 300;
        (number - 300..number).map(|n| request(&first, at(2), n)).collect()
    };
    for _ in 0..3 {
        disk.fill();
        let refused = until_refused(async || {
            let new = key(&acme);
            store.insert(&new, OrgLimit::NONE).await.map(|()| acknowledged.push(new))
        })
        .await;
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
        let refused =
            until_refused(async || store.record(&batch()).await.map(|()| batches += 1)).await;
        assert!(matches!(refused, AuditError::Unavailable(_)), "{refused:?}");

        // The probe uses up the last free page.
        let refused = until_refused(async || store.record_uses(&[]).await).await;
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");

        // Exactly the acknowledged changes are stored, and reads continue.
        assert_eq!(store.list(&acme).await.unwrap().len(), acknowledged.len());
        let found = store.find_by_digest(&first.digest).await.unwrap();
        assert_eq!(found.as_deref(), Some(&first));
        assert_eq!(requests(&store, &first).await, batches * 300);

        disk.make_room();
        store.record_uses(&[]).await.unwrap();
        let new = key(&acme);
        store.insert(&new, OrgLimit::NONE).await.unwrap();
        acknowledged.push(new);
        store.record(&batch()).await.unwrap();
        batches += 1;
    }
    drop(store);
    assert_sound(path);
    let store = SqliteStore::open(path).unwrap();
    for key in &acknowledged {
        assert_eq!(store.get(&acme, &key.id).await.unwrap().as_deref(), Some(key));
    }
    assert_eq!(store.list(&acme).await.unwrap().len(), acknowledged.len());
    assert_eq!(requests(&store, &first).await, batches * 300);
}

#[tokio::test]
#[ignore = "needs root to mount a tmpfs"]
async fn case_34_a_full_disk_is_unavailable_and_leaves_no_partial_change() {
    let disk = SmallDisk::mount();
    fills_up(&disk.file("keys.db"), &disk).await;
}

#[tokio::test]
#[ignore = "needs root to mount a tmpfs"]
async fn case_34_a_new_file_on_a_full_disk_is_an_error() {
    let disk = SmallDisk::mount();
    disk.fill();
    let error = SqliteStore::open(disk.file("keys.db")).unwrap_err();
    assert!(error.to_string().contains("keys.db"), "{error}");
    disk.make_room();
    SqliteStore::open(disk.file("keys.db")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root to mount a tmpfs"]
async fn case_34_a_manager_on_a_full_disk_is_unavailable_and_recovers() {
    let disk = SmallDisk::mount();
    let store = SqliteStore::open(disk.file("keys.db")).unwrap();
    let keys = KeyManager::builder(store.clone())
        .audit(store)
        .delivery(Delivery::strict().deadline(Duration::from_millis(500)))
        .limits(Limits::default().max_keys(100_000))
        .build()
        .unwrap();
    let actor = Actor::new(org("acme"), "ada");
    let new = || NewKey::named("key").unwrap();
    let mut issued = vec![keys.create(&actor, new()).await.unwrap()];
    disk.fill();
    let refused =
        until_refused(async || keys.create(&actor, new()).await.map(|key| issued.push(key))).await;
    assert!(matches!(refused, ManageError::Unavailable(_)), "{refused:?}");
    for key in &issued {
        keys.verify(key.secret.expose_secret(), None).await.unwrap();
    }
    assert_eq!(keys.list(actor.org()).await.unwrap().len(), issued.len());

    disk.make_room();
    let again = keys.create(&actor, new()).await.unwrap();
    keys.verify(again.secret.expose_secret(), None).await.unwrap();
    keys.delete(&actor, &again.key.id).await.unwrap();
    assert!(keys.shutdown(Duration::from_secs(10)).await.is_complete());
}
