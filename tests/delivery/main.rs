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
mod shutdown;
mod strict;
#[path = "../support/mod.rs"]
mod support;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use keygate::audit::{AuditEvent, AuditQuery, AuditRecord, AuditScope, AuditStats, RequestEvent};
use keygate::manager::{Admission, AdmitError, KeyManagerBuilder, RequestInfo};
use keygate::*;
use support::{PATIENCE, SpySink, eventually, org, soon};
use tokio::task::JoinHandle;

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

fn request(record: &AuditRecord) -> Option<&RequestEvent> {
    match &record.event {
        AuditEvent::Request(request) => Some(request),
        _ => None,
    }
}

/// Shuts down and writes everything in time.
async fn shut_down(keys: &KeyManager) {
    let report = soon(keys.shutdown(PATIENCE)).await;
    assert!(report.is_complete(), "{report:?}");
}

/// A manager, its store and sink, and a key.
struct Bench {
    store: Arc<MemoryStore>,
    sink: Arc<SpySink>,
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
    let (store, sink) = (Arc::new(MemoryStore::new()), Arc::new(SpySink::default()));
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

    async fn handle_times(&self, times: usize) {
        for _ in 0..times {
            self.handle("/").await.unwrap();
        }
    }

    /// Clients that each send requests until one fails.
    fn clients(&self, clients: usize, requests: usize) -> Vec<JoinHandle<Result<(), AdmitError>>> {
        let client = |_| {
            let (keys, secret) = (self.keys.clone(), self.secret.clone());
            tokio::spawn(async move {
                for _ in 0..requests {
                    keys.admit(&secret, get("/")).await?.finish(200).await?;
                    tokio::task::yield_now().await;
                }
                Ok(())
            })
        };
        (0..clients).map(client).collect()
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
