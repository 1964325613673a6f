//! A manager on a store and a log that pause at random, and counts of the changes.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use async_trait::async_trait;
use keygate::audit::{
    AuditEvent, AuditQuery, AuditRecord, AuditScope, ChangeAction, ChangePhase, Position,
};
use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision};
use keygate::*;
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::support::{PATIENCE, eventually};

pub(crate) fn actor(org: &str) -> Actor {
    Actor::new(OrgId::new(org).unwrap(), "ada")
}

pub(crate) fn new_key() -> NewKey {
    NewKey::named("k").unwrap()
}

/// Small pseudo-random numbers.
#[derive(Debug, Default)]
pub(crate) struct Rng(AtomicU64);

impl Rng {
    pub(crate) fn below(&self, end: u64) -> u64 {
        let seed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) % end
    }

    async fn pause(&self) {
        for _ in 0..self.below(6) {
            yield_now().await;
        }
    }
}

/// Polls the work this many times, lets other tasks run in between, and then drops the work.
pub(crate) async fn dropped_after<T>(polls: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    for _ in 0..polls {
        if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            return Some(done);
        }
        yield_now().await;
    }
    None
}

/// A store in memory that pauses before and after each call and counts its changes.
#[derive(Debug, Default)]
pub(crate) struct PausingStore {
    pub(crate) keys: MemoryStore,
    rng: Rng,
    /// How often each key was changed, by the name of the action.
    done: Mutex<BTreeMap<(KeyId, &'static str), usize>>,
    /// While it is closed, changes wait.
    closed: AtomicBool,
    opened: Notify,
    waiting: AtomicU64,
}

impl PausingStore {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    /// Waits until a change waits.
    pub(crate) async fn is_waiting(&self) {
        eventually("a change", async || self.waiting.load(Ordering::SeqCst) == 1).await;
    }

    async fn change(
        &self,
        id: KeyId,
        action: ChangeAction,
        change: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        self.rng.pause().await;
        let opened = self.opened.notified();
        if self.closed.load(Ordering::SeqCst) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            opened.await;
        }
        change.await?;
        *self.done.lock().unwrap().entry((id, action.as_str())).or_default() += 1;
        self.rng.pause().await;
        Ok(())
    }
}

#[async_trait]
impl KeyStore for PausingStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.change(key.id, ChangeAction::Created, self.keys.insert(key, limit)).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.keys.find_by_digest(digest).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.rng.pause().await;
        self.keys.get(org, id).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.rng.pause().await;
        self.keys.list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let stored = self.keys.get(&key.org, &key.id).await?;
        let rotates = stored.is_some_and(|stored| stored.digest != key.digest);
        let action = if rotates { ChangeAction::Rotated } else { ChangeAction::Updated };
        self.change(key.id, action, self.keys.replace(key, expected)).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.change(*id, ChangeAction::Deleted, self.keys.delete(org, id, expected)).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.keys.record_uses(uses).await
    }
}

/// A log in memory that pauses before and after it writes.
#[derive(Debug, Default)]
pub(crate) struct PausingLog {
    log: MemoryAuditLog,
    rng: Rng,
}

#[async_trait]
impl AuditSink for PausingLog {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        self.rng.pause().await;
        self.log.record(batch).await?;
        self.rng.pause().await;
        Ok(())
    }
}

/// A manager with its store and its log.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) store: Arc<PausingStore>,
    log: Arc<PausingLog>,
    pub(crate) keys: KeyManager,
}

impl Setup {
    pub(crate) fn new(delivery: Delivery) -> Self {
        let store = Arc::new(PausingStore::default());
        let log = Arc::new(PausingLog::default());
        let keys = KeyManager::builder(store.clone())
            .audit_sink(log.clone())
            .delivery(delivery)
            .limits(Limits::default().max_keys(10_000))
            .store_deadline(PATIENCE)
            .build()
            .unwrap();
        Self { store, log, keys }
    }

    /// How often a change of each key and action was begun and abandoned.
    async fn recorded(&self, org: &OrgId) -> BTreeMap<(KeyId, &str), (usize, usize)> {
        let mut counts = BTreeMap::<_, (usize, usize)>::new();
        let mut query = AuditQuery::new(org.clone(), AuditScope::OrgChanges).limit(200);
        loop {
            let page = self.log.log.page(&query).await.unwrap();
            for record in page.records {
                let AuditEvent::Change(change) = record.event else { panic!("a request") };
                let (begun, back) = counts.entry((record.key, change.action.as_str())).or_default();
                match change.phase {
                    ChangePhase::Begun => *begun += 1,
                    ChangePhase::Abandoned => *back += 1,
                    other => panic!("{other}"),
                }
            }
            let Some(older) = page.older else { return counts };
            query = query.at(Position::Before(older));
        }
    }

    /// Shuts the manager down. Checks that each change that was begun either took place or was
    /// abandoned, and that none took place without a record. Returns how many of each there
    /// were.
    pub(crate) async fn settle(&self, orgs: &[&str]) -> (usize, usize) {
        let report = self.keys.shutdown(PATIENCE).await;
        assert!(report.is_complete(), "{report:?}");
        let done = self.store.done.lock().unwrap().clone();
        let (mut took_place, mut abandoned) = (0, 0);
        for org in orgs {
            for ((key, action), (begun, back)) in self.recorded(actor(org).org()).await {
                let done = done.get(&(key, action)).copied().unwrap_or_default();
                assert_eq!(begun, done + back, "{action} of {key}: abandoned {back} times");
                took_place += done;
                abandoned += back;
            }
        }
        assert_eq!(took_place, done.values().sum::<usize>(), "a change without a record");
        (took_place, abandoned)
    }
}
