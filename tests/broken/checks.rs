//! The columns and the checks of the broken store.

use keygate::store::{KeyUse, OrgLimit, Revision};
use keygate::{Allowlist, ApiKey, KeyId, KeyName, OrgId, Status, StoreError, Timestamp};

use super::fault::Fault;
use super::gap;
use super::store::{BrokenStore, State};

impl BrokenStore {
    pub(super) fn same_org(&self, a: &OrgId, b: &OrgId) -> bool {
        let (a, b) = (a.as_str(), b.as_str());
        match self.fault {
            Fault::OrgsIgnoreCase => a.eq_ignore_ascii_case(b),
            Fault::OrgsAreTrimmed => a.trim_end() == b.trim_end(),
            Fault::OrgsAreCutOff => a.chars().take(100).eq(b.chars().take(100)),
            _ => a == b,
        }
    }

    pub(super) fn same_id(&self, a: &KeyId, b: &KeyId) -> bool {
        let bytes = if self.is(Fault::IdsInPart) { 8 } else { 16 };
        a.to_bytes()[..bytes] == b.to_bytes()[..bytes]
    }

    pub(super) fn find<'s>(&self, state: &'s State, org: &OrgId, id: &KeyId) -> Option<&'s ApiKey> {
        state.keys.values().find(|key| self.same_org(&key.org, org) && self.same_id(&key.id, id))
    }

    /// The record as the faulty columns store it.
    pub(super) fn stored(&self, key: &ApiKey) -> ApiKey {
        let mut key = key.clone();
        let times = |key: &mut ApiKey, change: fn(Timestamp) -> Timestamp| {
            key.created_at = change(key.created_at);
            key.expires_at = key.expires_at.map(change);
            key.rotated_at = key.rotated_at.map(change);
            key.last_used_at = key.last_used_at.map(change);
            if let Some(previous) = &mut key.previous {
                previous.until = change(previous.until);
            }
        };
        let epoch = Timestamp::from_unix_micros(0);
        match self.fault {
            Fault::Milliseconds => times(&mut key, |at| {
                Timestamp::from_unix_micros(at.unix_micros().div_euclid(1_000) * 1_000).unwrap()
            }),
            Fault::TimesFrom1970 => {
                times(&mut key, |at| Timestamp::from_unix_micros(at.unix_micros().max(0)).unwrap())
            }
            Fault::MissingTimesAreZero => key.rotated_at = key.rotated_at.or(epoch),
            Fault::NamesAreCheckedAnew if KeyName::new(key.name.as_str()).is_err() => {
                key.name = KeyName::new("unnamed").unwrap();
            }
            Fault::NamesAreNormalised => {
                let words: Vec<&str> = key.name.as_str().split_whitespace().collect();
                key.name = KeyName::new(words.join(" ")).unwrap();
            }
            Fault::KeyPrefixOfTwelve => key.key_prefix.truncate(12),
            Fault::AllowlistIsSorted => {
                let mut entries = key.allowlist.entries();
                entries.sort();
                key.allowlist = Allowlist::restore(entries);
            }
            Fault::AllowlistJoinedByCommas => {
                key.allowlist = Allowlist::restore(key.allowlist.entries().join(",").split(','));
            }
            Fault::UnreadableAllowlistIsEmpty if !key.allowlist.is_readable() => {
                key.allowlist = Allowlist::default();
            }
            Fault::RevisionIsSigned => {
                key.revision = Revision::new(key.revision.get() & 0x7fff_ffff)
            }
            _ => {}
        }
        key
    }

    pub(super) fn check_unique(&self, state: &mut State, key: &ApiKey) -> Result<(), StoreError> {
        if self.is(Fault::SameKeyAgainIsFine) && state.keys.get(&key.id) == Some(key) {
            return Ok(());
        }
        if self.is(Fault::RefusedInsertTakesDigest) && !state.taken_digests.insert(key.digest) {
            return Err(StoreError::Conflict);
        }
        let id_is_taken = state.keys.contains_key(&key.id) || state.taken_ids.contains(&key.id);
        let same_name = |other: &ApiKey| other.org == key.org && other.name == key.name;
        let name_is_taken = self.is(Fault::NamesAreUnique) && state.keys.values().any(same_name);
        if (id_is_taken && !self.is(Fault::InsertOverwritesId)) || name_is_taken {
            return Err(StoreError::Conflict);
        }
        if self.is(Fault::InsertOverwritesDigest) {
            return Ok(());
        }
        self.check_digest(state, key)
    }

    pub(super) fn check_digest(&self, state: &State, key: &ApiKey) -> Result<(), StoreError> {
        let per_org = self.is(Fault::DigestUniquePerOrg);
        let separate = self.is(Fault::PreviousDigestsAreSeparate);
        let previous = |key: &ApiKey| key.previous.map(|previous| previous.digest);
        let is_taken = |digest| {
            let owner = state.by_digest.get(&digest).and_then(|id| state.keys.get(id));
            owner.is_some_and(|owner| {
                let same_column = (owner.digest == digest && key.digest == digest)
                    || (previous(owner) == Some(digest) && previous(key) == Some(digest));
                owner.id != key.id
                    && (!per_org || owner.org == key.org)
                    && (!separate || same_column)
            })
        };
        let old = self.is(Fault::OldDigestStaysTaken) && state.taken_digests.contains(&key.digest);
        if key.digests().any(is_taken) || old { Err(StoreError::Conflict) } else { Ok(()) }
    }

    pub(super) fn check_room(
        &self,
        state: &State,
        org: &OrgId,
        limit: OrgLimit,
    ) -> Result<(), StoreError> {
        let counts = |key: &&ApiKey| match self.fault {
            Fault::RevokedKeysDoNotCount => key.status == Status::Active,
            Fault::ExpiredKeysDoNotCount => key.expires_at.is_none(),
            _ => true,
        };
        let all_orgs = self.is(Fault::LimitCountsAllOrgs);
        let own = state.keys.values().filter(|key| all_orgs || self.same_org(&key.org, org));
        let extra = state.extra_places.get(org).copied().unwrap_or(0);
        let count = own.filter(counts).count().checked_add_signed(extra).unwrap_or(0);
        let Some(max) = limit.get() else {
            let full = self.is(Fault::LimitNoneIsTwenty) && count >= 20;
            return if full { Err(StoreError::LimitReached) } else { Ok(()) };
        };
        let admits = match self.fault {
            Fault::LimitOffByOne => count <= max as usize,
            Fault::LimitZeroIsNone if max == 0 => true,
            Fault::LimitIsSigned => (count as i32) < max.cast_signed(),
            Fault::LimitIsComparedByEquality => count != max as usize,
            _ => limit.admits_one_more(count),
        };
        if admits { Ok(()) } else { Err(StoreError::LimitReached) }
    }

    pub(super) fn check_replace(
        &self,
        state: &State,
        key: &ApiKey,
        expected: Revision,
    ) -> Result<(), StoreError> {
        let stored = match self.fault {
            Fault::ReplaceIgnoresOrg => state.keys.get(&key.id),
            _ => self.find(state, &key.org, &key.id),
        };
        match stored {
            None if self.is(Fault::ReplaceInserts) => Ok(()),
            None => Err(StoreError::NotFound),
            Some(_) if self.is(Fault::ReplaceIgnoresRevision) => Ok(()),
            Some(stored) if stored.revision == expected => Ok(()),
            Some(_) => Err(StoreError::Conflict),
        }
    }

    pub(super) fn check_delete(
        &self,
        state: &State,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let stored = match self.fault {
            Fault::DeleteIgnoresOrg => state.keys.get(id),
            _ => self.find(state, org, id),
        };
        let stored = stored.ok_or(StoreError::NotFound)?;
        let expected = expected.filter(|_| !self.is(Fault::DeleteIgnoresRevision));
        let is_expected = expected.is_none_or(|expected| expected == stored.revision);
        if is_expected { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// A transaction on the only connection.
    pub(super) async fn pass_through_busy(&self) -> Result<(), StoreError> {
        self.check_busy()?;
        self.lock().busy = true;
        gap().await;
        self.lock().busy = false;
        Ok(())
    }

    pub(super) fn check_busy(&self) -> Result<(), StoreError> {
        if self.lock().busy { Err(StoreError::unavailable("in a transaction")) } else { Ok(()) }
    }

    pub(super) async fn lock_key_by_key(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        let mut held: Vec<KeyId> = Vec::new();
        for used in uses {
            let mut attempts = 0;
            while !held.contains(&used.id) && !self.lock().locked.insert(used.id) {
                attempts += 1;
                if attempts > 1_000 {
                    self.lock().locked.retain(|id| !held.contains(id));
                    return Err(StoreError::unavailable("deadlock detected"));
                }
                tokio::task::yield_now().await;
            }
            held.push(used.id);
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}
