//! Operations on one key and their outcomes.

use keygate::Denial;

/// From just before the call to just after its return, in nanoseconds of one monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) call: u64,
    pub(crate) back: u64,
}

/// The fields that decide about requests, and the name, in which a lost edit is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Identifies the key's current secret.
    pub(crate) secret: u64,
    pub(crate) revoked: bool,
    /// Whether the key may be used from home only.
    pub(crate) home_only: bool,
    pub(crate) name: u32,
}

/// A state with the revision that the store gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) revision: u32,
    pub(crate) state: State,
}

/// The fields that an update asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) revoked: Option<bool>,
    pub(crate) home_only: Option<bool>,
    pub(crate) name: Option<u32>,
}

impl Patch {
    pub(crate) fn apply(self, state: State) -> State {
        State {
            secret: state.secret,
            revoked: self.revoked.unwrap_or(state.revoked),
            home_only: self.home_only.unwrap_or(state.home_only),
            name: self.name.unwrap_or(state.name),
        }
    }
}

/// A change that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Update,
    Rotate,
    Delete,
}

/// An operation with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created(Version),
    /// Made that version, or found that it already had these values.
    Updated(Patch, Version),
    Rotated(Version),
    Deleted,
    /// Refused because another change came first.
    Conflict(Attempt),
    /// Refused because the key does not exist.
    NotFound(Attempt),
    Accepted {
        secret: u64,
        home: bool,
        seen: Version,
    },
    Denied {
        secret: u64,
        home: bool,
        seen: Version,
        denial: Denial,
    },
    /// Refused because no key has that secret.
    Unknown {
        secret: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) span: Span,
    pub(crate) outcome: Outcome,
}
