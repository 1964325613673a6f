//! The async runtime: background tasks and deadlines.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs background tasks, and provides timers.
///
/// With the feature `tokio` (on by default),
#[cfg_attr(feature = "tokio", doc = "[`TokioRuntime`]")]
#[cfg_attr(not(feature = "tokio"), doc = "`TokioRuntime`")]
/// implements it. For another runtime, implement the two methods:
///
/// ```
/// use std::time::Duration;
/// use keygate::runtime::{BoxFuture, Runtime};
///
/// #[derive(Debug)]
/// struct Threads;
///
/// impl Runtime for Threads {
///     fn spawn(&self, task: BoxFuture<'static, ()>) {
///         // smol: smol::spawn(task).detach()
/// #       drop(task);
///     }
///
///     fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
///         // smol: Box::pin(async move { smol::Timer::after(time).await; })
/// #       drop(time);
/// #       Box::pin(std::future::pending())
///     }
/// }
/// ```
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Runs the task to completion in the background.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Completes after this time.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// The deadline passed before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

/// Runs `work`, and drops it after this time.
///
/// A timer is created only once the work has to wait, so that work that completes at once,
/// such as a call of a store in memory, does not pay for one.
pub(crate) async fn timeout<T>(
    runtime: &dyn Runtime,
    deadline: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut work = pin!(work);
    let mut timer = None;
    poll_fn(move |cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        let timer = timer.get_or_insert_with(|| runtime.sleep(deadline));
        timer.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// Runs both futures concurrently.
pub(crate) async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut of_a, mut of_b) = (None, None);
    poll_fn(move |cx| {
        if of_a.is_none()
            && let Poll::Ready(done) = a.as_mut().poll(cx)
        {
            of_a = Some(done);
        }
        if of_b.is_none()
            && let Poll::Ready(done) = b.as_mut().poll(cx)
        {
            of_b = Some(done);
        }
        match (of_a.take(), of_b.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            waiting => {
                (of_a, of_b) = waiting;
                Poll::Pending
            }
        }
    })
    .await
}

/// Runs all futures concurrently. Each is polled whenever one of them may go on, so it is
/// for some hundreds at most.
pub(crate) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|f| (Some(Box::pin(f)), None)).collect();
    poll_fn(move |cx| {
        let mut is_over = true;
        for (future, output) in &mut running {
            let Some(pending) = future else { continue };
            match pending.as_mut().poll(cx) {
                Poll::Ready(done) => (*future, *output) = (None, Some(done)),
                Poll::Pending => is_over = false,
            }
        }
        if !is_over {
            return Poll::Pending;
        }
        Poll::Ready(running.iter_mut().filter_map(|(_, output)| output.take()).collect())
    })
    .await
}

/// The work panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Runs the host's code so that a panic in it is caught.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    poll_fn(move |cx| poll_caught(work.as_mut(), cx)).await
}

/// Polls the host's code so that a panic in it is caught.
pub(crate) fn poll_caught<F: Future + ?Sized>(
    work: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Panicked>> {
    match catch_unwind(AssertUnwindSafe(|| work.poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(Panicked)),
    }
}

/// The current tokio runtime, if there is one.
pub(crate) fn current() -> Option<Arc<dyn Runtime>> {
    #[cfg(feature = "tokio")]
    if let Ok(runtime) = TokioRuntime::current() {
        return Some(Arc::new(runtime));
    }
    None
}

#[cfg(feature = "tokio")]
pub use tokio_runtime::TokioRuntime;

#[cfg(feature = "tokio")]
mod tokio_runtime {
    use super::{BoxFuture, Duration, Runtime};
    use tokio::runtime::{Handle, TryCurrentError};

    /// [`Runtime`] on tokio. Its timers must be enabled, as they are under
    /// `#[tokio::main]`.
    #[derive(Clone, Debug)]
    pub struct TokioRuntime(Handle);

    impl TokioRuntime {
        /// The current runtime. Fails outside of one.
        pub fn current() -> Result<Self, TryCurrentError> {
            Handle::try_current().map(Self)
        }

        /// The runtime of this handle.
        pub fn new(handle: Handle) -> Self {
            Self(handle)
        }
    }

    impl Runtime for TokioRuntime {
        fn spawn(&self, task: BoxFuture<'static, ()>) {
            self.0.spawn(task);
        }

        fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
            let _context = self.0.enter();
            Box::pin(tokio::time::sleep(time))
        }
    }
}
