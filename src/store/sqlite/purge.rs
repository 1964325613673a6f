//! Deletes old records, in batches.

use rusqlite::{Connection, OptionalExtension, params};

use crate::audit::usage::UsageCounts;
use crate::runtime::clock::Timestamp;
use crate::store::sqlite::error::Result;

/// How many rows of a table are purged in one transaction.
const BATCH: usize = 500;
/// How many pages are returned to the file system with them, more than they filled.
const PAGES: i64 = 128;

/// How far a purge has come, and how many records it has deleted.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) purged: u64,
    /// The key from which on requests are left.
    key: Option<Vec<u8>>,
    pub(super) is_done: bool,
}

impl Progress {
    pub(super) fn begin() -> Self {
        Self { key: Some(Vec::new()), ..Self::default() }
    }
}

/// Deletes some of the records from before this instant, and some of the counts from a year
/// earlier.
pub(super) fn purge(
    db: &Connection,
    before: Timestamp,
    mut progress: Progress,
) -> Result<Progress> {
    let requests = purge_requests(db, before, &mut progress.key)?;
    let sql = format!(
        "DELETE FROM changes WHERE (key, at, id) IN \
         (SELECT key, at, id FROM changes WHERE at < ?1 ORDER BY at LIMIT {BATCH})"
    );
    let changes = db.prepare_cached(&sql)?.execute([before.unix_micros()])?;
    let sql = format!(
        "DELETE FROM hourly_usage WHERE (key, org, hour) IN \
         (SELECT key, org, hour FROM hourly_usage WHERE hour < ?1 LIMIT {BATCH})"
    );
    let kept_from = UsageCounts::kept_from(before).unix_micros();
    let counts = db.prepare_cached(&sql)?.execute([kept_from])?;
    // Has no effect on a file created without `auto_vacuum`: its free pages are reused.
    let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
    let mut steps = vacuum.query([])?;
    while steps.next()?.is_some() {}
    let purged = requests + changes;
    progress.purged += purged as u64;
    progress.is_done = progress.key.is_none() && purged == 0 && counts == 0;
    Ok(progress)
}

/// Deletes the old requests of some keys, from this one on, and moves on to the first key that
/// may have more. An index by time would cost each new request a page.
fn purge_requests(db: &Connection, before: Timestamp, from: &mut Option<Vec<u8>>) -> Result<usize> {
    let mut next =
        db.prepare_cached("SELECT key FROM requests WHERE key > ?1 ORDER BY key LIMIT 1")?;
    let mut delete = db.prepare_cached(
        "DELETE FROM requests WHERE (key, at, id) IN \
         (SELECT key, at, id FROM requests WHERE key = ?1 AND at < ?2 ORDER BY at, id LIMIT ?3)",
    )?;
    let (mut purged, mut visited) = (0, 0);
    while let Some(key) = from.take() {
        let left = BATCH - purged;
        let deleted = delete.execute(params![key, before.unix_micros(), left as i64])?;
        purged += deleted;
        visited += 1;
        if deleted == left {
            *from = Some(key);
            break;
        }
        *from = next.query_row([key], |row| row.get(0)).optional()?;
        if visited == BATCH {
            break;
        }
    }
    Ok(purged)
}
