//! A memory log that records its calls and whose writes a test can hold or break.

use std::collections::{BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keygate::audit::{AuditId, AuditPage, AuditQuery, AuditRecord, UsageBucket, UsageQuery};
use keygate::{AuditError, AuditLog, AuditSink, MemoryAuditLog, Timestamp};
use tokio::sync::watch;

use super::eventually;

/// What the sink does with a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Sink {
    #[default]
    Works,
    Fails,
    Rejects,
    Hangs,
    WritesAndHangs,
    Panics,
    /// Panics only for a batch with a request to that path.
    PanicsAt(&'static str),
    RejectsAt(&'static str),
    Slow(Duration),
}

/// A `MemoryAuditLog` whose writes can be made to fail.
#[derive(Debug, Default)]
pub(crate) struct SpySink {
    pub(crate) log: MemoryAuditLog,
    /// The batches passed to it, written or not.
    pub(crate) calls: Mutex<Vec<Vec<AuditRecord>>>,
    acknowledged: Mutex<Vec<AuditId>>,
    /// Answers to the next calls.
    plan: Mutex<VecDeque<Sink>>,
    /// The answer to all calls after those.
    sink: Mutex<Sink>,
    held: watch::Sender<bool>,
    /// How many pages were asked for.
    pub(crate) pages: AtomicUsize,
    /// Whether reading fails.
    pub(crate) unreadable: AtomicBool,
}

impl SpySink {
    pub(crate) fn sink(&self, sink: Sink) {
        *self.sink.lock().unwrap() = sink;
    }

    /// What the sink does with the next batches, before [`Self::sink`] applies again.
    pub(crate) fn plan(&self, plan: impl IntoIterator<Item = Sink>) {
        self.plan.lock().unwrap().extend(plan);
    }

    /// While `held` is true, calls wait.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Waits for the first batch.
    pub(crate) async fn called(&self) {
        eventually("the sink is called", async || self.batches() > 0).await;
    }

    /// The number of batches passed to it, written or not.
    pub(crate) fn batches(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// The sizes of these batches.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        self.calls.lock().unwrap().iter().map(Vec::len).collect()
    }

    /// The number of records it holds.
    pub(crate) fn len(&self) -> usize {
        self.log.len()
    }

    /// Checks that this many records were acknowledged, each once, and that no others are stored.
    pub(crate) fn assert_each_once(&self, expected: usize) {
        let ids = self.acknowledged.lock().unwrap();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "acknowledged twice");
        assert_eq!((ids.len(), self.log.len()), (expected, expected));
    }
}

#[async_trait]
impl AuditSink for SpySink {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        self.calls.lock().unwrap().push(batch.to_vec());
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let planned = self.plan.lock().unwrap().pop_front();
        let sink = planned.unwrap_or(*self.sink.lock().unwrap());
        let contains = |path| format!("{batch:?}").contains(path);
        match sink {
            Sink::Fails => return Err(AuditError::unavailable("disk full")),
            Sink::Rejects => return Err(AuditError::rejected("no such column")),
            Sink::RejectsAt(path) if contains(path) => {
                return Err(AuditError::rejected("no such column"));
            }
            Sink::Hangs => pending().await,
            Sink::Panics => panic!("the sink is broken"),
            Sink::PanicsAt(path) if contains(path) => panic!("poisoned"),
            Sink::Slow(time) => tokio::time::sleep(time).await,
            _ => {}
        }
        self.log.record(batch).await?;
        if matches!(sink, Sink::WritesAndHangs) {
            pending().await
        }
        self.acknowledged.lock().unwrap().extend(batch.iter().map(|record| record.id));
        Ok(())
    }
}

#[async_trait]
impl AuditLog for SpySink {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        self.pages.fetch_add(1, Ordering::SeqCst);
        if self.unreadable.load(Ordering::SeqCst) {
            return Err(AuditError::unavailable("the disk is on fire"));
        }
        self.log.page(query).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        if self.unreadable.load(Ordering::SeqCst) {
            return Err(AuditError::unavailable("the disk is on fire"));
        }
        self.log.usage(query).await
    }

    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        self.log.purge_before(instant).await
    }
}
