//! The `AuditSink` trait: where audit records go.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

use crate::audit::record::AuditRecord;

/// Keeps audit records.
///
/// # Writing a sink
///
/// A sink is given batches of records and answers once the *whole* batch is as
/// durable as the sink promises. Three rules:
///
/// 1. **`Ok` means all of it.** A sink that answers before its data is safe makes
///    strict delivery a lie.
/// 2. **The same record may come again.** A batch that timed out may have been
///    written; it is retried. A record whose [`id`](AuditRecord::id) the sink has
///    already is not stored twice.
/// 3. **Errors are classified.** [`AuditError::unavailable`] is retried, with
///    pauses. [`AuditError::rejected`] is for a record that can never be written:
///    it is counted and logged as failed, and does not hold up the others.
///
/// A batch holds either requests or changes, and at most one of each is under way at a
/// time: changes do not wait behind requests. A call that takes longer than the deadline of
/// the [`Delivery`](crate::Delivery) is dropped; a sink that panics is treated
/// as one that rejects.
///
/// A sink that appends a line for each record to a file:
///
/// ```
/// use std::collections::HashSet;
/// use std::fs::File;
/// use std::io::Write;
/// use std::sync::Mutex;
///
/// use keygate::{AuditError, AuditId, AuditRecord, AuditSink};
///
/// #[derive(Debug)]
/// struct LogFile {
///     state: Mutex<(File, HashSet<AuditId>)>,
/// }
///
/// #[async_trait::async_trait]
/// impl AuditSink for LogFile {
///     async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
///         let mut state = self.state.lock().map_err(|e| AuditError::unavailable(e.to_string()))?;
///         let (file, seen) = &mut *state;
///         let new: Vec<_> = batch.iter().filter(|record| !seen.contains(&record.id)).collect();
///         let lines: String = new.iter().map(|r| format!("{} {} {:?}\n", r.at, r.key, r.event)).collect();
///         file.write_all(lines.as_bytes()).map_err(AuditError::unavailable)?;
///         file.sync_data().map_err(AuditError::unavailable)?;
///         seen.extend(new.iter().map(|record| record.id));
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait AuditSink: fmt::Debug + Send + Sync + 'static {
    /// Returns only when the whole batch is as durable as the sink promises.
    ///
    /// Must be safe to call again with records that were written already.
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError>;
}

#[async_trait]
impl<S: AuditSink + ?Sized> AuditSink for Arc<S> {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        (**self).record(batch).await
    }
}

/// Why an audit log could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// It does not work now and may later; worth a retry.
    #[error("the audit log is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// It will never work for these records.
    #[error("the audit log rejected a record")]
    Rejected(#[source] Box<dyn StdError + Send + Sync>),
}

impl AuditError {
    /// An error that may pass: a lost connection, a full disk, a lock.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// An error that stays however often it is tried.
    pub fn rejected(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Rejected(source.into())
    }
}
