//! Creating keys, and the checks of what a key is given.

use std::collections::HashMap;
use std::sync::Arc;

use crate::allowlist::Allowlist;
use crate::audit::changed::ChangedFields;
use crate::audit::record::ChangeAction;
use crate::key::id::KeyId;
use crate::key::idempotency::IdempotencyKey;
use crate::key::name::KeyName;
use crate::key::secret::PlaintextKey;
use crate::manager::KeyManager;
use crate::manager::change::Done;
use crate::manager::error::ManageError;
use crate::org::{Actor, OrgId};
use crate::record::attributes::Attributes;
use crate::record::change::{KeyPatch, NewKey};
use crate::record::{ApiKey, OrgLimit, Revision, Status};
use crate::runtime::clock::Timestamp;
use crate::scopes::{Scope, Scopes};
use crate::store::key_store::StoreError;

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
        let present = inner.bounded("list", inner.store.list(actor.org())).await?;
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
        let what = (ChangeAction::Created, ChangedFields::between(None, Some(&key)));
        self.carry_through(actor, id, what, move |keys| async move {
            let error =
                match keys.inner.confirmed("insert", keys.inner.store.insert(&key, limit)).await {
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

    /// Names are shown and logged, so they must not contain a key.
    pub(super) fn check_name(&self, name: &KeyName) -> Result<(), ManageError> {
        if self.inner.formats.occur_in(name.as_str().as_bytes()) {
            return Err(ManageError::NameHoldsKey);
        }
        Ok(())
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
    pub(super) fn check_added(&self, patch: &KeyPatch, key: &ApiKey) -> Result<(), ManageError> {
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
