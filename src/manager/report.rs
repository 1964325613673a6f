//! What a manager says of its health, and of its end.

use std::fmt;
use std::sync::Arc;

use crate::manager::error::ShutDown;
use crate::store::contract::StoreError;
use crate::text::with_causes;

/// Which parts of a [`KeyManager`](crate::KeyManager) work, as [`KeyManager::health`](crate::KeyManager::health) found it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthReport {
    /// Whether keys are found, and so whether requests are answered.
    pub lookups: PartHealth,
    /// Whether the store takes changes: keys made, edited, rotated and deleted, and
    /// last-used times.
    pub changes: PartHealth,
    /// Whether audit records are written; it works as well where there is no audit sink. While
    /// it does not, changes are refused, in strict delivery requests are, and in buffered
    /// delivery requests once the queue is full.
    pub audit_log: PartHealth,
}

impl HealthReport {
    /// Whether all parts work.
    pub fn works(&self) -> bool {
        [&self.lookups, &self.changes, &self.audit_log].into_iter().all(PartHealth::works)
    }
}

/// Whether one part works. Shown, it is `works`, or what is wrong, in words for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartHealth(pub(super) Option<Arc<str>>);

impl PartHealth {
    /// Whether the part works.
    pub fn works(&self) -> bool {
        self.0.is_none()
    }

    /// What is wrong, and what caused it. It is for operators alone: it may name hosts and
    /// files.
    pub fn error(&self) -> Option<&str> {
        self.0.as_deref()
    }

    pub(super) fn fails(error: String) -> Self {
        Self(Some(error.into()))
    }

    pub(super) fn shut_down() -> Self {
        Self::fails(ShutDown.to_string())
    }

    pub(super) fn of(result: Result<(), StoreError>) -> Self {
        match result {
            Ok(()) => Self(None),
            Err(error) => Self::fails(with_causes(&error)),
        }
    }
}

impl fmt::Display for PartHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.error().unwrap_or("works"))
    }
}

/// What [`KeyManager::shutdown`](crate::KeyManager::shutdown) could not finish or write. Each loss is in the log, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a loss should be reported"]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Changes to keys that were still under way. They go on for as long as the runtime
    /// does; after that, a record that one was begun may be all that there is of it.
    pub unfinished_changes: u64,
    /// Requests and changes whose audit records are lost.
    pub unwritten_records: u64,
    /// Keys whose last-used time is older than their last use.
    pub unwritten_uses: u64,
}

impl ShutdownReport {
    /// Whether everything was written.
    pub fn is_complete(&self) -> bool {
        *self == Self::default()
    }
}
