//! Health checks and shutdown.

use std::time::{Duration, Instant};

use crate::audit::delivery::AuditStats;
use crate::key::digest::KeyDigest;
use crate::manager::KeyManager;
use crate::manager::report::{AuditQueue, HealthReport, PartHealth, ShutdownReport};
use crate::runtime::spawn::{Elapsed, both, timeout};

/// Probes that ask for the health usually give up after a second. This lets them learn that
/// look-ups work even while changes hang.
const CHANGES: Duration = Duration::from_millis(500);
/// Time for closing the audit log and the last-used times, even after the deadline.
const GRACE: Duration = Duration::from_millis(100);
/// The longest deadline; an `Instant` this far ahead does not overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

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
    /// - **Last-used times**: whether the last ones could be written.
    /// - **The cache**, if the store is a `CachedStore`: whether it is used.
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
        let lookup = inner.bounded("find_by_digest", inner.store.find_by_digest(&nothing));
        let change = inner.probe.answer(async {
            let asked = inner.bounded("record_uses", inner.store.record_uses(&[]));
            match timeout(&*inner.runtime, CHANGES, asked).await {
                Ok(answer) => PartHealth::of(answer),
                Err(Elapsed) => PartHealth::fails(format!("no answer in {CHANGES:?}")),
            }
        });
        let (lookups, changes) = both(lookup, change).await;
        let (audit_log, audit_queue) = self.audit_health();
        let report = HealthReport {
            lookups: PartHealth::of(lookups.map(drop)),
            changes: if inner.changes.is_closed() { PartHealth::shut_down() } else { changes },
            audit_log,
            audit_queue,
            last_uses: PartHealth(inner.uses.failure().map(Into::into)),
            cache: inner.cache.health(),
        };
        if !report.works()
            && let Some(left_out) = inner.unhealthy.pass()
        {
            let failing = report.parts().into_iter().filter(|(_, part)| !part.works());
            let failing: Vec<_> = failing.map(|(name, part)| format!("{name}: {part}")).collect();
            tracing::warn!(parts = failing.join("; "), left_out, "a part does not work");
        }
        report
    }

    fn audit_health(&self) -> (PartHealth, AuditQueue) {
        let Some(audit) = &self.inner.audit else {
            return (PartHealth(None), AuditQueue::default());
        };
        let health = audit.health();
        let queue = AuditQueue {
            queued: health.queued,
            capacity: health.capacity,
            last_written: health.last_success.map(|at| at.elapsed()),
        };
        let part = match health.failing {
            _ if self.inner.changes.is_closed() => PartHealth::shut_down(),
            Some(since) => {
                let seconds = since.elapsed().as_secs();
                PartHealth::fails(format!("records could not be written for {seconds} s"))
            }
            None if health.queued >= health.capacity => PartHealth::fails(format!(
                "the queue is full: {} records are waiting",
                health.queued
            )),
            None => PartHealth(None),
        };
        (part, queue)
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
        let (listener, copies) = (inner.listener.as_ref(), inner.copies.as_ref());
        let closed = both(
            async {
                if let Some(listener) = listener {
                    listener.close().await;
                }
            },
            async {
                if let Some(copies) = copies {
                    copies.close().await;
                }
            },
        );
        let _ = timeout(&*inner.runtime, left(), closed).await;
        let (untold_changes, uncopied_batches) = (
            listener.map_or(0, |listener| listener.pending()),
            copies.map_or(0, |copies| copies.pending()),
        );
        if untold_changes + uncopied_batches > 0 {
            tracing::error!(
                untold_changes,
                uncopied_batches,
                "the change listener or a further audit sink is behind at the end of the shutdown"
            );
        }
        let stats = self.audit_stats();
        ShutdownReport {
            unfinished_changes,
            unwritten_records: stats.failed.saturating_sub(failed_before)
                + stats.queued
                + stats.summed,
            unwritten_uses,
            untold_changes,
            uncopied_batches,
        }
    }
}
