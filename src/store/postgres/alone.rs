//! The one connection that is not shared, for what takes several statements.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::record::{ApiKey, OrgLimit};
use crate::store::postgres::audit::{Purge, Purged};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::error::Fault;
use crate::store::postgres::{Outcome, audit, keys};

/// Used by one call at a time. The connection is taken out for the call and put
/// back when all is well: a call that is dropped closes it, and the server takes
/// the transaction back.
#[derive(Debug)]
pub(super) struct Alone {
    slot: Mutex<Option<Connection>>,
    dialer: Arc<Dialer>,
    deadline: Duration,
}

/// What a call is to do.
#[derive(Clone, Copy)]
enum Job<'a> {
    Insert(&'a ApiKey, OrgLimit),
    Purge(Purge),
}

/// A fault, and whether the same call may be made again at once: it is known to
/// have changed nothing.
struct Failed {
    fault: Fault,
    may_repeat: bool,
}

impl Alone {
    pub(super) fn new(connection: Connection, dialer: Arc<Dialer>, deadline: Duration) -> Self {
        Self { slot: Mutex::new(Some(connection)), dialer, deadline }
    }

    pub(super) async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Outcome<()> {
        self.run(Job::Insert(key, limit)).await.map(|_| ())
    }

    /// Here rather than on a shared connection: it takes longer than a look-up
    /// should have to wait.
    pub(super) async fn purge(&self, purge: Purge) -> Outcome<Purged> {
        self.run(Job::Purge(purge)).await
    }

    /// What was purged: nothing, where a key was inserted.
    async fn run(&self, job: Job<'_>) -> Outcome<Purged> {
        let until = Instant::now() + self.deadline;
        let late = |_| Fault::Late(self.deadline);
        let mut slot = timeout_at(until, self.slot.lock()).await.map_err(late)?;
        let mut again = true;
        loop {
            let kept = slot.take().filter(Connection::is_live);
            let connection = match kept {
                Some(connection) => connection,
                None => timeout_at(until, self.dialer.dial()).await.map_err(late)??.0,
            };
            let run = job.run(&connection, self.deadline);
            let Ok(done) = timeout_at(until, run).await else {
                connection.retire();
                return Err(Fault::Late(self.deadline));
            };
            let Err(failed) = done else {
                *slot = Some(connection);
                return done.map_err(|failed| failed.fault);
            };
            if !failed.fault.costs_the_connection()
                && matches!(timeout_at(until, connection.run("ROLLBACK")).await, Ok(Ok(())))
            {
                *slot = Some(connection);
            }
            let lost = failed.fault.costs_the_connection() || failed.fault.changed_nothing();
            if !(again && lost && failed.may_repeat) {
                return Err(failed.fault);
            }
            again = false;
        }
    }
}

impl Job<'_> {
    async fn run(self, db: &Connection, deadline: Duration) -> Result<Purged, Failed> {
        let harmless = |fault| Failed { fault, may_repeat: true };
        match self {
            Self::Insert(key, limit) => {
                // Whatever the database's default is: each statement has to see
                // what was committed before it. And a server that does not learn that
                // this side is gone keeps the organisation locked no longer than this
                // side would have waited.
                let idle = deadline.as_millis().clamp(1, 1 << 30);
                let begin = format!(
                    "BEGIN ISOLATION LEVEL READ COMMITTED; \
                     SET LOCAL idle_in_transaction_session_timeout = {idle}"
                );
                db.run(&begin).await.map_err(harmless)?;
                keys::insert(db, key, limit).await.map_err(harmless)?;
                db.run("COMMIT").await.map_err(|fault| Failed { fault, may_repeat: false })?;
                Ok(Purged::default())
            }
            Self::Purge(purge) => audit::purge(db, purge).await.map_err(harmless),
        }
    }
}
