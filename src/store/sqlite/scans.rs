//! Threads for long reads, which would block the caller's runtime.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use futures_channel::oneshot;
use rusqlite::Connection;

use crate::store::sqlite::error::{DbError, Result};
use crate::store::sqlite::file::DatabaseFile;
use crate::store::sqlite::open;
use crate::store::sqlite::open_error::SqliteOpenError;

/// How many long reads can run at the same time.
pub(super) const THREADS: usize = 4;

/// Hands reads to the threads, which end when this is dropped.
#[derive(Debug)]
pub(super) struct Scans {
    jobs: mpsc::Sender<Job>,
    file: Arc<DatabaseFile>,
}

type Job = Box<dyn FnOnce(&Connection) + Send>;

impl Scans {
    pub(super) fn start(
        path: &Path,
        file: &Arc<DatabaseFile>,
    ) -> Result<(Self, Vec<JoinHandle<()>>), SqliteOpenError> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let thread = || {
            let connection = open::reader(path)?;
            let queue = Arc::clone(&queue);
            thread::Builder::new()
                .name("keygate-sqlite-read".into())
                .spawn(move || read_all(&connection, &queue))
                .map_err(|e| SqliteOpenError::cannot_open(path, e))
        };
        let threads: Result<Vec<_>, _> = (0..THREADS).map(|_| thread()).collect();
        Ok((Self { jobs, file: Arc::clone(file) }, threads?))
    }

    /// Reads on one of the threads. If the caller gives up before its turn, nothing is
    /// read.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.file.may_be_read()?;
        let (reply, answer) = oneshot::channel();
        let job = move |connection: &Connection| {
            if !reply.is_canceled() {
                let _ = reply.send(read(connection));
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| DbError::Ended)?;
        self.file.watch(answer.await.unwrap_or(Err(DbError::Ended)))
    }
}

fn read_all(connection: &Connection, queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(job) => job(connection),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use crate::audit::log::{AuditLog, AuditQuery, AuditScope};
    use crate::key::digest::KeyDigest;
    use crate::key::id::KeyId;
    use crate::org::OrgId;
    use crate::store::key_store::KeyStore;
    use crate::store::sqlite::SqliteStore;
    use crate::store::transfer::KeyExport;

    fn first_poll<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn slow_reads_delay_neither_look_ups_nor_other_tasks() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("keys.db")).unwrap();
        let (org, id) = (OrgId::new("acme").unwrap(), KeyId::from_bytes([1; 16]));
        // Each thread runs a read that takes until the test ends it.
        let mut held = Vec::new();
        for _ in 0..THREADS {
            let (let_go, wait) = mpsc::channel::<()>();
            let store = store.clone();
            let read = move |_: &Connection| {
                let _ = wait.recv();
                Ok(())
            };
            let task = tokio::spawn(async move { store.inner.scans.run(read).await });
            held.push((let_go, task));
        }
        tokio::task::yield_now().await;

        let query = AuditQuery::new(org.clone(), AuditScope::OrgChanges);
        let mut page = store.page(&query);
        let mut list = store.list(&org);
        let mut export = store.export(None, 9);
        assert!(first_poll(page.as_mut()).is_pending());
        assert!(first_poll(list.as_mut()).is_pending());
        assert!(first_poll(export.as_mut()).is_pending());
        // Look-ups are answered on the calling thread.
        assert!(matches!(
            first_poll(store.find_by_digest(&KeyDigest::of("none"))),
            Poll::Ready(Ok(None))
        ));
        assert!(matches!(first_poll(store.get(&org, &id)), Poll::Ready(Ok(None))));
        assert_eq!(tokio::spawn(async { 7 }).await.unwrap(), 7);

        for (let_go, task) in held {
            drop(let_go);
            task.await.unwrap().unwrap();
        }
        assert!(page.await.unwrap().records.is_empty());
        assert!(list.await.unwrap().is_empty());
        assert!(export.await.unwrap().is_empty());
    }
}
