//! Tests of the writer.

use super::*;
use crate::audit::delivery::WhenFull;
use crate::audit::memory::MemoryAuditLog;
use crate::audit::record::Outcome;
use crate::audit::samples::{change, refusal, request};
use crate::key::id::KeyId;
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::BoxFuture;
use futures_channel::oneshot;
use proptest::prelude::*;
use std::future::{Future, pending, ready};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

/// A runtime whose sleeps end at once and are recorded.
#[derive(Debug, Default)]
struct NoTime(Mutex<Vec<Duration>>);

impl Runtime for NoTime {
    fn spawn(&self, _: BoxFuture<'static, ()>) {}

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.lock().unwrap().push(time);
        Box::pin(ready(()))
    }
}

/// A sink that first fails a number of times, then rejects a number of times, and then writes.
/// It never answers for requests while they are locked, like a table.
#[derive(Debug, Default)]
struct Flaky {
    failures: Mutex<usize>,
    rejections: Mutex<usize>,
    requests_are_locked: bool,
    log: MemoryAuditLog,
    written: Mutex<u64>,
}

fn is_left(count: &Mutex<usize>) -> bool {
    let mut count = count.lock().unwrap();
    let left = *count > 0;
    *count = count.saturating_sub(1);
    left
}

#[async_trait::async_trait]
impl AuditSink for Flaky {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        if is_left(&self.failures) {
            return Err(AuditError::unavailable("not yet"));
        } else if is_left(&self.rejections) {
            return Err(AuditError::rejected("too long"));
        }
        let is_request = |record: &AuditRecord| matches!(record.event, AuditEvent::Request(_));
        if self.requests_are_locked && batch.iter().any(is_request) {
            pending::<()>().await;
        }
        *self.written.lock().unwrap() += count(batch);
        self.log.record(batch).await
    }
}

fn accounted(stats: AuditStats) -> u64 {
    stats.written + stats.shed + stats.failed + stats.queued + stats.summed
}

fn poll(work: Pin<&mut impl Future<Output = ()>>) -> bool {
    work.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// A writer whose tasks for requests and for changes are polled by the test.
fn writer(
    delivery: Delivery,
    sink: Arc<dyn AuditSink>,
    runtime: Arc<dyn Runtime>,
) -> (AuditWriter, [Task; 2]) {
    let draft: Draft = Arc::new(|sum| request(0, sum.last.outcome, sum.count));
    let [requests, changes] =
        std::array::from_fn(|_| Task::new(&sink, &None, &delivery, &runtime, &draft));
    let lanes = (requests.lane.clone(), changes.lane.clone());
    let writer = AuditWriter { requests: lanes.0, changes: lanes.1, delivery, runtime };
    (writer, [requests, changes])
}

#[test]
fn retry_pauses_double_up_to_the_longest_and_start_again_after_a_success() {
    let (sink, time) = (Arc::new(Flaky::default()), Arc::new(NoTime::default()));
    let delivery = Delivery::buffered();
    let linger = delivery.linger;
    let (writer, [_, task]) = writer(delivery, sink.clone(), time.clone());
    let mut task = Box::pin(task.run());
    for _ in 0..2 {
        *sink.failures.lock().unwrap() = 8;
        writer.enqueue(None, change(1));
        assert!(!poll(task.as_mut()));
        let pauses = [50, 100, 200, 400, 800, 1_600, 2_000, 2_000].map(Duration::from_millis);
        let slept = std::mem::take(&mut *time.0.lock().unwrap());
        assert_eq!(slept, [&[linger], &pauses[..]].concat());
        assert_eq!(writer.stats().queued, 0);
    }
    assert_eq!(writer.stats().written, 2);
}

#[test]
fn health_reports_since_when_the_sink_fails_and_its_recovery() {
    let (sink, time) = (Arc::new(Flaky::default()), Arc::new(NoTime::default()));
    *sink.failures.lock().unwrap() = 2;
    let (writer, [_, mut task]) = writer(Delivery::buffered().capacity(7), sink, time);
    let health =
        |queued, failing, last_success| AuditHealth { queued, capacity: 7, failing, last_success };
    writer.enqueue(None, change(1));
    assert_eq!(writer.health(), health(1, None, None), "no batch has been written yet");
    task.take();
    assert!(poll(pin!(task.write())));
    let failing = writer.health().failing;
    assert!(failing.is_some());
    assert!(poll(pin!(task.write())));
    assert_eq!(writer.health(), health(1, failing, None), "since the first failure");
    assert!(poll(pin!(task.write())));
    let last_success = writer.health().last_success;
    assert!(last_success.is_some());
    assert_eq!(writer.health(), health(0, None, last_success));
}

#[test]
fn however_the_task_ends_lost_records_are_counted_and_waiting_callers_are_answered() {
    let (sink, time) = (Arc::new(Flaky::default()), Arc::new(NoTime::default()));
    let (writer, [_, mut task]) = writer(Delivery::buffered().batch(2), sink, time);
    let mut acknowledged = Vec::new();
    for number in 0..5 {
        let place = writer.changes.queue.try_reserve(Kind::Other).unwrap();
        acknowledged.push(place.fill_acknowledged(change(number)).unwrap());
    }
    task.take();
    assert_eq!((task.batch.records.len(), writer.stats().queued), (2, 5));
    drop(task);
    let stats = writer.stats();
    assert_eq!((stats.failed, stats.queued, stats.written), (5, 0, 0));
    for mut acknowledged in acknowledged {
        assert!(acknowledged.try_recv().is_err(), "canceled, so that no caller waits forever");
    }
    assert_eq!(writer.changes.queue.try_reserve(Kind::Other).unwrap_err(), DeliveryError::Closed);
    writer.enqueue(None, change(9));
    assert_eq!(writer.stats().failed, 6);
}

proptest! {
    #[test]
    fn only_the_awaited_records_of_a_failed_batch_are_given_up(awaited: Vec<bool>) {
        let mut batch = Batch::default();
        let mut receivers = Vec::new();
        for (at, awaited) in awaited.iter().enumerate() {
            batch.records.push(change(at as u128));
            if *awaited {
                let (ack, acknowledged) = oneshot::channel();
                batch.acks.push((at, ack));
                receivers.push(acknowledged);
            }
        }
        prop_assert_eq!(batch.fail_acknowledged().len(), receivers.len());
        let kept: Vec<_> = (0..).zip(&awaited).filter(|(_, a)| !**a).map(|(n, _)| change(n)).collect();
        prop_assert_eq!(&batch.records, &kept);
        prop_assert!(batch.acks.is_empty());
        for mut acknowledged in receivers {
            let told = acknowledged.try_recv();
            prop_assert_eq!(told, Ok(Some(Err(DeliveryError::Failed))));
        }
    }

    /// For any order of refusals, requests, changes, sink failures, windows and shutdown: each
    /// record is written, shed, given up, queued or in a sum, exactly once.
    #[test]
    fn every_record_is_counted_exactly_once(
        strict: bool,
        sheds: bool,
        capacity in 1usize..9,
        alone in 0u32..4,
        steps in proptest::collection::vec((0u8..9, 0u8..3), 0..100),
        patient: bool,
    ) {
        let (sink, time) = (Arc::new(Flaky::default()), Arc::new(NoTime::default()));
        let delivery = if strict { Delivery::strict() } else { Delivery::buffered() };
        let when_full = if sheds { WhenFull::Shed } else { WhenFull::Wait };
        let delivery = delivery.when_full(when_full).capacity(capacity).batch(3);
        let delivery = delivery.sum_refusals(alone, Duration::from_secs(10));
        let (writer, tasks) = writer(delivery, sink.clone(), time);
        let mut tasks = tasks.map(|task| Box::pin(task.run()));
        let (mut made, mut now, mut places) = (0, Timestamp::MIN, Vec::new());
        for (number, (step, which)) in (0..).zip(steps) {
            let request = request(number, Outcome::Aborted, 1);
            match step {
                0..=2 => {
                    let key = KeyId::from_bytes([which; 16]);
                    // With or without a caller that still waits for it.
                    let _ = writer.refuse(Refusal { key, at: now, ..refusal() }).unwrap();
                    made += 1;
                }
                3 => places.extend(writer.reserve_now().and_then(Result::ok)),
                4 => if let Some(place) = places.pop() {
                    writer.enqueue(place, request);
                    made += 1;
                },
                5 => {
                    writer.enqueue(None, change(number));
                    made += 1;
                }
                6 => *sink.failures.lock().unwrap() += usize::from(which),
                7 => *sink.rejections.lock().unwrap() += usize::from(which),
                _ if which == 0 => now = now.saturating_add(Duration::from_secs(10)),
                _ => for task in &mut tasks {
                    prop_assert!(!poll(task.as_mut()));
                },
            }
            prop_assert_eq!(accounted(writer.stats()), made);
        }
        let end = Duration::from_secs(if patient { 3_600 } else { 0 });
        writer.close(end);
        prop_assert!(writer.refuse(refusal()).is_err());
        let open = places.len() as u64;
        places.into_iter().for_each(|place| {
            writer.enqueue(place, request(0, Outcome::Aborted, 1));
        });
        for task in &mut tasks {
            prop_assert!(poll(task.as_mut()), "it ends");
        }
        drop(tasks);
        let stats = writer.stats();
        prop_assert_eq!((stats.queued, stats.summed, accounted(stats)), (0, 0, made + open));
        prop_assert_eq!(stats.written, *sink.written.lock().unwrap());
    }
}

/// A runtime whose sleeps never end.
#[derive(Debug)]
struct StoppedTime;

impl Runtime for StoppedTime {
    fn spawn(&self, _: BoxFuture<'static, ()>) {}

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(pending())
    }
}

#[test]
fn changes_are_written_while_a_batch_of_requests_is_pending() {
    let sink = Arc::new(Flaky { requests_are_locked: true, ..Flaky::default() });
    let (writer, tasks) =
        writer(Delivery::buffered().batch(2), sink.clone(), Arc::new(StoppedTime));
    let mut tasks = tasks.map(|task| Box::pin(task.run()));
    for number in 0..2 {
        writer.enqueue(None, request(number, Outcome::Allowed, 1));
    }
    for round in 0..3 {
        let mut written = pin!(writer.write(change(10 + round)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(written.as_mut().poll(&mut context).is_pending());
        for task in &mut tasks {
            assert!(!poll(task.as_mut()));
        }
        assert_eq!(written.poll(&mut context), Poll::Ready(Ok(())), "round {round}");
        assert_eq!(writer.stats().queued, 2, "the requests");
    }
    assert_eq!(sink.log.len(), 3);
}
