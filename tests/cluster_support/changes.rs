//! Changes with a predictable outcome, to check the store after a server was killed during
//! them. A simpler version of `tests/kill.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keygate::error::RandomError;
use keygate::{
    Actor, Delivery, Denial, KeyDigest, KeyFormat, KeyId, KeyManager, KeyManagerBuilder, KeyPatch,
    ManageError, NewKey, OrgId, PostgresStore, Random, Status, SystemRandom, VerifyError,
};

pub(crate) fn number() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom.fill(&mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

/// Random bytes that the test can compute too, so that it knows the secret of a change that
/// was not acknowledged.
#[derive(Clone, Debug)]
struct Seeded(Arc<Mutex<(u64, u64)>>);

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new((seed, 0))))
    }

    fn reset(&self, seed: u64) {
        *self.0.lock().unwrap() = (seed, 0);
    }
}

impl Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        let mut state = self.0.lock().unwrap();
        for chunk in bytes.chunks_mut(32) {
            let digest = KeyDigest::of([state.0.to_be_bytes(), state.1.to_be_bytes()].concat());
            chunk.copy_from_slice(&digest.as_bytes()[..chunk.len()]);
            state.1 += 1;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Create { seed: u64 },
    Rotate { seed: u64, id: KeyId },
    Revoke { id: KeyId },
    Delete { id: KeyId },
}

impl Change {
    /// The key and the secret that it issues.
    fn issued(self) -> Option<(KeyId, String)> {
        let (Self::Create { seed } | Self::Rotate { seed, .. }) = self else { return None };
        let random = Seeded::new(seed);
        let secret = KeyFormat::default().generate(&random).unwrap().expose_secret().to_owned();
        match self {
            Self::Rotate { id, .. } => Some((id, secret)),
            _ => Some((KeyId::random(&random).unwrap(), secret)),
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

/// A key, as seen from outside.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    /// The only one of all issued secrets that works for it.
    secret: String,
    revoked: bool,
    revision: u32,
}

/// Changes the keys of its own organisation, one after the other.
#[derive(Debug)]
pub(crate) struct Worker {
    manager: KeyManager,
    random: Seeded,
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
        let random = Seeded::new(number());
        let manager = builder
            .audit(store.clone())
            .delivery(Delivery::strict())
            .random(random.clone())
            .build()
            .unwrap();
        let actor = Actor::new(OrgId::new(org).unwrap(), "tester");
        let (keys, secrets) = (BTreeMap::new(), BTreeSet::new());
        Self { manager, random, actor, keys, secrets, in_doubt: None, longest_call: Duration::ZERO }
    }

    /// Makes one change. Returns `false` if the store is unavailable. Any other error fails
    /// the test.
    pub(crate) async fn change(&mut self) -> bool {
        assert!(self.in_doubt.is_none(), "check the last change first");
        let one = self.keys.iter().nth(number() as usize % self.keys.len().max(1));
        let seed = number();
        let change = match (one, number() % 10) {
            (Some((&id, _)), 0..=3) => Change::Rotate { seed, id },
            (Some((&id, key)), 4 | 5) if !key.revoked => Change::Revoke { id },
            (Some((&id, _)), 6) => Change::Delete { id },
            (Some((&id, _)), _) if self.keys.len() >= 8 => Change::Delete { id },
            _ => Change::Create { seed },
        };
        self.random.reset(seed);
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

    /// Polls until there is an answer.
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

    /// Compares the stored keys with the acknowledged changes, with or without the change in
    /// doubt. Returns whether that change took place, if there was one.
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

    /// Each key with the only secret that works for it.
    async fn found(&self) -> BTreeMap<KeyId, Key> {
        let (manager, org) = (&self.manager, self.actor.org());
        let mut secrets = BTreeMap::<KeyId, Vec<String>>::new();
        for secret in &self.secrets {
            let id = match manager.verify(secret, None).await {
                Ok(key) => key.id(),
                Err(VerifyError::Denied { denial: Denial::Revoked, key }) => key.id,
                Err(VerifyError::Unknown) => continue,
                Err(other) => panic!("{other:?}"),
            };
            secrets.entry(id).or_default().push(secret.clone());
        }
        let mut found = BTreeMap::new();
        for key in manager.list(org).await.unwrap() {
            let leading = secrets.remove(&key.id).unwrap_or_default();
            assert_eq!(leading.len(), 1, "secrets that work for {key:?}: {leading:?}");
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
