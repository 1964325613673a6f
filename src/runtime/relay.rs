//! Hands items to a background task, whose failures cost nothing but a log line.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_channel::{mpsc, oneshot};

use crate::runtime::spawn::{BoxFuture, Elapsed, Panicked, Runtime, caught, timeout};
use crate::text::with_causes;
use crate::throttle::Throttle;

/// How long one item may take.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Passes items on, one after the other. When too many wait, further ones are dropped.
pub(crate) struct Relay<T> {
    queue: Mutex<mpsc::Sender<T>>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
    /// How many items wait or are being passed on.
    pending: Arc<AtomicU64>,
    /// What it passes items to, for the log.
    name: &'static str,
    dropped: Throttle,
}

impl<T: Send + 'static> Relay<T> {
    pub(crate) fn start(
        name: &'static str,
        capacity: usize,
        runtime: &Arc<dyn Runtime>,
        mut pass_on: impl FnMut(T) -> BoxFuture<'static, Result<(), Failure>> + Send + 'static,
    ) -> Self {
        let (queue, mut items) = mpsc::channel(capacity);
        let (end, ended) = oneshot::channel();
        let shared = Arc::clone(runtime);
        let pending = Arc::<AtomicU64>::default();
        let left = Arc::clone(&pending);
        runtime.spawn(Box::pin(async move {
            let failures = Throttle::default();
            while let Ok(item) = items.recv().await {
                let passed = caught(async { pass_on(item).await });
                let passed = timeout(&*shared, DEADLINE, passed).await;
                left.fetch_sub(1, Ordering::Relaxed);
                let error = match passed {
                    Ok(Ok(Ok(()))) => continue,
                    Ok(Ok(Err(error))) => with_causes(&*error),
                    Ok(Err(Panicked)) => "it panicked".to_owned(),
                    Err(Elapsed) => format!("it took longer than {DEADLINE:?}"),
                };
                if let Some(left_out) = failures.pass() {
                    tracing::error!(error, left_out, "{name} failed");
                }
            }
            drop(end);
        }));
        let ended = Mutex::new(Some(ended));
        Self { queue: Mutex::new(queue), ended, pending, name, dropped: Throttle::default() }
    }

    pub(crate) fn send(&self, item: T) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        let sent = self.queue.lock().unwrap_or_else(PoisonError::into_inner).try_send(item);
        if sent.is_err() {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            if let Some(left_out) = self.dropped.pass() {
                let name = self.name;
                tracing::error!(left_out, "{name} is behind, and something was left out");
            }
        }
    }

    /// How many items were not passed on so far.
    pub(crate) fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Takes no more items, and returns once the others are passed on.
    pub(crate) async fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).close_channel();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            let _ = ended.await;
        }
    }
}

impl<T> fmt::Debug for Relay<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("name", &self.name).finish_non_exhaustive()
    }
}
