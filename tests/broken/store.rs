//! A store behind a mutex, with one fault.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use keygate::store::{Attributes, KeyDigest, KeyUse, OrgLimit, Revision};
use keygate::{ApiKey, KeyId, KeyStore, OrgId, Status, StoreError, Timestamp};

use super::fault::Fault;
use super::{gap, later};

/// See [`Fault`].
#[derive(Clone, Debug)]
pub(crate) struct BrokenStore {
    pub(super) fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) keys: HashMap<KeyId, ApiKey>,
    pub(super) by_digest: HashMap<KeyDigest, KeyId>,
    /// Old records that a fault still keeps.
    pub(super) ghosts: HashMap<KeyDigest, ApiKey>,
    pub(super) taken_digests: HashSet<KeyDigest>,
    pub(super) taken_ids: HashSet<KeyId>,
    pub(super) extra_places: HashMap<OrgId, isize>,
    pub(super) last_uses: HashMap<KeyId, Option<Timestamp>>,
    pub(super) cache: HashMap<KeyDigest, Arc<ApiKey>>,
    pub(super) writes: Vec<KeyId>,
    pub(super) locked: HashSet<KeyId>,
    pub(super) busy: bool,
    pub(super) openings: usize,
    /// Each key as it was first inserted.
    pub(super) first_versions: HashMap<KeyId, ApiKey>,
    pub(super) saved: HashMap<KeyId, ApiKey>,
}

impl BrokenStore {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, state: Arc::default() }
    }

    fn without_fault(&self) -> Self {
        Self { fault: Fault::Nothing, ..self.clone() }
    }

    pub(super) fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    pub(super) fn take_places(&mut self, org: &OrgId, places: isize) {
        *self.extra_places.entry(org.clone()).or_default() += places;
    }

    /// Whether this key ever existed.
    pub(super) fn was_here(&self, id: &KeyId) -> bool {
        self.writes.contains(id)
    }

    pub(super) fn put(&mut self, key: ApiKey) {
        self.first_versions.entry(key.id).or_insert_with(|| key.clone());
        for digest in key.digests() {
            self.by_digest.insert(digest, key.id);
            self.cache.remove(&digest);
        }
        self.writes.push(key.id);
        self.keys.insert(key.id, key);
    }

    fn remove(&mut self, id: &KeyId) -> Option<ApiKey> {
        let key = self.keys.remove(id)?;
        self.first_versions.remove(id);
        for digest in key.digests() {
            self.by_digest.remove(&digest);
            self.cache.remove(&digest);
        }
        Some(key)
    }
}

#[async_trait::async_trait]
impl KeyStore for BrokenStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        match self.fault {
            Fault::AnswersTooSoon => {
                let (store, key) = (self.without_fault(), key.clone());
                later(5, async move { store.insert(&key, limit).await });
                return Ok(());
            }
            Fault::ChangesAreLate => {
                let (store, key) = (self.without_fault(), key.clone());
                return later(60, async move { store.insert(&key, limit).await }).await.unwrap();
            }
            Fault::CountThenInsert => {
                self.check_room(&self.lock(), &key.org, limit)?;
                gap().await;
            }
            Fault::UniqueThenWrite => {
                self.check_unique(&mut self.lock(), key)?;
                gap().await;
            }
            Fault::HalfDoneWhenDropped => {
                let half = ApiKey { org: OrgId::new("unknown").unwrap(), ..key.clone() };
                self.lock().put(half);
                gap().await;
                self.lock().remove(&key.id);
            }
            Fault::BusyForEverWhenDropped => self.pass_through_busy().await?,
            _ => {}
        }
        let mut state = self.lock();
        if !self.is(Fault::UniqueThenWrite) {
            let unique = self.check_unique(&mut state, key);
            if unique.is_err() && self.is(Fault::ConflictTakesAPlace) {
                state.take_places(&key.org, 1);
            }
            unique?;
        }
        if !self.is(Fault::CountThenInsert) {
            self.check_room(&state, &key.org, limit)?;
        }
        let mut stored = self.stored(key);
        if self.is(Fault::InsertedKeysAreActive) {
            stored.status = Status::Active;
        }
        if self.is(Fault::UnknownAttributesAreDropped) {
            let mut known = Attributes::default();
            known.created_by = key.attributes.created_by.clone();
            known.metadata = key.attributes.metadata.clone();
            stored.attributes = known;
        }
        if let Some(last_use) = state.last_uses.get(&key.id) {
            stored.last_used_at = *last_use;
        }
        state.put(stored);
        Ok(())
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.check_busy()?;
        let cached = self.lock().cache.get(digest).cloned();
        if cached.is_some() && [Fault::LateCacheFill, Fault::FindIsCached].contains(&self.fault) {
            return Ok(cached);
        }
        let found = {
            let state = self.lock();
            let bytes = if self.is(Fault::DigestsInPart) { 31 } else { 32 };
            let matches =
                |key: &&ApiKey| key.digest.as_bytes()[..bytes] == digest.as_bytes()[..bytes];
            let indexed = state.by_digest.get(digest).and_then(|id| state.keys.get(id));
            let indexed = indexed.filter(|key| {
                let previous = key.previous.filter(|previous| match self.fault {
                    Fault::PreviousDigestIsNotFound => false,
                    Fault::PreviousDigestEndsInTheStore => {
                        previous.until > SystemTime::now().into()
                    }
                    _ => true,
                });
                key.digest == *digest || previous.is_some_and(|previous| previous.digest == *digest)
            });
            let found = indexed.or_else(|| state.keys.values().find(matches));
            let keeps_ghosts = matches!(
                self.fault,
                Fault::DeleteLeavesDigest | Fault::OldDigestLives | Fault::PreviousDigestLives
            );
            let ghost = state.ghosts.get(digest).filter(|_| keeps_ghosts);
            found.or(ghost).cloned().map(Arc::new)
        };
        if self.is(Fault::UnknownIsAnError) && found.is_none() {
            return Err(StoreError::NotFound);
        }
        if let Some(found) = &found {
            if self.is(Fault::LateCacheFill) {
                gap().await;
            }
            self.lock().cache.insert(*digest, Arc::clone(found));
        }
        let skip = self.is(Fault::FindSkipsRevoked);
        Ok(found.filter(|key| !skip || key.status == Status::Active))
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.check_busy()?;
        let state = self.lock();
        let found = match self.fault {
            Fault::GetIgnoresOrg => state.keys.get(id),
            _ => self.find(&state, org, id),
        };
        Ok(found.cloned().map(Arc::new))
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.check_busy()?;
        let state = self.lock();
        let leaks = self.is(Fault::ListLeaks);
        let own = state.keys.values().filter(|key| leaks || self.same_org(&key.org, org));
        let mut list: Vec<Arc<ApiKey>> = own.cloned().map(Arc::new).collect();
        let signed = |key: &Arc<ApiKey>| i128::from_be_bytes(key.id.to_bytes());
        let last_write = |key: &Arc<ApiKey>| state.writes.iter().rposition(|id| *id == key.id);
        list.sort_by_key(|key| (key.created_at, key.id));
        match self.fault {
            Fault::ListNewestFirst => list.reverse(),
            Fault::ListTiesAreSigned => list.sort_by_key(|key| (key.created_at, signed(key))),
            Fault::ListByLastChange => list.sort_by_key(last_write),
            Fault::ListStopsAtAHundred => list.truncate(100),
            _ => {}
        }
        Ok(list)
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        match self.fault {
            Fault::CheckThenReplace => {
                self.check_replace(&self.lock(), key, expected)?;
                gap().await;
            }
            Fault::UniqueThenWrite => {
                self.check_digest(&self.lock(), key)?;
                gap().await;
            }
            Fault::ChangesAreLate => {
                let (store, key) = (self.without_fault(), key.clone());
                let change = async move { store.replace(&key, expected).await };
                return later(60, change).await.unwrap();
            }
            Fault::HalfDoneWhenDropped | Fault::RotationHasAGap
                if self.check_replace(&self.lock(), key, expected).is_ok() =>
            {
                let old = self.lock().remove(&key.id);
                gap().await;
                old.into_iter().for_each(|old| self.lock().put(old));
            }
            Fault::BusyForEverWhenDropped => self.pass_through_busy().await?,
            Fault::OneWriterOrConflict => {
                let writes = self.lock().writes.len();
                gap().await;
                if self.lock().writes.len() != writes {
                    return Err(StoreError::Conflict);
                }
            }
            _ => {}
        }
        let mut state = self.lock();
        if !self.is(Fault::CheckThenReplace) {
            self.check_replace(&state, key, expected)?;
        }
        if !self.is(Fault::UniqueThenWrite) && !self.is(Fault::ReplaceTakesTakenDigest) {
            self.check_digest(&state, key)?;
        }
        let old = state.keys.get(&key.id).cloned().unwrap_or(key.clone());
        let mut new = ApiKey {
            created_at: old.created_at,
            last_used_at: old.last_used_at,
            org: old.org.clone(),
            ..self.stored(key)
        };
        match self.fault {
            Fault::ReplaceForgetsExpiry => new.expires_at = old.expires_at,
            Fault::ReplaceMovesCreation => new.created_at = key.created_at,
            Fault::ReplaceWritesLastUse => new.last_used_at = key.last_used_at,
            Fault::ReplaceTouchesAll => {
                let others = state.keys.values_mut().filter(|other| other.org == key.org);
                others.for_each(|other| other.status = key.status);
            }
            Fault::EveryWriteCounts => state.take_places(&key.org, 1),
            _ => {}
        }
        for digest in old.digests().filter(|digest| new.digests().all(|kept| kept != *digest)) {
            state.taken_digests.insert(digest);
            let lives = match self.fault {
                Fault::OldDigestLives => true,
                Fault::PreviousDigestLives => digest != old.digest,
                _ => false,
            };
            if lives {
                state.ghosts.insert(digest, old.clone());
            }
            state.by_digest.remove(&digest);
        }
        if !self.is(Fault::FindIsCached) {
            for digest in old.digests() {
                state.cache.remove(&digest);
            }
            state.put(new);
        } else {
            let cached = state.cache.get(&key.digest).cloned();
            state.put(new);
            state.cache.extend(cached.map(|cached| (key.digest, cached)));
        }
        Ok(())
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        match self.fault {
            Fault::ChangesAreLate => {
                let (store, org, id) = (self.without_fault(), org.clone(), *id);
                let change = async move { store.delete(&org, &id, expected).await };
                return later(60, change).await.unwrap();
            }
            Fault::CheckThenDelete | Fault::CheckRevisionThenDelete => {
                self.check_delete(&self.lock(), org, id, expected)?;
                gap().await;
            }
            Fault::HalfDoneWhenDropped => {
                self.check_delete(&self.lock(), org, id, expected)?;
                let hide = |hidden| self.lock().keys.get_mut(id).map(|key| key.digest = hidden);
                let digest = self.lock().keys[id].digest;
                hide(KeyDigest::of("gone"));
                gap().await;
                hide(digest);
            }
            Fault::BusyForEverWhenDropped => self.pass_through_busy().await?,
            _ => {}
        }
        let expected = expected.filter(|_| !self.is(Fault::CheckRevisionThenDelete));
        let mut state = self.lock();
        if let Err(error) = self.check_delete(&state, org, id, expected) {
            if self.is(Fault::EveryDeleteMakesRoom) {
                state.take_places(org, -1);
            }
            let fine = [Fault::DeleteOfUnknownIsFine, Fault::CheckThenDelete].contains(&self.fault);
            return if fine { Ok(()) } else { Err(error) };
        }
        let Some(key) = state.remove(id) else { return Err(StoreError::NotFound) };
        match self.fault {
            Fault::DeleteLeavesDigest
            | Fault::ExportKeepsDeleted
            | Fault::ReopenedWithDeletedKeys => {
                state.ghosts.insert(key.digest, key);
            }
            Fault::DeletedIdStaysTaken => {
                state.taken_ids.insert(*id);
            }
            Fault::DeleteLeavesLastUse => {
                state.last_uses.insert(*id, key.last_used_at);
            }
            Fault::DeletedKeysCount => state.take_places(org, 1),
            Fault::DeleteEmptiesOrg => state.keys.retain(|_, other| other.org != key.org),
            _ => {}
        }
        Ok(())
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        match self.fault {
            Fault::UsesAreLost => return Ok(()),
            Fault::UsesPanic => panic!("not implemented: uses"),
            Fault::EmptyBatchFails if uses.is_empty() => {
                return Err(StoreError::unavailable("syntax error: VALUES without a row"));
            }
            Fault::UseWritesWholeRecord | Fault::UseHidesTheKey => {
                for used in uses {
                    let found = match self.fault {
                        Fault::UseHidesTheKey => self.lock().keys.remove(&used.id),
                        _ => self.lock().keys.get(&used.id).cloned(),
                    };
                    let Some(mut key) = found else { continue };
                    gap().await;
                    if used.replaces(key.last_used_at) {
                        key.last_used_at = Some(used.at);
                    }
                    self.lock().put(key);
                }
                return Ok(());
            }
            Fault::UsesLockKeyByKey => self.lock_key_by_key(uses).await?,
            _ => {}
        }
        let mut state = self.lock();
        let gone = |used: &KeyUse| !state.keys.contains_key(&used.id);
        if self.is(Fault::GoneKeyFailsBatch) && uses.iter().any(gone) {
            return Err(StoreError::NotFound);
        }
        let org_of = |used: &KeyUse| state.keys.get(&used.id).map(|key| key.org.clone());
        let org_of_first = uses.first().and_then(org_of);
        let mut seen = HashSet::new();
        for (n, used) in uses.iter().enumerate() {
            let Some(key) = state.keys.get_mut(&used.id) else {
                if self.is(Fault::GoneKeyEndsBatch) { break } else { continue }
            };
            let again = !seen.insert(used.id);
            let skip = match self.fault {
                Fault::FirstUseInBatchCounts => again,
                Fault::UsesOfActiveKeysOnly => key.status != Status::Active,
                Fault::BatchOfOneOrg => Some(&key.org) != org_of_first.as_ref(),
                Fault::BatchStopsAtFiveHundred => n >= 500,
                _ => false,
            };
            let zero = Timestamp::from_unix_micros(0).unwrap();
            let moves = match self.fault {
                Fault::FirstUseIsComparedWithZero => {
                    used.replaces(Some(key.last_used_at.unwrap_or(zero)))
                }
                Fault::UsesGoBack => true,
                Fault::FutureUseStays => key.last_used_at < Some(used.at),
                _ => used.replaces(key.last_used_at),
            };
            if !skip && moves {
                key.last_used_at = Some(used.at);
                if self.is(Fault::UseRaisesRevision) {
                    key.revision = key.revision.next();
                }
                let digest = key.digest;
                state.cache.remove(&digest);
            }
        }
        state.locked.retain(|id| !seen.contains(id));
        Ok(())
    }
}
