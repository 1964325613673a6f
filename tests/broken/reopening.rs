//! What a broken store and a broken log lose when they are reopened.

use std::collections::HashMap;

use keygate::audit::{AuditEvent, ChangePhase};
use keygate::store::KeyDigest;
use keygate::{ApiKey, OrgId};

use super::fault::{Fault, Field, LogFault};
use super::log::BrokenLog;
use super::store::BrokenStore;

impl BrokenStore {
    /// Opens the store, for the first time or again.
    pub(crate) fn open(&self) -> Self {
        let mut state = self.lock();
        state.openings += 1;
        match self.fault {
            Fault::ReopenedWithout(field) => {
                state.keys.values_mut().for_each(|key| forget(key, field));
            }
            Fault::ReopenedWithDeletedKeys => {
                let ghosts = std::mem::take(&mut state.ghosts);
                ghosts.into_values().for_each(|key| state.put(key));
            }
            Fault::ReopenedWithFirstVersions => {
                let first = state.first_versions.clone();
                state.keys.values_mut().for_each(|key| *key = first[&key.id].clone());
            }
            Fault::ReopenedWithoutCount => {
                let mut counts: HashMap<OrgId, isize> = HashMap::new();
                state
                    .keys
                    .values()
                    .for_each(|key| *counts.entry(key.org.clone()).or_default() -= 1);
                state.extra_places = counts;
            }
            Fault::ReopenedWithoutUniqueness => state.by_digest.clear(),
            Fault::ReopenedStoreIsNotSaved => match state.openings {
                1 => {}
                2 => state.saved = state.keys.clone(),
                _ => state.keys = state.saved.clone(),
            },
            _ => {}
        }
        drop(state);
        self.clone()
    }
}

fn forget(key: &mut ApiKey, field: Field) {
    let blank = ApiKey::sample(0);
    match field {
        Field::Org => key.org = OrgId::new("forgotten").unwrap(),
        Field::Name => key.name = blank.name,
        Field::KeyPrefix => key.key_prefix.clear(),
        Field::Digest => key.digest = KeyDigest::of("forgotten"),
        Field::Status => key.status = blank.status,
        Field::Allowlist => key.allowlist = blank.allowlist,
        Field::CreatedAt => key.created_at = blank.created_at,
        Field::ExpiresAt => key.expires_at = None,
        Field::RotatedAt => key.rotated_at = None,
        Field::Previous => key.previous = None,
        Field::LastUsedAt => key.last_used_at = None,
        Field::Revision => key.revision = blank.revision,
        Field::Attributes => key.attributes = blank.attributes,
    }
}

impl BrokenLog {
    /// Opens the log, for the first time or again.
    pub(crate) fn open(&self) -> Self {
        let mut state = self.lock();
        state.is_reopened = state.is_open;
        state.is_open = true;
        state.known_from = state.records.len();
        let purged = std::mem::take(&mut state.purged);
        match self.fault {
            LogFault::ReopenedWithPurgedRecords => state.records.extend(purged),
            LogFault::ReopenedWithoutCountries => {
                for record in &mut state.records {
                    if let AuditEvent::Request(request) = &mut record.event {
                        request.country = None;
                    }
                }
            }
            LogFault::ReopenedWithoutPhases => {
                for record in &mut state.records {
                    if let AuditEvent::Change(change) = &mut record.event {
                        change.phase = ChangePhase::Begun;
                    }
                }
            }
            _ => {}
        }
        drop(state);
        self.clone()
    }
}
