//! The only thread that writes, with many changes per transaction.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi};

use crate::store::sqlite::error::{DbError, Result};
use crate::store::sqlite::file::DatabaseFile;
use crate::store::sqlite::recent::{self, Sizes, State};
use crate::store::sqlite::schema;
use crate::throttle::Throttle;

/// Changes beyond these wait for the next transaction.
const GROUP: usize = 256;

/// How long dropping the last handle may take. The process may end right afterwards, and
/// until the write-ahead log is copied into the file, a copy of the file alone is
/// incomplete.
const CLOSING: Duration = Duration::from_secs(5);

/// Sends changes to the writing thread. When this is dropped, the thread makes the waiting
/// changes, closes the file and ends.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None` once it is being dropped.
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    file: Arc<DatabaseFile>,
    /// Disconnected once the file is closed.
    closed: Mutex<mpsc::Receiver<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        let closed = self.closed.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = closed.recv_timeout(CLOSING);
    }
}

/// A change, answered after the commit.
trait Job: Send {
    /// Whether the caller has given up.
    fn is_abandoned(&self) -> bool;
    /// Makes the change. Returns `false` to have it rolled back.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Sends the answer, or the error if the transaction failed.
    fn answer(self: Box<Self>, failed: Option<&Failed>);
}

/// Why a transaction failed.
enum Failed {
    /// It did not take place, and will not later.
    Surely(Arc<DbError>),
    /// Its pages may be in the write-ahead log, where the next process to open the file
    /// would find them.
    InDoubt(Arc<DbError>),
}

struct Change<F, T> {
    work: Option<F>,
    outcome: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<F, T> Job for Change<F, T>
where
    F: FnOnce(&Connection) -> Result<T> + Send,
    T: Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.is_canceled()
    }

    fn run(&mut self, connection: &Connection) -> bool {
        self.outcome = self.work.take().map(|work| work(connection));
        matches!(self.outcome, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, failed: Option<&Failed>) {
        let outcome = match (self.outcome, failed) {
            // A change that failed by itself reports its own error.
            (Some(Err(fault)), _) => Err(fault),
            (_, Some(Failed::Surely(fault))) => Err(DbError::NotCommitted(Arc::clone(fault))),
            (_, Some(Failed::InDoubt(fault))) => Err(DbError::InDoubt(Arc::clone(fault))),
            (Some(Ok(done)), None) => Ok(done),
            (None, None) => Err(DbError::Ended),
        };
        let _ = self.reply.send(outcome);
    }
}

impl Writer {
    /// The thread ends after the `readers`: only the last connection to close copies the
    /// write-ahead log into the file, so no two may close at once.
    pub(super) fn start(
        mut connection: Connection,
        file: &Arc<DatabaseFile>,
        readers: Vec<JoinHandle<()>>,
        sizes: Sizes,
    ) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (closing, closed) = mpsc::channel::<()>();
        let checked = Arc::clone(file);
        thread::Builder::new().name("keygate-sqlite".into()).spawn(move || {
            write_all(&mut connection, &checked, &queue, sizes);
            for reader in readers {
                let _ = reader.join();
            }
            drop(connection);
            drop(closing);
        })?;
        Ok(Self { jobs: Some(jobs), file: Arc::clone(file), closed: Mutex::new(closed) })
    }

    /// Makes a change, and returns once it is on disk. If the caller gives up before its
    /// turn, the change is not made.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job = Change { work: Some(work), outcome: None, reply };
        let jobs = self.jobs.as_ref().ok_or(DbError::Ended)?;
        jobs.send(Box::new(job)).map_err(|_| DbError::Ended)?;
        self.file.watch(answer.await.unwrap_or(Err(DbError::Ended)))
    }

    /// Tests whether changes can be made: rewrites a page without changing it.
    pub(super) async fn probe(&self) -> Result<()> {
        self.file.is_whole()?;
        self.run(|db| Ok(schema::rewrite(db)?)).await
    }
}

fn write_all(
    connection: &mut Connection,
    file: &DatabaseFile,
    queue: &mpsc::Receiver<Box<dyn Job>>,
    sizes: Sizes,
) {
    let failures = Throttle::default();
    let mut merged = Instant::now();
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(GROUP - 1));
        let failed = write(connection, file, &mut group).err();
        for job in group {
            job.answer(failed.as_ref());
        }
        if let Err(fault) = file.watch(merge(connection, file, sizes, &mut merged))
            && let Some(left_out) = failures.pass()
        {
            tracing::warn!(left_out, "recent requests were not merged: {fault}; they are kept");
        }
    }
}

/// Merges as many recent requests as is due, in transactions of their own. Once the last merge
/// is long ago, takes a single step more at a time, since other changes wait for it.
fn merge(
    connection: &mut Connection,
    file: &DatabaseFile,
    sizes: Sizes,
    merged: &mut Instant,
) -> Result<()> {
    let is_old = merged.elapsed() >= sizes.age;
    let mut one_more = is_old;
    while recent::is_due(connection, sizes, one_more)? {
        file.is_there()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been faster.
        if recent::is_due(&transaction, sizes, one_more)? {
            recent::merge(&transaction, sizes)?;
        }
        transaction.commit()?;
        one_more = false;
    }
    if is_old && State::read(connection)?.merging == 0 {
        *merged = Instant::now();
    }
    Ok(())
}

/// Makes a group of changes in one transaction. A change that fails is rolled back; the
/// others are kept.
fn write(
    connection: &mut Connection,
    file: &DatabaseFile,
    group: &mut [Box<dyn Job>],
) -> Result<(), Failed> {
    let surely = |fault: DbError| Failed::Surely(Arc::new(fault));
    file.is_there().map_err(surely)?;
    let mut transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(|e| surely(e.into()))?;
    let outcome = match run_all(&mut transaction, group) {
        Ok(true) => transaction.commit(),
        Ok(false) => return Ok(()),
        Err(error) => return Err(surely(error.into())),
    };
    let Err(error) = outcome else { return Ok(()) };
    // Overwrites this transaction in the write-ahead log with another one.
    if may_be_on_disk(&error) && rewritten(connection).is_err() {
        return Err(Failed::InDoubt(Arc::new(error.into())));
    }
    Err(surely(error.into()))
}

/// Makes the changes. Returns `false` if there is nothing to commit.
fn run_all(
    transaction: &mut Transaction<'_>,
    group: &mut [Box<dyn Job>],
) -> rusqlite::Result<bool> {
    // A single change is rolled back with its transaction; a savepoint would copy every
    // page that a large batch changes.
    if let [job] = group {
        return Ok(!job.is_abandoned() && job.run(transaction));
    }
    // Callers may have given up while the transaction waited for another process.
    for job in group.iter_mut().filter(|job| !job.is_abandoned()) {
        let savepoint = transaction.savepoint()?;
        if job.run(&savepoint) {
            savepoint.commit()?;
        } else if savepoint.is_autocommit() {
            // SQLite has rolled back the whole transaction, for example on a full disk.
            return Err(rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_ABORT),
                Some("the transaction was rolled back".into()),
            ));
        }
    }
    Ok(true)
}

/// Whether the pages of a transaction may be on disk although its commit failed: all were
/// written, but the sync or the update of the index failed.
fn may_be_on_disk(error: &rusqlite::Error) -> bool {
    let io = [ErrorCode::SystemIoFailure, ErrorCode::OutOfMemory];
    matches!(error.sqlite_error(), Some(error)
        if io.contains(&error.code) && error.extended_code != ffi::SQLITE_IOERR_WRITE)
}

fn rewritten(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    schema::rewrite(&transaction)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Waker};

    use crate::store::sqlite::SqliteStore;

    #[tokio::test]
    async fn case_44_a_change_cancelled_before_its_turn_in_a_transaction_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("keys.db")).unwrap();
        let writer = &store.inner.writer;
        let poll = |future: &mut (dyn Future<Output = Result<()>> + Unpin)| {
            assert!(
                std::pin::Pin::new(future)
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_pending()
            );
        };
        let (begun, has_begun) = mpsc::channel();
        let (let_go, wait) = mpsc::channel::<()>();
        // While this change runs, the next three queue up for one transaction.
        let (let_first_go, first_waits) = mpsc::channel::<()>();
        let mut first = Box::pin(writer.run(move |_| {
            let _ = first_waits.recv();
            Ok(())
        }));
        poll(&mut first);
        let mut second = Box::pin(writer.run(move |_| {
            begun.send(()).unwrap();
            let _ = wait.recv();
            Ok(())
        }));
        poll(&mut second);
        let (made, is_made) = mpsc::channel();
        let mut given_up = Box::pin(writer.run(move |_| {
            made.send(()).unwrap();
            Ok(())
        }));
        poll(&mut given_up);

        drop(let_first_go);
        has_begun.recv().unwrap();
        drop(given_up);
        drop(let_go);
        first.await.unwrap();
        second.await.unwrap();
        writer.run(|_| Ok(())).await.unwrap();
        assert!(is_made.try_recv().is_err(), "the change was made");
    }
}
