//! Buffered delivery: batches, retries and rejected records.

use std::pin::pin;
use std::sync::Arc;

use keygate::audit::{AuditQuery, AuditScope};
use keygate::*;

use crate::support::{Sink, capture_logs, eventually, log_lines, org};
use crate::{ada, bench, get, millis, new_key, poll_once, request};

#[tokio::test]
async fn buffered_a_request_does_not_wait_and_its_record_follows() {
    let log = Arc::new(MemoryAuditLog::new());
    let keys = KeyManager::builder(MemoryStore::new()).audit(log).build().unwrap();
    let issued = keys.create(&ada(), new_key()).await.unwrap();
    let admit = keys.admit(issued.secret.expose_secret(), get("/v1/a"));
    let admission = poll_once(pin!(admit)).expect("admitted at once").unwrap();
    poll_once(pin!(admission.finish(200))).expect("finished at once").unwrap();
    let query = AuditQuery::new(org("acme"), AuditScope::KeyRequests(issued.key.id));
    let records = eventually("the record is written", async || {
        let page = keys.audit_page(&query).await.unwrap().unwrap();
        (!page.records.is_empty()).then_some(page.records)
    })
    .await;
    assert_eq!((records.len(), &*request(&records[0]).unwrap().endpoint), (1, "/v1/a"));
}

#[tokio::test]
async fn buffered_records_are_written_in_batches_of_the_configured_size() {
    let b = bench(Delivery::buffered().batch(10)).await;
    b.handle_times(95).await;
    b.settled(95).await;
    b.sink.assert_each_once(95);
    let sizes = b.sink.sizes();
    assert_eq!((sizes.iter().sum::<usize>(), sizes.iter().max()), (95, Some(&10)));

    let b = bench(Delivery::buffered()).await;
    b.handle_times(95).await;
    b.settled(95).await;
    assert!(b.sink.sizes().len() <= 2, "{:?}", b.sink.sizes());
}

#[tokio::test]
async fn case_35_buffered_a_failing_sink_is_retried_until_every_record_is_written_once() {
    let b = bench(Delivery::buffered().batch(7).deadline(millis(100))).await;
    b.sink.plan([Sink::Fails, Sink::Fails, Sink::Hangs, Sink::Works, Sink::Fails]);
    b.handle_times(50).await;
    let stats = b.settled(50).await;
    assert_eq!((stats.written, stats.failed, stats.shed), (50, 0, 0));
    b.sink.assert_each_once(50);
    let calls = b.sink.calls.lock().unwrap();
    for retry in &calls[1..4] {
        assert_eq!(retry[..calls[0].len()], calls[0], "in the original order");
    }
}

#[tokio::test]
async fn case_35_buffered_a_batch_that_timed_out_is_written_again_with_the_same_ids() {
    let b = bench(Delivery::buffered().deadline(millis(50))).await;
    b.sink.plan([Sink::WritesAndHangs]);
    b.handle_times(5).await;
    assert_eq!(b.settled(5).await.written, 5);
    assert_eq!(b.sink.sizes(), [5, 5]);
    let calls = b.sink.calls.lock().unwrap();
    assert_eq!(calls[0], calls[1]);
    b.sink.assert_each_once(5);
}

#[tokio::test]
async fn case_35_buffered_a_rejected_record_is_counted_and_delays_no_other() {
    for answer in [Sink::RejectsAt("/bad"), Sink::PanicsAt("/bad")] {
        capture_logs();
        let b = bench(Delivery::buffered()).await;
        b.sink.sink(answer);
        for path in ["/1", "/bad", "/2", "/3", "/bad", "/4"] {
            b.handle(path).await.unwrap();
        }
        let stats = b.settled(6).await;
        assert_eq!((stats.written, stats.failed), (4, 2), "{answer:?}");
        b.sink.assert_each_once(4);
        let arrived: Vec<_> = b.requests().await.into_iter().map(|r| r.endpoint).collect();
        assert_eq!(arrived, ["/1", "/2", "/3", "/4"].map(Into::into));
        assert_eq!(log_lines(&["ERROR", "not written", "records=1"]), 1, "throttled");
        b.handle("/5").await.unwrap();
        b.settled(7).await;
    }
}

#[tokio::test]
async fn case_35_buffered_a_sink_that_fails_during_the_search_for_the_bad_record_loses_nothing() {
    let b = bench(Delivery::buffered().deadline(millis(50))).await;
    let rejects = Sink::RejectsAt("/bad");
    b.sink.sink(rejects);
    // The whole batch is rejected because of its bad record. Then the records are tried one by
    // one: an error, the bad one, a hang, and one that is written.
    b.sink.plan([rejects, Sink::Fails, rejects, Sink::Hangs]);
    for path in ["/1", "/bad", "/2", "/3"] {
        b.handle(path).await.unwrap();
    }
    let stats = b.settled(4).await;
    assert_eq!((stats.written, stats.failed), (3, 1));
    b.sink.assert_each_once(3);
}

#[tokio::test]
async fn a_strict_record_among_buffered_ones_fails_alone() {
    let b = bench(Delivery::buffered().deadline(millis(200))).await;
    b.sink.plan([Sink::Fails]);
    b.handle_times(3).await;
    // The change is strict: it fails while the requests are retried. Its record may have been
    // written, so another record marks it as abandoned.
    let failed = b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await;
    assert!(matches!(failed, Err(ManageError::Unavailable(_))), "{failed:?}");
    let stats = b.settled(5).await;
    assert_eq!((stats.written, stats.failed), (4, 1));
    b.sink.assert_each_once(4);
    assert_eq!(b.key().await.status, Status::Active);
}
