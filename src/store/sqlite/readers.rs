//! Connections for reads on the calling thread, which are faster than a switch of threads.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;

use rusqlite::Connection;

use crate::store::sqlite::error::{DbError, Result};
use crate::store::sqlite::file::DatabaseFile;
use crate::store::sqlite::open;
use crate::store::sqlite::open_error::SqliteOpenError;

#[derive(Debug)]
pub(super) struct Readers {
    connections: Box<[Mutex<Connection>]>,
    file: Arc<DatabaseFile>,
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
        let connections: Result<Vec<_>, _> =
            (0..count).map(|_| open::reader(path).map(Mutex::new)).collect();
        Ok(Self { connections: connections?.into(), file: Arc::clone(file) })
    }

    /// Reads on the thread's usual connection, or on another that is free.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.file.may_be_read()?;
        self.file.watch(self.read(read))
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let own = OWN.with(|own| own % self.connections.len().max(1));
        let (before, from) = self.connections.split_at(own);
        for connection in from.iter().chain(before) {
            match connection.try_lock() {
                Ok(connection) => return read(&connection),
                Err(TryLockError::Poisoned(poisoned)) => return read(&poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        match from.first() {
            Some(connection) => read(&connection.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Err(DbError::Ended),
        }
    }
}
