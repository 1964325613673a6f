//! Keys in memory, for concurrent reads.

mod table;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::key::digest::{BuildUniformHasher, KeyDigest};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::runtime::clock::Timestamp;
use crate::store::key_store::{KeyStore, StoreError};
use crate::store::memory::table::Table;
use crate::store::search::{KeySearch, Search, SearchCursor, SearchPage};
use crate::store::transfer::{KeyExport, KeyImport};

/// A [`KeyStore`] in memory, for tests, and for services whose keys need not
/// survive a restart.
///
/// Changes are made one at a time, under a lock. A look-up by digest takes a lock, a
/// different one, only the first time in each thread. So threads that verify keys do not
/// slow each other down, and changes do not wait for them. A removed record stays in memory
/// for a while, but look-ups do not find it.
#[derive(Default)]
pub struct MemoryStore {
    /// Updated with `state`, which is locked on every change.
    by_digest: Table,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<KeyId, Arc<ApiKey>>,
    /// The last use of each key. Separate, so that a use does not modify what requests
    /// read.
    last_uses: HashMap<KeyId, Option<Timestamp>, BuildUniformHasher>,
    orgs: HashMap<OrgId, BTreeMap<(Timestamp, KeyId), KeyId>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows only the number of keys: they belong to all organisations.
impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.lock().keys.len();
        f.debug_struct("MemoryStore").field("keys", &keys).finish_non_exhaustive()
    }
}

impl State {
    fn get(&self, org: &OrgId, id: &KeyId) -> Option<&Arc<ApiKey>> {
        self.keys.get(id).filter(|key| key.org == *org)
    }

    /// The key with its last use.
    fn with_use(&self, key: &Arc<ApiKey>) -> Arc<ApiKey> {
        let last_used_at = self.last_uses.get(&key.id).copied().flatten();
        if last_used_at == key.last_used_at {
            return Arc::clone(key);
        }
        Arc::new(ApiKey { last_used_at, ..ApiKey::clone(key) })
    }
}

impl MemoryStore {
    fn insert_into(
        &self,
        state: &mut State,
        key: &ApiKey,
        limit: OrgLimit,
    ) -> Result<(), StoreError> {
        let mut digests = key.digests();
        if state.keys.contains_key(&key.id) || digests.any(|digest| self.by_digest.has(&digest)) {
            return Err(StoreError::Conflict);
        }
        let of_org = state.orgs.get(&key.org).map_or(0, BTreeMap::len);
        if !limit.admits_one_more(of_org) {
            return Err(StoreError::LimitReached);
        }
        let stored = Arc::new(key.clone());
        let order = (key.created_at, key.id);
        state.orgs.entry(key.org.clone()).or_default().insert(order, key.id);
        state.keys.insert(key.id, Arc::clone(&stored));
        state.last_uses.insert(key.id, key.last_used_at);
        self.by_digest.put(&stored);
        Ok(())
    }
}

#[async_trait]
impl KeyImport for MemoryStore {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        let mut state = self.lock();
        let insert = |key| self.insert_into(&mut state, key, OrgLimit::NONE).is_ok();
        Ok(keys.iter().map(insert).collect())
    }
}

#[async_trait]
impl KeyStore for MemoryStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.insert_into(&mut self.lock(), key, limit)
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.by_digest.find(digest))
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let state = self.lock();
        Ok(state.get(org, id).map(|key| state.with_use(key)))
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let state = self.lock();
        let ids = state.orgs.get(org).into_iter().flat_map(BTreeMap::values);
        Ok(ids.filter_map(|id| state.keys.get(id)).map(|key| state.with_use(key)).collect())
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let mut state = self.lock();
        let stored = state.get(&key.org, &key.id).ok_or(StoreError::NotFound)?;
        let is_own = |digest| stored.digests().any(|own| own == digest);
        let is_taken = |digest| !is_own(digest) && self.by_digest.has(&digest);
        if stored.revision != expected || key.digests().any(is_taken) {
            return Err(StoreError::Conflict);
        }
        let old = Arc::clone(stored);
        let changed = Arc::new(ApiKey {
            created_at: stored.created_at,
            last_used_at: state.last_uses.get(&key.id).copied().flatten(),
            ..key.clone()
        });
        state.keys.insert(key.id, Arc::clone(&changed));
        self.by_digest.replace(&old, &changed);
        Ok(())
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let mut state = self.lock();
        let stored = state.get(org, id).cloned().ok_or(StoreError::NotFound)?;
        if expected.is_some_and(|expected| expected != stored.revision) {
            return Err(StoreError::Conflict);
        }
        self.by_digest.remove(&stored);
        state.keys.remove(id);
        state.last_uses.remove(id);
        if let Some(order) = state.orgs.get_mut(org) {
            order.remove(&(stored.created_at, stored.id));
            if order.is_empty() {
                state.orgs.remove(org);
            }
        }
        Ok(())
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        let mut state = self.lock();
        for used in uses {
            if let Some(last_use) = state.last_uses.get_mut(&used.id)
                && used.replaces(*last_use)
            {
                *last_use = Some(used.at);
            }
        }
        Ok(())
    }
}

/// Looks at every key, since there are few.
#[async_trait]
impl KeySearch for MemoryStore {
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let state = self.lock();
        Ok(state.keys.get(id).map(|key| state.with_use(key)))
    }

    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError> {
        let state = self.lock();
        let keys = state.keys.values().map(|key| state.with_use(key));
        let matching = keys.filter(|key| search.matches(key));
        let mut found: Vec<_> = matching.map(|key| (search.place(&key), key)).collect();
        drop(state);
        found.retain(|(place, _)| after.is_none_or(|after| place > after));
        found.sort_by_key(|(place, _)| *place);
        found.truncate(limit);
        Ok(SearchPage::assemble(search, found, limit))
    }
}

#[async_trait]
impl KeyExport for MemoryStore {
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.lock();
        let keys = state.keys.range((begin, Bound::Unbounded));
        Ok(keys.take(limit).map(|(_, key)| state.with_use(key)).collect())
    }
}
