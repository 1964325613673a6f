//! The calls that used or changed one key, with their outcomes.

use keygate::Denial;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// From just before the call to just after its return, in nanoseconds of one monotonic clock.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The fields of a key that decide about requests, and its name, by which a lost edit shows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct State {
    /// A number that identifies the secret.
    pub(crate) secret: u64,
    /// The previous secret, and the first microsecond at which it no longer works.
    pub(crate) previous: Option<(u64, u64)>,
    pub(crate) revoked: bool,
    /// Whether only one network may use it.
    pub(crate) home_only: bool,
    /// Whether it has the scope that every request needs.
    pub(crate) reads: bool,
    pub(crate) name: u32,
}

impl State {
    /// The secrets that find the key.
    pub(crate) fn secrets(self) -> impl Iterator<Item = u64> {
        [Some(self.secret), self.previous.map(|(old, _)| old)].into_iter().flatten()
    }
}

/// A state with its number in the store.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Version {
    pub(crate) revision: u32,
    pub(crate) state: State,
}

/// The changes that an update asks for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Patch {
    pub(crate) revoked: Option<bool>,
    pub(crate) home_only: Option<bool>,
    pub(crate) reads: Option<bool>,
    pub(crate) name: Option<u32>,
    pub(crate) ends_previous: bool,
}

impl Patch {
    pub(crate) fn apply(self, state: State) -> State {
        let revoked = self.revoked.unwrap_or(state.revoked);
        State {
            secret: state.secret,
            previous: state.previous.filter(|_| !revoked && !self.ends_previous),
            revoked,
            home_only: self.home_only.unwrap_or(state.home_only),
            reads: self.reads.unwrap_or(state.reads),
            name: self.name.unwrap_or(state.name),
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Change {
    Update,
    Rotate,
    Delete,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Outcome {
    /// The key expires at that microsecond.
    Created(Version, Option<u64>),
    /// The call made that version, or found that the key already was like that.
    Updated(Patch, Version),
    Rotated(Version),
    Deleted,
    /// Another change came first.
    Conflict(Change),
    /// A change found no such key.
    NotFound,
    /// A verification found the key.
    Verified {
        secret: u64,
        home: bool,
        seen: Version,
        #[serde(with = "denial")]
        denial: Option<Denial>,
    },
    /// A verification found no key with that secret.
    Unknown(u64),
}

impl Outcome {
    /// The version that the call made or found.
    pub(crate) fn version(self) -> Option<Version> {
        match self {
            Self::Created(version, _) | Self::Updated(_, version) | Self::Rotated(version) => {
                Some(version)
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Event {
    pub(crate) span: Span,
    pub(crate) outcome: Outcome,
}

/// A denial as its place in a list.
mod denial {
    use super::*;

    const ALL: [Denial; 5] = [
        Denial::Revoked,
        Denial::Expired,
        Denial::IpNotAllowed,
        Denial::AllowlistUnreadable,
        Denial::InsufficientScope,
    ];

    pub(super) fn serialize<S: Serializer>(
        denial: &Option<Denial>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let place = |denial| ALL.iter().position(|one| *one == denial).unwrap();
        denial.map(place).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Denial>, D::Error> {
        let place = Option::<usize>::deserialize(deserializer)?;
        Ok(place.map(|place| ALL[place]))
    }
}
