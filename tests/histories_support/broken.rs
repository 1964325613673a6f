//! Stores with one fault each, of a kind that only a race or a call soon afterwards shows.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision};
use keygate::{ApiKey, KeyId, KeyStore, MemoryStore, OrgId, StoreError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No fault; the store only lets other threads and tasks run during its calls.
    None,
    /// Look-ups are cached, and a look-up during a change puts the old record back.
    LateFill,
    /// The old secret works for a moment after its rotation.
    OldSecretLingers,
    /// The previous secret works for a moment after the end of its overlap.
    PreviousSecretLingers,
    /// A key cannot be found during an edit.
    MissingDuringEdits,
    /// The later of two concurrent edits undoes the other one.
    LostEdits,
    /// A deleted key can be found for a moment.
    DeletedLingers,
}

/// How long an old record can still be found.
const MOMENT: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct BrokenStore {
    fault: Fault,
    keys: MemoryStore,
    /// Records that a look-up finds instead of the stored ones.
    kept: Mutex<HashMap<KeyDigest, (Arc<ApiKey>, Instant)>>,
    missing: Mutex<HashSet<KeyDigest>>,
    turns: AtomicU64,
}

impl BrokenStore {
    pub(crate) fn new(fault: Fault) -> Self {
        Self {
            fault,
            keys: MemoryStore::new(),
            kept: Mutex::default(),
            missing: Mutex::default(),
            turns: AtomicU64::new(0),
        }
    }

    /// Sometimes lets another thread or task run.
    async fn turn(&self) {
        match self.turns.fetch_add(1, Ordering::Relaxed) % 7 {
            0 | 3 => std::thread::yield_now(),
            5 => tokio::task::yield_now().await,
            _ => {}
        }
    }

    /// [`Self::turn`] before and after the work.
    async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        self.turn().await;
        let done = work.await;
        self.turn().await;
        done
    }

    fn keep(&self, digest: KeyDigest, key: Arc<ApiKey>) {
        self.kept.lock().unwrap().insert(digest, (key, Instant::now()));
    }

    fn kept(&self, digest: &KeyDigest) -> Option<Arc<ApiKey>> {
        let mut kept = self.kept.lock().unwrap();
        kept.retain(|_, (_, since)| since.elapsed() <= MOMENT);
        kept.get(digest).map(|(key, _)| Arc::clone(key))
    }
}

#[async_trait]
impl KeyStore for BrokenStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.around(self.keys.insert(key, limit)).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        if let Some(key) = self.kept(digest) {
            return Ok(Some(key));
        }
        let found = self.around(self.keys.find_by_digest(digest)).await?;
        if let (Fault::LateFill, Some(key)) = (self.fault, &found) {
            self.keep(key.digest, Arc::clone(key));
        }
        let is_missing = self.missing.lock().unwrap().contains(digest);
        Ok(found.filter(|_| !is_missing))
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.turn().await;
        self.keys.get(org, id).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.keys.list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let Some(old) = self.keys.get(&key.org, &key.id).await? else {
            return Err(StoreError::NotFound);
        };
        if self.fault == Fault::MissingDuringEdits {
            self.missing.lock().unwrap().insert(old.digest);
        }
        let undoes = self.fault == Fault::LostEdits && old.digest == key.digest;
        let expected = if undoes { old.revision } else { expected };
        let done = self.around(self.keys.replace(key, expected)).await;
        self.missing.lock().unwrap().remove(&old.digest);
        match self.fault {
            Fault::OldSecretLingers if done.is_ok() && old.digest != key.digest => {
                self.keep(old.digest, old);
            }
            Fault::PreviousSecretLingers if done.is_ok() && key.previous != old.previous => {
                old.previous.into_iter().for_each(|ended| self.keep(ended.digest, old.clone()));
            }
            Fault::LateFill => drop(self.kept.lock().unwrap().remove(&old.digest)),
            _ => {}
        }
        done
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let old = self.keys.get(org, id).await?;
        self.turn().await;
        let done = self.keys.delete(org, id, expected).await;
        match (self.fault, old) {
            (Fault::DeletedLingers, Some(old)) if done.is_ok() => self.keep(old.digest, old),
            (Fault::LateFill, Some(old)) => drop(self.kept.lock().unwrap().remove(&old.digest)),
            _ => {}
        }
        self.turn().await;
        done
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.keys.record_uses(uses).await
    }
}
