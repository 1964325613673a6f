//! The health report.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keygate::audit::{AuditPage, AuditQuery, AuditScope, UsageBucket, UsageQuery};
use keygate::manager::RequestInfo;
use keygate::*;

use crate::support::{Call, Sink, SpySink, eventually, org, soon};
use crate::{ada, assert_unavailable, bench, bench_with, concurrently, fail, hold, rename, works};

#[tokio::test]
async fn health_reports_for_each_part_whether_it_works_and_why_not() {
    let b = bench();
    let health = b.keys.health().await;
    assert!(health.works() && works(&health) == [true; 3], "{health:?}");
    assert_eq!((health.changes.to_string(), health.changes.error()), ("works".into(), None));

    // Reads work while no change can be written.
    fail(&b.store, &[Call::Uses], || StoreError::unavailable("the disk is full"));
    eventually("changes do not work", async || !b.keys.health().await.changes.works()).await;
    let health = b.keys.health().await;
    assert_eq!((health.works(), works(&health)), (false, [true, false, true]));
    assert_eq!(health.changes.error(), Some("the key store is unavailable: the disk is full"));

    fail(&b.store, &[Call::Find], || StoreError::unavailable("no route"));
    eventually("changes work again", async || b.keys.health().await.changes.works()).await;
    assert_eq!(works(&b.keys.health().await), [false, true, true]);
    b.store.heal();
    assert!(b.keys.health().await.works());

    assert!(b.keys.shutdown(Duration::from_secs(20)).await.is_complete());
    let health = b.keys.health().await;
    assert_eq!(works(&health), [true, false, false], "{health:?}");
}

#[tokio::test]
async fn health_reports_last_used_times_that_cannot_be_written() {
    let b = bench();
    let issued = b.create().await;
    fail(&b.store, &[Call::Uses], || StoreError::unavailable("the disk is full"));
    b.verify(&issued).await.unwrap();
    let last_uses = async || b.keys.health().await.last_uses;
    eventually("they fail", async || !last_uses().await.works()).await;
    assert_eq!(last_uses().await.error(), Some("the key store is unavailable: the disk is full"));
    b.store.heal();
    eventually("they are written", async || last_uses().await.works()).await;
    assert!(b.snapshot().await[0].last_used_at.is_some());
}

#[tokio::test]
async fn health_says_how_many_records_wait_and_when_the_last_was_written() {
    let sink = Arc::new(SpySink::default());
    let b = bench_with(|builder| {
        let delivery = Delivery::buffered().capacity(100).linger(Duration::ZERO);
        builder.audit_sink(sink.clone()).delivery(delivery)
    });
    let queue = async || b.keys.health().await.audit_queue;
    let before = queue().await;
    assert_eq!((before.queued, before.capacity, before.last_written), (0, 100, None));
    let issued = b.create().await;
    assert!(queue().await.last_written.is_some());
    sink.hold(true);
    for _ in 0..5 {
        let request = RequestInfo::new("GET", "/");
        let admitted = b.keys.admit(issued.secret.expose_secret(), request).await.unwrap();
        admitted.finish(200).await.unwrap();
    }
    assert_eq!(queue().await.queued, 5);
    sink.hold(false);
    eventually("they are written", async || queue().await.queued == 0).await;
}

#[tokio::test]
async fn health_answers_while_changes_hang() {
    let b = bench_with(|builder| builder.store_deadline(Duration::from_secs(24 * 60 * 60)));
    let _held = hold(&b.store, Call::Uses);
    let health = soon(b.keys.health()).await;
    assert_eq!(works(&health), [true, false, true]);
    assert_eq!(health.changes.error(), Some("no answer in 500ms"));
}

#[tokio::test]
async fn health_reports_a_failing_audit_log_and_its_recovery() {
    let sink = Arc::new(SpySink::default());
    let b = bench_with(|builder| {
        builder
            .audit_sink(sink.clone())
            .delivery(Delivery::strict().deadline(Duration::from_millis(50)))
    });
    let id = b.create().await.key.id;
    assert!(b.keys.health().await.works());
    for how in [Sink::Fails, Sink::Hangs, Sink::Panics] {
        sink.sink(how);
        assert_unavailable(soon(b.keys.update(&ada(), &id, KeyPatch::revoke())).await);
        eventually("the log fails", async || !b.keys.health().await.audit_log.works()).await;
        assert_eq!(works(&b.keys.health().await), [true, true, false], "{how:?}");
        sink.sink(Sink::Works);
        // The remaining records are written on the next attempt.
        b.keys.update(&ada(), &id, rename(&format!("{how:?}"))).await.unwrap();
        eventually("the log works", async || b.keys.health().await.works()).await;
    }
}

#[tokio::test]
async fn health_reports_a_full_audit_queue() {
    let sink = Arc::new(SpySink::default());
    let b = bench_with(|builder| {
        builder.audit_sink(sink.clone()).delivery(Delivery::buffered().capacity(3))
    });
    let issued = b.create().await;
    sink.sink(Sink::Hangs);
    for _ in 0..3 {
        assert!(b.keys.health().await.works());
        let request = RequestInfo::new("GET", "/");
        let admitted = b.keys.admit(issued.secret.expose_secret(), request).await.unwrap();
        admitted.finish(200).await.unwrap();
    }
    let health = b.keys.health().await;
    assert!(!health.audit_log.works() && health.lookups.works(), "{health:?}");
}

#[tokio::test]
async fn a_flood_of_health_checks_probes_changes_once_a_second() {
    let b = bench();
    let uses = || b.store.uses.lock().unwrap().len();
    let begun = Instant::now();
    for _ in 0..50 {
        let check = |_| {
            let keys = b.keys.clone();
            async move { keys.health().await.works() }
        };
        assert!(concurrently(20, check).await.into_iter().all(|works| works));
    }
    assert!((1..=1 + begun.elapsed().as_secs()).contains(&(uses() as u64)), "{}", uses());
}

#[tokio::test]
async fn concurrent_health_checks_share_an_answer_and_a_dropped_one_delays_no_other() {
    let b = bench();
    let held = hold(&b.store, Call::Uses);
    let ask = || {
        let keys = b.keys.clone();
        tokio::spawn(async move { keys.health().await.works() })
    };
    let first = ask();
    let uses = || b.store.uses.lock().unwrap().len();
    eventually("it asks", async || uses() == 1).await;
    let others = [ask(), ask(), ask()];
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    eventually("another asks", async || uses() == 2).await;
    held.add_permits(1);
    for other in others {
        assert!(soon(other).await.unwrap());
    }
    assert_eq!(uses(), 2);
}

#[derive(Debug)]
struct HungLog;

#[async_trait]
impl AuditLog for HungLog {
    async fn page(&self, _: &AuditQuery) -> Result<AuditPage, AuditError> {
        pending().await
    }
    async fn usage(&self, _: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        pending().await
    }
    async fn purge_before(&self, _: Timestamp) -> Result<u64, AuditError> {
        pending().await
    }
}

#[tokio::test]
async fn case_32_an_audit_log_that_cannot_be_read_is_unavailable_within_the_deadline() {
    let b =
        bench_with(|builder| builder.audit_log(HungLog).store_deadline(Duration::from_millis(30)));
    let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
    let page = soon(b.keys.audit_page(&query)).await;
    assert_unavailable(page.unwrap());
    let id = b.create().await.key.id;
    assert_unavailable(soon(b.keys.usage(&org("acme"), &id, 1)).await.unwrap());
}
