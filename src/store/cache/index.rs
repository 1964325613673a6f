//! Maps each key to the digests under which the cache holds it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use smallvec::SmallVec;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;

/// A key has one digest, or two during an overlap and briefly after a rotation.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<KeyId, SmallVec<[KeyDigest; 1]>>);

impl Index {
    pub(super) fn add(&mut self, id: KeyId, digest: KeyDigest) {
        let digests = self.0.entry(id).or_default();
        if !digests.contains(&digest) {
            digests.push(digest);
        }
    }

    pub(super) fn remove(&mut self, id: KeyId, digest: &KeyDigest) {
        self.retain(id, |other| other != digest);
    }

    pub(super) fn retain(&mut self, id: KeyId, mut stays: impl FnMut(&KeyDigest) -> bool) {
        if let Entry::Occupied(mut digests) = self.0.entry(id) {
            digests.get_mut().retain(|digest| stays(digest));
            if digests.get().is_empty() {
                digests.remove();
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0 = HashMap::new();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.values().map(|digests| digests.len()).sum()
    }
}
