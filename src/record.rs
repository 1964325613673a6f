//! The stored record of a key, and how it is created and changed.

use std::time::Duration;

use subtle::ConstantTimeEq;

use crate::allowlist::{Allowlist, AllowlistError};
use crate::key::digest::KeyDigest;
use crate::key::expiration::Expiration;
use crate::key::id::KeyId;
use crate::key::idempotency::IdempotencyKey;
use crate::key::name::{KeyName, KeyNameError};
use crate::names::names;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;
use crate::scopes::Scopes;

pub(crate) mod attributes;

use attributes::{Attributes, Metadata};

/// The record of a key: one row of a store.
///
/// A field is added to this type only if a store must find keys by it, as it does by the
/// digest of a previous secret: each field but the last is a column, or two, in every
/// store. Other properties are added to [`Attributes`], which stores treat as opaque.
// Ordered so that the fields read on every request are adjacent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ApiKey {
    /// The digest of the current secret. Unique in a store.
    pub digest: KeyDigest,
    /// The first instant at which the key is expired; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The addresses from which the key may be used.
    pub allowlist: Allowlist,
    /// Whether the owner has revoked the key.
    pub status: Status,
    /// Identifies the key permanently. Unique in a store.
    pub id: KeyId,
    /// The organisation that owns the key. Never changes.
    pub org: OrgId,
    /// The key's name.
    pub name: KeyName,
    /// The first characters of the key, shown to recognise it. Not used for look-ups.
    pub key_prefix: String,
    /// When the key was created.
    pub created_at: Timestamp,
    /// When the current secret replaced an earlier one, if it did.
    pub rotated_at: Option<Timestamp>,
    /// The secret that the current one replaced, if both work for a while. Stays here after
    /// its end, until another change removes it.
    pub previous: Option<PreviousSecret>,
    /// The time of the last request that the key authenticated.
    pub last_used_at: Option<Timestamp>,
    /// Counts the changes; a use is not a change.
    pub revision: Revision,
    /// Properties that are never searched for: one text in a store.
    pub attributes: Attributes,
}

impl ApiKey {
    /// A complete record for tests of a store: active, without expiry or allowlist. Its id,
    /// digest and creation time are derived from the number.
    ///
    /// ```
    /// use keygate::{ApiKey, Status};
    ///
    /// let revoked = ApiKey { status: Status::Revoked, ..ApiKey::sample(1) };
    /// assert_ne!(revoked.digest, ApiKey::sample(2).digest);
    /// ```
    pub fn sample(number: u64) -> Self {
        let seconds = i64::try_from(number % 1_000_000_000).unwrap_or_default();
        Self {
            digest: KeyDigest::of(number.to_be_bytes()),
            expires_at: None,
            allowlist: Allowlist::default(),
            status: Status::Active,
            id: KeyId::from_bytes(u128::from(number).to_be_bytes()),
            org: OrgId::sample(),
            name: KeyName::sample(),
            key_prefix: "vsp_sk_4fT9x".to_owned(),
            created_at: Timestamp::from_unix_micros(seconds * 1_000_000).unwrap_or(Timestamp::MIN),
            rotated_at: None,
            previous: None,
            last_used_at: None,
            revision: Revision::FIRST,
            attributes: Attributes::default(),
        }
    }

    /// The prefix of the key, or one that begins with it: what tells its environment.
    pub(crate) fn format_prefix(&self) -> &str {
        self.attributes.adopted_into.as_deref().unwrap_or(&self.key_prefix)
    }

    /// Whether the key is expired at this instant: `expires_at <= now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The digests by which the key is found: that of the current secret, then that of the
    /// previous one.
    pub fn digests(&self) -> impl Iterator<Item = KeyDigest> + use<> {
        [Some(self.digest), self.previous.map(|previous| previous.digest)].into_iter().flatten()
    }

    /// Whether a secret of this key is also one of the other key, which a store must prevent.
    pub fn shares_digest(&self, other: &Self) -> bool {
        self.digests().any(|digest| other.digests().any(|theirs| theirs == digest))
    }

    /// The instant until which the previous secret still works; `None` if it does not work
    /// now. It does not work in a revoked or expired key.
    pub fn previous_until(&self, now: Timestamp) -> Option<Timestamp> {
        let is_usable = self.status == Status::Active && !self.is_expired(now);
        self.previous.map(|previous| previous.until).filter(|until| is_usable && now < *until)
    }

    /// Which of the key's secrets has this digest. The comparisons take constant time.
    pub(crate) fn secret_with(&self, digest: &KeyDigest) -> Option<SecretUsed> {
        if self.digest.ct_eq(digest).into() {
            return Some(SecretUsed::Current);
        }
        let previous = self.previous.as_ref()?;
        bool::from(previous.digest.ct_eq(digest)).then_some(SecretUsed::Previous)
    }
}

/// The secret from before a rotation with an overlap. It works until its end, or until an
/// earlier change that ends it.
///
/// No fields will be added to this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreviousSecret {
    /// Its digest. Unique in a store, among current and previous ones.
    pub digest: KeyDigest,
    /// The first instant at which it no longer works.
    pub until: Timestamp,
}

names! {
    /// Which secret of a key a request was made with. There is no third one.
    pub enum SecretUsed: "current or previous" {
        /// The one that the key was last given.
        Current = "current",
        /// The one before, during an overlap or after its end.
        Previous = "previous",
    }
}

names! {
    /// Whether the owner has revoked a key. Expiry is separate: [`ApiKey::is_expired`].
    /// There is no third state.
    pub enum Status: "active or revoked" {
        /// The key may be used.
        Active = "active",
        /// Every request with the key is refused.
        Revoked = "revoked",
    }
}

/// The version of a record, counted from 1. Every change increments it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u32);

impl Revision {
    /// The revision of a new key.
    pub const FIRST: Self = Self(1);

    /// The revision with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The revision's number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The next revision.
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

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

/// Limits per organisation.
///
/// ```
/// use keygate::Limits;
///
/// let limits = Limits::default();
/// assert_eq!((limits.max_keys, limits.max_ips_per_key), (20, 50));
/// ```
///
/// ```
/// # use keygate::Limits;
/// let limits = Limits::default().max_keys(100);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Keys per organisation, including revoked and expired ones.
    pub max_keys: u32,
    /// Entries in the allowlist of one key.
    pub max_ips_per_key: u32,
}

impl Limits {
    /// Sets how many keys an organisation may have.
    pub fn max_keys(self, max_keys: u32) -> Self {
        Self { max_keys, ..self }
    }

    /// Sets how many entries an allowlist may have.
    pub fn max_ips_per_key(self, max_ips_per_key: u32) -> Self {
        Self { max_ips_per_key, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_keys: 20, max_ips_per_key: 50 }
    }
}

/// How many keys an organisation may have after an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrgLimit(Option<u32>);

impl OrgLimit {
    /// No limit; for imports.
    pub const NONE: Self = Self(None);

    /// At most this many keys.
    pub const fn at_most(keys: u32) -> Self {
        Self(Some(keys))
    }

    /// Whether an organisation with `present` keys may have another one.
    pub fn admits_one_more(self, present: usize) -> bool {
        self.0.is_none_or(|max| present < max as usize)
    }

    /// The limit as a number, for a comparison in the database; `None` for no limit.
    pub const fn get(self) -> Option<u32> {
        self.0
    }
}

/// One use of a key, for [`KeyStore::record_uses`](crate::KeyStore::record_uses).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The key that was used.
    pub id: KeyId,
    /// When it authenticated a request.
    pub at: Timestamp,
}

impl KeyUse {
    /// Whether this use replaces the stored last-used time: if there is none, if it is
    /// earlier, or if it is later than [`KeyUse::latest_plausible`].
    ///
    /// ```
    /// use keygate::store::KeyUse;
    /// use keygate::{KeyId, Timestamp};
    ///
    /// let at = |text: &str| text.parse::<Timestamp>().unwrap();
    /// let used = KeyUse { id: KeyId::from_bytes([7; 16]), at: at("2026-01-31T12:00:00Z") };
    ///
    /// assert!(used.replaces(None));
    /// assert!(used.replaces(Some(at("2026-01-31T11:59:59Z"))));
    /// assert!(!used.replaces(Some(at("2026-01-31T12:00:01Z"))));
    /// assert!(used.replaces(Some(at("2099-01-01T00:00:00Z"))));
    /// ```
    pub fn replaces(self, stored: Option<Timestamp>) -> bool {
        stored.is_none_or(|stored| stored < self.at || stored > self.latest_plausible())
    }

    /// One day after this use. A later stored time was set by a process with a wrong clock,
    /// and would otherwise stay for as long as that clock was ahead.
    pub fn latest_plausible(self) -> Timestamp {
        self.at.saturating_add(Duration::from_secs(24 * 60 * 60))
    }
}
