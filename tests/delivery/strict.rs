//! Strict delivery: a record is acknowledged before the answer leaves.

use std::future::Future;
use std::pin::{Pin, pin};

use keygate::audit::{AuditRecord, AuditStats, Outcome, RequestEvent};
use keygate::error::DeliveryError;
use keygate::manager::AdmitError;
use keygate::*;

use crate::support::{Sink, capture_logs, eventually, log_lines, soon};
use crate::{ada, bench, bench_with, get, millis, poll_once, shut_down};

#[tokio::test]
async fn strict_an_answer_leaves_only_after_its_record_is_acknowledged() {
    let b = bench(Delivery::strict()).await;
    b.sink.hold(true);
    let admission = b.admit("/v1/a").await.unwrap();
    let mut finish = pin!(admission.finish(418));
    assert!(poll_once(finish.as_mut()).is_none());
    b.sink.called().await;
    assert!(poll_once(finish.as_mut()).is_none(), "the sink holds the record and has not answered");
    assert_eq!(b.keys.audit_stats().queued, 1);
    b.sink.hold(false);
    soon(finish).await.unwrap();
    assert_eq!((b.sink.len(), b.keys.audit_stats().written), (1, 1));
    let expected = {
        let mut event = RequestEvent::new("GET", "/v1/a", Outcome::Allowed);
        event.ip = "192.0.2.1".parse().ok();
        event.status = Some(418);
        event
    };
    assert_eq!(b.requests().await, [expected]);
}

#[tokio::test]
async fn strict_a_refusal_waits_for_its_record_too() {
    let b = bench(Delivery::strict()).await;
    b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await.unwrap();
    b.sink.calls.lock().unwrap().clear();
    b.sink.hold(true);
    let mut refused = pin!(b.admit("/v1/a"));
    assert!(poll_once(refused.as_mut()).is_none());
    b.sink.called().await;
    assert!(poll_once(refused.as_mut()).is_none());
    b.sink.hold(false);
    let refused = soon(refused).await.unwrap_err();
    assert!(matches!(
        refused,
        AdmitError::Refused(VerifyError::Denied { denial: Denial::Revoked, .. })
    ));
    let record = &b.requests().await[0];
    assert_eq!((record.status, record.outcome), (Some(401), Outcome::Revoked));
}

#[tokio::test]
async fn refusals_of_a_known_key_are_recorded_and_unknown_keys_are_not() {
    let clock = Timestamp::from(std::time::SystemTime::now());
    let b = bench(Delivery::strict()).await;
    let stranger = bench(Delivery::strict()).await.secret;
    assert!(b.keys.admit(&stranger, get("/unknown")).await.is_err());
    assert!(b.keys.admit("junk", get("/malformed")).await.is_err());
    assert_eq!((b.sink.sizes(), b.keys.audit_stats()), (vec![], AuditStats::default()));

    let edit = async |change: fn(&mut ApiKey)| {
        let key = b.key().await;
        let mut edited = ApiKey { revision: key.revision.next(), ..ApiKey::clone(&key) };
        change(&mut edited);
        b.store.replace(&edited, key.revision).await.unwrap();
    };
    type Edit = fn(&mut ApiKey);
    let changes: [(&str, u16, Edit); 4] = [
        ("/1", 401, |key| key.status = Status::Revoked),
        ("/2", 401, |key| {
            (key.status, key.expires_at) = (Status::Active, Some(key.created_at));
        }),
        ("/3", 403, |key| {
            key.expires_at = None;
            key.allowlist = Allowlist::parse(["10.0.0.0/8"]).unwrap();
        }),
        ("/4", 403, |key| key.allowlist = Allowlist::restore(["?"])),
    ];
    for (path, status, change) in changes {
        edit(change).await;
        assert_eq!(b.admit(path).await.unwrap_err().http_status(), status, "{path}");
    }
    let records = b.requests().await;
    let logged: Vec<_> = records.iter().map(|r| (&*r.endpoint, r.status, r.outcome)).collect();
    assert_eq!(
        logged,
        [
            ("/1", Some(401), Outcome::Revoked),
            ("/2", Some(401), Outcome::Expired),
            ("/3", Some(403), Outcome::IpNotAllowed),
            ("/4", Some(403), Outcome::IpNotAllowed),
        ]
    );
    let times = b.sink.calls.lock().unwrap().concat();
    assert!(times.iter().all(|record| record.at >= clock && record.key == b.id));
}

#[tokio::test]
async fn case_35_strict_a_sink_that_errs_hangs_or_panics_is_an_error_and_the_next_record_is_written()
 {
    capture_logs();
    let b = bench(Delivery::strict().deadline(millis(100))).await;
    let mut made = 0;
    for answer in [Sink::Fails, Sink::Rejects, Sink::Panics, Sink::Hangs, Sink::WritesAndHangs] {
        b.sink.plan([answer]);
        let admission = b.admit("/v1/a").await.unwrap();
        soon(admission.finish(200)).await.expect_err(&format!("{answer:?}"));
        let stats = b.settled(made + 1).await;
        assert_eq!(stats.failed, made / 2 + 1, "{answer:?}");
        b.handle("/v1/b").await.unwrap();
        made += 2;
    }
    let parts = ["ERROR", "audit records were not written", "records=1", "disk full"];
    assert_eq!(log_lines(&parts), 1, "the cause is logged for the operator");
    assert_eq!(log_lines(&parts[..2]), 1, "a repeated log line is throttled");

    // A refusal whose record fails is a 503 and reveals nothing about the key.
    b.keys.update(&ada(), &b.id, KeyPatch::revoke()).await.unwrap();
    for answer in [Sink::Fails, Sink::Rejects, Sink::Panics, Sink::Hangs] {
        b.sink.plan([answer]);
        let refused = soon(b.admit("/v1/c")).await.unwrap_err();
        assert!(matches!(refused, AdmitError::NotRecorded(_)), "{answer:?}: {refused:?}");
        assert_eq!(refused.http_status(), 503);
    }
}

/// Panics before it returns a future.
#[derive(Debug)]
struct PanicsAtOnce;

impl AuditSink for PanicsAtOnce {
    fn record<'a, 'b, 'async_trait>(
        &'a self,
        _: &'b [AuditRecord],
    ) -> Pin<Box<dyn Future<Output = Result<(), AuditError>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        'b: 'async_trait,
        Self: 'async_trait,
    {
        panic!("the sink of a test panics at once")
    }
}

#[tokio::test]
async fn case_35_a_sink_that_panics_before_it_returns_a_future_does_not_end_the_writer() {
    let b = bench_with(Delivery::strict(), |builder| builder.audit_sink(PanicsAtOnce)).await;
    for made in 1..4 {
        assert!(soon(b.handle("/")).await.is_err());
        assert_eq!(b.settled(made).await.failed, made);
    }
    shut_down(&b.keys).await;
}

#[tokio::test]
async fn strict_records_of_concurrent_requests_share_batches() {
    let b = bench(Delivery::strict().batch(60)).await;
    b.sink.hold(true);
    let requests = b.clients(100, 1);
    eventually("all wait", async || b.keys.audit_stats().queued == 100).await;
    b.sink.hold(false);
    for request in requests {
        soon(request).await.unwrap().unwrap();
    }
    b.sink.assert_each_once(100);
    let sizes = b.sink.sizes();
    assert!(sizes.len() <= 3 && sizes.iter().all(|size| *size <= 60), "{sizes:?}");
}

#[tokio::test]
async fn strict_a_full_queue_refuses_at_once_and_no_request_is_recorded_as_admitted() {
    let b = bench(Delivery::strict().capacity(2)).await;
    b.sink.hold(true);
    let (one, other) = (b.admit("/1").await.unwrap(), b.admit("/2").await.unwrap());
    let (mut one, mut other) = (pin!(one.finish(200)), pin!(other.finish(200)));
    assert!(poll_once(one.as_mut()).is_none() && poll_once(other.as_mut()).is_none());
    let refused = poll_once(pin!(b.admit("/3"))).expect("at once").unwrap_err();
    assert!(matches!(refused, AdmitError::NotRecorded(DeliveryError::Full)), "{refused:?}");
    b.sink.hold(false);
    soon(one).await.unwrap();
    soon(other).await.unwrap();
    b.handle("/4").await.unwrap();
    b.settled(3).await;
    b.sink.assert_each_once(3);
}
