//! Asks whether the store accepts changes, once for all concurrent callers.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::Event;

use crate::manager::report::PartHealth;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(1);

/// A question whose answer is kept for a moment. Of concurrent callers one asks the store,
/// and the others wait for the answer.
#[derive(Debug, Default)]
pub(super) struct Probe {
    state: Mutex<Answer>,
    answered: Event,
}

#[derive(Debug, Default)]
struct Answer {
    last: Option<(Instant, PartHealth)>,
    is_asked: bool,
}

impl Probe {
    pub(super) async fn answer(&self, question: impl Future<Output = PartHealth>) -> PartHealth {
        loop {
            let listener = self.answered.listen();
            {
                let mut state = self.lock();
                match &state.last {
                    Some((at, answer)) if at.elapsed() < KEPT => return answer.clone(),
                    _ if !state.is_asked => {
                        state.is_asked = true;
                        break;
                    }
                    _ => {}
                }
            }
            listener.await;
        }
        let _asking = Asking(self);
        let answer = question.await;
        self.lock().last = Some((Instant::now(), answer.clone()));
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// If the caller that is asking is dropped, another one asks.
struct Asking<'p>(&'p Probe);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().is_asked = false;
        self.0.answered.notify(usize::MAX);
    }
}
