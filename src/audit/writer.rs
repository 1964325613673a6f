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
use crate::audit::queue::{Ack, Draft, Kind, Place, Queue, Wake};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::audit::sink::{AuditError, AuditSink};
use crate::audit::sums::Refusal;
use crate::runtime::{BoxFuture, Elapsed, Panicked, Runtime, caught, within};

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
        draft: Draft,
    ) -> Self {
        let queue = Arc::new(Queue::new(&delivery, draft));
        let counters = Arc::new(Counters::default());
        let task = Task {
            queue: Arc::clone(&queue),
            counters: Arc::clone(&counters),
            delivery: delivery.clone(),
            runtime: Arc::clone(&runtime),
            sink,
            countries,
            batch: Batch::default(),
            held: Batch::default(),
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
        match self.queue.try_reserve(Kind::Request) {
            Err(DeliveryError::Full) if !self.delivery.strict => None,
            place => Some(place.map(Reserved::Place)),
        }
    }

    /// The same, however long it takes up to the deadline.
    pub(crate) async fn reserve(&self) -> Result<Reserved, DeliveryError> {
        match self.reserve_now() {
            Some(reserved) => reserved,
            None => {
                let deadline = self.delivery.deadline;
                let place = self.queue.reserve(Kind::Request, &*self.runtime, deadline).await;
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
                self.acknowledged(place, record)?.await
            }
            other => {
                self.enqueue(other, record);
                Ok(())
            }
        }
    }

    /// Records a refusal, by itself or in a sum; what there is to wait for, in strict
    /// delivery.
    pub(crate) fn refuse(
        &self,
        refusal: Refusal,
    ) -> Result<Option<BoxFuture<'static, Result<(), DeliveryError>>>, DeliveryError> {
        let added = self.queue.refuse(refusal)?;
        if added.shed {
            self.counters.shed();
        }
        if let Some((place, sum)) = added.ended {
            self.enqueue(Reserved::Place(place), self.queue.draft(sum));
        }
        let Some((place, refusal)) = added.own else { return Ok(None) };
        let record = self.queue.draft(refusal);
        if self.delivery.strict {
            return Ok(Some(Box::pin(self.acknowledged(place, record)?)));
        }
        self.enqueue(Reserved::Place(place), record);
        Ok(None)
    }

    /// Queues a record where nothing can wait for it.
    pub(crate) fn enqueue(&self, reserved: Reserved, record: AuditRecord) {
        let count = record.count();
        let queued = match reserved {
            Reserved::Place(place) => place.fill(record),
            Reserved::None => self.queue.push(record),
        };
        match queued {
            Ok(()) => {}
            Err(DeliveryError::Full) if self.delivery.sheds() => self.counters.shed(),
            Err(error) => self.counters.failed(count, &error),
        }
    }

    /// Returns once the record is durable, whatever the mode.
    pub(crate) async fn write(&self, record: AuditRecord) -> Result<(), DeliveryError> {
        let deadline = self.delivery.deadline;
        let place = self.queue.reserve(Kind::Change, &*self.runtime, deadline).await?;
        self.acknowledged(place, record)?.await
    }

    /// Queues the record, and completes once it is durable.
    fn acknowledged(
        &self,
        place: Place,
        record: AuditRecord,
    ) -> Result<impl Future<Output = Result<(), DeliveryError>> + Send + use<>, DeliveryError> {
        let count = record.count();
        let acknowledged = place
            .fill_acknowledged(record)
            .inspect_err(|error| self.counters.failed(count, error))?;
        let (runtime, deadline) = (Arc::clone(&self.runtime), self.delivery.deadline);
        Ok(async move {
            match within(&*runtime, deadline, acknowledged).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(DeliveryError::Closed),
                Err(_) => Err(DeliveryError::TimedOut),
            }
        })
    }

    pub(crate) fn stats(&self) -> AuditStats {
        let (queued, summed) = self.queue.counts();
        self.counters.stats(queued, summed)
    }

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
    /// Records of the other kind, while those of the batch are written.
    held: Batch,
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
            self.write_each_kind().await;
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
        let late: Vec<_> = taken.extract_if(.., given_up).map(|(record, _)| record).collect();
        counters.failed(count(&late), &DeliveryError::TimedOut);
        queue.release(&late);
        // Not under the queue's lock, and whatever it does.
        for (mut record, ack) in taken {
            if let (Some(countries), AuditEvent::Request(request)) = (&countries, &mut record.event)
            {
                let look_up = || request.ip.and_then(|ip| countries.country(ip));
                request.country = catch_unwind(AssertUnwindSafe(look_up)).unwrap_or_default();
            }
            batch.push(record, ack);
        }
    }

    /// Changes first, and in a call of their own: what keeps the records of requests from
    /// being written need not keep a change.
    async fn write_each_kind(&mut self) {
        self.held = self.batch.split_off_requests();
        if !self.batch.records.is_empty() {
            self.write().await;
        }
        std::mem::swap(&mut self.batch, &mut self.held);
        if !self.batch.records.is_empty() {
            self.write().await;
        }
        self.batch.records.append(&mut self.held.records);
    }

    /// Tries to write the batch. What is left in it afterwards is to be retried.
    async fn write(&mut self) {
        match self.attempt(&self.batch.records).await {
            Ok(()) => {
                self.counters.written(count(&self.batch.records));
                self.queue.release(&self.batch.records);
                for (_, ack) in self.batch.acks.drain(..) {
                    let _ = ack.send(Ok(()));
                }
                self.batch.records.clear();
            }
            Err(error @ AuditError::Rejected(_)) if self.batch.records.len() == 1 => {
                self.counters.failed(count(&self.batch.records), &error);
                self.queue.release(&self.batch.records);
                self.batch.fail_acknowledged();
                self.batch.records.clear();
            }
            Err(AuditError::Rejected(_)) => self.write_one_by_one().await,
            Err(error) => {
                let failed = self.batch.fail_acknowledged();
                self.counters.failed(count(&failed), &error);
                self.queue.release(&failed);
                if !self.batch.records.is_empty() {
                    self.counters.retried(self.batch.records.len(), &error);
                }
            }
        }
    }

    /// Finds the records that the sink rejects, so that the others get through.
    async fn write_one_by_one(&mut self) {
        self.rest.extend(std::mem::take(&mut self.batch).into_parts());
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
}

impl Batch {
    fn push(&mut self, record: AuditRecord, ack: Option<Ack>) {
        if let Some(ack) = ack {
            self.acks.push((self.records.len(), ack));
        }
        self.records.push(record);
    }

    /// Each record with who waits for it.
    fn into_parts(self) -> impl Iterator<Item = (AuditRecord, Option<Ack>)> {
        let mut acks = self.acks.into_iter().peekable();
        self.records.into_iter().enumerate().map(move |(position, record)| {
            let ack = acks.next_if(|(at, _)| *at == position).map(|(_, ack)| ack);
            (record, ack)
        })
    }

    /// Leaves the changes.
    fn split_off_requests(&mut self) -> Self {
        let is_change = |record: &AuditRecord| matches!(record.event, AuditEvent::Change(_));
        let whole = std::mem::take(self);
        if !whole.records.iter().any(is_change) {
            return whole;
        }
        let mut requests = Self::default();
        for (record, ack) in whole.into_parts() {
            let batch = if is_change(&record) { &mut *self } else { &mut requests };
            batch.push(record, ack);
        }
        requests
    }

    /// Takes out the records that somebody waits for, and tells them.
    fn fail_acknowledged(&mut self) -> Vec<AuditRecord> {
        let mut failed = Vec::with_capacity(self.acks.len());
        for (position, ack) in self.acks.drain(..).rev() {
            failed.push(self.records.remove(position));
            let _ = ack.send(Err(DeliveryError::Failed));
        }
        failed
    }
}

/// How many requests and changes the records stand for.
fn count(records: &[AuditRecord]) -> u64 {
    records.iter().map(AuditRecord::count).sum()
}

impl Drop for Task {
    /// Whatever ends the task, nothing goes uncounted.
    fn drop(&mut self) {
        self.queue.close(Instant::now());
        // Whoever fills a place from now on counts for himself.
        self.queue.end();
        let mut unwritten = std::mem::take(&mut self.batch.records);
        unwritten.append(&mut self.held.records);
        unwritten.append(&mut self.retry);
        unwritten.extend(self.rest.drain(..).map(|(record, _)| record));
        self.queue.take(usize::MAX, |record, _| unwritten.push(record));
        self.counters.left_over(count(&unwritten) + self.queue.give_up_sums());
        self.queue.release(&unwritten);
        self.queue.say_ended();
    }
}

#[cfg(test)]
mod tests;
