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
use keygate::store::{KeyDigest, KeyExport, OrgLimit, Revision, import};
use keygate::{
    Actor, Allowlist, ApiKey, AuditLog, Denial, Expiration, KeyId, KeyManager, KeyName, KeyPatch,
    KeyStore, ManageError, MemoryAuditLog, MemoryStore, NewKey, SqliteStore, Status, StoreError,
    Timestamp, VerifyError,
};
use tempfile::TempDir;

use crate::support::{Call, SpyStore, TestClock, org};

/// More than one page of an import.
const MANY: u64 = 1_203;

fn file() -> (TempDir, SqliteStore) {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(folder.path().join("keygate.db")).unwrap();
    (folder, store)
}

fn actor(id: &str) -> Actor {
    Actor::new(org(id), "ada")
}

/// Keys of two organisations: used, restricted, expiring, rotated and revoked.
async fn fill(store: impl KeyStore) -> Vec<IssuedKey> {
    let keys = KeyManager::builder(store).build().unwrap();
    let mut issued = Vec::new();
    for (id, count) in [("acme", 20), ("globex", 5)] {
        for n in 0..count {
            let new = NewKey::named(format!("Schlüssel 🔑 {n}")).unwrap();
            let new = new.expires(Expiration::OneYear).allow(["192.0.2.0/24", "::1"]).unwrap();
            issued.push(keys.create(&actor(id), new).await.unwrap());
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

    for moved in [import(&old, &other).await, import(&other, &new).await] {
        let moved = moved.unwrap();
        assert_eq!((moved.added, moved.present), (25, 0));
    }
    assert_eq!(all(&other).await, kept);
    assert_eq!(all(&new).await, kept);

    let keys = KeyManager::builder(other).build().unwrap();
    let peer = Some("192.0.2.7".parse().unwrap());
    for (n, issued) in issued.iter().enumerate() {
        let verified = keys.verify(issued.secret.expose_secret(), peer).await;
        let id = match verified {
            Err(VerifyError::Denied { denial: Denial::Revoked, key, .. }) if n == 1 => key.id,
            verified if n != 1 => verified.unwrap().id(),
            verified => panic!("{verified:?}"),
        };
        assert_eq!(id, issued.key.id);
    }
    // The limit of the organisation applies to imported keys.
    let full = keys.create(&actor("acme"), NewKey::named("21st").unwrap()).await;
    assert!(full.is_err());
}

fn key(n: u64) -> ApiKey {
    let allowlist = Allowlist::restore(["192.0.2.0/24", "once readable"]);
    ApiKey { org: org("acme"), allowlist, ..ApiKey::sample(n) }
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
        there_and_back(store.clone()).await;
        #[cfg(feature = "conformance")]
        {
            keygate::conformance::check_export(|| async { store.clone() }).await.unwrap();
            keygate::conformance::check_import(|| async { store.clone() }).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn an_import_can_be_repeated_and_interrupted() {
    let (many, none) = (with_keys((0..MANY).map(key)).await, MemoryStore::new());
    let new = with_keys((0..700).map(key)).await;
    for (from, expected) in [(&none, (0, 0)), (&many, (503, 700)), (&many, (0, MANY))] {
        let moved = import(from, &new).await.unwrap();
        assert_eq!((moved.added, moved.present), expected);
    }
    assert_eq!(all(&new).await, all(&many).await);
}

#[tokio::test]
async fn an_import_overwrites_no_existing_key() {
    let revoked = ApiKey { status: Status::Revoked, revision: Revision::new(2), ..key(2) };
    let another_id = ApiKey { digest: key(2).digest, ..key(9) };
    let another_org = ApiKey { org: org("globex"), ..key(2) };
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
    let used = |micros: Option<i64>| ApiKey {
        last_used_at: micros.map(|micros| Timestamp::from_unix_micros(micros).unwrap()),
        ..key(1)
    };
    for (theirs, ours, after) in [(5, Some(9), 9), (9, Some(5), 9), (3, None, 3)] {
        let (old, new) = (with_keys([used(Some(theirs))]).await, with_keys([used(ours)]).await);
        import(&old, &new).await.unwrap();
        assert_eq!(all(&new).await, [used(Some(after))], "{theirs} into {ours:?}");
    }
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
async fn an_export_without_progress_ends_an_import_and_a_revocation() {
    let repeating = RepeatingStore(with_keys((0..3).map(key)).await);
    let error = import(&repeating, &MemoryStore::new()).await.unwrap_err();
    assert!(matches!(error, ImportError::Export { after: Some(_), .. }), "{error:?}");
    let keys = KeyManager::builder(MemoryStore::new()).build().unwrap();
    let error = keys.revoke_issued_before(&repeating, Timestamp::MIN, "host").await.unwrap_err();
    assert!(matches!(error, ManageError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn every_key_with_a_secret_issued_before_the_instant_is_revoked_and_recorded() {
    let (store, log) = (Arc::new(MemoryStore::new()), Arc::new(MemoryAuditLog::new()));
    let clock = TestClock::at("2027-05-03T12:00:00Z");
    let builder = KeyManager::builder(store.clone()).audit(log.clone()).clock(clock.clone());
    let keys = builder.build().unwrap();
    let (acme, globex) = (actor("acme"), actor("globex"));
    let create = async |actor| keys.create(actor, NewKey::named("k").unwrap()).await.unwrap();
    let old = [create(&acme).await, create(&globex).await];
    let revoked = create(&acme).await.key.id;
    let revoked = keys.update(&acme, &revoked, KeyPatch::revoke()).await.unwrap();
    let rotated = create(&acme).await.key.id;
    let instant = "2027-05-03T12:00:01Z".parse().unwrap();
    clock.set(instant);
    // Renamed since; its secret is as old as before.
    let rename = KeyPatch::rename(KeyName::new("renamed").unwrap());
    keys.update(&acme, &old[0].key.id, rename).await.unwrap();
    let new = [keys.rotate(&acme, &rotated).await.unwrap(), create(&globex).await];

    let records = log.len();
    assert_eq!(keys.revoke_issued_before(&*store, instant, "host").await.unwrap(), 2);
    assert_eq!(log.len(), records + 2);
    let verify = async |issued: &IssuedKey| keys.verify(issued.secret.expose_secret(), None).await;
    for key in &old {
        let refused = verify(key).await;
        assert!(matches!(refused, Err(VerifyError::Denied { denial: Denial::Revoked, .. })));
        let query = AuditQuery::new(key.key.org.clone(), AuditScope::KeyChanges(key.key.id));
        let last = log.page(&query).await.unwrap().records.remove(0);
        let AuditEvent::Change(change) = last.event else { panic!("{last:?}") };
        assert_eq!((&*change.actor, change.action), ("host", ChangeAction::Updated));
    }
    for key in &new {
        verify(key).await.unwrap();
    }
    let same = keys.get(acme.org(), &revoked.id).await.unwrap();
    assert_eq!(same, revoked, "revoked a second time");
    assert_eq!(keys.revoke_issued_before(&*store, instant, "host").await.unwrap(), 0, "again");

    // More than one page of them.
    let many = Arc::new(with_keys((0..MANY).map(key)).await);
    let keys = KeyManager::builder(many.clone()).build().unwrap();
    let revoked = keys.revoke_issued_before(&*many, Timestamp::MAX, "host").await.unwrap();
    assert_eq!(revoked, MANY);
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
    let store = Arc::new(with_keys((0..9).map(key)).await);
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
