//! A few shared connections, each maintained by a background task.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::store::postgres::connection::{Connection, Parameters};
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::encoded::Encoded;
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::gate::{Gate, Gates, Pass};
use crate::store::postgres::session::Patience;
use crate::store::postgres::statements::Sql;

/// The first pause between two attempts to connect; doubled each time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How the connections of a pool are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Each carries many calls, pipelined.
    Shared,
    /// Each carries one call at a time: a call may wait for a lock.
    InTurn,
    /// As `InTurn`, for reads of a few rows in the order of an index.
    InOrder,
}

/// Leaves only the plan that reads along the index. Otherwise, until a table is analysed, the
/// server would expect few rows, read them all and sort them. Compiling a plan takes longer than
/// reading a few rows.
const BEGIN_IN_ORDER: &str = "BEGIN READ ONLY; SET LOCAL enable_sort = off; \
    SET LOCAL enable_incremental_sort = off; SET LOCAL jit = off";

type Slots = Vec<Option<Arc<Connection>>>;

#[derive(Debug)]
pub(super) struct Pool {
    slots: watch::Receiver<Slots>,
    next: AtomicUsize,
    used: Use,
    gates: Gates,
    /// How many changes are in progress.
    changing: Arc<AtomicUsize>,
    /// Half of the connections: the others are for first attempts.
    retries: Semaphore,
    dialer: Arc<Dialer>,
    /// The runtime that the store was opened on.
    pub(super) runtime: Handle,
    keepers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Without prepared statements, the calls of every pool take turns.
    pub(super) fn start(dialer: &Arc<Dialer>, connections: usize, used: Use) -> Self {
        let (publish, slots) = watch::channel(vec![None; connections]);
        let publish = Arc::new(publish);
        let keep = |slot| {
            let (dialer, publish) = (Arc::clone(dialer), Arc::clone(&publish));
            tokio::spawn(keep(slot, dialer, publish))
        };
        let keepers = (0..connections).map(keep).collect();
        Self {
            slots,
            next: AtomicUsize::new(0),
            used: if dialer.prepared || used != Use::Shared { used } else { Use::InTurn },
            gates: Gates::default(),
            changing: Arc::default(),
            retries: Semaphore::new(connections.div_ceil(2)),
            dialer: Arc::clone(dialer),
            runtime: Handle::current(),
            keepers,
        }
    }

    /// A call that reads, or writes something that may be written twice. It is retried if
    /// its connection is lost.
    pub(super) async fn query(
        &self,
        statement: Sql,
        parameters: &Parameters<'_>,
    ) -> Result<Vec<Row>> {
        let until = self.until();
        // All connections may have been lost at once before this was noticed.
        let mut repeats = self.size();
        loop {
            let answer = match self.used {
                Use::Shared => self.ask(statement, parameters, until).await,
                Use::InTurn | Use::InOrder => {
                    let call =
                        Call { statement, parameters: Encoded::all(parameters), change: None };
                    self.ask_in_turn(call, until).await
                }
            };
            match answer {
                Err(fault) if repeats > 0 && fault.may_be_repeated() => repeats -= 1,
                answer => return answer,
            }
        }
    }

    /// A change that must not be made twice. It takes place within its deadline or never,
    /// since its last parameters pass the deadline to the server. While a lock is held by
    /// others, it is retried repeatedly, so that other calls can run in between.
    pub(super) async fn change(
        &self,
        gates: [Gate; 2],
        statement: Sql,
        parameters: &Parameters<'_>,
        until: Instant,
    ) -> Result<Vec<Row>> {
        let [own, shared] = gates;
        let passes = async { (self.gates.enter(own).await, self.gates.enter(shared).await) };
        let passes =
            timeout_at(until, passes).await.map_err(|_| DbError::NotBegun(self.deadline()))?;
        let change = Change { under_way: Arc::clone(&self.changing), _passes: Arc::new(passes) };
        let _counted = Counted::new(&self.changing);
        let mut repeats = self.size();
        let mut retry = None;
        loop {
            let change = Some(change.clone());
            let call = Call { statement, parameters: Encoded::all(parameters), change };
            let answer = self.ask_in_turn(call, until).await;
            drop(retry.take());
            match answer {
                Err(fault) if fault.is_a_lock() && !self.dialer.patience.is_spent(until) => {
                    retry = timeout_at(until, self.retries.acquire()).await.ok();
                }
                Err(fault) if repeats > 0 && fault.changed_nothing() => repeats -= 1,
                Err(fault) if !fault.is_no_change() => {
                    return Err(DbError::InDoubt(Box::new(fault)));
                }
                answer => return answer,
            }
        }
    }

    /// The deadline of a call.
    pub(super) fn deadline(&self) -> Duration {
        self.dialer.patience.deadline
    }

    /// How many connections there are.
    pub(super) fn size(&self) -> usize {
        self.keepers.len()
    }

    /// When a call that begins now must have ended.
    pub(super) fn until(&self) -> Instant {
        Instant::now() + self.deadline()
    }

    /// Pipelined behind other calls.
    async fn ask(
        &self,
        statement: Sql,
        parameters: &Parameters<'_>,
        until: Instant,
    ) -> Result<Vec<Row>> {
        let connection = self.live(until).await?;
        let watch = connection.watch(self.deadline() / 4);
        let answer = timeout_at(until, connection.query(statement, parameters)).await;
        watch.done();
        connection.judge(answer, self.deadline())
    }

    /// Waits until earlier calls were answered. If the caller gives up, the call continues,
    /// so that its connection is not used while the server still works on it. (A pooler may
    /// also reassign the session of a client that disconnected during several calls, and
    /// another client receives their answers: PgBouncer 1.18 does.)
    async fn ask_in_turn(&self, call: Call, until: Instant) -> Result<Vec<Row>> {
        let (patience, deadline) = (self.dialer.patience, self.deadline());
        let (connection, turn) = loop {
            let connection = self.live(until).await?;
            let turn = timeout_at(until, connection.turn()).await;
            let turn = turn.map_err(|_| DbError::NotBegun(deadline))?;
            if connection.is_live() {
                break (connection, turn);
            }
        };
        if call.change.is_some() && patience.is_spent(until) {
            return Err(DbError::NotBegun(deadline));
        }
        let in_order = self.used == Use::InOrder;
        let begun = Begun { connection, _turn: turn, until, patience, in_order };
        let answer = timeout_at(until, self.runtime.spawn(begun.carry_out(call))).await;
        let answer = answer.unwrap_or(Ok(Err(DbError::Late(deadline))));
        let answer = answer.unwrap_or(Err(DbError::Ended));
        if matches!(answer, Err(DbError::Late(_))) {
            self.retire_idle();
        }
        answer
    }

    /// If one connection hangs, others may hang as well, and each would cost a call its
    /// deadline.
    fn retire_idle(&self) {
        let slots = self.slots.borrow().clone();
        let idle = slots.iter().flatten().filter(|slot| slot.is_live() && slot.queue() == 0);
        idle.for_each(|slot| slot.retire());
    }

    /// The next connection in turn. Waits if there is none.
    async fn live(&self, until: Instant) -> Result<Arc<Connection>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(connection) = pick(&self.slots.borrow(), turn) {
            return Ok(connection);
        }
        let mut slots = self.slots.clone();
        loop {
            let found = timeout_at(until, slots.wait_for(|slots| pick(slots, turn).is_some()));
            let Ok(found) = found.await else {
                let reason = self.dialer.last_failure.text();
                return Err(DbError::NoConnection { waited: self.deadline(), reason });
            };
            let found = found.map(|slots| pick(&slots, turn)).map_err(|_| DbError::Ended)?;
            if let Some(connection) = found {
                return Ok(connection);
            }
        }
    }
}

/// A call on a connection whose calls take turns.
struct Call {
    statement: Sql,
    parameters: Vec<(Encoded, Type)>,
    change: Option<Change>,
}

/// The part of a call that is specific to changes.
#[derive(Clone)]
struct Change {
    /// The number of changes in progress: the more there are, the shorter each waits for a
    /// lock.
    under_way: Arc<AtomicUsize>,
    _passes: Arc<(Pass, Pass)>,
}

/// Counts one while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call whose turn has come.
struct Begun {
    connection: Arc<Connection>,
    _turn: OwnedMutexGuard<()>,
    until: Instant,
    patience: Patience,
    in_order: bool,
}

impl Begun {
    /// A call that is not answered in time is left to the server and not cancelled: a
    /// cancelled commit that waits for a synchronous standby would count as done.
    async fn carry_out(self, mut call: Call) -> Result<Vec<Row>> {
        let Self { connection, until, patience, .. } = &self;
        let deadline = patience.deadline;
        if let Some(Change { under_way, .. }) = &call.change {
            let lock = patience.lock(under_way.load(Ordering::Relaxed));
            let (by, window, lock_timeout) = patience.of_a_change(*until, &connection.clock, lock);
            call.parameters.extend(Encoded::all(&[
                (&by, Type::INT8),
                (&window, Type::INT8),
                (&lock_timeout, Type::TEXT),
            ]));
        }
        let parameters = Encoded::refs(&call.parameters);
        let Ok(answer) = timeout_at(*until, self.ask(call.statement, &parameters)).await else {
            connection.leave();
            return Err(DbError::Late(deadline));
        };
        let answer = connection.judge(Ok(answer), deadline);
        match &answer {
            Err(_) => connection.settle(deadline).await,
            Ok(rows) => {
                let now = rows.first().and_then(|row| row.try_get("now").ok());
                now.into_iter().for_each(|now| connection.clock.learn(now, deadline));
            }
        }
        answer
    }

    async fn ask(&self, statement: Sql, parameters: &Parameters<'_>) -> Result<Vec<Row>> {
        if !self.in_order {
            return self.connection.query(statement, parameters).await;
        }
        let rows = async {
            self.connection.run(BEGIN_IN_ORDER).await?;
            self.connection.query(statement, parameters).await
        };
        let rows = rows.await;
        // Ends the transaction after an error as well, even if that came with its first line.
        if self.connection.run("COMMIT").await.is_err() {
            self.connection.retire();
        }
        rows
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for keeper in &self.keepers {
            keeper.abort();
        }
    }
}

/// A live connection, at this index or the next one that has any. If calls take turns, the
/// one with the shortest queue.
fn pick(slots: &Slots, place: usize) -> Option<Arc<Connection>> {
    let place = place % slots.len().max(1);
    let from_there = slots.iter().skip(place).chain(slots.iter().take(place));
    let live = from_there.flatten().filter(|connection| connection.is_live());
    live.min_by_key(|connection| connection.queue()).cloned()
}

/// Keeps one slot filled until it is aborted.
async fn keep(slot: usize, dialer: Arc<Dialer>, slots: Arc<watch::Sender<Slots>>) {
    let publish = |connection: Option<Arc<Connection>>| {
        slots.send_modify(|slots| {
            if let Some(place) = slots.get_mut(slot) {
                *place = connection;
            }
        });
    };
    let mut pause = SHORTEST_PAUSE;
    let mut left: Option<(i32, JoinHandle<()>)> = None;
    loop {
        match dialer.dial().await {
            Ok((connection, mut end)) => {
                let begun = Instant::now();
                let connection = Arc::new(connection);
                publish(Some(Arc::clone(&connection)));
                let is_left =
                    matches!(select(&mut end, pin!(connection.left())).await, Either::Right(_));
                publish(None);
                if is_left && let Some((process, earlier)) = left.replace((connection.process, end))
                {
                    // The server may still work on a call that was left to it. There is
                    // never more than one such session beside the one in use.
                    dialer.outlast(process, earlier).await;
                }
                // A connection that was lost at once does not show that the server is
                // healthy.
                let lasted = begun.elapsed() > LONGEST_PAUSE;
                if lasted || connection.has_answered() {
                    pause = SHORTEST_PAUSE;
                }
                if lasted {
                    continue;
                }
            }
            Err(fault) => dialer.last_failure.set(&fault),
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}
