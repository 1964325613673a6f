//! Connections for reading, in place: a look-up takes less than a thread hop.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::thread;

use rusqlite::Connection;

use crate::store::sqlite::Outcome;
use crate::store::sqlite::open::{self, SqliteOpenError};

#[derive(Debug)]
pub(super) struct Readers {
    connections: Box<[Mutex<Connection>]>,
    next: AtomicUsize,
}

impl Readers {
    /// As many connections as there are processors, two at least.
    pub(super) fn open(path: &Path) -> Result<Self, SqliteOpenError> {
        let count = thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16));
        let connections: Result<Vec<_>, _> =
            (0..count).map(|_| open::reader(path).map(Mutex::new)).collect();
        Ok(Self { connections: connections?.into(), next: AtomicUsize::new(0) })
    }

    /// Reads on whichever connection is free.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Connection) -> Outcome<T>) -> Outcome<T> {
        for connection in &self.connections {
            match connection.try_lock() {
                Ok(connection) => return read(&connection),
                Err(TryLockError::Poisoned(poisoned)) => return read(&poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len().max(1);
        match self.connections.get(turn) {
            Some(connection) => read(&connection.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Err(super::Fault::Ended),
        }
    }
}
