//! A full queue: requests wait, or records are shed.

use std::pin::pin;
use std::time::Duration;

use keygate::audit::WhenFull;
use keygate::error::DeliveryError;
use keygate::manager::AdmitError;
use keygate::*;

use crate::support::{PATIENCE, Sink, capture_logs, eventually, log_lines, soon};
use crate::{ada, bench, get, millis, poll_once, request, shut_down};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_a_burst_of_100_000_through_64_places_loses_none() {
    let b = bench(Delivery::buffered().capacity(64).deadline(Duration::from_secs(60))).await;
    for client in b.clients(50, 2_000) {
        tokio::time::timeout(PATIENCE * 6, client).await.unwrap().unwrap().unwrap();
    }
    assert_eq!(b.settled(100_000).await.written, 100_000);
    b.sink.assert_each_once(100_000);
    // 64 places, and at most one record of each client that was admitted in the meantime.
    assert!(b.sink.sizes().iter().all(|size| *size <= 64 + 50));
}

#[tokio::test]
async fn case_35_wait_with_a_hanging_sink_requests_are_refused_in_time_and_all_are_counted() {
    let b = bench(Delivery::buffered().capacity(8).deadline(millis(100))).await;
    b.sink.sink(Sink::Hangs);
    let (mut admitted, mut refused) = (0, 0);
    for request in b.clients(40, 1) {
        match soon(request).await.unwrap() {
            Ok(()) => admitted += 1,
            Err(error) => {
                assert!(matches!(error, AdmitError::NotRecorded(DeliveryError::Full)), "{error}");
                assert_eq!(error.http_status(), 503);
                refused += 1;
            }
        }
    }
    assert_eq!((admitted, refused), (8, 32));
    let stats = b.keys.audit_stats();
    assert_eq!((stats.queued, stats.written, stats.failed, stats.shed), (8, 0, 0, 0));
    b.sink.sink(Sink::Works);
    assert_eq!(b.settled(8).await.written, 8);
    b.handle("/").await.expect("the sink works again");
}

#[tokio::test]
async fn requests_that_never_end_delay_neither_requests_nor_a_revocation() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let b = bench(delivery.capacity(1).deadline(millis(200))).await;
        let mut under_way = Vec::new();
        for _ in 0..5 {
            under_way.push(b.admit("/endless").await.expect("the queue is empty"));
        }
        b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await.expect("a change goes through");
        // Each of them finds room for its record when it ends.
        drop(under_way);
        assert_eq!(b.settled(6).await.written, 6);
    }
}

#[tokio::test]
async fn wait_the_first_waiting_request_gets_the_first_free_place() {
    let b = bench(Delivery::buffered().capacity(1)).await;
    b.handle("/1").await.unwrap();
    let mut second = pin!(b.admit("/2"));
    assert!(poll_once(second.as_mut()).is_none(), "the queue is full");
    b.settled(1).await;
    let second = poll_once(second.as_mut()).expect("there is").unwrap();
    second.finish(200).await.unwrap();
    assert!(poll_once(pin!(b.admit("/3"))).is_none(), "the queue is full again");
    // The third request gave up while it waited, and is counted too.
    let stats = b.settled(3).await;
    assert_eq!((stats.written, stats.failed), (2, 1));
}

#[tokio::test]
async fn wait_no_request_waits_for_room_while_the_writer_gathers_a_batch() {
    let delivery = Delivery::buffered().capacity(4).linger(Duration::from_secs(60));
    let b = bench(delivery.deadline(millis(300))).await;
    let slow = b.admit("/slow").await.unwrap();
    for _ in 0..12 {
        b.handle("/").await.expect("the sink works and can make room");
    }
    slow.finish(200).await.unwrap();
    shut_down(&b.keys).await;
    b.sink.assert_each_once(13);
}

#[tokio::test]
async fn shed_with_a_blocked_sink_no_request_waits_and_exactly_the_excess_is_shed() {
    capture_logs();
    let delivery = Delivery::buffered().capacity(10).batch(4).when_full(WhenFull::Shed);
    let b = bench(delivery).await;
    b.sink.hold(true);
    for at in 0..50 {
        if at == 10 {
            b.sink.called().await; // the batch that the sink holds counts as well
        }
        let admission = poll_once(pin!(b.admit("/"))).expect("admitted at once").unwrap();
        poll_once(pin!(admission.finish(200))).expect("finished at once").unwrap();
    }
    let stats = b.keys.audit_stats();
    assert_eq!((stats.queued, stats.shed, stats.written, stats.failed), (10, 40, 0, 0));
    assert_eq!(log_lines(&["WARN", "records are dropped"]), 1, "no flood of log lines");
    b.sink.hold(false);
    let stats = b.settled(50).await;
    assert_eq!((stats.written, stats.shed), (10, 40));
    b.handle("/").await.unwrap();
    assert_eq!(b.settled(51).await.written, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shed_a_burst_of_100_000_counts_every_lost_record() {
    let b = bench(Delivery::buffered().capacity(1_024).when_full(WhenFull::Shed)).await;
    for client in b.clients(4, 25_000) {
        tokio::time::timeout(PATIENCE * 6, client).await.unwrap().unwrap().unwrap();
    }
    shut_down(&b.keys).await;
    let stats = b.keys.audit_stats();
    assert_eq!((stats.written + stats.shed, stats.failed, stats.queued), (100_000, 0, 0));
    b.sink.assert_each_once(usize::try_from(stats.written).unwrap());
}

#[tokio::test]
async fn shed_changes_and_strict_records_are_never_shed() {
    let b = bench(Delivery::buffered().capacity(1).when_full(WhenFull::Shed)).await;
    b.sink.hold(true);
    b.handle("/").await.unwrap();
    b.sink.called().await;
    let ada = ada();
    let mut change = pin!(b.keys.update(&ada, &b.id, KeyPatch::revoke()));
    assert!(poll_once(change.as_mut()).is_none());
    b.sink.hold(false);
    soon(change).await.unwrap();
    let stats = b.settled(2).await;
    assert_eq!((stats.written, stats.shed), (2, 0));

    let b = bench(Delivery::strict().capacity(1).when_full(WhenFull::Shed)).await;
    b.sink.hold(true);
    let mut held = pin!(b.admit("/").await.unwrap().finish(200));
    assert!(poll_once(held.as_mut()).is_none());
    assert!(b.admit("/").await.is_err());
    b.sink.hold(false);
    soon(held).await.unwrap();
    assert_eq!(b.settled(1).await.shed, 0);
}

#[tokio::test]
async fn a_change_waits_for_no_batch_of_requests_and_needs_none_of_their_room() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let b = bench(delivery.capacity(30).batch(5)).await;
        b.sink.hold(true);
        for _ in 0..30 {
            drop(b.admit("/").await.unwrap());
        }
        b.sink.called().await;
        let refused = b.keys.admit(&b.secret, get("/"));
        assert!(poll_once(pin!(refused)).is_none_or(|full| full.is_err()), "the queue is full");
        let ada = ada();
        let mut change = pin!(b.keys.update(&ada, &b.id, KeyPatch::revoke()));
        assert!(poll_once(change.as_mut()).is_none());
        eventually("the change is on its way", async || b.sink.batches() == 2).await;
        let last = b.sink.calls.lock().unwrap().last().cloned().unwrap();
        assert!(last.len() == 1 && request(&last[0]).is_none(), "{last:?}");
        b.sink.hold(false);
        soon(change).await.unwrap();
    }
}
