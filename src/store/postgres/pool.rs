//! A few shared connections, each kept up by a task of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::store::postgres::Outcome;
use crate::store::postgres::connection::{Connection, Parameters};
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::encoded::Encoded;
use crate::store::postgres::error::Fault;
use crate::store::postgres::gate::{Gate, Gates, Pass};
use crate::store::postgres::session::Patience;
use crate::store::postgres::statements::Sql;
use crate::throttle::Throttle;

/// Between two attempts to connect; doubled from one to the next.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How the connections of a pool are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Each carries many calls, one behind the other, without waiting for answers.
    Shared,
    /// Each carries one call at a time: a call may wait for a lock.
    InTurn,
}

type Slots = Vec<Option<Arc<Connection>>>;

#[derive(Debug)]
pub(super) struct Pool {
    slots: watch::Receiver<Slots>,
    next: AtomicUsize,
    used: Use,
    deadline: Duration,
    patience: Patience,
    gates: Gates,
    last_failure: Arc<LastFailure>,
    /// The one that the store was opened on.
    pub(super) runtime: Handle,
    keepers: Vec<JoinHandle<()>>,
}

/// Why the last attempt to connect failed.
#[derive(Debug, Default)]
struct LastFailure {
    text: Mutex<Option<String>>,
    said: Throttle,
}

impl Pool {
    /// Without prepared statements, every pool takes turns.
    pub(super) fn start(
        dialer: &Arc<Dialer>,
        connections: usize,
        used: Use,
        deadline: Duration,
    ) -> Self {
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
            used: if dialer.prepared { used } else { Use::InTurn },
            deadline,
            patience: Patience::of(deadline),
            gates: Gates::default(),
            last_failure,
            runtime: Handle::current(),
            keepers,
        }
    }

    /// A call that reads, or writes what may be written twice: it is made again where its
    /// connection is lost.
    pub(super) async fn query(
        &self,
        statement: Sql,
        parameters: &Parameters<'_>,
    ) -> Outcome<Vec<Row>> {
        let until = self.until();
        // All connections may have been lost at once, before any of them knows.
        let mut repeats = self.size();
        loop {
            let answer = match self.used {
                Use::Shared => self.ask(statement, parameters, until).await,
                Use::InTurn => {
                    let call = Call { statement, parameters: Encoded::all(parameters), pass: None };
                    self.ask_in_turn(call, until).await
                }
            };
            match answer {
                Err(fault) if repeats > 0 && fault.may_be_repeated() => repeats -= 1,
                answer => return answer,
            }
        }
    }

    /// A call that changes what must not be changed twice. It takes place within its
    /// deadline or never: the deadline goes to the server with it, and a way to tell how
    /// long it may wait for a lock, as its last two parameters.
    pub(super) async fn change(
        &self,
        gate: Gate,
        statement: Sql,
        parameters: &Parameters<'_>,
        until: Instant,
    ) -> Outcome<Vec<Row>> {
        let not_begun = |_| Fault::NotBegun(self.deadline);
        let pass = timeout_at(until, self.gates.enter(gate)).await.map_err(not_begun)?;
        let pass = Arc::new(pass);
        let mut repeats = self.size();
        loop {
            let pass = Some(Arc::clone(&pass));
            let call = Call { statement, parameters: Encoded::all(parameters), pass };
            match self.ask_in_turn(call, until).await {
                Err(fault) if repeats > 0 && fault.changed_nothing() => repeats -= 1,
                Err(fault) if !fault.is_no_change() => {
                    return Err(Fault::InDoubt(Box::new(fault)));
                }
                answer => return answer,
            }
        }
    }

    /// The deadline of a call.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How many connections there are.
    pub(super) fn size(&self) -> usize {
        self.keepers.len()
    }

    /// When a call that begins now has to be over.
    pub(super) fn until(&self) -> Instant {
        Instant::now() + self.deadline
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

    /// When everybody before has been answered. The call goes on without a caller that
    /// gives up on it, so that its connection is not used while the server is still at it.
    /// (A pooler may also hand on the session of a client that left in the midst of
    /// several questions, and somebody else gets the answers: PgBouncer 1.18 does.)
    async fn ask_in_turn(&self, call: Call, until: Instant) -> Outcome<Vec<Row>> {
        let deadline = self.deadline;
        let (connection, turn) = loop {
            let connection = self.live(until).await?;
            let turn = timeout_at(until, connection.turn()).await;
            let turn = turn.map_err(|_| Fault::NotBegun(deadline))?;
            if connection.is_live() {
                break (connection, turn);
            }
        };
        if call.pass.is_some() && self.patience.is_spent(until) {
            return Err(Fault::NotBegun(deadline));
        }
        let (caller, gone) = oneshot::channel();
        let begun = Begun { connection, _turn: turn, until, deadline, patience: self.patience };
        let answer = timeout_at(until, self.runtime.spawn(begun.carry_out(call, gone))).await;
        // Kept until here: dropped earlier, it says that the caller is gone.
        drop::<oneshot::Sender<()>>(caller);
        let answer = answer.unwrap_or(Ok(Err(Fault::Late(deadline))));
        let answer = answer.unwrap_or(Err(Fault::Ended));
        if matches!(answer, Err(Fault::Late(_))) {
            self.retire_idle();
        }
        answer
    }

    /// Where one connection has gone silent, others may have as well: each of them would
    /// cost a call its deadline.
    fn retire_idle(&self) {
        let slots = self.slots.borrow().clone();
        slots.iter().flatten().filter(|slot| slot.queue() == 0).for_each(|slot| slot.retire());
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

/// One call on a connection that takes turns.
struct Call {
    statement: Sql,
    parameters: Vec<(Encoded, Type)>,
    /// That of a change.
    pass: Option<Arc<Pass>>,
}

/// A call's turn has come.
struct Begun {
    connection: Arc<Connection>,
    _turn: OwnedMutexGuard<()>,
    until: Instant,
    deadline: Duration,
    patience: Patience,
}

impl Begun {
    /// Where the caller of a change is gone, or there is hardly any time left, the server
    /// is asked to break off; its answer is waited for even so.
    async fn carry_out(self, mut call: Call, gone: oneshot::Receiver<()>) -> Outcome<Vec<Row>> {
        let Self { connection, until, patience, .. } = &self;
        let is_change = call.pass.is_some();
        let give_up = *until - patience.margin();
        if is_change {
            let deadline = connection.clock.at(give_up);
            call.parameters.extend(Encoded::all(&[
                (&deadline, Type::INT8),
                (&patience.lock_timeout(*until), Type::TEXT),
            ]));
        }
        let parameters = Encoded::refs(&call.parameters);
        let query = connection.query(call.statement, &parameters);
        let broken_off = async {
            tokio::select! {
                Err(_) = gone, if is_change => {}
                () = sleep_until(give_up) => {}
            }
            connection.cancel().await;
        };
        let answer = timeout_at(*until, async {
            tokio::pin!(query);
            tokio::pin!(broken_off);
            tokio::select! {
                biased;
                answer = &mut query => answer,
                () = &mut broken_off => query.await,
            }
        });
        let answer = connection.judge(answer.await, self.deadline);
        match &answer {
            Err(_) => connection.settle(self.deadline).await,
            Ok(rows) => {
                let now = rows.first().and_then(|row| row.try_get("now").ok());
                now.into_iter().for_each(|now| connection.clock.learn(now));
            }
        }
        answer
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
    let patience = dialer.patience.of_the_server();
    let mut given_up: Option<Instant> = None;
    loop {
        match dialer.dial().await {
            Ok((connection, end)) => {
                let begun = Instant::now();
                let connection = Arc::new(connection);
                publish(Some(Arc::clone(&connection)));
                let _ = end.await;
                publish(None);
                if connection.is_retired() {
                    // The server may still be at what was given up: no more than one
                    // session beyond those that are used.
                    let now = Instant::now();
                    if let Some(until) = given_up.replace(now + patience) {
                        sleep_until(until).await;
                    }
                }
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
        if let Some(left_out) = self.said.pass() {
            tracing::warn!(reason = text, left_out, "keygate: no connection to PostgreSQL");
        }
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner).clone();
        text.unwrap_or_else(|| "still connecting".to_owned())
    }
}
