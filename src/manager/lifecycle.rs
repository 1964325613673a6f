//! Creating, reading, editing, rotating and deleting keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::allowlist::Allowlist;
use crate::audit::log::{AuditPage, AuditQuery};
use crate::audit::record::ChangeAction;
use crate::key::format::KeyFormat;
use crate::key::id::KeyId;
use crate::key::idempotency::IdempotencyKey;
use crate::key::name::KeyName;
use crate::key::secret::PlaintextKey;
use crate::manager::KeyManager;
use crate::manager::change::Done;
use crate::manager::error::{Busy, ManageError, StoreTimeout};
use crate::manager::turns::Turn;
use crate::org::{Actor, OrgId};
use crate::record::attributes::Attributes;
use crate::record::{ApiKey, KeyPatch, NewKey, OrgLimit, PreviousSecret, Revision, Status};
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::timeout;
use crate::scopes::{Scope, Scopes};
use crate::store::key_store::StoreError;
use crate::store::transfer::{KeyExport, next_page};

/// How often a change is retried when other changes come first. Of the competing changes,
/// one succeeds each time.
const ATTEMPTS: usize = 20;

/// Which keys a call finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those of the manager's own prefixes.
    Own,
    /// All in the store.
    All,
}

/// A key and its new secret, which is available only here.
///
/// No fields will be added to this type.
#[derive(Debug)]
pub struct IssuedKey {
    /// The record, as it was stored.
    pub key: Arc<ApiKey>,
    /// The full key, to be shown once.
    pub secret: PlaintextKey,
}

/// Once a change is in the audit log, it is made even if the caller stops waiting. If the
/// caller is dropped earlier, no change is made. If the response with a new secret is lost,
/// the secret cannot be read again: check whether the key exists, and rotate it.
impl KeyManager {
    /// Creates a key for the actor's organisation. If the response may be lost and the call
    /// repeated, [`NewKey::idempotent`] prevents a second key.
    ///
    /// # Errors
    ///
    /// [`LimitReached`](ManageError::LimitReached),
    /// [`NameHoldsKey`](ManageError::NameHoldsKey),
    /// [`UnknownEnvironment`](ManageError::UnknownEnvironment),
    /// [`AllowlistTooLong`](ManageError::AllowlistTooLong),
    /// [`ExpirationInThePast`](ManageError::ExpirationInThePast),
    /// [`ScopesMissing`](ManageError::ScopesMissing),
    /// [`ScopeNotOffered`](ManageError::ScopeNotOffered),
    /// [`AlreadyCreated`](ManageError::AlreadyCreated) if the new key has an idempotency
    /// key, [`Unavailable`](ManageError::Unavailable), or
    /// [`InDoubt`](ManageError::InDoubt).
    pub async fn create(&self, actor: &Actor, new: NewKey) -> Result<IssuedKey, ManageError> {
        let inner = &*self.inner;
        self.check_name(&new.name)?;
        self.check_length(actor.org(), &new.allowlist)?;
        let scopes = self.scopes_of_new(new.scopes)?;
        let now = self.now();
        let expires_at = new.expiration.after(now);
        if expires_at.is_some_and(|at| at <= now) {
            return Err(ManageError::ExpirationInThePast);
        }
        let max = self.limits(actor.org()).max_keys;
        let limit = OrgLimit::at_most(max);
        let present = inner.bounded(inner.store.list(actor.org())).await?;
        let format = inner.formats.find(new.environment.as_deref());
        let format = format.ok_or(ManageError::UnknownEnvironment)?.format();
        let secret = format.generate(&mut inner.rng.clone())?;
        let id = match &new.idempotency_key {
            Some(once) => unused_id(once, actor.org(), &present, max, now)?,
            None => KeyId::random(&mut inner.rng.clone())?,
        };
        // The store decides. This check only avoids an audit record for a change that would
        // fail.
        if !limit.admits_one_more(present.len()) {
            return Err(ManageError::LimitReached { max });
        }

        let mut attributes = Attributes::default();
        attributes.created_by = Some(actor.name().to_owned());
        attributes.metadata = new.metadata;
        attributes.scopes = scopes;
        let key = ApiKey {
            id,
            org: actor.org().clone(),
            name: new.name,
            key_prefix: format.display_prefix(&secret),
            digest: secret.digest(),
            status: Status::Active,
            allowlist: new.allowlist,
            created_at: now,
            expires_at,
            rotated_at: None,
            previous: None,
            last_used_at: None,
            revision: Revision::FIRST,
            attributes,
        };
        let is_idempotent = new.idempotency_key.is_some();
        self.carry_through(actor, id, ChangeAction::Created, move |keys| async move {
            let error = match keys.inner.confirmed(keys.inner.store.insert(&key, limit)).await {
                Ok(()) => return Ok(Done::Changed(IssuedKey { key: Arc::new(key), secret })),
                Err(error) => error,
            };
            let overtaken = matches!(error, StoreError::Conflict | StoreError::LimitReached);
            if is_idempotent && overtaken {
                match keys.get(&key.org, &id).await {
                    Ok(_) => return Err(ManageError::AlreadyCreated { id }),
                    Err(ManageError::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(match error {
                StoreError::LimitReached => ManageError::LimitReached { max },
                other => other.into(),
            })
        })
        .await
    }

    /// The organisation's keys, oldest first, including revoked and expired ones. Keys with
    /// a prefix that this manager does not have are left out: they are another service's.
    pub async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, ManageError> {
        let mut keys = self.inner.bounded(self.inner.store.list(org)).await?;
        keys.retain(|key| self.format_of(key).is_ok());
        Ok(keys)
    }

    /// One key of the organisation.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), also for another organisation's key.
    pub async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Arc<ApiKey>, ManageError> {
        self.read(org, id, Reach::Own).await
    }

    pub(super) async fn read(
        &self,
        org: &OrgId,
        id: &KeyId,
        reach: Reach,
    ) -> Result<Arc<ApiKey>, ManageError> {
        let found = self.inner.bounded(self.inner.store.get(org, id)).await?;
        let key = found.ok_or(ManageError::NotFound)?;
        if reach == Reach::Own {
            self.format_of(&key)?;
        }
        Ok(key)
    }

    /// Looks at the first keys of this manager's store, and warns in the log if one has a
    /// prefix that the manager does not have. Such keys do not work, and are not listed:
    /// after a change of the prefix, keep the old one as an
    /// [environment](crate::manager::KeyManagerBuilder::environment). Returns whether there are any.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ManageError::Unavailable).
    pub async fn check_prefixes(&self, keys: &dyn KeyExport) -> Result<bool, ManageError> {
        let page = next_page(keys, None).await?;
        Ok(page.iter().any(|key| self.format_of(key).is_err()))
    }

    /// The format of a key. A key with a prefix that this manager does not have counts as
    /// not found.
    fn format_of(&self, key: &ApiKey) -> Result<&KeyFormat, ManageError> {
        if let Some(environment) = self.inner.formats.of_shown(key.format_prefix()) {
            return Ok(environment.format());
        }
        if let Some(left_out) = self.inner.foreign.pass() {
            tracing::warn!(
                key_prefix = key.key_prefix,
                left_out,
                "the store has keys with a prefix that is not configured; they are ignored"
            );
        }
        Err(ManageError::NotFound)
    }

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
        let (org, id) = (actor.org().clone(), *id);
        let turn = self.turn(&org, &id).await?;
        let mut current = self.get_at(&org, &id, only_at, reach).await?;
        self.check_added(&patch, &current)?;
        if patch.apply(&current).is_none() {
            return Ok(current);
        }
        self.carry_through(actor, id, ChangeAction::Updated, move |keys| async move {
            let _turn = turn;
            for _ in 0..ATTEMPTS {
                let Some(changed) = patch.apply(&current) else {
                    return Ok(Done::Unchanged(current));
                };
                let replaced = keys.inner.store.replace(&changed, current.revision);
                match keys.inner.confirmed(replaced).await {
                    Ok(()) => return Ok(Done::Changed(Arc::new(changed))),
                    Err(StoreError::Conflict) => {}
                    Err(error) => return Err(error.into()),
                }
                current = keys.get_at(&org, &id, only_at, reach).await?;
                keys.check_added(&patch, &current)?;
            }
            Err(ManageError::Conflict)
        })
        .await
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
        self.renew(actor, id, Duration::ZERO, None).await
    }

    /// Gives a key a new secret only if it is still at this revision.
    ///
    /// # Errors
    ///
    /// Those of [`KeyManager::rotate`], and
    /// [`StaleRevision`](ManageError::StaleRevision).
    pub async fn rotate_if(
        &self,
        actor: &Actor,
        id: &KeyId,
        revision: Revision,
    ) -> Result<IssuedKey, ManageError> {
        self.renew(actor, id, Duration::ZERO, Some(revision)).await
    }

    /// Gives a key a new secret, and lets the old one work for this time, so that clients
    /// can change over without an interruption. With a revision, only if the key is still
    /// at it.
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
    /// Those of [`KeyManager::rotate_if`], and
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
        self.renew(actor, id, overlap, revision).await
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

    async fn renew(
        &self,
        actor: &Actor,
        id: &KeyId,
        overlap: Duration,
        only_at: Option<Revision>,
    ) -> Result<IssuedKey, ManageError> {
        let (org, id) = (actor.org().clone(), *id);
        let first = self.get_at(&org, &id, only_at, Reach::Own).await?;
        let turn = self.turn(&org, &id).await?;
        // If another rotation came first, it stands: its secret may be in use already.
        let mut current = self.get_at(&org, &id, only_at, Reach::Own).await?;
        if !has_same_secret(&current, &first) {
            return Err(ManageError::Conflict);
        }
        let format = self.format_of(&current)?.clone();
        let secret = format.generate(&mut self.inner.rng.clone())?;
        self.carry_through(actor, id, ChangeAction::Rotated, move |keys| async move {
            let (inner, _turn) = (&*keys.inner, turn);
            for _ in 0..ATTEMPTS {
                let now = keys.now();
                let mut rotated = ApiKey {
                    previous: outlived(&current, overlap, now),
                    digest: secret.digest(),
                    key_prefix: format.display_prefix(&secret),
                    rotated_at: Some(now),
                    revision: current.revision.next(),
                    ..ApiKey::clone(&current)
                };
                // An adopted key now has a prefix that tells its environment.
                rotated.attributes.adopted_into = None;
                match inner.confirmed(inner.store.replace(&rotated, current.revision)).await {
                    Ok(()) => {
                        return Ok(Done::Changed(IssuedKey { key: Arc::new(rotated), secret }));
                    }
                    Err(StoreError::Conflict) => {}
                    Err(error) => return Err(error.into()),
                }
                // After a concurrent edit, retry and keep the edit. After a concurrent
                // rotation, give up.
                current = keys.get_at(&org, &id, only_at, Reach::Own).await?;
                if !has_same_secret(&current, &first) {
                    break;
                }
            }
            Err(ManageError::Conflict)
        })
        .await
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
        self.get_at(&org, &id, only_at, Reach::Own).await?;
        self.carry_through(actor, id, ChangeAction::Deleted, move |keys| async move {
            let _turn = turn;
            match keys.inner.confirmed(keys.inner.store.delete(&org, &id, only_at)).await {
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

    /// Reads a page of the audit log, within the deadline for calls of the store. `None` if
    /// the manager was built without a log to read from.
    pub async fn audit_page(&self, query: &AuditQuery) -> Option<Result<AuditPage, ManageError>> {
        let inner = &*self.inner;
        let page = inner.audit_log.as_ref()?.page(query);
        Some(match timeout(&*inner.runtime, inner.store_deadline, page).await {
            Ok(page) => page.map_err(|error| ManageError::Unavailable(Box::new(error))),
            Err(_) => Err(ManageError::Unavailable(Box::new(StoreTimeout))),
        })
    }

    /// Waits until no other change of the key is in progress in this process. Dropping the
    /// future while it waits leaves nothing behind.
    async fn turn(&self, org: &OrgId, id: &KeyId) -> Result<Turn, ManageError> {
        let inner = &*self.inner;
        let turn = timeout(&*inner.runtime, inner.store_deadline, inner.turns.take(org, id)).await;
        turn.map_err(|_| ManageError::Unavailable(Box::new(Busy)))
    }

    /// Names are shown and logged, so they must not contain a key.
    pub(super) fn check_name(&self, name: &KeyName) -> Result<(), ManageError> {
        if self.inner.formats.occur_in(name.as_str().as_bytes()) {
            return Err(ManageError::NameHoldsKey);
        }
        Ok(())
    }

    /// One key of the organisation, if it is at this revision.
    async fn get_at(
        &self,
        org: &OrgId,
        id: &KeyId,
        only_at: Option<Revision>,
        reach: Reach,
    ) -> Result<Arc<ApiKey>, ManageError> {
        let key = self.read(org, id, reach).await?;
        if only_at.is_some_and(|revision| revision != key.revision) {
            return Err(ManageError::StaleRevision { current: key.revision });
        }
        Ok(key)
    }

    /// With a catalogue, a new key must say what it may be used for.
    pub(super) fn scopes_of_new(&self, scopes: Option<Scopes>) -> Result<Scopes, ManageError> {
        let scopes = match scopes {
            Some(scopes) => scopes,
            None if self.scopes().is_some() => return Err(ManageError::ScopesMissing),
            None => Scopes::ALL,
        };
        self.check_offered(&scopes, None)?;
        Ok(scopes)
    }

    /// A key keeps a scope that has left the catalogue, but none is given anew.
    fn check_added(&self, patch: &KeyPatch, key: &ApiKey) -> Result<(), ManageError> {
        let Some(scopes) = &patch.scopes else { return Ok(()) };
        self.check_offered(scopes, key.attributes.scopes.named())
    }

    fn check_offered(&self, scopes: &Scopes, kept: Option<&[Scope]>) -> Result<(), ManageError> {
        let refused = |scope: &Scope| {
            let offered = self.scopes().is_some_and(|catalog| catalog.offers(scope));
            !offered && !kept.is_some_and(|kept| kept.contains(scope))
        };
        match scopes.named().unwrap_or_default().iter().position(refused) {
            Some(index) => Err(ManageError::ScopeNotOffered { position: index.saturating_add(1) }),
            None => Ok(()),
        }
    }

    pub(super) fn check_length(
        &self,
        org: &OrgId,
        allowlist: &Allowlist,
    ) -> Result<(), ManageError> {
        let max = self.limits(org).max_ips_per_key;
        if allowlist.len() > max as usize {
            return Err(ManageError::AllowlistTooLong { max });
        }
        Ok(())
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

/// Whether no rotation came in between. The digest alone does not tell: that of an existing
/// key changes with its first use.
fn has_same_secret(a: &ApiKey, b: &ApiKey) -> bool {
    (a.rotated_at, &a.key_prefix) == (b.rotated_at, &b.key_prefix)
}

/// The id for a key created with this idempotency key: the first id that no key of the
/// organisation has. Two concurrent creations choose the same id, and the store refuses
/// one.
///
/// An organisation with at most `max` keys has none at a later id.
fn unused_id(
    once: &IdempotencyKey,
    org: &OrgId,
    present: &[Arc<ApiKey>],
    max: u32,
    now: Timestamp,
) -> Result<KeyId, ManageError> {
    /// Bounds the work for an organisation that has no practical limit.
    const MOST: u32 = 1_000;
    let made: HashMap<KeyId, Timestamp> =
        present.iter().map(|key| (key.id, key.created_at)).collect();
    let mut unused = None;
    for id in once.ids(org).take(max.min(MOST) as usize) {
        match made.get(&id) {
            Some(at) if at.saturating_add(IdempotencyKey::LIFETIME) > now => {
                return Err(ManageError::AlreadyCreated { id });
            }
            Some(_) => {}
            None => unused = unused.or(Some(id)),
        }
    }
    unused.ok_or(ManageError::LimitReached { max })
}
