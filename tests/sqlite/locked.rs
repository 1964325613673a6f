//! Another process holds the file's write lock for longer than the busy timeout.

use std::time::{Duration, Instant};

use keygate::audit::{AuditQuery, AuditScope};
use keygate::error::SqliteOpenError;
use keygate::store::{KeyUse, Revision};
use keygate::{
    Actor, AuditError, AuditLog, AuditSink, Delivery, KeyManager, KeyPatch, KeyStore, ManageError,
    NewKey, SqliteStore, StoreError,
};

use crate::files::{LIMIT, assert_sound, at, change, key, lock, new_store, org};

/// The busy timeout is a second; the rest is for a busy machine.
const BOUND: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_38_writes_to_a_locked_file_are_unavailable_and_reads_continue() {
    let (_folder, path, store) = new_store();
    let present = key(&org("acme"));
    store.insert(&present, LIMIT).await.unwrap();
    for begin in ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"] {
        let peer = lock(begin, &path);
        let begun = Instant::now();
        let new = key(&org("acme"));
        let renamed = keygate::ApiKey { revision: Revision::new(2), ..present.clone() };
        let uses = [KeyUse { id: present.id, at: at(5) }];
        let records = [change(&present, at(5), 5)];
        let (inserted, replaced, deleted, used, probed, recorded, purged) = tokio::join!(
            store.insert(&new, LIMIT),
            store.replace(&renamed, Revision::FIRST),
            store.delete(&present.org, &present.id, None),
            store.record_uses(&uses),
            store.record_uses(&[]),
            store.record(&records),
            store.purge_before(at(9)),
        );
        for write in [inserted, replaced, deleted, used, probed] {
            assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
        }
        for write in [recorded, purged.map(drop)] {
            assert!(matches!(write, Err(AuditError::Unavailable(_))), "{write:?}");
        }
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());

        // The other process still holds the lock.
        assert_eq!(store.find_by_digest(&present.digest).await.unwrap().as_deref(), Some(&present));
        assert_eq!(store.list(&present.org).await.unwrap().len(), 1);
        let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
        assert!(store.page(&query).await.unwrap().records.is_empty());
        let opened = SqliteStore::open(&path).unwrap_err();
        assert!(matches!(opened, SqliteOpenError::Locked { .. }), "{opened:?}");

        peer.end();
        // A failed change does not take effect later.
        assert_eq!(store.get(&present.org, &present.id).await.unwrap().as_deref(), Some(&present));
        store.insert(&new, LIMIT).await.unwrap();
        assert_eq!(store.list(&present.org).await.unwrap().len(), 2);
        store.delete(&new.org, &new.id, None).await.unwrap();
        assert!(store.page(&query).await.unwrap().records.is_empty());
    }
    assert_sound(&path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_38_a_manager_on_a_locked_file_is_unavailable_and_recovers() {
    let (_folder, path, store) = new_store();
    let keys = KeyManager::builder(store.clone())
        .audit(store)
        .delivery(Delivery::strict())
        .build()
        .unwrap();
    let actor = Actor::new(org("acme"), "ada");
    let new = || NewKey::named("key").unwrap();
    let present = keys.create(&actor, new()).await.unwrap();
    let secret = present.secret.expose_secret();

    let peer = lock("BEGIN IMMEDIATE", &path);
    let begun = Instant::now();
    let (created, updated, rotated, deleted) = tokio::join!(
        keys.create(&actor, new()),
        keys.update(&actor, &present.key.id, KeyPatch::revoke()),
        keys.rotate(&actor, &present.key.id),
        keys.delete(&actor, &present.key.id),
    );
    for change in [created.map(drop), updated.map(drop), rotated.map(drop), deleted] {
        assert!(matches!(change, Err(ManageError::Unavailable(_))), "{change:?}");
    }
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    keys.verify(secret, None).await.unwrap();
    assert!(keys.health().await.lookups.works());

    peer.end();
    let again = keys.create(&actor, new()).await.unwrap();
    keys.verify(again.secret.expose_secret(), None).await.unwrap();
    keys.verify(secret, None).await.unwrap();
    assert_eq!(keys.list(actor.org()).await.unwrap().len(), 2);
    assert!(keys.shutdown(BOUND).await.is_complete());
}
