//! Waiting for what several tasks share, without being woken by one's own answer.
//!
//! `tests/cache_model.rs` compiles this file against loom's atomics and runs it in
//! every order; hence `super::atomic`, and nothing else of the crate.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use super::atomic::{AtomicU8, Ordering};

/// What the future gives, for a caller who is not woken by getting it.
///
/// A future that is shared wakes every task that waits for it once it is done, and so
/// the one too in which it was done: a runtime would run that one again for nothing,
/// often on another thread. That is a tenth of the time that a database nearby takes.
///
/// `everyone` wakes all who wait for the future.
pub(super) async fn quietly<T>(
    mut shared: impl Future<Output = T> + Unpin,
    everyone: &OnceLock<Waker>,
) -> T {
    let mut caller: Option<Arc<Caller>> = None;
    poll_fn(|cx| {
        let same = caller.take().filter(|caller| caller.waker.will_wake(cx.waker()));
        let caller = caller.insert(same.unwrap_or_else(|| Caller::new(cx.waker())));
        caller.asks(everyone, |cx| Pin::new(&mut shared).poll(cx))
    })
    .await
}

/// The task of a caller, which is not woken while it asks anyway.
struct Caller {
    waker: Waker,
    state: AtomicU8,
}

const ASKS: u8 = 1;
const WAS_WOKEN: u8 = 2;

impl Caller {
    fn new(waker: &Waker) -> Arc<Self> {
        Arc::new(Self { waker: waker.clone(), state: AtomicU8::new(0) })
    }

    fn asks<T>(
        self: &Arc<Self>,
        everyone: &OnceLock<Waker>,
        ask: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.state.store(ASKS, Ordering::SeqCst);
        let answer = ask(&mut Context::from_waker(&Waker::from(Arc::clone(self))));
        let state = self.state.swap(0, Ordering::SeqCst);
        // What woke it may have come after the part of the question that looks for it.
        if answer.is_pending() && state & WAS_WOKEN != 0 {
            self.waker.wake_by_ref();
            // Who came in since then was told that somebody is asking already, and
            // not woken. This caller may go away before it asks again.
            if let Some(everyone) = everyone.get() {
                everyone.wake_by_ref();
            }
        }
        answer
    }
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WAS_WOKEN, Ordering::SeqCst) & ASKS == 0 {
            self.waker.wake_by_ref();
        }
    }
}
