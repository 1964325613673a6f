//! The background task that hands queued audit records to the sink.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::audit::country::CountryLookup;
use crate::audit::delivery::{AuditHealth, AuditStats, Counters, Delivery, DeliveryError};
use crate::audit::queue::{Ack, Place, Queue, Wake};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::audit::sink::{AuditError, AuditSink};
use crate::runtime::{Elapsed, Panicked, Runtime, caught, within};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// What a manager that is dropped, not shut down, still allows for writing.
const FAREWELL: Duration = Duration::from_secs(5);

/// Takes audit records in, and has them written by a task of its own.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    delivery: Delivery,
    runtime: Arc<dyn Runtime>,
}

/// A place for the one record of a request that is about to be handled.
#[derive(Debug)]
pub(crate) enum Reserved {
    Place(Place),
    /// Shedding needs no place: it is seen at the end whether there is one.
    None,
}

impl AuditWriter {
    pub(crate) fn start(
        sink: Arc<dyn AuditSink>,
        countries: Option<Arc<dyn CountryLookup>>,
        delivery: Delivery,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let queue = Arc::new(Queue::new(delivery.capacity, delivery.batch));
        let counters = Arc::new(Counters::default());
        let task = Task {
            queue: Arc::clone(&queue),
            counters: Arc::clone(&counters),
            delivery: delivery.clone(),
            runtime: Arc::clone(&runtime),
            sink,
            countries,
            batch: Batch::default(),
            rest: VecDeque::new(),
            retry: Vec::new(),
        };
        runtime.spawn(Box::pin(task.run()));
        Self { queue, counters, delivery, runtime }
    }

    /// Whether the records of requests are durable before their answers leave.
    pub(crate) fn is_strict(&self) -> bool {
        self.delivery.strict
    }

    /// Makes sure, before a request is handled, that its record will find room;
    /// `None` where that takes a while.
    pub(crate) fn reserve_now(&self) -> Option<Result<Reserved, DeliveryError>> {
        if self.delivery.sheds() {
            let closed = self.queue.is_closed();
            return Some(if closed { Err(DeliveryError::Closed) } else { Ok(Reserved::None) });
        }
        match self.queue.try_reserve() {
            Err(DeliveryError::Full) if !self.delivery.strict => None,
            place => Some(place.map(Reserved::Place)),
        }
    }

    /// The same, however long it takes up to the deadline.
    pub(crate) async fn reserve(&self) -> Result<Reserved, DeliveryError> {
        match self.reserve_now() {
            Some(reserved) => reserved,
            None => {
                let place = self.queue.reserve(&*self.runtime, self.delivery.deadline).await;
                place.map(Reserved::Place)
            }
        }
    }

    /// Delivers the record of a request in the mode of the writer.
    pub(crate) async fn deliver(
        &self,
        reserved: Reserved,
        record: AuditRecord,
    ) -> Result<(), DeliveryError> {
        match reserved {
            Reserved::Place(place) if self.delivery.strict => {
                self.acknowledged(place, record).await
            }
            other => {
                self.enqueue(other, record);
                Ok(())
            }
        }
    }

    /// Queues a record where nothing can wait for it.
    pub(crate) fn enqueue(&self, reserved: Reserved, record: AuditRecord) {
        let queued = match reserved {
            Reserved::Place(place) => place.fill(record),
            Reserved::None => self.queue.push(record),
        };
        match queued {
            Ok(()) => {}
            Err(DeliveryError::Full) if self.delivery.sheds() => self.counters.shed(),
            Err(error) => self.counters.failed(1, &error),
        }
    }

    /// Returns once the record is durable, whatever the mode.
    pub(crate) async fn write(&self, record: AuditRecord) -> Result<(), DeliveryError> {
        let place = self.queue.reserve(&*self.runtime, self.delivery.deadline).await?;
        self.acknowledged(place, record).await
    }

    async fn acknowledged(&self, place: Place, record: AuditRecord) -> Result<(), DeliveryError> {
        let acknowledged = place.fill_acknowledged(record);
        match within(&*self.runtime, self.delivery.deadline, acknowledged).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(DeliveryError::Closed),
            Err(_) => Err(DeliveryError::TimedOut),
        }
    }

    pub(crate) fn stats(&self) -> AuditStats {
        self.counters.stats(self.queue.len())
    }

    #[allow(dead_code, reason = "the health report of the manager is to be built on it")]
    pub(crate) fn health(&self) -> AuditHealth {
        AuditHealth {
            queued: self.queue.len(),
            capacity: self.delivery.capacity,
            failing: self.counters.failing(),
        }
    }

    /// Lets no more records in and returns once the rest is written, or given up
    /// at the deadline.
    pub(crate) async fn shutdown(&self, deadline: Duration) {
        // The task counts what it gives up; it gets a moment more for that.
        const GRACE: Duration = Duration::from_millis(500);
        self.queue.close(Instant::now() + deadline);
        let _ = within(&*self.runtime, deadline + GRACE, self.queue.ended()).await;
    }
}

impl Drop for AuditWriter {
    fn drop(&mut self) {
        self.queue.close(Instant::now() + FAREWELL);
    }
}

#[derive(Debug)]
struct Task {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    delivery: Delivery,
    runtime: Arc<dyn Runtime>,
    sink: Arc<dyn AuditSink>,
    countries: Option<Arc<dyn CountryLookup>>,
    batch: Batch,
    /// While a rejected record is sought: those that are not tried yet,
    rest: VecDeque<(AuditRecord, Option<Ack>)>,
    /// and those to be tried again.
    retry: Vec<AuditRecord>,
}

/// The records in the writer's hands, and who waits for which of them.
#[derive(Debug, Default)]
struct Batch {
    records: Vec<AuditRecord>,
    /// By position in `records`, rising.
    acks: Vec<(usize, Ack)>,
}

impl Task {
    async fn run(mut self) {
        let mut retry = None;
        loop {
            let wake = self.queue.wake(&*self.runtime, self.delivery.linger, retry).await;
            if wake != Wake::Work {
                break;
            }
            self.take();
            self.write().await;
            retry = match retry {
                _ if self.batch.records.is_empty() => None,
                None => Some(FIRST_RETRY),
                Some(pause) => Some(LAST_RETRY.min(pause * 2)),
            };
        }
    }

    fn take(&mut self) {
        let Self { queue, counters, batch, countries, delivery, .. } = self;
        let room = delivery.batch.saturating_sub(batch.records.len());
        let mut taken = Vec::new();
        queue.take(room, |record, ack| taken.push((record, ack)));
        // A change that gave up waiting is not made, so that it has no record. A
        // request was handled, whether its client is still there or not.
        let given_up = |(record, ack): &mut (AuditRecord, Option<Ack>)| {
            matches!(record.event, AuditEvent::Change(_))
                && ack.as_ref().is_some_and(Ack::is_canceled)
        };
        let late = taken.extract_if(.., given_up).count();
        counters.failed(late, &DeliveryError::TimedOut);
        queue.release(late);
        // Not under the queue's lock, and whatever it does.
        for (mut record, ack) in taken {
            if let (Some(countries), AuditEvent::Request(request)) = (&countries, &mut record.event)
            {
                let look_up = || request.ip.and_then(|ip| countries.country(ip));
                request.country = catch_unwind(AssertUnwindSafe(look_up)).unwrap_or_default();
            }
            if let Some(ack) = ack {
                batch.acks.push((batch.records.len(), ack));
            }
            batch.records.push(record);
        }
    }

    /// Tries to write the batch. What is left in it afterwards is to be retried.
    async fn write(&mut self) {
        match self.attempt(&self.batch.records).await {
            Ok(()) => {
                self.done(self.batch.records.len());
                for (_, ack) in self.batch.acks.drain(..) {
                    let _ = ack.send(Ok(()));
                }
                self.batch.records.clear();
            }
            Err(error @ AuditError::Rejected(_)) if self.batch.records.len() == 1 => {
                self.counters.failed(1, &error);
                self.queue.release(1);
                self.batch.fail_acknowledged();
                self.batch.records.clear();
            }
            Err(AuditError::Rejected(_)) => self.write_one_by_one().await,
            Err(error) => {
                let failed = self.batch.fail_acknowledged();
                self.counters.failed(failed, &error);
                self.queue.release(failed);
                if !self.batch.records.is_empty() {
                    let records = self.batch.records.len();
                    tracing::warn!(records, %error, "audit records will be retried");
                }
            }
        }
    }

    /// Finds the records that the sink rejects, so that the others get through.
    async fn write_one_by_one(&mut self) {
        let whole = std::mem::take(&mut self.batch);
        let mut acks = whole.acks.into_iter().peekable();
        for (position, record) in whole.records.into_iter().enumerate() {
            let ack = acks.next_if(|(at, _)| *at == position).map(|(_, ack)| ack);
            self.rest.push_back((record, ack));
        }
        while !self.queue.is_over()
            && let Some((record, ack)) = self.rest.pop_front()
        {
            self.batch.records.push(record);
            self.batch.acks.extend(ack.map(|ack| (0, ack)));
            // A sink that is unavailable by now leaves the record for later.
            Box::pin(self.write()).await;
            self.retry.append(&mut self.batch.records);
        }
        self.batch.records = std::mem::take(&mut self.retry);
    }

    /// One call of the sink, within its deadline and that of a closing queue; a
    /// panic counts as a rejection.
    async fn attempt(&self, records: &[AuditRecord]) -> Result<(), AuditError> {
        let call = caught(async { self.sink.record(records).await });
        let (mut call, mut over) = (pin!(call), pin!(self.queue.given_up(&*self.runtime)));
        let call = poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Pending => over.as_mut().poll(cx).map(|()| None),
            Poll::Ready(done) => Poll::Ready(Some(done)),
        });
        let called = within(&*self.runtime, self.delivery.deadline, call).await;
        // A sink that rejects a record works.
        let works = matches!(called, Ok(Some(Ok(Ok(()) | Err(AuditError::Rejected(_))))));
        self.counters.called(works);
        match called {
            Ok(Some(Ok(result))) => result,
            Ok(Some(Err(Panicked))) => Err(AuditError::rejected("the sink panicked")),
            Ok(None) => Err(AuditError::unavailable("the time to write in is over")),
            Err(Elapsed) => Err(AuditError::unavailable("the sink exceeded its deadline")),
        }
    }

    fn done(&self, records: usize) {
        self.counters.written(records);
        self.queue.release(records);
    }
}

impl Batch {
    /// Takes out the records that somebody waits for, and tells them. Says how
    /// many there were.
    fn fail_acknowledged(&mut self) -> usize {
        let failed = self.acks.len();
        for (position, ack) in self.acks.drain(..).rev() {
            self.records.remove(position);
            let _ = ack.send(Err(DeliveryError::Failed));
        }
        failed
    }
}

impl Drop for Task {
    /// Whatever ends the task, nothing goes uncounted.
    fn drop(&mut self) {
        self.queue.close(Instant::now());
        // Whoever fills a place from now on counts for himself.
        self.queue.end();
        let mut unwritten = self.batch.records.len() + self.rest.len() + self.retry.len();
        self.queue.take(usize::MAX, |_, _| unwritten += 1);
        self.counters.failed(unwritten, &DeliveryError::Closed);
        self.queue.release(unwritten);
        self.queue.say_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::memory::MemoryAuditLog;
    use crate::audit::record::{AuditId, ChangeAction, ChangeEvent, ChangePhase};
    use crate::clock::Timestamp;
    use crate::key::id::KeyId;
    use crate::org::OrgId;
    use crate::runtime::BoxFuture;
    use futures_channel::oneshot;
    use proptest::prelude::*;
    use std::future::{Future, ready};
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::task::{Context, Waker};

    /// Every sleep is over at once, and remembered.
    #[derive(Debug, Default)]
    struct NoTime(Mutex<Vec<Duration>>);

    impl Runtime for NoTime {
        fn spawn(&self, _: BoxFuture<'static, ()>) {}

        fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
            self.0.lock().unwrap().push(time);
            Box::pin(ready(()))
        }
    }

    /// Fails so many times, and then writes.
    #[derive(Debug, Default)]
    struct Flaky {
        failures: Mutex<usize>,
        log: MemoryAuditLog,
    }

    #[async_trait::async_trait]
    impl AuditSink for Flaky {
        async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
            {
                let mut failures = self.failures.lock().unwrap();
                if *failures > 0 {
                    *failures -= 1;
                    return Err(AuditError::unavailable("not yet"));
                }
            }
            self.log.record(batch).await
        }
    }

    fn record(number: u128) -> AuditRecord {
        AuditRecord {
            id: AuditId::from_bytes(number.to_be_bytes()),
            at: Timestamp::MIN,
            org: OrgId::new("acme").unwrap(),
            key: KeyId::from_bytes([0; 16]),
            event: AuditEvent::Change(ChangeEvent {
                actor: "ada".into(),
                action: ChangeAction::Created,
                phase: ChangePhase::Begun,
            }),
        }
    }

    fn poll(work: Pin<&mut impl Future<Output = ()>>) -> bool {
        work.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// A writer whose task the test polls by itself.
    fn writer(delivery: Delivery, sink: Arc<Flaky>, time: Arc<NoTime>) -> (AuditWriter, Task) {
        let queue = Arc::new(Queue::new(delivery.capacity, delivery.batch));
        let counters = Arc::new(Counters::default());
        let task = Task {
            queue: Arc::clone(&queue),
            counters: Arc::clone(&counters),
            delivery: delivery.clone(),
            runtime: time.clone(),
            sink,
            countries: None,
            batch: Batch::default(),
            rest: VecDeque::new(),
            retry: Vec::new(),
        };
        (AuditWriter { queue, counters, delivery, runtime: time }, task)
    }

    #[test]
    fn the_pauses_between_retries_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let (sink, time) = (Arc::new(Flaky::default()), Arc::new(NoTime::default()));
        let delivery = Delivery::buffered();
        let linger = delivery.linger;
        let (writer, task) = writer(delivery, sink.clone(), time.clone());
        let mut task = Box::pin(task.run());
        for _ in 0..2 {
            *sink.failures.lock().unwrap() = 8;
            writer.enqueue(Reserved::None, record(1));
            assert!(!poll(task.as_mut()));
            let pauses = [50, 100, 200, 400, 800, 1_600, 2_000, 2_000].map(Duration::from_millis);
            let slept = std::mem::take(&mut *time.0.lock().unwrap());
            assert_eq!(slept, [&[linger], &pauses[..]].concat());
            assert_eq!(writer.stats().queued, 0);
        }
        assert_eq!(writer.stats().written, 2);
    }

    #[test]
    fn health_says_since_when_the_sink_fails_and_that_it_works_again() {
        let (sink, time) = (Arc::new(Flaky::default()), Arc::new(NoTime::default()));
        *sink.failures.lock().unwrap() = 2;
        let (writer, mut task) = writer(Delivery::buffered().capacity(7), sink, time);
        let health = |queued, failing| AuditHealth { queued, capacity: 7, failing };
        writer.enqueue(Reserved::None, record(1));
        assert_eq!(writer.health(), health(1, None), "nothing is known yet");
        task.take();
        assert!(poll(pin!(task.write())));
        let failing = writer.health().failing;
        assert!(failing.is_some());
        assert!(poll(pin!(task.write())));
        assert_eq!(writer.health(), health(1, failing), "since the first failure");
        assert!(poll(pin!(task.write())));
        assert_eq!(writer.health(), health(0, None));
    }

    #[test]
    fn whatever_ends_the_task_what_it_leaves_is_counted_and_who_waits_is_told() {
        let (sink, time) = (Arc::new(Flaky::default()), Arc::new(NoTime::default()));
        let (writer, mut task) = writer(Delivery::buffered().batch(2), sink, time);
        let mut acknowledged = Vec::new();
        for number in 0..5 {
            let place = writer.queue.try_reserve().unwrap();
            acknowledged.push(place.fill_acknowledged(record(number)));
        }
        task.take();
        assert_eq!((task.batch.records.len(), writer.stats().queued), (2, 5));
        drop(task);
        let stats = writer.stats();
        assert_eq!((stats.failed, stats.queued, stats.written), (5, 0, 0));
        for mut acknowledged in acknowledged {
            assert!(acknowledged.try_recv().is_err(), "canceled: nobody waits for ever");
        }
        assert_eq!(writer.queue.try_reserve().unwrap_err(), DeliveryError::Closed);
        writer.enqueue(Reserved::None, record(9));
        assert_eq!(writer.stats().failed, 6);
    }

    proptest! {
        #[test]
        fn exactly_the_awaited_records_of_a_failed_batch_are_given_up(awaited: Vec<bool>) {
            let mut batch = Batch::default();
            let mut receivers = Vec::new();
            for (at, awaited) in awaited.iter().enumerate() {
                batch.records.push(record(at as u128));
                if *awaited {
                    let (ack, acknowledged) = oneshot::channel();
                    batch.acks.push((at, ack));
                    receivers.push(acknowledged);
                }
            }
            prop_assert_eq!(batch.fail_acknowledged(), receivers.len());
            let kept: Vec<_> = (0..).zip(&awaited).filter(|(_, a)| !**a).map(|(n, _)| record(n)).collect();
            prop_assert_eq!(&batch.records, &kept);
            prop_assert!(batch.acks.is_empty());
            for mut acknowledged in receivers {
                let told = acknowledged.try_recv();
                prop_assert_eq!(told, Ok(Some(Err(DeliveryError::Failed))));
            }
        }
    }
}
