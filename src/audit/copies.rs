//! Copies of the audit records for further sinks.

use std::sync::Arc;

use async_trait::async_trait;

use crate::audit::record::AuditRecord;
use crate::audit::sink::{AuditError, AuditSink};
use crate::runtime::relay::Relay;
use crate::runtime::spawn::{Runtime, all};

/// How many batches may wait for a further sink.
const CAPACITY: usize = 64;

/// A sink that must have every record, and others that get copies of what it has.
#[derive(Debug)]
pub(crate) struct WithCopies {
    first: Arc<dyn AuditSink>,
    copies: Vec<Relay<Arc<[AuditRecord]>>>,
}

impl WithCopies {
    pub(crate) fn start(
        first: Arc<dyn AuditSink>,
        others: Vec<Arc<dyn AuditSink>>,
        runtime: &Arc<dyn Runtime>,
    ) -> Self {
        let relay = |sink: Arc<dyn AuditSink>| {
            Relay::start(
                "a further audit sink",
                CAPACITY,
                runtime,
                move |batch: Arc<[AuditRecord]>| {
                    let sink = Arc::clone(&sink);
                    Box::pin(async move { Ok(sink.record(&batch).await?) })
                },
            )
        };
        Self { first, copies: others.into_iter().map(relay).collect() }
    }

    /// Returns once what was copied so far is passed on.
    pub(crate) async fn close(&self) {
        all(self.copies.iter().map(Relay::close)).await;
    }

    /// How many batches were not passed on so far.
    pub(crate) fn pending(&self) -> u64 {
        self.copies.iter().map(Relay::pending).sum()
    }
}

#[async_trait]
impl AuditSink for WithCopies {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        self.first.record(batch).await?;
        let batch: Arc<[AuditRecord]> = batch.into();
        self.copies.iter().for_each(|copy| copy.send(Arc::clone(&batch)));
        Ok(())
    }
}
