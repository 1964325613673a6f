//! Audit records: one for every request with a known key, and for every change.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand_core::TryCryptoRng;
use thiserror::Error;

use crate::audit::changed::ChangedFields;
use crate::audit::country::CountryCode;
use crate::key::id::KeyId;
use crate::names::{names, restored};
use crate::org::OrgId;
use crate::policy::Denial;
use crate::record::SecretUsed;
use crate::runtime::clock::Timestamp;

/// One entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Unique. Orders records of the same instant, and lets a sink recognise a record that
    /// it already has.
    pub id: AuditId,
    /// When the request was verified or the change begun.
    pub at: Timestamp,
    /// The organisation that owns the key.
    pub org: OrgId,
    /// The key.
    pub key: KeyId,
    /// What happened.
    pub event: AuditEvent,
}

impl AuditRecord {
    /// The number of requests or changes that the record stands for.
    pub(crate) fn count(&self) -> u64 {
        match &self.event {
            AuditEvent::Request(request) => request.count.into(),
            AuditEvent::Change(_) => 1,
        }
    }
}

/// What an [`AuditRecord`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditEvent {
    /// A request that carried the key.
    Request(RequestEvent),
    /// A change to the key itself.
    Change(ChangeEvent),
}

/// A request that carried a known key, allowed or not.
///
/// ```
/// use keygate::audit::{Outcome, RequestEvent};
///
/// let mut event = RequestEvent::new("GET", "/v1/reports", Outcome::Allowed);
/// event.status = Some(200);
/// assert_eq!((event.count, event.ip), (1, None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestEvent {
    /// The HTTP method, truncated if it is longer than any known one.
    pub method: Cow<'static, str>,
    /// The path without the query, in visible ASCII, with segments that contain a key
    /// redacted. At most [`RequestEvent::MAX_ENDPOINT_LEN`] bytes.
    pub endpoint: Box<str>,
    /// The client's address, if known.
    pub ip: Option<IpAddr>,
    /// The country of that address, if known.
    pub country: Option<CountryCode>,
    /// The HTTP status of the response; `None` if there was none.
    pub status: Option<u16>,
    /// The outcome.
    pub outcome: Outcome,
    /// The number of requests that the record stands for: 1, or more if refusals of one key
    /// were summed. The time, path, address and secret are then those of the last one.
    pub count: u32,
    /// Which secret of the key the request was made with.
    pub secret: SecretUsed,
}

impl RequestEvent {
    /// A longer path is truncated to this length and ends in `…`.
    pub const MAX_ENDPOINT_LEN: usize = 2_048;

    /// A single request with no other details.
    pub fn new(
        method: impl Into<Cow<'static, str>>,
        endpoint: impl Into<Box<str>>,
        outcome: Outcome,
    ) -> Self {
        Self {
            method: method.into(),
            endpoint: endpoint.into(),
            ip: None,
            country: None,
            status: None,
            outcome,
            count: 1,
            secret: SecretUsed::Current,
        }
    }
}

names! {
    /// How a request with a known key ended.
    #[non_exhaustive]
    pub enum Outcome: "the outcome of a request" {
        /// The key was valid and the service answered.
        Allowed = "allowed",
        /// Refused: the key is revoked.
        Revoked = "revoked",
        /// Refused: the key is expired.
        Expired = "expired",
        /// Refused: the address is not on the allowlist or not known, or the stored
        /// allowlist cannot be read.
        IpNotAllowed = "ip_not_allowed",
        /// Refused: the key lacks a scope that the request needs.
        InsufficientScope = "insufficient_scope",
        /// Refused: the key has reached its rate limit.
        RateLimited = "rate_limited",
        /// The key was valid, but the client disconnected or the service failed before
        /// there was a response.
        Aborted = "aborted",
        /// A stored name that this version does not know; read by [`Outcome::restore`].
        Unknown = "unknown",
    }
}

impl Outcome {
    /// Whether the key was known and refused.
    pub(crate) const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::Revoked
                | Self::Expired
                | Self::IpNotAllowed
                | Self::InsufficientScope
                | Self::RateLimited
        )
    }
}

impl From<Denial> for Outcome {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Revoked => Self::Revoked,
            Denial::Expired => Self::Expired,
            Denial::IpNotAllowed | Denial::AllowlistUnreadable => Self::IpNotAllowed,
            Denial::InsufficientScope => Self::InsufficientScope,
        }
    }
}

/// A change to a key.
///
/// The record is durable before the change begins, so there is no change without one. If
/// the change then fails and is known not to have happened, a second record in phase
/// [`ChangePhase::Abandoned`] says so, unless the sink fails.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeEvent {
    /// The name of the [`Actor`](crate::Actor) that made the change.
    pub actor: Arc<str>,
    /// What the actor did.
    pub action: ChangeAction,
    /// Whether the change was begun or abandoned.
    pub phase: ChangePhase,
    /// The fields that it changes, with their values before and after.
    pub fields: ChangedFields,
}

impl ChangeEvent {
    /// A change by the actor of this name, of which no fields are known.
    pub fn new(actor: impl Into<Arc<str>>, action: ChangeAction, phase: ChangePhase) -> Self {
        Self { actor: actor.into(), action, phase, fields: ChangedFields::default() }
    }
}

names! {
    /// What was done to a key.
    #[non_exhaustive]
    pub enum ChangeAction: "the action of a change" {
        /// The key was created.
        Created = "created",
        /// It was edited: the fields of the event say what.
        Updated = "updated",
        /// It got a new secret.
        Rotated = "rotated",
        /// It was deleted.
        Deleted = "deleted",
        /// A stored name that this version does not know.
        Unknown = "unknown",
    }
}

names! {
    /// Whether a change was begun or abandoned; one that was made has no further record.
    #[non_exhaustive]
    pub enum ChangePhase: "the phase of a change" {
        /// Written before the change.
        Begun = "begun",
        /// Written after the change failed: nothing was changed.
        Abandoned = "abandoned",
        /// A stored name that this version does not know.
        Unknown = "unknown",
    }
}

restored!(Outcome, ChangeAction, ChangePhase);

/// Identifies an audit record: 16 bytes, ascending within one process. As a text, they are
/// 32 hexadecimal digits in lower case.
///
/// ```
/// use keygate::audit::AuditId;
///
/// let id: AuditId = "000102030405060708090a0b0c0d0e0f".parse()?;
/// assert_eq!(id.to_bytes(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
/// # Ok::<(), keygate::error::AuditIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditId(u128);

impl AuditId {
    /// The identifier from the bytes that [`AuditId::to_bytes`] returned.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Sixteen bytes, which sort like the identifiers.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub(crate) const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    pub(crate) const fn after(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl FromStr for AuditId {
    type Err = AuditIdError;

    /// Parses the form that [`Display`](fmt::Display) writes, and no other.
    fn from_str(text: &str) -> Result<Self, AuditIdError> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(AuditIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| AuditIdError)
    }
}

impl fmt::Display for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditId({self})")
    }
}

/// The text is not the id of an audit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the id of an audit record")]
pub struct AuditIdError;

/// Numbers the records of one process: a random half that identifies the process, and a
/// counter.
#[derive(Debug)]
pub(crate) struct AuditIds {
    process: u64,
    count: AtomicU64,
}

impl AuditIds {
    pub(crate) fn new<R: TryCryptoRng + ?Sized>(rng: &mut R) -> Result<Self, R::Error> {
        let mut bytes = [0; 8];
        rng.try_fill_bytes(&mut bytes)?;
        Ok(Self { process: u64::from_be_bytes(bytes), count: AtomicU64::new(0) })
    }

    pub(crate) fn next(&self) -> AuditId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        AuditId(u128::from(self.process) << 64 | u128::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_names_round_trip_and_other_names_are_unknown() {
        for outcome in Outcome::ALL {
            assert_eq!(outcome.as_str().parse(), Ok(*outcome));
        }
        assert_eq!(
            "Allowed".parse::<Outcome>().unwrap_err().to_string(),
            "must be the outcome of a request"
        );
        assert_eq!(Outcome::restore("over_quota"), Outcome::Unknown);
        assert_eq!(ChangeAction::restore("adopted"), ChangeAction::Unknown);
        assert_eq!(ChangePhase::restore("begun"), ChangePhase::Begun);
    }

    #[test]
    fn ids_rise_and_survive_their_bytes() {
        let ids = AuditIds::new(&mut getrandom::SysRng).unwrap();
        let (a, b) = (ids.next(), ids.next());
        assert!(a < b && a.to_bytes() < b.to_bytes());
        assert_eq!(AuditId::from_bytes(a.to_bytes()), a);
        let text = a.to_string();
        assert_eq!(text.parse(), Ok(a));
        for other in ["", &text[1..], &format!("+{}", &text[1..]), &format!("{text}0"), "é"] {
            assert_eq!(other.parse::<AuditId>(), Err(AuditIdError), "{other}");
        }
        assert_eq!("F".repeat(32).parse::<AuditId>(), Err(AuditIdError));
    }
}
