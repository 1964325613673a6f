//! The store, and which connections it uses for which calls.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::timeout;

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
use crate::store::postgres::alone::Alone;
#[cfg(feature = "cache")]
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::error::DbError;
use crate::store::postgres::open::PostgresOpenError;
use crate::store::postgres::options::PostgresOptions;
use crate::store::postgres::partitions::Partitions;
use crate::store::postgres::pool::{Pool, Use};
use crate::store::postgres::{audit, keys, recording, schema};
use crate::store::search::{KeySearch, Search, SearchCursor, SearchPage};
use crate::store::transfer::{KeyExport, KeyImport};

/// Keys and audit records in PostgreSQL. It implements [`KeyStore`], [`AuditSink`] and
/// [`AuditLog`]. A clone is another handle to the same connections.
///
/// A few connections carry the look-ups of all callers, pipelined unless
/// [`PostgresOptions::prepared`] is `false`. Other calls have separate connections
/// ([`PostgresOptions::connections`]), so that a row or table that another transaction has
/// locked delays only the calls that need it. A connection that is lost, or does not answer
/// within the deadline, is replaced in the background. Reads and repeatable writes are
/// retried on another one.
///
/// A change that fails with [`StoreError::Unavailable`] has not taken place: try it again.
/// One that fails with [`StoreError::InDoubt`] may have taken place, since its answer was
/// lost: read the key first. In neither case does it take place later.
///
/// The tables are in a separate schema. Any number of processes may open it at once; the
/// first one creates it. If the user may not create a schema, create an empty one
/// beforehand.
///
/// The store must be used on the tokio runtime that it was opened on.
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use keygate::{KeyManager, PostgresStore};
///
/// let store = PostgresStore::connect("postgres://app:password@localhost/app").await?;
/// let keys = KeyManager::builder(store.clone()).audit(store).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// For look-ups and other reads of keys, and for heartbeats.
    pub(super) lookups: Pool,
    /// For creations, edits, rotations and deletions. Each may wait for a lock, a commit or
    /// a synchronous standby, without delaying other calls. The same applies to the pools
    /// below.
    changes: Pool,
    uses: Pool,
    records: Pool,
    partitions: Partitions,
    /// For pages of the audit log, and for searches and exports.
    pages: Pool,
    alone: Alone,
    #[cfg(feature = "cache")]
    pub(super) dialer: Arc<Dialer>,
}

impl PostgresStore {
    /// Connects to the database in the URL, and creates or migrates the tables.
    /// [`PostgresOptions`] has all settings.
    ///
    /// # Errors
    ///
    /// A [`PostgresOpenError`] that says what is wrong. It never contains the password.
    pub async fn connect(url: &str) -> Result<Self, PostgresOpenError> {
        PostgresOptions::from_url(url)?.connect().await
    }
}

impl PostgresOptions {
    /// Connects, and creates or migrates the tables.
    ///
    /// # Errors
    ///
    /// A [`PostgresOpenError`] that says what is wrong.
    pub async fn connect(self) -> Result<PostgresStore, PostgresOpenError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(PostgresOpenError::NoRuntime);
        }
        let (dialer, target) = self.parts()?;
        let failed = |fault| PostgresOpenError::from_error(&target, fault);
        let (connection, _) = dialer.dial_patiently().await.map_err(failed)?;
        let opened = timeout(schema::TIMEOUT, schema::open(&connection, &target.schema)).await;
        let opened = opened.unwrap_or(Err(DbError::Late(schema::TIMEOUT).into()));
        opened.map_err(|fault| PostgresOpenError::from_schema(&target, fault))?;
        let dialer = Arc::new(dialer);
        let partitions = Partitions::new(target.partition_width, &dialer);
        partitions.begin(&connection).await;
        connection.retire();
        let pool = |connections, used| Pool::start(&dialer, connections, used);
        let inner = Inner {
            lookups: pool(target.connections, Use::Shared),
            changes: pool(CHANGES, Use::InTurn),
            uses: pool(1, Use::InTurn),
            // One for a batch of requests, and one for a batch of changes.
            records: pool(2, Use::InTurn),
            partitions,
            pages: pool(1, Use::InOrder),
            alone: Alone::new(Arc::clone(&dialer)),
            #[cfg(feature = "cache")]
            dialer,
        };
        Ok(PostgresStore { inner: Arc::new(inner) })
    }
}

#[async_trait]
impl KeyStore for PostgresStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        let Inner { changes, lookups, .. } = &*self.inner;
        Ok(keys::insert(changes, lookups, key, limit).await?)
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(keys::find_by_digest(&self.inner.lookups, digest).await?.map(Arc::new))
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(keys::get(&self.inner.lookups, org, id).await?.map(Arc::new))
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let keys = keys::list(&self.inner.lookups, org).await?;
        Ok(keys.into_iter().map(Arc::new).collect())
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        Ok(keys::replace(&self.inner.changes, &self.inner.lookups, key, expected).await?)
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let Inner { changes, lookups, .. } = &*self.inner;
        Ok(keys::delete(changes, lookups, (org, id), expected).await?)
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        if uses.is_empty() {
            return Ok(keys::probe(&self.inner.changes).await?);
        }
        Ok(keys::record_uses(&self.inner.uses, uses).await?)
    }
}

#[async_trait]
impl KeyImport for PostgresStore {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        let Inner { changes, lookups, .. } = &*self.inner;
        match keys::insert_all(changes, keys).await.map_err(StoreError::from) {
            Err(StoreError::Conflict) => {}
            inserted => return inserted,
        }
        // A digest is taken by a previous secret, which no single index shows.
        let mut inserted = Vec::new();
        for key in keys {
            match keys::insert(changes, lookups, key, OrgLimit::NONE).await.map_err(Into::into) {
                Ok(()) => inserted.push(true),
                Err(StoreError::Conflict) => inserted.push(false),
                // Keys before this one may be stored already.
                Err(error) if inserted.contains(&true) => return Err(StoreError::in_doubt(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(inserted)
    }
}

#[async_trait]
impl KeySearch for PostgresStore {
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(keys::find_by_id(&self.inner.lookups, id).await?.map(Arc::new))
    }

    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError> {
        Ok(keys::search(&self.inner.pages, search, after, limit).await?)
    }
}

#[async_trait]
impl KeyExport for PostgresStore {
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let keys = keys::export(&self.inner.pages, after, limit).await?;
        Ok(keys.into_iter().map(Arc::new).collect())
    }
}

#[async_trait]
impl AuditSink for PostgresStore {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        let Inner { records, partitions, .. } = &*self.inner;
        Ok(recording::record(records, partitions, batch).await?)
    }
}

#[async_trait]
impl AuditLog for PostgresStore {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        Ok(audit::page(&self.inner.pages, query).await?)
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        Ok(audit::usage(&self.inner.pages, query).await?)
    }

    /// Requests that are older than the start of the instant's partition are dropped with their
    /// partitions, and for a large partition the number is an estimate. Other records are
    /// deleted in batches, so that other changes can run in between.
    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        Ok(self.inner.alone.purge_before(instant).await?)
    }
}

/// How many changes are made at a time, each on a separate connection.
const CHANGES: usize = 4;
