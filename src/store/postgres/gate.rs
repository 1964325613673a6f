//! Limits changes to one at a time for each key, and a few for each organisation.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::key::id::KeyId;
use crate::org::OrgId;

/// What changes queue for: while a row is locked, the changes that need it wait here
/// without a connection, except for the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Gate {
    Creation(OrgId),
    Key(KeyId),
    /// Any change to an organisation's keys.
    Organisation(OrgId),
}

impl Gate {
    /// How many may pass at a time. For an organisation, fewer than there are connections:
    /// one is left for other organisations, whatever is locked.
    fn width(&self) -> usize {
        match self {
            Self::Creation(_) | Self::Key(_) => 1,
            Self::Organisation(_) => 2,
        }
    }
}

type Waiting = HashMap<Gate, Arc<Semaphore>>;

/// The gates that are in use.
#[derive(Clone, Default)]
pub(super) struct Gates(Arc<Mutex<Waiting>>);

impl Gates {
    /// Waits for earlier changes.
    pub(super) async fn enter(&self, gate: Gate) -> Pass {
        let new = || Arc::new(Semaphore::new(gate.width()));
        let turn = Arc::clone(self.lock().entry(gate.clone()).or_insert_with(new));
        // Made before the wait, so that the gate is cleaned up if the caller gives up.
        let mut pass = Pass { gates: self.clone(), gate, turn: None };
        // A gate is never closed.
        pass.turn = turn.acquire_owned().await.ok();
        pass
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gates").field("len", &self.lock().len()).finish()
    }
}

/// Keeps other changes waiting until it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gates: Gates,
    gate: Gate,
    turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.turn = None;
        let mut gates = self.gates.lock();
        // Other references are cloned only under the map's lock.
        if gates.get(&self.gate).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            gates.remove(&self.gate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(20);

    fn creation(org: &str) -> Gate {
        Gate::Creation(OrgId::new(org).unwrap())
    }

    #[tokio::test]
    async fn a_gate_admits_one_at_a_time_and_is_removed_afterwards() {
        let gates = Gates::default();
        let first = gates.enter(creation("acme")).await;
        let _other = gates.enter(creation("globex")).await;
        assert!(timeout(SOON, gates.enter(creation("acme"))).await.is_err(), "the gate is taken");
        let second = tokio::spawn({
            let gates = gates.clone();
            async move { gates.enter(creation("acme")).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        drop(second.await.unwrap());
        assert_eq!(gates.lock().len(), 1, "only the gate that is still taken");
    }
}
