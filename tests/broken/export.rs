//! The export of a broken store.

use std::sync::Arc;

use keygate::store::KeyExport;
use keygate::{ApiKey, KeyId, Status, StoreError};

use super::fault::Fault;
use super::store::BrokenStore;

#[async_trait::async_trait]
impl KeyExport for BrokenStore {
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let state = self.lock();
        if self.is(Fault::ExportNeedsAfter) && after.is_none() {
            return Ok(Vec::new());
        }
        if self.is(Fault::ExportEndsInAnError) && after.is_some_and(|id| id.to_bytes()[0] == 0xff) {
            return Err(StoreError::NotFound);
        }
        let gone = |id: &&KeyId| !state.keys.contains_key(id) && state.was_here(id);
        let after = after.filter(|id| !self.is(Fault::ExportStartsOverAtGoneKey) || !gone(id));
        let ghosts = state.ghosts.values().filter(|_| self.is(Fault::ExportKeepsDeleted));
        let all = state.keys.values().chain(ghosts);
        let mut keys: Vec<&ApiKey> = all
            .filter(|key| match self.fault {
                Fault::ExportRepeatsAfter => after.is_none_or(|after| key.id >= *after),
                _ => after.is_none_or(|after| key.id > *after),
            })
            .collect();
        let signed = |key: &&ApiKey| key.id.to_bytes().map(u8::cast_signed);
        keys.sort_by_key(|key| key.id);
        match self.fault {
            Fault::ExportIsSigned => keys.sort_by_key(signed),
            Fault::ExportOfOneOrg => {
                let org = keys.first().map(|key| &key.org);
                keys.retain(|key| Some(&key.org) == org);
            }
            Fault::ExportOfActiveKeys => keys.retain(|key| key.status == Status::Active),
            Fault::ExportStopsAtAHundred => keys.truncate(100),
            _ => {}
        }
        Ok(keys.into_iter().take(limit).cloned().map(Arc::new).collect())
    }
}
