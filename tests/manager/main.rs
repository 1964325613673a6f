//! `KeyManager` from outside: its guarantees under races and faults.
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
mod environments;
mod events;
mod faults;
mod health;
mod lifecycle;
mod limits;
mod operator;
mod overlap;
mod races;
mod reading;
mod runtimes;
mod scopes;
#[path = "../support/mod.rs"]
mod support;

use std::fmt;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use keygate::audit::{AuditEvent, AuditQuery, AuditRecord, AuditScope, ChangeAction, ChangePhase};
use keygate::manager::{HealthReport, IssuedKey, KeyManagerBuilder, PartHealth};
use keygate::runtime::ManualClock;
use keygate::store::Revision;
use keygate::*;
use support::{Call, SpyStore, org, soon};
use tokio::sync::Semaphore;

fn ada() -> Actor {
    Actor::new(org("acme"), "ada@acme.example")
}

/// An actor of another organisation.
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
fn assert_stale<T: fmt::Debug>(result: Result<T, ManageError>, now: Revision) {
    assert!(
        matches!(result, Err(ManageError::StaleRevision { current }) if current == now),
        "{result:?}"
    );
}

#[track_caller]
fn assert_gone<T: fmt::Debug>(result: Result<T, ManageError>) {
    assert!(matches!(result, Err(ManageError::NotFound)), "{result:?}");
}

#[track_caller]
fn assert_unavailable<T: fmt::Debug>(result: Result<T, ManageError>) {
    assert!(matches!(result, Err(ManageError::Unavailable(_))), "{result:?}");
}

#[track_caller]
fn assert_in_doubt<T: fmt::Debug>(result: Result<T, ManageError>) {
    assert!(matches!(result, Err(ManageError::InDoubt(_))), "{result:?}");
}

/// Before the next such call, another caller changes the store.
fn interfere<F>(
    store: &Arc<SpyStore>,
    at: Call,
    change: impl FnOnce(Arc<SpyStore>) -> F + Send + 'static,
) where
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

/// Makes each later call of these methods fail, before the store does its part.
fn fail(store: &SpyStore, calls: &'static [Call], error: fn() -> StoreError) {
    store.before(move |call| ready(if calls.contains(&call) { Err(error()) } else { Ok(()) }));
}

/// Holds each later call of a method until there is a permit for it.
fn hold(store: &SpyStore, held: Call) -> Arc<Semaphore> {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    store.before(move |call| {
        let gate = Arc::clone(&gate);
        async move {
            if call == held {
                gate.acquire().await.unwrap().forget();
            }
            Ok(())
        }
    });
    permits
}

/// The results of tasks that run at the same time.
async fn concurrently<F: Future<Output: Send> + Send + 'static>(
    count: usize,
    work: impl Fn(usize) -> F,
) -> Vec<F::Output> {
    let tasks: Vec<_> = (0..count).map(|number| tokio::spawn(work(number))).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(soon(task).await.unwrap());
    }
    results
}

async fn change_first_key(store: &SpyStore, change: impl FnOnce(&mut ApiKey)) {
    let key = store.snapshot(&org("acme")).await.remove(0);
    let mut changed = ApiKey { revision: key.revision.next(), ..key.clone() };
    change(&mut changed);
    store.inner.replace(&changed, key.revision).await.unwrap();
}

/// A manager on a spy store with a readable audit log.
struct Bench {
    store: Arc<SpyStore>,
    log: Arc<MemoryAuditLog>,
    clock: Arc<ManualClock>,
    keys: KeyManager,
}

fn bench() -> Bench {
    bench_with(|builder| builder)
}

fn bench_with(more: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder) -> Bench {
    let (store, log) = (Arc::new(SpyStore::default()), Arc::new(MemoryAuditLog::new()));
    let start = "2027-01-31T10:00:00Z".parse::<Timestamp>().unwrap();
    let clock = Arc::new(ManualClock::new(start));
    let builder = KeyManager::builder(store.clone()).audit(log.clone()).clock(clock.clone());
    let keys = more(builder).build().unwrap();
    Bench { store, log, clock, keys }
}

impl Bench {
    /// A second manager on the same store, like another process.
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
        let change = |record: &AuditRecord| {
            let AuditEvent::Change(change) = &record.event else { panic!("{record:?}") };
            (change.action, change.phase)
        };
        page.records.iter().rev().map(change).collect()
    }

    /// The results of a creation, and of an edit, a rotation and a deletion of this key.
    async fn change(&self, id: &KeyId) -> [Result<(), ManageError>; 4] {
        [
            soon(self.keys.create(&ada(), new_key())).await.map(drop),
            soon(self.keys.update(&ada(), id, KeyPatch::revoke())).await.map(drop),
            soon(self.keys.rotate(&ada(), id)).await.map(drop),
            soon(self.keys.delete(&ada(), id)).await,
        ]
    }

    async fn snapshot(&self) -> Vec<ApiKey> {
        self.store.snapshot(&org("acme")).await
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
    results.into_iter().for_each(assert_gone);
}

fn works(health: &HealthReport) -> [bool; 3] {
    [&health.lookups, &health.changes, &health.audit_log].map(PartHealth::works)
}
