//! One connection: its statements, prepared when first used, and its end.

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

use crate::store::postgres::error::{Fault, Outcome};
use crate::store::postgres::session::ServerClock;
use crate::store::postgres::statements::{Sql, Texts};

/// The values of a statement, each with its type.
pub(super) type Parameters<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// May be shared: statements are sent as they come, and answered in that order. Or
/// its users take turns.
pub(super) struct Connection {
    client: Client,
    texts: Arc<Texts>,
    /// One for each statement; `None` where nothing is to be prepared.
    prepared: Option<Box<[OnceCell<Statement>]>>,
    turn: Arc<Mutex<()>>,
    driver: AbortHandle,
    retired: AtomicBool,
    answers: AtomicU64,
    pub(super) clock: ServerClock,
    left: Notify,
}

impl Connection {
    /// Takes a client and the task that moves its bytes.
    pub(super) fn new(
        client: Client,
        driver: &JoinHandle<()>,
        texts: Arc<Texts>,
        prepared: bool,
        clock: ServerClock,
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
            left: Notify::new(),
        }
    }

    pub(super) async fn query(
        &self,
        statement: Sql,
        parameters: &Parameters<'_>,
    ) -> Outcome<Vec<Row>> {
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

    /// Runs statements that have neither parameters nor rows.
    pub(super) async fn run(&self, sql: &str) -> Outcome<()> {
        Ok(self.client.batch_execute(sql).await?)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn is_live(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.client.is_closed()
    }

    /// Waits for those who came before.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// How many have it or wait for their turn.
    pub(super) fn queue(&self) -> usize {
        Arc::strong_count(&self.turn).saturating_sub(1)
    }

    /// Whether a call came to its end on it.
    pub(super) fn has_answered(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
    }

    /// Closes the connection where the answer, or its lack, says that it is of no further
    /// use: what is behind an answer that does not come would hang as well.
    pub(super) fn judge<T>(
        &self,
        answer: Result<Outcome<T>, Elapsed>,
        deadline: Duration,
    ) -> Outcome<T> {
        let answer = answer.unwrap_or(Err(Fault::Late(deadline)));
        if answer.as_ref().is_err_and(Fault::costs_the_connection) {
            self.retire();
        }
        answer
    }

    /// Returns when the server is ready for more, after an error: that is told when it
    /// comes, which may be before.
    pub(super) async fn settle(&self, deadline: Duration) {
        if !matches!(timeout(deadline, self.run("")).await, Ok(Ok(()))) {
            self.retire();
        }
    }

    /// Uses the connection no more, and lets the server finish what it is at.
    pub(super) fn leave(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.left.notify_one();
    }

    /// Returns once the connection was left to the server.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }

    /// Closes the connection; what waits on it fails at once.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.driver.abort();
    }

    /// Watches over one call, for the case that its caller gives up on it.
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

/// A caller's own deadline may be shorter than the store's. A call that is
/// dropped retires its connection where that had not answered anything for as
/// long as `patience`; otherwise a half-open socket would stay in use for good.
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
