//! The one thread that writes, many changes to a transaction.

use std::io;
use std::sync::mpsc;
use std::thread;

use futures_channel::oneshot;
use rusqlite::{Connection, TransactionBehavior};

use crate::store::sqlite::Outcome;
use crate::store::sqlite::error::Fault;

/// Changes beyond these wait for the next transaction.
const GROUP: usize = 256;

/// Hands changes to the writing thread. Dropped, it lets the thread finish what
/// waits and end.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
}

/// One change, answered after the commit.
trait Job: Send {
    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    /// Makes the change. `false` asks for it to be rolled back.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Answers; with a reason where the transaction was not committed.
    fn answer(self: Box<Self>, not_committed: Option<&str>);
}

struct Change<F, T> {
    work: Option<F>,
    outcome: Option<Outcome<T>>,
    reply: oneshot::Sender<Outcome<T>>,
}

impl<F, T> Job for Change<F, T>
where
    F: FnOnce(&Connection) -> Outcome<T> + Send,
    T: Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.is_canceled()
    }

    fn run(&mut self, connection: &Connection) -> bool {
        self.outcome = self.work.take().map(|work| work(connection));
        matches!(self.outcome, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, not_committed: Option<&str>) {
        let outcome = match (self.outcome, not_committed) {
            // A change that failed by itself has its own reason to give.
            (Some(Err(fault)), _) => Err(fault),
            (_, Some(reason)) => Err(Fault::NotCommitted(reason.to_owned())),
            (Some(Ok(done)), None) => Ok(done),
            (None, None) => Err(Fault::Ended),
        };
        let _ = self.reply.send(outcome);
    }
}

impl Writer {
    pub(super) fn start(connection: Connection) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new()
            .name("keygate-sqlite".into())
            .spawn(move || write_all(connection, &queue))?;
        Ok(Self { jobs })
    }

    /// Makes a change, and returns once it is on disk. Where the caller gives up
    /// before its turn comes, the change is not made.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        let (reply, answer) = oneshot::channel();
        let job = Change { work: Some(work), outcome: None, reply };
        self.jobs.send(Box::new(job)).map_err(|_| Fault::Ended)?;
        answer.await.unwrap_or(Err(Fault::Ended))
    }
}

fn write_all(mut connection: Connection, queue: &mpsc::Receiver<Box<dyn Job>>) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(GROUP - 1));
        group.retain(|job| !job.is_abandoned());
        let not_committed = write(&mut connection, &mut group).err().map(|e| e.to_string());
        for job in group {
            job.answer(not_committed.as_deref());
        }
    }
}

/// Makes a group of changes in one transaction. One that fails is taken back;
/// the others stay.
fn write(connection: &mut Connection, group: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // One alone is taken back with its transaction; a savepoint would copy every
    // page that a large batch changes.
    if let [job] = group {
        return if job.run(&transaction) { transaction.commit() } else { transaction.rollback() };
    }
    for job in group {
        let savepoint = transaction.savepoint()?;
        if job.run(&savepoint) {
            savepoint.commit()?;
        } else if savepoint.is_autocommit() {
            // SQLite has taken the whole transaction back: a full disk, say.
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
                Some("the transaction was rolled back".into()),
            ));
        }
    }
    transaction.commit()
}
