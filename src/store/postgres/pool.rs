//! A few shared connections, each kept up by a task of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout_at};
use tokio_postgres::Row;

use crate::store::postgres::Outcome;
use crate::store::postgres::connection::{Connection, Parameters};
use crate::store::postgres::dial::Dialer;
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
    deadline: Duration,
    last_failure: Arc<LastFailure>,
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
        Self { slots, next: AtomicUsize::new(0), deadline, last_failure, keepers }
    }

    pub(super) async fn query(
        &self,
        again: Again,
        statement: Sql,
        parameters: &Parameters<'_>,
    ) -> Outcome<Vec<Row>> {
        let until = tokio::time::Instant::now() + self.deadline;
        // All connections may have been lost at once, before any of them knows.
        let mut repeats = self.keepers.len();
        loop {
            let Ok(connection) = timeout_at(until, self.live()).await else {
                let reason = self.last_failure.text();
                return Err(Fault::NoConnection { waited: self.deadline, reason });
            };
            let connection = connection?;
            let watch = connection.watch(self.deadline / 4);
            let answer = timeout_at(until, connection.query(statement, parameters)).await;
            watch.done();
            let fault = match answer {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(fault)) => fault,
                // What is behind it in the queue would hang as well.
                Err(_) => Fault::Late(self.deadline),
            };
            let lost = fault.costs_the_connection();
            if lost {
                connection.retire();
            }
            let safe = fault.changed_nothing() || (lost && again == Again::WhenLost);
            if repeats == 0 || !safe || matches!(fault, Fault::Late(_)) {
                return Err(fault);
            }
            repeats -= 1;
        }
    }

    /// The next connection in turn; waits where there is none.
    async fn live(&self) -> Outcome<Arc<Connection>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(connection) = pick(&self.slots.borrow(), turn) {
            return Ok(connection);
        }
        let mut slots = self.slots.clone();
        loop {
            let found = slots.wait_for(|slots| pick(slots, turn).is_some()).await;
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

/// A live connection, at that place or else at the next one that has any.
fn pick(slots: &Slots, turn: usize) -> Option<Arc<Connection>> {
    let place = turn % slots.len().max(1);
    let in_turn = slots.iter().skip(place).chain(slots.iter().take(place));
    in_turn.flatten().find(|connection| connection.is_live()).cloned()
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
