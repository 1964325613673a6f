//! Audit records and last-used times on their way to the sink and the store: what arrives,
//! when, and how losses are reported.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(feature = "tokio")]

mod buffered;
mod counts;
mod full_queue;
mod last_use;
mod pages;
mod shutdown;
mod strict;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use keygate::audit::{
    AuditEvent, AuditId, AuditQuery, AuditRecord, AuditScope, AuditStats, RequestEvent,
};
use keygate::manager::{Admission, AdmitError, KeyManagerBuilder, RequestInfo};
use keygate::*;
use support::{eventually, org};
use tokio::sync::watch;

/// Polls once: a result that is ready did not wait for anything.
fn poll_once<T>(work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match work.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn ada() -> Actor {
    Actor::new(org("acme"), "ada")
}

fn new_key() -> NewKey {
    NewKey::named("CI").unwrap()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn get(path: impl Into<Box<str>>) -> RequestInfo {
    RequestInfo::new("GET", path).from_ip("192.0.2.1".parse().ok())
}

/// What the sink does with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    #[default]
    Write,
    Err,
    Reject,
    Hang,
    WriteAndHang,
    Panic,
}

/// A memory log that answers as configured and records every call.
#[derive(Debug, Default)]
struct Sink {
    log: MemoryAuditLog,
    /// Answers to the next calls.
    plan: Mutex<VecDeque<Answer>>,
    /// Answers to all calls after those.
    then: Mutex<Answer>,
    /// Answer to calls that contain a record of `/bad`.
    bad: Mutex<Answer>,
    /// While it is true, calls wait.
    held: watch::Sender<bool>,
    calls: Mutex<Vec<Vec<AuditRecord>>>,
    acknowledged: Mutex<Vec<AuditId>>,
}

impl Sink {
    fn plan(&self, answers: impl IntoIterator<Item = Answer>) {
        self.plan.lock().unwrap().extend(answers);
    }

    fn then(&self, answer: Answer) {
        *self.then.lock().unwrap() = answer;
    }

    fn bad(&self, answer: Answer) {
        *self.bad.lock().unwrap() = answer;
    }

    fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// The sizes of all batches so far.
    fn sizes(&self) -> Vec<usize> {
        self.calls.lock().unwrap().iter().map(Vec::len).collect()
    }

    fn ids(&self, call: usize) -> Vec<AuditId> {
        self.calls.lock().unwrap()[call].iter().map(|record| record.id).collect()
    }

    async fn called(&self) {
        eventually("the sink is called", async || !self.calls.lock().unwrap().is_empty()).await;
    }

    /// The endpoints of the acknowledged records, in order.
    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Checks that every acknowledged record was acknowledged once and is in the log.
    fn assert_each_once(&self, expected: usize) {
        let ids = self.acknowledged.lock().unwrap();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "acknowledged twice");
        assert_eq!((ids.len(), self.log.len()), (expected, expected));
    }
}

#[async_trait]
impl AuditSink for Sink {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        self.calls.lock().unwrap().push(batch.to_vec());
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let planned = self.plan.lock().unwrap().pop_front();
        let mut answer = planned.unwrap_or(*self.then.lock().unwrap());
        if answer == Answer::Write && batch.iter().any(|record| endpoint(record) == Some("/bad")) {
            answer = *self.bad.lock().unwrap();
        }
        if matches!(answer, Answer::Write | Answer::WriteAndHang) {
            self.log.record(batch).await?;
        }
        match answer {
            Answer::Write => {
                self.acknowledged.lock().unwrap().extend(batch.iter().map(|record| record.id));
                Ok(())
            }
            Answer::Err => Err(AuditError::unavailable("disk full")),
            Answer::Reject => Err(AuditError::rejected("too long for its column")),
            Answer::Hang | Answer::WriteAndHang => pending().await,
            Answer::Panic => panic!("the sink of a test panics"),
        }
    }
}

fn request(record: &AuditRecord) -> Option<&RequestEvent> {
    match &record.event {
        AuditEvent::Request(request) => Some(request),
        _ => None,
    }
}

fn endpoint(record: &AuditRecord) -> Option<&str> {
    request(record).map(|request| &*request.endpoint)
}

/// A manager that writes to such a sink, and a key.
struct Bench {
    store: Arc<MemoryStore>,
    sink: Arc<Sink>,
    keys: KeyManager,
    secret: String,
    id: KeyId,
}

async fn bench(delivery: Delivery) -> Bench {
    bench_with(delivery, |builder| builder).await
}

async fn bench_with(
    delivery: Delivery,
    more: impl FnOnce(KeyManagerBuilder) -> KeyManagerBuilder,
) -> Bench {
    let (store, sink) = (Arc::new(MemoryStore::new()), Arc::new(Sink::default()));
    // The key is created elsewhere, so that the sink has seen no record yet.
    let maker = KeyManager::builder(store.clone()).build().unwrap();
    let issued = maker.create(&ada(), new_key()).await.unwrap();
    let builder = KeyManager::builder(store.clone()).audit_sink(sink.clone()).delivery(delivery);
    let keys = more(builder).build().unwrap();
    let secret = issued.secret.expose_secret().to_owned();
    Bench { store, sink, keys, secret, id: issued.key.id }
}

impl Bench {
    async fn admit(&self, path: &str) -> Result<Admission, AdmitError> {
        self.keys.admit(&self.secret, get(path)).await
    }

    /// A whole request.
    async fn handle(&self, path: &str) -> Result<(), AdmitError> {
        Ok(self.admit(path).await?.finish(200).await?)
    }

    async fn key(&self) -> Arc<ApiKey> {
        self.store.get(&org("acme"), &self.id).await.unwrap().unwrap()
    }

    async fn requests(&self) -> Vec<RequestEvent> {
        let query = AuditQuery::new(org("acme"), AuditScope::KeyRequests(self.id)).limit(200);
        let page = self.sink.log.page(&query).await.unwrap();
        page.records.iter().rev().filter_map(request).cloned().collect()
    }

    /// Waits until the queue is empty and checks that nothing is missing.
    async fn settled(&self, made: u64) -> AuditStats {
        eventually("all is written or given up", async || {
            let stats = self.keys.audit_stats();
            stats.queued == 0 && stats.written + stats.shed + stats.failed >= made
        })
        .await;
        let stats = self.keys.audit_stats();
        assert_eq!(stats.written + stats.shed + stats.failed, made, "{stats:?}");
        stats
    }
}
