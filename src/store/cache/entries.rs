//! The cached answers of the store, and the checks of whether they are current.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Lifecycle, UnitWeighter};
use smallvec::SmallVec;

use super::validity::{Stamp, Validity};
use crate::key::digest::{BuildUniformHasher, KeyDigest};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::ApiKey;

/// A key, or `None` if no key has the digest.
pub(super) type Found = Option<Arc<ApiKey>>;

/// Enough that frequent changes rarely keep answers about other keys out of the cache.
const PLACES: usize = 4096;

/// Hashes keys to places. Random, so that no caller can target another key's place.
static NUMBERS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// When the store was asked. The answer includes all changes before that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) stamp: Stamp,
    /// In nanoseconds since the cache was created.
    pub(super) at: u64,
}

#[derive(Clone)]
struct Present {
    key: Arc<ApiKey>,
    asked: Asked,
}

pub(super) struct Entries {
    validity: Validity,
    /// Held while entries are inserted or removed, but not while they are read.
    index: Mutex<Index>,
    /// Digests of existing keys, which no caller can choose.
    present: Cache<KeyDigest, Present, UnitWeighter, BuildUniformHasher, Evicted>,
    /// Digests of presented credentials, hashed so that no caller can target a place.
    absent: Cache<KeyDigest, Asked, UnitWeighter, RandomState>,
    epoch: Instant,
    max_staleness: u64,
    /// The maximum age of an entry; unlimited if a feed announces changes.
    max_age: u64,
}

impl Entries {
    pub(super) fn new(
        max_staleness: Duration,
        entries: usize,
        negative_entries: usize,
        has_feed: bool,
    ) -> Self {
        let max_staleness = nanos(max_staleness);
        let (trusted_until, max_age) =
            if has_feed { (0, u64::MAX) } else { (super::validity::FOR_EVER, max_staleness) };
        Self {
            validity: Validity::new(PLACES, trusted_until),
            index: Mutex::default(),
            present: cache(entries, Evicted),
            absent: cache(negative_entries, DefaultLifecycle::default()),
            epoch: Instant::now(),
            max_staleness,
            max_age,
        }
    }

    pub(super) fn find(&self, digest: &KeyDigest) -> Option<Found> {
        let now = self.now();
        if !self.validity.is_trusted(now) {
            return None;
        }
        let is_young = |asked: Asked| now.saturating_sub(asked.at) <= self.max_age;
        if let Some(Present { key, asked }) = self.present.get(digest)
            && is_young(asked)
        {
            return Some(Some(key));
        }
        let asked = self.absent.get(digest)?;
        (is_young(asked) && self.validity.is_unchanged_since(asked.stamp)).then_some(None)
    }

    /// Must be called before the store is asked.
    pub(super) fn asking(&self) -> Asked {
        Asked { stamp: self.validity.stamp(), at: self.now() }
    }

    /// Caches an answer, unless the cache is bypassed or the answer may lack a change that
    /// was made or seen in the meantime.
    pub(super) fn keep(&self, digest: KeyDigest, asked: Asked, found: &Found) {
        if self.is_bypassed() {
            return;
        }
        let mut index = self.lock();
        if !self.is_current(&digest, asked, found) {
            return;
        }
        let is_newer = |kept: Asked| kept.stamp <= asked.stamp;
        match found {
            Some(key) => {
                if self.present.peek(&digest).is_none_or(|kept| is_newer(kept.asked)) {
                    self.keep_present(&mut index, digest, Present { key: Arc::clone(key), asked });
                }
            }
            None => {
                if self.absent.peek(&digest).is_none_or(is_newer) {
                    self.absent.insert(digest, asked);
                }
            }
        }
    }

    fn keep_present(&self, index: &mut Index, digest: KeyDigest, present: Present) {
        let Present { key, .. } = &present;
        if let Some(kept) = self.present.peek(&digest) {
            index.remove(kept.key.id, &digest);
        }
        self.void(index, key.id, |kept| kept.revision != key.revision);
        index.add(key.id, digest);
        let mut evicted = Vec::new();
        self.present.insert_with_lifecycle(digest, present, &mut evicted);
        // A replaced entry is reported as evicted, too.
        evicted.retain(|(digest, _)| self.present.peek(digest).is_none());
        for (digest, present) in evicted {
            index.remove(present.key.id, &digest);
        }
    }

    /// Removes the key's entries that are out of date.
    fn void(&self, index: &mut Index, id: KeyId, is_void: impl Fn(&ApiKey) -> bool) {
        index.retain(id, |digest| {
            self.present.remove_if(digest, |kept| is_void(&kept.key)).is_none()
        });
    }

    /// Whether the answer includes all changes that were made or seen until now.
    pub(super) fn is_current(&self, digest: &KeyDigest, asked: Asked, found: &Found) -> bool {
        match found {
            Some(key) => {
                let places = [NUMBERS.hash_one(key.id), Self::place_of(&key.org, key.id)];
                self.validity.admits(asked.stamp, places)
            }
            None => {
                self.validity.is_unchanged_since(asked.stamp)
                    && self.validity.admits(asked.stamp, [NUMBERS.hash_one(digest)])
            }
        }
    }

    /// Whether a request that begins now may wait for the answer to this question, and then
    /// check whether it [is current](Self::is_current).
    ///
    /// Not after any change, and not if the question is old: its answer may come too late,
    /// and a store that hangs should be asked again.
    pub(super) fn may_join(&self, asked: Asked) -> bool {
        self.validity.is_unchanged_since(asked.stamp) && self.age(asked) <= self.max_staleness / 2
    }

    /// Whether an answer that arrives now is too old to be trusted.
    pub(super) fn is_too_old(&self, asked: Asked) -> bool {
        self.age(asked) > self.max_staleness
    }

    /// The key was created, changed or removed, or may have been.
    pub(super) fn changed(&self, id: KeyId) {
        self.validity.changed(NUMBERS.hash_one(id));
        self.void(&mut self.lock(), id, |_| true);
    }

    /// The store has this key. Its entry stays if it is the same, and from now on no older
    /// version is returned.
    pub(super) fn seen(&self, key: &ApiKey) {
        self.validity.seen(Self::place_of(&key.org, key.id));
        for digest in key.digests() {
            self.validity.seen(NUMBERS.hash_one(digest));
        }
        let mut index = self.lock();
        self.void(&mut index, key.id, |kept| {
            let secrets = |key: &ApiKey| (key.digest, key.previous);
            (kept.revision, secrets(kept), &kept.org) != (key.revision, secrets(key), &key.org)
        });
        for digest in key.digests() {
            self.absent.remove(&digest);
        }
    }

    /// The organisation has no such key in the store, or a version of it that the caller
    /// does not know.
    pub(super) fn doubted(&self, org: &OrgId, id: KeyId) {
        self.validity.seen(Self::place_of(org, id));
        self.void(&mut self.lock(), id, |kept| kept.org == *org);
    }

    /// Every change that was finished before this instant has been announced.
    pub(super) fn up_to_date(&self, as_of: Instant) {
        // A feed cannot know the future.
        let as_of = as_of.min(Instant::now());
        let until = as_of.checked_add(Duration::from_nanos(self.max_staleness));
        let until = until.and_then(|until| until.checked_duration_since(self.epoch));
        self.validity.trust_until(until.map_or(0, nanos));
    }

    /// Invalidates and frees all entries. Nothing is cached until the feed is up to date
    /// again.
    pub(super) fn drop_all(&self) {
        self.validity.trust_until(0);
        self.validity.all_changed();
        let mut index = self.lock();
        index.clear();
        self.present.clear();
        self.absent.clear();
    }

    pub(super) fn is_bypassed(&self) -> bool {
        !self.validity.is_trusted(self.now())
    }

    pub(super) fn count(&self) -> usize {
        self.present.len()
    }

    pub(super) fn absent_count(&self) -> usize {
        self.absent.len()
    }

    /// A caller may pass any id, but only with its own organisation, so it cannot target
    /// the place of another's key.
    fn place_of(org: &OrgId, id: KeyId) -> u64 {
        NUMBERS.hash_one((org, id))
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn age(&self, asked: Asked) -> u64 {
        self.now().saturating_sub(asked.at)
    }

    fn now(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }
}

/// The digests under which each key is cached: one, or two during an overlap and briefly
/// after a rotation.
#[derive(Debug, Default)]
struct Index(HashMap<KeyId, SmallVec<[KeyDigest; 1]>>);

impl Index {
    fn add(&mut self, id: KeyId, digest: KeyDigest) {
        let digests = self.0.entry(id).or_default();
        if !digests.contains(&digest) {
            digests.push(digest);
        }
    }

    fn remove(&mut self, id: KeyId, digest: &KeyDigest) {
        self.retain(id, |other| other != digest);
    }

    fn retain(&mut self, id: KeyId, mut stays: impl FnMut(&KeyDigest) -> bool) {
        if let Entry::Occupied(mut digests) = self.0.entry(id) {
            digests.get_mut().retain(|digest| stays(digest));
            if digests.get().is_empty() {
                digests.remove();
            }
        }
    }

    fn clear(&mut self) {
        self.0 = HashMap::new();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.values().map(|digests| digests.len()).sum()
    }
}

/// Collects evicted entries for the index.
#[derive(Clone, Debug)]
struct Evicted;

impl Lifecycle<KeyDigest, Present> for Evicted {
    type RequestState = Vec<(KeyDigest, Present)>;

    fn on_evict(&self, evicted: &mut Self::RequestState, digest: KeyDigest, present: Present) {
        evicted.push((digest, present));
    }
}

fn cache<V, B, L>(entries: usize, lifecycle: L) -> Cache<KeyDigest, V, UnitWeighter, B, L>
where
    V: Clone,
    B: Default + Clone + BuildHasher,
    L: Lifecycle<KeyDigest, V> + Clone,
{
    Cache::with(entries, entries as u64, UnitWeighter, B::default(), lifecycle)
}

/// Overflows after 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::key::name::KeyName;
    use crate::record::{PreviousSecret, Revision};
    use crate::runtime::clock::Timestamp;
    use proptest::prelude::*;

    fn key(id: u8, digest: u8, revision: u32) -> ApiKey {
        ApiKey {
            digest: KeyDigest::of([digest]),
            id: KeyId::from_bytes([id; 16]),
            org: OrgId::new("acme").unwrap(),
            name: KeyName::new("k").unwrap(),
            created_at: Timestamp::MIN,
            revision: Revision::new(revision),
            previous: Some(PreviousSecret {
                digest: KeyDigest::of([digest, 1]),
                until: Timestamp::MAX,
            }),
            ..ApiKey::sample(0)
        }
    }

    proptest! {
        #[test]
        fn the_index_holds_exactly_the_kept_entries(
            room in 0usize..40,
            steps in proptest::collection::vec((0u8..7, 0u8..60, 0u8..60, 0u32..3), 0..200),
        ) {
            let entries = Entries::new(Duration::from_secs(5), room, room, false);
            for (step, id, digest, revision) in steps {
                let key = key(id, digest, revision);
                match step {
                    0 => entries.changed(key.id),
                    1 => entries.doubted(&key.org, key.id),
                    2 => entries.seen(&key),
                    3 => {
                        let digest = KeyDigest::of([digest, 1]);
                        entries.keep(digest, entries.asking(), &Some(Arc::new(key)));
                    }
                    _ => entries.keep(key.digest, entries.asking(), &Some(Arc::new(key))),
                }
                let mut index = entries.lock();
                prop_assert_eq!(index.len(), entries.present.len());
                for (digest, present) in entries.present.iter() {
                    let mut is_there = false;
                    index.retain(present.key.id, |other| {
                        is_there |= *other == digest;
                        true
                    });
                    prop_assert!(is_there);
                }
            }
        }
    }
}
