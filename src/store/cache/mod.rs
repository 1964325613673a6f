//! `CachedStore`: keys kept in memory in front of a store across a network.

mod builder;
mod entries;
mod flight;
mod follow;
mod health;
mod index;
mod quiet;
mod validity;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use self::entries::Entries;
use self::flight::Flights;
use self::follow::Listening;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::store::contract::{KeyStore, StoreError};

pub use self::builder::{CacheError, CachedStoreBuilder};
pub use self::health::{CacheHealth, CacheState};

/// What `validity.rs` and `quiet.rs` share between threads: here the real thing.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
}

/// A [`KeyStore`] that keeps in memory what another one answered: for stores across a
/// network.
///
/// **No process accepts a key later than `max_staleness` after its revocation was
/// acknowledged, whatever fails**; normally within milliseconds, and where the change
/// was made through this store or a clone of it, from the moment the call returned. The
/// same goes for every other change: rotated, deleted and edited keys, and new ones.
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
/// # What is kept, and for how long
///
/// The answers of [`find_by_digest`](KeyStore::find_by_digest), the call of every
/// request: keys, and, in a room of their own, digests without a key. Status, expiry
/// and address are still judged at each request. All other calls go to the store.
/// `last_used_at` in what is found may be behind; `get` and `list` have it right.
///
/// - Without a [`ChangeFeed`](crate::ChangeFeed), each answer is used for
///   `max_staleness` from the moment that the store was asked.
/// - With one, answers are used until the feed tells of a change, so that a key in
///   use costs the store nothing. Where the feed has given no proof for
///   `max_staleness` that it still tells everything (a lost connection, a half-open
///   socket, a pooler in between), the cache is dropped and every look-up goes to the
///   store until the proof is back. [`health`](CachedStore::health) says so.
///
/// Look-ups of one digest at one time share one call of the store. An answer that
/// took the store longer than `max_staleness` is refused as
/// [`StoreError::Unavailable`]: nobody knows whether it still holds.
///
/// Time is that of this machine's monotonic clock ([`Instant`](std::time::Instant)),
/// which no correction moves. On most systems it stands still while the machine is
/// suspended: what was kept before is as old afterwards as it was.
///
/// Clones share one cache. The feed is listened to until the last of them is dropped.
#[derive(Clone)]
pub struct CachedStore {
    store: Arc<dyn KeyStore>,
    entries: Arc<Entries>,
    flights: Arc<Flights>,
    listening: Option<Arc<Listening>>,
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
            absent_entries: self.entries.absent_count(),
        }
    }

    fn changing(&self, id: KeyId) -> Changing<'_> {
        Changing { entries: &self.entries, id: Some(id) }
    }
}

#[async_trait]
impl KeyStore for CachedStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        let changing = self.changing(key.id);
        changing.end(&key.org, self.store.insert(key, limit).await)
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        if let Some(found) = self.entries.find(digest) {
            return Ok(found);
        }
        // On the heap by itself, so that a hit does not pay for its size.
        Box::pin(self.flights.ask(&self.store, &self.entries, digest)).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let found = self.store.get(org, id).await?;
        // A caller who finds the key as it should be and changes nothing relies on that: it
        // may have been changed elsewhere, or by a call whose answer was lost.
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

/// How the cache does, and what the inner store is.
impl fmt::Debug for CachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore")
            .field("store", &self.store)
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

/// A change is under way. Once it is over the key's entry is void: also where it
/// failed and may have taken place, and where the call is dropped.
///
/// A call that was given up may still take place later, and a look-up in between is
/// kept with the old record. Nobody was told that such a change was made; the feed
/// tells of it, or `max_staleness` passes.
struct Changing<'a> {
    entries: &'a Entries,
    /// `None` once it is known that nothing was changed.
    id: Option<KeyId>,
}

impl Changing<'_> {
    /// Ends the change of a key of that organisation. A change that was refused changed
    /// nothing, and says that the key is not as the caller thought.
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
