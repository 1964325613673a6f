//! Tests of the queue.

use super::*;
use crate::audit::record::Outcome;
use crate::audit::samples::{refusal, request};
use crate::runtime::spawn::BoxFuture;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Wake as Waking};

const LINGER: Duration = Duration::from_millis(7);

/// A runtime whose sleeps end only when the test ends them.
#[derive(Debug, Default)]
struct TestTime(Mutex<Vec<(Duration, oneshot::Sender<()>)>>);

impl TestTime {
    /// Ends the latest sleep and returns its duration.
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

    /// Polls a new wait of the writer once.
    fn poll_writer(
        self: &Arc<Self>,
        queue: &Arc<Queue>,
        time: &TestTime,
        retry: Option<Duration>,
    ) -> Poll<Wake> {
        self.poll(pin!(queue.wake(time, LINGER, retry)))
    }

    fn is_woken(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

fn record(number: u128) -> AuditRecord {
    request(number, Outcome::Allowed, 1)
}

fn refused(count: u32) -> AuditRecord {
    request(0, Outcome::Revoked, count)
}

fn record_of(kind: Kind, number: u128) -> AuditRecord {
    let outcome = if kind == Kind::Refusal { Outcome::Revoked } else { Outcome::Allowed };
    request(number, outcome, 1)
}

fn queue_of(delivery: Delivery) -> Arc<Queue> {
    let draft = |sum: Sum| request(100, sum.last.outcome, sum.count);
    Arc::new(Queue::new(&delivery, Arc::new(draft)))
}

fn queue(capacity: usize, batch: usize) -> Arc<Queue> {
    queue_of(Delivery::buffered().capacity(capacity).batch(batch))
}

/// Adds a record whose caller waits for it.
fn push_awaited(queue: &Arc<Queue>, number: u128) -> impl Sized + use<> {
    queue.try_reserve(Kind::Other).unwrap().fill_acknowledged(record(number)).unwrap()
}

/// How many records wait, and how many refusals are summed and not yet written.
fn counted(queue: &Queue) -> (u64, u64) {
    let (queued, summed, _) = queue.counts();
    (queued, summed)
}

fn taken(queue: &Queue, max: usize) -> Vec<u128> {
    let mut ids = Vec::new();
    queue.take(max, |record, _| ids.push(u128::from_be_bytes(record.id.to_bytes())));
    ids
}

#[test]
fn the_writer_wakes_at_once_for_a_waiting_caller_and_otherwise_gathers_a_batch() {
    let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
    let mut wake = Box::pin(queue.wake(&time, LINGER, None));
    assert!(flag.poll(wake.as_mut()).is_pending());
    queue.push(record(1)).unwrap();
    assert!(flag.is_woken());
    assert!(flag.poll(wake.as_mut()).is_pending(), "it waits for more records");
    queue.push(record(2)).unwrap();
    assert!(!flag.is_woken(), "it was already woken");
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

    // One record with a waiting caller is enough.
    queue.push(record(4)).unwrap();
    let mut wake = Box::pin(queue.wake(&time, LINGER, None));
    assert!(flag.poll(wake.as_mut()).is_pending());
    let _acknowledged = push_awaited(&queue, 5);
    assert!(flag.is_woken());
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
}

#[test]
fn a_retry_waits_for_its_pause_or_for_the_shortest_pause_if_a_caller_waits() {
    let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
    let pause = Duration::from_secs(2);
    let mut wake = Box::pin(queue.wake(&time, LINGER, Some(pause)));
    assert!(flag.poll(wake.as_mut()).is_pending(), "the queue is empty");
    for number in 0..5 {
        queue.push(record(number)).unwrap();
        assert!(flag.poll(wake.as_mut()).is_pending(), "a full batch does not shorten the pause");
    }
    assert_eq!(time.pass(), pause);
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));

    let mut wake = Box::pin(queue.wake(&time, LINGER, Some(pause)));
    assert!(flag.poll(wake.as_mut()).is_pending());
    let _acknowledged = push_awaited(&queue, 5);
    assert!(flag.is_woken());
    assert!(flag.poll(wake.as_mut()).is_pending());
    assert_eq!(time.pass(), SHORTEST_RETRY);
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
}

#[test]
fn a_closed_queue_is_finished_when_it_is_empty_and_no_place_is_reserved() {
    let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
    let place = queue.try_reserve(Kind::Other).unwrap();
    let other = queue.try_reserve(Kind::Other).unwrap();
    queue.push(record(1)).unwrap();
    queue.close(Instant::now() + Duration::from_secs(3_600));
    assert_eq!(queue.try_reserve(Kind::Other).unwrap_err(), DeliveryError::Closed);
    assert_eq!(queue.push(record(9)), Err(DeliveryError::Closed));

    assert_eq!(
        flag.poll_writer(&queue, &time, None),
        Poll::Ready(Wake::Work),
        "it does not linger"
    );
    assert_eq!(taken(&queue, 3), [1]);
    queue.release(&[record(0)]);
    let mut wake = Box::pin(queue.wake(&time, LINGER, None));
    assert!(flag.poll(wake.as_mut()).is_pending(), "two places are reserved");
    place.fill(record(2)).unwrap();
    assert!(flag.is_woken());
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
    taken(&queue, 3);
    let mut wake = Box::pin(queue.wake(&time, LINGER, None));
    assert!(flag.poll(wake.as_mut()).is_pending(), "one place is reserved");
    drop(other);
    assert!(flag.is_woken());
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Finished));
}

/// One thread takes places and fills them, while another closes the queue and writes.
#[test]
fn a_queue_that_is_closed_meanwhile_waits_for_every_place_that_it_has_given() {
    const ROUNDS: usize = 50_000;
    let queues: Vec<_> = (0..ROUNDS).map(|_| queue(10, 3)).collect();
    let (start, given) = (std::sync::Barrier::new(2), AtomicUsize::new(0));
    let written = std::thread::scope(|threads| {
        threads.spawn(|| {
            for queue in &queues {
                start.wait();
                while let Ok(place) = queue.try_reserve(Kind::Other) {
                    given.fetch_add(1, Ordering::Relaxed);
                    // Fails if the writer has ended; the record is missing below then.
                    let _ = place.fill(record(1));
                }
            }
        });
        let mut written = 0;
        for (round, queue) in queues.iter().enumerate() {
            start.wait();
            // The queue is closed at a different point of the other thread's loop each time.
            (0..round % 64).for_each(|_| std::hint::spin_loop());
            queue.close(Instant::now() + Duration::from_secs(3_600));
            let (time, flag) = (TestTime::default(), Arc::new(Flag::default()));
            while flag.poll_writer(queue, &time, None) != Poll::Ready(Wake::Finished) {
                written += taken(queue, 10).len();
            }
            queue.end();
        }
        written
    });
    assert_eq!(written, given.into_inner());
}

#[test]
fn a_closed_queue_gives_up_at_its_first_deadline() {
    let (queue, time, flag) = (queue(10, 3), TestTime::default(), Arc::new(Flag::default()));
    queue.push(record(1)).unwrap();
    queue.close(Instant::now());
    queue.close(Instant::now() + Duration::from_secs(3_600));
    for retry in [None, Some(Duration::from_secs(1))] {
        assert_eq!(flag.poll_writer(&queue, &time, retry), Poll::Ready(Wake::GiveUp));
    }
}

#[test]
fn a_waiting_caller_gets_the_next_free_place() {
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
    // One caller gives up. No other caller gets a place for it.
    waiting[0] = None;
    assert_eq!(taken(&queue, 2), [1, 2]);
    assert!(!flags.iter().any(|flag| flag.is_woken()), "the writer still holds them");
    queue.release(&[record(0)]);
    for at in [1, 2] {
        assert!(flags[at].is_woken());
        assert!(flags[at].poll(waiting[at].as_mut().unwrap().as_mut()).is_ready());
    }
}

#[test]
fn a_caller_that_waits_for_room_is_refused_at_the_deadline_and_when_the_queue_closes() {
    let (queue, time, flag) = (queue(1, 1), TestTime::default(), Arc::new(Flag::default()));
    queue.push(record(1)).unwrap();
    let refused = |result: Poll<Result<Permit, DeliveryError>>| result.map(Result::unwrap_err);
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
fn a_caller_that_gave_up_no_longer_shortens_the_retry_pause() {
    let (queue, time, flag) = (queue(1, 1), TestTime::default(), Arc::new(Flag::default()));
    queue.push(record(1)).unwrap();
    taken(&queue, 1);
    {
        let mut waits = pin!(queue.reserve(&time, LINGER));
        assert!(flag.poll(waits.as_mut()).is_pending());
    }
    // The sink is down. No caller is left for which the writer would retry earlier.
    let pause = Duration::from_secs(2);
    let mut wake = pin!(queue.wake(&time, LINGER, Some(pause)));
    assert!(flag.poll(wake.as_mut()).is_pending());
    assert_eq!(time.pass(), pause);
}

proptest! {
    /// Compares the queue with a model: the order of the records, and the room for each kind.
    /// A reserved place holds one record, whatever else is queued in the meantime.
    #[test]
    fn a_full_queue_accepts_no_record_and_loses_none(
        capacity in 1usize..6,
        steps in proptest::collection::vec((0u8..6, 0usize..2, 0usize..5), 0..80),
    ) {
        let queue = queue(capacity, 2);
        let kinds = [Kind::Other, Kind::Refusal];
        let rooms = [capacity, capacity.div_ceil(4)];
        let mut occupied = [0; 2];
        let mut places: [Vec<Permit>; 2] = Default::default();
        let mut queued = VecDeque::new();
        let mut in_hand: Vec<(usize, AuditRecord)> = Vec::new();
        for (number, (step, at, count)) in (0..).zip(steps) {
            let new = record_of(kinds[at], number);
            let under_way = if at == 1 { places[at].len() } else { 0 };
            let full = occupied[at] + under_way >= rooms[at];
            let mut filled = false;
            match step {
                0 => match queue.try_reserve(kinds[at]) {
                    Ok(place) => {
                        prop_assert!(!full);
                        places[at].push(place);
                    }
                    Err(error) => prop_assert_eq!((error, full), (DeliveryError::Full, true)),
                },
                1 => match queue.push(new) {
                    Ok(()) => {
                        prop_assert!(!full);
                        filled = true;
                    }
                    Err(error) => prop_assert_eq!((error, full), (DeliveryError::Full, true)),
                },
                2 => {
                    if let Some(place) = places[at].pop() {
                        place.fill(new).unwrap();
                        filled = true;
                    }
                }
                3 => drop(places[at].pop()),
                4 => {
                    let expected: Vec<_> = queued.drain(..count.min(queued.len())).collect();
                    let numbers: Vec<_> = expected.iter().map(|(_, number)| *number).collect();
                    prop_assert_eq!(taken(&queue, count), numbers);
                    let records = expected.into_iter().map(|(at, n)| (at, record_of(kinds[at], n)));
                    in_hand.extend(records);
                }
                _ => {
                    let done: Vec<_> = in_hand.drain(..count.min(in_hand.len())).collect();
                    done.iter().for_each(|(at, _)| occupied[*at] -= 1);
                    queue.release(done.iter().map(|(_, record)| record));
                }
            }
            if filled {
                occupied[at] += 1;
                queued.push_back((at, number));
            }
            let len = queued.len() + in_hand.len();
            prop_assert_eq!(counted(&queue), (len as u64, 0));
            prop_assert_eq!(queue.len(), len + places[1].len());
        }
    }
}

#[test]
fn the_writer_ends_a_window_on_time_without_another_request() {
    let delivery = Delivery::buffered().sum_refusals(1, Duration::from_secs(3_600));
    let (queue, time, flag) = (queue_of(delivery), TestTime::default(), Arc::new(Flag::default()));
    let mut wake = Box::pin(queue.wake(&time, LINGER, None));
    assert!(flag.poll(wake.as_mut()).is_pending());
    let (place, own) = queue.refuse(refusal()).unwrap().own.unwrap();
    place.fill(queue.draft(own)).unwrap();
    for _ in 0..5 {
        assert!(queue.refuse(refusal()).unwrap().own.is_none());
    }
    assert!(flag.poll(wake.as_mut()).is_pending());
    assert_eq!(time.pass(), LINGER);
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
    assert_eq!((taken(&queue, 9).len(), counted(&queue)), (1, (1, 5)));
    queue.release(&[refused(1)]);

    let mut wake = Box::pin(queue.wake(&time, LINGER, None));
    assert!(flag.poll(wake.as_mut()).is_pending());
    let window = time.pass();
    assert!(window > Duration::from_secs(3_500), "{window:?}");
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
    assert_eq!(counted(&queue), (5, 0));
    let mut counts = Vec::new();
    queue.take(9, |record, _| counts.push(record.count()));
    assert_eq!(counts, [5]);
}

#[test]
fn a_closed_queue_is_not_finished_before_its_sums_are_written() {
    let delivery = Delivery::buffered().capacity(4).sum_refusals(0, Duration::from_secs(3_600));
    let (queue, time, flag) = (queue_of(delivery), TestTime::default(), Arc::new(Flag::default()));
    for outcome in [Outcome::Revoked, Outcome::Expired] {
        for _ in 0..3 {
            queue.refuse(Refusal { outcome, ..refusal() }).unwrap();
        }
    }
    queue.close(Instant::now() + Duration::from_secs(3_600));
    assert_eq!(queue.refuse(refusal()).err(), Some(DeliveryError::Closed));
    // The queue is closed between the writer's two checks. A record is still left.
    assert!(queue.prospect(LINGER, None).is_ok());
    // There is room for one refusal at a time.
    for left in [3, 0] {
        assert_eq!(flag.poll_writer(&queue, &time, None), Poll::Ready(Wake::Work));
        assert_eq!((taken(&queue, 9).len(), counted(&queue)), (1, (3, left)));
        queue.release(&[refused(3)]);
    }
    assert_eq!(flag.poll_writer(&queue, &time, None), Poll::Ready(Wake::Finished));
}

#[test]
fn a_sum_without_room_is_kept_and_the_writer_does_not_spin() {
    let delivery = Delivery::buffered().capacity(1).sum_refusals(1, Duration::ZERO);
    let (queue, time, flag) = (queue_of(delivery), TestTime::default(), Arc::new(Flag::default()));
    queue.push(refused(1)).unwrap();
    taken(&queue, 1);
    for _ in 0..3 {
        assert!(queue.refuse(refusal()).unwrap().own.is_none(), "the queue is full");
    }
    // The sink is down.
    let pause = Duration::from_secs(2);
    let mut wake = pin!(queue.wake(&time, LINGER, Some(pause)));
    assert!(flag.poll(wake.as_mut()).is_pending());
    assert_eq!((time.pass(), counted(&queue)), (pause, (1, 3)));
    assert_eq!(flag.poll(wake.as_mut()), Poll::Ready(Wake::Work));
    // The sink works again.
    queue.release(&[refused(1)]);
    assert_eq!(flag.poll_writer(&queue, &time, None), Poll::Ready(Wake::Work));
    assert_eq!(counted(&queue), (3, 0));
}
