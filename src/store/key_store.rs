//! The `KeyStore` trait: storage for keys.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::runtime::spawn::BoxFuture;

/// Stores key records.
///
/// # Writing a store
///
/// A store keeps [`ApiKey`] records and finds them by their digest. It does not decide
/// whether a key may be used; the manager does. A store must have these properties, each
/// checked by `check_store` (feature `conformance`; for a store on disk or on a server, call
/// `check_reopened_store` as well):
///
/// 1. **Ids and digests are unique.** A second record with either is
///    [`StoreError::Conflict`], in `insert` and in `replace`, across organisations. A key
///    may have two digests, of its current and its [previous](ApiKey::previous) secret; no
///    other key may have one of them as either.
/// 2. **`insert` counts and inserts in one atomic step.** With 64 writers at 19 of 20 keys,
///    one succeeds. Counting before inserting is not enough, and on a database with
///    snapshots neither is `INSERT … SELECT … WHERE count < 20`: first lock a row of the
///    organisation.
/// 3. **`replace` compares and writes in one atomic step**, and so does `delete` if it is
///    given a revision. They act only if the stored revision is `expected`, so that an edit
///    never undoes a revocation. When `replace` returns, a digest that the new record does
///    not have is gone; one that both records have is found throughout. `created_at`, `org`
///    and `last_used_at` keep their stored values.
/// 4. **Organisations are isolated.** `get`, `list`, `replace` and `delete` treat a key of
///    another organisation as one that does not exist.
/// 5. **`record_uses` moves last-used times forward only**, changes nothing else (not the
///    revision either), and skips keys that are gone. The one exception is a stored time
///    more than a day after the use, set by a process with a wrong clock:
///    [`KeyUse::replaces`] is the rule. If it cannot write a key at once, because its row is
///    locked, it writes the others and returns `Unavailable`: the batch is given again.
/// 6. **Records are returned exactly as stored**, to the microsecond, in any script. A
///    stored allowlist is read by [`Allowlist::restore`](crate::Allowlist::restore), so
///    that a damaged one allows no address. Keep its entries separate, even empty ones: if
///    they are joined, a list of one damaged entry may be read as an empty list, which
///    allows every address.
/// 7. **A finished call is visible to every call that begins after it**, and is as durable
///    as the store promises. A digest that a key no longer has is free again, and after a
///    deletion the id and the digests. Last-used times are visible in `get` and `list`;
///    `find_by_digest` may return an earlier one, since no decision depends on it. This
///    lets a store leave the data that every request reads unchanged.
/// 8. **A call that is dropped happens whole or not at all**, and the store keeps working:
///    the manager drops calls at their deadline. A change that has exceeded its deadline
///    never takes place later, so a store across a network must give its server a deadline.
/// 9. **Calls do not deadlock**: two batches of uses that name the same keys in opposite
///    order both finish.
/// 10. **Errors are classified and keep their source.** An error that may pass is
/// [`StoreError::unavailable`]; a change that may have taken place, since its response was
/// lost, is [`StoreError::in_doubt`]. A store across a network sets its own deadlines; the
/// manager's is a last resort. A call that panics counts as unavailable, and a change that
/// panics as in doubt.
///
/// # What to keep of a record
///
/// Each part of an [`ApiKey`] is stored as a simple value. A stored value that cannot be
/// read back is [`StoreError::corrupt`].
///
/// | part | kept as | read back by |
/// |---|---|---|
/// | `id` | [`KeyId::to_bytes`], or its text | [`KeyId::from_bytes`], or `parse` |
/// | `key_prefix` | its text | using the text |
/// | `org` | its `as_str` | [`OrgId::new`] |
/// | `name` | its `as_str` | [`KeyName::restore`](crate::KeyName::restore): an earlier version may have accepted a name that [`KeyName::new`](crate::KeyName::new) now refuses |
/// | `digest` | [`KeyDigest::as_bytes`] | [`KeyDigest::from_slice`] |
/// | `previous` | a digest and a time, or neither | as those |
/// | `status` | [`Status::as_str`](crate::Status::as_str) | [`str::parse`] |
/// | `allowlist` | [`Allowlist::entries`](crate::Allowlist::entries) | [`Allowlist::restore`](crate::Allowlist::restore) |
/// | times | [`Timestamp::unix_micros`](crate::Timestamp::unix_micros) | [`Timestamp::from_unix_micros`](crate::Timestamp::from_unix_micros) |
/// | `revision` | [`Revision::get`] | [`Revision::new`] |
/// | `attributes` | its text, by `to_string` | [`str::parse`] |
///
/// # A whole store
///
/// There are no default methods, since every store would inherit a bug in them.
///
/// An example with one mutex:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
///
/// use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision};
/// use keygate::{ApiKey, KeyId, KeyStore, OrgId, StoreError};
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
///         if keys.values().any(|k| k.id == key.id || k.shares_digest(key)) {
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
///         let keys = self.keys();
///         let found = keys.values().find(|k| k.digests().any(|own| own == *digest));
///         Ok(found.cloned().map(Arc::new))
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
///         if keys.values().any(|k| k.id != key.id && k.shares_digest(key)) {
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
    /// [`LimitReached`](StoreError::LimitReached) if `limit` admits no further key, and
    /// [`Conflict`](StoreError::Conflict) if the id or a digest is taken. Nothing is
    /// inserted then.
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError>;

    /// The key with this digest, current or previous, of any organisation: the only call
    /// that every request makes. Also after the previous secret's end, which the manager
    /// checks. The key's last-used time may be out of date.
    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError>;

    /// The organisation's key with this id.
    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError>;

    /// All keys of the organisation, by `(created_at, id)`, oldest first.
    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError>;

    /// Writes name, key prefix, digests, status, allowlist, times of expiry, rotation and
    /// the previous secret's end, attributes and revision, if the stored revision is `expected`, so that an edit never undoes a
    /// revocation.
    ///
    /// # Errors
    ///
    /// [`NotFound`](StoreError::NotFound) if the organisation has no such key, and
    /// [`Conflict`](StoreError::Conflict) if the revision is different or a new digest is
    /// taken. Nothing is written then.
    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError>;

    /// Deletes the organisation's key with this id; with `expected`, only if that is the
    /// stored revision.
    ///
    /// # Errors
    ///
    /// [`NotFound`](StoreError::NotFound) if the organisation has no such key, and
    /// [`Conflict`](StoreError::Conflict) if the revision is different. Nothing is deleted
    /// then.
    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError>;

    /// Writes the last-used times that [`KeyUse::replaces`] permits: only later ones,
    /// except that a stored time more than a day ahead is corrected. It changes nothing
    /// else. A key may occur more than once; a key that is gone is skipped.
    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError>;
}

#[async_trait]
impl<S: KeyStore + ?Sized> KeyStore for Arc<S> {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        (**self).insert(key, limit).await
    }

    /// Written out, since an `async fn` would allocate a second future for every request.
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

/// Errors of a key store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The organisation has reached its limit of keys.
    #[error("the organisation has reached its limit of keys")]
    LimitReached,
    /// The organisation has no such key.
    #[error("no such key")]
    NotFound,
    /// Another change came first, or the id or digest is taken.
    #[error("another change came first, or the id or digest is taken")]
    Conflict,
    /// The store does not work now; retry later. A change did not take place and will not
    /// take place later.
    #[error("the key store is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// The response to a change was lost, so it may have taken place. If it has not, it
    /// will not take place later.
    #[error("the key store did not confirm the change; it may have taken place")]
    InDoubt(#[source] Box<dyn StdError + Send + Sync>),
    /// The stored data cannot be read as a key.
    #[error("the key store contains a record that cannot be read")]
    Corrupt(#[source] Box<dyn StdError + Send + Sync>),
}

impl StoreError {
    /// A temporary error: a lost connection, a full disk, a lock, a deadline.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// A change that may have taken place: the connection was lost or the deadline passed
    /// before the response.
    pub fn in_doubt(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::InDoubt(source.into())
    }

    /// A row that cannot be read as a key.
    pub fn corrupt(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Corrupt(source.into())
    }
}
