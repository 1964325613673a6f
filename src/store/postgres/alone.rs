//! The one connection that is not shared, for what takes several statements: purging.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::store::postgres::audit;
use crate::store::postgres::audit::{Purge, Purged};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::error::{Fault, Outcome};

/// Used by one call at a time, and made when first needed. The connection is taken out
/// for the call and put back when all is well: a call that is dropped closes it, and the
/// server takes the transaction back.
#[derive(Debug)]
pub(super) struct Alone {
    slot: Mutex<Option<Connection>>,
    dialer: Arc<Dialer>,
    deadline: Duration,
}

impl Alone {
    pub(super) fn new(dialer: Arc<Dialer>, deadline: Duration) -> Self {
        Self { slot: Mutex::new(None), dialer, deadline }
    }

    /// Here rather than on a shared connection: it takes longer than others should have
    /// to wait. Rows that are gone are purged again without harm.
    pub(super) async fn purge(&self, purge: Purge) -> Outcome<Purged> {
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
            let Ok(done) = timeout_at(until, audit::purge(&connection, purge)).await else {
                connection.retire();
                return Err(Fault::Late(self.deadline));
            };
            let Err(fault) = done else {
                *slot = Some(connection);
                return done;
            };
            if !fault.costs_the_connection()
                && matches!(timeout_at(until, connection.run("ROLLBACK")).await, Ok(Ok(())))
            {
                *slot = Some(connection);
            }
            if !(again && fault.may_be_repeated()) {
                return Err(fault);
            }
            again = false;
        }
    }
}
