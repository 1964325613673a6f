//! Copies keys from one store to another: `KeyExport` and `import`.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

use crate::key::id::KeyId;
use crate::record::{ApiKey, KeyUse, OrgLimit};
use crate::store::key_store::{KeyStore, StoreError};

/// How many keys are read at a time.
const PAGE: usize = 500;

/// Exports the keys of all organisations, for [`import`].
///
/// It returns digests and never a secret, since no store has one. Requests do not use it.
///
/// The `conformance` suite checks it with
#[cfg_attr(feature = "conformance", doc = "[`check_export`](crate::conformance::check_export).")]
#[cfg_attr(not(feature = "conformance"), doc = "`check_export`.")]
#[async_trait]
pub trait KeyExport: fmt::Debug + Send + Sync + 'static {
    /// The `limit` keys with the lowest ids after `after`, or fewer if there are no more,
    /// ordered by id (as unsigned bytes). `None` begins with the first key; an empty answer
    /// is the end.
    ///
    /// A key that exists from the first page to the last is returned exactly once, despite
    /// other keys that are added or removed meanwhile.
    ///
    /// # Errors
    ///
    /// A record that cannot be read is [`StoreError::Corrupt`]; it is not skipped.
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError>;
}

#[async_trait]
impl<S: KeyExport + ?Sized> KeyExport for Arc<S> {
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        (**self).export(after, limit).await
    }
}

/// Inserts many keys at a time, for [`KeyManager::adopt_all`](crate::KeyManager::adopt_all).
///
/// The `conformance` suite checks it with
#[cfg_attr(feature = "conformance", doc = "[`check_import`](crate::conformance::check_import).")]
#[cfg_attr(not(feature = "conformance"), doc = "`check_import`.")]
#[async_trait]
pub trait KeyImport: fmt::Debug + Send + Sync + 'static {
    /// Inserts each key whose id and digest are free, without a limit, in one transaction.
    /// The answer says of each key, in the same order, whether it was inserted. Of two keys
    /// with the same id or digest, the first is.
    ///
    /// # Errors
    ///
    /// [`InDoubt`](StoreError::InDoubt) if some keys may have been inserted; none after any
    /// other error.
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError>;
}

#[async_trait]
impl<S: KeyImport + ?Sized> KeyImport for Arc<S> {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        (**self).insert_all(keys).await
    }
}

/// Copies all keys of one store into another, where they work as before: same ids, digests,
/// names, statuses, allowlists, times and revisions. Limits on keys do not apply. Audit
/// records are not copied.
///
/// Keys in `into` are not overwritten; last-used times only move forward. A key that is
/// there already, equal except for its last use, counts as [`present`](Imported::present),
/// so that an interrupted import can be repeated. Keys are copied one after the other, some
/// hundreds a second into a database.
///
/// Import into a store that is not in use yet, and allow no changes of keys in `from`
/// meanwhile: changes to a key after it was copied are not copied, including revocations
/// and deletions. Requests may continue, but their last-used times may not be copied.
///
/// ```
/// use keygate::store::import;
/// use keygate::{Actor, KeyManager, MemoryStore, NewKey, OrgId};
/// use std::sync::Arc;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Two stores in memory take the place of a `SqliteStore` and a `PostgresStore`.
/// let (old, new) = (Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new()));
/// let keys = KeyManager::builder(old.clone()).build()?;
/// let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
/// let issued = keys.create(&actor, NewKey::named("CI deploy")?).await?;
/// keys.shutdown(std::time::Duration::from_secs(5)).await;
///
/// let imported = import(&*old, &*new).await?;
/// assert_eq!((imported.added, imported.present), (1, 0));
///
/// let keys = KeyManager::builder(new).build()?;
/// keys.verify(issued.secret.expose_secret(), None).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// An [`ImportError`]. Keys copied before the error stay; once the cause is fixed, the
/// import can be repeated.
pub async fn import(from: &dyn KeyExport, into: &dyn KeyStore) -> Result<Imported, ImportError> {
    let mut imported = Imported::default();
    let mut after = None;
    loop {
        let page = next_page(from, after.as_ref()).await;
        let page = page.map_err(|source| ImportError::Export { after, source })?;
        let Some(last) = page.last() else { return Ok(imported) };
        after = Some(last.id);
        for key in page {
            let inserted = into.insert(&key, OrgLimit::NONE).await;
            match inserted {
                Ok(()) => imported.added += 1,
                Err(StoreError::Conflict) => {
                    meet(&key, into).await?;
                    imported.present += 1;
                }
                Err(source) => return Err(ImportError::Insert { key: key.id, source }),
            }
        }
    }
}

/// The keys after this one; an empty page is the end.
pub(crate) async fn next_page(
    from: &dyn KeyExport,
    after: Option<&KeyId>,
) -> Result<Vec<Arc<ApiKey>>, StoreError> {
    let page = from.export(after, PAGE).await?;
    match (page.last(), after) {
        (Some(last), Some(after)) if last.id <= *after => {
            Err(StoreError::corrupt("the keys are not in the order of their ids"))
        }
        _ => Ok(page),
    }
}

/// Checks that the conflicting key is the same key.
async fn meet(key: &ApiKey, into: &dyn KeyStore) -> Result<(), ImportError> {
    let failed = |source| ImportError::Insert { key: key.id, source };
    let found = into.get(&key.org, &key.id).await.map_err(failed)?;
    let found = found.ok_or(ImportError::Taken { key: key.id })?;
    if *key != (ApiKey { last_used_at: key.last_used_at, ..ApiKey::clone(&found) }) {
        return Err(ImportError::Taken { key: key.id });
    }
    match key.last_used_at {
        Some(at) if found.last_used_at < key.last_used_at => {
            into.record_uses(&[KeyUse { id: key.id, at }]).await.map_err(failed)
        }
        _ => Ok(()),
    }
}

/// What an [`import`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Keys that were copied.
    pub added: u64,
    /// Keys that `into` had already.
    pub present: u64,
}

/// Why an [`import`] failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The source store did not export its keys.
    #[error("cannot export the keys{}", behind(.after))]
    Export {
        /// The last key that was copied, if any.
        after: Option<KeyId>,
        /// The store's error.
        source: StoreError,
    },
    /// The target store did not accept a key.
    #[error("cannot import key {key}")]
    Insert {
        /// The key.
        key: KeyId,
        /// The store's error.
        source: StoreError,
    },
    /// The target store has another key with this id or digest, or a copy of the key that
    /// differs from the source.
    #[error(
        "cannot import key {key}: another key with its id or digest, or a changed copy, exists; \
         import into an empty store"
    )]
    Taken {
        /// The key in the source store.
        key: KeyId,
    },
}

fn behind(after: &Option<KeyId>) -> String {
    after.map_or_else(String::new, |id| format!(" after {id}"))
}
