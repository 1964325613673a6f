//! Uses from several threads, failed writes and wrong clocks.

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
    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
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
