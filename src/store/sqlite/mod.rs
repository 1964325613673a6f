//! Keys and audit records in one SQLite file.

mod audit;
mod columns;
mod counts;
mod error;
mod file;
mod integrity;
mod keys;
mod open;
mod open_error;
mod path;
mod purge;
mod readers;
mod recent;
mod rows;
mod scans;
mod schema;
mod sorted;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
use crate::store::sqlite::file::DatabaseFile;
pub use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::purge::Progress;
use crate::store::sqlite::readers::Readers;
use crate::store::sqlite::recent::{Sizes, State};
use crate::store::sqlite::scans::Scans;
use crate::store::sqlite::writer::Writer;
use crate::store::transfer::{KeyExport, KeyImport};

/// Keys and audit records in one SQLite file. It implements [`KeyStore`], [`AuditSink`] and
/// [`AuditLog`]. A clone is another handle to the same file.
///
/// Look-ups take microseconds and run on the calling thread; lists and pages are read on
/// other threads. Writes go through one thread, which combines waiting changes into one
/// transaction. A call returns once its transaction is on disk (`WAL`, `synchronous=FULL`).
/// Several processes on one machine may share the file; network file systems are not
/// supported. Dropping the last handle closes the file and copies the write-ahead log into
/// it. This blocks the thread, usually for milliseconds and for 5 seconds at most.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::env::temp_dir().join(format!("keygate-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let path = folder.join("keygate.db");
/// use keygate::{KeyManager, SqliteStore};
///
/// let store = SqliteStore::open(&path)?;
/// let keys = KeyManager::builder(store.clone()).audit(store).build()?;
/// # drop(keys);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok(())
/// # }
/// ```
///
/// # A change that is given up or fails
///
/// A change whose caller gives up before its transaction begins is not made. Once its
/// transaction has begun, the change is completed, which takes the disk some milliseconds.
/// If a deadline passes during that time, the caller does not know whether the change was
/// made.
///
/// [`StoreError::InDoubt`] means that a transaction was written but could not be synced to
/// the disk: it may reappear after a crash. Every other failure is
/// [`StoreError::Unavailable`], and the change will not take place later.
///
/// # The file while it is in use
///
/// Before each transaction the store checks that the file and the two beside it (`-wal`,
/// `-shm`) are the ones that it has open. If one is missing or was replaced, changes and
/// audit records are refused, since a restart would lose them. `record_uses(&[])` fails as
/// well, so that the health check reports it.
///
/// - If a file is *missing*, look-ups continue: no other process can make changes that this
///   one does not see.
/// - If a file *was replaced*, look-ups are refused as well, within 50 ms: another process
///   may open that file and revoke keys in it.
///
/// Once the original file is back, the store accepts changes again. Otherwise stop the
/// service, restore the right file and start the service; a store does not switch to
/// another file. To restore a backup, follow the guide: a copy over a file in use is
/// silently undone or damages the file.
///
/// After a damaged page is found, `record_uses(&[])` fails until the next start. Intact
/// pages can still be read and written.
///
/// # Disk space
///
/// The write-ahead log is truncated to 8 MiB once its pages are in the file.
/// [`purge_before`](AuditLog::purge_before) returns the space of old records to the file
/// system, in batches. A file created by an older version reuses the space instead, until
/// you stop the service and run `PRAGMA auto_vacuum = INCREMENTAL; VACUUM` on it once.
///
/// # Reading the audit log with SQL
///
/// Read the view `all_requests`: the table `requests` has only a part of the requests.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    readers: Readers,
    scans: Scans,
    writer: Writer,
    sizes: Sizes,
}

impl SqliteStore {
    /// Opens the file, or creates it if it does not exist, and migrates an older schema.
    /// The folder must exist. [`SqliteOptions`] has all settings.
    ///
    /// Takes a path, or a URL such as `sqlite:keygate.db` or `sqlite:///var/lib/keys.db`. A
    /// new file is readable only by its owner.
    ///
    /// An existing file is first checked for damage, for two seconds at most. If another
    /// process is writing, such as one that creates the tables, opening waits for it for
    /// five seconds at most. Both block the thread.
    ///
    /// # Errors
    ///
    /// A [`SqliteOpenError`] if the file is damaged or not keygate's, its schema is newer
    /// than this version, or it cannot be opened for writing. The file is left unchanged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SqliteOpenError> {
        SqliteOptions::new().open(path)
    }

    /// Deletes old records except for recent requests.
    async fn purge_merged(&self, instant: Timestamp) -> Result<u64, AuditError> {
        let mut progress = Progress::begin();
        while !progress.is_done {
            let purge = move |db: &_| purge::purge(db, instant, progress);
            progress = self.inner.writer.run(purge).await?;
        }
        Ok(progress.purged)
    }
}

/// Settings of a [`SqliteStore`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::env::temp_dir().join(format!("keygate-options-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let path = folder.join("keygate.db");
/// use std::time::Duration;
/// use keygate::store::SqliteOptions;
///
/// let store = SqliteOptions::new().check_within(Duration::from_secs(30)).open(&path)?;
/// # drop(store);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    check_within: Duration,
    sizes: Sizes,
}

impl SqliteOptions {
    /// The settings of [`SqliteStore::open`].
    pub fn new() -> Self {
        Self { check_within: Duration::from_secs(2), sizes: Sizes::default() }
    }

    /// Sets how long a file may be checked for damage before it is used. The default is 2
    /// seconds; zero disables the check. A second is enough for some 100 MB in the system's
    /// cache. The keys are checked first; the part not reached is used unchecked.
    pub fn check_within(mut self, time: Duration) -> Self {
        self.check_within = time;
        self
    }

    /// For tests: merges recent requests as soon as there are so many, in small slices.
    #[doc(hidden)]
    pub fn merge_at(mut self, requests: u32) -> Self {
        let table = i64::from(requests.max(1));
        let (run, slice) = ((table / 4).max(1), (table / 3).max(1));
        self.sizes = Sizes { run, table, slice, ..self.sizes };
        self
    }

    /// For tests: merges recent requests once the last merge is so long ago.
    #[doc(hidden)]
    pub fn merge_after(mut self, time: Duration) -> Self {
        self.sizes.age = time;
        self
    }

    /// Opens the file, like [`SqliteStore::open`].
    ///
    /// # Errors
    ///
    /// A [`SqliteOpenError`], as for [`SqliteStore::open`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<SqliteStore, SqliteOpenError> {
        let path = path::file_path(path.as_ref())?;
        let cannot_open = |e| SqliteOpenError::cannot_open(&path, e);
        let connection = open::prepare(&path, self.check_within)?;
        let file = Arc::new(DatabaseFile::opened(&path).map_err(cannot_open)?);
        let readers = Readers::open(&path, &file)?;
        let (scans, threads) = Scans::start(&path, &file)?;
        file.is_there().map_err(|fault| SqliteOpenError::cannot_open(&path, fault))?;
        file.warn_of_readers();
        let writer = Writer::start(connection, &file, threads, self.sizes).map_err(cannot_open)?;
        Ok(SqliteStore { inner: Arc::new(Inner { readers, scans, writer, sizes: self.sizes }) })
    }
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl KeyStore for SqliteStore {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        let key = key.clone();
        Ok(self.inner.writer.run(move |db| keys::insert(db, &key, limit)).await?)
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.inner.readers.find_by_digest(digest)?)
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.inner.readers.with(|db| keys::get(db, org, id))?.map(Arc::new))
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let org = org.clone();
        let keys = self.inner.scans.run(move |db| keys::list(db, &org)).await?;
        Ok(keys.into_iter().map(Arc::new).collect())
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        let key = key.clone();
        Ok(self.inner.writer.run(move |db| keys::replace(db, &key, expected)).await?)
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        let (org, id) = (org.clone(), *id);
        Ok(self.inner.writer.run(move |db| keys::delete(db, &org, &id, expected)).await?)
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        if uses.is_empty() {
            return Ok(self.inner.writer.probe().await?);
        }
        let uses = uses.to_vec();
        Ok(self.inner.writer.run(move |db| keys::record_uses(db, &uses)).await?)
    }
}

#[async_trait]
impl KeyImport for SqliteStore {
    async fn insert_all(&self, keys: &[ApiKey]) -> Result<Vec<bool>, StoreError> {
        let keys = keys.to_vec();
        Ok(self.inner.writer.run(move |db| keys::insert_all(db, &keys)).await?)
    }
}

#[async_trait]
impl KeySearch for SqliteStore {
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.inner.readers.with(|db| keys::find_by_id(db, id))?.map(Arc::new))
    }

    async fn search(
        &self,
        search: &Search,
        after: Option<&SearchCursor>,
        limit: usize,
    ) -> Result<SearchPage, StoreError> {
        let (search, after) = (search.clone(), after.copied());
        let page = move |db: &_| keys::search(db, &search, after.as_ref(), limit);
        Ok(self.inner.scans.run(page).await?)
    }
}

#[async_trait]
impl KeyExport for SqliteStore {
    async fn export(
        &self,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let after = after.copied();
        let keys = self.inner.scans.run(move |db| keys::export(db, after.as_ref(), limit)).await?;
        Ok(keys.into_iter().map(Arc::new).collect())
    }
}

#[async_trait]
impl AuditSink for SqliteStore {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        let (batch, sizes) = (batch.to_vec(), self.inner.sizes);
        Ok(self.inner.writer.run(move |db| audit::record(db, sizes, &batch)).await?)
    }
}

#[async_trait]
impl AuditLog for SqliteStore {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        let query = query.clone();
        Ok(self.inner.scans.run(move |db| audit::page(db, &query)).await?)
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        let query = query.clone();
        Ok(self.inner.scans.run(move |db| audit::usage(db, &query)).await?)
    }

    /// In batches, so that other writes can run in between.
    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        let Inner { writer, scans, sizes, .. } = &*self.inner;
        let sizes = *sizes;
        // Merging needs space, so it comes after all that can be deleted without it.
        let oldest = scans.run(recent::oldest).await?;
        let purged = self.purge_merged(instant.min(oldest)).await?;
        if oldest >= instant {
            return Ok(purged);
        }
        let turn = writer.run(|db| Ok(State::read(db)?.turn)).await?;
        while !writer.run(move |db| recent::merge_until(db, sizes, turn)).await? {}
        Ok(purged + self.purge_merged(instant).await?)
    }
}
