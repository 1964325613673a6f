//! Decides which answers of the store may be cached, with sequence numbers instead of long
//! locks.
//!
//! Every change, and every time a key's state is seen, takes the next number. An answer
//! carries the latest number from before the store was asked, and is cached only if nothing
//! that concerns it has a higher one. This way the store is asked without a lock, and an
//! answer that was in flight during a change is never given to a later request.
//!
//! Numbers are stored by place, and several keys may share one. A collision may keep an
//! answer that is in flight out of the cache; it does not remove cached entries.
//!
//! `tests/heavy/cache_model.rs` compiles this file against loom's atomics and runs it in every
//! order. For that it uses `super::atomic`, and nothing else of the crate.

use super::atomic::{AtomicU64, Ordering};

/// The instant for trust without a time limit.
pub(super) const FOR_EVER: u64 = u64::MAX;

/// The latest number before the store was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(u64);

#[derive(Debug)]
pub(super) struct Validity {
    /// The latest number.
    latest: AtomicU64,
    /// The latest number of each place.
    places: Box<[AtomicU64]>,
    /// The number of the latest change of any key.
    change: AtomicU64,
    /// The number of the latest change that may concern every key.
    of_all: AtomicU64,
    /// When trust in the cache ends, unless it is renewed.
    trusted_until: AtomicU64,
}

impl Validity {
    /// `places` is a power of two.
    pub(super) fn new(places: usize, trusted_until: u64) -> Self {
        Self {
            latest: AtomicU64::new(0),
            places: (0..places).map(|_| AtomicU64::new(0)).collect(),
            change: AtomicU64::new(0),
            of_all: AtomicU64::new(0),
            trusted_until: AtomicU64::new(trusted_until),
        }
    }

    /// Must be called *before* the store is asked.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp(self.latest.load(Ordering::Acquire))
    }

    /// A key of this place was created, changed or removed. Must be called *after* the
    /// store has the change, and before entries are removed.
    pub(super) fn changed(&self, place: u64) {
        let number = self.seen(place);
        self.change.fetch_max(number, Ordering::AcqRel);
    }

    /// The store has shown the state of a key of this place, so no earlier answer may be
    /// cached. Must be called before entries are removed.
    pub(super) fn seen(&self, place: u64) -> u64 {
        let number = self.next();
        if let Some(place) = self.place(place) {
            place.fetch_max(number, Ordering::AcqRel);
        }
        number
    }

    /// Any key may have changed. Must be called before all entries are removed.
    pub(super) fn all_changed(&self) {
        let number = self.next();
        self.of_all.fetch_max(number, Ordering::AcqRel);
        self.change.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether an answer with this stamp and these places may be cached. Must be called
    /// under the lock under which entries are inserted and removed.
    pub(super) fn admits<const N: usize>(&self, stamp: Stamp, places: [u64; N]) -> bool {
        let is_old = |number: &AtomicU64| number.load(Ordering::Acquire) > stamp.0;
        !is_old(&self.of_all) && places.iter().all(|p| self.place(*p).is_some_and(|p| !is_old(p)))
    }

    /// Whether no key has changed since. A digest without a key may get one through any
    /// change.
    pub(super) fn is_unchanged_since(&self, stamp: Stamp) -> bool {
        stamp.0 >= self.change.load(Ordering::Acquire)
    }

    /// The cache may be used until this instant; 0 disables it now.
    pub(super) fn trust_until(&self, instant: u64) {
        self.trusted_until.store(instant, Ordering::Release);
    }

    /// Whether entries may be used now. Must be called *before* they are read: a caller
    /// that sees this instant also sees the changes announced before it.
    pub(super) fn is_trusted(&self, now: u64) -> bool {
        now <= self.trusted_until.load(Ordering::Acquire)
    }

    fn next(&self) -> u64 {
        self.latest.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn place(&self, place: u64) -> Option<&AtomicU64> {
        let places = self.places.len() as u64;
        self.places.get((place & places.wrapping_sub(1)) as usize)
    }
}
