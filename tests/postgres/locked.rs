//! Changes while others hold locks, and statements that arrive late.

use std::time::Duration;

use keygate::store::{KeyDigest, OrgLimit, Revision};
use keygate::{ApiKey, KeyStore, PostgresStore, Status, StoreError};
use tokio::time::timeout;

use crate::postgres_support::{Schema, key, new_key, org, url};
use crate::proxy::{Network, Proxy, Side, address};
use crate::sessions::unlock;
use crate::support::eventually;

pub(crate) const DEADLINE: Duration = Duration::from_secs(1);

pub(crate) fn at_next(key: &ApiKey) -> ApiKey {
    ApiKey { revision: key.revision.next(), ..key.clone() }
}

fn revoked(n: u8) -> ApiKey {
    ApiKey { status: Status::Revoked, ..key(n) }
}

/// A schema with the revoked keys 1 to 3.
async fn with_revoked_keys() -> Schema {
    let schema = Schema::new();
    let store = schema.store().await;
    for n in 1..=3 {
        store.insert(&revoked(n), OrgLimit::NONE).await.unwrap();
    }
    schema
}

/// Three kinds of change to the keys 1 to 3, and a creation.
async fn all_changes(store: &PostgresStore) -> [StoreError; 4] {
    let enabled = ApiKey { status: Status::Active, ..at_next(&revoked(1)) };
    let rotated = ApiKey { digest: KeyDigest::of("rotated"), ..at_next(&revoked(2)) };
    let (deleted, created) = (revoked(3), key(4));
    let (a, b, c, d) = tokio::join!(
        store.replace(&enabled, Revision::FIRST),
        store.replace(&rotated, Revision::FIRST),
        store.delete(&deleted.org, &deleted.id, None),
        store.insert(&created, OrgLimit::NONE),
    );
    [a, b, c, d].map(Result::unwrap_err)
}

/// None of [`all_changes`] has taken place.
async fn assert_nothing_changed(schema: &Schema) {
    let store = schema.store().await;
    for n in 1..=3 {
        let found = store.get(&key(n).org, &key(n).id).await.unwrap();
        assert_eq!(*found.unwrap(), revoked(n), "key {n}");
    }
    assert_eq!(store.get(&key(4).org, &key(4).id).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_44_a_change_that_timed_out_on_a_lock_never_takes_effect() {
    let schema = with_revoked_keys().await;
    for lock in [
        "SELECT 1 FROM keys FOR UPDATE; SELECT 1 FROM organisations FOR UPDATE",
        "LOCK TABLE keys IN EXCLUSIVE MODE",
    ] {
        // The server gives up at three quarters of the deadline; a busy machine needs some of
        // the rest to say so.
        let store = schema.options().deadline(DEADLINE * 4).connect().await.unwrap();
        let db = schema.lock(lock).await;
        for error in all_changes(&store).await {
            // The server has given up, so the outcome is known.
            assert!(matches!(error, StoreError::Unavailable(_)), "{lock}: {error:?}");
        }
        drop(store);
        unlock(db).await;
        schema.sessions_end().await;
        assert_nothing_changed(&schema).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_44_a_cancelled_change_does_not_wait_for_its_lock_forever() {
    let schema = with_revoked_keys().await;
    let store = schema.options().deadline(DEADLINE).connect().await.unwrap();
    let db = schema.lock("SELECT 1 FROM keys FOR UPDATE").await;
    let enabled = ApiKey { status: Status::Active, ..at_next(&revoked(1)) };
    let change = store.replace(&enabled, Revision::FIRST);
    timeout(Duration::from_millis(200), change).await.unwrap_err();
    let what = "the change no longer waits for the lock";
    eventually(what, async || schema.lock_waits().await.is_empty()).await;
    unlock(db).await;
    assert_nothing_changed(&schema).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_44_a_change_that_arrives_late_changes_nothing() {
    let schema = with_revoked_keys().await;
    for prepared in [true, false] {
        let proxy = Proxy::start(address(&url())).await;
        let options = schema.options_at(&proxy.url(&url())).deadline(DEADLINE);
        let store = options.prepared(prepared).connect().await.unwrap();
        // Every connection is open, and its statements are prepared.
        for _ in 0..8 {
            let own = new_key(&org("own"));
            store.insert(&own, OrgLimit::NONE).await.unwrap();
            store.replace(&at_next(&own), own.revision).await.unwrap();
            store.delete(&own.org, &own.id, None).await.unwrap();
        }
        proxy.set_on(Side::ToServer, Network::Slow(DEADLINE * 3 / 2));
        // Two are under way at a time; the others have not begun.
        let errors = all_changes(&store).await;
        let on_their_way = errors.iter().filter(|e| matches!(e, StoreError::InDoubt(_)));
        assert_eq!(on_their_way.count(), 2, "{errors:?}");
        drop(store);
        schema.sessions_end().await;
        assert_nothing_changed(&schema).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn organisations_without_keys_are_forgotten() {
    let schema = Schema::new();
    let store = schema.store().await;
    let keys = [0, 1, 2].map(|n| new_key(&org(&format!("org {n}"))));
    for key in &keys {
        store.insert(key, OrgLimit::at_most(1)).await.unwrap();
        let full = store.insert(&new_key(&key.org), OrgLimit::at_most(1)).await;
        assert!(matches!(full, Err(StoreError::LimitReached)), "{full:?}");
    }
    for key in &keys[1..] {
        store.delete(&key.org, &key.id, None).await.unwrap();
    }
    let rows = schema.db().await.query("SELECT org FROM organisations", &[]).await.unwrap();
    let left: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(left, ["org 0"]);
    store.insert(&keys[1], OrgLimit::at_most(1)).await.unwrap();
}
