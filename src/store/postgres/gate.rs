//! One change at a time for each key, and one creation for each organisation.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::key::id::KeyId;
use crate::org::OrgId;

/// What changes must not pile up on: while a row is locked, those that want it wait here
/// and hold no connection, except for the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Gate {
    Creation(OrgId),
    Key(KeyId),
}

type Waiting = HashMap<Gate, Arc<Mutex<()>>>;

/// The gates at which there is a change, and no others.
#[derive(Clone, Default)]
pub(super) struct Gates(Arc<Lock<Waiting>>);

impl Gates {
    /// Waits for those who came before.
    pub(super) async fn enter(&self, gate: Gate) -> Pass {
        let turn = Arc::clone(self.lock().entry(gate.clone()).or_default());
        // Before the wait, so that a caller that gives up is not forgotten.
        let mut pass = Pass { gates: self.clone(), gate, turn: None };
        pass.turn = Some(turn.lock_owned().await);
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

/// Keeps others out until it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gates: Gates,
    gate: Gate,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.turn = None;
        let mut gates = self.gates.lock();
        // All others that have it hold it through the map's lock.
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
    async fn a_gate_lets_one_through_at_a_time_and_is_forgotten_afterwards() {
        let gates = Gates::default();
        let first = gates.enter(creation("acme")).await;
        let _other = gates.enter(creation("globex")).await;
        assert!(timeout(SOON, gates.enter(creation("acme"))).await.is_err(), "it is taken");
        let second = tokio::spawn({
            let gates = gates.clone();
            async move { gates.enter(creation("acme")).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        drop(second.await.unwrap());
        assert_eq!(gates.lock().len(), 1, "only the one that is still taken");
    }
}
