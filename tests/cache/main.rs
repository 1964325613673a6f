//! `CachedStore` from outside: no answer outlives a change, whatever fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(all(feature = "cache", feature = "tokio"))]

#[path = "../cache_support/mod.rs"]
mod cache_support;
mod changes;
#[cfg(feature = "conformance")]
mod conforms;
mod entries;
mod feed;
mod manager;
mod shared;
mod staleness;

use std::sync::Arc;
use std::time::Duration;

use cache_support::support::{Call, Gate, SpyStore, eventually};
use cache_support::{Quiet, Say, digest, feed};
use keygate::error::CacheError;
use keygate::store::{CacheState, News};
use keygate::*;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(5);

/// A store. The cache does not learn of changes in its inner store.
fn probe() -> Arc<SpyStore> {
    Arc::default()
}

fn cached(probe: &Arc<SpyStore>) -> CachedStore {
    cached_for(probe, LONG)
}

fn cached_for(probe: &Arc<SpyStore>, max_staleness: Duration) -> CachedStore {
    CachedStore::builder(Arc::clone(probe), max_staleness).build().unwrap()
}

/// A cache that follows its feed.
async fn following(probe: &Arc<SpyStore>, max_staleness: Duration) -> (CachedStore, Say) {
    let (say, feed) = feed();
    let builder = CachedStore::builder(Arc::clone(probe), max_staleness);
    let cached = builder.feed(feed).build().unwrap();
    say.news(News::Missed);
    say.up_to_date();
    becomes(&cached, CacheState::Following).await;
    (cached, say)
}

/// A cache with answers that do not expire, for tests with so many calls that they may take
/// longer than an answer lasts.
async fn lasting(probe: &Arc<SpyStore>, negative_entries: usize) -> CachedStore {
    let builder = CachedStore::builder(Arc::clone(probe), LONG).feed(Quiet::default());
    let cached = builder.negative_entries(negative_entries).build().unwrap();
    becomes(&cached, CacheState::Following).await;
    cached
}

async fn becomes(cached: &CachedStore, state: CacheState) {
    eventually("that state", async || cached.health().state == state).await;
}

async fn find(store: &impl KeyStore, number: u64) -> bool {
    store.find_by_digest(&digest(number)).await.unwrap().is_some()
}

type Found = Result<Option<Arc<ApiKey>>, StoreError>;

/// Starts a look-up in its own task.
fn lookup(cached: &CachedStore, key: &ApiKey) -> JoinHandle<Found> {
    let (cached, digest) = (cached.clone(), key.digest);
    tokio::spawn(async move { cached.find_by_digest(&digest).await })
}

/// A look-up that has read the store and is held. Later look-ups are not.
async fn late(
    probe: &SpyStore,
    cached: &CachedStore,
    key: &ApiKey,
) -> (JoinHandle<Found>, Arc<Gate>) {
    let gate = probe.hold_after(Call::Find);
    let late = lookup(cached, key);
    gate.reached().await;
    probe.heal();
    (late, gate)
}

fn status_of(found: Found) -> Option<Status> {
    found.unwrap().map(|key| key.status)
}

#[test]
fn max_staleness_is_bounded() {
    for bad in [Duration::ZERO, LONG + Duration::from_nanos(1), Duration::MAX] {
        let error = CachedStore::builder(MemoryStore::new(), bad).build().unwrap_err();
        assert!(matches!(error, CacheError::MaxStaleness(told) if told == bad), "{error:?}");
        assert!(error.to_string().contains("more than zero and at most 5 s"), "{error}");
    }
    for good in [Duration::from_nanos(1), LONG] {
        CachedStore::builder(MemoryStore::new(), good).build().unwrap();
    }
}

#[test]
fn a_feed_needs_a_runtime() {
    let (_say, feed) = feed();
    let error = CachedStore::builder(MemoryStore::new(), LONG).feed(feed).build().unwrap_err();
    assert!(matches!(error, CacheError::NoRuntime), "{error:?}");
}
