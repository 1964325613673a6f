//! Keys move from one store to another: `KeyExport` and `import`.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

use crate::key::id::KeyId;
use crate::record::{ApiKey, KeyUse, OrgLimit};
use crate::store::contract::{KeyStore, StoreError};

/// How many keys are asked for at a time.
const PAGE: usize = 500;

/// Gives out the keys of all organisations, for [`import`]: a store that has this
/// can be moved away from.
///
/// It hands out digests and never a secret, since no store has one. Nothing on the
/// path of a request uses it.
///
/// The `conformance` suite checks it with
#[cfg_attr(feature = "conformance", doc = "[`check_export`](crate::conformance::check_export).")]
#[cfg_attr(not(feature = "conformance"), doc = "`check_export`.")]
#[async_trait]
pub trait KeyExport: fmt::Debug + Send + Sync + 'static {
    /// The keys with the lowest ids after `after`, in the order of their ids
    /// (as bytes without a sign): `limit` of them, or as many as are left. `None`
    /// begins with the first; an empty answer is the end.
    ///
    /// A key that is there from the first page to the last is handed out once,
    /// whatever else comes and goes meanwhile.
    ///
    /// # Errors
    ///
    /// A record that cannot be read is [`StoreError::Corrupt`], and not left out.
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

/// Copies all keys of one store into another, where they work as they did: same
/// ids, digests, names, statuses, allowlists, times and revisions. Limits on keys
/// do not apply. Audit records stay where they are.
///
/// Nothing that `into` holds is overwritten; last uses move forward only. A key that
/// it holds already, equal in all but its last use, counts as
/// [`present`](Imported::present), so that an import that was interrupted can be run
/// again. Keys go one after the other: some hundreds a second into a database.
///
/// Import into a store that nobody uses yet, while nobody changes keys in `from`:
/// what changes there after it was copied is not copied, a revocation and a deletion
/// neither. Requests may go on, except that their last uses are not copied.
///
/// ```
/// use keygate::{Actor, KeyManager, MemoryStore, NewKey, OrgId, import};
/// use std::sync::Arc;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Two that are kept in memory stand for a `SqliteStore` and a `PostgresStore`.
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
/// An [`ImportError`]. What was copied until then stays; once the cause is gone,
/// the import can be run again.
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

/// The keys after that one; an empty page is the end.
pub(crate) async fn next_page(
    from: &dyn KeyExport,
    after: Option<&KeyId>,
) -> Result<Vec<Arc<ApiKey>>, StoreError> {
    let page = from.export(after, PAGE).await?;
    match (page.last(), after) {
        (Some(last), Some(after)) if last.id <= *after => {
            Err(StoreError::corrupt("the keys do not come in the order of their ids"))
        }
        _ => Ok(page),
    }
}

/// Makes sure that what is in the way is the key itself.
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
    /// Keys that were there already.
    pub present: u64,
}

/// Why an [`import`] ended early.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The store that is copied did not give out its keys.
    #[error("the keys{} cannot be exported", behind(.after))]
    Export {
        /// The last key that was copied; `None` for none.
        after: Option<KeyId>,
        /// What it said.
        source: StoreError,
    },
    /// The store that is copied to did not take a key.
    #[error("key {key} cannot be imported")]
    Insert {
        /// The key.
        key: KeyId,
        /// What it said.
        source: StoreError,
    },
    /// The store that is copied to has another key with this id or digest, or a
    /// copy of the key that was changed on one of the two sides since.
    #[error(
        "key {key} is there already and differs, or its id or digest is another key's; \
         import into an empty store"
    )]
    Taken {
        /// The key as it is named in the store that is copied.
        key: KeyId,
    },
}

fn behind(after: &Option<KeyId>) -> String {
    after.map_or_else(String::new, |id| format!(" after {id}"))
}
