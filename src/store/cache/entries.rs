//! What the store has answered, bounded; and who may still be given it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Lifecycle, UnitWeighter};

use super::index::Index;
use super::validity::{Stamp, Validity};
use crate::key::digest::{BuildUniformHasher, KeyDigest};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::ApiKey;

/// A key, or that there is none with the digest.
pub(super) type Found = Option<Arc<ApiKey>>;

/// Enough that a busy stream of changes keeps few answers of other keys from being kept.
const PLACES: usize = 4096;

/// Numbers places. Random, so that no caller can aim at the place of another's key.
static NUMBERS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// When the store was asked: what was changed or seen before that, its answer shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) stamp: Stamp,
    /// In nanoseconds since the cache was made.
    pub(super) at: u64,
}

#[derive(Clone)]
struct Present {
    key: Arc<ApiKey>,
    asked: Asked,
}

pub(super) struct Entries {
    validity: Validity,
    /// Held while entries are kept or removed, and not while they are looked at.
    index: Mutex<Index>,
    /// Digests of keys that exist: nobody can choose them.
    present: Cache<KeyDigest, Present, UnitWeighter, BuildUniformHasher, Evicted>,
    /// Digests of whatever was presented: hashed so that nobody can aim at one place.
    absent: Cache<KeyDigest, Asked, UnitWeighter, RandomState>,
    epoch: Instant,
    max_staleness: u64,
    /// How old an entry may be; any age where a feed tells of changes.
    max_age: u64,
}

impl Entries {
    pub(super) fn new(
        max_staleness: Duration,
        entries: usize,
        absent_entries: usize,
        has_feed: bool,
    ) -> Self {
        let max_staleness = nanos(max_staleness);
        let (trusted_until, max_age) =
            if has_feed { (0, u64::MAX) } else { (super::validity::FOR_EVER, max_staleness) };
        Self {
            validity: Validity::new(PLACES, trusted_until),
            index: Mutex::default(),
            present: cache(entries, Evicted),
            absent: cache(absent_entries, DefaultLifecycle::default()),
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

    /// To be called before the store is asked.
    pub(super) fn asking(&self) -> Asked {
        Asked { stamp: self.validity.stamp(), at: self.now() }
    }

    /// Keeps an answer, unless the cache is bypassed, or something was changed or seen
    /// meanwhile that the answer may not show.
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
        // What was replaced is among them, too.
        evicted.retain(|(digest, _)| self.present.peek(digest).is_none());
        for (digest, present) in evicted {
            index.remove(present.key.id, &digest);
        }
    }

    /// Removes what is kept of the key and is void.
    fn void(&self, index: &mut Index, id: KeyId, is_void: impl Fn(&ApiKey) -> bool) {
        index.retain(id, |digest| {
            self.present.remove_if(digest, |kept| is_void(&kept.key)).is_none()
        });
    }

    /// Whether the answer shows all that was changed or seen until now.
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

    /// Whether a request that begins now may wait for the answer to this question, and
    /// then see whether it [is current](Self::is_current).
    ///
    /// Not after any change. Nor where the question is an old one: its answer may
    /// come too late, and a store that hangs should be asked again.
    pub(super) fn may_join(&self, asked: Asked) -> bool {
        self.validity.is_unchanged_since(asked.stamp) && self.age(asked) <= self.max_staleness / 2
    }

    /// Whether an answer that comes now is too old to be trusted.
    pub(super) fn is_too_old(&self, asked: Asked) -> bool {
        self.age(asked) > self.max_staleness
    }

    /// The key was made, changed or removed, or may have been.
    pub(super) fn changed(&self, id: KeyId) {
        self.validity.changed(NUMBERS.hash_one(id));
        self.void(&mut self.lock(), id, |_| true);
    }

    /// The store has this key. What is kept of it stays if it is the same, and from now
    /// on nothing older is given.
    pub(super) fn seen(&self, key: &ApiKey) {
        self.validity.seen(Self::place_of(&key.org, key.id));
        self.validity.seen(NUMBERS.hash_one(key.digest));
        let mut index = self.lock();
        self.void(&mut index, key.id, |kept| {
            (kept.revision, &kept.digest, &kept.org) != (key.revision, &key.digest, &key.org)
        });
        self.absent.remove(&key.digest);
    }

    /// The store has no such key of the organisation, or another version of it than the
    /// caller knows.
    pub(super) fn doubted(&self, org: &OrgId, id: KeyId) {
        self.validity.seen(Self::place_of(org, id));
        self.void(&mut self.lock(), id, |kept| kept.org == *org);
    }

    /// Every change that was finished before that instant has been told.
    pub(super) fn up_to_date(&self, as_of: Instant) {
        // A feed cannot know what is yet to come.
        let as_of = as_of.min(Instant::now());
        let until = as_of.checked_add(Duration::from_nanos(self.max_staleness));
        let until = until.and_then(|until| until.checked_duration_since(self.epoch));
        self.validity.trust_until(until.map_or(0, nanos));
    }

    /// Voids and frees everything. Nothing is kept until the next proof.
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

    /// A caller may name any id, and only in its own organisation: so it finds no place
    /// of another's key.
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

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").finish_non_exhaustive()
    }
}

/// Hands out what made room, for the index.
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

/// For 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::clock::Timestamp;
    use crate::key::name::KeyName;
    use crate::record::Revision;
    use proptest::prelude::*;

    fn key(id: u8, digest: u8, revision: u32) -> ApiKey {
        ApiKey {
            digest: KeyDigest::of([digest]),
            id: KeyId::from_bytes([id; 16]),
            org: OrgId::new("acme").unwrap(),
            name: KeyName::new("k").unwrap(),
            created_at: Timestamp::MIN,
            revision: Revision::new(revision),
            ..ApiKey::sample(0)
        }
    }

    proptest! {
        #[test]
        fn the_index_holds_what_is_kept_and_nothing_else(
            room in 0usize..40,
            steps in proptest::collection::vec((0u8..5, 0u8..60, 0u8..60, 0u32..3), 0..200),
        ) {
            let entries = Entries::new(Duration::from_secs(5), room, room, false);
            for (step, id, digest, revision) in steps {
                let key = key(id, digest, revision);
                match step {
                    0 => entries.changed(key.id),
                    1 => entries.doubted(&key.org, key.id),
                    2 => entries.seen(&key),
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
