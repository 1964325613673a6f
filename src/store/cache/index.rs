//! Under which digests each key is kept: exactly what the cache holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use smallvec::SmallVec;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;

/// A key is kept under one digest; for a moment under two, where it was rotated.
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
