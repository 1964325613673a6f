//! The background tasks that write queued audit records to the sink: one for requests and
//! one for changes, so that changes never wait behind requests.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::audit::country::CountryLookup;
use crate::audit::delivery::{AuditHealth, AuditStats, Counters, Delivery, DeliveryError};
use crate::audit::queue::{Ack, Draft, Kind, Permit, Queue, Wake};
use crate::audit::record::{AuditEvent, AuditRecord};
use crate::audit::sink::{AuditError, AuditSink};
use crate::audit::sums::Refusal;
use crate::runtime::spawn::{BoxFuture, Elapsed, Panicked, Runtime, caught, timeout};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// The time for writing after a manager is dropped without a shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Accepts audit records, which background tasks write.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    requests: Lane,
    changes: Lane,
    delivery: Delivery,
    runtime: Arc<dyn Runtime>,
}

/// The queue for records of one kind.
#[derive(Clone, Debug)]
struct Lane {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
}

impl AuditWriter {
    pub(crate) fn start(
        sink: Arc<dyn AuditSink>,
        countries: Option<Arc<dyn CountryLookup>>,
        delivery: Delivery,
        runtime: Arc<dyn Runtime>,
        draft: Draft,
    ) -> Self {
        let start = || {
            let task = Task::new(&sink, &countries, &delivery, &runtime, &draft);
            let lane = task.lane.clone();
            runtime.spawn(Box::pin(task.run()));
            lane
        };
        let (requests, changes) = (start(), start());
        Self { requests, changes, delivery, runtime }
    }

    fn lane_of(&self, record: &AuditRecord) -> &Lane {
        match record.event {
            AuditEvent::Request(_) => &self.requests,
            AuditEvent::Change(_) => &self.changes,
        }
    }

    /// Whether the records of requests are durable before their responses are sent.
    pub(crate) fn is_strict(&self) -> bool {
        self.delivery.strict
    }

    /// Reserves room for the record of a request before the request is handled. `None` if
    /// that requires waiting.
    fn reserve_now(&self) -> Option<Result<Option<Permit>, DeliveryError>> {
        if self.delivery.sheds() {
            let closed = self.requests.queue.is_closed();
            return Some(if closed { Err(DeliveryError::Closed) } else { Ok(None) });
        }
        match self.requests.queue.try_reserve(Kind::Other) {
            Err(DeliveryError::Full) if !self.delivery.strict => None,
            place => Some(place.map(Some)),
        }
    }

    /// As `reserve_now`, but waits for room until the deadline.
    pub(crate) async fn reserve(&self) -> Result<Option<Permit>, DeliveryError> {
        match self.reserve_now() {
            Some(reserved) => reserved,
            None => {
                let Self { requests, delivery, runtime, .. } = self;
                let place = requests.queue.reserve(&**runtime, delivery.deadline);
                // Boxed, so that requests that find room do not pay for its size.
                Box::pin(place).await.map(Some)
            }
        }
    }

    /// Delivers the record of a request in the configured mode.
    pub(crate) async fn deliver(
        &self,
        permit: Option<Permit>,
        record: AuditRecord,
    ) -> Result<(), DeliveryError> {
        match permit {
            Some(place) if self.delivery.strict => self.acknowledged(place, record)?.await,
            other => {
                self.enqueue(other, record);
                Ok(())
            }
        }
    }

    /// Records a refusal, in a separate record or in a sum. Returns a future in strict
    /// delivery.
    pub(crate) fn refuse(
        &self,
        refusal: Refusal,
    ) -> Result<Option<BoxFuture<'static, Result<(), DeliveryError>>>, DeliveryError> {
        let Lane { queue, counters } = &self.requests;
        let added = queue.refuse(refusal)?;
        if added.shed {
            counters.shed();
        }
        if let Some((place, sum)) = added.ended {
            self.enqueue(Some(place), queue.draft(sum));
        }
        let Some((place, refusal)) = added.own else { return Ok(None) };
        let record = queue.draft(refusal);
        if self.delivery.strict {
            return Ok(Some(Box::pin(self.acknowledged(place, record)?)));
        }
        self.enqueue(Some(place), record);
        Ok(None)
    }

    /// Queues a record without waiting for it.
    pub(crate) fn enqueue(&self, permit: Option<Permit>, record: AuditRecord) {
        let count = record.count();
        let Lane { queue, counters } = self.lane_of(&record);
        let queued = match permit {
            Some(place) => place.fill(record),
            None => queue.push(record),
        };
        match queued {
            Ok(()) => {}
            Err(DeliveryError::Full) if self.delivery.sheds() => counters.shed(),
            Err(error) => counters.failed(count, &error),
        }
    }

    /// Returns once the record is durable, in any mode.
    pub(crate) async fn write(&self, record: AuditRecord) -> Result<(), DeliveryError> {
        let queue = &self.lane_of(&record).queue;
        let place = queue.reserve(&*self.runtime, self.delivery.deadline).await?;
        self.acknowledged(place, record)?.await
    }

    /// Queues the record, and completes once it is durable.
    fn acknowledged(
        &self,
        place: Permit,
        record: AuditRecord,
    ) -> Result<impl Future<Output = Result<(), DeliveryError>> + Send + use<>, DeliveryError> {
        let (count, counters) = (record.count(), &self.lane_of(&record).counters);
        let acknowledged =
            place.fill_acknowledged(record).inspect_err(|error| counters.failed(count, error))?;
        let (runtime, deadline) = (Arc::clone(&self.runtime), self.delivery.deadline);
        Ok(async move {
            match timeout(&*runtime, deadline, acknowledged).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(DeliveryError::Closed),
                Err(_) => Err(DeliveryError::TimedOut),
            }
        })
    }

    fn lanes(&self) -> [&Lane; 2] {
        [&self.requests, &self.changes]
    }

    pub(crate) fn stats(&self) -> AuditStats {
        let stats = self.lanes().map(|Lane { queue, counters }| {
            let (queued, summed, total_summed) = queue.counts();
            counters.stats(queued, summed, total_summed)
        });
        stats.into_iter().fold(AuditStats::default(), AuditStats::plus)
    }

    pub(crate) fn health(&self) -> AuditHealth {
        AuditHealth {
            queued: self.lanes().iter().map(|lane| lane.queue.len()).sum(),
            capacity: self.delivery.capacity,
            failing: self.lanes().iter().filter_map(|lane| lane.counters.failing()).min(),
            last_success: self.lanes().iter().filter_map(|lane| lane.counters.last_success()).max(),
        }
    }

    /// Refuses new records, and returns once the rest is written, or given up at the
    /// deadline.
    pub(crate) async fn shutdown(&self, deadline: Duration) {
        // Extra time for the tasks to count what they give up.
        const GRACE: Duration = Duration::from_millis(500);
        self.close(deadline);
        let ended = async {
            self.requests.queue.ended().await;
            self.changes.queue.ended().await;
        };
        let _ = timeout(&*self.runtime, deadline + GRACE, ended).await;
    }

    fn close(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.lanes().iter().for_each(|lane| lane.queue.close(until));
    }
}

impl Drop for AuditWriter {
    fn drop(&mut self) {
        self.close(SHUTDOWN_GRACE);
    }
}

#[derive(Debug)]
struct Task {
    lane: Lane,
    delivery: Delivery,
    runtime: Arc<dyn Runtime>,
    sink: Arc<dyn AuditSink>,
    countries: Option<Arc<dyn CountryLookup>>,
    batch: Batch,
    /// While searching for a rejected record: those not tried yet,
    rest: VecDeque<(AuditRecord, Option<Ack>)>,
    /// and those to be retried.
    retry: Vec<AuditRecord>,
}

/// The records that are being written, and the callers that wait for them.
#[derive(Debug, Default)]
struct Batch {
    records: Vec<AuditRecord>,
    /// By position in `records`, ascending.
    acks: Vec<(usize, Ack)>,
}

impl Task {
    fn new(
        sink: &Arc<dyn AuditSink>,
        countries: &Option<Arc<dyn CountryLookup>>,
        delivery: &Delivery,
        runtime: &Arc<dyn Runtime>,
        draft: &Draft,
    ) -> Self {
        let queue = Arc::new(Queue::new(delivery, Arc::clone(draft)));
        Self {
            lane: Lane { queue, counters: Arc::default() },
            delivery: delivery.clone(),
            runtime: Arc::clone(runtime),
            sink: Arc::clone(sink),
            countries: countries.clone(),
            batch: Batch::default(),
            rest: VecDeque::new(),
            retry: Vec::new(),
        }
    }

    async fn run(mut self) {
        let mut retry = None;
        loop {
            let wake = self.lane.queue.wake(&*self.runtime, self.delivery.linger, retry).await;
            if wake != Wake::Work {
                break;
            }
            self.take();
            if !self.batch.records.is_empty() {
                self.write().await;
            }
            retry = match retry {
                _ if self.batch.records.is_empty() => None,
                None => Some(FIRST_RETRY),
                Some(pause) => Some(LAST_RETRY.min(pause * 2)),
            };
        }
    }

    fn take(&mut self) {
        let Self { lane: Lane { queue, counters }, batch, countries, delivery, .. } = self;
        let room = delivery.batch.saturating_sub(batch.records.len());
        let mut taken = Vec::new();
        queue.take(room, |record, ack| taken.push((record, ack)));
        // A change whose caller gave up is not made, so it gets no record. A request was
        // handled even if the client is gone.
        let given_up = |(record, ack): &mut (AuditRecord, Option<Ack>)| {
            matches!(record.event, AuditEvent::Change(_))
                && ack.as_ref().is_some_and(Ack::is_canceled)
        };
        let late: Vec<_> = taken.extract_if(.., given_up).map(|(record, _)| record).collect();
        counters.failed(count(&late), &DeliveryError::TimedOut);
        queue.release(&late);
        // Done without holding the queue's lock, since the look-up is the host's code.
        for (mut record, ack) in taken {
            if let (Some(countries), AuditEvent::Request(request)) = (&countries, &mut record.event)
            {
                let look_up = || request.ip.and_then(|ip| countries.country(ip));
                request.country = catch_unwind(AssertUnwindSafe(look_up)).unwrap_or_default();
            }
            batch.push(record, ack);
        }
    }

    /// Tries to write the batch. What remains in it is to be retried.
    async fn write(&mut self) {
        match self.attempt(&self.batch.records).await {
            Ok(()) => {
                self.lane.counters.written(count(&self.batch.records));
                self.lane.queue.release(&self.batch.records);
                for (_, ack) in self.batch.acks.drain(..) {
                    let _ = ack.send(Ok(()));
                }
                self.batch.records.clear();
            }
            Err(error @ AuditError::Rejected(_)) if self.batch.records.len() == 1 => {
                self.lane.counters.failed(count(&self.batch.records), &error);
                self.lane.queue.release(&self.batch.records);
                self.batch.fail_acknowledged();
                self.batch.records.clear();
            }
            Err(AuditError::Rejected(_)) => self.write_one_by_one().await,
            Err(error) => {
                let failed = self.batch.fail_acknowledged();
                self.lane.counters.failed(count(&failed), &error);
                self.lane.queue.release(&failed);
                if !self.batch.records.is_empty() {
                    self.lane.counters.retried(self.batch.records.len(), &error);
                }
            }
        }
    }

    /// Finds the records that the sink rejects, so that the others get through.
    async fn write_one_by_one(&mut self) {
        self.rest.extend(std::mem::take(&mut self.batch).into_parts());
        while !self.lane.queue.is_over()
            && let Some((record, ack)) = self.rest.pop_front()
        {
            self.batch.records.push(record);
            self.batch.acks.extend(ack.map(|ack| (0, ack)));
            // If the sink has become unavailable, the record is kept for later.
            Box::pin(self.write()).await;
            self.retry.append(&mut self.batch.records);
        }
        self.batch.records = std::mem::take(&mut self.retry);
    }

    /// Calls the sink once, within its deadline and that of a closing queue. A panic counts
    /// as a rejection.
    async fn attempt(&self, records: &[AuditRecord]) -> Result<(), AuditError> {
        let call = caught(async { self.sink.record(records).await });
        let (mut call, mut over) = (pin!(call), pin!(self.lane.queue.given_up(&*self.runtime)));
        let call = poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Pending => over.as_mut().poll(cx).map(|()| None),
            Poll::Ready(done) => Poll::Ready(Some(done)),
        });
        let called = timeout(&*self.runtime, self.delivery.deadline, call).await;
        // A sink that rejects a record still works.
        let works = matches!(called, Ok(Some(Ok(Ok(()) | Err(AuditError::Rejected(_))))));
        self.lane.counters.called(works);
        match called {
            Ok(Some(Ok(result))) => result,
            Ok(Some(Err(Panicked))) => Err(AuditError::rejected("the sink panicked")),
            Ok(None) => Err(AuditError::unavailable("the shutdown deadline has passed")),
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

    /// Each record with the caller that waits for it.
    fn into_parts(self) -> impl Iterator<Item = (AuditRecord, Option<Ack>)> {
        let mut acks = self.acks.into_iter().peekable();
        self.records.into_iter().enumerate().map(move |(position, record)| {
            let ack = acks.next_if(|(at, _)| *at == position).map(|(_, ack)| ack);
            (record, ack)
        })
    }

    /// Removes the records that a caller waits for, and notifies the callers.
    fn fail_acknowledged(&mut self) -> Vec<AuditRecord> {
        let mut failed = Vec::with_capacity(self.acks.len());
        for (position, ack) in self.acks.drain(..).rev() {
            failed.push(self.records.remove(position));
            let _ = ack.send(Err(DeliveryError::Failed));
        }
        failed
    }
}

/// The number of requests or changes that the records stand for.
fn count(records: &[AuditRecord]) -> u64 {
    records.iter().map(AuditRecord::count).sum()
}

impl Drop for Task {
    /// Counts what is left, however the task ends.
    fn drop(&mut self) {
        self.lane.queue.close(Instant::now());
        // Records queued from now on are counted by their callers.
        self.lane.queue.end();
        let mut unwritten = std::mem::take(&mut self.batch.records);
        unwritten.append(&mut self.retry);
        unwritten.extend(self.rest.drain(..).map(|(record, _)| record));
        self.lane.queue.take(usize::MAX, |record, _| unwritten.push(record));
        self.lane.counters.left_over(count(&unwritten) + self.lane.queue.give_up_sums());
        self.lane.queue.release(&unwritten);
        self.lane.queue.say_ended();
    }
}

#[cfg(test)]
mod tests;
