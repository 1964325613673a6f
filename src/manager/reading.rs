//! Reading keys and their audit log.

use std::sync::Arc;

use crate::audit::log::{AuditPage, AuditQuery};
use crate::audit::sink::AuditError;
use crate::audit::usage::{Usage, UsageQuery};
use crate::key::format::KeyFormat;
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::error::{ManageError, StoreTimeout};
use crate::org::OrgId;
use crate::record::{ApiKey, Revision};
use crate::runtime::spawn::timeout;
use crate::store::transfer::{KeyExport, next_page};

/// Which keys a call finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those of the manager's own prefixes.
    Own,
    /// All in the store.
    All,
}

impl KeyManager {
    /// The organisation's keys, oldest first, including revoked and expired ones. Keys with
    /// a prefix that this manager does not have are left out: they are another service's.
    pub async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, ManageError> {
        let mut keys = self.inner.bounded("list", self.inner.store.list(org)).await?;
        keys.retain(|key| self.format_of(key).is_ok());
        Ok(keys)
    }

    /// One key of the organisation.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ManageError::NotFound), also for another organisation's key.
    pub async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Arc<ApiKey>, ManageError> {
        self.read(org, id, Reach::Own).await
    }

    pub(super) async fn read(
        &self,
        org: &OrgId,
        id: &KeyId,
        reach: Reach,
    ) -> Result<Arc<ApiKey>, ManageError> {
        let found = self.inner.bounded("get", self.inner.store.get(org, id)).await?;
        let key = found.ok_or(ManageError::NotFound)?;
        if reach == Reach::Own {
            self.format_of(&key)?;
        }
        Ok(key)
    }

    /// Looks at the first keys of this manager's store, and warns in the log if one has a
    /// prefix that the manager does not have. Such keys do not work, and are not listed:
    /// after a change of the prefix, keep the old one as an
    /// [environment](crate::manager::KeyManagerBuilder::environment). Returns whether there are any.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ManageError::Unavailable).
    pub async fn check_prefixes(&self, keys: &dyn KeyExport) -> Result<bool, ManageError> {
        let page = next_page(keys, None).await?;
        Ok(page.iter().any(|key| self.format_of(key).is_err()))
    }

    /// The format of a key. A key with a prefix that this manager does not have counts as
    /// not found.
    pub(super) fn format_of(&self, key: &ApiKey) -> Result<&KeyFormat, ManageError> {
        if let Some(environment) = self.inner.formats.of_shown(key.format_prefix()) {
            return Ok(environment.format());
        }
        if let Some(left_out) = self.inner.foreign.pass() {
            tracing::warn!(
                key_prefix = key.key_prefix,
                left_out,
                "the store has keys with a prefix that is not configured; they are ignored"
            );
        }
        Err(ManageError::NotFound)
    }

    /// Reads a page of the audit log, within the deadline for calls of the store. `None` if
    /// the manager was built without a log to read from.
    ///
    /// The reads of one organisation take turns, so that many at once, such as downloads, do
    /// not delay those of others.
    pub async fn audit_page(&self, query: &AuditQuery) -> Option<Result<AuditPage, ManageError>> {
        let log = self.inner.audit_log.as_ref()?;
        Some(self.in_turn(&query.org, async { log.page(query).await }).await)
    }

    /// Reads from the audit log when it is the organisation's turn.
    async fn in_turn<T>(
        &self,
        org: &OrgId,
        read: impl Future<Output = Result<T, AuditError>>,
    ) -> Result<T, ManageError> {
        let inner = &*self.inner;
        let read = async {
            let _turn = inner.log_turns.take(org.clone()).await;
            read.await
        };
        match timeout(&*inner.runtime, inner.store_deadline, read).await {
            Ok(answer) => answer.map_err(|error| ManageError::Unavailable(Box::new(error))),
            Err(_) => Err(ManageError::Unavailable(Box::new(StoreTimeout))),
        }
    }

    /// How often a key was used in the last days up to now, 1 to [`Usage::MAX_DAYS`]: by the
    /// hour for up to two days, otherwise by the day. Within the deadline for calls of the
    /// store. `None` if the manager was built without a log to read from.
    pub async fn usage(
        &self,
        org: &OrgId,
        id: &KeyId,
        days: u32,
    ) -> Option<Result<Usage, ManageError>> {
        let log = self.inner.audit_log.as_ref()?;
        let mut usage = Usage::empty(days, self.now());
        let (from, until) = usage.time();
        let query = UsageQuery::new(org.clone(), *id, from, until);
        let hours = self.in_turn(org, async { log.usage(&query).await }).await;
        Some(hours.map(|hours| {
            usage.fill(&hours);
            usage
        }))
    }

    /// One key of the organisation, if it is at this revision.
    pub(super) async fn get_at(
        &self,
        org: &OrgId,
        id: &KeyId,
        only_at: Option<Revision>,
        reach: Reach,
    ) -> Result<Arc<ApiKey>, ManageError> {
        let key = self.read(org, id, reach).await?;
        if only_at.is_some_and(|revision| revision != key.revision) {
            return Err(ManageError::StaleRevision { current: key.revision });
        }
        Ok(key)
    }
}
