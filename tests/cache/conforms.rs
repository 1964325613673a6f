//! The conformance suite in front of each kind of store and feed.

use keygate::conformance::check_store;
use keygate::store::CacheState;
use keygate::{CachedStore, MemoryStore};

use crate::cache_support::{Quiet, feed};
use crate::{LONG, becomes};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_without_a_feed_conforms() {
    let store = || async { CachedStore::builder(MemoryStore::new(), LONG).build().unwrap() };
    check_store(store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_that_follows_a_feed_conforms() {
    let store = || async {
        let builder = CachedStore::builder(MemoryStore::new(), LONG);
        let cached = builder.feed(Quiet::default()).build().unwrap();
        becomes(&cached, CacheState::Following).await;
        cached
    };
    check_store(store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bypassed_cache_conforms() {
    let store =
        || async { CachedStore::builder(MemoryStore::new(), LONG).feed(feed().1).build().unwrap() };
    check_store(store).await.unwrap();
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_in_front_of_a_database_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = keygate::SqliteStore::open(folder.path().join("keys.db")).unwrap();
    let cached = CachedStore::builder(store, LONG).build().unwrap();
    check_store(|| async { cached.clone() }).await.unwrap();
}
