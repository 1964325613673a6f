//! Stores that spoil histories, each in its own way; and one that only takes its time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision};
use keygate::{ApiKey, KeyId, KeyStore, MemoryStore, OrgId, StoreError};

/// What is wrong with a store in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing; but threads take turns in the midst of calls.
    None,
    /// It keeps what look-ups found, and a look-up that was under way during a change
    /// puts the old record back.
    LateFill,
    /// The old secret lives on for a moment.
    OldSecretLingers,
    /// The secret before the old one lives on for a moment, when an overlap ends.
    PreviousSecretLingers,
    /// While a key is edited, it is not there.
    AwayDuringEdits,
    /// Of two edits at once, the later one undoes the other.
    LostEdits,
    /// A deleted key is found for a moment.
    DeletedLingers,
}

/// How long what should be gone is still there.
const MOMENT: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Spoilt {
    fault: Fault,
    keys: MemoryStore,
    kept: Mutex<HashMap<KeyDigest, (Arc<ApiKey>, Instant)>>,
    away: Mutex<HashSet<KeyDigest>>,
    turns: AtomicU64,
}

impl Spoilt {
    pub(crate) fn by(fault: Fault) -> Self {
        Self {
            fault,
            keys: MemoryStore::new(),
            kept: Mutex::default(),
            away: Mutex::default(),
            turns: AtomicU64::new(0),
        }
    }

    /// Now and then another thread gets its turn here, or another task.
    async fn turn(&self) {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        match turn % 7 {
            0 | 3 => std::thread::yield_now(),
            5 => tokio::task::yield_now().await,
            _ => {}
        }
    }

    fn keep(&self, key: Arc<ApiKey>) {
        self.kept.lock().unwrap().insert(key.digest, (key, Instant::now()));
    }

    fn kept(&self, digest: &KeyDigest) -> Option<Arc<ApiKey>> {
        let mut kept = self.kept.lock().unwrap();
        if kept.get(digest)?.1.elapsed() > MOMENT {
            kept.remove(digest);
        }
        kept.get(digest).map(|(key, _)| Arc::clone(key))
    }

    async fn stored(&self, org: &OrgId, id: &KeyId) -> Option<Arc<ApiKey>> {
        self.keys.get(org, id).await.unwrap()
    }
}

#[async_trait]
impl KeyStore for Spoilt {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.turn().await;
        let done = self.keys.insert(key, limit).await;
        self.turn().await;
        done
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        if let Some(key) = self.kept(digest) {
            return Ok(Some(key));
        }
        self.turn().await;
        let found = self.keys.find_by_digest(digest).await?;
        self.turn().await;
        if let (Fault::LateFill, Some(key)) = (self.fault, &found) {
            self.keep(Arc::clone(key));
        }
        let away = self.away.lock().unwrap().contains(digest);
        Ok(found.filter(|_| !away))
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.turn().await;
        self.keys.get(org, id).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.keys.list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let stored = self.stored(&key.org, &key.id).await;
        let digest = stored.as_ref().map_or(key.digest, |stored| stored.digest);
        if self.fault == Fault::AwayDuringEdits {
            self.away.lock().unwrap().insert(digest);
        }
        self.turn().await;
        let expected = match (self.fault, &stored) {
            (Fault::LostEdits, Some(stored)) if stored.digest == key.digest => stored.revision,
            _ => expected,
        };
        let done = self.keys.replace(key, expected).await;
        self.turn().await;
        self.away.lock().unwrap().remove(&digest);
        match (self.fault, stored) {
            (Fault::OldSecretLingers, Some(old)) if done.is_ok() && old.digest != key.digest => {
                self.keep(old);
            }
            (Fault::PreviousSecretLingers, Some(old)) if done.is_ok() => {
                let ended = old.previous.filter(|_| key.previous != old.previous);
                if let Some(ended) = ended {
                    self.kept.lock().unwrap().insert(ended.digest, (old, Instant::now()));
                }
            }
            (Fault::LateFill, _) => drop(self.kept.lock().unwrap().remove(&digest)),
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
        let stored = self.stored(org, id).await;
        self.turn().await;
        let done = self.keys.delete(org, id, expected).await;
        match (self.fault, stored) {
            (Fault::DeletedLingers, Some(old)) if done.is_ok() => self.keep(old),
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
