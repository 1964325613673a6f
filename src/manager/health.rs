//! Whether a manager works, and its orderly end.

use std::time::{Duration, Instant};

use crate::audit::delivery::AuditStats;
use crate::key::digest::KeyDigest;
use crate::manager::KeyManager;
use crate::store::contract::StoreError;

/// Both tasks close at the same time; the second gets at least this.
const GRACE: Duration = Duration::from_millis(100);
/// An `Instant` so far ahead can still be told.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl KeyManager {
    /// Asks the store a question, within its deadline; each time another one, to which
    /// no cache has the answer.
    ///
    /// # Errors
    ///
    /// The store's, where it gives no answer.
    pub async fn check_store(&self) -> Result<(), StoreError> {
        // The digest of no possible key.
        let nothing = KeyDigest::of(self.now().to_string());
        self.inner.bounded(self.inner.store.find_by_digest(&nothing)).await.map(drop)
    }

    /// What became of the audit records so far; all zero without an audit sink.
    pub fn audit_stats(&self) -> AuditStats {
        self.inner.audit.as_ref().map(|audit| audit.stats()).unwrap_or_default()
    }

    /// Writes what is queued, within the deadline, and takes no more: where
    /// there is an audit sink, later requests and changes are refused as
    /// unavailable. Call it once the service has stopped taking requests.
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
        let deadline = deadline.min(LONGEST);
        let give_up = Instant::now() + deadline;
        let failed_before = self.audit_stats().failed;
        self.inner.uses.close();
        if let Some(audit) = &self.inner.audit {
            audit.shutdown(deadline).await;
        }
        let left = give_up.saturating_duration_since(Instant::now());
        let unwritten_uses = self.inner.uses.ended(left.max(GRACE)).await;
        let stats = self.audit_stats();
        ShutdownReport {
            unwritten_records: stats.failed.saturating_sub(failed_before)
                + stats.queued
                + stats.summed,
            unwritten_uses,
        }
    }
}

/// What [`KeyManager::shutdown`] could not write. Each loss is in the log, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a loss should be reported"]
#[non_exhaustive]
pub struct ShutdownReport {
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
