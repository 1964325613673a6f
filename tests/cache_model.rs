//! The cache under every thread interleaving: a look-up that begins after a change returned,
//! or after the state of the key was seen, never returns the record from before, and no
//! look-up misses its answer.
//!
//! loom runs each case in all interleavings, with all values that the memory model lets a
//! thread see.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "cache")]

#[path = "../src/store/cache/validity.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod validity;

/// The types from `validity.rs` that are shared between threads.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}

use loom::sync::{Arc, Mutex};
use loom::thread;
use validity::{FOR_EVER, Stamp, Validity};

const KEY: u64 = 0;
/// An id that shares no slot with [`KEY`].
const OTHER: u64 = 1;

/// A store with one record whose revisions are counted, and a cache of it: the logic of
/// `Entries` and `SingleFlight` without the maps.
struct Setup {
    validity: Validity,
    store: Mutex<u64>,
    /// Locked while an entry is added or removed.
    index: Mutex<()>,
    kept: Mutex<Option<u64>>,
    /// When the store was asked, for a store in which 0 means that there is no key.
    kept_absence: Mutex<Option<Stamp>>,
}

impl Setup {
    fn new(trusted_until: u64) -> Arc<Self> {
        Arc::new(Self {
            validity: Validity::new(2, trusted_until),
            store: Mutex::new(0),
            index: Mutex::new(()),
            kept: Mutex::new(None),
            kept_absence: Mutex::new(None),
        })
    }

    /// The revision that a look-up at that time returns.
    fn find(&self, now: u64) -> u64 {
        self.find_kept(now).unwrap_or_else(|| self.fill(now))
    }

    fn find_kept(&self, now: u64) -> Option<u64> {
        if !self.validity.is_trusted(now) {
            return None;
        }
        *self.kept.lock().unwrap()
    }

    fn fill(&self, now: u64) -> u64 {
        let stamp = self.validity.stamp();
        let revision = *self.store.lock().unwrap();
        if self.validity.is_trusted(now) {
            let _index = self.index.lock().unwrap();
            if self.validity.admits(stamp, [KEY]) {
                *self.kept.lock().unwrap() = Some(revision);
            }
        }
        revision
    }

    fn exists(&self) -> bool {
        let kept = *self.kept_absence.lock().unwrap();
        if kept.is_some_and(|stamp| self.validity.is_unchanged_since(stamp)) {
            return false;
        }
        let stamp = self.validity.stamp();
        let exists = *self.store.lock().unwrap() != 0;
        if !exists {
            let _index = self.index.lock().unwrap();
            if self.validity.admits(stamp, [KEY]) {
                *self.kept_absence.lock().unwrap() = Some(stamp);
            }
        }
        exists
    }

    fn write(&self) -> u64 {
        let mut revision = self.store.lock().unwrap();
        *revision += 1;
        *revision
    }

    /// Makes a change in this process. Returns the new revision.
    fn change(&self) -> u64 {
        let revision = self.write();
        self.changed();
        revision
    }

    fn changed(&self) {
        self.validity.changed(KEY);
        let _index = self.index.lock().unwrap();
        *self.kept.lock().unwrap() = None;
    }

    fn drop_all(&self) {
        self.validity.trust_until(0);
        self.validity.all_changed();
        let _index = self.index.lock().unwrap();
        *self.kept.lock().unwrap() = None;
    }

    /// Reads the key itself, like `get`. Returns the revision that it saw.
    fn see(&self) -> u64 {
        let seen = *self.store.lock().unwrap();
        self.validity.seen(KEY);
        let _index = self.index.lock().unwrap();
        let mut kept = self.kept.lock().unwrap();
        *kept = kept.filter(|kept| *kept == seen);
        if seen != 0 {
            *self.kept_absence.lock().unwrap() = None;
        }
        seen
    }
}

#[test]
fn case_30_a_late_fill_never_undoes_a_change() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        let filler = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.find(0);
            }
        });
        let changed = setup.change();
        assert!(setup.find(0) >= changed, "while the fill is under way");
        filler.join().unwrap();
        assert!(setup.find(0) >= changed, "after the fill");
    });
}

#[test]
fn a_cached_record_is_void_before_a_change_returns() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        setup.find(0);
        let changer = thread::spawn({
            let setup = Arc::clone(&setup);
            move || setup.change()
        });
        setup.find(0);
        let changed = changer.join().unwrap();
        assert!(setup.find(0) >= changed);
    });
}

#[test]
fn two_concurrent_changes_both_take_effect() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        setup.find(0);
        let changer = thread::spawn({
            let setup = Arc::clone(&setup);
            move || setup.change()
        });
        let changed = setup.change();
        assert!(setup.find(0) >= changed);
        changer.join().unwrap();
        assert_eq!(setup.find(0), 2);
    });
}

#[test]
fn changes_of_other_keys_have_no_effect() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        let other = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.validity.changed(OTHER);
                setup.validity.seen(OTHER);
                setup.find(0);
            }
        });
        let changed = setup.change();
        assert!(setup.find(0) >= changed);
        other.join().unwrap();
        assert!(setup.find(0) >= changed);
    });
}

#[test]
fn no_late_absence_hides_a_new_key() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        let filler = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.exists();
            }
        });
        setup.change();
        assert!(setup.exists());
        filler.join().unwrap();
        assert!(setup.exists());
    });
}

/// Another process changes the key. This process learns of it by reading the key.
#[test]
fn after_a_read_of_the_key_no_older_revision_is_found() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        setup.find(0);
        let filler = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.fill(0);
            }
        });
        setup.write();
        let seen = setup.see();
        assert!(setup.find(0) >= seen, "while a fill is under way");
        filler.join().unwrap();
        assert!(setup.find(0) >= seen, "after the fill");
    });
}

#[test]
fn a_concurrent_read_and_change_both_take_effect() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        setup.find(0);
        let changer = thread::spawn({
            let setup = Arc::clone(&setup);
            move || setup.change()
        });
        let seen = setup.see();
        assert!(setup.find(0) >= seen);
        let changed = changer.join().unwrap();
        assert!(setup.find(0) >= changed);
    });
}

#[test]
fn no_late_absence_hides_a_key_that_was_seen() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        let filler = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.exists();
            }
        });
        setup.write();
        assert_eq!(setup.see(), 1);
        assert!(setup.exists());
        filler.join().unwrap();
        assert!(setup.exists());
    });
}

#[test]
fn an_answer_from_before_a_read_is_not_reused_after_it() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        let flight = Arc::new(Mutex::new(None));
        let flyer = thread::spawn({
            let (setup, flight) = (Arc::clone(&setup), Arc::clone(&flight));
            move || {
                let stamp = setup.validity.stamp();
                let revision = *setup.store.lock().unwrap();
                *flight.lock().unwrap() = Some((revision, stamp));
            }
        });
        setup.write();
        let seen = setup.see();
        let joined = *flight.lock().unwrap();
        if let Some((revision, stamp)) = joined
            && setup.validity.admits(stamp, [KEY])
        {
            assert!(revision >= seen);
        }
        flyer.join().unwrap();
    });
}

/// A look-up that begins after a change does not join one from before it.
#[test]
fn a_look_up_from_before_a_change_is_not_joined() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        let flight = Arc::new(Mutex::new(None));
        let flyer = thread::spawn({
            let (setup, flight) = (Arc::clone(&setup), Arc::clone(&flight));
            move || {
                let stamp = setup.validity.stamp();
                let revision = *setup.store.lock().unwrap();
                *flight.lock().unwrap() = Some((revision, stamp));
            }
        });
        let changed = setup.change();
        let joined = *flight.lock().unwrap();
        if let Some((revision, stamp)) = joined
            && setup.validity.is_unchanged_since(stamp)
        {
            assert!(revision >= changed);
        }
        flyer.join().unwrap();
    });
}

/// Another process changes the key; the feed announces it before the proof. The cache was
/// trusted until 0 and then until 10. The time is 5.
#[test]
fn a_thread_that_sees_the_proof_sees_the_changes_announced_before_it() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        setup.find(0);
        setup.validity.trust_until(0);
        let changed = setup.write();
        let feed = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.changed();
                setup.validity.trust_until(10);
            }
        });
        assert!(setup.find(5) >= changed, "long after the change");
        feed.join().unwrap();
        assert!(setup.find(5) >= changed);
    });
}

#[test]
fn a_thread_that_sees_the_proof_sees_that_announcements_were_missed() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        setup.find(0);
        setup.validity.trust_until(0);
        let changed = setup.write();
        let feed = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.drop_all();
                setup.validity.trust_until(10);
            }
        });
        assert!(setup.find(5) >= changed);
        feed.join().unwrap();
        assert!(setup.find(5) >= changed);
    });
}

#[test]
fn case_30_a_late_fill_is_void_after_missed_announcements() {
    loom::model(|| {
        let setup = Setup::new(10);
        let late = thread::spawn({
            let setup = Arc::clone(&setup);
            move || {
                setup.fill(5);
            }
        });
        let changed = setup.write();
        setup.drop_all();
        setup.validity.trust_until(10);
        assert!(setup.find(5) >= changed);
        late.join().unwrap();
        assert!(setup.find(5) >= changed);
    });
}
