//! Editing, rotating and deleting keys.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::changed::ChangedFields;
use crate::audit::record::ChangeAction;
use crate::key::id::KeyId;
use crate::manager::change::Done;
use crate::manager::creation::IssuedKey;
use crate::manager::error::ManageError;
use crate::manager::reading::Reach;
use crate::manager::turns::Turn;
use crate::manager::{KeyManager, OwnedKey};
use crate::org::{Actor, OrgId};
use crate::record::change::KeyPatch;
use crate::record::{ApiKey, PreviousSecret, Revision, Status};
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::timeout;
use crate::store::key_store::StoreError;

/// How often a change is retried when other changes come first. Of the competing changes,
/// one succeeds each time.
const ATTEMPTS: usize = 20;

impl KeyManager {
    /// Edits a key, and keeps concurrent changes: a rename that races with a revocation
    /// ends in a revoked key with the new name.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound),
    /// [`NameHoldsKey`](ManageError::NameHoldsKey),
    /// [`AllowlistTooLong`](ManageError::AllowlistTooLong),
    /// [`ScopeNotOffered`](ManageError::ScopeNotOffered) unless the key already has the
    /// scope by name,
    /// [`Unavailable`](ManageError::Unavailable), [`InDoubt`](ManageError::InDoubt).
    pub async fn update(
        &self,
        actor: &Actor,
        id: &KeyId,
        patch: KeyPatch,
    ) -> Result<Arc<ApiKey>, ManageError> {
        self.edit(actor, id, patch, None, Reach::Own).await
    }

    /// Revokes a key: [`KeyManager::update`] with [`KeyPatch::revoke`].
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::update`].
    pub async fn revoke(&self, actor: &Actor, id: &KeyId) -> Result<Arc<ApiKey>, ManageError> {
        self.update(actor, id, KeyPatch::revoke()).await
    }

    /// Enables a revoked key again: [`KeyManager::update`] with [`KeyPatch::enable`].
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::update`].
    pub async fn enable(&self, actor: &Actor, id: &KeyId) -> Result<Arc<ApiKey>, ManageError> {
        self.update(actor, id, KeyPatch::enable()).await
    }

    /// Edits a key only if it is still at this revision.
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::update`], and
    /// [`StaleRevision`](ManageError::StaleRevision).
    pub async fn update_if(
        &self,
        actor: &Actor,
        id: &KeyId,
        patch: KeyPatch,
        revision: Revision,
    ) -> Result<Arc<ApiKey>, ManageError> {
        self.edit(actor, id, patch, Some(revision), Reach::Own).await
    }

    pub(super) async fn edit(
        &self,
        actor: &Actor,
        id: &KeyId,
        patch: KeyPatch,
        only_at: Option<Revision>,
        reach: Reach,
    ) -> Result<Arc<ApiKey>, ManageError> {
        if let Some(name) = &patch.name {
            self.check_name(name)?;
        }
        if let Some(allowlist) = &patch.allowlist {
            self.check_length(actor.org(), allowlist)?;
        }
        self.change_key(actor, id, ChangeAction::Updated, (only_at, reach), move |keys, current| {
            keys.check_added(&patch, current)?;
            let mut changed = patch.apply(current);
            if let Some(changed) = &mut changed
                && (current.status, changed.status) == (Status::Revoked, Status::Active)
            {
                changed.attributes.enabled_at = Some(keys.now());
            }
            Ok(changed)
        })
        .await
    }

    /// Makes a change of one key. `make` returns the key after the change, or `None` if it
    /// changes nothing. It is called again if another change came first. The audit record
    /// says what the change that takes place changes: if `make` returns something else than
    /// before, that is another change with another record.
    pub(super) async fn change_key<M>(
        &self,
        actor: &Actor,
        id: &KeyId,
        action: ChangeAction,
        (only_at, reach): (Option<Revision>, Reach),
        make: M,
    ) -> Result<Arc<ApiKey>, ManageError>
    where
        M: Fn(&KeyManager, &ApiKey) -> Result<Option<ApiKey>, ManageError>,
        M: Send + Sync + 'static,
    {
        let (org, id) = (actor.org().clone(), *id);
        let shared = Arc::new((self.turn(&org, &id).await?, make));
        for _ in 0..ATTEMPTS {
            let mut current = self.get_at(&org, &id, only_at, reach).await?;
            let Some(mut changed) = (shared.1)(self, &current)? else { return Ok(current) };
            let fields = ChangedFields::between(Some(&current), Some(&changed));
            let (shared, org, what) = (Arc::clone(&shared), org.clone(), (action, fields.clone()));
            let made = self.carry_through(actor, id, what, move |keys| async move {
                let (_turn, make) = &*shared;
                for _ in 0..ATTEMPTS {
                    let replaced = keys.inner.store.replace(&changed, current.revision);
                    match keys.inner.confirmed("replace", replaced).await {
                        Ok(()) => return Ok(Done::Changed(Some(Arc::new(changed)))),
                        Err(StoreError::Conflict) => {}
                        Err(error) => return Err(error.into()),
                    }
                    current = keys.get_at(&org, &id, only_at, reach).await?;
                    changed = match make(&keys, &current)? {
                        None => return Ok(Done::Unchanged(Some(current))),
                        Some(next) => next,
                    };
                    if ChangedFields::between(Some(&current), Some(&changed)) != fields {
                        return Ok(Done::Unchanged(None));
                    }
                }
                Err(ManageError::Conflict)
            });
            if let Some(key) = made.await? {
                return Ok(key);
            }
        }
        Err(ManageError::Conflict)
    }

    /// Gives a key a new secret; everything else stays, including the expiry. Once this
    /// returns, the old secret fails. If the response is lost, so is the new secret: rotate again.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), [`Unavailable`](ManageError::Unavailable),
    /// [`InDoubt`](ManageError::InDoubt), and [`Conflict`](ManageError::Conflict) if
    /// another rotation came first. The secret of that rotation is valid.
    pub async fn rotate(&self, actor: &Actor, id: &KeyId) -> Result<IssuedKey, ManageError> {
        self.rotate_with_overlap(actor, id, Duration::ZERO, None).await
    }

    /// Gives a key a new secret, and lets the old one work for this time, so that clients
    /// can change over without an interruption; the time may be zero. With a revision, only
    /// if the key is still at it.
    ///
    /// The old secret ends earlier if the key is rotated again, revoked or deleted, or by
    /// [`KeyManager::end_previous_secret`], and never works longer than the key. That of a
    /// revoked key ends at once.
    ///
    /// If the response is lost, the old secret works until its end. Read the key, or repeat
    /// the call with the revision from before: it fails with
    /// [`StaleRevision`](ManageError::StaleRevision) if the first call took place. Another
    /// rotation would replace the lost secret, and end the old one.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use keygate::audit::SecretUsed;
    /// use keygate::{Actor, KeyManager, MemoryStore, NewKey, OrgId};
    ///
    /// let day = Duration::from_secs(24 * 60 * 60);
    /// let keys = KeyManager::builder(MemoryStore::new()).max_overlap(day).build()?;
    /// # let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
    /// # let old = keys.create(&actor, NewKey::named("CI deploy")?).await?;
    /// let new = keys.rotate_with_overlap(&actor, &old.key.id, day, None).await?;
    ///
    /// let verified = keys.verify(old.secret.expose_secret(), None).await?;
    /// assert_eq!(verified.secret_used(), SecretUsed::Previous);
    /// # assert!(keys.verify(new.secret.expose_secret(), None).await.is_ok());
    ///
    /// // Once all clients have the new secret:
    /// keys.end_previous_secret(&actor, &old.key.id).await?;
    /// assert!(keys.verify(old.secret.expose_secret(), None).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::rotate`], [`StaleRevision`](ManageError::StaleRevision), and
    /// [`OverlapTooLong`](ManageError::OverlapTooLong) if it is longer than
    /// [`max_overlap`](crate::manager::KeyManagerBuilder::max_overlap).
    pub async fn rotate_with_overlap(
        &self,
        actor: &Actor,
        id: &KeyId,
        overlap: Duration,
        revision: Option<Revision>,
    ) -> Result<IssuedKey, ManageError> {
        let max = self.inner.max_overlap;
        if overlap > max {
            return Err(ManageError::OverlapTooLong { max });
        }
        let first = self.get_at(actor.org(), id, revision, Reach::Own).await?;
        let format = self.format_of(&first)?;
        let secret = format.generate(&mut self.inner.rng.clone())?;
        let (digest, key_prefix) = (secret.digest(), format.display_prefix(&secret));
        let now = self.now();
        let at = (revision, Reach::Own);
        let rotated = self.change_key(actor, id, ChangeAction::Rotated, at, move |_, current| {
            // If another rotation came first, it stands: its secret may be in use already. A
            // concurrent edit is kept.
            if !current.has_secret_of(&first) {
                return Err(ManageError::Conflict);
            }
            let mut rotated = ApiKey {
                previous: outlived(current, overlap, now),
                digest,
                key_prefix: key_prefix.clone(),
                rotated_at: Some(now),
                revision: current.revision.next(),
                ..current.clone()
            };
            // An adopted key now has a prefix that tells its environment.
            rotated.attributes.adopted_into = None;
            Ok(Some(rotated))
        });
        Ok(IssuedKey { key: rotated.await?, secret })
    }

    /// Ends the overlap after a rotation: [`KeyManager::update`] with
    /// [`KeyPatch::end_previous_secret`]. Changes nothing if the key has no previous secret.
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::update`].
    pub async fn end_previous_secret(
        &self,
        actor: &Actor,
        id: &KeyId,
    ) -> Result<Arc<ApiKey>, ManageError> {
        self.update(actor, id, KeyPatch::end_previous_secret()).await
    }

    /// Deletes a key permanently. Its audit records stay until they are purged.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), [`Unavailable`](ManageError::Unavailable),
    /// [`InDoubt`](ManageError::InDoubt).
    pub async fn delete(&self, actor: &Actor, id: &KeyId) -> Result<(), ManageError> {
        self.remove(actor, id, None).await
    }

    /// Deletes a key only if it is still at this revision.
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::delete`], and
    /// [`StaleRevision`](ManageError::StaleRevision).
    pub async fn delete_if(
        &self,
        actor: &Actor,
        id: &KeyId,
        revision: Revision,
    ) -> Result<(), ManageError> {
        self.remove(actor, id, Some(revision)).await
    }

    async fn remove(
        &self,
        actor: &Actor,
        id: &KeyId,
        only_at: Option<Revision>,
    ) -> Result<(), ManageError> {
        let (org, id) = (actor.org().clone(), *id);
        let turn = self.turn(&org, &id).await?;
        let key = self.get_at(&org, &id, only_at, Reach::Own).await?;
        let what = (ChangeAction::Deleted, ChangedFields::between(Some(&key), None));
        self.carry_through(actor, id, what, move |keys| async move {
            let _turn = turn;
            match keys.inner.confirmed("delete", keys.inner.store.delete(&org, &id, only_at)).await
            {
                Ok(()) => Ok(Done::Changed(())),
                Err(StoreError::Conflict) => {
                    keys.get_at(&org, &id, only_at, Reach::Own).await?;
                    Err(ManageError::Conflict)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Waits until no other change of the key is in progress in this process. Dropping the
    /// future while it waits leaves nothing behind.
    async fn turn(&self, org: &OrgId, id: &KeyId) -> Result<Turn<OwnedKey>, ManageError> {
        let inner = &*self.inner;
        let turn = inner.turns.take((org.clone(), *id));
        timeout(&*inner.runtime, inner.store_deadline, turn).await.map_err(|_| {
            ManageError::Unavailable("other changes of the same key are under way".into())
        })
    }
}

/// The secret that a rotation replaces, if it works for some time after. It never outlives
/// the key, and does not come back when a revoked key is enabled.
fn outlived(key: &ApiKey, overlap: Duration, now: Timestamp) -> Option<PreviousSecret> {
    let until = now.saturating_add(overlap);
    let until = key.expires_at.map_or(until, |expires_at| expires_at.min(until));
    let works = key.status == Status::Active && until > now;
    works.then_some(PreviousSecret { digest: key.digest, until })
}
