//! The connection for purging, which takes several statements and so is not shared.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::audit::usage::UsageCounts;
use crate::runtime::clock::Timestamp;
use crate::store::postgres::audit;
use crate::store::postgres::connection::{Connection, Parameters};
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
        let dropped = self.drop_partitions(instant).await;
        let requests = self.purge_all(Sql::PurgeRequests, instant).await?;
        let changes = self.purge_all(Sql::PurgeChanges, instant).await?;
        self.purge_all(Sql::PurgeUsage, UsageCounts::kept_from(instant)).await?;
        Ok(dropped? + requests + changes)
    }

    /// Drops the partitions from before this instant. One that cannot be dropped does not keep
    /// others from it.
    async fn drop_partitions(&self, instant: Timestamp) -> Result<u64> {
        let mut done = Ok(0);
        if let Err(fault) = self.detach_partitions(instant).await {
            leave("requests", fault, &mut done);
        }
        for row in self.run(Sql::DetachedPartitions, &[]).await? {
            let (table, name): (u32, &str) = (row.try_get("oid")?, row.try_get("relname")?);
            match self.run(Sql::DropPartition, &[(&table as _, Type::OID)]).await {
                Ok(rows) => {
                    let dropped: i64 = rows.first().map_or(Ok(0), |row| row.try_get("dropped"))?;
                    done = done.map(|sum| sum + u64::try_from(dropped).unwrap_or(0));
                }
                Err(fault) => leave(name, fault, &mut done),
            }
        }
        done
    }

    async fn detach_partitions(&self, instant: Timestamp) -> Result<()> {
        let before = instant.unix_micros();
        let mut pauses = PAUSES;
        loop {
            match self.run(Sql::DetachPartitions, &[(&before as _, Type::INT8)]).await {
                Err(fault) if fault.is_a_lock() && pauses > 0 => {
                    pauses -= 1;
                    sleep(PAUSE).await;
                }
                done => return done.map(drop),
            }
        }
    }

    async fn purge_all(&self, statement: Sql, before: Timestamp) -> Result<u64> {
        let before = before.unix_micros();
        let mut from = Timestamp::MIN.unix_micros();
        let mut sum = 0;
        loop {
            let parameters =
                [(&before as _, Type::INT8), (&from as _, Type::INT8), (&true as _, Type::BOOL)];
            let (purged, last) = audit::purged(&self.run(statement, &parameters).await?)?;
            sum += purged;
            let Some(last) = last else { return Ok(sum) };
            from = last.unix_micros();
        }
    }

    /// Runs a statement of a purge. Not done on a shared connection, which it would block for too
    /// long. Repeating one does no harm.
    async fn run(&self, statement: Sql, parameters: &Parameters<'_>) -> Result<Vec<Row>> {
        let deadline = match statement {
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
            let purge = audit::purge(&connection, statement, parameters);
            let Ok(done) = timeout_at(until, purge).await else {
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

/// Leaves a table to the next purge. It is no failure if somebody uses the table, or if the role
/// may not drop it.
fn leave(table: &str, fault: DbError, done: &mut Result<u64>) {
    tracing::warn!(
        table,
        reason = with_causes(&fault),
        "keygate: old partitions of the audit log were not dropped"
    );
    if !fault.is_a_lock() && !fault.lacks_rights() && done.is_ok() {
        *done = Err(fault);
    }
}
