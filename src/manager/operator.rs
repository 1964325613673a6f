//! What a support person or a job does across organisations.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::record::ChangeAction;
use crate::key::digest::KeyDigest;
use crate::key::existing::{Lookup, Of};
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::error::ManageError;
use crate::manager::reading::Reach;
use crate::org::{Actor, OrgId};
use crate::record::change::KeyPatch;
use crate::record::{ApiKey, PreviousSecret, Status};
use crate::runtime::clock::Timestamp;
use crate::store::key_store::StoreError;
use crate::store::search::{KeySearch, Search, SearchCursor, SearchPage};
use crate::text::with_causes;

/// Finds and changes keys of all organisations, for support people and for jobs of the host.
/// Made by [`KeyManager::operator`].
///
/// Never hand it to a customer. Each change is in the audit log of the key's organisation, with
/// the operator's name, and its customers can read it there.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use keygate::{KeyManager, MemoryStore, OrgId};
/// # use keygate::{Actor, NewKey};
///
/// let store = Arc::new(MemoryStore::new());
/// let keys = KeyManager::builder(store.clone()).build()?;
/// # let acme = Actor::new(OrgId::new("acme")?, "ada");
/// # let leaked = keys.create(&acme, NewKey::named("CI")?).await?.secret;
/// let operator = keys.operator("support: grace", store);
/// // A secret that somebody found in a public repository:
/// if let Some(key) = operator.find_by_secret(leaked.expose_secret()).await? {
///     operator.revoke(&key.id).await?;
///     println!("{} of {} is revoked", key.name, key.org);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Operator {
    keys: KeyManager,
    store: Arc<dyn KeySearch>,
    name: Arc<str>,
}

impl KeyManager {
    /// An operator of this name, who reaches the keys of all organisations and prefixes.
    ///
    /// `store` is the store of this manager; if that is a cache, the one behind it.
    pub fn operator(&self, name: impl Into<Arc<str>>, store: impl KeySearch) -> Operator {
        Operator { keys: self.clone(), store: Arc::new(store), name: name.into() }
    }
}

impl Operator {
    /// The largest page of a search.
    pub const MAX_PAGE: usize = 500;

    /// The key with this secret, whether it may be used or not. Works for keys of declared
    /// [existing formats](crate::existing) as well, unless only the host knows their digests.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ManageError::Unavailable), as for all calls that read.
    pub async fn find_by_secret(&self, secret: &str) -> Result<Option<Arc<ApiKey>>, ManageError> {
        let inner = &*self.keys.inner;
        let mut digests = vec![KeyDigest::of(secret)];
        if let Ok(Lookup { of: Of::Existing(further), .. }) =
            inner.formats.lookup(secret.as_bytes(), None)
        {
            digests.extend(further.digests);
        }
        for digest in digests {
            let found =
                inner.bounded("find_by_digest", inner.store.find_by_digest(&digest)).await?;
            if let Some(key) = found.filter(|key| key.secret_with(&digest).is_some()) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// The key with this id.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), [`Unavailable`](ManageError::Unavailable).
    pub async fn get(&self, id: &KeyId) -> Result<Arc<ApiKey>, ManageError> {
        let found = self.bounded("find_by_id", self.store.find_by_id(id)).await?;
        found.ok_or(ManageError::NotFound)
    }

    /// A page of the keys that a search finds, of all organisations: up to `limit` keys, 1 to
    /// [`Operator::MAX_PAGE`]. It may have fewer, even none, although more follow: go on with
    /// [`SearchPage::next`] until it is `None`. `after` must come from a page of the same search.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ManageError::Unavailable).
    pub async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, ManageError> {
        let limit = limit.clamp(1, Self::MAX_PAGE);
        Ok(self.bounded("search", self.store.search(search, after, limit)).await?)
    }

    /// All keys of an organisation, oldest first.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ManageError::Unavailable).
    pub async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, ManageError> {
        let inner = &*self.keys.inner;
        Ok(inner.bounded("list", inner.store.list(org)).await?)
    }

    /// Revokes a key. A key that is revoked already stays as it is.
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::update`].
    pub async fn revoke(&self, id: &KeyId) -> Result<Arc<ApiKey>, ManageError> {
        let key = self.get(id).await?;
        let actor = self.actor(&key.org);
        self.keys.edit(&actor, id, KeyPatch::revoke(), None, Reach::All).await
    }

    /// Revokes every active key of an organisation, and returns how many there were. Its people
    /// can enable them again, and create others.
    ///
    /// # Errors
    ///
    /// The first of those of [`KeyManager::update`]. The other keys are revoked all the same;
    /// run it again.
    pub async fn revoke_all(&self, org: &OrgId) -> Result<u64, ManageError> {
        let (revoked, failed) = self.revoke_each(&self.list(org).await?, |_| true).await;
        failed.map_or(Ok(revoked), Err)
    }

    /// Revokes every active key that was neither used nor created, rotated or enabled since
    /// this instant, and returns how many there were. For a job that runs once a day.
    ///
    /// # Errors
    ///
    /// As for [`Operator::revoke_all`].
    pub async fn revoke_unused_since(&self, instant: Timestamp) -> Result<u64, ManageError> {
        let search = Search::UnusedSince(instant);
        let (mut revoked, mut after, mut failed) = (0, None, None);
        loop {
            let page = self.search(&search, after.as_ref(), Self::MAX_PAGE).await?;
            let is_unused = search.clone();
            let (more, error) =
                self.revoke_each(&page.keys, move |key| is_unused.matches(key)).await;
            revoked += more;
            failed = failed.or(error);
            after = page.next;
            if after.is_none() {
                return failed.map_or(Ok(revoked), Err);
            }
        }
    }

    /// Sets when a key expires, which its organisation cannot; `None` for never.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), [`Unavailable`](ManageError::Unavailable),
    /// [`InDoubt`](ManageError::InDoubt).
    pub async fn set_expiry(
        &self,
        id: &KeyId,
        expires_at: Option<Timestamp>,
    ) -> Result<Arc<ApiKey>, ManageError> {
        let key = self.get(id).await?;
        let actor = self.actor(&key.org);
        let at = (None, Reach::All);
        let changed = self.keys.change_key(&actor, id, ChangeAction::Updated, at, move |_, key| {
            let mut changed = ApiKey { expires_at, ..key.clone() };
            // An old secret never outlives its key.
            if let (Some(previous), Some(end)) = (changed.previous, expires_at) {
                let until = previous.until.min(end);
                changed.previous = Some(PreviousSecret { until, ..previous });
            }
            let is_new = changed != *key;
            Ok(is_new.then(|| ApiKey { revision: key.revision.next(), ..changed }))
        });
        changed.await
    }

    /// Revokes the active ones of these keys for which this holds when they are revoked.
    /// Returns how many there were, and the first error.
    async fn revoke_each(
        &self,
        keys: &[Arc<ApiKey>],
        holds: impl Fn(&ApiKey) -> bool + Clone + Send + Sync + 'static,
    ) -> (u64, Option<ManageError>) {
        let (mut revoked, mut failed) = (0, None);
        for key in keys.iter().filter(|key| key.status == Status::Active) {
            let (actor, holds) = (self.actor(&key.org), holds.clone());
            let revoke = move |_: &KeyManager, key: &ApiKey| {
                Ok(holds(key).then(|| KeyPatch::revoke().apply(key)).flatten())
            };
            let at = (None, Reach::All);
            match self.keys.change_key(&actor, &key.id, ChangeAction::Updated, at, revoke).await {
                Ok(key) => revoked += u64::from(key.status == Status::Revoked),
                Err(ManageError::NotFound) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        (revoked, failed)
    }

    fn actor(&self, org: &OrgId) -> Actor {
        Actor::new(org.clone(), Arc::clone(&self.name))
    }

    async fn bounded<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError>
    where
        T: Send,
    {
        self.keys.inner.bounded(operation, Box::pin(call)).await
    }
}

/// How often unused keys are revoked, if the host wants that.
const UNUSED: Duration = Duration::from_secs(60 * 60);

impl KeyManager {
    /// Revokes keys that were unused for this time, until the manager is dropped.
    pub(super) fn revoke_unused(&self, time: Duration, store: Arc<dyn KeySearch>) {
        self.repeat(UNUSED, move |keys| {
            let operator = keys.operator("keygate: unused", Arc::clone(&store));
            async move {
                let since = operator.keys.now().saturating_sub(time);
                match operator.revoke_unused_since(since).await {
                    Ok(0) => {}
                    Ok(revoked) => tracing::info!(revoked, "unused keys were revoked"),
                    Err(error) => {
                        let error = with_causes(&error);
                        tracing::error!(error, "unused keys were not revoked");
                    }
                }
            }
        });
    }
}
