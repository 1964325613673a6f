//! Threads for reads that may take long, which would hold up the caller's runtime.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use futures_channel::oneshot;
use rusqlite::Connection;

use crate::store::sqlite::error::{Fault, Outcome};
use crate::store::sqlite::file::{DatabaseFile, FileConnection};
use crate::store::sqlite::open;
use crate::store::sqlite::open_error::SqliteOpenError;

/// So many long reads do not wait for each other.
pub(super) const THREADS: usize = 4;

/// Hands reads to the threads. Dropped, it lets them end.
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
            let connection = FileConnection::new(open::reader(path)?, file);
            let queue = Arc::clone(&queue);
            thread::Builder::new()
                .name("keygate-sqlite-read".into())
                .spawn(move || read_all(&connection, &queue))
                .map_err(|e| SqliteOpenError::cannot_open(path, e))
        };
        let threads: Result<Vec<_>, _> = (0..THREADS).map(|_| thread()).collect();
        Ok((Self { jobs, file: Arc::clone(file) }, threads?))
    }

    /// Reads on a thread of its own. Where the caller gives up before its turn comes,
    /// nothing is read.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        self.file.may_be_read()?;
        let (reply, answer) = oneshot::channel();
        let job = move |connection: &Connection| {
            if !reply.is_canceled() {
                let _ = reply.send(read(connection));
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| Fault::Ended)?;
        self.file.watch(answer.await.unwrap_or(Err(Fault::Ended)))
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
