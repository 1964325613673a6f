//! The partitions of the requests in the audit log: made ahead of time, and for records that
//! have none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::store::postgres::connection::Connection;
use crate::store::postgres::dial::Dialer;
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::pool::Pool;
use crate::store::postgres::statements::Sql;
use crate::text::with_causes;

/// How often partitions are made ahead, at most.
const INTERVAL: Duration = Duration::from_secs(600);
/// The pause after a step of ending the first partition that waited for a lock.
const PAUSE: Duration = Duration::from_secs(1);
/// How many of the pauses there are. Then it is tried again after the next [`INTERVAL`].
const PAUSES: u32 = 60;
/// How many partitions are made in one transaction. Each takes up to a tenth of a second.
const AT_ONCE: usize = 4;

#[derive(Debug)]
pub(super) struct Partitions {
    /// In microseconds, as are all times here.
    width: i64,
    dialer: Arc<Dialer>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The end of the partitions that were made ahead.
    end: Option<i64>,
    /// When the next ones may be made.
    next: Option<Instant>,
    /// Ends the first partition.
    task: JoinSet<()>,
}

impl Partitions {
    pub(super) fn new(width: Duration, dialer: &Arc<Dialer>) -> Self {
        let width = i64::try_from(width.as_micros()).unwrap_or(i64::MAX);
        Self { width, dialer: Arc::clone(dialer), known: Mutex::default() }
    }

    /// Makes partitions ahead over a connection that is not shared, when a store opens.
    pub(super) async fn begin(&self, connection: &Connection) {
        let deadline = self.dialer.patience.deadline;
        let times = Vec::<i64>::new();
        let parameters = parameters(&times, &self.width, &false);
        let made = connection.query(Sql::MakePartitions, &parameters);
        match timeout(deadline, made).await.unwrap_or(Err(DbError::Late(deadline))) {
            Ok(rows) => self.learn(end(&rows)),
            Err(fault) => warn(&fault),
        }
    }

    /// Makes partitions ahead if there are hardly any left after this time. A failure is
    /// logged: there is time to make them later.
    pub(super) async fn look_ahead(&self, pool: &Pool, newest: i64) {
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let is_far = |end| newest.saturating_add(self.width.saturating_mul(2)) < end;
            if known.end.is_some_and(is_far) || known.next.is_some_and(|next| now < next) {
                return;
            }
            known.next = Some(now + INTERVAL);
        }
        if let Err(fault) = self.make(pool, [newest]).await {
            warn(&fault);
        }
    }

    /// Makes the missing partitions for these times, a few in each transaction.
    pub(super) async fn make(
        &self,
        pool: &Pool,
        times: impl IntoIterator<Item = i64>,
    ) -> Result<()> {
        let starts = times.into_iter().map(|time| (time.div_euclid(self.width), time));
        // One time for each partition.
        let starts: BTreeMap<i64, i64> = starts.collect();
        let times: Vec<i64> = starts.into_values().collect();
        for times in times.chunks(AT_ONCE) {
            let parameters = parameters(&times, &self.width, &false);
            self.learn(end(&pool.query(Sql::MakePartitions, &parameters).await?));
        }
        Ok(())
    }

    /// Learns the end of the partitions. While the first one has none, a task ends it.
    fn learn(&self, end: Option<i64>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.end = end;
        while known.task.try_join_next().is_some() {}
        if end.is_none() && known.task.is_empty() {
            known.task.spawn(end_first(Arc::clone(&self.dialer), self.width));
        }
    }
}

fn parameters<'a>(
    times: &'a (dyn ToSql + Sync),
    width: &'a i64,
    may_take_long: &'a bool,
) -> [(&'a (dyn ToSql + Sync), Type); 3] {
    [(times, Type::INT8_ARRAY), (width, Type::INT8), (may_take_long, Type::BOOL)]
}

fn warn(fault: &DbError) {
    tracing::warn!(
        reason = with_causes(fault),
        "keygate: no partitions were made for the requests of the coming time"
    );
}

/// The end of the partitions that were made, if the first one has an end.
fn end(rows: &[Row]) -> Option<i64> {
    rows.first().and_then(|row| row.try_get("made").ok()).flatten()
}

/// Takes the steps of ending the first partition. One of them may take minutes. After a failure,
/// the next call that finds the first partition without end begins again.
async fn end_first(dialer: Arc<Dialer>, width: i64) {
    let times = Vec::<i64>::new();
    let parameters = parameters(&times, &width, &true);
    // Long before the end of the partition, which is a width ahead at least.
    let begin =
        format!("BEGIN; SET LOCAL statement_timeout = {}", (width / 2000).min(i32::MAX.into()));
    let mut pauses = PAUSES;
    loop {
        let step = async {
            let (connection, _) = dialer.dial_patiently().await?;
            connection.run(&begin).await?;
            let rows = connection.query(Sql::MakePartitions, &parameters).await?;
            connection.run("COMMIT").await?;
            Ok(end(&rows))
        };
        match step.await {
            Ok(Some(_)) => return,
            Ok(None) => {}
            Err(fault) if pauses > 0 && DbError::is_a_lock(&fault) => {
                pauses -= 1;
                sleep(PAUSE).await;
            }
            Err(fault) => {
                tracing::warn!(
                    reason = with_causes(&fault),
                    "keygate: the requests of the audit log are not partitioned yet"
                );
                return;
            }
        }
    }
}
