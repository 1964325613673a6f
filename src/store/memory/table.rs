//! A map of keys by digest in which readers and writers do not wait for each other.

use std::cell::RefCell;
use std::sync::Arc;

use thread_local::ThreadLocal;

use crate::key::digest::{BuildUniformHasher, KeyDigest};
use crate::record::ApiKey;

#[derive(Default)]
pub(super) struct Table {
    /// By the current digest only, so that a change of a key takes effect at one instant,
    /// whichever secret a reader has.
    keys: papaya::HashMap<KeyDigest, Arc<ApiKey>, BuildUniformHasher>,
    /// The current digest of the key that has, or just had, this previous one.
    previous: papaya::HashMap<KeyDigest, KeyDigest, BuildUniformHasher>,
    threads: ThreadLocal<Reader>,
}

impl Table {
    pub(super) fn find(&self, digest: &KeyDigest) -> Option<Arc<ApiKey>> {
        let keys = self.keys.pin();
        let key = match keys.get(digest) {
            Some(key) => key,
            None => {
                let current = *self.previous.pin().get(digest)?;
                keys.get(&current).filter(|key| key.digests().any(|own| own == *digest))?
            }
        };
        Some(self.threads.get_or_default().own(key))
    }

    pub(super) fn has(&self, digest: &KeyDigest) -> bool {
        self.keys.pin().contains_key(digest) || self.previous.pin().contains_key(digest)
    }

    pub(super) fn put(&self, key: &Arc<ApiKey>) {
        self.keys.pin().insert(key.digest, Arc::clone(key));
        if let Some(previous) = key.previous {
            self.previous.pin().insert(previous.digest, key.digest);
        }
    }

    /// Replaces a record. If the digest is the same, readers find one of the two.
    pub(super) fn replace(&self, old: &ApiKey, key: &Arc<ApiKey>) {
        let is_previous = |digest| key.previous.is_some_and(|kept| kept.digest == digest);
        // The prefix stays where only the digest of the same secret is another: that of a key
        // issued before keygate, at its first use.
        let stays_valid = is_previous(old.digest) || old.key_prefix == key.key_prefix;
        let is_other = old.digest != key.digest;
        // An old secret that ends is removed before the new one is added, so that both are
        // never valid. One that stays valid is removed once it leads to the new record. A
        // KeyManager returns a new secret only after this.
        if is_other && !stays_valid {
            self.keys.pin().remove(&old.digest);
        }
        self.put(key);
        if is_other && stays_valid {
            self.keys.pin().remove(&old.digest);
        }
        if let Some(ended) = old.previous.filter(|ended| !is_previous(ended.digest)) {
            self.previous.pin().remove(&ended.digest);
        }
    }

    pub(super) fn remove(&self, key: &ApiKey) {
        self.keys.pin().remove(&key.digest);
        if let Some(previous) = key.previous {
            self.previous.pin().remove(&previous.digest);
        }
    }
}

/// The keys that a thread uses most. On separate cache lines, to avoid false sharing.
#[derive(Default)]
#[repr(align(128))]
struct Reader(RefCell<[Hot; HOT]>);

/// How many keys a thread may copy.
const HOT: usize = 16;
/// After how many requests in a row a copy is made.
const OFTEN: u32 = 8;

/// A slot for a key that a thread looks up repeatedly.
///
/// Threads that count references to the same record slow each other down, so each thread
/// has its own copy of the records that it uses most.
#[derive(Default)]
struct Hot {
    /// The last key of this slot without a copy, and how often it came in a row.
    last: u64,
    times: u32,
    /// The record in the table, and its copy.
    copy: Option<[Arc<ApiKey>; 2]>,
}

impl Reader {
    /// The thread's copy of a record in the table, or the record itself.
    fn own(&self, key: &Arc<ApiKey>) -> Arc<ApiKey> {
        let word = key.digest.first_word();
        // The slot exists and is not borrowed: the thread does one thing at a time.
        let Ok(mut hot) = self.0.try_borrow_mut() else { return Arc::clone(key) };
        let Some(hot) = hot.get_mut(word as usize % HOT) else { return Arc::clone(key) };
        if let Some([original, copy]) = &hot.copy
            // Any change of a key creates a new record.
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    use crate::key::id::KeyId;
    use crate::key::name::KeyName;
    use crate::org::OrgId;
    use crate::record::{PreviousSecret, Revision, Status};
    use crate::runtime::clock::Timestamp;

    fn key() -> Arc<ApiKey> {
        Arc::new(ApiKey {
            id: KeyId::from_bytes([1; 16]),
            org: OrgId::new("acme").unwrap(),
            name: KeyName::new("key").unwrap(),
            digest: KeyDigest::of("key"),
            created_at: Timestamp::MIN,
            ..ApiKey::sample(0)
        })
    }

    fn busy(table: &Table, digest: KeyDigest) -> Arc<ApiKey> {
        for _ in 1..OFTEN {
            table.find(&digest).unwrap();
        }
        table.find(&digest).unwrap()
    }

    #[test]
    fn a_busy_thread_reads_its_own_copy_and_sees_every_change() {
        let table = Table::default();
        let active = key();
        table.put(&active);
        let find = |digest| table.find(digest);
        let first = find(&active.digest).unwrap();
        assert!(Arc::ptr_eq(&first, &active), "a key that was read once is not copied");
        let own = busy(&table, active.digest);
        assert!(own == active && !Arc::ptr_eq(&own, &active));
        assert!(Arc::ptr_eq(&own, &find(&active.digest).unwrap()));

        let revoked = Arc::new(ApiKey { status: Status::Revoked, ..ApiKey::clone(&active) });
        table.replace(&active, &revoked);
        for _ in 0..2 * OFTEN {
            assert_eq!(find(&revoked.digest), Some(Arc::clone(&revoked)));
        }

        let digest = KeyDigest::of("another");
        let rotated = Arc::new(ApiKey { digest, ..ApiKey::clone(&revoked) });
        table.replace(&revoked, &rotated);
        assert_eq!(find(&revoked.digest), None);
        assert_eq!(find(&digest), Some(Arc::clone(&rotated)));
        table.remove(&rotated);
        assert_eq!(find(&digest), None);
    }

    #[test]
    fn case_59_a_reader_sees_the_changes_of_a_key_in_order_by_both_secrets() {
        const EDITS: u32 = 20_000;
        let table = Table::default();
        let previous = Some(PreviousSecret { digest: KeyDigest::of("old"), until: Timestamp::MAX });
        let at =
            |n| Arc::new(ApiKey { previous, revision: Revision::new(n), ..ApiKey::clone(&key()) });
        table.put(&at(0));
        let [current, old] = [KeyDigest::of("key"), KeyDigest::of("old")];
        let backwards = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut last = 0;
                while last < EDITS {
                    for digest in [current, old] {
                        let revision = table.find(&digest).unwrap().revision.get();
                        backwards.fetch_add(u64::from(revision < last), Ordering::Relaxed);
                        last = revision;
                    }
                }
            });
            for n in 1..=EDITS {
                table.replace(&at(n - 1), &at(n));
            }
        });
        assert_eq!(backwards.into_inner(), 0);
    }

    #[test]
    fn keys_that_take_turns_are_not_copied_over_and_over() {
        let table = Table::default();
        let first = key();
        let same_place = |digest: &KeyDigest| {
            digest.first_word() % HOT as u64 == first.digest.first_word() % HOT as u64
        };
        let digest = (0..).map(|n| KeyDigest::of(format!("{n}"))).find(same_place).unwrap();
        let second =
            Arc::new(ApiKey { id: KeyId::from_bytes([2; 16]), digest, ..ApiKey::clone(&first) });
        table.put(&first);
        table.put(&second);
        let own = busy(&table, first.digest);
        for _ in 0..2 * OFTEN {
            assert!(Arc::ptr_eq(&second, &table.find(&digest).unwrap()));
            assert!(Arc::ptr_eq(&own, &table.find(&first.digest).unwrap()));
        }
    }

    #[test]
    fn two_threads_that_read_one_key_share_no_reference_count() {
        let table = Table::default();
        let key = key();
        table.put(&key);
        let busy = || busy(&table, key.digest);
        let own = busy();
        let other = std::thread::scope(|scope| scope.spawn(busy).join().unwrap());
        assert!(!Arc::ptr_eq(&own, &other));
    }

    #[test]
    fn a_rotating_key_is_never_found_by_both_secrets() {
        const ROTATIONS: u64 = 2_000;
        let table = Table::default();
        let digests: Vec<_> = (0..=ROTATIONS).map(|n| KeyDigest::of(n.to_string())).collect();
        // A rotation changes the shown prefix as well.
        let with = |digest| {
            Arc::new(ApiKey { digest, key_prefix: format!("{digest:?}"), ..ApiKey::clone(&key()) })
        };
        table.put(&with(digests[0]));
        let read = AtomicU64::new(0);
        let found_both = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (n, pair) in (1..).zip(digests.windows(2)) {
                    while table.find(&pair[1]).is_none() {
                        std::thread::yield_now();
                    }
                    let both = u64::from(table.find(&pair[0]).is_some());
                    found_both.fetch_add(both, Ordering::Relaxed);
                    read.store(n, Ordering::Release);
                }
            });
            for (n, pair) in (1..).zip(digests.windows(2)) {
                table.replace(&with(pair[0]), &with(pair[1]));
                while read.load(Ordering::Acquire) < n {
                    std::thread::yield_now();
                }
            }
        });
        assert_eq!(found_both.into_inner(), 0);
    }
}
