//! Connections for reads on the calling thread, which are faster than a switch of threads.
//! Each keeps the keys that it has found until a key is changed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;

use rusqlite::Connection;

use crate::key::digest::{BuildUniformHasher, KeyDigest};
use crate::record::ApiKey;
use crate::store::sqlite::error::{DbError, Result};
use crate::store::sqlite::file::DatabaseFile;
use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::{keys, open};

/// How many keys a connection keeps; beyond that, it forgets all.
const MOST: usize = 4_096;

#[derive(Debug)]
pub(super) struct Readers {
    readers: Box<[Mutex<Reader>]>,
    file: Arc<DatabaseFile>,
}

/// A connection, and keys that it has found since a key was last changed.
#[derive(Debug)]
struct Reader {
    connection: Connection,
    kept: HashMap<KeyDigest, Arc<ApiKey>, BuildUniformHasher>,
    /// How many changes of keys the database contained when they were read.
    changes: i64,
    /// The version of the database at the last look whether there are more.
    version: i64,
}

/// How many threads have read so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where a thread starts to look for a connection, so that it reuses its previous one
    /// and avoids those of other threads.
    static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}

impl Readers {
    /// Opens one connection per processor, at least two.
    pub(super) fn open(path: &Path, file: &Arc<DatabaseFile>) -> Result<Self, SqliteOpenError> {
        let count = thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16));
        let reader = |connection| {
            let kept = HashMap::default();
            Mutex::new(Reader { connection, kept, version: 0, changes: 0 })
        };
        let readers: Result<Vec<_>, _> =
            (0..count).map(|_| open::reader(path).map(reader)).collect();
        Ok(Self { readers: readers?.into(), file: Arc::clone(file) })
    }

    /// Reads on the thread's usual connection, or on another that is free.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.read(|reader| read(&reader.connection))
    }

    /// As [`keys::find_by_digest`], without reading a key twice that was not changed.
    pub(super) fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>> {
        self.read(|reader| reader.find_by_digest(digest, &self.file))
    }

    fn read<T>(&self, read: impl FnOnce(&mut Reader) -> Result<T>) -> Result<T> {
        self.file.may_be_read()?;
        self.file.watch(self.read_on_one(read))
    }

    fn read_on_one<T>(&self, read: impl FnOnce(&mut Reader) -> Result<T>) -> Result<T> {
        let own = OWN.with(|own| own % self.readers.len().max(1));
        let (before, from) = self.readers.split_at(own);
        for reader in from.iter().chain(before) {
            match reader.try_lock() {
                Ok(mut reader) => return read(&mut reader),
                Err(TryLockError::Poisoned(poisoned)) => return read(&mut poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        match from.first() {
            Some(reader) => read(&mut reader.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Err(DbError::Ended),
        }
    }
}

impl Reader {
    fn number(&self, sql: &str) -> Result<i64> {
        Ok(self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    fn find_by_digest(
        &mut self,
        digest: &KeyDigest,
        file: &DatabaseFile,
    ) -> Result<Option<Arc<ApiKey>>> {
        if self.kept.contains_key(digest) {
            self.forget_changed()?;
        }
        if let Some(key) = self.kept.get(digest)
            && file.is_still_the_one()?
        {
            return Ok(Some(Arc::clone(key)));
        }
        let Some((key, changes)) = keys::find_by_digest(&self.connection, digest)? else {
            return Ok(None);
        };
        let key = Arc::new(key);
        if changes != self.changes || self.kept.len() >= MOST {
            self.kept.clear();
        }
        self.changes = changes;
        self.kept.insert(*digest, Arc::clone(&key));
        Ok(Some(key))
    }

    /// Forgets the kept keys if a key was changed.
    fn forget_changed(&mut self) -> Result<()> {
        // It changes with each commit of another connection, of whichever process
        // (https://sqlite.org/pragma.html#pragma_data_version). Most of them write audit
        // records. A commit after this line makes the next call look for changes again.
        let version = self.number("PRAGMA data_version")?;
        if version != self.version {
            let changes = self.number("SELECT count FROM key_changes")?;
            if changes != self.changes {
                self.kept.clear();
            }
            (self.version, self.changes) = (version, changes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::audit::record::Outcome;
    use crate::audit::samples::request;
    use crate::audit::sink::AuditSink;
    use crate::record::{KeyUse, OrgLimit};
    use crate::runtime::clock::Timestamp;
    use crate::store::key_store::KeyStore;
    use crate::store::sqlite::SqliteStore;

    #[tokio::test]
    async fn a_key_is_kept_until_a_key_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("keys.db")).unwrap();
        let (key, other) = (ApiKey::sample(1), ApiKey::sample(2));
        for key in [&key, &other] {
            store.insert(key, OrgLimit::NONE).await.unwrap();
        }
        let find = async || store.find_by_digest(&key.digest).await.unwrap().unwrap();
        let kept = find().await;

        store.record_uses(&[KeyUse { id: key.id, at: Timestamp::MAX }]).await.unwrap();
        store.record(&[request(1, Outcome::Allowed, 1)]).await.unwrap();
        assert!(Arc::ptr_eq(&kept, &find().await), "it was read again");

        let revision = key.revision.next();
        store.replace(&ApiKey { revision, ..key.clone() }, key.revision).await.unwrap();
        // It is forgotten also if another key is read first.
        assert!(store.find_by_digest(&other.digest).await.unwrap().is_some());
        assert_eq!(find().await.revision, revision);
    }
}
