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
/// A sink is given batches of records and returns once the *whole* batch is as durable as
/// the sink promises. Three rules:
///
/// 1. **`Ok` means all of it.** With a sink that returns before its data is safe, strict
///    delivery can lose records.
/// 2. **A record may be given again.** A batch that timed out may have been written; it is
///    retried. If the sink already has a record with this [`id`](AuditRecord::id), it does
///    not store it again.
/// 3. **Errors are classified.** [`AuditError::unavailable`] is retried, with pauses.
///    [`AuditError::rejected`] is for a record that can never be written: it is counted and
///    logged as failed, and does not delay the others.
///
/// A batch contains either requests or changes, and at most one batch of each is written at
/// a time, so changes do not wait behind requests. A call that exceeds the deadline of the
/// [`Delivery`](crate::Delivery) is dropped. A panic in a sink counts as a rejection.
///
/// A sink that appends a line for each record to a file:
///
/// ```
/// use std::collections::HashSet;
/// use std::fs::File;
/// use std::io::Write;
/// use std::sync::Mutex;
///
/// use keygate::audit::{AuditId, AuditRecord};
/// use keygate::{AuditError, AuditSink};
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
    /// Returns only once the whole batch is as durable as the sink promises.
    ///
    /// Must accept records that it has already written.
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
    /// The log does not work now; retry later.
    #[error("the audit log is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// The log will never accept these records.
    #[error("the audit log rejected a record")]
    Rejected(#[source] Box<dyn StdError + Send + Sync>),
}

impl AuditError {
    /// A temporary error: a lost connection, a full disk, a lock.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// A permanent error, which no retry resolves.
    pub fn rejected(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Rejected(source.into())
    }
}
