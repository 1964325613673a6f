//! What the store has answered, bounded; and who may still be given it.

use std::fmt;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use super::validity::{Stamp, Validity};
use crate::key::digest::{BuildUniformHasher, KeyDigest};
use crate::key::id::KeyId;
use crate::record::ApiKey;

/// A key, or that there is none with the digest.
pub(super) type Found = Option<Arc<ApiKey>>;

/// Enough that a busy stream of changes voids few entries of other keys.
const PLACES: usize = 1024;

/// When the store was asked: before that instant and that change, it knew no other.
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
    /// Digests of keys that exist: nobody can choose them.
    present: Cache<KeyDigest, Present, UnitWeighter, BuildUniformHasher>,
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
            present: cache(entries),
            absent: cache(absent_entries),
            epoch: Instant::now(),
            max_staleness,
            max_age,
        }
    }

    pub(super) fn find(&self, digest: &KeyDigest) -> Option<Found> {
        let now = self.now();
        let reading = self.validity.read(now)?;
        let is_young = |asked: Asked| now.saturating_sub(asked.at) <= self.max_age;
        if let Some(Present { key, asked }) = self.present.get(digest)
            && is_young(asked)
            && reading.holds(asked.stamp, bits(key.id))
        {
            return Some(Some(key));
        }
        let asked = self.absent.get(digest)?;
        (is_young(asked) && reading.holds_of_none(asked.stamp)).then_some(None)
    }

    /// To be called before the store is asked.
    pub(super) fn asking(&self) -> Asked {
        Asked { stamp: self.validity.stamp(), at: self.now() }
    }

    /// Keeps an answer, unless the cache is bypassed. It may be void already: that
    /// is for `find` to see.
    pub(super) fn keep(&self, digest: KeyDigest, asked: Asked, found: &Found) {
        if self.is_bypassed() {
            return;
        }
        // Two answers at once may still come in the wrong order: then the store is
        // asked once more than need be.
        let is_newer = |kept: Asked| kept.stamp <= asked.stamp;
        match found {
            Some(key) => {
                if self.present.peek(&digest).is_none_or(|kept| is_newer(kept.asked)) {
                    self.present.insert(digest, Present { key: Arc::clone(key), asked });
                }
            }
            None => {
                if self.absent.peek(&digest).is_none_or(is_newer) {
                    self.absent.insert(digest, asked);
                }
            }
        }
    }

    /// Whether a request that begins now may be given an answer to this question.
    ///
    /// Not after any change. Nor where the question is an old one: its answer may
    /// come too late, and a store that hangs should be asked again.
    pub(super) fn may_join(&self, asked: Asked) -> bool {
        self.validity.is_latest(asked.stamp) && self.age(asked) <= self.max_staleness / 2
    }

    /// Whether an answer that comes now is too old to be trusted.
    pub(super) fn is_too_old(&self, asked: Asked) -> bool {
        self.age(asked) > self.max_staleness
    }

    pub(super) fn changed(&self, id: KeyId) {
        self.validity.changed(bits(id));
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
        self.present.clear();
        self.absent.clear();
    }

    pub(super) fn is_bypassed(&self) -> bool {
        self.validity.read(self.now()).is_none()
    }

    pub(super) fn count(&self) -> usize {
        self.present.len()
    }

    pub(super) fn absent_count(&self) -> usize {
        self.absent.len()
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

fn cache<V: Clone, B: Default + Clone + std::hash::BuildHasher>(
    entries: usize,
) -> Cache<KeyDigest, V, UnitWeighter, B> {
    let lifecycle = DefaultLifecycle::default();
    Cache::with(entries, entries as u64, UnitWeighter, B::default(), lifecycle)
}

/// Ids of this crate are random; those of an import may be counted upwards or begin
/// with the time. The upper bits of the product, of which there are enough for any
/// number of places up to 65,536.
fn bits(id: KeyId) -> u64 {
    let id = u128::from_be_bytes(id.to_bytes());
    let folded = (id as u64) ^ (id >> 64) as u64;
    folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48
}

/// For 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
