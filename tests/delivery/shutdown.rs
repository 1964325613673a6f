//! Requests that never end, and shutdown.

use std::pin::pin;
use std::time::Duration;

use keygate::audit::{Outcome, WhenFull};
use keygate::error::DeliveryError;
use keygate::manager::AdmitError;
use keygate::*;

use crate::support::{PATIENCE, Sink, capture_logs, eventually, log_lines, soon};
use crate::{Bench, ada, bench, millis, poll_once, shut_down};

#[tokio::test]
async fn case_36_a_request_that_is_dropped_leaves_a_record_marked_aborted() {
    for delivery in
        [Delivery::strict(), Delivery::buffered(), Delivery::buffered().when_full(WhenFull::Shed)]
    {
        let b = bench(delivery.clone()).await;
        drop(b.admit("/dropped").await.unwrap());
        // A `finish` that is never polled does not count.
        drop(b.admit("/unpolled").await.unwrap().finish(200));
        b.settled(2).await;
        let records = b.requests().await;
        let logged: Vec<_> = records.iter().map(|r| (&*r.endpoint, r.status, r.outcome)).collect();
        let aborted = |path| (path, None, Outcome::Aborted);
        assert_eq!(logged, [aborted("/dropped"), aborted("/unpolled")], "{delivery:?}");
    }
}

#[tokio::test]
async fn case_36_an_answer_whose_client_is_gone_is_recorded() {
    let b = bench(Delivery::strict()).await;
    b.sink.hold(true);
    {
        let mut finish = pin!(b.admit("/").await.unwrap().finish(200));
        assert!(poll_once(finish.as_mut()).is_none());
    }
    b.sink.hold(false);
    b.settled(1).await;
    assert_eq!(b.requests().await[0].outcome, Outcome::Allowed);
}

#[tokio::test]
async fn case_36_an_aborted_request_is_recorded_even_if_the_queue_is_full() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let b = bench(delivery.capacity(3).deadline(millis(50))).await;
        b.sink.hold(true);
        let mut open = Vec::new();
        for at in 0..5 {
            open.push(b.admit(&format!("/{at}")).await.unwrap());
        }
        drop(open.drain(..3));
        assert!(b.admit("/full").await.is_err());
        drop(open);
        assert_eq!(b.keys.audit_stats().queued, 5);
        b.sink.hold(false);
        b.settled(5).await;
        let outcomes: Vec<_> = b.requests().await.iter().map(|r| r.outcome).collect();
        assert_eq!(outcomes, [Outcome::Aborted; 5]);
    }
}

#[tokio::test]
async fn case_37_shutdown_writes_the_queue_and_then_refuses_requests_and_changes() {
    for delivery in [
        Delivery::strict(),
        Delivery::buffered().linger(Duration::from_secs(60)),
        Delivery::buffered().linger(Duration::from_secs(60)).when_full(WhenFull::Shed),
    ] {
        let b = bench(delivery.clone().batch(10)).await;
        for _ in 0..35 {
            drop(b.admit("/").await.unwrap());
        }
        shut_down(&b.keys).await;
        b.sink.assert_each_once(35);
        let late = b.admit("/").await.map(|admission| admission.key().clone());
        let refused = late.expect_err(&format!("{delivery:?}"));
        assert!(matches!(refused, AdmitError::NotRecorded(DeliveryError::Closed)));
        assert_eq!(refused.http_status(), 503);
        let change = b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await;
        assert!(matches!(change, Err(ManageError::Unavailable(_))), "{change:?}");
        assert_eq!(b.key().await.status, Status::Active);
        shut_down(&b.keys).await;
        b.sink.assert_each_once(35);
    }
}

#[tokio::test]
async fn case_37_shutdown_waits_for_requests_that_are_still_being_handled() {
    let b = bench(Delivery::buffered()).await;
    let admission = b.admit("/slow").await.unwrap();
    let mut shutdown = pin!(b.keys.shutdown(Duration::from_secs(20)));
    assert!(poll_once(shutdown.as_mut()).is_none());
    b.sink.hold(false);
    tokio::task::yield_now().await;
    assert!(poll_once(shutdown.as_mut()).is_none());
    admission.finish(200).await.unwrap();
    assert!(soon(shutdown).await.is_complete());
    b.sink.assert_each_once(1);
}

#[tokio::test]
async fn case_37_a_request_that_ends_after_shutdown_gave_up_is_counted_as_lost() {
    capture_logs();
    let b = bench(Delivery::buffered()).await;
    let admission = b.admit("/slow").await.unwrap();
    let _ = soon(b.keys.shutdown(millis(50))).await;
    let finished = admission.finish(200).await;
    let stats = b.settled(1).await;
    assert!(stats.written == 1 || finished.is_err() || log_lines(&["ERROR", "not written"]) == 1);
}

#[tokio::test]
async fn case_37_shutdown_gives_up_at_its_deadline_and_reports_the_losses() {
    for (delivery, plan) in [
        (Delivery::buffered().batch(2).deadline(millis(50)), vec![]),
        // It waits neither for a sink with a longer deadline, nor for the search for a
        // rejected record.
        (Delivery::buffered().deadline(PATIENCE * 6), vec![]),
        (Delivery::buffered().deadline(millis(200)), vec![Sink::Rejects]),
    ] {
        capture_logs();
        let b = bench(delivery.clone()).await;
        b.handle("/").await.unwrap();
        b.settled(1).await;
        b.sink.plan(plan);
        b.sink.sink(Sink::Hangs);
        b.handle_times(10).await;
        let report = soon(b.keys.shutdown(millis(300))).await;
        let unwritten = (report.unwritten_records, report.is_complete());
        assert_eq!(unwritten, (10, false), "{delivery:?}");
        let stats = b.keys.audit_stats();
        assert_eq!((stats.failed, stats.queued), (10, 0), "every loss is counted");
        assert!(log_lines(&["ERROR", "audit records were not written"]) >= 1);
    }
}

#[tokio::test]
async fn case_37_a_sink_that_recovers_in_time_gets_every_record_at_shutdown() {
    let b = bench(Delivery::buffered()).await;
    b.sink.plan([Sink::Fails, Sink::Fails, Sink::Fails]);
    b.handle_times(5).await;
    shut_down(&b.keys).await;
    b.sink.assert_each_once(5);
}

#[tokio::test]
async fn a_shutdown_with_the_longest_deadline_does_not_panic() {
    let b = bench(Delivery::buffered()).await;
    b.handle("/").await.unwrap();
    assert!(soon(b.keys.shutdown(Duration::MAX)).await.is_complete());
    b.sink.assert_each_once(1);
}

#[tokio::test]
async fn case_37_dropping_the_last_handle_still_writes_the_queue() {
    let b = bench(Delivery::buffered().linger(Duration::from_secs(60))).await;
    b.handle_times(5).await;
    let admission = b.admit("/open").await.unwrap();
    let other = b.keys.clone();
    let Bench { sink, keys, .. } = b;
    drop(keys);
    drop(other);
    assert_eq!(sink.len(), 0, "an open request keeps the manager alive");
    drop(admission);
    eventually("all is written", async || sink.len() == 6).await;
    sink.assert_each_once(6);
}

#[test]
fn case_37_records_left_when_the_runtime_ends_are_counted_and_logged() {
    // In the middle of a batch, and of the search for a rejected record.
    for plan in [vec![], vec![Sink::Rejects]] {
        capture_logs();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let keys = runtime.block_on(async {
            let b = bench(Delivery::buffered().batch(3)).await;
            b.sink.plan(plan.clone());
            b.sink.sink(Sink::Hangs);
            b.handle_times(5).await;
            eventually("the sink hangs", async || b.sink.sizes().len() > plan.len()).await;
            b.keys
        });
        drop(runtime);
        let stats = keys.audit_stats();
        assert_eq!((stats.failed, stats.queued), (5, 0), "after {plan:?}");
        assert!(log_lines(&["ERROR", "audit records were not written"]) >= 1);
    }
}
