//! Whether a manager works, and its orderly end.

use std::time::{Duration, Instant};

use crate::audit::delivery::AuditStats;
use crate::key::digest::KeyDigest;
use crate::manager::KeyManager;
use crate::manager::report::{HealthReport, PartHealth, ShutdownReport};
use crate::runtime::{Elapsed, both, within};

/// A probe that asks for the health usually gives up after a second. While look-ups work, it is
/// told so, however long changes take.
const CHANGES: Duration = Duration::from_millis(500);
/// What is closed last gets at least this, even where the deadline has passed.
const GRACE: Duration = Duration::from_millis(100);
/// An `Instant` so far ahead can still be told.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl KeyManager {
    /// Says which parts work now, within the deadline of the store. What does not is in the
    /// log, too.
    ///
    /// - **Look-ups**: the store is asked for a key that cannot be, each time another one,
    ///   to which no cache has the answer.
    /// - **Changes**: the store is asked whether it takes writes, by
    ///   [`record_uses`](crate::KeyStore::record_uses) without a use. Its answer is kept for
    ///   one second, so that many health checks cost little. No answer in half a second is
    ///   reported as a failure.
    /// - **The audit log**: whether the last records could be written, and whether there is
    ///   room for more.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = keygate::KeyManager::builder(keygate::MemoryStore::new()).build()?;
    /// let health = keys.health().await;
    /// assert!(health.lookups.works(), "requests are answered: {}", health.lookups);
    /// assert!(health.works(), "all else works as well: {health:?}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn health(&self) -> HealthReport {
        let inner = &*self.inner;
        // The digest of no possible key.
        let nothing = KeyDigest::of(self.now().to_string());
        let lookup = inner.bounded(inner.store.find_by_digest(&nothing));
        let change = inner.probe.answer(async {
            let asked = inner.bounded(inner.store.record_uses(&[]));
            match within(&*inner.runtime, CHANGES, asked).await {
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
            None if health.queued >= health.capacity => {
                PartHealth::fails(format!("the queue is full: {} records wait", health.queued))
            }
            None => PartHealth(None),
        }
    }

    /// What became of the audit records so far; all zero without an audit sink.
    pub fn audit_stats(&self) -> AuditStats {
        self.inner.audit.as_ref().map(|audit| audit.stats()).unwrap_or_default()
    }

    /// Takes no more changes, waits for those under way, and writes what is queued, all
    /// within the deadline, of which the changes get at most half. Later changes are refused
    /// as unavailable; where there is an audit sink, requests are as well. Call it once the
    /// service has stopped taking requests.
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
        // Before the audit log is closed: a change that comes to nothing is yet to be
        // taken back.
        let _ = within(&*inner.runtime, deadline / 2, inner.changes.ended()).await;
        let unfinished_changes = inner.changes.under_way();
        if unfinished_changes > 0 {
            tracing::error!(unfinished_changes, "changes were still under way");
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
