//! The bounded queue between requests and the audit writer.
//!
//! Room is reserved before a request is handled, so that afterwards its record
//! can always be queued, even from a `Drop`, where nothing can wait.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::Event;
use futures_channel::oneshot;

use crate::audit::delivery::DeliveryError;
use crate::audit::record::AuditRecord;
use crate::runtime::{Runtime, within};

/// Tells whoever waits for a record what became of it.
pub(crate) type Ack = oneshot::Sender<Result<(), DeliveryError>>;

pub(crate) struct Queue {
    capacity: usize,
    /// From here on the writer need not wait for more records.
    batch: usize,
    state: Mutex<State>,
    work: Event,
    closing: Event,
    end: Event,
}

#[derive(Default)]
struct State {
    items: VecDeque<(AuditRecord, Option<Ack>)>,
    /// How many of the items somebody waits for.
    awaited: usize,
    reserved: usize,
    /// Who waits for a place, in that order.
    waiting: VecDeque<oneshot::Sender<Place>>,
    taken: usize,
    /// Once closed, the writer may go on until then.
    closed: Option<Instant>,
    ended: bool,
    settled: bool,
}

impl State {
    /// Requests under way take no room: there are as many as the host lets in,
    /// and one that never ends must not keep others, or a revocation, waiting.
    fn occupied(&self) -> usize {
        self.items.len() + self.taken
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
            closing: Event::new(),
            end: Event::new(),
        }
    }

    /// Takes a place in the queue, if there is one for which nobody waits.
    pub(crate) fn try_reserve(self: &Arc<Self>) -> Result<Place, DeliveryError> {
        self.place(&mut self.lock())
    }

    fn place(self: &Arc<Self>, state: &mut State) -> Result<Place, DeliveryError> {
        if state.closed.is_some() {
            return Err(DeliveryError::Closed);
        }
        // Who came first is served first.
        while state.waiting.front().is_some_and(oneshot::Sender::is_canceled) {
            state.waiting.pop_front();
        }
        if !state.waiting.is_empty() || state.occupied() >= self.capacity {
            return Err(DeliveryError::Full);
        }
        state.reserved += 1;
        Ok(Place { queue: Some(Arc::clone(self)) })
    }

    /// Takes a place in the queue, waiting for one up to the deadline.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        runtime: &dyn Runtime,
        deadline: Duration,
    ) -> Result<Place, DeliveryError> {
        let place = {
            let mut state = self.lock();
            match self.place(&mut state) {
                Err(DeliveryError::Full) => {}
                done => return done,
            }
            let (waiter, place) = oneshot::channel();
            state.waiting.push_back(waiter);
            place
        };
        // What is queued makes room once it is written.
        self.work.notify(1);
        match within(runtime, deadline, place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(DeliveryError::Closed),
            Err(_) => Err(DeliveryError::Full),
        }
    }

    /// Lets in who waits, if there is room.
    fn grant(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            if state.occupied() >= self.capacity {
                return;
            }
            let Some(waiter) = state.waiting.pop_front() else { return };
            state.reserved += 1;
            drop(state);
            // Unwanted, it is dropped, and so free again.
            let _ = waiter.send(Place { queue: Some(Arc::clone(self)) });
        }
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

    /// Whether the time to finish in is over.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().closed.is_some_and(|deadline| Instant::now() >= deadline)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Returns once the time to finish in is over.
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

    /// How many records are queued or being written.
    pub(crate) fn len(&self) -> usize {
        let state = self.lock();
        state.items.len() + state.taken
    }

    /// Lets nothing more in; the writer has until `deadline` to write the rest.
    pub(crate) fn close(&self, deadline: Instant) {
        self.lock().closed.get_or_insert(deadline);
        self.closing.notify(usize::MAX);
        self.work.notify(usize::MAX);
        let waiting = std::mem::take(&mut self.lock().waiting);
        drop(waiting);
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
        let wanted = state.waiting.iter().any(|waiter| !waiter.is_canceled());
        let pressing = state.awaited > 0 || wanted || left.is_some();
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

    /// From here on nobody takes records.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
    }

    /// Says that the writer has ended.
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

    /// Says that the writer is done with so many records, one way or the other.
    pub(crate) fn release(self: &Arc<Self>, records: usize) {
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(records);
        drop(state);
        self.grant();
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

/// Not the records: they are many, and of every organisation.
impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A reserved place in the queue. Dropped unused, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Option<Arc<Queue>>,
}

impl Place {
    /// Queues the record.
    pub(crate) fn fill(mut self, record: AuditRecord) -> Result<(), DeliveryError> {
        self.fill_with(record, None)
    }

    /// Queues the record; the receiver hears when it is durable.
    pub(crate) fn fill_acknowledged(
        mut self,
        record: AuditRecord,
    ) -> oneshot::Receiver<Result<(), DeliveryError>> {
        let (ack, acknowledged) = oneshot::channel();
        // Too late, the receiver hears that the sender is gone.
        let _ = self.fill_with(record, Some(ack));
        acknowledged
    }

    fn fill_with(&mut self, record: AuditRecord, ack: Option<Ack>) -> Result<(), DeliveryError> {
        if let Some(queue) = self.queue.take() {
            let mut state = queue.lock();
            state.reserved = state.reserved.saturating_sub(1);
            if state.ended {
                return Err(DeliveryError::Closed);
            }
            queue.enqueue(state, record, ack);
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            let mut state = queue.lock();
            state.reserved = state.reserved.saturating_sub(1);
            let closed = state.closed.is_some();
            drop(state);
            if closed {
                queue.work.notify(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::{AuditEvent, AuditId, ChangeAction, ChangeEvent, ChangePhase};
    use crate::clock::Timestamp;
    use crate::key::id::KeyId;
    use crate::org::OrgId;
    use crate::runtime::BoxFuture;
    use proptest::prelude::*;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Wake as Waking};

    const LINGER: Duration = Duration::from_millis(7);

    /// Time that passes when the test says so.
    #[derive(Debug, Default)]
    struct TestTime(Mutex<Vec<(Duration, oneshot::Sender<()>)>>);

    impl TestTime {
        /// Lets the latest sleep end, and says how long it was to be.
        fn pass(&self) -> Duration {
            let (time, end) = self.0.lock().unwrap().pop().unwrap();
            end.send(()).unwrap();
            time
        }
    }

    impl Runtime for TestTime {
        fn spawn(&self, _: BoxFuture<'static, ()>) {}

        fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
            let (end, ended) = oneshot::channel();
            self.0.lock().unwrap().push((time, end));
            Box::pin(async {
                let _ = ended.await;
            })
        }
    }

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Waking for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    impl Flag {
        fn poll<T>(self: &Arc<Self>, work: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
            self.0.store(false, Ordering::SeqCst);
            work.poll(&mut Context::from_waker(&Arc::clone(self).into()))
        }

        fn is_woken(&self) -> bool {
            self.0.load(Ordering::SeqCst)
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

    fn queue(capacity: usize, batch: usize) -> Arc<Queue> {
        Arc::new(Queue::new(capacity, batch))
    }

    fn taken(queue: &Queue, max: usize) -> Vec<u128> {
        let mut ids = Vec::new();
        queue.take(max, |record, _| ids.push(u128::from_be_bytes(record.id.to_bytes())));
        ids
    }

    #[test]
    fn the_writer_wakes_at_once_for_whom_somebody_waits_and_lingers_otherwise() {
        let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
        let mut wake = Box::pin(queue.wake(&time, LINGER, None));
        assert!(flag.poll(wake.as_mut()).is_pending());
        queue.push(record(1)).unwrap();
        assert!(flag.is_woken());
        assert!(flag.poll(wake.as_mut()).is_pending(), "more may come");
        queue.push(record(2)).unwrap();
        assert!(!flag.is_woken(), "it knows of work already");
        assert_eq!(time.pass(), LINGER);
        assert!(flag.is_woken());
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));

        // One more makes a full batch.
        let mut wake = Box::pin(queue.wake(&time, LINGER, None));
        assert!(flag.poll(wake.as_mut()).is_pending());
        queue.push(record(3)).unwrap();
        assert!(flag.is_woken());
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
        assert_eq!(taken(&queue, 3), [1, 2, 3]);

        // And one that somebody waits for is enough.
        queue.push(record(4)).unwrap();
        let mut wake = Box::pin(queue.wake(&time, LINGER, None));
        assert!(flag.poll(wake.as_mut()).is_pending());
        let _acknowledged = queue.try_reserve().unwrap().fill_acknowledged(record(5));
        assert!(flag.is_woken());
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
    }

    #[test]
    fn a_retry_waits_for_its_pause_and_for_the_shortest_if_somebody_waits() {
        let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
        let pause = Duration::from_secs(2);
        let mut wake = Box::pin(queue.wake(&time, LINGER, Some(pause)));
        assert!(flag.poll(wake.as_mut()).is_pending(), "though nothing is queued");
        for number in 0..5 {
            queue.push(record(number)).unwrap();
            assert!(flag.poll(wake.as_mut()).is_pending(), "a full batch hurries no retry");
        }
        assert_eq!(time.pass(), pause);
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));

        let mut wake = Box::pin(queue.wake(&time, LINGER, Some(pause)));
        assert!(flag.poll(wake.as_mut()).is_pending());
        let _acknowledged = queue.try_reserve().unwrap().fill_acknowledged(record(5));
        assert!(flag.is_woken());
        assert!(flag.poll(wake.as_mut()).is_pending());
        assert_eq!(time.pass(), SHORTEST_RETRY);
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
    }

    #[test]
    fn a_closed_queue_is_finished_once_nothing_is_left_and_nothing_can_come() {
        let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
        let place = queue.try_reserve().unwrap();
        let other = queue.try_reserve().unwrap();
        queue.push(record(1)).unwrap();
        queue.close(Instant::now() + Duration::from_secs(3_600));
        assert_eq!(queue.try_reserve().unwrap_err(), DeliveryError::Closed);
        assert_eq!(queue.push(record(9)), Err(DeliveryError::Closed));

        let mut wake = Box::pin(queue.wake(&time, LINGER, None));
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work), "it does not linger");
        assert_eq!(taken(&queue, 3), [1]);
        queue.release(1);
        let mut wake = Box::pin(queue.wake(&time, LINGER, None));
        assert!(flag.poll(wake.as_mut()).is_pending(), "two places are out");
        place.fill(record(2)).unwrap();
        assert!(flag.is_woken());
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
        taken(&queue, 3);
        let mut wake = Box::pin(queue.wake(&time, LINGER, None));
        assert!(flag.poll(wake.as_mut()).is_pending(), "one place is out");
        drop(other);
        assert!(flag.is_woken());
        assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Finished));
    }

    #[test]
    fn a_closed_queue_gives_up_at_its_deadline_and_the_first_deadline_counts() {
        let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
        queue.push(record(1)).unwrap();
        queue.close(Instant::now());
        queue.close(Instant::now() + Duration::from_secs(3_600));
        for retry in [None, Some(Duration::from_secs(1))] {
            let mut wake = pin!(queue.wake(&time, LINGER, retry));
            assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::GiveUp));
        }
    }

    #[test]
    fn who_waits_is_let_in_once_there_is_room_and_is_never_forgotten() {
        let (queue, time) = (queue(2, 2), TestTime::default());
        queue.push(record(1)).unwrap();
        queue.push(record(2)).unwrap();
        let flags: [Arc<Flag>; 3] = std::array::from_fn(|_| Arc::default());
        let mut waiting: Vec<_> = flags
            .iter()
            .map(|flag| {
                let mut waits = Box::pin(queue.reserve(&time, LINGER));
                assert!(flag.poll(waits.as_mut()).is_pending());
                Some(waits)
            })
            .collect();
        // One gives up, and nobody is let in for it.
        waiting[0] = None;
        assert_eq!(taken(&queue, 2), [1, 2]);
        assert!(!flags.iter().any(|flag| flag.is_woken()), "the writer is not done with them");
        queue.release(1);
        for at in [1, 2] {
            assert!(flags[at].is_woken());
            assert!(flags[at].poll(waiting[at].as_mut().unwrap().as_mut()).is_ready());
        }
    }

    #[test]
    fn who_waits_for_room_is_refused_at_the_deadline_and_when_the_queue_is_closed() {
        let (queue, time, flag) = (queue(1, 1), TestTime::default(), Arc::new(Flag::default()));
        queue.push(record(1)).unwrap();
        let refused = |result: Poll<Result<Place, DeliveryError>>| result.map(Result::unwrap_err);
        let mut waits = pin!(queue.reserve(&time, LINGER));
        assert!(flag.poll(waits.as_mut()).is_pending());
        assert_eq!(time.pass(), LINGER);
        assert_eq!(refused(flag.poll(waits.as_mut())), Poll::Ready(DeliveryError::Full));

        let mut waits = pin!(queue.reserve(&time, LINGER));
        assert!(flag.poll(waits.as_mut()).is_pending());
        queue.close(Instant::now());
        assert!(flag.is_woken());
        assert_eq!(refused(flag.poll(waits.as_mut())), Poll::Ready(DeliveryError::Closed));
    }

    #[test]
    fn who_has_given_up_waiting_for_room_hurries_the_writer_no_more() {
        let (queue, time, flag) = (queue(1, 1), TestTime::default(), Arc::new(Flag::default()));
        queue.push(record(1)).unwrap();
        taken(&queue, 1);
        {
            let mut waits = pin!(queue.reserve(&time, LINGER));
            assert!(flag.poll(waits.as_mut()).is_pending());
        }
        // The sink is down; nobody is there any more to try it sooner for.
        let pause = Duration::from_secs(2);
        let mut wake = pin!(queue.wake(&time, LINGER, Some(pause)));
        assert!(flag.poll(wake.as_mut()).is_pending());
        assert_eq!(time.pass(), pause);
    }

    proptest! {
        /// Against a model: the records in their order, and room for so many. A
        /// place once given out is good for one record, whatever came meanwhile.
        #[test]
        fn nobody_is_let_into_a_full_queue_and_nothing_is_lost(
            capacity in 1usize..6,
            steps in proptest::collection::vec((0u8..6, 0usize..4), 0..60),
        ) {
            let queue = queue(capacity, 2);
            let (mut places, mut queued, mut in_hand) = (Vec::new(), VecDeque::new(), 0);
            for (number, (step, count)) in (0..).zip(steps) {
                let full = queued.len() + in_hand >= capacity;
                match step {
                    0 => match queue.try_reserve() {
                        Ok(place) => {
                            prop_assert!(!full);
                            places.push(place);
                        }
                        Err(error) => prop_assert_eq!((error, full), (DeliveryError::Full, true)),
                    },
                    1 => match queue.push(record(number)) {
                        Ok(()) => {
                            prop_assert!(!full);
                            queued.push_back(number);
                        }
                        Err(error) => prop_assert_eq!((error, full), (DeliveryError::Full, true)),
                    },
                    2 => {
                        if let Some(place) = places.pop() {
                            place.fill(record(number)).unwrap();
                            queued.push_back(number);
                        }
                    }
                    3 => drop(places.pop()),
                    4 => {
                        let expected: Vec<_> = queued.drain(..count.min(queued.len())).collect();
                        in_hand += expected.len();
                        prop_assert_eq!(taken(&queue, count), expected);
                    }
                    _ => {
                        queue.release(count.min(in_hand));
                        in_hand -= count.min(in_hand);
                    }
                }
                prop_assert_eq!(queue.len(), queued.len() + in_hand);
            }
        }
    }
}
