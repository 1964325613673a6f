//! Audit records: one for every request with a known key, and for every change.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::audit::country::CountryCode;
use crate::clock::Timestamp;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::policy::Denial;
use crate::random::{Random, RandomError};

/// One entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Unique. Orders records of the same instant, and lets a sink that is
    /// given a record again know it.
    pub id: AuditId,
    /// When the request was verified, or the change begun.
    pub at: Timestamp,
    /// The organisation that owns the key.
    pub org: OrgId,
    /// The key.
    pub key: KeyId,
    /// What happened.
    pub event: AuditEvent,
}

impl AuditRecord {
    /// How many requests or changes the record stands for.
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
/// The type is closed, as [`ApiKey`](crate::ApiKey) is: a new field is a new column in
/// every log, and so a new major version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestEvent {
    /// The HTTP method; a longer one than any known is cut off.
    pub method: Cow<'static, str>,
    /// The path without the query: in visible ASCII, with segments that hold a key
    /// blotted out, of at most [`RequestEvent::MAX_ENDPOINT_LEN`] bytes.
    pub endpoint: Box<str>,
    /// The client's address, where it is known.
    pub ip: Option<IpAddr>,
    /// The country of that address, where it is known.
    pub country: Option<CountryCode>,
    /// The HTTP status of the answer; `None` where there was no answer.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
    /// How many requests the record stands for: 1, or more where refusals of one key
    /// were summed. The record then has the time, path and address of the last of them.
    pub count: u32,
}

impl RequestEvent {
    /// A longer path is cut off here, and ends in `…`.
    pub const MAX_ENDPOINT_LEN: usize = 2_048;
}

/// How a request with a known key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The key was good and the service answered.
    Allowed,
    /// Refused: the key is revoked.
    Revoked,
    /// Refused: the key is expired.
    Expired,
    /// Refused: the address is not on the allowlist, is not known, or the
    /// stored allowlist is unreadable.
    IpNotAllowed,
    /// The key was good, but the client was gone, or the service had failed,
    /// before there was an answer.
    Aborted,
}

impl Outcome {
    const ALL: [Self; 5] =
        [Self::Allowed, Self::Revoked, Self::Expired, Self::IpNotAllowed, Self::Aborted];

    /// The name in snake case, such as `ip_not_allowed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::IpNotAllowed => "ip_not_allowed",
            Self::Aborted => "aborted",
        }
    }

    /// Whether the request was refused for what is known of its key.
    pub(crate) const fn is_refusal(self) -> bool {
        matches!(self, Self::Revoked | Self::Expired | Self::IpNotAllowed)
    }

    /// Reads what [`Outcome::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

impl From<Denial> for Outcome {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Revoked => Self::Revoked,
            Denial::Expired => Self::Expired,
            Denial::IpNotAllowed | Denial::AllowlistUnreadable => Self::IpNotAllowed,
        }
    }
}

/// A change to a key.
///
/// The record is durable before the change begins, so there is no change
/// without one. Where the change then fails and is known not to have happened,
/// a second record in phase [`ChangePhase::Abandoned`] says so, as far as the sink
/// takes it.
///
/// The type is closed, as [`RequestEvent`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeEvent {
    /// The name of the [`Actor`](crate::Actor) who made the change.
    pub actor: Arc<str>,
    /// What the actor did.
    pub action: ChangeAction,
    /// Whether the change was begun, or came to nothing.
    pub phase: ChangePhase,
}

/// What was done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChangeAction {
    /// The key was made.
    Created,
    /// Its name, status or allowlist was edited.
    Updated,
    /// It got a new secret.
    Rotated,
    /// It was removed.
    Deleted,
}

impl ChangeAction {
    const ALL: [Self; 4] = [Self::Created, Self::Updated, Self::Rotated, Self::Deleted];

    /// The name in snake case, such as `created`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Rotated => "rotated",
            Self::Deleted => "deleted",
        }
    }

    /// Reads what [`ChangeAction::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == text)
    }
}

/// Whether a change was begun, or came to nothing.
///
/// The type is closed; there is no third phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangePhase {
    /// Written before the change.
    Begun,
    /// Written after the change failed: nothing was changed.
    Abandoned,
}

impl ChangePhase {
    /// `begun` or `abandoned`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Abandoned => "abandoned",
        }
    }

    /// Reads what [`ChangePhase::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Begun, Self::Abandoned].into_iter().find(|phase| phase.as_str() == text)
    }
}

/// Identifies an audit record: 16 bytes, in rising order within one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditId(u128);

impl AuditId {
    /// The identifier behind these bytes, as [`AuditId::to_bytes`] gave them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Sixteen bytes; comparing them compares the identifiers.
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

impl fmt::Debug for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditId({:032x})", self.0)
    }
}

/// Numbers the records of one process: a random half that tells processes
/// apart, and a count.
#[derive(Debug)]
pub(crate) struct AuditIds {
    process: u64,
    count: AtomicU64,
}

impl AuditIds {
    pub(crate) fn new(random: &dyn Random) -> Result<Self, RandomError> {
        let mut bytes = [0; 8];
        random.fill(&mut bytes)?;
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
    fn names_round_trip() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::parse(outcome.as_str()), Some(outcome));
        }
        for action in ChangeAction::ALL {
            assert_eq!(ChangeAction::parse(action.as_str()), Some(action));
        }
        for phase in [ChangePhase::Begun, ChangePhase::Abandoned] {
            assert_eq!(ChangePhase::parse(phase.as_str()), Some(phase));
        }
        assert_eq!(Outcome::parse("Allowed"), None);
    }

    #[test]
    fn ids_rise_and_survive_their_bytes() {
        let ids = AuditIds::new(&crate::random::SystemRandom).unwrap();
        let (a, b) = (ids.next(), ids.next());
        assert!(a < b && a.to_bytes() < b.to_bytes());
        assert_eq!(AuditId::from_bytes(a.to_bytes()), a);
    }
}
