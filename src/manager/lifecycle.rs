//! Creating, reading, editing, rotating and deleting keys.

use std::sync::Arc;

use crate::allowlist::Allowlist;
use crate::audit::delivery::DeliveryError;
use crate::audit::log::{AuditPage, AuditQuery};
use crate::audit::record::{AuditEvent, AuditRecord, ChangeAction, ChangeEvent, ChangePhase};
use crate::audit::writer::Reserved;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::key::secret::PlaintextKey;
use crate::manager::KeyManager;
use crate::manager::error::{ManageError, StoreTimeout};
use crate::org::{Actor, OrgId};
use crate::record::{ApiKey, KeyPatch, NewKey, OrgLimit, Revision, Status};
use crate::runtime::within;
use crate::store::contract::StoreError;

/// How often a change that others keep overtaking is tried. Of those that
/// compete, one succeeds each time.
const ATTEMPTS: usize = 100;

/// A key with the secret that it was just given. This is the only time that
/// anyone sees it.
///
/// The type is closed: both parts are all there is.
#[derive(Debug)]
pub struct IssuedKey {
    /// The record, as it was stored.
    pub key: Arc<ApiKey>,
    /// The full key.
    pub secret: PlaintextKey,
}

impl KeyManager {
    /// Makes a key for the actor's organisation.
    ///
    /// # Errors
    ///
    /// [`LimitReached`](ManageError::LimitReached),
    /// [`NameHoldsKey`](ManageError::NameHoldsKey),
    /// [`AllowlistTooLong`](ManageError::AllowlistTooLong),
    /// [`ExpirationInThePast`](ManageError::ExpirationInThePast), or
    /// [`Unavailable`](ManageError::Unavailable).
    pub async fn create(&self, actor: &Actor, new: NewKey) -> Result<IssuedKey, ManageError> {
        let inner = &*self.inner;
        self.check_name(&new.name)?;
        self.check_length(&new.allowlist)?;
        let now = self.now();
        let expires_at = new.expiration.after(now);
        if expires_at.is_some_and(|at| at <= now) {
            return Err(ManageError::ExpirationInThePast);
        }
        let limit = OrgLimit::at_most(inner.limits.max_keys);
        let limit_reached = || ManageError::LimitReached { max: inner.limits.max_keys };
        // The store decides; this only spares the audit log what is sure to fail.
        let present = inner.bounded(inner.store.list(actor.org())).await?.len();
        if !limit.admits_one_more(present) {
            return Err(limit_reached());
        }

        let secret = inner.format.generate(&*inner.random)?;
        let key = ApiKey {
            id: KeyId::random(&*inner.random)?,
            org: actor.org().clone(),
            name: new.name,
            key_prefix: inner.format.display_prefix(&secret),
            digest: secret.digest(),
            status: Status::Active,
            allowlist: new.allowlist,
            created_at: now,
            expires_at,
            rotated_at: None,
            last_used_at: None,
            revision: Revision::FIRST,
        };
        self.audit(actor, key.id, ChangeAction::Created, ChangePhase::Begun).await?;
        match inner.bounded(inner.store.insert(&key, limit)).await {
            Ok(()) => Ok(IssuedKey { key: Arc::new(key), secret }),
            Err(error) => {
                self.abandon(actor, key.id, ChangeAction::Created, &error).await;
                match error {
                    StoreError::LimitReached => Err(limit_reached()),
                    other => Err(other.into()),
                }
            }
        }
    }

    /// The organisation's keys, oldest first; revoked and expired ones too.
    pub async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, ManageError> {
        Ok(self.inner.bounded(self.inner.store.list(org)).await?)
    }

    /// One key of the organisation.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), also for another organisation's key.
    pub async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Arc<ApiKey>, ManageError> {
        let found = self.inner.bounded(self.inner.store.get(org, id)).await?;
        found.ok_or(ManageError::NotFound)
    }

    /// Edits a key, over whatever others change meanwhile: a rename that races
    /// a revocation ends in a revoked key with the new name.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound),
    /// [`NameHoldsKey`](ManageError::NameHoldsKey),
    /// [`AllowlistTooLong`](ManageError::AllowlistTooLong),
    /// [`Unavailable`](ManageError::Unavailable).
    pub async fn update(
        &self,
        actor: &Actor,
        id: &KeyId,
        patch: KeyPatch,
    ) -> Result<Arc<ApiKey>, ManageError> {
        self.edit(actor, id, patch, None).await
    }

    /// Edits a key only if it is still at that revision.
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
        self.edit(actor, id, patch, Some(revision)).await
    }

    async fn edit(
        &self,
        actor: &Actor,
        id: &KeyId,
        patch: KeyPatch,
        only_at: Option<Revision>,
    ) -> Result<Arc<ApiKey>, ManageError> {
        if let Some(name) = &patch.name {
            self.check_name(name)?;
        }
        if let Some(allowlist) = &patch.allowlist {
            self.check_length(allowlist)?;
        }
        let mut begun = false;
        let mut failure = ManageError::Conflict;
        for _ in 0..ATTEMPTS {
            let current = match self.get(actor.org(), id).await {
                Ok(key) if only_at.is_some_and(|revision| revision != key.revision) => {
                    failure = ManageError::StaleRevision { current: key.revision };
                    break;
                }
                Ok(key) => key,
                Err(error) => {
                    failure = error;
                    break;
                }
            };
            let Some(changed) = patch.apply(&current) else {
                if begun {
                    self.note_abandoned(actor, *id, ChangeAction::Updated).await;
                }
                return Ok(current);
            };
            if !begun {
                self.audit(actor, *id, ChangeAction::Updated, ChangePhase::Begun).await?;
                begun = true;
            }
            let replaced = self.inner.store.replace(&changed, current.revision);
            match self.inner.bounded(replaced).await {
                Ok(()) => return Ok(Arc::new(changed)),
                Err(StoreError::Conflict) => {}
                Err(error) => {
                    self.abandon(actor, *id, ChangeAction::Updated, &error).await;
                    return Err(error.into());
                }
            }
        }
        if begun {
            self.note_abandoned(actor, *id, ChangeAction::Updated).await;
        }
        Err(failure)
    }

    /// Gives a key a new secret; all else stays. The old secret fails from the
    /// moment that this returns.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), [`Unavailable`](ManageError::Unavailable),
    /// and [`Conflict`](ManageError::Conflict) where another rotation came first:
    /// that one's secret is the one that works.
    pub async fn rotate(&self, actor: &Actor, id: &KeyId) -> Result<IssuedKey, ManageError> {
        let inner = &*self.inner;
        let first = self.get(actor.org(), id).await?;
        let secret = inner.format.generate(&*inner.random)?;
        self.audit(actor, *id, ChangeAction::Rotated, ChangePhase::Begun).await?;
        let mut current = Arc::clone(&first);
        for _ in 0..ATTEMPTS {
            let rotated = ApiKey {
                digest: secret.digest(),
                key_prefix: inner.format.display_prefix(&secret),
                rotated_at: Some(self.now()),
                revision: current.revision.next(),
                ..ApiKey::clone(&current)
            };
            match inner.bounded(inner.store.replace(&rotated, current.revision)).await {
                Ok(()) => return Ok(IssuedKey { key: Arc::new(rotated), secret }),
                Err(StoreError::Conflict) => {}
                Err(error) => {
                    self.abandon(actor, *id, ChangeAction::Rotated, &error).await;
                    return Err(error.into());
                }
            }
            // An edit came between: it is kept. A rotation came first: it stands.
            match self.get(actor.org(), id).await {
                Ok(key) if key.digest == first.digest => current = key,
                Ok(_) => break,
                Err(error) => {
                    self.note_abandoned(actor, *id, ChangeAction::Rotated).await;
                    return Err(error);
                }
            }
        }
        self.note_abandoned(actor, *id, ChangeAction::Rotated).await;
        Err(ManageError::Conflict)
    }

    /// Removes a key for good. Its audit records stay until they are purged.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), [`Unavailable`](ManageError::Unavailable).
    pub async fn delete(&self, actor: &Actor, id: &KeyId) -> Result<(), ManageError> {
        self.get(actor.org(), id).await?;
        self.audit(actor, *id, ChangeAction::Deleted, ChangePhase::Begun).await?;
        match self.inner.bounded(self.inner.store.delete(actor.org(), id, None)).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.abandon(actor, *id, ChangeAction::Deleted, &error).await;
                Err(error.into())
            }
        }
    }

    /// Reads a page of the audit log; `None` where the manager was built without
    /// one to read from. It has as long as a call of the store.
    pub async fn audit_page(&self, query: &AuditQuery) -> Option<Result<AuditPage, ManageError>> {
        let inner = &*self.inner;
        let page = inner.audit_log.as_ref()?.page(query);
        Some(match within(&*inner.runtime, inner.store_deadline, page).await {
            Ok(page) => page.map_err(|error| ManageError::Unavailable(Box::new(error))),
            Err(_) => Err(ManageError::Unavailable(Box::new(StoreTimeout))),
        })
    }

    /// Names are shown and logged.
    fn check_name(&self, name: &KeyName) -> Result<(), ManageError> {
        if self.inner.format.occurs_in(name.as_str().as_bytes()) {
            return Err(ManageError::NameHoldsKey);
        }
        Ok(())
    }

    fn check_length(&self, allowlist: &Allowlist) -> Result<(), ManageError> {
        let max = self.inner.limits.max_ips_per_key;
        if allowlist.len() > max as usize {
            return Err(ManageError::AllowlistTooLong { max });
        }
        Ok(())
    }

    /// Returns once the record is durable. One of a change that is not made for
    /// want of it, and that turns up all the same, is followed by its opposite.
    async fn audit(
        &self,
        actor: &Actor,
        key: KeyId,
        action: ChangeAction,
        phase: ChangePhase,
    ) -> Result<(), ManageError> {
        let Some(audit) = &self.inner.audit else { return Ok(()) };
        let written = audit.write(self.change_record(actor, key, action, phase)).await;
        if written == Err(DeliveryError::TimedOut) && phase == ChangePhase::Begun {
            let abandoned = self.change_record(actor, key, action, ChangePhase::Abandoned);
            audit.enqueue(Reserved::None, abandoned);
        }
        Ok(written?)
    }

    fn change_record(
        &self,
        actor: &Actor,
        key: KeyId,
        action: ChangeAction,
        phase: ChangePhase,
    ) -> AuditRecord {
        AuditRecord {
            id: self.inner.audit_ids.next(),
            at: self.now(),
            org: actor.org().clone(),
            key,
            event: AuditEvent::Change(ChangeEvent { actor: actor.shared_name(), action, phase }),
        }
    }

    /// Records that a change did not happen, where the store's error says so.
    async fn abandon(&self, actor: &Actor, key: KeyId, action: ChangeAction, error: &StoreError) {
        let not_done =
            matches!(error, StoreError::LimitReached | StoreError::NotFound | StoreError::Conflict);
        if not_done {
            self.note_abandoned(actor, key, action).await;
        }
    }

    async fn note_abandoned(&self, actor: &Actor, key: KeyId, action: ChangeAction) {
        if let Err(error) = self.audit(actor, key, action, ChangePhase::Abandoned).await {
            tracing::warn!(%key, action = action.as_str(), %error, "an abandoned change is not in the audit log");
        }
    }
}
