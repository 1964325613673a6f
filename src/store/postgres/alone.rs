//! The connection for purging, which takes several statements and so is not shared.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::store::postgres::audit;
use crate::store::postgres::audit::{Purge, Purged};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::error::{DbError, Result};

/// Used by one call at a time, and opened when first needed. A call takes the connection
/// out and puts it back on success. If the call is dropped, this closes the connection, and
/// the server rolls back the transaction.
#[derive(Debug)]
pub(super) struct Alone {
    slot: Mutex<Option<Connection>>,
    dialer: Arc<Dialer>,
}

impl Alone {
    pub(super) fn new(dialer: Arc<Dialer>) -> Self {
        Self { slot: Mutex::new(None), dialer }
    }

    /// Not done on a shared connection, which it would block for too long. Repeating the
    /// purge of deleted rows does no harm.
    pub(super) async fn purge(&self, purge: Purge) -> Result<Purged> {
        let deadline = self.dialer.patience.deadline;
        let until = Instant::now() + deadline;
        let late = |_| DbError::Late(deadline);
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
                return Err(DbError::Late(deadline));
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
