//! Health checks and shutdown, and the reports on them.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::Event;

use crate::audit::delivery::AuditStats;
use crate::key::digest::KeyDigest;
use crate::manager::KeyManager;
use crate::manager::error::ShutDown;
use crate::runtime::spawn::{Elapsed, both, timeout};
use crate::store::key_store::StoreError;
use crate::text::with_causes;

/// Probes that ask for the health usually give up after a second. This lets them learn that
/// look-ups work even while changes hang.
const CHANGES: Duration = Duration::from_millis(500);
/// Time for closing the audit log and the last-used times, even after the deadline.
const GRACE: Duration = Duration::from_millis(100);
/// The longest deadline; an `Instant` this far ahead does not overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long the answer of a [`Probe`] is kept.
const KEPT: Duration = Duration::from_secs(1);

impl KeyManager {
    /// Reports which parts work now, within the deadline of the store. Failures are also
    /// logged.
    ///
    /// - **Look-ups**: the store is asked for a key that cannot exist, a different one each
    ///   time, so that no cache has the answer.
    /// - **Changes**: the store is asked whether it accepts writes, by
    ///   [`record_uses`](crate::KeyStore::record_uses) without a use. The answer is kept
    ///   for one second, so that many health checks cost little. No answer within half a
    ///   second is reported as a failure.
    /// - **The audit log**: whether the last records could be written, and whether there is
    ///   room for more.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = keygate::KeyManager::builder(keygate::MemoryStore::new()).build()?;
    /// let health = keys.health().await;
    /// assert!(health.lookups.works(), "requests are answered: {}", health.lookups);
    /// assert!(health.works(), "everything else works as well: {health:?}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn health(&self) -> HealthReport {
        let inner = &*self.inner;
        // The digest of a text that is no key.
        let nothing = KeyDigest::of(self.now().to_string());
        let lookup = inner.bounded(inner.store.find_by_digest(&nothing));
        let change = inner.probe.answer(async {
            let asked = inner.bounded(inner.store.record_uses(&[]));
            match timeout(&*inner.runtime, CHANGES, asked).await {
                Ok(answer) => PartHealth::of(answer),
                Err(Elapsed) => PartHealth::fails(format!("no answer in {CHANGES:?}")),
            }
        });
        let (lookups, changes) = both(lookup, change).await;
        let report = HealthReport {
            lookups: PartHealth::of(lookups.map(drop)),
            changes: if inner.changes.is_closed() { PartHealth::shut_down() } else { changes },
            audit_log: self.audit_health(),
        };
        if !report.works()
            && let Some(left_out) = inner.unhealthy.pass()
        {
            let HealthReport { lookups, changes, audit_log } = &report;
            tracing::warn!(%lookups, %changes, %audit_log, left_out, "a part does not work");
        }
        report
    }

    fn audit_health(&self) -> PartHealth {
        let Some(audit) = &self.inner.audit else { return PartHealth(None) };
        if self.inner.changes.is_closed() {
            return PartHealth::shut_down();
        }
        let health = audit.health();
        match health.failing {
            Some(since) => {
                let seconds = since.elapsed().as_secs();
                PartHealth::fails(format!("records could not be written for {seconds} s"))
            }
            None if health.queued >= health.capacity => PartHealth::fails(format!(
                "the queue is full: {} records are waiting",
                health.queued
            )),
            None => PartHealth(None),
        }
    }

    /// Counts of audit records so far; all zero without an audit sink.
    pub fn audit_stats(&self) -> AuditStats {
        self.inner.audit.as_ref().map(|audit| audit.stats()).unwrap_or_default()
    }

    /// Refuses new changes, waits for those in progress, and writes what is queued. All of
    /// it happens within the deadline, of which the changes get at most half. Later changes
    /// are refused as unavailable; if there is an audit sink, so are requests. `verify` still
    /// works. Call it once the service has stopped accepting requests.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = keygate::KeyManager::builder(keygate::MemoryStore::new()).build()?;
    /// let report = keys.shutdown(std::time::Duration::from_secs(5)).await;
    /// assert!(report.is_complete());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let inner = &*self.inner;
        let deadline = deadline.min(LONGEST);
        let give_up = Instant::now() + deadline;
        let left = || give_up.saturating_duration_since(Instant::now());
        let failed_before = self.audit_stats().failed;
        inner.changes.close();
        // The audit log stays open until here: a change that fails still has to record
        // that.
        let _ = timeout(&*inner.runtime, deadline / 2, inner.changes.ended()).await;
        let unfinished_changes = inner.changes.under_way();
        if unfinished_changes > 0 {
            tracing::error!(
                unfinished_changes,
                "changes were still in progress at the end of the shutdown"
            );
        }
        inner.uses.close();
        if let Some(audit) = &inner.audit {
            audit.shutdown(left()).await;
        }
        let unwritten_uses = inner.uses.ended(left().max(GRACE)).await;
        let stats = self.audit_stats();
        ShutdownReport {
            unfinished_changes,
            unwritten_records: stats.failed.saturating_sub(failed_before)
                + stats.queued
                + stats.summed,
            unwritten_uses,
        }
    }
}

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
pub struct PartHealth(Option<Arc<str>>);

impl PartHealth {
    /// Whether the part works.
    pub fn works(&self) -> bool {
        self.0.is_none()
    }

    /// What failed and why. For operators only: it may name hosts and files.
    pub fn error(&self) -> Option<&str> {
        self.0.as_deref()
    }

    fn fails(error: String) -> Self {
        Self(Some(error.into()))
    }

    fn shut_down() -> Self {
        Self::fails(ShutDown.to_string())
    }

    fn of(result: Result<(), StoreError>) -> Self {
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
    async fn answer(&self, question: impl Future<Output = PartHealth>) -> PartHealth {
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
