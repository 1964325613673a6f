//! The `KeyStore` trait: what a place for keys owes to the rest.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::runtime::BoxFuture;

/// Keeps key records.
///
/// # Writing a store
///
/// A store keeps [`ApiKey`] records and finds them by their digest. It decides
/// nothing: whether a key may be used is the manager's business. What a store
/// does owe are these properties, each of them checked by the
/// `conformance` suite (feature `conformance`):
///
/// 1. **Ids and digests are unique.** A second record with either is
///    [`StoreError::Conflict`], in `insert` and in `replace`, across organisations.
/// 2. **`insert` counts and inserts in one atomic step.** With 64 writers at 19
///    of 20 keys, one gets through. Counting first and inserting then is not
///    enough, and on a database with snapshots neither is `INSERT … SELECT …
///    WHERE count < 20`: lock something of the organisation's first.
/// 3. **`replace` compares and writes in one atomic step**, and so does `delete` where
///    it is given a revision. They act only where the stored revision is `expected`, so
///    that an edit never undoes a revocation. The old digest is gone when `replace` returns. It leaves `created_at`, `org` and
///    `last_used_at` as they are stored.
/// 4. **Organisations do not see each other.** `get`, `list`, `replace` and
///    `delete` treat a key of another organisation as one that does not exist.
/// 5. **`record_uses` moves last-used times forward only**, touches nothing else
///    (the revision neither), and skips keys that are gone. The one exception is a
///    stored time more than a day after the use, which a process with a wrong clock
///    set: [`KeyUse::replaces`] is the rule.
/// 6. **What comes back is what went in**, to the microsecond, in any script.
///    A stored allowlist goes through
///    [`Allowlist::restore`](crate::Allowlist::restore), so that a damaged one
///    refuses everybody. Keep its entries apart, one without text too: joined, a
///    list of one damaged entry may come back as an empty list, which allows every
///    address.
/// 7. **A finished call is visible to every call that begins after it**, and is as
///    durable as the store promises. A digest that a rotation gave up, and the id and
///    digest of a deleted key, are free again. Last-used times are visible in `get`
///    and `list`; `find_by_digest` may give an earlier one, since nothing is decided
///    by it: so a store can leave alone what every request reads.
/// 8. **A call that is dropped happens whole or not at all**, and the store goes on
///    answering: the manager drops calls at their deadline. A change whose time is over
///    never takes place later: a store across a network tells its server when to give up.
/// 9. **Calls do not block each other for good**: two batches of uses that name the
///    same keys in opposite order both come to their end.
/// 10. **Errors are classified and keep their source.** What may work later is
///     [`StoreError::unavailable`]; a change that may have taken place, since its answer
///     was lost, is [`StoreError::in_doubt`]. A store across a network sets deadlines of
///     its own; the manager has one as a last resort.
///
/// # What to keep of a record
///
/// Each part of an [`ApiKey`] becomes a value that any database keeps, and comes back
/// from it; what does not is [`StoreError::corrupt`].
///
/// | part | kept as | read back by |
/// |---|---|---|
/// | `id` | [`KeyId::to_bytes`], or its text | [`KeyId::from_bytes`], or `parse` |
/// | `key_prefix` | its text | as it is |
/// | `org` | its `as_str` | [`OrgId::new`] |
/// | `name` | its `as_str` | [`KeyName::restore`](crate::KeyName::restore): an earlier version may have taken what [`KeyName::new`](crate::KeyName::new) refuses by now |
/// | `digest` | [`KeyDigest::as_bytes`] | [`KeyDigest::from_slice`] |
/// | `status` | [`Status::as_str`](crate::Status::as_str) | [`str::parse`] |
/// | `allowlist` | [`Allowlist::entries`](crate::Allowlist::entries) | [`Allowlist::restore`](crate::Allowlist::restore) |
/// | times | [`Timestamp::unix_micros`](crate::Timestamp::unix_micros) | [`Timestamp::from_unix_micros`](crate::Timestamp::from_unix_micros) |
/// | `revision` | [`Revision::get`] | [`Revision::new`] |
/// | `attributes` | its text, by `to_string` | [`str::parse`] |
///
/// # A whole store
///
/// There are no default methods: a default is a bug that every store inherits.
///
/// On one mutex:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
///
/// use keygate::{ApiKey, KeyDigest, KeyId, KeyStore, KeyUse, OrgId, OrgLimit, Revision, StoreError};
///
/// #[derive(Debug, Default)]
/// struct MyStore {
///     keys: Mutex<HashMap<KeyId, ApiKey>>,
/// }
///
/// impl MyStore {
///     fn keys(&self) -> MutexGuard<'_, HashMap<KeyId, ApiKey>> {
///         self.keys.lock().unwrap_or_else(PoisonError::into_inner)
///     }
/// }
///
/// #[async_trait::async_trait]
/// impl KeyStore for MyStore {
///     async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
///         let mut keys = self.keys(); // held to the end: one atomic step
///         if keys.values().any(|k| k.id == key.id || k.digest == key.digest) {
///             return Err(StoreError::Conflict);
///         }
///         if !limit.admits_one_more(keys.values().filter(|k| k.org == key.org).count()) {
///             return Err(StoreError::LimitReached);
///         }
///         keys.insert(key.id, key.clone());
///         Ok(())
///     }
///
///     async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
///         Ok(self.keys().values().find(|k| k.digest == *digest).cloned().map(Arc::new))
///     }
///
///     async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
///         Ok(self.keys().get(id).filter(|k| k.org == *org).cloned().map(Arc::new))
///     }
///
///     async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
///         let mut list: Vec<_> = self.keys().values().filter(|k| k.org == *org).cloned().map(Arc::new).collect();
///         list.sort_by_key(|k| (k.created_at, k.id));
///         Ok(list)
///     }
///
///     async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
///         let mut keys = self.keys();
///         if keys.values().any(|k| k.id != key.id && k.digest == key.digest) {
///             return Err(StoreError::Conflict);
///         }
///         let stored = keys.get_mut(&key.id).filter(|k| k.org == key.org).ok_or(StoreError::NotFound)?;
///         if stored.revision != expected {
///             return Err(StoreError::Conflict);
///         }
///         let (created_at, last_used_at) = (stored.created_at, stored.last_used_at);
///         *stored = ApiKey { created_at, last_used_at, ..key.clone() };
///         Ok(())
///     }
///
///     async fn delete(&self, org: &OrgId, id: &KeyId, expected: Option<Revision>) -> Result<(), StoreError> {
///         let mut keys = self.keys();
///         let stored = keys.get(id).filter(|k| k.org == *org).ok_or(StoreError::NotFound)?;
///         if expected.is_some_and(|expected| expected != stored.revision) {
///             return Err(StoreError::Conflict);
///         }
///         keys.remove(id);
///         Ok(())
///     }
///
///     async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
///         let mut keys = self.keys();
///         for used in uses {
///             if let Some(key) = keys.get_mut(&used.id) {
///                 if used.replaces(key.last_used_at) {
///                     key.last_used_at = Some(used.at);
///                 }
///             }
///         }
///         Ok(())
///     }
/// }
#[cfg_attr(
    feature = "conformance",
    doc = r#"
# #[tokio::main(worker_threads = 4)]
# async fn main() {
keygate::conformance::check_store(|| async { MyStore::default() }).await.unwrap();
# }
"#
)]
/// ```
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync + 'static {
    /// Counts the organisation's keys and inserts, in one atomic step.
    ///
    /// # Errors
    ///
    /// [`LimitReached`](StoreError::LimitReached) where `limit` admits no further
    /// key, [`Conflict`](StoreError::Conflict) where the id or the digest is
    /// taken; nothing is inserted then.
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError>;

    /// The key with that digest, of any organisation: the one call on the path
    /// of every request. Its last-used time may be out of date.
    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError>;

    /// The organisation's key with that id.
    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError>;

    /// All keys of the organisation, by `(created_at, id)`, oldest first.
    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError>;

    /// Writes name, key prefix, digest, status, allowlist, expiry, rotation time
    /// and revision, where the stored revision is `expected`: an edit never
    /// undoes a revocation.
    ///
    /// # Errors
    ///
    /// [`NotFound`](StoreError::NotFound) where the organisation has no such key,
    /// [`Conflict`](StoreError::Conflict) where the revision is another or the
    /// new digest is taken; nothing is written then.
    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError>;

    /// Removes the organisation's key with that id; with `expected`, only where the
    /// stored revision is that one.
    ///
    /// # Errors
    ///
    /// [`NotFound`](StoreError::NotFound) where the organisation has no such key,
    /// [`Conflict`](StoreError::Conflict) where the revision is another; nothing is
    /// removed then.
    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError>;

    /// Writes the last-used times that [`KeyUse::replaces`] admits: forward, not back,
    /// but for a stored time that lies more than a day ahead. It touches nothing else.
    /// A key may occur more than once; one that is gone is skipped.
    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError>;
}

#[async_trait]
impl<S: KeyStore + ?Sized> KeyStore for Arc<S> {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        (**self).insert(key, limit).await
    }

    /// Written out: as an `async fn` it would put a second future on the heap for
    /// every request.
    fn find_by_digest<'life0, 'life1, 'async_trait>(
        &'life0 self,
        digest: &'life1 KeyDigest,
    ) -> BoxFuture<'async_trait, Result<Option<Arc<ApiKey>>, StoreError>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        (**self).find_by_digest(digest)
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        (**self).get(org, id).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        (**self).list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        (**self).replace(key, expected).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        (**self).delete(org, id, expected).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        (**self).record_uses(uses).await
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The organisation has as many keys as it may have.
    #[error("the organisation has reached its limit of keys")]
    LimitReached,
    /// The organisation has no such key.
    #[error("no such key")]
    NotFound,
    /// Another change came first, or the id or digest is taken.
    #[error("the key was changed meanwhile, or its id or digest is taken")]
    Conflict,
    /// The store does not work now and may later. A change did not take place, and
    /// does not take place later.
    #[error("the key store is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// The answer to a change was lost: whether it took place is not known. Where it
    /// has not, it does not take place later.
    #[error("the key store did not confirm the change, which may have taken place")]
    InDoubt(#[source] Box<dyn StdError + Send + Sync>),
    /// What is stored cannot be read as a key.
    #[error("the key store holds a record that cannot be read")]
    Corrupt(#[source] Box<dyn StdError + Send + Sync>),
}

impl StoreError {
    /// An error that may pass: a lost connection, a full disk, a lock, a deadline.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// A change that may have taken place: the connection was lost, or the deadline
    /// passed, before the answer came.
    pub fn in_doubt(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::InDoubt(source.into())
    }

    /// A row that is no key.
    pub fn corrupt(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Corrupt(source.into())
    }
}
