//! An organisation for one property, and its keys.

use std::sync::Arc;

use crate::allowlist::Allowlist;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, PreviousSecret, Status};
use crate::runtime::clock::Timestamp;
use crate::store::conformance::expect;
use crate::store::conformance::fresh::{Fresh, instant};
use crate::store::conformance::property::Opener;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

/// A new organisation. Its methods expect every call to succeed.
#[derive(Clone, Debug)]
pub(super) struct TestOrg {
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) id: OrgId,
    pub(super) fresh: Arc<Fresh>,
    name: KeyName,
    allowlist: Allowlist,
}

impl TestOrg {
    pub(super) fn new(store: &Arc<dyn KeyStore>) -> Result<Self, Violation> {
        let fresh = Fresh::new()?;
        Ok(Self {
            store: Arc::clone(store),
            id: fresh.org()?,
            fresh: Arc::new(fresh),
            name: name("Deploy")?,
            allowlist: expect::made(Allowlist::parse(["192.0.2.0/24", "2001:db8::1"]))?,
        })
    }

    /// Closes the store and opens it again.
    pub(super) async fn reopened(self, opener: &Opener<dyn KeyStore>) -> Result<Self, Violation> {
        let Self { store, id, fresh, name, allowlist } = self;
        // The store is closed first, since a file may allow only one handle.
        drop(store);
        Ok(Self { store: opener.open().await?, id, fresh, name, allowlist })
    }

    pub(super) fn with_id(&self, id: OrgId) -> Self {
        Self { id, ..self.clone() }
    }

    /// A key that is not stored yet, younger than the keys before it.
    pub(super) fn key(&self) -> ApiKey {
        let created_at = instant(self.fresh.count() * 1_000_003);
        ApiKey {
            id: self.fresh.key_id(),
            org: self.id.clone(),
            name: self.name.clone(),
            digest: self.fresh.digest(),
            allowlist: self.allowlist.clone(),
            created_at,
            ..ApiKey::sample(0)
        }
    }

    /// Inserts the key and returns it.
    pub(super) async fn add(&self, key: ApiKey) -> Result<ApiKey, Violation> {
        expect::done("insert of a new key", self.store.insert(&key, OrgLimit::NONE).await)?;
        Ok(key)
    }

    pub(super) async fn add_keys(&self, count: usize) -> Result<Vec<ApiKey>, Violation> {
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(self.add(self.key()).await?);
        }
        Ok(keys)
    }

    /// Replaces `from` with `to` and returns `to`.
    pub(super) async fn change(&self, from: &ApiKey, to: ApiKey) -> Result<ApiKey, Violation> {
        expect::done(
            "replace at the stored revision",
            self.store.replace(&to, from.revision).await,
        )?;
        Ok(to)
    }

    pub(super) async fn delete(&self, key: &ApiKey) -> Result<(), Violation> {
        expect::done("delete of a stored key", self.store.delete(&key.org, &key.id, None).await)
    }

    pub(super) async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), Violation> {
        expect::done("record_uses", self.store.record_uses(uses).await)
    }

    pub(super) async fn get(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, Violation> {
        expect::done("get", self.store.get(&self.id, id).await)
    }

    pub(super) async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, Violation> {
        expect::done("find_by_digest", self.store.find_by_digest(digest).await)
    }

    pub(super) async fn list(&self) -> Result<Vec<Arc<ApiKey>>, Violation> {
        expect::done("list", self.store.list(&self.id).await)
    }

    /// Checks that the organisation has exactly these keys, by every method.
    pub(super) async fn has_exactly(&self, keys: &[&ApiKey]) -> Result<(), Violation> {
        let mut keys = keys.to_vec();
        keys.sort_by_key(|key| (key.created_at, key.id));
        let list = self.list().await?;
        let found: Vec<KeyId> = list.iter().map(|key| key.id).collect();
        expect::ids_in_order(&found, &keys.iter().map(|key| key.id).collect::<Vec<_>>())?;
        for (listed, key) in list.iter().zip(keys) {
            expect::same_key("list", Some(listed.as_ref()), key)?;
            expect::same_key("get", self.get(&key.id).await?.as_deref(), key)?;
            for digest in key.digests() {
                expect::found_key("find_by_digest", self.find(&digest).await?.as_deref(), key)?;
            }
        }
        Ok(())
    }

    /// Checks that the key is found by no method.
    pub(super) async fn has_lost(&self, key: &ApiKey) -> Result<(), Violation> {
        expect::no_key("get with its id", self.get(&key.id).await?.as_deref())?;
        self.has_lost_digest_of(key).await?;
        let listed = self.list().await?.iter().any(|listed| listed.id == key.id);
        expect::holds(!listed, "list without the key", "the key in it")
    }

    /// Checks that no key has its current digest or its previous one.
    pub(super) async fn has_lost_digest_of(&self, key: &ApiKey) -> Result<(), Violation> {
        for digest in key.digests() {
            expect::no_key("find_by_digest with its digest", self.find(&digest).await?.as_deref())?;
        }
        Ok(())
    }

    /// The key with another value in each field that an edit or a rotation may change, but
    /// for the revision.
    pub(super) fn edited(&self, key: &ApiKey) -> Result<ApiKey, Violation> {
        Ok(ApiKey {
            name: name("Another name")?,
            key_prefix: "vsp_sk_zzzzz".to_owned(),
            digest: self.fresh.digest(),
            status: Status::Revoked,
            allowlist: expect::made(Allowlist::parse(["198.51.100.0/24"]))?,
            expires_at: Some(instant(1)),
            rotated_at: Some(instant(2)),
            previous: Some(self.previous(instant(3))),
            attributes: expect::made(r#"{"metadata":{"plan":"pro"}}"#.parse())?,
            ..key.clone()
        })
    }

    /// A previous secret that no key has.
    pub(super) fn previous(&self, until: Timestamp) -> PreviousSecret {
        PreviousSecret { digest: self.fresh.digest(), until }
    }

    /// The key as a rotation with an overlap writes it.
    pub(super) fn overlapping(&self, key: &ApiKey) -> ApiKey {
        let previous = Some(PreviousSecret { digest: key.digest, ..self.previous(instant(9)) });
        ApiKey { previous, ..self.rotated(key) }
    }

    /// The key as a rotation writes it.
    pub(super) fn rotated(&self, key: &ApiKey) -> ApiKey {
        let rotated_at = Some(instant(self.fresh.count() * 1_000_003));
        ApiKey {
            digest: self.fresh.digest(),
            rotated_at,
            previous: None,
            revision: key.revision.next(),
            ..key.clone()
        }
    }
}

/// The key as a revocation writes it.
pub(super) fn revoked(key: &ApiKey) -> ApiKey {
    ApiKey { status: Status::Revoked, revision: key.revision.next(), ..key.clone() }
}

/// The key as a change of its name writes it.
pub(super) fn renamed(key: &ApiKey, to: &str) -> Result<ApiKey, Violation> {
    Ok(ApiKey { name: name(to)?, revision: key.revision.next(), ..key.clone() })
}

/// The key after a use.
pub(super) fn used(key: &ApiKey, at: Timestamp) -> ApiKey {
    ApiKey { last_used_at: Some(at), ..key.clone() }
}

pub(super) fn name(text: &str) -> Result<KeyName, Violation> {
    expect::made(KeyName::new(text))
}
