//! Last-used times: recorded in memory by requests, written in batches by a background
//! task.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_listener::Event;

use crate::key::digest::BuildUniformHasher;
use crate::key::id::KeyId;
use crate::manager::error::StoreTimeout;
use crate::record::KeyUse;
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::{Elapsed, Panicked, Runtime, caught, timeout};
use crate::store::key_store::{KeyStore, StoreError};
use crate::text::with_causes;
use crate::throttle::Throttle;

/// The number of maps. Threads share them only if there are more threads than maps.
const SHARDS: usize = 16;
/// How long uses are collected before they are written.
const PAUSE: Duration = Duration::from_millis(250);
/// How long to wait before uses that could not be written are retried. New uses wait as
/// well, and must be readable within a second.
const RETRY: Duration = Duration::from_millis(250);
const BATCH: usize = 1_000;
/// After this many uses, those of the same key are merged.
const RECENT: usize = 1_024;

type Uses = HashMap<KeyId, Timestamp, BuildUniformHasher>;

/// Records uses and has a background task write them.
pub(crate) struct LastUses {
    shared: Arc<Shared>,
    runtime: Arc<dyn Runtime>,
}

#[derive(Default)]
struct Shared {
    shards: [Shard; SHARDS],
    /// Set by the first use after a flush.
    pending: AtomicBool,
    /// How many uses the task has drained but not yet written.
    in_hand: AtomicUsize,
    closed: AtomicBool,
    ended: AtomicBool,
    work: Event,
    closing: Event,
    end: Event,
}

/// On a separate cache line, so that threads do not slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    /// A list, because a request that inserts into a map would wait when the map grows.
    recent: Vec<KeyUse>,
    latest: Uses,
}

impl LastUses {
    pub(crate) fn start(
        store: Arc<dyn KeyStore>,
        deadline: Duration,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let task = Task {
            shared: Arc::clone(&shared),
            runtime: Arc::clone(&runtime),
            store,
            deadline,
            failures: Throttle::default(),
        };
        runtime.spawn(Box::pin(task.run()));
        Self { shared, runtime }
    }

    /// Records that the key was used at this time.
    pub(crate) fn record(&self, id: KeyId, at: Timestamp) {
        self.shared.note(shard_of_this_thread(), id, at);
        if !self.shared.pending.load(Ordering::Relaxed)
            && !self.shared.pending.swap(true, Ordering::AcqRel)
        {
            self.shared.work.notify(1);
        }
    }

    /// Lets the task write the remaining uses and end.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.closing.notify(usize::MAX);
        self.shared.work.notify(usize::MAX);
    }

    /// Waits for the task to end, at most until the deadline. Returns how many uses were
    /// not written.
    pub(crate) async fn ended(&self, deadline: Duration) -> u64 {
        let ended = async {
            loop {
                let listener = self.shared.end.listen();
                if self.shared.ended.load(Ordering::Acquire) {
                    return;
                }
                listener.await;
            }
        };
        let _ = timeout(&*self.runtime, deadline, ended).await;
        let noted = self.shared.shards.iter().map(|shard| shard.lock().keys() as u64).sum::<u64>();
        let unwritten = noted + self.shared.in_hand.load(Ordering::Acquire) as u64;
        if unwritten > 0 {
            tracing::error!(unwritten, "last-used times were not written before the shutdown");
        }
        unwritten
    }
}

impl fmt::Debug for LastUses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastUses").finish_non_exhaustive()
    }
}

impl Drop for LastUses {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn add(&mut self, used: KeyUse) {
        if self.recent.len() == RECENT {
            self.fold();
        }
        // Allocated in full at the first use, so that no later request waits for it.
        self.recent.reserve(RECENT - self.recent.len());
        self.recent.push(used);
    }

    fn fold(&mut self) {
        for used in self.recent.drain(..) {
            keep_latest(&mut self.latest, used);
        }
    }

    /// How many keys were used.
    fn keys(&mut self) -> usize {
        self.fold();
        self.latest.len()
    }
}

/// For uses that arrive in order.
fn keep_latest(uses: &mut Uses, used: KeyUse) {
    let latest = uses.entry(used.id).or_insert(used.at);
    if used.replaces(Some(*latest)) {
        *latest = used.at;
    }
}

/// For uses in any order. If they are more than a day apart, a clock was wrong, and the
/// earlier is kept: the next use corrects a time that is too early.
fn keep_plausible(uses: &mut Uses, KeyUse { id, at }: KeyUse) {
    let kept = uses.entry(id).or_insert(at);
    let (earlier, later) = (at.min(*kept), at.max(*kept));
    let plausible = KeyUse { id, at: earlier }.latest_plausible();
    *kept = if later > plausible { earlier } else { later };
}

impl Shared {
    fn note(&self, shard: usize, id: KeyId, at: Timestamp) {
        if let Some(shard) = self.shards.get(shard) {
            shard.lock().add(KeyUse { id, at });
        }
    }

    /// The unwritten uses of earlier rounds together with the new ones.
    fn drain(&self, unwritten: Vec<KeyUse>) -> Vec<KeyUse> {
        let mut noted = Uses::default();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.fold();
            for (id, at) in shard.latest.drain() {
                keep_plausible(&mut noted, KeyUse { id, at });
            }
        }
        let mut all: Uses = unwritten.into_iter().map(|used| (used.id, used.at)).collect();
        for (id, at) in noted {
            keep_latest(&mut all, KeyUse { id, at });
        }
        all.into_iter().map(|(id, at)| KeyUse { id, at }).collect()
    }
}

fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    SHARD.try_with(Cell::get).unwrap_or_default()
}

struct Task {
    shared: Arc<Shared>,
    runtime: Arc<dyn Runtime>,
    store: Arc<dyn KeyStore>,
    deadline: Duration,
    failures: Throttle,
}

impl Task {
    async fn run(self) {
        let mut unwritten = Vec::new();
        loop {
            let closed = self.wait().await;
            self.shared.pending.store(false, Ordering::Release);
            let uses = self.shared.drain(unwritten);
            unwritten = self.write(&uses).await;
            if closed {
                break;
            }
            if !unwritten.is_empty() {
                // A manager that is closing does not wait for the pause.
                let closing = self.shared.closing.listen();
                if !self.shared.closed.load(Ordering::Acquire) {
                    let _ = timeout(&*self.runtime, RETRY, closing).await;
                }
                self.shared.pending.store(true, Ordering::Release);
            }
        }
    }

    /// Waits for uses and then for the batch to fill, or for the shutdown.
    async fn wait(&self) -> bool {
        let is_closed = || self.shared.closed.load(Ordering::Acquire);
        loop {
            let listener = self.shared.work.listen();
            if is_closed() {
                return true;
            }
            if self.shared.pending.load(Ordering::Acquire) {
                let _ = timeout(&*self.runtime, PAUSE, listener).await;
                return is_closed();
            }
            listener.await;
        }
    }

    /// Writes in batches. Returns the uses that could not be written, for a retry.
    async fn write(&self, uses: &[KeyUse]) -> Vec<KeyUse> {
        let mut unwritten = Vec::new();
        self.shared.in_hand.store(uses.len(), Ordering::Release);
        for batch in uses.chunks(BATCH) {
            let call = caught(async { self.store.record_uses(batch).await });
            let written = match timeout(&*self.runtime, self.deadline, call).await {
                Ok(Ok(result)) => result,
                Ok(Err(Panicked)) => Err(StoreError::unavailable("the key store panicked")),
                Err(Elapsed) => Err(StoreError::unavailable(StoreTimeout)),
            };
            if let Err(error) = written {
                let uses = batch.len();
                if let Some(left_out) = self.failures.pass() {
                    let error = with_causes(&error);
                    tracing::warn!(
                        uses,
                        error,
                        left_out,
                        "not all last-used times were written, will retry"
                    );
                }
                unwritten.extend_from_slice(batch);
            } else {
                self.shared.in_hand.fetch_sub(batch.len(), Ordering::AcqRel);
            }
        }
        unwritten
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.end.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::digest::KeyDigest;
    use crate::org::OrgId;
    use crate::record::{ApiKey, OrgLimit, Revision};
    use crate::runtime::spawn::BoxFuture;
    use crate::store::memory::MemoryStore;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::future::ready;

    /// Keeps the latest use of every key. The listed calls fail.
    #[derive(Debug, Default)]
    struct Latest {
        none: MemoryStore,
        failing: Vec<usize>,
        state: Mutex<(usize, HashMap<KeyId, Timestamp>)>,
    }

    #[async_trait::async_trait]
    impl KeyStore for Latest {
        async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
            self.none.insert(key, limit).await
        }
        async fn find_by_digest(
            &self,
            digest: &KeyDigest,
        ) -> Result<Option<Arc<ApiKey>>, StoreError> {
            self.none.find_by_digest(digest).await
        }
        async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
            self.none.get(org, id).await
        }
        async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
            self.none.list(org).await
        }
        async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
            self.none.replace(key, expected).await
        }
        async fn delete(
            &self,
            org: &OrgId,
            id: &KeyId,
            expected: Option<Revision>,
        ) -> Result<(), StoreError> {
            self.none.delete(org, id, expected).await
        }
        async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
            assert!(uses.len() <= BATCH);
            let (calls, latest) = &mut *self.state.lock().unwrap();
            *calls += 1;
            if self.failing.contains(calls) {
                return Err(StoreError::unavailable("locked"));
            }
            for used in uses {
                let at = latest.entry(used.id).or_insert(used.at);
                *at = used.at.max(*at);
            }
            Ok(())
        }
    }

    /// A runtime whose sleeps end at once.
    #[derive(Debug)]
    struct NoTime;

    impl Runtime for NoTime {
        fn spawn(&self, _: BoxFuture<'static, ()>) {}

        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(ready(()))
        }
    }

    fn id(number: u16) -> KeyId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        KeyId::from_bytes(bytes)
    }

    fn at(micros: u32) -> Timestamp {
        Timestamp::from_unix_micros(i64::from(micros)).unwrap()
    }

    fn task(shared: &Arc<Shared>, store: &Arc<Latest>) -> Task {
        Task {
            shared: Arc::clone(shared),
            runtime: Arc::new(NoTime),
            store: store.clone(),
            deadline: Duration::from_secs(1),
            failures: Throttle::default(),
        }
    }

    proptest! {
        #[test]
        fn the_latest_use_of_each_key_is_kept_whichever_thread_noted_it(
            uses in proptest::collection::vec((0usize..SHARDS, 0u16..5, 0u32..9), 0..40),
            unwritten in proptest::collection::btree_map(0u16..5, 0u32..9, 0..5),
        ) {
            let shared = Shared::default();
            let mut latest = BTreeMap::new();
            for (shard, key, time) in uses {
                shared.note(shard, id(key), at(time));
                latest.entry(id(key)).and_modify(|t| *t = at(time).max(*t)).or_insert(at(time));
            }
            // The uses left by a failed write may be older than the new ones.
            let unwritten = unwritten.iter().map(|(key, time)| KeyUse { id: id(*key), at: at(*time) });
            let unwritten: Vec<_> = unwritten.collect();
            for KeyUse { id, at } in unwritten.iter().copied() {
                latest.entry(id).and_modify(|t| *t = at.max(*t)).or_insert(at);
            }
            let drained = shared.drain(unwritten);
            prop_assert_eq!(drained.len(), latest.len(), "one for each key");
            let drained: BTreeMap<_, _> = drained.iter().map(|used| (used.id, used.at)).collect();
            prop_assert_eq!(drained, latest);
            prop_assert!(shared.drain(Vec::new()).is_empty());
        }
    }

    #[test]
    fn case_56_a_use_from_a_wrong_clock_is_replaced_by_one_from_the_right_clock() {
        let day = 86_400_000_000;
        let at = |micros| Timestamp::from_unix_micros(micros).unwrap();
        let key_use = |micros| KeyUse { id: id(1), at: at(micros) };
        let drained = |unwritten: &[i64], noted: &[(usize, i64)]| {
            let shared = Shared::default();
            for (shard, micros) in noted {
                shared.note(*shard, id(1), at(*micros));
            }
            let unwritten = unwritten.iter().map(|micros| key_use(*micros)).collect();
            shared.drain(unwritten).iter().map(|used| used.at.unix_micros()).collect::<Vec<_>>()
        };
        let wrong = 73 * 365 * day;
        assert_eq!(drained(&[], &[(0, wrong), (0, 5), (0, 6)]), [6], "one thread");
        assert_eq!(drained(&[], &[(0, wrong), (1, 5), (2, 6)]), [6], "several threads");
        assert_eq!(drained(&[], &[(0, 5), (1, wrong)]), [5], "in either order");
        assert_eq!(drained(&[wrong], &[(3, 5)]), [5], "after a write that failed");
        assert_eq!(drained(&[5], &[(3, 2 * day)]), [2 * day], "after writes failed for days");
    }

    #[tokio::test]
    async fn many_uses_are_written_in_batches_and_only_a_failed_batch_is_kept() {
        let store = Arc::new(Latest { failing: vec![2], ..Latest::default() });
        let shared = Arc::new(Shared::default());
        let uses: Vec<_> = (0..2_500).map(|n| KeyUse { id: id(n), at: at(1) }).collect();
        let task = task(&shared, &store);
        let kept = task.write(&uses).await;
        assert_eq!((kept.len(), store.state.lock().unwrap().1.len()), (1_000, 1_500));
        assert_eq!(task.write(&kept).await, []);
        assert_eq!(store.state.lock().unwrap().1.len(), 2_500);
    }

    #[tokio::test]
    async fn uses_that_were_never_written_are_counted_at_the_end() {
        let uses = LastUses { shared: Arc::default(), runtime: Arc::new(NoTime) };
        uses.record(id(1), at(1));
        uses.record(id(1), at(2));
        uses.record(id(2), at(1));
        assert_eq!(uses.ended(Duration::ZERO).await, 2, "no task has run");
        uses.shared.ended.store(true, Ordering::Release);
        assert_eq!(uses.ended(Duration::ZERO).await, 2, "it has ended without them");
        uses.shared.drain(Vec::new());
        assert_eq!(uses.ended(Duration::ZERO).await, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_use_noted_during_a_write_is_written_too() {
        let store = Arc::new(Latest { failing: vec![3, 4, 9], ..Latest::default() });
        let shared = Arc::new(Shared::default());
        let uses = Arc::new(LastUses { shared: Arc::clone(&shared), runtime: Arc::new(NoTime) });
        let writer = tokio::spawn(task(&shared, &store).run());
        let users: Vec<_> = (0..4u16)
            .map(|user| {
                let uses = Arc::clone(&uses);
                tokio::spawn(async move {
                    for time in 0..2_000 {
                        uses.record(id(user), at(time));
                        uses.record(id(99), at(time * 4 + u32::from(user)));
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for user in users {
            user.await.unwrap();
        }
        // The last uses are written without a shutdown.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let expected: HashMap<_, _> =
            (0..4).map(|user| (id(user), at(1_999))).chain([(id(99), at(7_999))]).collect();
        while store.state.lock().unwrap().1 != expected {
            assert!(std::time::Instant::now() < deadline, "{:?}", store.state.lock().unwrap());
            tokio::task::yield_now().await;
        }
        assert!(store.state.lock().unwrap().0 > 9, "more than one write");
        uses.close();
        writer.await.unwrap();
    }
}
