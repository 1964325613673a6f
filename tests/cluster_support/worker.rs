//! A worker that changes keys on a server that is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use keygate::manager::KeyManagerBuilder;
use keygate::{Actor, Delivery, KeyId, KeyManager, ManageError, OrgId, PostgresStore};

use super::changes::{Change, Key, Seeded, number, stored};

/// Whether a change failed because the store was unavailable, perhaps during the change.
pub(crate) fn is_outage(error: &ManageError) -> bool {
    matches!(error, ManageError::Unavailable(_) | ManageError::InDoubt(_))
}

/// Changes the keys of its own organisation, one after the other.
#[derive(Debug)]
pub(crate) struct Worker {
    manager: KeyManager,
    rng: Seeded,
    actor: Actor,
    keys: BTreeMap<KeyId, Key>,
    secrets: BTreeSet<String>,
    in_doubt: Option<Change>,
    pub(crate) longest_call: Duration,
}

impl Worker {
    pub(crate) fn new(store: &PostgresStore, org: &str) -> Self {
        Self::over(KeyManager::builder(store.clone()), store, org)
    }

    /// Uses the store behind the given builder, and `store` for the audit log.
    pub(crate) fn over(builder: KeyManagerBuilder, store: &PostgresStore, org: &str) -> Self {
        let rng = Seeded::new(number());
        let manager = builder
            .audit(store.clone())
            .delivery(Delivery::strict())
            .rng(rng.clone())
            .build()
            .unwrap();
        let actor = Actor::new(OrgId::new(org).unwrap(), "tester");
        let (keys, secrets) = (BTreeMap::new(), BTreeSet::new());
        Self { manager, rng, actor, keys, secrets, in_doubt: None, longest_call: Duration::ZERO }
    }

    /// Makes one change. Returns `false` if the store is unavailable. Any other error fails
    /// the test.
    pub(crate) async fn change(&mut self) -> bool {
        assert!(self.in_doubt.is_none(), "check the last change first");
        let present: Vec<_> = self.keys.iter().map(|(id, key)| (*id, key.revoked)).collect();
        let seed = number();
        let change = Change::pick(seed, &present);
        self.rng.reset(seed);
        let issued = change.issued().map(|(_, secret)| secret);
        self.secrets.extend(issued.clone());
        let begun = Instant::now();
        let outcome = change.make(&self.manager, &self.actor).await;
        self.longest_call = self.longest_call.max(begun.elapsed());
        match outcome {
            Ok(secret) => {
                assert_eq!(secret, issued);
                change.apply(&mut self.keys);
                true
            }
            Err(error) => {
                assert!(is_outage(&error), "{change:?}: {error:?}");
                self.in_doubt = Some(change);
                false
            }
        }
    }

    /// Polls until there is an answer.
    pub(crate) async fn wait_for_recovery(&mut self) {
        loop {
            let begun = Instant::now();
            let listed = self.manager.list(self.actor.org()).await;
            self.longest_call = self.longest_call.max(begun.elapsed());
            let Err(error) = listed else { return };
            assert!(is_outage(&error), "{error:?}");
            tokio::task::yield_now().await;
        }
    }

    /// Compares the stored keys with the acknowledged changes, with or without the change in
    /// doubt. Returns whether that change took place, if there was one.
    pub(crate) async fn check(&mut self) -> Option<bool> {
        let found = stored(&self.manager, self.actor.org(), &self.secrets).await;
        let Some(change) = self.in_doubt.take() else {
            assert_eq!(found, self.keys);
            return None;
        };
        let without = self.keys.clone();
        change.apply(&mut self.keys);
        if found == without {
            self.keys = without;
            return Some(false);
        }
        assert_eq!(found, self.keys, "in doubt {change:?}, without it {without:#?}");
        Some(true)
    }
}
