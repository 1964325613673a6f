//! Tasks that start at the same moment, on several threads.

use std::any::Any;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, JoinHandle, yield_now};

use crate::store::conformance::violation::Violation;

/// A race has at least this many rounds, even on a slow store.
const FEWEST_ROUNDS: u32 = 5;
/// A race on a fast store lasts at least this long, since it takes many rounds to hit a
/// short gap between two steps.
const SHORTEST_RACE: Duration = Duration::from_millis(150);
/// A race on a slow store begins no further round after this time.
const LONGEST_RACE: Duration = Duration::from_secs(3);

/// The rounds of a race: about `usual`, more on a fast store and fewer on a slow one.
pub(super) fn rounds(usual: u32) -> impl Iterator<Item = u32> {
    let begun = Instant::now();
    (0..).take_while(move |n| {
        let time = begun.elapsed();
        *n < FEWEST_ROUNDS || time < if *n < usual { LONGEST_RACE } else { SHORTEST_RACE }
    })
}

/// Races do not occur on one thread, so a broken store would pass.
pub(super) fn need_parallel_runtime() -> Result<(), Violation> {
    let expected = "a multi-thread tokio runtime with at least 2 workers, such as \
                    #[tokio::test(flavor = \"multi_thread\", worker_threads = 4)]";
    let found = match Handle::try_current() {
        Err(_) => "no tokio runtime",
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread => {
            "a current-thread runtime"
        }
        Ok(runtime) if runtime.metrics().num_workers() < 2 => "a runtime with 1 worker",
        Ok(_) => return Ok(()),
    };
    Err(Violation::new(expected, found))
}

/// A spawned task that is aborted when the handle is dropped.
pub(super) struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    pub(super) fn spawn(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    pub(super) async fn join(mut self) -> Result<T, Violation> {
        (&mut self.0).await.map_err(panicked)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn panicked(error: JoinError) -> Violation {
    let message = match error.try_into_panic() {
        Ok(panic) => message_of(panic.as_ref()),
        Err(_) => "the runtime shut down".to_owned(),
    };
    Violation::new("an answer or an error", format!("a panic: {message}"))
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Runs the tasks at the same time and gives their results in the order of the tasks.
pub(super) async fn together<F>(
    work: impl IntoIterator<Item = F>,
) -> Result<Vec<F::Output>, Violation>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let work: Vec<F> = work.into_iter().collect();
    let gate = Gate::new(work.len());
    let tasks: Vec<_> = work.into_iter().map(|work| gate.spawn(work)).collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.join().await?);
    }
    Ok(results)
}

/// Runs two different tasks at the same time.
pub(super) async fn both<A, B>(a: A, b: B) -> Result<(A::Output, B::Output), Violation>
where
    A: Future<Output: Send> + Send + 'static,
    B: Future<Output: Send> + Send + 'static,
{
    let gate = Gate::new(2);
    let (a, b) = (gate.spawn(a), gate.spawn(b));
    Ok((a.join().await?, b.join().await?))
}

/// Makes tasks wait until all of them run. The tasks spin, since a wake-up would start them
/// one after the other. Which of them is first is random.
struct Gate(Arc<AtomicUsize>);

impl Gate {
    fn new(tasks: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(tasks)))
    }

    fn spawn<F>(&self, work: F) -> Task<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let missing = Arc::clone(&self.0);
        Task::spawn(async move {
            missing.fetch_sub(1, Ordering::AcqRel);
            while missing.load(Ordering::Acquire) > 0 {
                yield_now().await;
            }
            some_time().await;
            work.await
        })
    }
}

/// Waits for a random time, usually very short and sometimes about ten microseconds, so that
/// two calls overlap at every point.
pub(super) async fn some_time() {
    let chance = RandomState::new().hash_one(());
    for _ in 0..(chance % 8).saturating_sub(4) {
        yield_now().await;
    }
    for _ in 0..1_u64 << ((chance >> 32) % 11) {
        std::hint::spin_loop();
    }
}

/// Polls the call until it has waited `waits` times and drops it, as a deadline does. Gives
/// the result if the call is done before.
pub(super) async fn dropped_at<T>(waits: u32, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut left = waits;
    poll_fn(move |cx| match call.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => {
            left = left.saturating_sub(1);
            if left == 0 { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}
