//! A few shared connections, each kept up by a task of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::Row;

use crate::store::postgres::Outcome;
use crate::store::postgres::connection::{Connection, Parameters};
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::encoded::Encoded;
use crate::store::postgres::error::Fault;
use crate::store::postgres::statements::Sql;

/// Between two attempts to connect; doubled from one to the next.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Whether a call may be made again when its connection is lost under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It may have taken place, and must not do so twice.
    Never,
    /// It reads, or writes what may be written twice.
    WhenLost,
}

type Slots = Vec<Option<Arc<Connection>>>;

#[derive(Debug)]
pub(super) struct Pool {
    slots: watch::Receiver<Slots>,
    next: AtomicUsize,
    /// Whether a connection carries many calls at a time.
    shared: bool,
    deadline: Duration,
    last_failure: Arc<LastFailure>,
    /// The one that the store was opened on.
    pub(super) runtime: Handle,
    keepers: Vec<JoinHandle<()>>,
}

/// Why the last attempt to connect failed.
#[derive(Debug, Default)]
struct LastFailure(Mutex<Option<String>>);

impl Pool {
    pub(super) fn start(dialer: &Arc<Dialer>, connections: usize, deadline: Duration) -> Self {
        let (publish, slots) = watch::channel(vec![None; connections]);
        let publish = Arc::new(publish);
        let last_failure = Arc::new(LastFailure::default());
        let keep = |slot| {
            let (dialer, publish) = (Arc::clone(dialer), Arc::clone(&publish));
            tokio::spawn(keep(slot, dialer, publish, Arc::clone(&last_failure)))
        };
        let keepers = (0..connections).map(keep).collect();
        Self {
            slots,
            next: AtomicUsize::new(0),
            shared: dialer.prepared,
            deadline,
            last_failure,
            runtime: Handle::current(),
            keepers,
        }
    }

    pub(super) async fn query(
        &self,
        again: Again,
        statement: Sql,
        parameters: &Parameters<'_>,
    ) -> Outcome<Vec<Row>> {
        let until = Instant::now() + self.deadline;
        // All connections may have been lost at once, before any of them knows.
        let mut repeats = self.keepers.len();
        loop {
            let answer = match self.shared {
                true => self.ask(statement, parameters, until).await,
                false => self.ask_in_turn(statement, parameters, until).await,
            };
            let fault = match answer {
                Ok(rows) => return Ok(rows),
                Err(fault) => fault,
            };
            let lost = fault.costs_the_connection();
            let safe = fault.changed_nothing() || (lost && again == Again::WhenLost);
            if repeats == 0 || !safe || matches!(fault, Fault::Late(_)) {
                return Err(fault);
            }
            repeats -= 1;
        }
    }

    /// Behind what others have asked, without waiting for their answers.
    async fn ask(
        &self,
        statement: Sql,
        parameters: &Parameters<'_>,
        until: Instant,
    ) -> Outcome<Vec<Row>> {
        let connection = self.live(until).await?;
        let watch = connection.watch(self.deadline / 4);
        let answer = timeout_at(until, connection.query(statement, parameters)).await;
        watch.done();
        connection.judge(answer, self.deadline)
    }

    /// When everybody before has been answered. A pooler may hand on the session of
    /// a client that left in the midst of several questions, and somebody else gets
    /// the answers: PgBouncer 1.18 does. For the same reason the call goes on without
    /// a caller that gave up on it.
    async fn ask_in_turn(
        &self,
        statement: Sql,
        parameters: &Parameters<'_>,
        until: Instant,
    ) -> Outcome<Vec<Row>> {
        let deadline = self.deadline;
        let (connection, turn) = loop {
            let connection = self.live(until).await?;
            let turn = timeout_at(until, connection.turn()).await;
            let turn = turn.map_err(|_| Fault::Late(deadline))?;
            if connection.is_live() {
                break (connection, turn);
            }
        };
        let parameters = Encoded::all(parameters);
        let call = self.runtime.spawn(async move {
            let _turn = turn;
            let parameters = Encoded::refs(&parameters);
            let answer = timeout(deadline, connection.query(statement, &parameters)).await;
            let answer = connection.judge(answer, deadline);
            if answer.is_err() {
                connection.settle(deadline).await;
            }
            answer
        });
        let answer = timeout_at(until, call).await.map_err(|_| Fault::Late(deadline))?;
        answer.unwrap_or(Err(Fault::Ended))
    }

    /// The next connection in turn; waits where there is none.
    async fn live(&self, until: Instant) -> Outcome<Arc<Connection>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(connection) = pick(&self.slots.borrow(), turn) {
            return Ok(connection);
        }
        let mut slots = self.slots.clone();
        loop {
            let found = timeout_at(until, slots.wait_for(|slots| pick(slots, turn).is_some()));
            let Ok(found) = found.await else {
                let reason = self.last_failure.text();
                return Err(Fault::NoConnection { waited: self.deadline, reason });
            };
            let found = found.map(|slots| pick(&slots, turn)).map_err(|_| Fault::Ended)?;
            if let Some(connection) = found {
                return Ok(connection);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for keeper in &self.keepers {
            keeper.abort();
        }
    }
}

/// A live connection, at that place or else at the next one that has any; where they
/// take turns, the one that the fewest wait for.
fn pick(slots: &Slots, place: usize) -> Option<Arc<Connection>> {
    let place = place % slots.len().max(1);
    let from_there = slots.iter().skip(place).chain(slots.iter().take(place));
    let live = from_there.flatten().filter(|connection| connection.is_live());
    live.min_by_key(|connection| connection.queue()).cloned()
}

/// Keeps one slot filled, until it is aborted.
async fn keep(
    slot: usize,
    dialer: Arc<Dialer>,
    slots: Arc<watch::Sender<Slots>>,
    last_failure: Arc<LastFailure>,
) {
    let publish = |connection: Option<Arc<Connection>>| {
        slots.send_modify(|slots| {
            if let Some(place) = slots.get_mut(slot) {
                *place = connection;
            }
        });
    };
    let mut pause = SHORTEST_PAUSE;
    loop {
        match dialer.dial().await {
            Ok((connection, end)) => {
                let begun = Instant::now();
                let connection = Arc::new(connection);
                publish(Some(Arc::clone(&connection)));
                let _ = end.await;
                publish(None);
                // One that was lost at once is no sign of a server in health.
                let lasted = begun.elapsed() > LONGEST_PAUSE;
                if lasted || connection.has_answered() {
                    pause = SHORTEST_PAUSE;
                }
                if lasted {
                    continue;
                }
            }
            Err(fault) => last_failure.set(&fault),
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

impl LastFailure {
    fn set(&self, fault: &Fault) {
        let text = fault.with_causes();
        tracing::warn!(reason = text, "keygate: no connection to PostgreSQL");
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    fn text(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        text.unwrap_or_else(|| "still connecting".to_owned())
    }
}
