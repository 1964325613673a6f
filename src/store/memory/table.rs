//! Keys by digest, in two copies: threads read one while the other is changed.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use left_right::{Absorb, ReadHandle, ReadHandleFactory, WriteHandle};
use thread_local::ThreadLocal;

use crate::key::digest::{BuildUniformHasher, KeyDigest};
use crate::record::ApiKey;

/// The records themselves are shared by both copies, and lie where their digests lie:
/// whoever has found one has what a verification reads.
#[derive(Clone, Default)]
struct Table(HashSet<ByDigest, BuildUniformHasher>);

// Nothing beside it: a digest's first word would spare a table that grows the reading of
// every record, and cost each look-up a fifth, since the table is twice as large then.
#[derive(Clone)]
struct ByDigest(Arc<ApiKey>);

/// What takes place at once, as far as readers can tell.
struct Change {
    gone: Option<KeyDigest>,
    present: Option<Arc<ApiKey>>,
}

/// An empty table.
pub(super) fn new() -> (Writer, Readers) {
    let (writer, reader) = left_right::new_from_empty(Table::default());
    (Writer(writer), Readers { factory: reader.factory(), threads: ThreadLocal::new() })
}

/// The one that changes the table.
pub(super) struct Writer(WriteHandle<Table, Change>);

impl Writer {
    /// Puts a record in place of that with the same digest, or of the one with the
    /// digest that is gone.
    pub(super) fn put(&mut self, key: Arc<ApiKey>, gone: Option<KeyDigest>) {
        self.publish(Change { gone, present: Some(key) });
    }

    pub(super) fn remove(&mut self, gone: KeyDigest) {
        self.publish(Change { gone: Some(gone), present: None });
    }

    /// Waits for those who still read what the change before this one replaced, also while
    /// the system has interrupted them. What is gone is freed with the next change; a
    /// thread that was busy with it frees its copy when it needs the place.
    fn publish(&mut self, change: Change) {
        self.0.append(change);
        self.0.publish();
    }
}

impl Absorb<Change> for Table {
    fn absorb_first(&mut self, change: &mut Change, _: &Self) {
        if let Some(gone) = &change.gone {
            self.0.remove(gone);
        }
        if let Some(key) = &change.present {
            self.0.replace(ByDigest(Arc::clone(key)));
        }
    }

    fn sync_with(&mut self, first: &Self) {
        self.clone_from(first);
    }
}

/// Every thread reads with a handle of its own. To get it, the first time, it may have to
/// wait for a change that takes place.
pub(super) struct Readers {
    factory: ReadHandleFactory<Table>,
    threads: ThreadLocal<Reader>,
}

impl Readers {
    pub(super) fn find(&self, digest: &KeyDigest) -> Option<Arc<ApiKey>> {
        let reader = self.of_this_thread();
        // There is no table only once the writer is gone.
        let table = reader.handle.enter()?;
        table.0.get(digest).map(|ByDigest(key)| reader.own(key))
    }

    pub(super) fn has(&self, digest: &KeyDigest) -> bool {
        self.of_this_thread().handle.enter().is_some_and(|table| table.0.contains(digest))
    }

    fn of_this_thread(&self) -> &Reader {
        self.threads.get_or(|| Reader::new(self.factory.handle()))
    }
}

/// On cache lines of its own: what one thread writes here no other has near.
#[repr(align(128))]
struct Reader {
    handle: ReadHandle<Table>,
    hot: RefCell<[Hot; HOT]>,
}

/// So many keys at a time can be hot for a thread.
const HOT: usize = 16;
/// So often on end must a thread be asked for a key before a copy pays.
const OFTEN: u32 = 8;

/// A place for one of the keys that a thread is asked for time and again.
///
/// Threads that count references to one and the same record slow each other, however
/// little they do: so each has a copy of its own of the records that it is busy with.
#[derive(Default)]
struct Hot {
    /// The last key of this place that had no copy here, and how often on end.
    last: u64,
    times: u32,
    /// The record in the table, and the copy.
    copy: Option<[Arc<ApiKey>; 2]>,
}

impl Reader {
    fn new(handle: ReadHandle<Table>) -> Self {
        Self { handle, hot: RefCell::default() }
    }

    /// The thread's own copy of a record in the table, or the record.
    fn own(&self, key: &Arc<ApiKey>) -> Arc<ApiKey> {
        let word = key.digest.first_word();
        // There is a place, and nobody else has it: the thread does one thing at a time.
        let Ok(mut hot) = self.hot.try_borrow_mut() else { return Arc::clone(key) };
        let Some(hot) = hot.get_mut(word as usize % HOT) else { return Arc::clone(key) };
        if let Some([original, copy]) = &hot.copy
            // Any change to a key makes a new record of it.
            && Arc::ptr_eq(original, key)
        {
            hot.times = 0;
            return Arc::clone(copy);
        }
        if hot.last != word {
            (hot.last, hot.times) = (word, 0);
        }
        hot.times += 1;
        if hot.times < OFTEN {
            return Arc::clone(key);
        }
        let copy = Arc::new(ApiKey::clone(key));
        hot.copy = Some([Arc::clone(key), Arc::clone(&copy)]);
        hot.times = 0;
        copy
    }
}

impl Borrow<KeyDigest> for ByDigest {
    fn borrow(&self) -> &KeyDigest {
        &self.0.digest
    }
}

impl Hash for ByDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.digest.hash(state);
    }
}

impl PartialEq for ByDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

impl Eq for ByDigest {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowlist::Allowlist;
    use crate::clock::Timestamp;
    use crate::key::id::KeyId;
    use crate::key::name::KeyName;
    use crate::org::OrgId;
    use crate::record::{Revision, Status};

    fn key() -> Arc<ApiKey> {
        Arc::new(ApiKey {
            id: KeyId::from_bytes([1; 16]),
            org: OrgId::new("acme").unwrap(),
            name: KeyName::new("key").unwrap(),
            key_prefix: "vsp_sk_abcde".into(),
            digest: KeyDigest::of("key"),
            status: Status::Active,
            allowlist: Allowlist::default(),
            created_at: Timestamp::MIN,
            expires_at: None,
            rotated_at: None,
            last_used_at: None,
            revision: Revision::FIRST,
        })
    }

    fn busy(readers: &Readers, digest: KeyDigest) -> Arc<ApiKey> {
        for _ in 1..OFTEN {
            readers.find(&digest).unwrap();
        }
        readers.find(&digest).unwrap()
    }

    #[test]
    fn a_busy_thread_reads_a_copy_of_its_own_and_sees_every_change() {
        let (mut writer, readers) = new();
        let active = key();
        writer.put(Arc::clone(&active), None);
        let find = |digest| readers.find(digest);
        let first = find(&active.digest).unwrap();
        assert!(Arc::ptr_eq(&first, &active), "asked for once, it is no hot key");
        let own = busy(&readers, active.digest);
        assert!(own == active && !Arc::ptr_eq(&own, &active));
        assert!(Arc::ptr_eq(&own, &find(&active.digest).unwrap()));

        let revoked = Arc::new(ApiKey { status: Status::Revoked, ..ApiKey::clone(&active) });
        writer.put(Arc::clone(&revoked), Some(revoked.digest));
        for _ in 0..2 * OFTEN {
            assert_eq!(find(&revoked.digest), Some(Arc::clone(&revoked)));
        }

        let digest = KeyDigest::of("another");
        let rotated = Arc::new(ApiKey { digest, ..ApiKey::clone(&revoked) });
        writer.put(Arc::clone(&rotated), Some(revoked.digest));
        assert_eq!(find(&revoked.digest), None);
        assert_eq!(find(&digest), Some(rotated));
        writer.remove(digest);
        assert_eq!(find(&digest), None);
    }

    #[test]
    fn keys_that_take_turns_are_not_copied_over_and_over() {
        let (mut writer, readers) = new();
        let first = key();
        let same_place = |digest: &KeyDigest| {
            digest.first_word() % HOT as u64 == first.digest.first_word() % HOT as u64
        };
        let digest = (0..).map(|n| KeyDigest::of(format!("{n}"))).find(same_place).unwrap();
        let second =
            Arc::new(ApiKey { id: KeyId::from_bytes([2; 16]), digest, ..ApiKey::clone(&first) });
        writer.put(Arc::clone(&first), None);
        writer.put(Arc::clone(&second), None);
        let own = busy(&readers, first.digest);
        for _ in 0..2 * OFTEN {
            assert!(Arc::ptr_eq(&second, &readers.find(&digest).unwrap()));
            assert!(Arc::ptr_eq(&own, &readers.find(&first.digest).unwrap()));
        }
    }

    #[test]
    fn two_threads_that_are_busy_with_one_key_share_no_count() {
        let (mut writer, readers) = new();
        let key = key();
        writer.put(Arc::clone(&key), None);
        let busy = || busy(&readers, key.digest);
        let own = busy();
        let other = std::thread::scope(|scope| scope.spawn(busy).join().unwrap());
        assert!(!Arc::ptr_eq(&own, &other));
    }
}
