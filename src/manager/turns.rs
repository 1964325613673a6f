//! Runs one change of a key at a time, so that changes of the same key do not conflict in
//! the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::MutexGuardArc;

use crate::key::id::KeyId;
use crate::org::OrgId;

/// The organisation is part of the name, so that a foreign key's id blocks nothing.
type Name = (OrgId, KeyId);

/// The keys that are being changed in this process.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Name, Arc<async_lock::Mutex<()>>>>);

impl Turns {
    /// Waits until no other change of the key is in progress.
    pub(super) async fn take(self: &Arc<Self>, org: &OrgId, id: &KeyId) -> Turn {
        let name = (org.clone(), *id);
        let own = Arc::clone(self.lock().entry(name.clone()).or_default());
        // Made before the wait, so that it is cleaned up if the caller gives up.
        let mut turn = Turn { turns: Arc::clone(self), name, own: None };
        turn.own = Some(own.lock_arc().await);
        turn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Arc<async_lock::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes other changes of the key wait until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    name: Name,
    own: Option<MutexGuardArc<()>>,
}

impl Drop for Turn {
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
    fn changes_of_a_key_take_turns_and_the_key_is_forgotten_afterwards() {
        let turns = Arc::new(Turns::default());
        let (org, other) = (OrgId::new("acme").unwrap(), OrgId::new("globex").unwrap());
        let id = KeyId::from_bytes([1; 16]);
        let Poll::Ready(first) = poll(pin!(turns.take(&org, &id))) else {
            panic!("the key is free")
        };
        assert!(poll(pin!(turns.take(&other, &id))).is_ready(), "another organisation's");
        let mut second = Box::pin(turns.take(&org, &id));
        assert!(poll(second.as_mut()).is_pending());
        let mut given_up = Box::pin(turns.take(&org, &id));
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
