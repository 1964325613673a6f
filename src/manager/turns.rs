//! Runs calls of the same name one at a time: changes of a key, so that they do not conflict
//! in the store, and reads of an organisation's audit log, so that it leaves room for others.

use std::hash::Hash;
use std::sync::Arc;

use async_lock::{Mutex, MutexGuardArc};

use crate::manager::in_use::{InUse, Used};

/// The calls in progress in this process.
pub(super) type Turns<N> = InUse<N, Mutex<()>>;

impl<N: Clone + Eq + Hash> Turns<N> {
    /// Waits until no other call of this name is in progress.
    pub(super) async fn take(self: &Arc<Self>, name: N) -> Turn<N> {
        let used = self.of(name);
        Turn { _own: used.lock_arc().await, _used: used }
    }
}

/// Makes other calls of the name wait until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<N: Eq + Hash> {
    _own: MutexGuardArc<()>,
    _used: Used<N, Mutex<()>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
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
        assert_eq!(turns.len(), 1);
        let mut last = Box::pin(turns.take("acme"));
        assert!(poll(last.as_mut()).is_pending());
        drop(second);
        // It gives up although it would be next.
        drop(last);
        assert_eq!(turns.len(), 0);
    }
}
