//! A key to be created, and a change of one.

use crate::allowlist::{Allowlist, AllowlistError};
use crate::key::expiration::Expiration;
use crate::key::idempotency::IdempotencyKey;
use crate::key::name::{KeyName, KeyNameError};
use crate::record::attributes::Metadata;
use crate::record::{ApiKey, Status};
use crate::scopes::Scopes;

/// A key to be created.
///
/// ```
/// use keygate::{Expiration, NewKey};
///
/// let key = NewKey::named("CI deploy")?
///     .expires(Expiration::ThreeMonths)
///     .allow(["10.0.0.0/8", "2001:db8::/32"])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    pub(crate) name: KeyName,
    pub(crate) expiration: Expiration,
    pub(crate) allowlist: Allowlist,
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    pub(crate) metadata: Metadata,
    pub(crate) environment: Option<Box<str>>,
    pub(crate) scopes: Option<Scopes>,
}

impl NewKey {
    /// A key that never expires and may be used from every address. If the service has
    /// scopes, [`NewKey::scopes`] has to be called.
    pub fn new(name: KeyName) -> Self {
        Self {
            name,
            expiration: Expiration::Never,
            allowlist: Allowlist::default(),
            idempotency_key: None,
            metadata: Metadata::new(),
            environment: None,
            scopes: None,
        }
    }

    /// Like [`NewKey::new`], but parses the name.
    pub fn named(name: impl AsRef<str>) -> Result<Self, KeyNameError> {
        Ok(Self::new(KeyName::new(name)?))
    }

    /// Sets how long the key is valid.
    pub fn expires(self, expiration: Expiration) -> Self {
        Self { expiration, ..self }
    }

    /// Restricts the key to these addresses and ranges.
    pub fn allow<T: AsRef<str>>(
        self,
        entries: impl IntoIterator<Item = T>,
    ) -> Result<Self, AllowlistError> {
        Ok(self.allowlist(Allowlist::parse(entries)?))
    }

    /// Restricts the key to this list.
    pub fn allowlist(self, allowlist: Allowlist) -> Self {
        Self { allowlist, ..self }
    }

    /// Adds the host's own metadata to the key.
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata, ..self }
    }

    /// Chooses the environment by name. Otherwise the key belongs to the default one.
    pub fn environment(self, name: &str) -> Self {
        Self { environment: Some(name.into()), ..self }
    }

    /// Sets what the key may be used for.
    pub fn scopes(self, scopes: Scopes) -> Self {
        Self { scopes: Some(scopes), ..self }
    }

    /// Creates the key only if the organisation has none that was created with the same
    /// idempotency key in the last 24 hours; otherwise the error is
    /// [`ManageError::AlreadyCreated`](crate::ManageError::AlreadyCreated). Deleted keys do
    /// not count. This holds for concurrent calls, even across processes.
    ///
    /// If the response is lost, the secret is not shown again: rotate the key.
    pub fn idempotent(self, key: IdempotencyKey) -> Self {
        Self { idempotency_key: Some(key), ..self }
    }
}

/// A change of a key. Fields that are `None` stay unchanged.
///
/// ```
/// use keygate::{KeyName, KeyPatch};
///
/// let mut patch = KeyPatch::revoke();
/// patch.name = Some(KeyName::new("CI deploy (old)")?);
/// # Ok::<(), keygate::error::KeyNameError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPatch {
    /// The new name.
    pub name: Option<KeyName>,
    /// The new status.
    pub status: Option<Status>,
    /// The new allowlist, which replaces the old one.
    pub allowlist: Option<Allowlist>,
    /// The host's new metadata, which replaces all of the old.
    pub metadata: Option<Metadata>,
    /// The new scopes, which replace all of the old.
    pub scopes: Option<Scopes>,
    /// Whether the previous secret of a rotation with an overlap stops working. A
    /// revocation has the same effect.
    pub end_previous_secret: bool,
}

impl KeyPatch {
    /// Renames the key.
    pub fn rename(name: KeyName) -> Self {
        Self { name: Some(name), ..Self::default() }
    }

    /// Revokes the key.
    pub fn revoke() -> Self {
        Self { status: Some(Status::Revoked), ..Self::default() }
    }

    /// Activates the key again.
    pub fn enable() -> Self {
        Self { status: Some(Status::Active), ..Self::default() }
    }

    /// Ends the overlap after a rotation: only the current secret works then.
    pub fn end_previous_secret() -> Self {
        Self { end_previous_secret: true, ..Self::default() }
    }

    /// Replaces the allowlist.
    pub fn restrict(allowlist: Allowlist) -> Self {
        Self { allowlist: Some(allowlist), ..Self::default() }
    }

    /// Replaces the scopes.
    pub fn scopes(scopes: Scopes) -> Self {
        Self { scopes: Some(scopes), ..Self::default() }
    }

    /// The record after the change, at the next revision; `None` if nothing changes.
    pub(crate) fn apply(&self, key: &ApiKey) -> Option<ApiKey> {
        let mut changed = key.clone();
        changed.name = self.name.clone().unwrap_or(changed.name);
        changed.status = self.status.unwrap_or(changed.status);
        changed.allowlist = self.allowlist.clone().unwrap_or(changed.allowlist);
        if let Some(metadata) = &self.metadata {
            changed.attributes.metadata = metadata.clone();
        }
        if let Some(scopes) = &self.scopes {
            changed.attributes.scopes = scopes.clone();
        }
        // Forgotten, so that enabling the key again does not bring an old secret back. A
        // revocation by hand or by an earlier version has not forgotten it.
        let revoked = [key.status, changed.status].contains(&Status::Revoked);
        if self.end_previous_secret || revoked {
            changed.previous = None;
        }
        (changed != *key).then(|| ApiKey { revision: key.revision.next(), ..changed })
    }
}
