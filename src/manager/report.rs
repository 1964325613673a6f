//! Reports on a manager's health and shutdown, and the probe that health checks share.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::Event;

use crate::manager::error::ShutDown;
use crate::store::key_store::StoreError;
use crate::text::with_causes;

/// How long the answer of a [`Probe`] is kept.
const KEPT: Duration = Duration::from_secs(1);

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
    /// The audit records that wait to be written.
    pub audit_queue: AuditQueue,
    /// Whether the last batch of last-used times was written. Those of a batch that was not
    /// are written later.
    pub last_uses: PartHealth,
    /// Whether the cache is used; `None` unless the store of the manager is a
    /// `CachedStore`. While it is not, every look-up goes to the store behind it.
    pub cache: Option<PartHealth>,
}

impl HealthReport {
    /// Whether all parts work.
    pub fn works(&self) -> bool {
        self.parts().into_iter().all(|(_, part)| part.works())
    }

    /// All parts, with their names.
    pub fn parts(&self) -> Vec<(&'static str, &PartHealth)> {
        let Self { lookups, changes, audit_log, audit_queue: _, last_uses, cache } = self;
        let parts = [
            ("lookups", lookups),
            ("changes", changes),
            ("audit_log", audit_log),
            ("last_uses", last_uses),
        ];
        parts.into_iter().chain(cache.iter().map(|cache| ("cache", cache))).collect()
    }
}

/// The audit records that wait to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditQueue {
    /// How many records wait or are being written.
    pub queued: usize,
    /// At how many records of admitted requests the queue is full.
    pub capacity: usize,
    /// How long ago a batch was last written; `None` if none was yet.
    pub last_written: Option<Duration>,
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
    /// Changes that the [change listener](crate::manager::ChangeListener) was not told of.
    pub untold_changes: u64,
    /// Batches of records that further audit sinks did not get.
    pub uncopied_batches: u64,
}

impl ShutdownReport {
    /// Whether everything was written and passed on.
    pub fn is_complete(&self) -> bool {
        *self == Self::default()
    }
}

/// Asks whether the store accepts changes, and keeps the answer for a moment. Of concurrent
/// callers one asks the store, and the others wait for the answer.
#[derive(Debug, Default)]
pub(super) struct Probe {
    state: Mutex<Answer>,
    answered: Event,
}

#[derive(Debug, Default)]
struct Answer {
    last: Option<(Instant, PartHealth)>,
    is_asked: bool,
}

impl Probe {
    pub(super) async fn answer(&self, question: impl Future<Output = PartHealth>) -> PartHealth {
        loop {
            let listener = self.answered.listen();
            {
                let mut state = self.lock();
                match &state.last {
                    Some((at, answer)) if at.elapsed() < KEPT => return answer.clone(),
                    _ if !state.is_asked => {
                        state.is_asked = true;
                        break;
                    }
                    _ => {}
                }
            }
            listener.await;
        }
        let _asking = Asking(self);
        let answer = question.await;
        self.lock().last = Some((Instant::now(), answer.clone()));
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// If the caller that is asking is dropped, another one asks.
struct Asking<'p>(&'p Probe);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().is_asked = false;
        self.0.answered.notify(usize::MAX);
    }
}
