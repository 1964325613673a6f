//! One database through two handles, as two processes use it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use crate::audit::log::{AuditLog, AuditPage, AuditQuery};
use crate::audit::record::AuditRecord;
use crate::audit::sink::{AuditError, AuditSink};
use crate::audit::usage::{UsageBucket, UsageQuery};
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision};
use crate::runtime::clock::Timestamp;
use crate::store::key_store::{KeyStore, StoreError};
use crate::store::search::{KeySearch, Search, SearchCursor, SearchPage};
use crate::store::transfer::{KeyExport, KeyImport};

/// A store or a log that passes its calls to two handles in turn, so that one handle mostly
/// reads what the other wrote.
///
/// Pass one to the suite to check what holds between processes: that the limit counts the keys
/// of all of them, and that no handle returns a stale entry of its cache. For more than two
/// handles, nest it.
///
/// ```
/// use std::sync::Arc;
/// use keygate::MemoryStore;
/// use keygate::conformance::{TwoHandles, check_store};
///
/// # #[tokio::main(worker_threads = 4)]
/// # async fn main() {
/// let report = check_store(|| async {
///     // Two connections to one database in a real test.
///     let database = Arc::new(MemoryStore::new());
///     TwoHandles::new(Arc::clone(&database), database)
/// });
/// report.await.unwrap();
/// # }
/// ```
#[derive(Debug)]
pub struct TwoHandles<T> {
    handles: [T; 2],
    calls: AtomicUsize,
}

impl<T> TwoHandles<T> {
    /// Takes two handles to the same data.
    pub fn new(first: T, second: T) -> Self {
        Self { handles: [first, second], calls: AtomicUsize::new(0) }
    }

    fn next(&self) -> &T {
        let [first, second] = &self.handles;
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { first } else { second }
    }
}

#[async_trait]
impl<S: KeyStore> KeyStore for TwoHandles<S> {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.next().insert(key, limit).await
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.next().find_by_digest(digest).await
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.next().get(org, id).await
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.next().list(org).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.next().replace(key, expected).await
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.next().delete(org, id, expected).await
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.next().record_uses(uses).await
    }
}

#[async_trait]
impl<S: KeyExport> KeyExport for TwoHandles<S> {
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.next().export(after, limit).await
    }
}

#[async_trait]
impl<S: KeyImport> KeyImport for TwoHandles<S> {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        self.next().insert_all(keys).await
    }
}

#[async_trait]
impl<S: KeySearch> KeySearch for TwoHandles<S> {
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        self.next().find_by_id(id).await
    }

    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError> {
        self.next().search(search, after, limit).await
    }
}

#[async_trait]
impl<L: AuditSink> AuditSink for TwoHandles<L> {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        self.next().record(batch).await
    }
}

#[async_trait]
impl<L: AuditLog> AuditLog for TwoHandles<L> {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        self.next().page(query).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        self.next().usage(query).await
    }

    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        self.next().purge_before(instant).await
    }
}

/// An [`AuditSink`] that is also an [`AuditLog`].
pub(super) trait SinkAndLog: AuditSink + AuditLog + fmt::Debug {}

impl<T: AuditSink + AuditLog> SinkAndLog for T {}

/// A [`KeyStore`] that is also a [`KeyExport`].
pub(super) trait StoreAndExport: KeyStore + KeyExport + fmt::Debug {}

impl<T: KeyStore + KeyExport> StoreAndExport for T {}

/// A [`KeyStore`] that is also a [`KeyImport`].
pub(super) trait StoreAndImport: KeyStore + KeyImport + fmt::Debug {}

impl<T: KeyStore + KeyImport> StoreAndImport for T {}

/// A [`KeyStore`] that is also a [`KeySearch`].
pub(super) trait StoreAndSearch: KeyStore + KeySearch + fmt::Debug {}

impl<T: KeyStore + KeySearch> StoreAndSearch for T {}
