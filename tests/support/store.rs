//! A memory store that records its calls and that a test can pause or break.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keygate::runtime::BoxFuture;
use keygate::store::{
    KeyDigest, KeyImport, KeySearch, KeyUse, OrgLimit, Revision, Search, SearchCursor, SearchPage,
};
use keygate::{ApiKey, KeyId, KeyStore, MemoryStore, OrgId, StoreError};
use tokio::sync::Notify;

use super::soon;

/// Holds a call until the test opens it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) reached: Notify,
    pub(crate) opened: Notify,
}

impl Gate {
    async fn pass(&self) {
        self.reached.notify_one();
        self.opened.notified().await;
    }

    /// Waits for a call that stops here.
    pub(crate) async fn reached(&self) {
        soon(self.reached.notified()).await;
    }

    /// Lets one call continue.
    pub(crate) fn open(&self) {
        self.opened.notify_one();
    }
}

/// What a look-up by digest does.
#[derive(Clone, Debug, Default)]
pub(crate) enum Find {
    #[default]
    Honest,
    Fails,
    Corrupt,
    Hangs,
    Slow(Duration),
    /// Finds this key for every digest.
    Always(Arc<ApiKey>),
    HeldBefore(Arc<Gate>),
    HeldAfter(Arc<Gate>),
}

/// A method of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Insert,
    Find,
    Get,
    List,
    Replace,
    Delete,
    Uses,
}

type Hook = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync>;

/// A `MemoryStore` that records its calls. A test can delay each call or make it fail, before
/// and after the store does its part, and can break the look-ups by digest.
#[derive(Default)]
pub(crate) struct SpyStore {
    pub(crate) inner: MemoryStore,
    calls: Mutex<Vec<Call>>,
    /// The digests passed to `replace`.
    pub(crate) offered: Mutex<Vec<KeyDigest>>,
    /// The uses passed to `record_uses`, call by call.
    pub(crate) uses: Mutex<Vec<Vec<KeyUse>>>,
    before: Mutex<Option<Hook>>,
    after: Mutex<Option<Hook>>,
    find: Mutex<Find>,
}

impl fmt::Debug for SpyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpyStore")
    }
}

fn hook<F>(hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Option<Hook>
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    Some(Arc::new(move |call| Box::pin(hook(call))))
}

fn hold(held: Call) -> (Arc<Gate>, Option<Hook>) {
    let gate = Arc::new(Gate::default());
    let shared = Arc::clone(&gate);
    let each = hook(move |call| {
        let gate = Arc::clone(&shared);
        async move {
            if call == held {
                gate.pass().await;
            }
            Ok(())
        }
    });
    (gate, each)
}

async fn pass(hook: &Mutex<Option<Hook>>, call: Call) -> Result<(), StoreError> {
    let hook = hook.lock().unwrap().clone();
    match hook {
        Some(hook) => hook(call).await,
        None => Ok(()),
    }
}

impl SpyStore {
    pub(crate) fn before<F>(&self, each: impl Fn(Call) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        *self.before.lock().unwrap() = hook(each);
    }

    pub(crate) fn after<F>(&self, each: impl Fn(Call) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        *self.after.lock().unwrap() = hook(each);
    }

    pub(crate) fn find(&self, find: Find) {
        *self.find.lock().unwrap() = find;
    }

    /// Makes later calls of that method stop before the store does its part.
    pub(crate) fn hold_before(&self, held: Call) -> Arc<Gate> {
        let (gate, each) = hold(held);
        *self.before.lock().unwrap() = each;
        gate
    }

    /// Makes later calls of that method stop after the store has done its part.
    pub(crate) fn hold_after(&self, held: Call) -> Arc<Gate> {
        let (gate, each) = hold(held);
        *self.after.lock().unwrap() = each;
        gate
    }

    pub(crate) fn heal(&self) {
        *self.before.lock().unwrap() = None;
        *self.after.lock().unwrap() = None;
        self.find(Find::Honest);
    }

    /// The number of calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// The number of look-ups by digest so far.
    pub(crate) fn finds(&self) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| **call == Call::Find).count()
    }

    /// The calls since the last `take_calls`, without those of the background task.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.retain(|call| *call != Call::Uses);
        calls
    }

    pub(crate) async fn snapshot(&self, org: &OrgId) -> Vec<ApiKey> {
        let keys = self.inner.list(org).await.unwrap();
        keys.iter().map(|key| ApiKey::clone(key)).collect()
    }

    async fn around<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.calls.lock().unwrap().push(call);
        pass(&self.before, call).await?;
        let done = work.await;
        pass(&self.after, call).await?;
        done
    }

    async fn look_up(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let find = self.find.lock().unwrap().clone();
        match find {
            Find::Honest => {}
            Find::Fails => return Err(StoreError::unavailable("connection refused")),
            Find::Corrupt => return Err(StoreError::corrupt("a row that is not a key")),
            Find::Hangs => std::future::pending().await,
            Find::Slow(time) => tokio::time::sleep(time).await,
            Find::Always(key) => return Ok(Some(key)),
            Find::HeldBefore(gate) => gate.pass().await,
            Find::HeldAfter(gate) => {
                let found = self.inner.find_by_digest(digest).await;
                gate.pass().await;
                return found;
            }
        }
        self.inner.find_by_digest(digest).await
    }
}

#[async_trait]
impl KeySearch for SpyStore {
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.inner.find_by_id(id).await
    }

    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError> {
        self.inner.search(search, after, limit).await
    }
}

#[async_trait]
impl KeyStore for SpyStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.around(Call::Insert, self.inner.insert(key, limit)).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.around(Call::Find, self.look_up(digest)).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.around(Call::Get, self.inner.get(org, id)).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.around(Call::List, self.inner.list(org)).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.offered.lock().unwrap().push(key.digest);
        self.around(Call::Replace, self.inner.replace(key, expected)).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.around(Call::Delete, self.inner.delete(org, id, expected)).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.uses.lock().unwrap().push(uses.to_vec());
        self.around(Call::Uses, self.inner.record_uses(uses)).await
    }
}

#[async_trait]
impl KeyImport for SpyStore {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        self.around(Call::Insert, self.inner.insert_all(keys)).await
    }
}
