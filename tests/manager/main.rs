//! `KeyManager` from outside: what it owes its callers, whoever races and whatever fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "tokio")]

mod changes;
mod credentials;
mod faults;
mod health;
mod lifecycle;
mod limits;
mod races;
mod runtimes;
#[path = "../support/mod.rs"]
mod support;

use std::fmt;
use std::future::{Future, pending};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keygate::*;
use support::org;

fn ada() -> Actor {
    Actor::new(org("acme"), "ada@acme.example")
}

/// Of another organisation.
fn eve() -> Actor {
    Actor::new(org("evil"), "eve@evil.example")
}

fn name(name: &str) -> KeyName {
    KeyName::new(name).unwrap()
}

fn new_key() -> NewKey {
    NewKey::named("CI").unwrap()
}

fn rename(to: &str) -> KeyPatch {
    KeyPatch::rename(name(to))
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

fn no_key() -> KeyId {
    KeyId::from_bytes([7; 16])
}

fn networks(count: u8) -> Allowlist {
    Allowlist::parse((0..count).map(|i| format!("10.0.{i}.0/24"))).unwrap()
}

#[track_caller]
fn assert_unknown(result: Result<VerifiedKey, VerifyError>) {
    assert!(matches!(result, Err(VerifyError::Unknown)), "{result:?}");
}

#[track_caller]
fn assert_denied(result: Result<VerifiedKey, VerifyError>, expected: Denial) {
    assert!(
        matches!(result, Err(VerifyError::Denied { denial, .. }) if denial == expected),
        "{result:?}"
    );
}

#[track_caller]
fn assert_unavailable<T: fmt::Debug>(result: Result<T, ManageError>) {
    assert!(matches!(result, Err(ManageError::Unavailable(_))), "{result:?}");
}

#[track_caller]
fn assert_in_doubt<T: fmt::Debug>(result: Result<T, ManageError>) {
    assert!(matches!(result, Err(ManageError::InDoubt(_))), "{result:?}");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Insert,
    Find,
    Get,
    List,
    Replace,
    Delete,
    Uses,
}

type Hook = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync>;

/// A memory store that remembers its calls, and that a test can hold, or have
/// fail, before and after each of them.
#[derive(Default)]
struct Probe {
    inner: MemoryStore,
    calls: Mutex<Vec<Call>>,
    /// The digests that `replace` was given.
    offered: Mutex<Vec<KeyDigest>>,
    before: Mutex<Option<Hook>>,
    after: Mutex<Option<Hook>>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

fn hook<F>(hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Option<Hook>
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    Some(Arc::new(move |call| Box::pin(hook(call))))
}

impl Probe {
    fn before<F>(&self, each: impl Fn(Call) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        *self.before.lock().unwrap() = hook(each);
    }

    fn after<F>(&self, each: impl Fn(Call) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        *self.after.lock().unwrap() = hook(each);
    }

    fn heal(&self) {
        *self.before.lock().unwrap() = None;
        *self.after.lock().unwrap() = None;
    }

    /// The calls since the last time that this was asked; without those that
    /// the background task makes when it likes.
    fn take_calls(&self) -> Vec<Call> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.retain(|call| *call != Call::Uses);
        calls
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

    async fn snapshot(&self, org: &OrgId) -> Vec<ApiKey> {
        let keys = self.inner.list(org).await.unwrap();
        keys.iter().map(|key| ApiKey::clone(key)).collect()
    }
}

/// Before the next such call, somebody else changes the store.
fn interfere<F>(store: &Arc<Probe>, at: Call, change: impl FnOnce(Arc<Probe>) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let theirs = Mutex::new(Some((store.clone(), change)));
    store.before(move |call| {
        let now = if call == at { theirs.lock().unwrap().take() } else { None };
        async move {
            if let Some((store, change)) = now {
                change(store).await;
            }
            Ok(())
        }
    });
}

async fn change_first_key(store: &Probe, change: impl FnOnce(&mut ApiKey)) {
    let key = store.snapshot(&org("acme")).await.remove(0);
    let mut changed = ApiKey { revision: key.revision.next(), ..key.clone() };
    change(&mut changed);
    store.inner.replace(&changed, key.revision).await.unwrap();
}

async fn pass(hook: &Mutex<Option<Hook>>, call: Call) -> Result<(), StoreError> {
    let hook = hook.lock().unwrap().clone();
    match hook {
        Some(hook) => hook(call).await,
        None => Ok(()),
    }
}

#[async_trait]
impl KeyStore for Probe {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.around(Call::Insert, self.inner.insert(key, limit)).await
    }
    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.around(Call::Find, self.inner.find_by_digest(digest)).await
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
        self.around(Call::Uses, self.inner.record_uses(uses)).await
    }
}

/// A manager on a probed store with a readable audit log.
struct Bench {
    store: Arc<Probe>,
    log: Arc<MemoryAuditLog>,
    clock: Arc<ManualClock>,
    keys: KeyManager,
}

fn bench() -> Bench {
    bench_with(|builder| builder)
}

fn bench_with(more: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder) -> Bench {
    let (store, log) = (Arc::new(Probe::default()), Arc::new(MemoryAuditLog::new()));
    let start = Timestamp::parse("2027-01-31T10:00:00Z").unwrap();
    let clock = Arc::new(ManualClock::new(start));
    let builder = KeyManager::builder(store.clone()).audit(log.clone()).clock(clock.clone());
    let keys = more(builder).build().unwrap();
    Bench { store, log, clock, keys }
}

impl Bench {
    /// A manager on the same store, as another process has one.
    fn another(&self) -> KeyManager {
        let builder = KeyManager::builder(self.store.clone()).audit(self.log.clone());
        builder.clock(self.clock.clone()).build().unwrap()
    }

    async fn create(&self) -> IssuedKey {
        self.keys.create(&ada(), new_key()).await.unwrap()
    }

    async fn verify(&self, issued: &IssuedKey) -> Result<VerifiedKey, VerifyError> {
        self.keys.verify(issued.secret.expose_secret(), None).await
    }

    /// All changes to the keys of `acme`, oldest first.
    async fn changes(&self) -> Vec<(ChangeAction, ChangePhase)> {
        let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges).limit(200);
        let page = self.keys.audit_page(&query).await.unwrap().unwrap();
        assert!(page.older.is_none(), "more than a page");
        page.records.iter().rev().map(change_of).collect()
    }

    async fn snapshot(&self) -> Vec<ApiKey> {
        self.store.snapshot(&org("acme")).await
    }
}

fn change_of(record: &AuditRecord) -> (ChangeAction, ChangePhase) {
    match &record.event {
        AuditEvent::Change(change) => (change.action, change.phase),
        other => panic!("{other:?}"),
    }
}

async fn assert_not_found(b: &Bench, actor: &Actor, id: &KeyId) {
    let keys = &b.keys;
    let first = Revision::FIRST;
    let results = [
        keys.get(actor.org(), id).await.map(drop),
        keys.update(actor, id, KeyPatch::revoke()).await.map(drop),
        keys.update(actor, id, KeyPatch::default()).await.map(drop),
        keys.update_if(actor, id, KeyPatch::revoke(), first).await.map(drop),
        keys.update_if(actor, id, KeyPatch::revoke(), first.next()).await.map(drop),
        keys.rotate(actor, id).await.map(drop),
        keys.delete(actor, id).await,
    ];
    for (at, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(ManageError::NotFound)), "{at}: {result:?}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ill {
    Errs,
    Rejects,
    Hangs,
    Panics,
}

/// A sink that fails while the test says so.
#[derive(Debug)]
struct IllSink {
    ill: Arc<Mutex<Option<Ill>>>,
    log: Arc<MemoryAuditLog>,
}

#[async_trait]
impl AuditSink for IllSink {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        let ill = *self.ill.lock().unwrap();
        match ill {
            None => self.log.record(batch).await,
            Some(Ill::Errs) => Err(AuditError::unavailable("disk full")),
            Some(Ill::Rejects) => Err(AuditError::rejected("no such table")),
            Some(Ill::Hangs) => pending().await,
            Some(Ill::Panics) => panic!("the sink of a test panics"),
        }
    }
}

fn works(health: &HealthReport) -> [bool; 3] {
    [&health.lookups, &health.changes, &health.audit_log].map(PartHealth::works)
}
