//! What a broken store and a broken log lose when they are reopened.

use keygate::audit::{AuditEvent, ChangePhase};
use keygate::store::KeyDigest;
use keygate::{ApiKey, OrgId};

use super::fault::{Fault, LogFault};
use super::log::BrokenLog;
use super::store::BrokenStore;

impl BrokenStore {
    /// Opens the store, for the first time or again.
    pub(crate) fn open(&self) -> Self {
        let mut state = self.lock();
        state.openings += 1;
        match self.fault {
            Fault::ReopenedWithDeletedKeys => {
                let ghosts = std::mem::take(&mut state.ghosts);
                ghosts.into_values().for_each(|key| state.put(key));
            }
            Fault::ReopenedWithFirstVersions => {
                let first = state.first_versions.clone();
                state.keys.values_mut().for_each(|key| *key = first[&key.id].clone());
            }
            Fault::ReopenedWithoutCount => {
                let orgs: Vec<OrgId> = state.keys.values().map(|key| key.org.clone()).collect();
                state.extra_places.clear();
                orgs.iter().for_each(|org| state.take_places(org, -1));
            }
            Fault::ReopenedWithoutUniqueness => state.by_digest.clear(),
            Fault::ReopenedStoreIsNotSaved => match state.openings {
                1 => {}
                2 => state.saved = state.keys.clone(),
                _ => state.keys = state.saved.clone(),
            },
            _ => state.keys.values_mut().for_each(|key| forget(key, self.fault)),
        }
        drop(state);
        self.clone()
    }
}

fn forget(key: &mut ApiKey, fault: Fault) {
    let blank = ApiKey::sample(0);
    match fault {
        Fault::ReopenedWithoutOrg => key.org = OrgId::new("forgotten").unwrap(),
        Fault::ReopenedWithoutName => key.name = blank.name,
        Fault::ReopenedWithoutKeyPrefix => key.key_prefix.clear(),
        Fault::ReopenedWithoutDigest => key.digest = KeyDigest::of("forgotten"),
        Fault::ReopenedWithoutStatus => key.status = blank.status,
        Fault::ReopenedWithoutAllowlist => key.allowlist = blank.allowlist,
        Fault::ReopenedWithoutCreatedAt => key.created_at = blank.created_at,
        Fault::ReopenedWithoutExpiresAt => key.expires_at = None,
        Fault::ReopenedWithoutRotatedAt => key.rotated_at = None,
        Fault::ReopenedWithoutPrevious => key.previous = None,
        Fault::ReopenedWithoutLastUsedAt => key.last_used_at = None,
        Fault::ReopenedWithoutRevision => key.revision = blank.revision,
        Fault::ReopenedWithoutAttributes => key.attributes = blank.attributes,
        _ => {}
    }
}

impl BrokenLog {
    /// Opens the log, for the first time or again.
    pub(crate) fn open(&self) -> Self {
        let mut state = self.lock();
        state.is_reopened = state.is_open;
        state.is_open = true;
        state.known_from = state.records.len();
        if state.is_reopened && self.fault == LogFault::ReopenedWithoutCounts {
            state.usage.clear();
        }
        let purged = std::mem::take(&mut state.purged);
        match self.fault {
            LogFault::ReopenedWithPurgedRecords => state.records.extend(purged),
            _ => {
                state.records.iter_mut().for_each(|record| match (&mut record.event, self.fault) {
                    (AuditEvent::Request(request), LogFault::ReopenedWithoutCountries) => {
                        request.country = None;
                    }
                    (AuditEvent::Change(change), LogFault::ReopenedWithoutPhases) => {
                        change.phase = ChangePhase::Begun;
                    }
                    _ => {}
                })
            }
        }
        drop(state);
        self.clone()
    }
}
