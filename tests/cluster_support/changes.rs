//! Changes whose outcome can be worked out: what must be found after a server was
//! killed in the midst of them. A simpler sibling of `tests/kill.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use keygate::{
    Actor, Delivery, Denial, KeyFormat, KeyId, KeyManager, KeyManagerBuilder, KeyPatch,
    ManageError, NewKey, OrgId, PostgresStore, Status, VerifyError,
};

use crate::cluster_support::seeded::Seeded;

pub(crate) fn number() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Create { seed: u64 },
    Rotate { seed: u64, id: KeyId },
    Revoke { id: KeyId },
    Delete { id: KeyId },
}

impl Change {
    /// The key and the secret that it gives out.
    fn issued(self) -> Option<(KeyId, String)> {
        let (Self::Create { seed } | Self::Rotate { seed, .. }) = self else { return None };
        let mut rng = Seeded::new(seed);
        let secret = KeyFormat::default().generate(&mut rng).unwrap().expose_secret().to_owned();
        match self {
            Self::Rotate { id, .. } => Some((id, secret)),
            _ => Some((KeyId::random(&mut rng).unwrap(), secret)),
        }
    }

    fn apply(self, keys: &mut BTreeMap<KeyId, Key>) {
        match self {
            Self::Create { .. } => {
                let (id, secret) = self.issued().unwrap();
                keys.insert(id, Key { secret, revoked: false, revision: 1 });
            }
            Self::Rotate { id, .. } => {
                let key = keys.get_mut(&id).unwrap();
                (key.secret, key.revision) = (self.issued().unwrap().1, key.revision + 1);
            }
            Self::Revoke { id } => {
                let key = keys.get_mut(&id).unwrap();
                (key.revoked, key.revision) = (true, key.revision + 1);
            }
            Self::Delete { id } => drop(keys.remove(&id).unwrap()),
        }
    }
}

/// A key, as anybody can see it from outside.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    /// The one of all secrets ever given out that leads to it.
    secret: String,
    revoked: bool,
    revision: u32,
}

/// Changes the keys of an organisation of its own, one after the other.
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

    /// Through whatever stands in front of the store, which has the audit log.
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

    /// Makes one change; `false` where the store does not work now. Whatever else
    /// it says is a fault.
    pub(crate) async fn change(&mut self) -> bool {
        assert!(self.in_doubt.is_none(), "the last change is to be checked first");
        let one = self.keys.iter().nth(number() as usize % self.keys.len().max(1));
        let seed = number();
        let change = match (one, number() % 10) {
            (Some((&id, _)), 0..=3) => Change::Rotate { seed, id },
            (Some((&id, key)), 4 | 5) if !key.revoked => Change::Revoke { id },
            (Some((&id, _)), 6) => Change::Delete { id },
            (Some((&id, _)), _) if self.keys.len() >= 8 => Change::Delete { id },
            _ => Change::Create { seed },
        };
        self.rng.reset(seed);
        self.secrets.extend(change.issued().map(|(_, secret)| secret));
        let (manager, actor, begun) = (&self.manager, &self.actor, Instant::now());
        let outcome = match change {
            Change::Create { .. } => {
                let made = manager.create(actor, NewKey::named("CI deploy").unwrap()).await;
                made.map(|made| Some(made.secret))
            }
            Change::Rotate { id, .. } => {
                manager.rotate(actor, &id).await.map(|made| Some(made.secret))
            }
            Change::Revoke { id } => {
                manager.update(actor, &id, KeyPatch::revoke()).await.map(|_| None)
            }
            Change::Delete { id } => manager.delete(actor, &id).await.map(|()| None),
        };
        self.longest_call = self.longest_call.max(begun.elapsed());
        match outcome {
            Ok(secret) => {
                let issued = change.issued().map(|(_, secret)| secret);
                assert_eq!(secret.map(|secret| secret.expose_secret().to_owned()), issued);
                change.apply(&mut self.keys);
                true
            }
            Err(ManageError::Unavailable(_) | ManageError::InDoubt(_)) => {
                self.in_doubt = Some(change);
                false
            }
            Err(error) => panic!("{change:?}: {error:?}"),
        }
    }

    /// Asks until there is an answer.
    pub(crate) async fn wait_for_recovery(&mut self) {
        loop {
            let begun = Instant::now();
            let listed = self.manager.list(self.actor.org()).await;
            self.longest_call = self.longest_call.max(begun.elapsed());
            match listed {
                Ok(_) => return,
                Err(ManageError::Unavailable(_) | ManageError::InDoubt(_)) => {
                    tokio::task::yield_now().await
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Compares what is stored with what was acknowledged, without the change in
    /// doubt or with it. Says which, where there was one.
    pub(crate) async fn check(&mut self) -> Option<bool> {
        let found = self.found().await;
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

    /// Each key, with the one secret that leads to it.
    async fn found(&self) -> BTreeMap<KeyId, Key> {
        let (manager, org) = (&self.manager, self.actor.org());
        let mut secrets = BTreeMap::<KeyId, Vec<String>>::new();
        for secret in &self.secrets {
            let id = match manager.verify(secret, None).await {
                Ok(key) => key.id(),
                Err(VerifyError::Denied { denial: Denial::Revoked, key, .. }) => key.id,
                Err(VerifyError::Unknown) => continue,
                Err(other) => panic!("{other:?}"),
            };
            secrets.entry(id).or_default().push(secret.clone());
        }
        let mut found = BTreeMap::new();
        for key in manager.list(org).await.unwrap() {
            let leading = secrets.remove(&key.id).unwrap_or_default();
            assert_eq!(leading.len(), 1, "secrets that lead to {key:?}: {leading:?}");
            let revoked = key.status == Status::Revoked;
            let works = manager.verify(&leading[0], None).await.is_ok();
            assert_eq!(works, !revoked, "{key:?}");
            let revision = key.revision.get();
            found.insert(key.id, Key { secret: leading.concat(), revoked, revision });
        }
        assert!(secrets.is_empty(), "secrets of keys that are not listed: {secrets:?}");
        found
    }
}
