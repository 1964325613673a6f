//! Random changes with a predictable outcome, to check a store after a process was killed
//! during them.

use std::collections::{BTreeMap, BTreeSet};

use keygate::{
    Actor, Denial, KeyFormat, KeyId, KeyManager, KeyName, KeyPatch, ManageError, NewKey, OrgId,
    Status, VerifyError,
};

#[path = "seeded.rs"]
mod seeded;

pub(crate) use seeded::Seeded;

/// The changes keep about this many keys.
const KEYS: usize = 8;

pub(crate) fn number() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    Create { seed: u64, name: String },
    Rotate { seed: u64, id: KeyId },
    Revoke { id: KeyId },
    Enable { id: KeyId },
    Rename { id: KeyId, name: String },
    Delete { id: KeyId },
}

impl Change {
    /// A random change of one of these keys, which may be revoked, or of a new one. `seed` is
    /// that of the manager's random bytes during the change.
    pub(crate) fn pick(seed: u64, keys: &[(KeyId, bool)]) -> Self {
        let one = keys.get(number() as usize % keys.len().max(1));
        let name = format!("name-{}", number() % 10);
        match (one, number() % 10) {
            (Some(&(id, _)), 0..=3) => Self::Rotate { seed, id },
            (Some(&(id, false)), 4 | 5) => Self::Revoke { id },
            (Some(&(id, true)), 4 | 5) => Self::Enable { id },
            (Some(&(id, _)), 6) => Self::Rename { id, name: format!("{name}-new") },
            (Some(&(id, _)), 7) => Self::Delete { id },
            (Some(&(id, _)), _) if keys.len() >= KEYS => Self::Delete { id },
            _ => Self::Create { seed, name },
        }
    }

    /// The key that the change issues a secret for, and that secret.
    pub(crate) fn issued(&self) -> Option<(KeyId, String)> {
        let (Self::Create { seed, .. } | Self::Rotate { seed, .. }) = self else { return None };
        let mut rng = Seeded::new(*seed);
        let secret = KeyFormat::default().generate(&mut rng).unwrap().expose_secret().to_owned();
        match self {
            Self::Rotate { id, .. } => Some((*id, secret)),
            _ => Some((KeyId::random(&mut rng).unwrap(), secret)),
        }
    }

    pub(crate) fn key(&self) -> KeyId {
        match self {
            Self::Create { .. } => self.issued().unwrap().0,
            Self::Rotate { id, .. }
            | Self::Revoke { id }
            | Self::Enable { id }
            | Self::Rename { id, .. }
            | Self::Delete { id } => *id,
        }
    }

    /// Makes the change. Returns the secret that it issued.
    pub(crate) async fn make(
        &self,
        keys: &KeyManager,
        actor: &Actor,
    ) -> Result<Option<String>, ManageError> {
        let issued = match self {
            Self::Create { name, .. } => keys.create(actor, NewKey::named(name).unwrap()).await?,
            Self::Rotate { id, .. } => keys.rotate(actor, id).await?,
            Self::Delete { id } => return keys.delete(actor, id).await.map(|()| None),
            Self::Revoke { id } | Self::Enable { id } | Self::Rename { id, .. } => {
                let patch = match self {
                    Self::Revoke { .. } => KeyPatch::revoke(),
                    Self::Rename { name, .. } => KeyPatch::rename(KeyName::new(name).unwrap()),
                    _ => KeyPatch::enable(),
                };
                return keys.update(actor, id, patch).await.map(|_| None);
            }
        };
        Ok(Some(issued.secret.expose_secret().to_owned()))
    }

    pub(crate) fn apply(&self, keys: &mut BTreeMap<KeyId, Key>) {
        let issued = self.issued();
        if let (Self::Create { name, .. }, Some((id, secret))) = (self, issued.clone()) {
            keys.insert(id, Key { name: name.clone(), revoked: false, revision: 1, secret });
            return;
        }
        if let Self::Delete { id } = self {
            keys.remove(id).unwrap();
            return;
        }
        let key = keys.get_mut(&self.key()).unwrap();
        let before = key.clone();
        match self {
            Self::Rotate { .. } => key.secret = issued.unwrap().1,
            Self::Revoke { .. } => key.revoked = true,
            Self::Enable { .. } => key.revoked = false,
            Self::Rename { name, .. } => key.name.clone_from(name),
            Self::Create { .. } | Self::Delete { .. } => {}
        }
        if *key != before {
            key.revision += 1; // an edit without an effect does not count
        }
    }
}

/// A key, as seen from outside.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) revoked: bool,
    pub(crate) revision: u32,
    /// The only one of all issued secrets that works for it.
    pub(crate) secret: String,
}

/// The stored keys of an organisation, each with the only secret that works for it.
pub(crate) async fn stored(
    keys: &KeyManager,
    org: &OrgId,
    secrets: &BTreeSet<String>,
) -> BTreeMap<KeyId, Key> {
    let mut working = BTreeMap::<KeyId, Vec<(String, bool)>>::new();
    for secret in secrets {
        let (id, is_active) = match keys.verify(secret, None).await {
            Ok(key) => {
                assert_eq!((key.record().status, key.org()), (Status::Active, org));
                (key.id(), true)
            }
            Err(VerifyError::Denied { denial: Denial::Revoked, key, .. }) => (key.id, false),
            Err(VerifyError::Unknown) => continue,
            Err(other) => panic!("{other:?}"),
        };
        working.entry(id).or_default().push((secret.clone(), is_active));
    }
    let mut stored = BTreeMap::new();
    for key in keys.list(org).await.unwrap() {
        let found = working.remove(&key.id).unwrap_or_default();
        let [(secret, is_active)] = &found[..] else {
            panic!("secrets that work for {key:?}: {found:?}")
        };
        let revoked = key.status == Status::Revoked;
        assert_eq!(*is_active, !revoked, "{key:?}");
        let (name, revision) = (key.name.as_str().to_owned(), key.revision.get());
        stored.insert(key.id, Key { name, revoked, revision, secret: secret.clone() });
    }
    assert!(working.is_empty(), "secrets of keys that are not listed: {working:?}");
    stored
}
