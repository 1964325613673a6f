//! Keys move between stores and continue to work.
#![cfg(all(feature = "sqlite", feature = "tokio"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_support;
mod support;

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keygate::audit::{AuditEvent, AuditQuery, AuditScope, ChangeAction};
use keygate::error::ImportError;
use keygate::manager::IssuedKey;
use keygate::runtime::{Clock, ManualClock};
use keygate::store::{Imported, KeyDigest, KeyExport, OrgLimit, Revision, import};
use keygate::{
    Actor, Allowlist, ApiKey, AuditLog, Denial, Expiration, KeyId, KeyManager, KeyName, KeyPatch,
    KeyStore, ManageError, MemoryAuditLog, MemoryStore, NewKey, OrgId, SqliteStore, Status,
    StoreError, Timestamp, VerifyError,
};
use tempfile::TempDir;

use crate::support::{Call, SpyStore};

/// More than one page of an import.
const MANY: usize = 1_203;

fn file() -> (TempDir, SqliteStore) {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(folder.path().join("keygate.db")).unwrap();
    (folder, store)
}

fn actor(org: &str) -> Actor {
    Actor::new(OrgId::new(org).unwrap(), "ada")
}

/// Keys of two organisations: used, restricted, expiring, rotated and revoked.
async fn fill(store: impl KeyStore) -> Vec<IssuedKey> {
    let keys = KeyManager::builder(store).build().unwrap();
    let mut issued = Vec::new();
    for (org, count) in [("acme", 20), ("globex", 5)] {
        for n in 0..count {
            let new = NewKey::named(format!("Schlüssel 🔑 {n}")).unwrap();
            let new = new.expires(Expiration::OneYear).allow(["192.0.2.0/24", "::1"]).unwrap();
            issued.push(keys.create(&actor(org), new).await.unwrap());
        }
    }
    let acme = actor("acme");
    let peer = Some("192.0.2.7".parse().unwrap());
    keys.verify(issued[0].secret.expose_secret(), peer).await.unwrap();
    keys.update(&acme, &issued[1].key.id, KeyPatch::revoke()).await.unwrap();
    issued[2] = keys.rotate(&acme, &issued[2].key.id).await.unwrap();
    assert!(keys.shutdown(Duration::from_secs(10)).await.is_complete());
    issued
}

/// All keys of a store, as it exports them.
async fn all(store: &dyn KeyExport) -> Vec<ApiKey> {
    store.export(None, usize::MAX).await.unwrap().iter().map(|key| ApiKey::clone(key)).collect()
}

/// Creates keys, moves them to the other store and back to a third: they are unchanged.
async fn there_and_back(other: impl KeyStore + KeyExport + Clone) {
    let ((_first, old), (_second, new)) = (file(), file());
    let issued = fill(old.clone()).await;
    let kept = all(&old).await;
    assert_eq!(kept.len(), 25);
    assert!(kept.iter().any(|key| key.last_used_at.is_some()));

    let moved = import(&old, &other).await.unwrap();
    assert_eq!((moved.added, moved.present), (25, 0));
    let moved = import(&other, &new).await.unwrap();
    assert_eq!((moved.added, moved.present), (25, 0));
    assert_eq!(all(&other).await, kept);
    assert_eq!(all(&new).await, kept);

    let keys = KeyManager::builder(other).build().unwrap();
    let peer = Some("192.0.2.7".parse().unwrap());
    for (n, issued) in issued.iter().enumerate() {
        let verified = keys.verify(issued.secret.expose_secret(), peer).await;
        match (n, verified) {
            (1, Err(VerifyError::Denied { denial: Denial::Revoked, .. })) => {}
            (1, other) => panic!("{other:?}"),
            (_, verified) => assert_eq!(verified.unwrap().id(), issued.key.id),
        }
    }
    // The limit of the organisation applies to imported keys.
    let full = keys.create(&actor("acme"), NewKey::named("21st").unwrap()).await;
    assert!(full.is_err());
}

fn key(n: u128) -> ApiKey {
    ApiKey {
        id: KeyId::from_bytes(n.to_be_bytes()),
        org: OrgId::new("acme").unwrap(),
        name: KeyName::new("CI deploy").unwrap(),
        digest: KeyDigest::of(n.to_be_bytes()),
        allowlist: Allowlist::restore(["192.0.2.0/24", "once readable"]),
        created_at: Timestamp::from_unix_micros(1_700_000_000_000_001).unwrap(),
        ..ApiKey::sample(0)
    }
}

async fn with_keys(keys: impl IntoIterator<Item = ApiKey>) -> MemoryStore {
    let store = MemoryStore::new();
    for key in keys {
        store.insert(&key, OrgLimit::NONE).await.unwrap();
    }
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_move_from_sqlite_to_memory_and_back() {
    there_and_back(Arc::new(MemoryStore::new())).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn keys_move_from_sqlite_to_postgres_and_back() {
    postgres_support::in_schema(|options| async move {
        let store = options.connect().await.unwrap();
        #[cfg(feature = "conformance")]
        let before = store.clone();
        there_and_back(store).await;
        #[cfg(feature = "conformance")]
        {
            keygate::conformance::check_export(|| async { before.clone() }).await.unwrap();
            keygate::conformance::check_import(|| async { before.clone() }).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn an_interrupted_import_can_be_repeated() {
    let old = with_keys((0..MANY as u128).map(key)).await;
    let new = with_keys((0..700).map(key)).await;
    let moved = import(&old, &new).await.unwrap();
    assert_eq!((moved.added, moved.present), (503, 700));
    assert_eq!(all(&new).await, all(&old).await);
    let moved = import(&old, &new).await.unwrap();
    assert_eq!((moved.added, moved.present), (0, MANY as u64));
}

#[tokio::test]
async fn an_empty_store_is_imported() {
    let moved = import(&MemoryStore::new(), &MemoryStore::new()).await.unwrap();
    assert_eq!(moved, Imported::default());
}

#[tokio::test]
async fn an_import_overwrites_no_existing_key() {
    let revoked = ApiKey { status: Status::Revoked, revision: Revision::new(2), ..key(2) };
    let another_id = ApiKey { digest: key(2).digest, ..key(9) };
    let another_org = ApiKey { org: OrgId::new("globex").unwrap(), ..key(2) };
    let another_digest = ApiKey { digest: KeyDigest::of("another"), ..key(2) };
    for there in [revoked, another_id, another_org, another_digest] {
        let old = with_keys((0..4).map(key)).await;
        let new = with_keys([there.clone()]).await;
        let error = import(&old, &new).await.unwrap_err();
        assert!(matches!(error, ImportError::Taken { key: id } if id == key(2).id), "{error:?}");
        assert!(error.to_string().contains("import into an empty store"), "{error}");
        // The keys before it were imported, and the existing key is unchanged.
        let mut expected = vec![key(0), key(1), there];
        expected.sort_by_key(|key| key.id);
        assert_eq!(all(&new).await, expected);
    }
}

#[tokio::test]
async fn an_import_never_moves_the_last_use_back() {
    let at = |micros| Timestamp::from_unix_micros(micros).unwrap();
    let used = |micros| ApiKey { last_used_at: Some(at(micros)), ..key(1) };
    for (theirs, ours, after) in [(5, 9, 9), (9, 5, 9)] {
        let (old, new) = (with_keys([used(theirs)]).await, with_keys([used(ours)]).await);
        import(&old, &new).await.unwrap();
        assert_eq!(all(&new).await, [used(after)]);
    }
    let (old, new) = (with_keys([used(3)]).await, with_keys([key(1)]).await);
    import(&old, &new).await.unwrap();
    assert_eq!(all(&new).await, [used(3)]);
}

#[tokio::test]
async fn a_failing_store_ends_the_import_with_its_error() {
    let old = with_keys((0..10).map(key)).await;
    let (new, inserted) = (SpyStore::default(), AtomicUsize::new(0));
    new.before(move |call| {
        let is_full = call == Call::Insert && inserted.fetch_add(1, Ordering::SeqCst) >= 4;
        ready(if is_full { Err(StoreError::unavailable("disk full")) } else { Ok(()) })
    });
    let error = import(&old, &new).await.unwrap_err();
    assert!(matches!(error, ImportError::Insert { key: id, .. } if id == key(4).id), "{error:?}");
    assert_eq!(all(&new.inner).await, all(&old).await[..4]);
}

/// A faulty store that exports its first page repeatedly.
#[derive(Debug)]
struct RepeatingStore(MemoryStore);

#[async_trait::async_trait]
impl KeyExport for RepeatingStore {
    async fn export(
        &self,
        _: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.0.export(None, limit).await
    }
}

#[tokio::test]
async fn an_export_without_progress_is_an_error() {
    let repeating = RepeatingStore(with_keys((0..3).map(key)).await);
    let error = import(&repeating, &MemoryStore::new()).await.unwrap_err();
    assert!(matches!(error, ImportError::Export { after: Some(_), .. }), "{error:?}");
}

#[tokio::test]
async fn an_export_without_progress_ends_the_revocation_after_a_restore_too() {
    let repeating = RepeatingStore(with_keys((0..3).map(key)).await);
    let keys = KeyManager::builder(MemoryStore::new()).build().unwrap();
    let error = keys.revoke_issued_before(&repeating, Timestamp::MIN, "host").await.unwrap_err();
    assert!(matches!(error, ManageError::Unavailable(_)), "{error:?}");
}

// ---- after a restore ----

#[tokio::test]
async fn every_key_with_a_secret_issued_before_the_instant_is_revoked_and_recorded() {
    let (_folder, store) = file();
    let noon = "2027-05-03T12:00:00Z".parse::<Timestamp>().unwrap();
    let clock = Arc::new(ManualClock::new(noon));
    let log = Arc::new(MemoryAuditLog::new());
    let builder = KeyManager::builder(store.clone()).audit(log.clone()).clock(clock.clone());
    let keys = builder.build().unwrap();
    let (acme, globex) = (actor("acme"), actor("globex"));
    let new = || NewKey::named("k").unwrap();
    let restored = [
        keys.create(&acme, new()).await.unwrap(),
        keys.create(&globex, new().expires(Expiration::OneDay)).await.unwrap(),
    ];
    let revoked = keys.create(&acme, new()).await.unwrap();
    let revoked = keys.update(&acme, &revoked.key.id, KeyPatch::revoke()).await.unwrap();
    let rotated_since = keys.create(&acme, new()).await.unwrap();
    clock.advance(Duration::from_secs(1));
    let instant = clock.now();
    // Renamed since; its secret is as old as before.
    let name = KeyName::new("renamed").unwrap();
    keys.update(&acme, &restored[0].key.id, KeyPatch::rename(name)).await.unwrap();
    let rotated_since = keys.rotate(&acme, &rotated_since.key.id).await.unwrap();
    let made_since = keys.create(&globex, new()).await.unwrap();

    let records = log.len();
    assert_eq!(keys.revoke_issued_before(&store, instant, "host").await.unwrap(), 2);
    assert_eq!(log.len(), records + 2);
    let verify = async |issued: &IssuedKey| keys.verify(issued.secret.expose_secret(), None).await;
    for key in &restored {
        let refused = verify(key).await;
        assert!(matches!(refused, Err(VerifyError::Denied { denial: Denial::Revoked, .. })));
        let query = AuditQuery::new(key.key.org.clone(), AuditScope::KeyChanges(key.key.id));
        let last = log.page(&query).await.unwrap().records.remove(0);
        let AuditEvent::Change(change) = last.event else { panic!("{last:?}") };
        assert_eq!((&*change.actor, change.action), ("host", ChangeAction::Updated));
    }
    for key in [&rotated_since, &made_since] {
        verify(key).await.unwrap();
    }
    let same = keys.get(acme.org(), &revoked.id).await.unwrap();
    assert_eq!(same, revoked, "revoked a second time");
    assert_eq!(keys.revoke_issued_before(&store, instant, "host").await.unwrap(), 0, "again");

    // More than one page of them.
    let many = with_keys((0..MANY as u128).map(key)).await;
    let active = all(&many).await.iter().filter(|key| key.status == Status::Active).count();
    let many = Arc::new(many);
    let keys = KeyManager::builder(many.clone()).build().unwrap();
    let revoked = keys.revoke_issued_before(&*many, Timestamp::MAX, "host").await.unwrap();
    assert_eq!(revoked, active as u64);
    assert!(all(&*many).await.iter().all(|key| key.status == Status::Revoked));
}

/// Changes each key after exporting it.
#[derive(Debug)]
struct ChangingStore(Arc<MemoryStore>);

#[async_trait::async_trait]
impl KeyExport for ChangingStore {
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let page = self.0.export(after, limit).await?;
        for (n, key) in page.iter().enumerate() {
            let changed = ApiKey { revision: key.revision.next(), ..ApiKey::clone(key) };
            let changed = match n % 3 {
                0 => ApiKey { rotated_at: Some(Timestamp::MAX), ..changed },
                1 => ApiKey { name: KeyName::new("renamed").unwrap(), ..changed },
                _ => {
                    self.0.delete(&key.org, &key.id, None).await?;
                    continue;
                }
            };
            self.0.replace(&changed, key.revision).await?;
        }
        Ok(page)
    }
}

#[tokio::test]
async fn a_key_changed_during_the_revocation_is_revoked_if_its_secret_is_still_old() {
    let active = (0..9).map(|n| ApiKey { status: Status::Active, rotated_at: None, ..key(n) });
    let store = Arc::new(with_keys(active).await);
    let keys = KeyManager::builder(store.clone()).build().unwrap();
    let changing = ChangingStore(store.clone());
    let revoked = keys.revoke_issued_before(&changing, Timestamp::MAX, "host").await.unwrap();
    assert_eq!(revoked, 3);
    for key in all(&*store).await {
        assert_eq!(key.status == Status::Revoked, key.name.as_str() == "renamed", "{key:?}");
    }
}

#[tokio::test]
async fn an_unreadable_record_does_not_hide_a_key() {
    let (folder, old) = file();
    for n in 0..4 {
        old.insert(&key(n), OrgLimit::NONE).await.unwrap();
    }
    let raw = rusqlite::Connection::open(folder.path().join("keygate.db")).unwrap();
    raw.execute("UPDATE keys SET status = 'unknown' WHERE id = ?1", [key(2).id.to_bytes()])
        .unwrap();
    let error = import(&old, &MemoryStore::new()).await.unwrap_err();
    assert!(
        matches!(error, ImportError::Export { after: None, source: StoreError::Corrupt(_) }),
        "{error:?}"
    );
}
