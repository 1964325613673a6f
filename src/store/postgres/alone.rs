//! The connection for purging, which takes several statements and so is not shared.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use crate::audit::usage::UsageCounts;
use crate::runtime::clock::Timestamp;
use crate::store::postgres::audit;
use crate::store::postgres::audit::{Purge, Purged};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::statements::Sql;
use crate::text::with_causes;

/// How often detaching partitions is tried again while somebody uses them, and the pause before.
const PAUSES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// How long the file system may take to delete a partition.
const DROP_DEADLINE: Duration = Duration::from_secs(60);

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

    /// Deletes the records from before this instant, and returns how many there were.
    pub(super) async fn purge_before(&self, instant: Timestamp) -> Result<u64> {
        let dropped = self.drop_partitions(instant).await?;
        let requests = self.purge_all(Sql::PurgeRequests, instant).await?;
        let changes = self.purge_all(Sql::PurgeChanges, instant).await?;
        self.purge_all(Sql::PurgeUsage, UsageCounts::kept_from(instant)).await?;
        Ok(dropped + requests + changes)
    }

    /// Drops the partitions from before this instant. The requests of one that stays in use are
    /// deleted like others.
    async fn drop_partitions(&self, instant: Timestamp) -> Result<u64> {
        let purge = |statement| Purge { statement, from: Timestamp::MIN, before: instant };
        let mut pauses = PAUSES;
        while let Err(fault) = self.purge(purge(Sql::DetachPartitions)).await {
            if !fault.is_a_lock() || pauses == 0 {
                Self::leave_partitions(fault)?;
                break;
            }
            pauses -= 1;
            sleep(PAUSE).await;
        }
        let mut dropped = 0;
        loop {
            match self.purge(purge(Sql::DropPartition)).await {
                Ok(batch) if batch.last.is_some() => dropped += batch.rows,
                Ok(_) => return Ok(dropped),
                Err(fault) => return Self::leave_partitions(fault).map(|()| dropped),
            }
        }
    }

    /// Leaves partitions to the next purge if somebody uses them, or if the role may not drop
    /// them.
    fn leave_partitions(fault: DbError) -> Result<()> {
        if !fault.is_a_lock() && !fault.lacks_rights() {
            return Err(fault);
        }
        tracing::warn!(
            reason = with_causes(&fault),
            "keygate: old partitions of the audit log were not dropped"
        );
        Ok(())
    }

    async fn purge_all(&self, statement: Sql, before: Timestamp) -> Result<u64> {
        let mut purge = Purge { statement, from: Timestamp::MIN, before };
        let mut purged = 0;
        loop {
            let batch = self.purge(purge).await?;
            purged += batch.rows;
            let Some(last) = batch.last else { return Ok(purged) };
            purge.from = last;
        }
    }

    /// Not done on a shared connection, which it would block for too long. Repeating the
    /// purge of deleted rows does no harm.
    async fn purge(&self, purge: Purge) -> Result<Purged> {
        let deadline = match purge.statement {
            Sql::DropPartition => self.dialer.patience.deadline.max(DROP_DEADLINE),
            _ => self.dialer.patience.deadline,
        };
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
