//! `KeyManager` from outside: what it owes its callers, whoever races and whatever fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "tokio")]

use std::fmt;
use std::future::{Future, pending};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keygate::*;
use tokio::sync::{Barrier, Semaphore};

// ---- the parts that the tests are made of ----

fn org(id: &str) -> OrgId {
    OrgId::new(id).unwrap()
}

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

/// Far longer than anything here takes, and far shorter than what hangs.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("in time")
}

/// Waits until the condition holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
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

use ChangeAction::{Created, Deleted, Rotated, Updated};
use ChangePhase::{Abandoned, Begun};

// ---- the life of a key ----

#[tokio::test]
async fn create_stores_a_digest_and_shows_the_key_once() {
    let b = bench();
    let new = new_key().expires(Expiration::OneMonth).allow(["10.0.0.0/8"]).unwrap();
    let issued = b.keys.create(&ada(), new).await.unwrap();
    let secret = issued.secret.expose_secret();

    let stored = b.snapshot().await;
    assert_eq!(stored, [ApiKey::clone(&issued.key)]);
    let mut expected = ApiKey {
        id: issued.key.id,
        org: org("acme"),
        name: name("CI"),
        key_prefix: secret[..12].to_owned(),
        digest: KeyDigest::of(secret),
        allowlist: Allowlist::parse(["10.0.0.0/8"]).unwrap(),
        created_at: b.clock.now(),
        expires_at: Timestamp::parse("2027-02-28T10:00:00Z"),
        ..ApiKey::sample(0)
    };
    expected.attributes.created_by = Some(ada().name().to_owned());
    assert_eq!(stored[0], expected);
    let shown = format!("{issued:?} {} {:?} {:?}", issued.secret, b.keys, b.log);
    assert!(!shown.contains(&secret[12..]));

    let verified = b.keys.verify(secret, ip("10.1.2.3")).await.unwrap();
    assert_eq!(
        (verified.org(), verified.id(), verified.name().as_str()),
        (&org("acme"), issued.key.id, "CI")
    );
    assert_eq!(verified.record(), &stored[0]);
}

#[tokio::test]
async fn the_list_is_oldest_first_with_revoked_and_expired_keys() {
    let b = bench();
    let mut ids = Vec::new();
    for name in ["first", "second", "third"] {
        let new = NewKey::named(name).unwrap().expires(Expiration::OneDay);
        ids.push(b.keys.create(&ada(), new).await.unwrap().key.id);
        b.clock.advance(Duration::from_secs(1));
    }
    b.keys.update(&ada(), &ids[0], KeyPatch::revoke()).await.unwrap();
    b.clock.advance(Duration::from_secs(2 * 86_400));
    let list = b.keys.list(&org("acme")).await.unwrap();
    assert_eq!(list.iter().map(|key| key.id).collect::<Vec<_>>(), ids);
    assert_eq!(list[0].status, Status::Revoked);
    assert!(list.iter().all(|key| key.is_expired(b.clock.now())));
    assert_eq!(*b.keys.get(&org("acme"), &ids[1]).await.unwrap(), *list[1]);
}

#[tokio::test]
async fn an_update_changes_name_status_and_allowlist_and_nothing_else() {
    let b = bench();
    let issued = b.create().await;
    let id = issued.key.id;
    let before = ApiKey::clone(&issued.key);
    type Change = fn(&mut ApiKey);
    let changes: [(KeyPatch, Change); 4] = [
        (rename("new"), |key| key.name = name("new")),
        (KeyPatch::restrict(networks(1)), |key| key.allowlist = networks(1)),
        (KeyPatch::revoke(), |key| key.status = Status::Revoked),
        (KeyPatch::enable(), |key| key.status = Status::Active),
    ];
    let mut expected = before;
    for (patch, change) in changes {
        change(&mut expected);
        expected.revision = expected.revision.next();
        b.clock.advance(Duration::from_secs(1));
        let updated = b.keys.update(&ada(), &id, patch).await.unwrap();
        assert_eq!((&*updated, b.snapshot().await), (&expected, vec![expected.clone()]));
    }

    let mut all = KeyPatch::revoke();
    all.name = Some(name("all"));
    all.allowlist = Some(Allowlist::default());
    let updated = b.keys.update(&ada(), &id, all).await.unwrap();
    assert_eq!(updated.revision, expected.revision.next(), "three edits, one change");
}

#[tokio::test]
async fn revoking_stops_a_key_and_enabling_lets_it_in_again() {
    let b = bench();
    let issued = b.create().await;
    // So often that a thread may keep it at hand.
    for _ in 0..100 {
        b.verify(&issued).await.unwrap();
    }
    b.keys.update(&ada(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_denied(b.verify(&issued).await, Denial::Revoked);
    b.keys.update(&ada(), &issued.key.id, KeyPatch::enable()).await.unwrap();
    b.verify(&issued).await.unwrap();
}

#[tokio::test]
async fn an_update_that_changes_nothing_writes_nothing_and_leaves_no_record() {
    let b = bench();
    let issued = b.create().await;
    let id = issued.key.id;
    b.store.take_calls();
    for patch in [KeyPatch::default(), KeyPatch::enable(), rename(" CI ")] {
        let same = b.keys.update(&ada(), &id, patch.clone()).await.unwrap();
        assert_eq!(same, issued.key);
        let same = b.keys.update_if(&ada(), &id, patch, Revision::FIRST).await.unwrap();
        assert_eq!(same, issued.key);
    }
    assert!(b.store.take_calls().iter().all(|call| *call == Call::Get));
    assert_eq!(b.changes().await, [(Created, Begun)]);
}

#[tokio::test]
async fn update_if_writes_only_at_the_revision_it_was_meant_for() {
    let b = bench();
    let id = b.create().await.key.id;
    let second = b.keys.update_if(&ada(), &id, rename("b"), Revision::FIRST).await.unwrap();
    assert_eq!(second.revision, Revision::new(2));
    let before = b.snapshot().await;
    for stale in [Revision::FIRST, Revision::new(3)] {
        let refused = b.keys.update_if(&ada(), &id, KeyPatch::revoke(), stale).await;
        assert!(
            matches!(refused, Err(ManageError::StaleRevision { current }) if current == second.revision)
        );
    }
    assert_eq!(b.snapshot().await, before);
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun)]);
}

#[tokio::test]
async fn update_if_loses_to_an_edit_between_its_read_and_its_write() {
    let b = bench();
    let id = b.create().await.key.id;
    interfere(&b.store, Call::Replace, |store| async move {
        change_first_key(&store, |key| key.name = name("theirs")).await;
    });
    let lost = b.keys.update_if(&ada(), &id, rename("mine"), Revision::FIRST).await;
    assert!(
        matches!(lost, Err(ManageError::StaleRevision { current }) if current == Revision::new(2))
    );
    assert_eq!(b.snapshot().await[0].name, name("theirs"));
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun), (Updated, Abandoned)]);
}

#[tokio::test]
async fn case_50_rotate_if_and_delete_if_change_only_the_revision_they_were_meant_for() {
    let b = bench();
    let id = b.create().await.key.id;
    b.keys.update(&ada(), &id, rename("b")).await.unwrap();
    let (before, second) = (b.snapshot().await, Revision::new(2));
    let is_stale = |current| current == second;
    for stale in [Revision::FIRST, Revision::new(3)] {
        let refused = b.keys.rotate_if(&ada(), &id, stale).await;
        assert!(
            matches!(refused, Err(ManageError::StaleRevision { current }) if is_stale(current))
        );
        let refused = b.keys.delete_if(&ada(), &id, stale).await;
        assert!(
            matches!(refused, Err(ManageError::StaleRevision { current }) if is_stale(current))
        );
    }
    assert_eq!(b.snapshot().await, before);
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun)]);
    let third = b.keys.rotate_if(&ada(), &id, second).await.unwrap().key;
    assert_eq!((third.revision, b.snapshot().await), (Revision::new(3), vec![(*third).clone()]));
    b.keys.delete_if(&ada(), &id, third.revision).await.unwrap();
    assert_eq!(b.snapshot().await, []);
    let gone = b.keys.delete_if(&ada(), &id, third.revision).await;
    assert!(matches!(gone, Err(ManageError::NotFound)), "{gone:?}");
}

#[tokio::test]
async fn case_50_rotate_if_and_delete_if_lose_to_an_edit_between_their_read_and_their_write() {
    for (action, at) in [(Rotated, Call::Replace), (Deleted, Call::Delete)] {
        let b = bench();
        let issued = b.create().await;
        let id = issued.key.id;
        interfere(&b.store, at, |store| async move {
            change_first_key(&store, |key| key.name = name("theirs")).await;
        });
        let lost = match action {
            Rotated => b.keys.rotate_if(&ada(), &id, Revision::FIRST).await.map(drop),
            _ => b.keys.delete_if(&ada(), &id, Revision::FIRST).await,
        };
        assert!(
            matches!(lost, Err(ManageError::StaleRevision { current }) if current == Revision::new(2)),
            "{lost:?}"
        );
        assert_eq!(b.snapshot().await[0].name, name("theirs"));
        b.verify(&issued).await.unwrap();
        assert_eq!(b.changes().await, [(Created, Begun), (action, Begun), (action, Abandoned)]);
    }
}

#[tokio::test]
async fn an_update_that_is_always_overtaken_ends_as_a_conflict() {
    let b = bench();
    let id = b.create().await.key.id;
    b.store.before(|call| async move {
        if call == Call::Replace { Err(StoreError::Conflict) } else { Ok(()) }
    });
    let lost = soon(b.keys.update(&ada(), &id, rename("b"))).await;
    assert!(matches!(lost, Err(ManageError::Conflict)), "{lost:?}");
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun), (Updated, Abandoned)]);
}

#[tokio::test]
async fn rotate_changes_the_secret_and_nothing_else() {
    let b = bench();
    let new = new_key().expires(Expiration::OneDay).allow(["192.0.2.0/24"]).unwrap();
    let first = b.keys.create(&ada(), new).await.unwrap();
    let id = first.key.id;
    b.clock.advance(Duration::from_secs(60));
    let second = b.keys.rotate(&ada(), &id).await.unwrap();
    let secret = second.secret.expose_secret();
    let expected = ApiKey {
        digest: KeyDigest::of(secret),
        key_prefix: secret[..12].to_owned(),
        rotated_at: Some(b.clock.now()),
        revision: Revision::new(2),
        ..ApiKey::clone(&first.key)
    };
    assert_eq!((&*second.key, b.snapshot().await), (&expected, vec![expected.clone()]));
    let from = ip("192.0.2.1");
    assert_unknown(b.keys.verify(first.secret.expose_secret(), from).await);
    b.keys.verify(secret, from).await.unwrap();

    // A new secret is no way round a revocation, an expiry or an allowlist.
    assert_denied(b.keys.verify(secret, ip("198.51.100.1")).await, Denial::IpNotAllowed);
    b.keys.update(&ada(), &id, KeyPatch::revoke()).await.unwrap();
    let third = b.keys.rotate(&ada(), &id).await.unwrap();
    assert_denied(b.keys.verify(third.secret.expose_secret(), from).await, Denial::Revoked);
    b.keys.update(&ada(), &id, KeyPatch::enable()).await.unwrap();
    b.clock.advance(Duration::from_secs(86_400));
    let fourth = b.keys.rotate(&ada(), &id).await.unwrap();
    assert_denied(b.keys.verify(fourth.secret.expose_secret(), from).await, Denial::Expired);
}

#[tokio::test]
async fn delete_removes_the_key_and_keeps_its_records() {
    let b = bench();
    let issued = b.create().await;
    let id = issued.key.id;
    b.keys.delete(&ada(), &id).await.unwrap();
    assert_unknown(b.verify(&issued).await);
    assert!(b.keys.list(&org("acme")).await.unwrap().is_empty());
    let query = AuditQuery::new(org("acme"), AuditScope::KeyChanges(id));
    let page = b.keys.audit_page(&query).await.unwrap().unwrap();
    let kept: Vec<_> = page.records.iter().map(change_of).collect();
    assert_eq!(kept, [(Deleted, Begun), (Created, Begun)]);
}

#[tokio::test]
async fn whatever_is_done_to_a_key_that_is_not_there_is_not_found() {
    let b = bench();
    let gone = b.create().await.key.id;
    b.keys.delete(&ada(), &gone).await.unwrap();
    let records = b.log.len();
    for id in [gone, no_key()] {
        assert_not_found(&b, &ada(), &id).await;
    }
    assert_eq!(b.log.len(), records, "a change that was never begun leaves no record");
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

#[tokio::test]
async fn a_clone_is_another_handle_to_the_same_manager() {
    let b = bench();
    let other = b.keys.clone();
    let issued = b.create().await;
    other.verify(issued.secret.expose_secret(), None).await.unwrap();
    other.update(&ada(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_denied(b.verify(&issued).await, Denial::Revoked);
    assert_eq!(other.audit_stats(), b.keys.audit_stats());
    let report = other.shutdown(Duration::from_secs(5)).await;
    assert!(report.is_complete());
    assert_unavailable(b.keys.create(&ada(), new_key()).await);
}

#[tokio::test]
async fn a_prefix_of_ones_own_marks_every_key() {
    let custom = bench_with(|builder| builder.format(KeyFormat::new("acme_").unwrap()));
    let issued = custom.create().await;
    let secret = issued.secret.expose_secret();
    assert!(secret.starts_with("acme_") && secret.len() == 53);
    assert_eq!(issued.key.key_prefix, secret[..12]);
    assert_eq!(custom.keys.format().prefix(), "acme_");
    custom.verify(&issued).await.unwrap();
    let rotated = custom.keys.rotate(&ada(), &issued.key.id).await.unwrap();
    assert!(rotated.secret.expose_secret().starts_with("acme_"));

    // Keys of another format are not even looked up.
    let other = bench();
    let foreign = other.create().await;
    custom.store.take_calls();
    let refused = custom.verify(&foreign).await;
    assert!(matches!(refused, Err(VerifyError::Malformed(_))));
    assert_eq!(custom.store.take_calls(), []);

    let long = bench_with(|builder| builder.format(KeyFormat::new("a_long_prefix_").unwrap()));
    let issued = long.create().await;
    assert_eq!(issued.key.key_prefix, issued.secret.expose_secret()[..14 + 5]);
}

// ---- limits and expiry ----

#[tokio::test]
async fn an_organisation_has_at_most_20_keys_revoked_and_expired_ones_included() {
    let b = bench();
    let mut ids = Vec::new();
    for at in 0..20 {
        let new = if at < 3 { new_key().expires(Expiration::OneDay) } else { new_key() };
        ids.push(b.keys.create(&ada(), new).await.unwrap().key.id);
    }
    b.keys.update(&ada(), &ids[5], KeyPatch::revoke()).await.unwrap();
    b.clock.advance(Duration::from_secs(2 * 86_400));
    let (before, records) = (b.snapshot().await, b.log.len());

    let refused = b.keys.create(&ada(), new_key()).await;
    assert!(matches!(refused, Err(ManageError::LimitReached { max: 20 })), "{refused:?}");
    assert_eq!((b.snapshot().await, b.log.len()), (before, records));

    b.keys.create(&eve(), new_key()).await.expect("each organisation has a limit of its own");
    b.keys.delete(&ada(), &ids[0]).await.unwrap();
    b.create().await;
    assert!(b.keys.create(&ada(), new_key()).await.is_err());
}

#[tokio::test]
async fn an_allowlist_has_at_most_50_entries() {
    let b = bench();
    let fits = b.keys.create(&ada(), new_key().allowlist(networks(50))).await.unwrap();
    let (before, records) = (b.snapshot().await, b.log.len());
    let created = b.keys.create(&ada(), new_key().allowlist(networks(51))).await;
    assert!(matches!(created, Err(ManageError::AllowlistTooLong { max: 50 })));
    let patch = KeyPatch::restrict(networks(51));
    let updated = b.keys.update(&ada(), &fits.key.id, patch).await;
    assert!(matches!(updated, Err(ManageError::AllowlistTooLong { max: 50 })));
    assert_eq!((b.snapshot().await, b.log.len()), (before, records));
}

#[tokio::test]
async fn limits_are_the_hosts_to_set() {
    let b = bench_with(|builder| builder.limits(Limits::default().max_keys(2).max_ips_per_key(1)));
    assert_eq!(b.keys.limits(), Limits::default().max_keys(2).max_ips_per_key(1));
    b.create().await;
    let two = b.keys.create(&ada(), new_key().allowlist(networks(2))).await;
    assert!(matches!(two, Err(ManageError::AllowlistTooLong { max: 1 })));
    b.keys.create(&ada(), new_key().allowlist(networks(1))).await.unwrap();
    let third = b.keys.create(&ada(), new_key()).await;
    assert!(matches!(third, Err(ManageError::LimitReached { max: 2 })));

    let none =
        bench_with(|builder| builder.limits(Limits::default().max_keys(0).max_ips_per_key(0)));
    let first = none.keys.create(&ada(), new_key()).await;
    assert!(matches!(first, Err(ManageError::LimitReached { max: 0 })));
}

#[tokio::test]
async fn case_10_a_key_is_good_up_to_its_expiry_and_refused_at_that_very_instant() {
    let b = bench();
    let created = b.clock.now();
    let exactly = created.saturating_add(Duration::from_micros(1));
    for (expiration, expires) in [
        (Expiration::OneDay, "2027-02-01T10:00:00Z"),
        (Expiration::OneWeek, "2027-02-07T10:00:00Z"),
        (Expiration::OneMonth, "2027-02-28T10:00:00Z"),
        (Expiration::ThreeMonths, "2027-04-30T10:00:00Z"),
        (Expiration::OneYear, "2028-01-31T10:00:00Z"),
        (Expiration::At(exactly), "2027-01-31T10:00:00.000001Z"),
    ] {
        b.clock.set(created);
        let issued = b.keys.create(&ada(), new_key().expires(expiration)).await.unwrap();
        let at = Timestamp::parse(expires).unwrap();
        assert_eq!(issued.key.expires_at, Some(at), "{expiration}");
        b.clock.set(at.saturating_sub(Duration::from_micros(1)));
        b.verify(&issued).await.unwrap();
        b.clock.set(at);
        assert_denied(b.verify(&issued).await, Denial::Expired);
    }
    b.clock.set(created);
    let never = b.create().await;
    b.clock.set(Timestamp::MAX);
    b.verify(&never).await.unwrap();
}

#[tokio::test]
async fn case_10_a_clock_that_steps_back_panics_nothing() {
    let b = bench();
    let issued = b.keys.create(&ada(), new_key().expires(Expiration::OneDay)).await.unwrap();
    let created = b.clock.now();
    b.clock.advance(Duration::from_secs(86_400));
    assert_denied(b.verify(&issued).await, Denial::Expired);
    // As documented: valid again for as long as the clock says so.
    for now in [created, created.saturating_sub(Duration::from_secs(3_600)), Timestamp::MIN] {
        b.clock.set(now);
        b.verify(&issued).await.unwrap();
        let rotated = b.keys.rotate(&ada(), &b.create().await.key.id).await.unwrap();
        b.verify(&rotated).await.unwrap();
    }
    assert!(b.keys.shutdown(Duration::from_secs(5)).await.is_complete());
}

#[tokio::test]
async fn an_expiration_that_is_not_in_the_future_is_refused() {
    let b = bench();
    let now = b.clock.now();
    for at in [now, now.saturating_sub(Duration::from_micros(1)), Timestamp::MIN] {
        let refused = b.keys.create(&ada(), new_key().expires(Expiration::At(at))).await;
        assert!(matches!(refused, Err(ManageError::ExpirationInThePast)), "{at}: {refused:?}");
    }
    b.clock.set(Timestamp::MAX);
    let refused = b.keys.create(&ada(), new_key().expires(Expiration::OneDay)).await;
    assert!(matches!(refused, Err(ManageError::ExpirationInThePast)), "a day after the last");
    assert_eq!((b.snapshot().await, b.log.len()), (vec![], 0));
}

#[tokio::test]
async fn a_slow_store_prolongs_no_key() {
    let b = bench();
    let issued = b.keys.create(&ada(), new_key().expires(Expiration::OneDay)).await.unwrap();
    let clock = b.clock.clone();
    b.store.after(move |_| {
        clock.advance(Duration::from_secs(86_400));
        async { Ok(()) }
    });
    assert_denied(b.verify(&issued).await, Denial::Expired);
}

/// As many good fills as it was told, and then none.
#[derive(Debug)]
struct RunsDry(AtomicUsize);

impl Random for RunsDry {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        let left = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| RandomError::new("no entropy"))?;
        SystemRandom.fill(bytes)
    }
}

#[tokio::test]
async fn without_random_bytes_there_is_no_key() {
    let store = Arc::new(Probe::default());
    let built = KeyManager::builder(store.clone()).random(RunsDry(0.into())).build();
    assert!(matches!(built, Err(BuildError::Random(_))));
    for fills in 1..10 {
        let b = bench_with(|builder| builder.random(RunsDry(fills.into())));
        match b.keys.create(&ada(), new_key()).await {
            Ok(_) => return assert!(fills >= 3, "an id, a secret and the manager's own"),
            failed => assert_unavailable(failed),
        }
        assert_eq!((b.snapshot().await, b.log.len()), (vec![], 0));
    }
    panic!("never enough");
}

// ---- changes and their audit records ----

/// Remembers each record, with how the store looked when it was written.
#[derive(Debug)]
struct Witness {
    store: Arc<Probe>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

type Seen = (AuditRecord, Vec<ApiKey>);

#[async_trait]
impl AuditSink for Witness {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        for record in batch {
            let keys = self.store.snapshot(&record.org).await;
            self.seen.lock().unwrap().push((record.clone(), keys));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_change_is_on_record_before_it_takes_effect() {
    let store = Arc::new(Probe::default());
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let witness = Witness { store: store.clone(), seen: Arc::clone(&seen) };
    let b = bench_with(|_| KeyManager::builder(store.clone()).audit_sink(witness));
    let mut before = Vec::new();
    let mut history = vec![];
    let issued = b.create().await;
    let id = issued.key.id;
    for action in [Created, Updated, Rotated, Deleted] {
        match action {
            Updated => drop(b.keys.update(&ada(), &id, rename("b")).await.unwrap()),
            Rotated => drop(b.keys.rotate(&ada(), &id).await.unwrap()),
            Deleted => b.keys.delete(&ada(), &id).await.unwrap(),
            _ => {}
        }
        history.push((action, std::mem::replace(&mut before, store.snapshot(&org("acme")).await)));
        assert_ne!(history.last().unwrap().1, before, "the change took place");
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    for ((record, keys), (action, before)) in seen.iter().zip(&history) {
        let actor: Arc<str> = "ada@acme.example".into();
        let event = AuditEvent::Change(ChangeEvent::new(actor, *action, Begun));
        assert_eq!((&record.org, record.key, &record.event), (&org("acme"), id, &event));
        assert_eq!(keys, before, "{action:?} was there before its record");
    }
}

#[tokio::test]
async fn the_time_of_a_changes_record_is_the_managers() {
    let b = bench();
    b.clock.advance(Duration::from_micros(1));
    let id = b.create().await.key.id;
    let query = AuditQuery::new(org("acme"), AuditScope::KeyChanges(id));
    let page = b.keys.audit_page(&query).await.unwrap().unwrap();
    assert_eq!(page.records[0].at, b.clock.now());
}

#[tokio::test]
async fn a_change_that_did_not_happen_is_on_record_as_abandoned() {
    // The last place is taken between the count and the insert.
    let b = bench_with(|builder| builder.limits(Limits::default().max_keys(1)));
    interfere(&b.store, Call::Insert, |store| async move {
        let other = bench().create().await;
        store.inner.insert(&other.key, OrgLimit::NONE).await.unwrap();
    });
    let full = b.keys.create(&ada(), new_key()).await;
    assert!(matches!(full, Err(ManageError::LimitReached { max: 1 })), "{full:?}");
    assert_eq!(b.changes().await, [(Created, Begun), (Created, Abandoned)]);

    // The key is deleted between the read and the write.
    for action in [Updated, Rotated, Deleted] {
        let b = bench();
        let id = b.create().await.key.id;
        let at = if action == Deleted { Call::Delete } else { Call::Replace };
        interfere(&b.store, at, move |store| async move {
            store.inner.delete(&org("acme"), &id, None).await.unwrap();
        });
        let gone = match action {
            Updated => b.keys.update(&ada(), &id, rename("b")).await.map(drop),
            Rotated => b.keys.rotate(&ada(), &id).await.map(drop),
            _ => b.keys.delete(&ada(), &id).await,
        };
        assert!(matches!(gone, Err(ManageError::NotFound)), "{action:?}: {gone:?}");
        assert_eq!(b.changes().await, [(Created, Begun), (action, Begun), (action, Abandoned)]);
    }

    // Edited first, so that the update reads again, and deleted then.
    let b = bench();
    let id = b.create().await.key.id;
    interfere(&b.store, Call::Replace, move |store| async move {
        change_first_key(&store, |key| key.name = name("theirs")).await;
        interfere(&store.clone(), Call::Get, move |store| async move {
            store.inner.delete(&org("acme"), &id, None).await.unwrap();
        });
    });
    let gone = b.keys.update(&ada(), &id, rename("mine")).await;
    assert!(matches!(gone, Err(ManageError::NotFound)), "{gone:?}");
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun), (Updated, Abandoned)]);
}

#[tokio::test]
async fn a_change_that_may_have_happened_is_not_called_abandoned() {
    let b = bench();
    let id = b.create().await.key.id;
    // The store did it, and its answer is lost.
    b.store.after(|call| async move {
        let change = matches!(call, Call::Insert | Call::Replace | Call::Delete);
        if change { Err(StoreError::in_doubt("connection lost")) } else { Ok(()) }
    });
    assert_in_doubt(b.keys.create(&ada(), new_key()).await);
    assert_in_doubt(b.keys.update(&ada(), &id, rename("b")).await);
    assert_in_doubt(b.keys.rotate(&ada(), &id).await);
    assert_in_doubt(b.keys.delete(&ada(), &id).await);
    let begun = [Created, Created, Updated, Rotated, Deleted].map(|action| (action, Begun));
    assert_eq!(b.changes().await, begun);
}

#[tokio::test]
async fn a_change_that_the_store_says_did_not_happen_is_abandoned() {
    let b = bench();
    let id = b.create().await.key.id;
    let before = b.snapshot().await;
    b.store.before(|call| async move {
        let change = matches!(call, Call::Insert | Call::Replace | Call::Delete);
        if change { Err(StoreError::unavailable("the disk is full")) } else { Ok(()) }
    });
    assert_unavailable(b.keys.create(&ada(), new_key()).await);
    assert_unavailable(b.keys.update(&ada(), &id, rename("b")).await);
    assert_unavailable(b.keys.rotate(&ada(), &id).await);
    assert_unavailable(b.keys.delete(&ada(), &id).await);
    let all = [Created, Updated, Rotated, Deleted];
    let expected: Vec<_> = [(Created, Begun)]
        .into_iter()
        .chain(all.into_iter().flat_map(|action| [(action, Begun), (action, Abandoned)]))
        .collect();
    assert_eq!((b.changes().await, b.snapshot().await), (expected, before));
}

#[tokio::test]
async fn a_store_that_panics_over_a_change_leaves_it_in_doubt() {
    let b = bench();
    let id = b.create().await.key.id;
    b.store.before(|call| async move {
        assert!(call != Call::Replace, "the store of a test panics");
        Ok(())
    });
    assert_in_doubt(soon(b.keys.rotate(&ada(), &id)).await);
    b.store.heal();
    b.keys.rotate(&ada(), &id).await.unwrap();
    assert!(soon(b.keys.shutdown(Duration::from_secs(5))).await.is_complete());
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

#[tokio::test]
async fn case_35_no_change_without_its_record() {
    let ill = Arc::new(Mutex::new(None));
    let delivery = Delivery::buffered().deadline(Duration::from_millis(100));
    let b = bench_with(|builder| {
        let sink = IllSink { ill: ill.clone(), log: Arc::default() };
        builder.audit_sink(sink).delivery(delivery)
    });
    let issued = b.create().await;
    let id = issued.key.id;
    let before = b.snapshot().await;
    b.store.take_calls();
    for how in [Ill::Errs, Ill::Rejects, Ill::Hangs, Ill::Panics] {
        *ill.lock().unwrap() = Some(how);
        assert_unavailable(soon(b.keys.create(&ada(), new_key())).await);
        assert_unavailable(soon(b.keys.update(&ada(), &id, KeyPatch::revoke())).await);
        assert_unavailable(soon(b.keys.rotate(&ada(), &id)).await);
        assert_unavailable(soon(b.keys.delete(&ada(), &id)).await);
        let mut keys = b.snapshot().await;
        keys[0].last_used_at = None;
        assert_eq!(keys, before, "{how:?}");
        let writes = [Call::Insert, Call::Replace, Call::Delete];
        assert!(!b.store.take_calls().iter().any(|call| writes.contains(call)), "{how:?}");
        // What reads goes on.
        b.verify(&issued).await.unwrap();
        b.keys.list(&org("acme")).await.unwrap();
    }
    *ill.lock().unwrap() = None;
    b.keys.update(&ada(), &id, KeyPatch::revoke()).await.expect("it recovers by itself");
}

// ---- credentials ----

#[tokio::test]
async fn case_05_what_cannot_be_a_key_is_refused_without_a_look_at_the_store() {
    let b = bench();
    let issued = b.create().await;
    let secret = issued.secret.expose_secret();
    b.store.take_calls();
    let long = "a".repeat(64 * 1024);
    let keys = format!("{secret} {secret}");
    for text in ["", " ", "\0", "ключ", "vsp_sk_", "Bearer", &long, &keys, &secret.to_uppercase()]
    {
        assert_malformed(&b, text).await;
    }
}

#[tokio::test]
async fn case_06_a_damaged_key_is_refused_without_a_look_at_the_store() {
    let b = bench();
    let issued = b.create().await;
    let secret = issued.secret.expose_secret();
    b.store.take_calls();
    assert_malformed(&b, &secret[1..]).await;
    assert_malformed(&b, &secret[..54]).await;
    assert_malformed(&b, &format!("{secret}0")).await;
    assert_malformed(&b, &format!("{secret} ")).await;
    assert_malformed(&b, &format!("{secret}\n")).await;
    assert_malformed(&b, &format!("vsp_pk_{}", &secret[7..])).await;
    for at in 0..secret.len() {
        let mut bytes = secret.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
        assert_malformed(&b, std::str::from_utf8(&bytes).unwrap()).await;
    }
}

async fn assert_malformed(b: &Bench, credential: &str) {
    let refused = b.keys.verify(credential, None).await.unwrap_err();
    assert!(matches!(refused, VerifyError::Malformed(_)), "{refused:?}");
    assert_eq!(refused.http_status(), 401);
    assert_eq!(b.store.take_calls(), []);
}

#[tokio::test]
async fn case_07_unknown_revoked_expired_and_deleted_keys_cost_the_same_and_say_the_same() {
    let b = bench();
    let [unknown, expired, revoked, deleted, allowed] = [
        bench().create().await,
        b.keys.create(&ada(), new_key().expires(Expiration::OneDay)).await.unwrap(),
        b.create().await,
        b.create().await,
        b.create().await,
    ];
    b.keys.update(&ada(), &revoked.key.id, KeyPatch::revoke()).await.unwrap();
    b.keys.delete(&ada(), &deleted.key.id).await.unwrap();
    b.clock.advance(Duration::from_secs(86_400));
    b.store.take_calls();
    for refused in [&unknown, &expired, &revoked, &deleted] {
        assert_eq!(b.verify(refused).await.unwrap_err().http_status(), 401);
        assert_eq!(b.store.take_calls(), [Call::Find]);
    }
    b.verify(&allowed).await.unwrap();
    assert_eq!(b.store.take_calls(), [Call::Find]);
    assert_unknown(b.verify(&unknown).await);
    assert_unknown(b.verify(&deleted).await);
    assert_denied(b.verify(&expired).await, Denial::Expired);
    assert_denied(b.verify(&revoked).await, Denial::Revoked);
}

#[tokio::test]
async fn case_08_what_the_store_holds_is_no_key() {
    let b = bench();
    let key = b.create().await.key;
    b.store.take_calls();
    let digest = key.digest.as_bytes();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    for stolen in [
        hex.clone(),
        hex.to_uppercase(),
        base64(digest),
        format!("vsp_sk_{hex}"),
        format!("vsp_sk_{}", &hex[..48]),
        key.id.to_string(),
        format!("vsp_sk_{}", key.id),
        key.key_prefix.clone(),
    ] {
        assert_malformed(&b, &stolen).await;
    }
    let latin: String = digest.iter().copied().map(char::from).collect();
    assert_malformed(&b, &latin).await;
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let n =
            chunk.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        let digits = (0..=chunk.len()).map(move |i| char::from(DIGITS[n >> (18 - 6 * i) & 63]));
        digits.chain(std::iter::repeat_n('=', 3 - chunk.len())).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// Finds the same record whatever it is asked for.
#[derive(Debug)]
struct FindsTooMuch(Arc<ApiKey>);

#[async_trait]
impl KeyStore for FindsTooMuch {
    async fn insert(&self, _: &ApiKey, _: OrgLimit) -> Result<(), StoreError> {
        Ok(())
    }
    async fn find_by_digest(&self, _: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(Some(self.0.clone()))
    }
    async fn get(&self, _: &OrgId, _: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(Some(self.0.clone()))
    }
    async fn list(&self, _: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        Ok(vec![])
    }
    async fn replace(&self, _: &ApiKey, _: Revision) -> Result<(), StoreError> {
        Ok(())
    }
    async fn delete(&self, _: &OrgId, _: &KeyId, _: Option<Revision>) -> Result<(), StoreError> {
        Ok(())
    }
    async fn record_uses(&self, _: &[KeyUse]) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn case_09_a_store_that_finds_a_wrong_record_lets_nobody_in() {
    let b = bench();
    let [theirs, ours] = [b.create().await, b.create().await];
    let keys = KeyManager::builder(FindsTooMuch(theirs.key.clone())).build().unwrap();
    keys.verify(theirs.secret.expose_secret(), None).await.unwrap();
    assert_unknown(keys.verify(ours.secret.expose_secret(), None).await);

    // Nor does a record whose digest is that of nothing, or was never filled in.
    let empty = ApiKey { digest: KeyDigest::of(""), ..ApiKey::clone(&theirs.key) };
    let keys = KeyManager::builder(FindsTooMuch(Arc::new(empty))).build().unwrap();
    assert_unknown(keys.verify(ours.secret.expose_secret(), None).await);
    assert!(matches!(keys.verify("", None).await, Err(VerifyError::Malformed(_))));
    assert!(KeyDigest::from_slice(&[0; 32]).is_err());
}

#[tokio::test]
async fn case_14_an_allowlist_lets_in_its_addresses_only_and_never_an_unknown_one() {
    let b = bench();
    let new = new_key().allow(["10.0.0.0/8", "2001:db8::1"]).unwrap();
    let issued = b.keys.create(&ada(), new).await.unwrap();
    let verify = async |ip| b.keys.verify(issued.secret.expose_secret(), ip).await;
    for good in ["10.255.0.1", "2001:db8::1", "::ffff:10.0.0.1"] {
        verify(ip(good)).await.unwrap();
    }
    for bad in ["11.0.0.1", "2001:db8::2", "::ffff:11.0.0.1"] {
        assert_denied(verify(ip(bad)).await, Denial::IpNotAllowed);
    }
    let refused = verify(None).await.unwrap_err();
    assert_eq!(refused.http_status(), 403);
    assert_denied(Err(refused), Denial::IpNotAllowed);
}

#[tokio::test]
async fn case_17_a_stored_allowlist_that_no_longer_parses_refuses_until_it_is_mended() {
    let b = bench();
    let issued = b.create().await;
    let allowlist = Allowlist::restore(["10.0.0.0/8", "10.0.0."]);
    change_first_key(&b.store, |key| key.allowlist = allowlist).await;
    for from in [None, ip("10.0.0.1")] {
        let refused = b.keys.verify(issued.secret.expose_secret(), from).await.unwrap_err();
        assert_eq!(refused.http_status(), 403);
        assert_denied(Err(refused), Denial::AllowlistUnreadable);
    }
    // An edit of something else does not open it.
    b.keys.update(&ada(), &issued.key.id, rename("b")).await.unwrap();
    assert_denied(b.verify(&issued).await, Denial::AllowlistUnreadable);
    let mended = KeyPatch::restrict(Allowlist::default());
    b.keys.update(&ada(), &issued.key.id, mended).await.unwrap();
    b.verify(&issued).await.unwrap();
}

#[tokio::test]
async fn each_refusal_has_its_http_status() {
    let key = bench().create().await.key;
    for (denial, status) in [
        (Denial::Revoked, 401),
        (Denial::Expired, 401),
        (Denial::IpNotAllowed, 403),
        (Denial::AllowlistUnreadable, 403),
    ] {
        let refused = VerifyError::Denied { denial, key: key.clone() };
        assert_eq!((refused.http_status(), refused.is_unavailable()), (status, false));
        assert_eq!(AdmitError::from(refused).http_status(), status);
    }
    assert_eq!(VerifyError::Unknown.http_status(), 401);
    assert_eq!(VerifyError::Malformed(MalformedKey).http_status(), 401);
    let unavailable = VerifyError::Unavailable(StoreError::unavailable("down"));
    assert_eq!((unavailable.http_status(), unavailable.is_unavailable()), (503, true));
    assert_eq!(AdmitError::from(DeliveryError::Full).http_status(), 503);
}

// ---- isolation ----

#[tokio::test]
async fn case_19_another_organisations_key_does_not_exist() {
    let b = bench();
    let issued = b.create().await;
    let (before, records) = (b.snapshot().await, b.log.len());
    b.store.take_calls();
    for stranger in
        [eve(), Actor::new(org("*"), "w"), Actor::new(org("%"), "l"), Actor::new(org("ACME"), "u")]
    {
        assert_not_found(&b, &stranger, &issued.key.id).await;
        assert!(b.keys.list(stranger.org()).await.unwrap().is_empty());
        let scopes = [
            AuditScope::OrgChanges,
            AuditScope::KeyChanges(issued.key.id),
            AuditScope::KeyRequests(issued.key.id),
        ];
        for scope in scopes {
            let query = AuditQuery::new(stranger.org().clone(), scope);
            assert!(b.keys.audit_page(&query).await.unwrap().unwrap().records.is_empty());
        }
    }
    let reads = [Call::Get, Call::List];
    assert!(b.store.take_calls().iter().all(|call| reads.contains(call)));
    assert_eq!((b.snapshot().await, b.log.len()), (before, records));
    b.verify(&issued).await.unwrap();
}

// ---- races ----

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_26_of_64_creates_for_the_last_place_one_succeeds() {
    for round in 0..10 {
        let b = bench();
        for _ in 0..19 {
            b.create().await;
        }
        // Every one has seen 19 keys before any one inserts.
        let barrier = Arc::new(Barrier::new(64));
        b.store.before(move |call| {
            let barrier = barrier.clone();
            async move {
                if call == Call::Insert {
                    barrier.wait().await;
                }
                Ok(())
            }
        });
        let creates: Vec<_> = (0..64)
            .map(|_| {
                let keys = b.keys.clone();
                tokio::spawn(async move { keys.create(&ada(), new_key()).await })
            })
            .collect();
        let mut winners = Vec::new();
        for create in creates {
            match soon(create).await.unwrap() {
                Ok(issued) => winners.push(issued),
                Err(error) => assert!(matches!(error, ManageError::LimitReached { max: 20 })),
            }
        }
        assert_eq!((winners.len(), b.snapshot().await.len()), (1, 20), "round {round}");
        b.verify(&winners[0]).await.unwrap();
        let changes = b.changes().await;
        let count = |change| changes.iter().filter(|other| **other == change).count();
        assert_eq!((count((Created, Begun)), count((Created, Abandoned))), (19 + 64, 63));
    }
}

/// Lets the first `parties` calls of `replace` start together, and all later
/// ones pass.
fn replace_together(store: &Probe, parties: usize) {
    let (barrier, seen) = (Arc::new(Barrier::new(parties)), Arc::new(AtomicUsize::new(0)));
    store.before(move |call| {
        let (barrier, seen) = (barrier.clone(), seen.clone());
        async move {
            if call == Call::Replace && seen.fetch_add(1, SeqCst) < parties {
                barrier.wait().await;
            }
            Ok(())
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_27_of_two_rotations_from_one_revision_one_wins() {
    for round in 0..100 {
        let b = bench();
        let old = b.create().await;
        let id = old.key.id;
        b.store.offered.lock().unwrap().clear();
        replace_together(&b.store, 2);
        let rotate = |keys: KeyManager| tokio::spawn(async move { keys.rotate(&ada(), &id).await });
        let (one, other) = (rotate(b.keys.clone()), rotate(b.another()));
        let (one, other) = (soon(one).await.unwrap(), soon(other).await.unwrap());
        let winner = match (one, other) {
            (Ok(won), Err(ManageError::Conflict)) | (Err(ManageError::Conflict), Ok(won)) => won,
            both => panic!("round {round}: {both:?}"),
        };
        b.verify(&winner).await.unwrap();
        assert_unknown(b.verify(&old).await);
        // Of all the digests that were ever on offer, one is live.
        let mut offered = b.store.offered.lock().unwrap().clone();
        offered.push(old.key.digest);
        assert!(offered.len() >= 3, "both came to write");
        for digest in offered {
            let found = b.store.inner.find_by_digest(&digest).await.unwrap();
            assert_eq!(found.is_some(), digest == winner.secret.digest());
        }
        assert_eq!(b.snapshot().await, [ApiKey::clone(&winner.key)]);
        let mut changes = b.changes().await;
        // Each manager numbers its own records of the same instant.
        changes.sort_by_key(|change| (change.0 == Rotated, change.1 == Abandoned));
        let expected = [(Created, Begun), (Rotated, Begun), (Rotated, Begun), (Rotated, Abandoned)];
        assert_eq!(changes, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_27_after_a_crowd_of_rotations_exactly_one_secret_is_live() {
    for round in 0..50 {
        let b = bench();
        let old = b.create().await;
        let id = old.key.id;
        let rotations: Vec<_> = (0..8)
            .map(|_| {
                let keys = b.keys.clone();
                tokio::spawn(async move { keys.rotate(&ada(), &id).await })
            })
            .collect();
        let mut issued = vec![old];
        for rotation in rotations {
            match soon(rotation).await.unwrap() {
                Ok(won) => issued.push(won),
                Err(error) => assert!(matches!(error, ManageError::Conflict), "{error}"),
            }
        }
        assert!(issued.len() > 1, "round {round}: nobody won");
        let mut live = Vec::new();
        for issued in &issued {
            if b.verify(issued).await.is_ok() {
                live.push(issued.secret.digest());
            }
        }
        assert_eq!(live, [b.snapshot().await[0].digest], "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rotation_and_a_rename_at_once_both_take_place() {
    for _ in 0..100 {
        let b = bench();
        let old = b.create().await;
        let id = old.key.id;
        replace_together(&b.store, 2);
        let (one, other) = (b.keys.clone(), b.another());
        let rotated = tokio::spawn(async move { one.rotate(&ada(), &id).await });
        let renamed = tokio::spawn(async move { other.update(&ada(), &id, rename("b")).await });
        let rotated = soon(rotated).await.unwrap().unwrap();
        soon(renamed).await.unwrap().unwrap();
        assert_unknown(b.verify(&old).await);
        assert_eq!(b.verify(&rotated).await.unwrap().name(), &name("b"));
        assert_eq!(b.snapshot().await[0].revision, Revision::new(3));
    }
}

/// Each waits for its turn, and then writes once. Of those whose callers are gone, nothing is
/// begun.
#[tokio::test]
async fn case_49_edits_of_one_key_do_not_get_in_each_others_way() {
    let b = bench();
    let id = b.create().await.key.id;
    let writes = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&writes);
    b.store.before(move |call| {
        counting.fetch_add(usize::from(call == Call::Replace), SeqCst);
        async move {
            tokio::task::yield_now().await;
            Ok(())
        }
    });
    let edit = |number: usize| {
        let keys = b.keys.clone();
        tokio::spawn(async move { keys.update(&ada(), &id, rename(&number.to_string())).await })
    };
    for edited in (0..50).map(edit).collect::<Vec<_>>() {
        soon(edited).await.unwrap().unwrap();
    }
    assert_eq!(writes.load(SeqCst), 50);

    // The first one holds its turn while the others' callers leave.
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    b.store.before(move |call| {
        let held = Arc::clone(&held);
        async move {
            if call == Call::Replace {
                held.acquire().await.unwrap().forget();
            }
            Ok(())
        }
    });
    let first = edit(100);
    eventually("the first is on record", async || b.changes().await.len() == 52).await;
    let hasty: Vec<_> = (101..150).map(edit).collect();
    tokio::task::yield_now().await;
    hasty.iter().for_each(tokio::task::JoinHandle::abort);
    gate.add_permits(1_000);
    soon(first).await.unwrap().unwrap();
    soon(edit(150)).await.unwrap().unwrap();
    assert_eq!(b.changes().await.len(), 53, "no change of the hasty ones was begun");
}

/// What the verifications around a change are checked against.
#[derive(Default)]
struct History {
    /// How many verifications ended before the change began.
    ran_up: AtomicUsize,
    begun: AtomicBool,
    returned: AtomicBool,
}

/// Verifies until well after the change, and checks each against the history.
async fn watch(keys: KeyManager, secret: Arc<str>, history: Arc<History>) {
    let mut after = 0;
    while after < 4 {
        let returned_before = history.returned.load(SeqCst);
        let verified = keys.verify(&secret, None).await;
        let begun_after = history.begun.load(SeqCst);
        match verified {
            Ok(_) => assert!(!returned_before, "let in after the change had returned"),
            Err(refused) => {
                assert!(!refused.is_unavailable(), "{refused}");
                assert!(begun_after, "refused before the change had begun: {refused}");
            }
        }
        history.ran_up.fetch_add(1, SeqCst);
        after += usize::from(returned_before);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_28_no_verification_that_begins_after_a_change_sees_the_key_as_it_was() {
    let b = bench_with(|builder| builder.audit_sink(Arc::new(MemoryAuditLog::new())));
    for round in 0..300 {
        let issued = b.create().await;
        let id = issued.key.id;
        let secret: Arc<str> = issued.secret.expose_secret().into();
        let history = Arc::new(History::default());
        let watchers: Vec<_> = (0..3)
            .map(|_| tokio::spawn(watch(b.keys.clone(), secret.clone(), history.clone())))
            .collect();
        eventually("all watch", async || history.ran_up.load(SeqCst) >= 6).await;

        history.begun.store(true, SeqCst);
        let rotated = match round % 3 {
            0 => Some(b.keys.rotate(&ada(), &id).await.unwrap()),
            1 => {
                b.keys.update(&ada(), &id, KeyPatch::revoke()).await.unwrap();
                None
            }
            _ => {
                b.keys.delete(&ada(), &id).await.unwrap();
                None
            }
        };
        history.returned.store(true, SeqCst);
        if let Some(rotated) = &rotated {
            b.verify(rotated).await.expect("the new secret works from that moment on");
        }
        for watcher in watchers {
            soon(watcher).await.unwrap();
        }
        if round % 3 != 2 {
            b.keys.delete(&ada(), &id).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_29_a_rename_racing_a_revocation_ends_revoked_with_the_new_name() {
    for round in 0..200 {
        let b = bench();
        let issued = b.create().await;
        let id = issued.key.id;
        if round % 2 == 0 {
            replace_together(&b.store, 2);
        }
        let (one, other) = (b.keys.clone(), b.another());
        let renamed = tokio::spawn(async move { one.update(&ada(), &id, rename("b")).await });
        let revoked =
            tokio::spawn(async move { other.update(&ada(), &id, KeyPatch::revoke()).await });
        soon(renamed).await.unwrap().unwrap();
        assert_eq!(soon(revoked).await.unwrap().unwrap().status, Status::Revoked);
        let key = &b.snapshot().await[0];
        assert_eq!((&key.name, key.status), (&name("b"), Status::Revoked), "round {round}");
        assert_eq!(key.revision, Revision::new(3));
        assert_denied(b.verify(&issued).await, Denial::Revoked);
    }
}

/// Holds the next such call until it is opened.
#[derive(Clone)]
struct Gate {
    reached: Arc<AtomicBool>,
    open: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Self {
        Self { reached: Arc::default(), open: Arc::new(Semaphore::new(0)) }
    }

    fn at(
        &self,
        held: Call,
    ) -> impl Fn(Call) -> BoxFuture<'static, Result<(), StoreError>> + use<> {
        let gate = self.clone();
        move |call| {
            let gate = gate.clone();
            Box::pin(async move {
                if call == held && !gate.reached.swap(true, SeqCst) {
                    let _open = gate.open.acquire().await.unwrap();
                }
                Ok(())
            })
        }
    }

    async fn reached(&self) {
        eventually("the gate is reached", async || self.reached.load(SeqCst)).await;
    }

    fn open(&self) {
        self.open.add_permits(1);
    }
}

#[tokio::test]
async fn case_30_a_key_deleted_during_a_verification_stays_deleted() {
    for found_before in [true, false] {
        let b = bench();
        let issued = b.create().await;
        let gate = Gate::new();
        if found_before {
            b.store.after(gate.at(Call::Find));
        } else {
            b.store.before(gate.at(Call::Find));
        }
        let (keys, secret) = (b.keys.clone(), issued.secret.expose_secret().to_owned());
        let late = tokio::spawn(async move { keys.verify(&secret, None).await });
        gate.reached().await;
        b.keys.delete(&ada(), &issued.key.id).await.unwrap();
        assert_unknown(b.verify(&issued).await);
        gate.open();
        let late = soon(late).await.unwrap();
        if !found_before {
            assert_unknown(late);
        }
        // Neither the late answer nor its use brings the key back.
        assert_unknown(b.verify(&issued).await);
        assert!(b.keys.shutdown(Duration::from_secs(5)).await.is_complete());
        assert_unknown(b.verify(&issued).await);
        assert_eq!(b.snapshot().await, []);
    }
}

#[tokio::test]
async fn case_31_a_last_use_written_after_a_revocation_does_not_undo_it() {
    let b = bench();
    let issued = b.create().await;
    let gate = Gate::new();
    b.store.before(gate.at(Call::Uses));
    b.verify(&issued).await.unwrap();
    let used = b.clock.now();
    gate.reached().await;
    b.clock.advance(Duration::from_secs(1));
    let revoked = b.keys.update(&ada(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    gate.open();
    let expected = ApiKey { last_used_at: Some(used), ..ApiKey::clone(&revoked) };
    eventually("the use is written", async || b.snapshot().await[0] == expected).await;
    assert_denied(b.verify(&issued).await, Denial::Revoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_31_uses_and_revocations_at_once_all_take_effect() {
    for round in 0..300 {
        let b = bench();
        let issued = b.create().await;
        let id = issued.key.id;
        let at = b.clock.now();
        let (store, keys) = (b.store.clone(), b.keys.clone());
        let used = tokio::spawn(async move { store.inner.record_uses(&[KeyUse { id, at }]).await });
        let revoked =
            tokio::spawn(async move { keys.update(&ada(), &id, KeyPatch::revoke()).await });
        used.await.unwrap().unwrap();
        revoked.await.unwrap().unwrap();
        assert_denied(b.verify(&issued).await, Denial::Revoked);
        let key = &b.snapshot().await[0];
        let expected = (Status::Revoked, Some(at), Revision::new(2));
        assert_eq!((key.status, key.last_used_at, key.revision), expected, "round {round}");
    }
}

// ---- a store that fails ----

async fn assert_all_unavailable(b: &Bench, issued: &IssuedKey) {
    let (keys, id) = (&b.keys, &issued.key.id);
    let refused = soon(b.verify(issued)).await.unwrap_err();
    assert!(refused.is_unavailable() && refused.http_status() == 503, "{refused:?}");
    let request = RequestInfo::new("GET", "/");
    let refused = soon(keys.admit(issued.secret.expose_secret(), request)).await.unwrap_err();
    assert_eq!(refused.http_status(), 503);
    assert_unavailable(soon(keys.create(&ada(), new_key())).await);
    assert_unavailable(soon(keys.list(&org("acme"))).await);
    assert_unavailable(soon(keys.get(&org("acme"), id)).await);
    assert_unavailable(soon(keys.update(&ada(), id, rename("b"))).await);
    assert_unavailable(soon(keys.update_if(&ada(), id, rename("b"), Revision::FIRST)).await);
    assert_unavailable(soon(keys.rotate(&ada(), id)).await);
    assert_unavailable(soon(keys.delete(&ada(), id)).await);
    let health = soon(keys.health()).await;
    assert!(!health.lookups.works() && !health.changes.works() && health.audit_log.works());
}

#[tokio::test]
async fn case_32_a_store_that_is_down_refuses_everybody_and_recovers() {
    let b = bench();
    let issued = b.create().await;
    let before = b.snapshot().await;
    b.store.before(|_| async { Err(StoreError::unavailable("connection refused")) });
    assert_all_unavailable(&b, &issued).await;
    let refused = b.verify(&issued).await.unwrap_err();
    let cause = std::error::Error::source(&refused).and_then(|error| error.source()).unwrap();
    assert_eq!(cause.to_string(), "connection refused", "the operator learns why");

    b.store.before(|_| async { Err(StoreError::corrupt("no such column")) });
    assert_all_unavailable(&b, &issued).await;
    b.store.heal();
    b.verify(&issued).await.unwrap();
    assert!(b.keys.health().await.lookups.works());
    assert_eq!((b.snapshot().await, b.changes().await), (before, vec![(Created, Begun)]));
}

#[tokio::test]
async fn case_32_a_store_that_hangs_is_unavailable_once_the_deadline_has_passed() {
    let b = bench_with(|builder| builder.store_deadline(Duration::from_millis(30)));
    let issued = b.create().await;
    b.store.before(|_| pending());
    let started = Instant::now();
    assert_all_unavailable(&b, &issued).await;
    // Ten calls, each within its deadline and not by somebody else's.
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    b.store.heal();
    b.verify(&issued).await.unwrap();

    // Half open: it takes the request, works, and never answers.
    b.store.after(|_| pending());
    let refused = soon(b.verify(&issued)).await.unwrap_err();
    assert!(refused.is_unavailable());
    assert_unavailable(soon(b.keys.list(&org("acme"))).await);
    b.store.heal();
    b.verify(&issued).await.unwrap();
    assert_eq!(b.snapshot().await[0].name, name("CI"));
}

#[tokio::test]
async fn case_32_a_write_that_hangs_is_in_doubt_once_the_deadline_has_passed() {
    for hung in [Call::Insert, Call::Replace, Call::Delete] {
        let b = bench_with(|builder| builder.store_deadline(Duration::from_millis(30)));
        let id = b.create().await.key.id;
        b.store
            .before(move |call| async move { if call == hung { pending().await } else { Ok(()) } });
        match hung {
            Call::Insert => assert_in_doubt(soon(b.keys.create(&ada(), new_key())).await),
            Call::Delete => assert_in_doubt(soon(b.keys.delete(&ada(), &id)).await),
            _ => {
                assert_in_doubt(soon(b.keys.update(&ada(), &id, rename("b"))).await);
                assert_in_doubt(soon(b.keys.rotate(&ada(), &id)).await);
            }
        }
        b.store.heal();
        b.keys.update(&ada(), &id, rename("c")).await.unwrap();
    }
}

// ---- health ----

fn works(health: &HealthReport) -> [bool; 3] {
    [&health.lookups, &health.changes, &health.audit_log].map(PartHealth::works)
}

#[tokio::test]
async fn health_says_of_each_part_whether_it_works_and_why_not() {
    let b = bench();
    let health = b.keys.health().await;
    assert!(health.works() && works(&health) == [true; 3], "{health:?}");
    assert_eq!((health.changes.to_string(), health.changes.error()), ("works".into(), None));

    // Reading goes on while nothing can be written.
    b.store.before(|call| async move {
        if call == Call::Uses { Err(StoreError::unavailable("the disk is full")) } else { Ok(()) }
    });
    eventually("changes do not work", async || !b.keys.health().await.changes.works()).await;
    let health = b.keys.health().await;
    assert_eq!((health.works(), works(&health)), (false, [true, false, true]));
    assert_eq!(health.changes.error(), Some("the key store is unavailable: the disk is full"));

    b.store.before(|call| async move {
        if call == Call::Find { Err(StoreError::unavailable("no route")) } else { Ok(()) }
    });
    eventually("changes work again", async || b.keys.health().await.changes.works()).await;
    assert_eq!(works(&b.keys.health().await), [false, true, true]);
    b.store.heal();
    assert!(b.keys.health().await.works());

    assert!(b.keys.shutdown(Duration::from_secs(5)).await.is_complete());
    let health = b.keys.health().await;
    assert_eq!(works(&health), [true, false, false], "{health:?}");
}

#[tokio::test]
async fn health_answers_though_changes_do_not() {
    let b = bench_with(|builder| builder.store_deadline(Duration::from_secs(24 * 60 * 60)));
    b.store.before(|call| async move { if call == Call::Uses { pending().await } else { Ok(()) } });
    let health = soon(b.keys.health()).await;
    assert_eq!(works(&health), [true, false, true]);
    assert_eq!(health.changes.error(), Some("no answer in 500ms"));
}

#[tokio::test]
async fn health_says_that_the_audit_log_fails_and_that_it_recovers() {
    let ill = Arc::new(Mutex::new(None));
    let b = bench_with(|builder| {
        let sink = IllSink { ill: ill.clone(), log: Arc::default() };
        builder.audit_sink(sink).delivery(Delivery::strict().deadline(Duration::from_millis(50)))
    });
    let id = b.create().await.key.id;
    assert!(b.keys.health().await.works());
    for how in [Ill::Errs, Ill::Hangs, Ill::Panics] {
        *ill.lock().unwrap() = Some(how);
        assert_unavailable(soon(b.keys.update(&ada(), &id, KeyPatch::revoke())).await);
        eventually("the log fails", async || !b.keys.health().await.audit_log.works()).await;
        assert_eq!(works(&b.keys.health().await), [true, true, false], "{how:?}");
        *ill.lock().unwrap() = None;
        // What is left to be written is tried again.
        b.keys.update(&ada(), &id, rename(&format!("{how:?}"))).await.unwrap();
        eventually("the log works", async || b.keys.health().await.works()).await;
    }
}

#[tokio::test]
async fn health_says_that_the_audit_queue_is_full() {
    let ill = Arc::new(Mutex::new(None));
    let b = bench_with(|builder| {
        let sink = IllSink { ill: ill.clone(), log: Arc::default() };
        builder.audit_sink(sink).delivery(Delivery::buffered().capacity(3))
    });
    let issued = b.create().await;
    *ill.lock().unwrap() = Some(Ill::Hangs);
    for _ in 0..3 {
        assert!(b.keys.health().await.works());
        let request = RequestInfo::new("GET", "/");
        let admitted = b.keys.admit(issued.secret.expose_secret(), request).await.unwrap();
        admitted.finish(200).await.unwrap();
    }
    let health = b.keys.health().await;
    assert!(!health.audit_log.works() && health.lookups.works(), "{health:?}");
}

#[tokio::test]
async fn a_flood_of_health_checks_asks_the_store_for_changes_once_a_second() {
    let b = bench();
    let uses = || b.store.calls.lock().unwrap().iter().filter(|call| **call == Call::Uses).count();
    let begun = Instant::now();
    for _ in 0..50 {
        let checks: Vec<_> = (0..20)
            .map(|_| {
                let keys = b.keys.clone();
                tokio::spawn(async move { keys.health().await.works() })
            })
            .collect();
        for check in checks {
            assert!(check.await.unwrap());
        }
    }
    assert!((1..=1 + begun.elapsed().as_secs()).contains(&(uses() as u64)), "{}", uses());
}

#[tokio::test]
async fn health_checks_at_once_share_an_answer_and_one_that_is_dropped_keeps_nobody_waiting() {
    let b = bench();
    let hung = Arc::new(Semaphore::new(0));
    let gate = hung.clone();
    b.store.before(move |call| {
        let gate = gate.clone();
        async move {
            if call == Call::Uses {
                gate.acquire().await.unwrap().forget();
            }
            Ok(())
        }
    });
    let ask = || {
        let keys = b.keys.clone();
        tokio::spawn(async move { keys.health().await.works() })
    };
    let first = ask();
    let uses = || b.store.calls.lock().unwrap().iter().filter(|call| **call == Call::Uses).count();
    eventually("it asks", async || uses() == 1).await;
    let others = [ask(), ask(), ask()];
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    eventually("another asks", async || uses() == 2).await;
    hung.add_permits(1);
    for other in others {
        assert!(soon(other).await.unwrap());
    }
    assert_eq!(uses(), 2);
}

#[derive(Debug)]
struct HungLog;

#[async_trait]
impl AuditLog for HungLog {
    async fn page(&self, _: &AuditQuery) -> Result<AuditPage, AuditError> {
        pending().await
    }
    async fn purge_before(&self, _: Timestamp) -> Result<u64, AuditError> {
        pending().await
    }
}

#[tokio::test]
async fn case_32_an_audit_log_that_cannot_be_read_is_unavailable_within_the_deadline() {
    let b =
        bench_with(|builder| builder.audit_log(HungLog).store_deadline(Duration::from_millis(30)));
    let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
    let page = soon(b.keys.audit_page(&query)).await;
    assert_unavailable(page.unwrap());
}

// ---- runtimes and types ----

/// Tokio, and a count of what was asked of it.
#[derive(Clone, Debug)]
struct CountingRuntime {
    tokio: TokioRuntime,
    spawned: Arc<AtomicUsize>,
    slept: Arc<Mutex<Vec<Duration>>>,
}

impl Runtime for CountingRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.spawned.fetch_add(1, SeqCst);
        self.tokio.spawn(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.slept.lock().unwrap().push(time);
        self.tokio.sleep(time)
    }
}

#[test]
fn a_manager_needs_a_runtime_and_takes_any() {
    let build = || KeyManager::builder(MemoryStore::new());
    assert!(matches!(build().build(), Err(BuildError::NoRuntime)));

    let tokio = tokio::runtime::Runtime::new().unwrap();
    let runtime = CountingRuntime {
        tokio: TokioRuntime::new(tokio.handle().clone()),
        spawned: Arc::default(),
        slept: Arc::default(),
    };
    let store = Arc::new(Probe::default());
    let deadline = Duration::from_millis(31);
    let log = Arc::new(MemoryAuditLog::new());
    let keys = KeyManager::builder(store.clone())
        .runtime(runtime.clone())
        .store_deadline(deadline)
        .audit(log.clone())
        .build()
        .unwrap();
    let spawned = runtime.spawned.load(SeqCst);
    assert!(spawned >= 1, "the background tasks run on it");

    // Used from no runtime at all, and every deadline is kept by the given one.
    let issued = pollster(keys.create(&ada(), new_key())).unwrap();
    assert_eq!(runtime.spawned.load(SeqCst), spawned + 1, "a change runs on it as well");
    pollster(keys.verify(issued.secret.expose_secret(), None)).unwrap();
    assert!(!runtime.slept.lock().unwrap().contains(&deadline), "nobody had to wait");
    store.before(|_| pending());
    let refused = pollster(keys.verify(issued.secret.expose_secret(), None)).unwrap_err();
    assert!(refused.is_unavailable());
    assert!(runtime.slept.lock().unwrap().contains(&deadline));
    store.heal();
    assert!(pollster(keys.shutdown(Duration::from_secs(5))).is_complete());
    assert!(pollster(store.inner.list(&org("acme"))).unwrap()[0].last_used_at.is_some());
    assert_eq!(log.len(), 1);
    assert_eq!(runtime.spawned.load(SeqCst), spawned + 1, "no task for each request");
}

/// Runs a future on this thread, outside of any runtime.
fn pollster<T>(work: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut work = std::pin::pin!(work);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let std::task::Poll::Ready(done) = work.as_mut().poll(&mut cx) {
            return done;
        }
        std::thread::park_timeout(Duration::from_secs(1));
        assert!(Instant::now() < deadline, "in time");
    }
}

#[test]
#[rustfmt::skip]
fn every_public_type_may_cross_threads() {
    fn check<T: Send + Sync + ?Sized + 'static>() {}
    macro_rules! check { ($($ty:ty),* $(,)?) => { $(check::<$ty>();)* } }
    check!(
        Actor, Admission, AdmitError, Allowlist, AllowlistError, ApiKey, AuditCursor,
        AuditCursorError, AuditError, AuditEvent, AuditId, AuditPage, AuditQuery, AuditRecord,
        AuditScope, AuditStats, BuildError, ChangeAction, ChangeEvent, ChangePhase, CountryCode,
        Delivery, DeliveryError, Denial, EntryProblem, Expiration, ExpirationError, IssuedKey,
        KeyDigest, KeyDigestError, KeyFormat, KeyId, KeyIdError, KeyManager, KeyManagerBuilder,
        KeyName, KeyNameError, KeyPatch, KeyUse, Limits, MalformedKey, ManageError, ManualClock,
        MemoryAuditLog, MemoryStore, Network, NetworkError, NewKey, OrgId, OrgIdError, OrgLimit,
        Outcome, PlaintextKey, Position, PrefixError, RandomError, RequestEvent, RequestInfo, HealthReport,
        IdempotencyKey, IdempotencyKeyError, PartHealth, Revision, ShutdownReport, Status, StoreError, SystemClock, SystemRandom, Timestamp,
        TokioRuntime, VerifiedKey, VerifyError, WhenFull, dyn AuditLog, dyn AuditSink, dyn Clock,
        dyn CountryLookup, dyn KeyStore, dyn Random, dyn Runtime,
    );
}

#[tokio::test]
async fn every_future_may_cross_threads() {
    fn check<T>(_: impl Future<Output = T> + Send) {}
    let b = bench();
    let (keys, id, query) =
        (&b.keys, no_key(), AuditQuery::new(org("acme"), AuditScope::OrgChanges));
    let request = RequestInfo::new("GET", "/");
    check(keys.create(&ada(), new_key()));
    check(keys.list(&org("acme")));
    check(keys.get(&org("acme"), &id));
    check(keys.update(&ada(), &id, KeyPatch::default()));
    check(keys.update_if(&ada(), &id, KeyPatch::default(), Revision::FIRST));
    check(keys.rotate(&ada(), &id));
    check(keys.delete(&ada(), &id));
    check(keys.verify("", None));
    check(keys.admit("", request));
    check(keys.audit_page(&query));
    check(keys.rotate_if(&ada(), &id, Revision::FIRST));
    check(keys.delete_if(&ada(), &id, Revision::FIRST));
    check(keys.revoke_issued_before(&b.store.inner, Timestamp::MAX, "host"));
    check(keys.health());
    check(keys.shutdown(Duration::ZERO));
    let issued = b.create().await;
    let request = RequestInfo::new("GET", "/");
    let admission = keys.admit(issued.secret.expose_secret(), request).await.unwrap();
    check(admission.finish(200));

    // The credential and the request are done with before the first `await`.
    let (verifies, admits) = {
        let brief = issued.secret.expose_secret().to_owned();
        let request = RequestInfo::new("GET", "/");
        (keys.verify(&brief, None), keys.admit(&brief, request))
    };
    verifies.await.unwrap();
    admits.await.unwrap().finish(200).await.unwrap();
}
