//! What was done to one key, and what came of it.

use keygate::Denial;

/// From just before the call to just after its return, in nanoseconds of one
/// monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) call: u64,
    pub(crate) back: u64,
}

/// What decides over requests with a key, and its name, in which a lost edit shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Tells the key's secrets apart.
    pub(crate) secret: u64,
    /// The secret before it, and the first microsecond at which that no longer works.
    pub(crate) previous: Option<(u64, u64)>,
    pub(crate) revoked: bool,
    /// Whether it may be used from home only.
    pub(crate) home_only: bool,
    /// Whether it has the scope that every request needs.
    pub(crate) reads: bool,
    pub(crate) name: u32,
}

impl State {
    /// The secrets that lead to the key.
    pub(crate) fn secrets(self) -> impl Iterator<Item = u64> {
        [Some(self.secret), self.previous.map(|(old, _)| old)].into_iter().flatten()
    }
}

/// A state with the number that the store gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) revision: u32,
    pub(crate) state: State,
}

/// What an update asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) revoked: Option<bool>,
    pub(crate) home_only: Option<bool>,
    pub(crate) reads: Option<bool>,
    pub(crate) name: Option<u32>,
    /// Ends the previous secret.
    pub(crate) end: bool,
}

impl Patch {
    pub(crate) fn apply(self, state: State) -> State {
        let revoked = self.revoked.unwrap_or(state.revoked);
        State {
            secret: state.secret,
            previous: state.previous.filter(|_| !revoked && !self.end),
            revoked,
            home_only: self.home_only.unwrap_or(state.home_only),
            reads: self.reads.unwrap_or(state.reads),
            name: self.name.unwrap_or(state.name),
        }
    }
}

/// A change that was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Update,
    Rotate,
    Delete,
}

/// An operation with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Created(Version),
    /// Made that version, or found that it says so already.
    Updated(Patch, Version),
    Rotated(Version),
    Deleted,
    /// Refused: another change came first.
    Conflict(Attempt),
    /// Refused: there is no such key.
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
    /// Refused: there is no key with that secret.
    Unknown {
        secret: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) span: Span,
    pub(crate) deed: Deed,
}
