//! `CachedStore`: keys kept in memory in front of a store across a network.

mod builder;
mod entries;
mod follow;
mod singleflight;
mod validity;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use self::entries::Entries;
use self::follow::Listening;
use self::singleflight::SingleFlight;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::meters::CacheMeter;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::store::key_store::{KeyStore, StoreError};

pub use self::builder::{CacheError, CachedStoreBuilder};

/// What `validity.rs` shares between threads; loom replaces it in tests.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

/// A [`KeyStore`] that caches the answers of another one, for stores across a network.
///
/// **No process accepts a key later than `max_staleness` after its revocation was
/// acknowledged, whatever fails.** Normally a revocation takes effect within milliseconds.
/// If it was made through this store or a clone of it, it takes effect when the call
/// returns. The same applies to every other change: rotated, deleted, edited and new keys.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use keygate::{CachedStore, KeyManager, MemoryStore};
///
/// // MemoryStore stands for a store across a network.
/// let cached = CachedStore::builder(MemoryStore::new(), Duration::from_secs(2)).build()?;
/// let keys = KeyManager::builder(cached.clone()).build()?;
/// println!("{:?}", cached.health());
/// # Ok(())
/// # }
/// ```
///
/// # What is cached, and for how long
///
/// The answers of [`find_by_digest`](KeyStore::find_by_digest), which every request calls,
/// are cached: keys and, in separate room, digests without a key. Status, expiry and
/// address are still checked on each request. All other calls go to the store. The cached
/// `last_used_at` may be out of date; `get` and `list` return the stored one.
///
/// - Without a [`ChangeFeed`](crate::store::ChangeFeed), each answer is used for `max_staleness`
///   from when the store was asked.
/// - With one, answers are used until the feed announces a change, so that a key in use
///   costs the store nothing. If the feed has not proved for `max_staleness` that it is
///   complete (a lost connection, a half-open socket, an unsuitable pooler), the cache is
///   emptied, and every look-up goes to the store until it does.
///   [`health`](CachedStore::health) reports this.
///
/// Concurrent look-ups of one digest share one call of the store. An answer that took
/// longer than `max_staleness` is refused as [`StoreError::Unavailable`], since it may be
/// out of date.
///
/// Time is measured by this machine's monotonic clock ([`Instant`](std::time::Instant)),
/// which is never adjusted. On most systems it stops while the machine is suspended, so
/// cached answers do not age during that time.
///
/// Clones share one cache. It listens to the feed until the last clone is dropped.
#[derive(Clone)]
pub struct CachedStore {
    store: Arc<dyn KeyStore>,
    entries: Arc<Entries>,
    singleflight: Arc<SingleFlight>,
    listening: Option<Arc<Listening>>,
    meter: CacheMeter,
}

impl CachedStore {
    /// Whether the cache is used, and how full it is.
    pub fn health(&self) -> CacheHealth {
        let state = match (&self.listening, self.entries.is_bypassed()) {
            (None, _) => CacheState::WithoutFeed,
            (Some(_), false) => CacheState::Following,
            (Some(_), true) => CacheState::Bypassed,
        };
        CacheHealth {
            state,
            entries: self.entries.count(),
            negative_entries: self.entries.absent_count(),
        }
    }

    fn changing(&self, id: KeyId) -> Changing<'_> {
        Changing { entries: &self.entries, id: Some(id) }
    }
}

/// The health of a [`CachedStore`](crate::CachedStore), for a host's health report.
///
/// ```
/// use std::time::Duration;
/// use keygate::store::CacheState;
/// use keygate::{CachedStore, MemoryStore};
///
/// let cached = CachedStore::builder(MemoryStore::new(), Duration::from_secs(1)).build()?;
/// let health = cached.health();
/// assert_eq!((health.state, health.entries), (CacheState::WithoutFeed, 0));
/// # Ok::<(), keygate::error::CacheError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheHealth {
    /// Whether the cache is used.
    pub state: CacheState,
    /// How many keys are cached. Some of them may be too old to be used.
    pub entries: usize,
    /// How many digests without a key are cached.
    pub negative_entries: usize,
}

/// Whether a cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheState {
    /// There is no feed: answers are used for `max_staleness`.
    WithoutFeed,
    /// The feed announces changes: answers are used until they change.
    Following,
    /// The feed is silent or has not started: every look-up goes to the store.
    Bypassed,
}

#[async_trait]
impl KeyStore for CachedStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        let changing = self.changing(key.id);
        changing.end(&key.org, self.store.insert(key, limit).await)
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let cached = self.entries.find(digest);
        self.meter.count(cached.is_some());
        if let Some(found) = cached {
            return Ok(found);
        }
        // Boxed, so that a cache hit does not pay for its size.
        Box::pin(self.singleflight.ask(&self.store, &self.entries, digest)).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let found = self.store.get(org, id).await?;
        // A caller that finds the key in the desired state makes no change. The cache may
        // be out of date, if the change was made elsewhere or by a call whose answer was
        // lost.
        match &found {
            Some(key) => self.entries.seen(key),
            None => self.entries.doubted(org, *id),
        }
        Ok(found)
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.store.list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let changing = self.changing(key.id);
        changing.end(&key.org, self.store.replace(key, expected).await)
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let changing = self.changing(*id);
        changing.end(org, self.store.delete(org, id, expected).await)
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.store.record_uses(uses).await
    }
}

/// Shows the health of the cache and the inner store.
impl fmt::Debug for CachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore")
            .field("store", &self.store)
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

/// A change in progress. When it ends, the key's entry is invalidated, even if the change
/// failed and may have taken place, or if the call was dropped.
///
/// A call that was given up may still take place later, and a look-up in between caches the
/// old record. That change was never acknowledged; the entry lasts until the feed announces
/// the change or `max_staleness` passes.
struct Changing<'a> {
    entries: &'a Entries,
    /// `None` once it is known that nothing was changed.
    id: Option<KeyId>,
}

impl Changing<'_> {
    /// Ends the change of a key of this organisation. A refused change changed nothing, but
    /// shows that the key is not in the state that the caller assumed.
    fn end(mut self, org: &OrgId, done: Result<(), StoreError>) -> Result<(), StoreError> {
        use StoreError::{Conflict, LimitReached, NotFound};
        if let Err(LimitReached | NotFound | Conflict) = &done
            && let Some(id) = self.id.take()
        {
            self.entries.doubted(org, id);
        }
        done
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.entries.changed(id);
        }
    }
}
