//! Counts the changes in progress, so that a shutdown can wait for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::Event;

use crate::manager::error::ShutDown;

/// The number of changes in progress.
#[derive(Debug, Default)]
pub(super) struct Changes {
    state: Mutex<State>,
    ended: Event,
}

#[derive(Debug, Default)]
struct State {
    under_way: u64,
    closed: bool,
}

impl Changes {
    /// Refuses new changes.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(super) fn under_way(&self) -> u64 {
        self.lock().under_way
    }

    /// Returns once no change is in progress.
    pub(super) async fn ended(&self) {
        loop {
            let listener = self.ended.listen();
            if self.under_way() == 0 {
                return;
            }
            listener.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change in progress.
pub(super) struct UnderWay(Arc<Changes>);

impl UnderWay {
    /// Fails once the manager is shut down.
    pub(super) fn begin(changes: &Arc<Changes>) -> Result<Self, ShutDown> {
        let mut state = changes.lock();
        if state.closed {
            return Err(ShutDown);
        }
        state.under_way += 1;
        Ok(Self(Arc::clone(changes)))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
        self.0.ended.notify(usize::MAX);
    }
}
