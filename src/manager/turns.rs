//! Runs calls of the same name one at a time: changes of a key, so that they do not conflict
//! in the store, and reads of an organisation's audit log, so that it leaves room for others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::MutexGuardArc;

/// The names of the calls in progress in this process.
#[derive(Debug)]
pub(super) struct Turns<N>(Mutex<HashMap<N, Arc<async_lock::Mutex<()>>>>);

impl<N> Default for Turns<N> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<N: Clone + Eq + Hash> Turns<N> {
    /// Waits until no other call of this name is in progress.
    pub(super) async fn take(self: &Arc<Self>, name: N) -> Turn<N> {
        let own = Arc::clone(self.lock().entry(name.clone()).or_default());
        // Made before the wait, so that it is cleaned up if the caller gives up.
        let mut turn = Turn { turns: Arc::clone(self), name, own: None };
        turn.own = Some(own.lock_arc().await);
        turn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<N, Arc<async_lock::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes other calls of the name wait until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<N: Clone + Eq + Hash> {
    turns: Arc<Turns<N>>,
    name: N,
    own: Option<MutexGuardArc<()>>,
}

impl<N: Clone + Eq + Hash> Drop for Turn<N> {
    fn drop(&mut self) {
        self.own = None;
        let mut turns = self.turns.lock();
        // All callers that wait for it hold a reference.
        if turns.get(&self.name).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn calls_of_a_name_take_turns_and_the_name_is_forgotten_afterwards() {
        let turns = Arc::new(Turns::default());
        let Poll::Ready(first) = poll(pin!(turns.take("acme"))) else { panic!("the name is free") };
        assert!(poll(pin!(turns.take("globex"))).is_ready(), "another name");
        let mut second = Box::pin(turns.take("acme"));
        assert!(poll(second.as_mut()).is_pending());
        let mut given_up = Box::pin(turns.take("acme"));
        assert!(poll(given_up.as_mut()).is_pending());
        drop(given_up);
        drop(first);
        let Poll::Ready(second) = poll(second.as_mut()) else {
            panic!("the second caller is next")
        };
        assert_eq!(turns.lock().len(), 1);
        drop(second);
        assert!(turns.lock().is_empty());
    }
}
