//! What is cached, and how much.

use std::sync::Arc;

use keygate::store::{CacheState, KeyUse};
use keygate::*;

use crate::cache_support::{acme, insert, status};
use crate::{LONG, cached, find, lasting, probe};

#[tokio::test]
async fn a_key_and_its_absence_are_cached() {
    let probe = probe();
    insert(&probe, 1).await;
    let cached = cached(&probe);
    for _ in 0..10 {
        assert!(find(&cached, 1).await);
        assert!(!find(&cached, 2).await);
    }
    assert_eq!(probe.finds(), 2);
    let health = cached.health();
    assert_eq!((health.entries, health.negative_entries), (1, 1));
    assert_eq!(health.state, CacheState::WithoutFeed);
    assert!(format!("{cached:?}").contains("entries: 1"), "{cached:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unknown_keys_evicts_no_real_key() {
    let probe = probe();
    for number in 0..1_000 {
        insert(&probe, number).await;
    }
    let cached = lasting(&probe, 10_000).await;
    for number in 0..1_000 {
        assert!(find(&cached, number).await);
    }
    for number in 0..1_000_000 {
        assert!(!find(&cached, 1_000_000 + number).await);
    }
    assert_eq!(probe.finds(), 1_001_000);
    for number in 0..1_000 {
        assert!(find(&cached, number).await);
    }
    assert_eq!(probe.finds(), 1_001_000, "every key was still there");
    let health = cached.health();
    assert_eq!(health.entries, 1_000);
    assert!(health.negative_entries <= 10_000, "{health:?}");
}

#[tokio::test]
async fn the_cache_never_exceeds_its_capacity() {
    let probe = probe();
    let builder = CachedStore::builder(Arc::clone(&probe), LONG);
    let cached = builder.entries(1_024).negative_entries(128).build().unwrap();
    for number in 0..5_000 {
        insert(&probe, number).await;
        assert!(find(&cached, number).await);
        assert!(!find(&cached, 1_000_000 + number).await);
        let health = cached.health();
        assert!(health.entries <= 1_024 && health.negative_entries <= 128, "{health:?}");
    }
    let health = cached.health();
    assert!(health.entries > 512 && health.negative_entries > 64, "{health:?}");
}

#[tokio::test]
async fn with_capacity_zero_every_look_up_goes_to_the_store() {
    let probe = probe();
    insert(&probe, 1).await;
    let builder = CachedStore::builder(Arc::clone(&probe), LONG);
    let cached = builder.entries(0).negative_entries(0).build().unwrap();
    for _ in 0..3 {
        assert!(find(&cached, 1).await);
        assert!(!find(&cached, 2).await);
    }
    assert_eq!(probe.finds(), 6);
    assert_eq!((cached.health().entries, cached.health().negative_entries), (0, 0));
}

#[test]
fn a_hit_costs_one_allocation() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let probe = probe();
    let cached = cached(&probe);
    let key = runtime.block_on(insert(&probe, 1));
    let look = || runtime.block_on(status(&cached, &key));
    look();
    // `block_on` itself does not allocate.
    let counted = allocation_counter::measure(|| assert_eq!(look(), Some(Status::Active)));
    assert_eq!(counted.count_total, 1);
    assert_eq!(probe.finds(), 1);
}

#[tokio::test]
async fn other_calls_go_to_the_store() {
    let probe = probe();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    assert!(find(&cached, 1).await);
    let used = Timestamp::from_unix_micros(7);
    cached.record_uses(&[KeyUse { id: key.id, at: used.unwrap() }]).await.unwrap();
    assert!(find(&cached, 1).await);
    assert_eq!(probe.finds(), 1, "a use does not void the entry");
    for store in [&probe.inner as &dyn KeyStore, &cached] {
        assert_eq!(store.get(&acme(), &key.id).await.unwrap().unwrap().last_used_at, used);
        assert_eq!(store.list(&acme()).await.unwrap()[0].last_used_at, used);
    }
}
