//! The cache in every order that threads may take: no look-up that begins after a
//! change returned, or after the state of the key was seen, is given the record from
//! before, and none misses its answer.
//!
//! loom runs each case in all interleavings, and with all values that the memory
//! model lets a thread see.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "cache")]

#[path = "../src/store/cache/validity.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod validity;

/// What `validity.rs` shares between threads.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}

use loom::sync::{Arc, Mutex};
use loom::thread;
use validity::{FOR_EVER, Stamp, Validity};

const KEY: u64 = 0;
/// Shares no place with [`KEY`].
const OTHER: u64 = 1;

/// A store with one record, whose revisions are counted, and a cache of it: what
/// `Entries` and `SingleFlight` do, without the maps.
struct World {
    validity: Validity,
    store: Mutex<u64>,
    /// Held while something is kept or removed.
    index: Mutex<()>,
    kept: Mutex<Option<u64>>,
    /// When the store was asked; for a store where 0 means that there is no key.
    kept_absence: Mutex<Option<Stamp>>,
}

impl World {
    fn new(trusted_until: u64) -> Arc<Self> {
        Arc::new(Self {
            validity: Validity::new(2, trusted_until),
            store: Mutex::new(0),
            index: Mutex::new(()),
            kept: Mutex::new(None),
            kept_absence: Mutex::new(None),
        })
    }

    /// The revision that a look-up at that time gets.
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

    /// A change of this process. Gives the revision that it made.
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

    /// Reads the key itself, as `get` does. Gives the revision that it saw.
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
        let world = World::new(FOR_EVER);
        let filler = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.find(0);
            }
        });
        let changed = world.change();
        assert!(world.find(0) >= changed, "while the fill is under way");
        filler.join().unwrap();
        assert!(world.find(0) >= changed, "after the fill");
    });
}

#[test]
fn a_kept_record_is_void_before_a_change_returns() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        world.find(0);
        let changer = thread::spawn({
            let world = Arc::clone(&world);
            move || world.change()
        });
        world.find(0);
        let changed = changer.join().unwrap();
        assert!(world.find(0) >= changed);
    });
}

#[test]
fn two_changes_at_once_both_count() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        world.find(0);
        let changer = thread::spawn({
            let world = Arc::clone(&world);
            move || world.change()
        });
        let changed = world.change();
        assert!(world.find(0) >= changed);
        changer.join().unwrap();
        assert_eq!(world.find(0), 2);
    });
}

#[test]
fn changes_of_other_keys_do_no_harm() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        let other = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.validity.changed(OTHER);
                world.validity.seen(OTHER);
                world.find(0);
            }
        });
        let changed = world.change();
        assert!(world.find(0) >= changed);
        other.join().unwrap();
        assert!(world.find(0) >= changed);
    });
}

#[test]
fn no_late_absence_hides_a_new_key() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        let filler = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.exists();
            }
        });
        world.change();
        assert!(world.exists());
        filler.join().unwrap();
        assert!(world.exists());
    });
}

/// A change of another process, of which this one learns by reading the key.
#[test]
fn after_a_sight_of_the_key_nothing_older_is_found() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        world.find(0);
        let filler = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.fill(0);
            }
        });
        world.write();
        let seen = world.see();
        assert!(world.find(0) >= seen, "while a fill is under way");
        filler.join().unwrap();
        assert!(world.find(0) >= seen, "after the fill");
    });
}

#[test]
fn a_sight_and_a_change_at_once_both_count() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        world.find(0);
        let changer = thread::spawn({
            let world = Arc::clone(&world);
            move || world.change()
        });
        let seen = world.see();
        assert!(world.find(0) >= seen);
        let changed = changer.join().unwrap();
        assert!(world.find(0) >= changed);
    });
}

#[test]
fn no_late_absence_hides_a_key_that_was_seen() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        let filler = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.exists();
            }
        });
        world.write();
        assert_eq!(world.see(), 1);
        assert!(world.exists());
        filler.join().unwrap();
        assert!(world.exists());
    });
}

#[test]
fn an_answer_from_before_a_sight_is_not_taken_for_a_later_one() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        let flight = Arc::new(Mutex::new(None));
        let flyer = thread::spawn({
            let (world, flight) = (Arc::clone(&world), Arc::clone(&flight));
            move || {
                let stamp = world.validity.stamp();
                let revision = *world.store.lock().unwrap();
                *flight.lock().unwrap() = Some((revision, stamp));
            }
        });
        world.write();
        let seen = world.see();
        let joined = *flight.lock().unwrap();
        if let Some((revision, stamp)) = joined
            && world.validity.admits(stamp, [KEY])
        {
            assert!(revision >= seen);
        }
        flyer.join().unwrap();
    });
}

/// What began before a change is not joined by what begins after it.
#[test]
fn a_look_up_from_before_a_change_is_not_joined() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        let flight = Arc::new(Mutex::new(None));
        let flyer = thread::spawn({
            let (world, flight) = (Arc::clone(&world), Arc::clone(&flight));
            move || {
                let stamp = world.validity.stamp();
                let revision = *world.store.lock().unwrap();
                *flight.lock().unwrap() = Some((revision, stamp));
            }
        });
        let changed = world.change();
        let joined = *flight.lock().unwrap();
        if let Some((revision, stamp)) = joined
            && world.validity.is_unchanged_since(stamp)
        {
            assert!(revision >= changed);
        }
        flyer.join().unwrap();
    });
}

/// A change of another process, told by the feed before the proof. The cache was
/// trusted until 0 and then until 10; it is 5.
#[test]
fn who_sees_the_proof_sees_what_was_told_before_it() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        world.find(0);
        world.validity.trust_until(0);
        let changed = world.write();
        let feed = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.changed();
                world.validity.trust_until(10);
            }
        });
        assert!(world.find(5) >= changed, "long after the change");
        feed.join().unwrap();
        assert!(world.find(5) >= changed);
    });
}

#[test]
fn who_sees_the_proof_after_missed_news_sees_that_they_were_missed() {
    loom::model(|| {
        let world = World::new(FOR_EVER);
        world.find(0);
        world.validity.trust_until(0);
        let changed = world.write();
        let feed = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.drop_all();
                world.validity.trust_until(10);
            }
        });
        assert!(world.find(5) >= changed);
        feed.join().unwrap();
        assert!(world.find(5) >= changed);
    });
}

#[test]
fn case_30_a_late_fill_is_void_after_missed_news() {
    loom::model(|| {
        let world = World::new(10);
        let late = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.fill(5);
            }
        });
        let changed = world.write();
        world.drop_all();
        world.validity.trust_until(10);
        assert!(world.find(5) >= changed);
        late.join().unwrap();
        assert!(world.find(5) >= changed);
    });
}
