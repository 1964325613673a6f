//! Reports on a manager's health and shutdown.

use std::fmt;
use std::sync::Arc;

use crate::manager::error::ShutDown;
use crate::store::key_store::StoreError;
use crate::text::with_causes;

/// The parts of a [`KeyManager`](crate::KeyManager) that work, as reported by
/// [`KeyManager::health`](crate::KeyManager::health).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthReport {
    /// Whether keys can be looked up, and so whether requests can be verified.
    pub lookups: PartHealth,
    /// Whether the store accepts changes: new keys, edits, rotations, deletions, and
    /// last-used times.
    pub changes: PartHealth,
    /// Whether audit records are written; true without an audit sink. While this fails,
    /// changes are refused. Requests are refused, too: in strict delivery at once, in
    /// buffered delivery when the queue is full.
    pub audit_log: PartHealth,
}

impl HealthReport {
    /// Whether all parts work.
    pub fn works(&self) -> bool {
        [&self.lookups, &self.changes, &self.audit_log].into_iter().all(PartHealth::works)
    }
}

/// Whether one part works. Its `Display` is `works`, or the error for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartHealth(pub(super) Option<Arc<str>>);

impl PartHealth {
    /// Whether the part works.
    pub fn works(&self) -> bool {
        self.0.is_none()
    }

    /// What failed and why. For operators only: it may name hosts and files.
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

/// What [`KeyManager::shutdown`](crate::KeyManager::shutdown) could not finish or write.
/// Losses are also logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a loss should be reported"]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Changes of keys that were still in progress. They continue while the runtime does;
    /// if it stops, the audit log may show only that a change was begun.
    pub unfinished_changes: u64,
    /// Requests and changes whose audit records are lost.
    pub unwritten_records: u64,
    /// Keys whose last-used time was not brought up to date.
    pub unwritten_uses: u64,
}

impl ShutdownReport {
    /// Whether everything was written.
    pub fn is_complete(&self) -> bool {
        *self == Self::default()
    }
}
