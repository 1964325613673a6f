//! Adopts keys that were issued before keygate, from their digests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use thiserror::Error;

use crate::audit::changed::ChangedFields;
use crate::audit::log::{AuditQuery, AuditScope, Position};
use crate::audit::record::{AuditEvent, ChangeAction, ChangePhase};
use crate::key::existing::{ExistingDigestError, of_id};
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::adopted::AdoptedKey;
use crate::manager::change::Done;
use crate::manager::error::ManageError;
use crate::org::{Actor, OrgId};
use crate::record::attributes::Attributes;
use crate::record::{ApiKey, OrgLimit, Revision};
use crate::runtime::spawn::all;
use crate::store::key_store::StoreError;
use crate::store::transfer::KeyImport;

/// How many keys are stored in one transaction. It has to end within the store's deadline.
const BATCH: usize = 250;

/// A key that is in the store after [`KeyManager::adopt`].
///
/// No fields will be added to this type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The record in the store.
    pub key: Arc<ApiKey>,
    /// Whether it was stored by this call. If not, nothing was changed.
    pub is_new: bool,
}

/// What [`KeyManager::adopt_all`] did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct AdoptReport {
    /// How many keys were stored.
    pub adopted: u64,
    /// How many were there already, from an earlier run.
    pub already_there: u64,
    /// How many were adopted by an earlier run and deleted since.
    pub deleted: u64,
    /// The keys of which nothing was stored: their place in the iterator, counted from 0,
    /// and why. In the order of their places.
    pub refused: Vec<(usize, AdoptError)>,
    /// Where and why the run stopped early: the place of the first key that may be missing,
    /// and the failure of the store or the audit log. Run it again.
    pub stopped: Option<(usize, ManageError)>,
}

/// Why a key was not adopted. Nothing of it was stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The shown prefix is not 1 to 40 visible ASCII characters.
    #[error("key_prefix: 1 to {} visible ASCII characters", AdoptedKey::MAX_KEY_PREFIX_LEN)]
    KeyPrefix,
    /// The shown prefix contains a key, or most of one.
    #[error("key_prefix: contains an API key, or most of one")]
    KeyPrefixHoldsKey,
    /// The digest is not complete.
    #[error("digest: {0}")]
    Digest(ExistingDigestError),
    /// An earlier key of the same run has this digest.
    #[error("digest: an earlier key has the same")]
    DigestTwice,
    /// Another key in the store has this digest.
    #[error("digest: another key in the store has the same")]
    DigestTaken,
    /// The key was adopted before, and deleted since.
    #[error("digest: the key was deleted")]
    Deleted,
    /// The name, the environment, the scopes or the allowlist are refused, or the store or
    /// the audit log failed.
    #[error(transparent)]
    Manage(ManageError),
}

impl<E: Into<ManageError>> From<E> for AdoptError {
    fn from(error: E) -> Self {
        Self::Manage(error.into())
    }
}

/// Keys that were issued before keygate: the [guide](crate::guide::adopting) goes through it
/// step by step.
impl KeyManager {
    /// Stores a key that was issued before keygate, from its digest. Customers go on using
    /// it, see it on the settings page and revoke it there. Its first rotation gives it
    /// keygate's format.
    ///
    /// It may be beyond the organisation's limit of keys. Nothing is overwritten: a key that
    /// was adopted with this digest before stays as it is now, even if it was renamed, revoked
    /// or rotated since. One that was deleted since is not stored again, as far back as the
    /// manager's audit log goes. Without an audit log to read, it would be.
    ///
    /// `by` is the actor in the audit log, where it is recorded like a creation. The key can
    /// be used only if its format is declared
    /// ([`KeyManagerBuilder::existing`](crate::manager::KeyManagerBuilder::existing)).
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::existing::{AdoptedKey, DigestKind, ExistingFormat};
    /// use keygate::{KeyManager, KeyName, MemoryStore, OrgId};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new())
    ///     .existing(ExistingFormat::new("acme_live_", 16..=16)?)
    ///     .build()?;
    /// // The SHA-256 of `acme_live_0123456789abcdef`.
    /// let hex = "2240e820c82706d33e238330f1ec88a4b3f92332e72c264c92d06eb278db4fdd";
    /// let digest = DigestKind::sha256().read(hex)?;
    /// let key = AdoptedKey::new(OrgId::new("acme")?, KeyName::new("CI")?, "acme_live_0123", digest);
    /// keys.adopt(key, "import of 3 May").await?;
    ///
    /// let verified = keys.verify("acme_live_0123456789abcdef", None).await?;
    /// assert_eq!(verified.org().as_str(), "acme");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// An [`AdoptError`].
    pub async fn adopt(&self, key: AdoptedKey, by: &str) -> Result<Adopted, AdoptError> {
        let key = self.adopted(key)?;
        self.store_adopted(key, by).await
    }

    /// Adopts many keys, as [`adopt`](Self::adopt) does, some hundreds in one transaction. An
    /// entry that is wrong is refused, and the others are adopted. It can be run again.
    ///
    /// `store` is the store of this manager; if that is a cache, the one behind it. It stops
    /// early if the store or the audit log fails, or when it is dropped. What was adopted by
    /// then stays.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use keygate::existing::{AdoptedKey, DigestKind};
    /// use keygate::{KeyManager, KeyName, MemoryStore, OrgId};
    ///
    /// # let table = [("acme", "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9")];
    /// let store = Arc::new(MemoryStore::new());
    /// let keys = KeyManager::builder(store.clone()).build()?;
    /// let mut entries = Vec::new();
    /// for (org, sha256_hex) in table {
    ///     let digest = DigestKind::sha256().read(sha256_hex)?;
    ///     entries.push(AdoptedKey::new(OrgId::new(org)?, KeyName::new("API key")?, "acme_live_", digest));
    /// }
    /// let report = keys.adopt_all(store, entries, "import of 3 May").await;
    /// assert_eq!((report.adopted, report.refused.len()), (1, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn adopt_all(
        &self,
        store: impl KeyImport,
        keys: impl IntoIterator<Item = AdoptedKey, IntoIter: Send>,
        by: &str,
    ) -> AdoptReport {
        let store: Arc<dyn KeyImport> = Arc::new(store);
        let mut report = AdoptReport::default();
        let mut keys = keys.into_iter().enumerate();
        let (mut seen, mut deleted) = (HashSet::new(), HashMap::new());
        loop {
            let batch: Vec<_> = keys.by_ref().take(BATCH).collect();
            let Some((first, _)) = batch.first() else { break };
            let first = *first;
            let mut entries = Vec::new();
            for (at, key) in batch {
                match self.adopted(key) {
                    Ok(key) if seen.insert(key.digest) => entries.push((at, key)),
                    Ok(_) => report.refused.push((at, AdoptError::DigestTwice)),
                    Err(error) => report.refused.push((at, error)),
                }
            }
            if let Err(error) =
                self.adopt_batch(&store, entries, by, &mut deleted, &mut report).await
            {
                report.stopped = Some((first, error));
                break;
            }
        }
        report.refused.sort_by_key(|(at, _)| *at);
        report
    }

    async fn adopt_batch(
        &self,
        store: &Arc<dyn KeyImport>,
        entries: Vec<(usize, ApiKey)>,
        by: &str,
        deleted: &mut HashMap<OrgId, HashSet<KeyId>>,
        report: &mut AdoptReport,
    ) -> Result<(), ManageError> {
        // A key that is there already leaves no record in the audit log.
        let mut there = self.are_there(entries.iter().map(|(_, key)| (&key.org, &key.id))).await?;
        there.reverse();
        let new = entries.into_iter().filter(|_| {
            let is_there = there.pop().unwrap_or_default();
            report.already_there += u64::from(is_there);
            !is_there
        });
        let mut new: Vec<_> = new.collect();
        for (_, key) in &new {
            if !deleted.contains_key(&key.org) {
                deleted.insert(key.org.clone(), self.deleted(&key.org).await?);
            }
        }
        let candidates = new.len();
        new.retain(|(_, key)| !deleted.get(&key.org).is_some_and(|ids| ids.contains(&key.id)));
        report.deleted += (candidates - new.len()) as u64;
        let (places, new): (Vec<usize>, Vec<ApiKey>) = new.into_iter().unzip();
        if new.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = new.iter().map(|key| (key.org.clone(), key.id)).collect();
        let created =
            |key: &ApiKey| self.entry(Actor::new(key.org.clone(), by), key.id, adopted(key));
        let entries = new.iter().map(created).collect();
        let store = Arc::clone(store);
        let insert = move |keys: Self| async move {
            let inserted = keys.inner.confirmed("insert_all", store.insert_all(&new)).await?;
            Ok((inserted.clone(), inserted))
        };
        let inserted = self.carry_all_through(entries, insert).await?;
        report.adopted += inserted.iter().filter(|is_new| **is_new).count() as u64;
        let left_out = names.into_iter().zip(places).zip(inserted);
        let left_out: Vec<_> =
            left_out.filter(|(_, is_new)| !is_new).map(|(named, _)| named).collect();
        let there = self.are_there(left_out.iter().map(|((org, id), _)| (org, id))).await?;
        for ((_, at), is_there) in left_out.into_iter().zip(there) {
            if is_there {
                report.already_there += 1;
            } else {
                report.refused.push((at, AdoptError::DigestTaken));
            }
        }
        Ok(())
    }

    /// Whether the store has these keys.
    async fn are_there<'a>(
        &self,
        names: impl Iterator<Item = (&'a OrgId, &'a KeyId)>,
    ) -> Result<Vec<bool>, ManageError> {
        let inner = &*self.inner;
        let found =
            all(names.map(|(org, id)| inner.bounded("get", inner.store.get(org, id)))).await;
        found.into_iter().map(|found| Ok(found?.is_some())).collect()
    }

    /// The keys of an organisation that the audit log knows as deleted.
    async fn deleted(&self, org: &OrgId) -> Result<HashSet<KeyId>, ManageError> {
        let mut query = AuditQuery::new(org.clone(), AuditScope::OrgChanges).limit(200);
        let (mut deleted, mut decided) = (HashSet::new(), HashSet::new());
        // Newest first, so that a change is abandoned before it is begun.
        let mut abandoned = HashSet::new();
        while let Some(page) = self.audit_page(&query).await {
            let page = page?;
            for record in page.records {
                let AuditEvent::Change(change) = record.event else { continue };
                let named = (record.key, change.action);
                if change.phase == ChangePhase::Abandoned {
                    abandoned.insert(named);
                } else if !abandoned.remove(&named)
                    && matches!(change.action, ChangeAction::Created | ChangeAction::Deleted)
                    && decided.insert(record.key)
                    && change.action == ChangeAction::Deleted
                {
                    deleted.insert(record.key);
                }
            }
            match page.older {
                Some(older) => query = query.at(Position::Before(older)),
                None => break,
            }
        }
        Ok(deleted)
    }

    /// The record of an adopted key.
    fn adopted(&self, key: AdoptedKey) -> Result<ApiKey, AdoptError> {
        let formats = &self.inner.formats;
        let shown = key.key_prefix.as_bytes();
        if !(1..=AdoptedKey::MAX_KEY_PREFIX_LEN).contains(&shown.len())
            || !shown.iter().all(u8::is_ascii_graphic)
        {
            return Err(AdoptError::KeyPrefix);
        }
        if formats.occur_in(shown) {
            return Err(AdoptError::KeyPrefixHoldsKey);
        }
        self.check_name(&key.name)?;
        self.check_length(&key.org, &key.allowlist)?;
        let scopes = self.scopes_of_new(key.scopes)?;
        let environment = formats.find(key.environment.as_deref());
        let environment = environment.ok_or(ManageError::UnknownEnvironment)?;
        let digest = key.digest.stored(&key.org).map_err(AdoptError::Digest)?;
        let mut attributes = Attributes::default();
        attributes.created_by = key.created_by;
        attributes.metadata = key.metadata;
        attributes.scopes = scopes;
        attributes.adopted_into = Some(environment.format().prefix().to_owned());
        Ok(ApiKey {
            id: KeyId::derived(&of_id(&digest)),
            digest,
            previous: None,
            org: key.org,
            name: key.name,
            key_prefix: key.key_prefix,
            status: key.status,
            allowlist: key.allowlist,
            created_at: key.created_at.unwrap_or_else(|| self.now()),
            expires_at: key.expires_at,
            rotated_at: None,
            last_used_at: key.last_used_at,
            revision: Revision::FIRST,
            attributes,
        })
    }

    async fn store_adopted(&self, key: ApiKey, by: &str) -> Result<Adopted, AdoptError> {
        let inner = &*self.inner;
        // Without a record in the audit log, if it is there already.
        if let Some(there) = inner.bounded("get", inner.store.get(&key.org, &key.id)).await? {
            return Ok(Adopted { key: there, is_new: false });
        }
        if inner.bounded("find_by_digest", inner.store.find_by_digest(&key.digest)).await?.is_some()
        {
            return Err(AdoptError::DigestTaken);
        }
        if self.deleted(&key.org).await?.contains(&key.id) {
            return Err(AdoptError::Deleted);
        }
        let actor = Actor::new(key.org.clone(), by);
        let what = adopted(&key);
        let inserted = self.carry_through(&actor, key.id, what, move |keys| {
            let store = Arc::clone(&keys.inner.store);
            async move {
                match keys.inner.confirmed("insert", store.insert(&key, OrgLimit::NONE)).await {
                    Ok(()) => Ok(Done::Changed(Some(Adopted { key: Arc::new(key), is_new: true }))),
                    Err(StoreError::Conflict) => {
                        let there = keys.inner.bounded("get", store.get(&key.org, &key.id)).await?;
                        Ok(Done::Unchanged(there.map(|key| Adopted { key, is_new: false })))
                    }
                    Err(error) => Err(error.into()),
                }
            }
        });
        inserted.await?.ok_or(AdoptError::DigestTaken)
    }
}

/// An adoption in the audit log.
fn adopted(key: &ApiKey) -> (ChangeAction, ChangedFields) {
    (ChangeAction::Created, ChangedFields::between(None, Some(key)))
}
