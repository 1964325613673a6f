//! A bounded queue of records for the audit writer, one for requests and one for changes.
//!
//! Room is reserved before a request is handled, so that its record can always be queued
//! afterwards, even from a `Drop`, which cannot wait. Refusals have separate room, so that
//! they take none from admitted requests.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::Event;
use futures_channel::oneshot;

use crate::audit::delivery::{Delivery, DeliveryError};
use crate::audit::queue::contents::Contents;
pub(crate) use crate::audit::queue::contents::{Ack, Kind};
use crate::audit::record::AuditRecord;
use crate::audit::sums::{Added, Refusal, Sum, Sums};
use crate::runtime::spawn::{Runtime, timeout};

mod contents;

/// Builds the record of a sum of refusals.
pub(crate) type Draft = Arc<dyn Fn(Sum) -> AuditRecord + Send + Sync>;

/// How many pairs of key and outcome may have a sum at the same time.
const MOST_SUMS: usize = 4_096;

pub(crate) struct Queue {
    /// The batch size, at which the writer wakes early.
    batch: usize,
    draft: Draft,
    /// Locked before `state`, if both are locked.
    sums: Mutex<Sums>,
    state: Mutex<State>,
    /// Whether a request gets a place without the lock. Changes under the lock only.
    is_open: AtomicBool,
    /// The number of places that are not filled yet. A request counts its place before it
    /// reads `is_open`, and the writer reads this after `is_open` has changed, so that it
    /// does not end before the record is queued.
    reserved: AtomicUsize,
    work: Event,
    closing: Event,
    end: Event,
}

struct State {
    contents: Contents<Permit>,
    /// Once closed, the writer may continue until this time.
    closed: Option<Instant>,
    ended: bool,
    settled: bool,
}

/// The shortest pause between retries while the sink fails, even if a caller waits.
const SHORTEST_RETRY: Duration = Duration::from_millis(50);

/// What the writer has to do when it wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Work,
    /// Nothing is left, and nothing can be added.
    Finished,
    /// The deadline for finishing has passed.
    GiveUp,
}

impl Queue {
    pub(crate) fn new(delivery: &Delivery, draft: Draft) -> Self {
        let capacity = delivery.capacity;
        Self {
            batch: delivery.batch.min(capacity),
            draft,
            sums: Mutex::new(Sums::new(
                delivery.refusals_alone,
                delivery.refusal_window,
                MOST_SUMS,
            )),
            state: Mutex::new(State {
                contents: Contents::of(capacity),
                closed: None,
                ended: false,
                settled: false,
            }),
            is_open: AtomicBool::new(true),
            reserved: AtomicUsize::new(0),
            work: Event::new(),
            closing: Event::new(),
            end: Event::new(),
        }
    }

    /// Reserves a place in the queue, if one is free and no caller waits for it.
    pub(crate) fn try_reserve(self: &Arc<Self>, kind: Kind) -> Result<Permit, DeliveryError> {
        if kind == Kind::Other {
            let place = Permit::of(self, kind);
            if self.is_open.load(Ordering::SeqCst) {
                return Ok(place);
            }
        }
        self.change(|state| self.place(state, kind))
    }

    fn place(self: &Arc<Self>, state: &mut State, kind: Kind) -> Result<Permit, DeliveryError> {
        if state.closed.is_some() {
            return Err(DeliveryError::Closed);
        }
        if !state.contents.room(kind).is_free() {
            return Err(DeliveryError::Full);
        }
        state.contents.reserve(kind);
        Ok(Permit::of(self, kind))
    }

    /// Reserves a place in the queue for a record other than a refusal's. Waits for one
    /// until the deadline.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        runtime: &dyn Runtime,
        deadline: Duration,
    ) -> Result<Permit, DeliveryError> {
        let (waiter, place) = oneshot::channel();
        let reserved = self.change(|state| match self.place(state, Kind::Other) {
            Err(DeliveryError::Full) => {
                state.contents.room(Kind::Other).waiting.push_back(waiter);
                None
            }
            done => Some(done),
        });
        if let Some(done) = reserved {
            return done;
        }
        // Writing what is queued makes room.
        self.work.notify(1);
        match timeout(runtime, deadline, place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(DeliveryError::Closed),
            Err(_) => Err(DeliveryError::Full),
        }
    }

    /// Hands free places to the callers that wait.
    fn grant(self: &Arc<Self>) {
        let kind = Kind::Other;
        let next = || {
            self.change(|state| {
                let room = state.contents.room(kind);
                if room.is_full() { None } else { room.waiting.pop_front() }
            })
        };
        while let Some(waiter) = next() {
            // If the caller is gone, the place is dropped, and so free again.
            let _ = waiter.send(Permit::of(self, kind));
        }
    }

    /// Counts a refusal and queues the records that it leads to.
    pub(crate) fn refuse(
        self: &Arc<Self>,
        refusal: Refusal,
    ) -> Result<Added<Permit>, DeliveryError> {
        let now = Instant::now();
        let mut sums = self.lock_sums();
        if sums.closed {
            return Err(DeliveryError::Closed);
        }
        let added = sums.add(refusal, now, || self.try_reserve(Kind::Refusal).ok());
        drop(sums);
        if added.opened {
            // Wakes the writer, which ends the window.
            self.work.notify(1);
        }
        Ok(added)
    }

    /// The record of a sum.
    pub(crate) fn draft(&self, sum: Sum) -> AuditRecord {
        (self.draft)(sum)
    }

    /// Queues the sums of windows that have ended, as far as there is room for refusals.
    /// With `oldest`, the oldest window counts as ended, and once the queue is closed, all
    /// do.
    fn end_windows(self: &Arc<Self>, oldest: bool) {
        let ended = {
            let mut sums = self.lock_sums();
            let mut state = self.lock();
            let least = if state.closed.is_some() { usize::MAX } else { oldest.into() };
            sums.end_old(Instant::now(), least, || {
                (!state.contents.room(Kind::Refusal).is_full()).then(|| {
                    state.contents.reserve(Kind::Refusal);
                    Permit::of(self, Kind::Refusal)
                })
            })
        };
        for (place, sum) in ended {
            // The writer, which calls this, has not ended.
            let _ = place.fill(self.draft(sum));
        }
    }

    /// Drops the remaining sums. Returns how many refusals they stood for.
    pub(crate) fn give_up_sums(&self) -> u64 {
        self.lock_sums().give_up()
    }

    /// Queues a record without a reserved place.
    pub(crate) fn push(&self, record: AuditRecord) -> Result<(), DeliveryError> {
        let wake = self.change(|state| {
            if state.closed.is_some() {
                Err(DeliveryError::Closed)
            } else if state.contents.room(Kind::of(&record)).is_full() {
                Err(DeliveryError::Full)
            } else {
                Ok(state.contents.push(record, None, self.batch))
            }
        })?;
        self.wake_writer(wake);
        Ok(())
    }

    /// Whether the deadline for finishing has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().closed.is_some_and(|deadline| Instant::now() >= deadline)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Returns once the deadline for finishing has passed.
    pub(crate) async fn given_up(&self, runtime: &dyn Runtime) {
        loop {
            let listener = self.closing.listen();
            let closed = self.lock().closed;
            match closed.map(|at| at.saturating_duration_since(Instant::now())) {
                None => listener.await,
                Some(Duration::ZERO) => return,
                Some(left) => runtime.sleep(left).await,
            }
        }
    }

    /// The number of records queued or being written.
    pub(crate) fn len(&self) -> usize {
        self.lock().contents.occupied()
    }

    /// The number of requests or changes queued or being written, and the number of
    /// refusals in open sums and in all sums so far.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let sums = self.lock_sums();
        (self.lock().contents.count(), sums.summed(), sums.total_summed())
    }

    /// Refuses new records. The writer has until `deadline` to write the rest.
    pub(crate) fn close(&self, deadline: Instant) {
        let mut sums = self.lock_sums();
        sums.closed = true;
        let waiting = self.change(|state| {
            state.closed.get_or_insert(deadline);
            std::mem::take(&mut state.contents.room(Kind::Other).waiting)
        });
        drop(sums);
        self.closing.notify(usize::MAX);
        self.work.notify(usize::MAX);
        drop(waiting);
    }

    /// Waits until there is something to write. Returns at once if a caller waits for a
    /// record or a batch is full, otherwise after `linger`, so that batches grow. With
    /// `retry`, returns after that time, or sooner if a caller waits.
    pub(crate) async fn wake(
        self: &Arc<Self>,
        runtime: &dyn Runtime,
        linger: Duration,
        retry: Option<Duration>,
    ) -> Wake {
        let (mut rested, mut window_over) = (false, false);
        loop {
            let listener = self.work.listen();
            self.end_windows(window_over);
            let (pause, window) = match self.prospect(linger, retry) {
                Err(wake) => return wake,
                Ok((Some(_), _)) if rested => return Wake::Work,
                Ok(pauses) => pauses,
            };
            let first = pause.into_iter().chain(window).min();
            match first {
                Some(first) => rested = timeout(runtime, first, listener).await.is_err(),
                None => {
                    listener.await;
                    rested = false;
                }
            }
            window_over = rested && window == first;
        }
    }

    /// What there is to do now. Otherwise, how long to wait for more records (`None`
    /// without limit), and how long until a window ends.
    fn prospect(
        &self,
        linger: Duration,
        retry: Option<Duration>,
    ) -> Result<(Option<Duration>, Option<Duration>), Wake> {
        let sums = self.lock_sums();
        let mut state = self.lock();
        let left = state.closed.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(Wake::GiveUp);
        }
        let pressing = state.contents.is_pressing() || left.is_some();
        let queued = state.contents.len();
        let pause = match retry {
            Some(_) if pressing => Some(SHORTEST_RETRY),
            Some(pause) => Some(pause),
            None if pressing && queued > 0 => return Err(Wake::Work),
            None if queued >= self.batch => return Err(Wake::Work),
            None if queued > 0 => Some(linger),
            None if left.is_some() && !self.is_reserved() && sums.summed() == 0 => {
                return Err(Wake::Finished);
            }
            None => left,
        };
        // Without room, a sum continues until queued records have been written.
        let window = if state.contents.room(Kind::Refusal).is_full() {
            None
        } else {
            sums.time_left(Instant::now())
        };
        Ok((pause.map(|pause| pause.min(left.unwrap_or(pause))), window))
    }

    /// Moves up to `max` records to the writer.
    pub(crate) fn take(&self, max: usize, each: impl FnMut(AuditRecord, Option<Ack>)) {
        self.lock().contents.take(max, each);
    }

    /// Marks the queue as no longer read.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
    }

    /// Reports that the writer has ended.
    pub(crate) fn say_ended(&self) {
        self.lock().settled = true;
        self.end.notify(usize::MAX);
    }

    /// Returns once the writer has ended.
    pub(crate) async fn ended(&self) {
        loop {
            let listener = self.end.listen();
            if self.lock().settled {
                return;
            }
            listener.await;
        }
    }

    /// Frees the places of records that the writer has finished, written or not.
    pub(crate) fn release<'a>(
        self: &Arc<Self>,
        records: impl IntoIterator<Item = &'a AuditRecord>,
    ) {
        self.change(|state| {
            records.into_iter().for_each(|record| state.contents.release(record));
        });
        self.grant();
    }

    fn wake_writer(&self, wake: bool) {
        if wake {
            self.work.notify(1);
        }
    }

    /// Whether a reserved place has not been filled yet.
    fn is_reserved(&self) -> bool {
        self.reserved.load(Ordering::SeqCst) > 0
    }

    /// Changes what decides whether a request gets a place.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let done = change(&mut state);
        let is_open = state.closed.is_none() && state.contents.room(Kind::Other).is_free();
        // Written only if it changes, since every request reads it.
        if self.is_open.load(Ordering::Relaxed) != is_open {
            self.is_open.store(is_open, Ordering::SeqCst);
        }
        done
    }

    fn lock_sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows no records: they are many and belong to all organisations.
impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A reserved place in the queue. It is freed if dropped unused.
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Option<Arc<Queue>>,
    kind: Kind,
}

impl Permit {
    fn of(queue: &Arc<Queue>, kind: Kind) -> Self {
        queue.reserved.fetch_add(1, Ordering::SeqCst);
        Self { queue: Some(Arc::clone(queue)), kind }
    }

    /// Queues the record.
    pub(crate) fn fill(mut self, record: AuditRecord) -> Result<(), DeliveryError> {
        self.fill_with(record, None)
    }

    /// Queues the record; the receiver is notified once it is durable.
    pub(crate) fn fill_acknowledged(
        mut self,
        record: AuditRecord,
    ) -> Result<oneshot::Receiver<Result<(), DeliveryError>>, DeliveryError> {
        let (ack, acknowledged) = oneshot::channel();
        self.fill_with(record, Some(ack)).map(|()| acknowledged)
    }

    fn fill_with(&mut self, record: AuditRecord, ack: Option<Ack>) -> Result<(), DeliveryError> {
        if let Some(queue) = self.queue.take() {
            let queued = queue.change(|state| {
                state.contents.give_back(self.kind);
                queue.reserved.fetch_sub(1, Ordering::SeqCst);
                (!state.ended).then(|| state.contents.push(record, ack, queue.batch))
            });
            queue.wake_writer(queued.ok_or(DeliveryError::Closed)?);
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            if self.kind == Kind::Refusal {
                queue.lock().contents.give_back(self.kind);
            }
            queue.reserved.fetch_sub(1, Ordering::SeqCst);
            if !queue.is_open.load(Ordering::SeqCst) && queue.is_closed() {
                // It may have waited for this place only.
                queue.work.notify(1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
