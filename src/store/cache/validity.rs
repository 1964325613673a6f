//! Which answers of the store still hold: numbers in place of locks.
//!
//! Every change takes the next number. An answer carries the number of the last
//! change before the store was asked, and holds as long as none that concerns it has
//! a higher one. So an answer that was under way during a change may be kept, yet is
//! never given to anybody: what fills the cache, what reads it and what voids entries
//! need not wait for each other.
//!
//! `tests/cache_model.rs` compiles this file against loom's atomics and runs it in
//! every order; hence `super::atomic`, and nothing else of the crate.

use super::atomic::{AtomicU64, Ordering};

/// Whatever is trusted until then is trusted for good.
pub(super) const FOR_EVER: u64 = u64::MAX;

/// The last change before the store was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(u64);

#[derive(Debug)]
pub(super) struct Validity {
    /// The number of the latest change.
    latest: AtomicU64,
    /// That of the latest change to a key, for all keys that share a place.
    by_key: Box<[AtomicU64]>,
    /// That of the latest change that may concern every key.
    of_all: AtomicU64,
    /// Until when the cache may be used, where nothing new is heard.
    trusted_until: AtomicU64,
}

impl Validity {
    /// `places` is a power of two: more of them make it rarer that a change to one
    /// key voids the entry of another.
    pub(super) fn new(places: usize, trusted_until: u64) -> Self {
        Self {
            latest: AtomicU64::new(0),
            by_key: (0..places).map(|_| AtomicU64::new(0)).collect(),
            of_all: AtomicU64::new(0),
            trusted_until: AtomicU64::new(trusted_until),
        }
    }

    /// To be taken *before* the store is asked.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp(self.latest.load(Ordering::Acquire))
    }

    /// Whether nothing at all has changed since.
    pub(super) fn is_latest(&self, stamp: Stamp) -> bool {
        stamp == self.stamp()
    }

    /// That key was made, changed or removed. To be called *after* the store has it.
    pub(super) fn changed(&self, key: u64) {
        let number = self.latest.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(place) = self.place(key) {
            place.fetch_max(number, Ordering::AcqRel);
        }
    }

    /// Any key may have changed.
    pub(super) fn all_changed(&self) {
        let number = self.latest.fetch_add(1, Ordering::AcqRel) + 1;
        self.of_all.fetch_max(number, Ordering::AcqRel);
    }

    /// The cache may be used until then, or not at all from now on (0).
    pub(super) fn trust_until(&self, instant: u64) {
        self.trusted_until.store(instant, Ordering::Release);
    }

    /// Looks at entries, where the cache may be used now.
    ///
    /// The order matters, and so this is the only way to [`Reading`]: whoever sees
    /// how long the cache is trusted sees the changes that were told before that.
    pub(super) fn read(&self, now: u64) -> Option<Reading<'_>> {
        let trusted = now <= self.trusted_until.load(Ordering::Acquire);
        trusted.then_some(Reading(self))
    }

    fn place(&self, key: u64) -> Option<&AtomicU64> {
        let places = self.by_key.len() as u64;
        self.by_key.get((key & places.wrapping_sub(1)) as usize)
    }
}

/// One look-up in the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a>(&'a Validity);

impl Reading<'_> {
    /// Whether a record of that key is still the latest.
    pub(super) fn holds(self, stamp: Stamp, key: u64) -> bool {
        let changed = self.0.place(key).map(|place| place.load(Ordering::Acquire));
        let voided = self.0.of_all.load(Ordering::Acquire);
        changed.is_some_and(|changed| stamp.0 >= changed) && stamp.0 >= voided
    }

    /// Whether there is still no key with that digest. Any change may have made one.
    pub(super) fn holds_of_none(self, stamp: Stamp) -> bool {
        self.0.is_latest(stamp)
    }
}
