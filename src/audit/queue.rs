//! The bounded queue between requests and the audit writer.
//!
//! Room is reserved before a request is handled, so that afterwards its record
//! can always be queued, even from a `Drop`, where nothing can wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::Event;
use futures_channel::oneshot;

use crate::audit::delivery::DeliveryError;
use crate::audit::record::AuditRecord;
use crate::runtime::{Runtime, within};

/// Tells whoever waits for a record what became of it.
pub(crate) type Ack = oneshot::Sender<Result<(), DeliveryError>>;

#[derive(Debug)]
pub(crate) struct Queue {
    capacity: usize,
    /// From here on the writer need not wait for more records.
    batch: usize,
    state: Mutex<State>,
    work: Event,
    room: Event,
    end: Event,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<(AuditRecord, Option<Ack>)>,
    /// How many of the items somebody waits for.
    awaited: usize,
    reserved: usize,
    taken: usize,
    /// Once closed, the writer may go on until then.
    closed: Option<Instant>,
    ended: bool,
}

impl State {
    fn occupied(&self) -> usize {
        self.items.len() + self.reserved + self.taken
    }
}

/// While the sink fails, it is tried again no sooner than this, even if
/// somebody waits.
const SHORTEST_RETRY: Duration = Duration::from_millis(50);

/// What the writer finds when it wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Work,
    /// Nothing is left, and nothing can come any more.
    Finished,
    /// The time to finish in is over.
    GiveUp,
}

impl Queue {
    pub(crate) fn new(capacity: usize, batch: usize) -> Self {
        Self {
            capacity,
            batch: batch.min(capacity),
            state: Mutex::default(),
            work: Event::new(),
            room: Event::new(),
            end: Event::new(),
        }
    }

    /// Takes a place in the queue, if there is one.
    pub(crate) fn try_reserve(self: &Arc<Self>) -> Result<Place, DeliveryError> {
        let mut state = self.lock();
        if state.closed.is_some() {
            Err(DeliveryError::Closed)
        } else if state.occupied() >= self.capacity {
            Err(DeliveryError::Full)
        } else {
            state.reserved += 1;
            Ok(Place { queue: Some(Arc::clone(self)) })
        }
    }

    /// Takes a place in the queue, waiting for one up to the deadline.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        runtime: &dyn Runtime,
        deadline: Duration,
    ) -> Result<Place, DeliveryError> {
        match self.try_reserve() {
            Err(DeliveryError::Full) => {}
            other => return other,
        }
        let wait = async {
            loop {
                let listener = self.room.listen();
                match self.try_reserve() {
                    Err(DeliveryError::Full) => listener.await,
                    other => return other,
                }
            }
        };
        within(runtime, deadline, wait).await.unwrap_or(Err(DeliveryError::Full))
    }

    /// Queues a record without a place reserved for it.
    pub(crate) fn push(&self, record: AuditRecord) -> Result<(), DeliveryError> {
        let state = self.lock();
        if state.closed.is_some() {
            Err(DeliveryError::Closed)
        } else if state.occupied() >= self.capacity {
            Err(DeliveryError::Full)
        } else {
            self.enqueue(state, record, None);
            Ok(())
        }
    }

    /// How many records are queued or being written.
    pub(crate) fn len(&self) -> usize {
        let state = self.lock();
        state.items.len() + state.taken
    }

    /// Lets nothing more in; the writer has until `deadline` to write the rest.
    pub(crate) fn close(&self, deadline: Instant) {
        self.lock().closed.get_or_insert(deadline);
        self.work.notify(usize::MAX);
        self.room.notify(usize::MAX);
    }

    /// Waits until there is something to write: at once if somebody waits for
    /// it or a batch is full, otherwise after `linger`, so that batches grow.
    /// With `retry`, after that time, or sooner if somebody waits.
    pub(crate) async fn wake(
        &self,
        runtime: &dyn Runtime,
        linger: Duration,
        retry: Option<Duration>,
    ) -> Wake {
        let mut rested = false;
        loop {
            let listener = self.work.listen();
            let pause = match self.prospect(linger, retry) {
                Err(wake) => return wake,
                Ok(Some(_)) if rested => return Wake::Work,
                Ok(pause) => pause,
            };
            match pause {
                Some(pause) => rested = within(runtime, pause, listener).await.is_err(),
                None => listener.await,
            }
        }
    }

    /// What there is to do now; otherwise how long to wait for more records
    /// before it is to be done, `None` for as long as it takes.
    fn prospect(
        &self,
        linger: Duration,
        retry: Option<Duration>,
    ) -> Result<Option<Duration>, Wake> {
        let state = self.lock();
        let left = state.closed.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(Wake::GiveUp);
        }
        let pressing = state.awaited > 0 || left.is_some();
        let pause = match retry {
            Some(_) if pressing => Some(SHORTEST_RETRY),
            Some(pause) => Some(pause),
            None if pressing && !state.items.is_empty() => return Err(Wake::Work),
            None if state.items.len() >= self.batch => return Err(Wake::Work),
            None if !state.items.is_empty() => Some(linger),
            None if left.is_some() && state.reserved == 0 => return Err(Wake::Finished),
            None => left,
        };
        Ok(pause.map(|pause| pause.min(left.unwrap_or(pause))))
    }

    /// Moves up to `max` of the oldest records over to the writer.
    pub(crate) fn take(&self, max: usize, mut each: impl FnMut(AuditRecord, Option<Ack>)) {
        let mut state = self.lock();
        let state = &mut *state;
        let count = state.items.len().min(max);
        state.taken += count;
        for (record, ack) in state.items.drain(..count) {
            state.awaited = state.awaited.saturating_sub(usize::from(ack.is_some()));
            each(record, ack);
        }
    }

    /// Says that the writer has ended.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.end.notify(usize::MAX);
    }

    /// Returns once the writer has ended.
    pub(crate) async fn ended(&self) {
        loop {
            let listener = self.end.listen();
            if self.lock().ended {
                return;
            }
            listener.await;
        }
    }

    /// Says that the writer is done with so many records, one way or the other.
    pub(crate) fn release(&self, records: usize) {
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(records);
        drop(state);
        self.room.notify_additional(records);
    }

    fn enqueue(&self, mut state: MutexGuard<'_, State>, record: AuditRecord, ack: Option<Ack>) {
        state.awaited += usize::from(ack.is_some());
        let wake = state.items.is_empty()
            || (ack.is_some() && state.awaited == 1)
            || state.items.len() + 1 == self.batch;
        state.items.push_back((record, ack));
        drop(state);
        if wake {
            self.work.notify(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reserved place in the queue. Dropped unused, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Option<Arc<Queue>>,
}

impl Place {
    /// Queues the record.
    pub(crate) fn fill(mut self, record: AuditRecord) {
        self.fill_with(record, None);
    }

    /// Queues the record; the receiver hears when it is durable.
    pub(crate) fn fill_acknowledged(
        mut self,
        record: AuditRecord,
    ) -> oneshot::Receiver<Result<(), DeliveryError>> {
        let (ack, acknowledged) = oneshot::channel();
        self.fill_with(record, Some(ack));
        acknowledged
    }

    fn fill_with(&mut self, record: AuditRecord, ack: Option<Ack>) {
        if let Some(queue) = self.queue.take() {
            let mut state = queue.lock();
            state.reserved = state.reserved.saturating_sub(1);
            queue.enqueue(state, record, ack);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            let mut state = queue.lock();
            state.reserved = state.reserved.saturating_sub(1);
            let closed = state.closed.is_some();
            drop(state);
            queue.room.notify_additional(1);
            if closed {
                queue.work.notify(1);
            }
        }
    }
}
