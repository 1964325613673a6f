//! The import of a broken store.

use keygate::store::{Attributes, KeyImport};
use keygate::{ApiKey, StoreError};

use super::fault::Fault;
use super::gap;
use super::store::{BrokenStore, State};

#[async_trait::async_trait]
impl KeyImport for BrokenStore {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        let mut inserted = Vec::new();
        if self.is(Fault::ImportOfNothingFails) && keys.is_empty() {
            return Err(StoreError::unavailable("syntax error: VALUES without a row"));
        }
        for key in keys {
            let mut checked = None;
            if self.is(Fault::ImportChecksThenWrites) {
                checked = Some(self.is_free(&self.lock(), key));
                gap().await;
            }
            let mut state = self.lock();
            let is_free = checked.unwrap_or_else(|| self.is_free(&state, key));
            if !is_free && self.is(Fault::ImportFailsAtTaken) {
                return Err(StoreError::Conflict);
            }
            let stops = self.is(Fault::ImportStopsAtTaken) && inserted.contains(&false);
            let is_full = self.is(Fault::ImportKeepsToTheLimit)
                && state.keys.values().filter(|other| other.org == key.org).count() >= 20;
            let is_new = is_free && !stops && !is_full;
            if is_new {
                self.put_imported(&mut state, key);
            }
            inserted.push(is_new || self.is(Fault::ImportSaysYes));
        }
        if self.is(Fault::ImportAnswersBackwards) {
            inserted.sort();
        }
        Ok(inserted)
    }
}

impl BrokenStore {
    fn is_free(&self, state: &State, key: &ApiKey) -> bool {
        let same_id = state.keys.get(&key.id);
        let id_is_free = match self.fault {
            Fault::ImportOverwritesId => true,
            Fault::ImportUndoesChanges => same_id.is_none_or(|old| old.digest == key.digest),
            Fault::ImportIdUniquePerOrg => same_id.is_none_or(|old| old.org != key.org),
            _ => same_id.is_none(),
        };
        let digest_is_free = match self.fault {
            Fault::ImportOverwritesDigest => true,
            Fault::ImportIgnoresPrevious => {
                state.keys.values().all(|other| other.digest != key.digest)
            }
            _ => self.check_digest(state, key).is_ok(),
        };
        id_is_free && digest_is_free
    }

    fn put_imported(&self, state: &mut State, key: &ApiKey) {
        let mut key = key.clone();
        if self.is(Fault::ImportForgetsAttributes) {
            key.attributes = Attributes::default();
        }
        if self.is(Fault::ImportedKeysDoNotCount) {
            *state.extra_places.entry(key.org.clone()).or_default() -= 1;
        }
        state.put(key);
    }
}
