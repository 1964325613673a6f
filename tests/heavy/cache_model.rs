//! The cache's counters under every thread interleaving, by loom: a look-up that begins after a
//! change returned, or after the state of the key was seen, never returns the record from before.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

#[path = "../../src/store/cache/validity.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod validity;

/// The types from `validity.rs` that are shared between threads.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}

use loom::sync::{Arc, Mutex};
use loom::thread::{self, JoinHandle};
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
    /// The answer of a look-up under way, and when it asked.
    flight: Mutex<Option<(u64, Stamp)>>,
}

impl Setup {
    fn new(trusted_until: u64) -> Arc<Self> {
        Arc::new(Self {
            validity: Validity::new(2, trusted_until),
            store: Mutex::new(0),
            index: Mutex::new(()),
            kept: Mutex::new(None),
            kept_absence: Mutex::new(None),
            flight: Mutex::new(None),
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

fn spawn<T: 'static>(
    setup: &Arc<Setup>,
    work: impl FnOnce(&Setup) -> T + 'static,
) -> JoinHandle<T> {
    let setup = Arc::clone(setup);
    thread::spawn(move || work(&setup))
}

#[test]
fn case_30_a_late_fill_never_undoes_a_change() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        let filler = spawn(&setup, |setup| {
            setup.find(0);
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
        let changer = spawn(&setup, |setup| setup.change());
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
        let changer = spawn(&setup, |setup| setup.change());
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
        let other = spawn(&setup, |setup| {
            setup.validity.changed(OTHER);
            setup.validity.seen(OTHER);
            setup.find(0);
        });
        let changed = setup.change();
        assert!(setup.find(0) >= changed);
        other.join().unwrap();
        assert!(setup.find(0) >= changed);
    });
}

#[test]
fn no_late_absence_hides_a_key_that_was_created_or_seen() {
    let created: fn(&Setup) -> u64 = Setup::change;
    let seen: fn(&Setup) -> u64 = |setup| {
        setup.write();
        setup.see()
    };
    for learn in [created, seen] {
        loom::model(move || {
            let setup = Setup::new(FOR_EVER);
            let filler = spawn(&setup, |setup| {
                setup.exists();
            });
            assert_eq!(learn(&setup), 1);
            assert!(setup.exists());
            filler.join().unwrap();
            assert!(setup.exists());
        });
    }
}

/// Another process changes the key. This process learns of it by reading the key.
#[test]
fn after_a_read_of_the_key_no_older_revision_is_found() {
    loom::model(|| {
        let setup = Setup::new(FOR_EVER);
        setup.find(0);
        let filler = spawn(&setup, |setup| {
            setup.fill(0);
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
        let changer = spawn(&setup, |setup| setup.change());
        let seen = setup.see();
        assert!(setup.find(0) >= seen);
        let changed = changer.join().unwrap();
        assert!(setup.find(0) >= changed);
    });
}

/// A look-up does not take the answer of one that began before a change or a read.
#[test]
fn a_look_up_from_before_a_change_or_a_read_is_not_joined() {
    let change: fn(&Setup) -> u64 = Setup::change;
    let read: fn(&Setup) -> u64 = |setup| {
        setup.write();
        setup.see()
    };
    let is_unchanged: fn(&Setup, Stamp) -> bool = |setup, at| setup.validity.is_unchanged_since(at);
    let admits: fn(&Setup, Stamp) -> bool = |setup, at| setup.validity.admits(at, [KEY]);
    for (learn, may_join) in [(change, is_unchanged), (read, admits)] {
        loom::model(move || {
            let setup = Setup::new(FOR_EVER);
            let flyer = spawn(&setup, |setup| {
                let stamp = setup.validity.stamp();
                let revision = *setup.store.lock().unwrap();
                *setup.flight.lock().unwrap() = Some((revision, stamp));
            });
            let learnt = learn(&setup);
            let joined = *setup.flight.lock().unwrap();
            if let Some((revision, stamp)) = joined
                && may_join(&setup, stamp)
            {
                assert!(revision >= learnt);
            }
            flyer.join().unwrap();
        });
    }
}

/// Another process changes the key; the feed announces it before the proof. The cache was
/// trusted until 0 and then until 10. The time is 5.
#[test]
fn a_thread_that_sees_the_proof_sees_what_was_announced_or_missed_before_it() {
    for announced in [Setup::changed, Setup::drop_all] {
        loom::model(move || {
            let setup = Setup::new(FOR_EVER);
            setup.find(0);
            setup.validity.trust_until(0);
            let changed = setup.write();
            let feed = spawn(&setup, move |setup| {
                announced(setup);
                setup.validity.trust_until(10);
            });
            assert!(setup.find(5) >= changed, "long after the change");
            feed.join().unwrap();
            assert!(setup.find(5) >= changed);
        });
    }
}

#[test]
fn case_30_a_late_fill_is_void_after_missed_announcements() {
    loom::model(|| {
        let setup = Setup::new(10);
        let late = spawn(&setup, |setup| {
            setup.fill(5);
        });
        let changed = setup.write();
        setup.drop_all();
        setup.validity.trust_until(10);
        assert!(setup.find(5) >= changed);
        late.join().unwrap();
        assert!(setup.find(5) >= changed);
    });
}
