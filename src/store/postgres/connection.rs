//! One connection, with its prepared statements.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify, OnceCell, OwnedMutexGuard};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::session::ServerClock;
use crate::store::postgres::statements::{Sql, Texts};

/// The values of a statement, with their types.
pub(super) type Parameters<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// Can be shared, since statements are pipelined and answered in order. Otherwise its users
/// take turns.
pub(super) struct Connection {
    client: Client,
    texts: Arc<Texts>,
    /// One for each statement; `None` if statements are not prepared.
    prepared: Option<Box<[OnceCell<Statement>]>>,
    turn: Arc<Mutex<()>>,
    driver: AbortHandle,
    retired: AtomicBool,
    answers: AtomicU64,
    pub(super) clock: ServerClock,
    /// The number of the server process, as in `pg_stat_activity`.
    pub(super) process: i32,
    left: Notify,
}

impl Connection {
    /// Takes a client and the task that drives it.
    pub(super) fn new(
        client: Client,
        driver: &JoinHandle<()>,
        texts: Arc<Texts>,
        prepared: bool,
        (clock, process): (ServerClock, i32),
    ) -> Self {
        let cells = || (0..Sql::COUNT).map(|_| OnceCell::new()).collect();
        Self {
            client,
            texts,
            prepared: prepared.then(cells),
            turn: Arc::default(),
            driver: driver.abort_handle(),
            retired: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            clock,
            process,
            left: Notify::new(),
        }
    }

    pub(super) async fn query(
        &self,
        statement: Sql,
        parameters: &Parameters<'_>,
    ) -> Result<Vec<Row>> {
        let text = self.texts.of(statement);
        let cell = self.prepared.as_ref().and_then(|cells| cells.get(statement.index()));
        let rows = match cell {
            None => self.client.query_typed(text, parameters).await?,
            Some(cell) => {
                let prepare = async || {
                    let types: Vec<_> = parameters.iter().map(|(_, kind)| kind.clone()).collect();
                    self.client.prepare_typed(text, &types).await
                };
                let prepared = cell.get_or_try_init(prepare).await?;
                let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
                self.client.query(prepared, &values).await?
            }
        };
        self.answers.fetch_add(1, Ordering::Relaxed);
        Ok(rows)
    }

    /// Runs statements without parameters or rows.
    pub(super) async fn run(&self, sql: &str) -> Result<()> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Whether another process of this server is working on a statement.
    pub(super) async fn sees_at_work(&self, process: i32) -> Result<bool> {
        let sql = "SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND state <> 'idle'";
        Ok(!self.client.query_typed(sql, &[(&process, Type::INT4)]).await?.is_empty())
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn is_live(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.client.is_closed()
    }

    /// Waits for earlier callers.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// How many callers use the connection or wait for it.
    pub(super) fn queue(&self) -> usize {
        Arc::strong_count(&self.turn).saturating_sub(1)
    }

    /// Whether a call was completed on it.
    pub(super) fn has_answered(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
    }

    /// Closes the connection if the result shows that it is no longer usable. Calls behind
    /// an answer that does not arrive would hang as well.
    pub(super) fn judge<T>(
        &self,
        answer: Result<Result<T>, Elapsed>,
        deadline: Duration,
    ) -> Result<T> {
        let answer = answer.unwrap_or(Err(DbError::Late(deadline)));
        if answer.as_ref().is_err_and(DbError::costs_the_connection) {
            self.retire();
        }
        answer
    }

    /// Returns when the server is ready again after an error, which is reported as soon as
    /// it arrives, possibly earlier.
    pub(super) async fn settle(&self, deadline: Duration) {
        if !matches!(timeout(deadline, self.run("")).await, Ok(Ok(()))) {
            self.retire();
        }
    }

    /// Stops using the connection, and lets the server finish its current call.
    pub(super) fn leave(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.left.notify_one();
    }

    /// Returns once the connection was left to the server.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }

    /// Closes the connection. Calls waiting on it fail at once.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.driver.abort();
    }

    /// Watches a call in case its caller gives up.
    pub(super) fn watch(&self, patience: Duration) -> Watch<'_> {
        let answers = self.answers.load(Ordering::Relaxed);
        Watch { connection: self, begun: Instant::now(), answers, patience, done: false }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("live", &self.is_live()).finish_non_exhaustive()
    }
}

/// A caller's own deadline may be shorter than the store's. A call that is dropped closes
/// its connection if that has not answered anything for as long as `patience`; otherwise a
/// half-open socket would stay in use.
pub(super) struct Watch<'a> {
    connection: &'a Connection,
    begun: Instant,
    answers: u64,
    patience: Duration,
    done: bool,
}

impl Watch<'_> {
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let silent = self.connection.answers.load(Ordering::Relaxed) == self.answers;
        if !self.done && silent && self.begun.elapsed() >= self.patience {
            self.connection.retire();
        }
    }
}
