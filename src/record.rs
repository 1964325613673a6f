//! The stored record of a key.

use std::time::Duration;

use subtle::ConstantTimeEq;

use crate::allowlist::Allowlist;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::names::names;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;

pub(crate) mod attributes;
pub(crate) mod change;

use attributes::Attributes;

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

    /// Whether there was no rotation between this record and the other. The digest alone does
    /// not tell: that of an existing key changes with its first use.
    pub(crate) fn has_secret_of(&self, other: &Self) -> bool {
        (self.rotated_at, &self.key_prefix) == (other.rotated_at, &other.key_prefix)
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
