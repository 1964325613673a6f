//! Which answers of the store may still be kept: numbers in place of long locks.
//!
//! Every change, and every sight of a key's state, takes the next number. An answer
//! carries the number of the last one before the store was asked, and is kept only if
//! none that concerns it has a higher one. So the store is asked without a lock, and an
//! answer that was under way during a change is never given to a later request.
//!
//! Numbers are noted by place, and several keys may share one. That costs an answer
//! which is under way its place in the cache, and no entry that is kept already.
//!
//! `tests/cache_model.rs` compiles this file against loom's atomics and runs it in
//! every order; hence `super::atomic`, and nothing else of the crate.

use super::atomic::{AtomicU64, Ordering};

/// Whatever is trusted until then is trusted for good.
pub(super) const FOR_EVER: u64 = u64::MAX;

/// The last change or sight before the store was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(u64);

#[derive(Debug)]
pub(super) struct Validity {
    /// The latest number.
    latest: AtomicU64,
    /// The latest number of all that share a place.
    places: Box<[AtomicU64]>,
    /// That of the latest change of any key.
    change: AtomicU64,
    /// That of the latest change that may concern every key.
    of_all: AtomicU64,
    /// Until when the cache may be used, where nothing new is heard.
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

    /// To be taken *before* the store is asked.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp(self.latest.load(Ordering::Acquire))
    }

    /// What is noted there was made, changed or removed. To be called *after* the store
    /// has it, and before entries are removed.
    pub(super) fn changed(&self, place: u64) {
        let number = self.seen(place);
        self.change.fetch_max(number, Ordering::AcqRel);
    }

    /// The store has shown the state of what is noted there, and no answer from before
    /// may be kept. To be called before entries are removed.
    pub(super) fn seen(&self, place: u64) -> u64 {
        let number = self.next();
        if let Some(place) = self.place(place) {
            place.fetch_max(number, Ordering::AcqRel);
        }
        number
    }

    /// Any key may have changed. To be called before all entries are removed.
    pub(super) fn all_changed(&self) {
        let number = self.next();
        self.of_all.fetch_max(number, Ordering::AcqRel);
        self.change.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether an answer with that stamp, to be noted at these places, may be kept. To
    /// be called under the lock under which entries are kept and removed.
    pub(super) fn admits<const N: usize>(&self, stamp: Stamp, places: [u64; N]) -> bool {
        let is_old = |number: &AtomicU64| number.load(Ordering::Acquire) > stamp.0;
        !is_old(&self.of_all) && places.iter().all(|p| self.place(*p).is_some_and(|p| !is_old(p)))
    }

    /// Whether no key has changed since. Any change may have made a key of a digest that
    /// had none.
    pub(super) fn is_unchanged_since(&self, stamp: Stamp) -> bool {
        stamp.0 >= self.change.load(Ordering::Acquire)
    }

    /// The cache may be used until then, or not at all from now on (0).
    pub(super) fn trust_until(&self, instant: u64) {
        self.trusted_until.store(instant, Ordering::Release);
    }

    /// Whether entries may be used now. To be called *before* they are looked at: a
    /// caller who sees how long the cache is trusted sees the changes told before that.
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
