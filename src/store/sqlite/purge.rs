//! Deletes old records, in batches.

use rusqlite::{Connection, OptionalExtension, params};

use crate::audit::usage::UsageCounts;
use crate::runtime::clock::Timestamp;
use crate::store::sqlite::error::Result;
use crate::store::sqlite::sorted;

/// How many rows of a table are purged in one transaction.
const BATCH: usize = 500;
/// How many pages are returned to the file system with them, more than they filled.
const PAGES: i64 = 128;

/// How far a purge has come, and how many records it has deleted.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) purged: u64,
    place: Option<Place>,
    pub(super) is_done: bool,
}

/// From where on requests are left.
#[derive(Clone, Debug, Default)]
struct Place {
    /// `None` in `requests`.
    run: Option<i64>,
    key: Vec<u8>,
}

impl Progress {
    pub(super) fn begin() -> Self {
        Self { place: Some(Place::default()), ..Self::default() }
    }
}

/// Deletes some of the records from before this instant, and some of the counts from a year
/// earlier.
pub(super) fn purge(
    db: &Connection,
    before: Timestamp,
    mut progress: Progress,
) -> Result<Progress> {
    let requests = purge_requests(db, before, &mut progress.place)?;
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
    progress.is_done = progress.place.is_none() && purged == 0 && counts == 0;
    Ok(progress)
}

/// Deletes the old requests of some keys, from this place on, and moves on to the first key that
/// may have more. An index by time would cost each new request a page.
fn purge_requests(db: &Connection, before: Timestamp, from: &mut Option<Place>) -> Result<usize> {
    let (mut purged, mut visited) = (0, 0);
    while let Some(Place { run, key }) = from.take() {
        let (table, run_is) =
            if run.is_some() { ("sorted", "run = ?1") } else { ("requests", "?1 IS NULL") };
        let is_old = format!("{run_is} AND key = ?2 AND at < ?3");
        // Most keys have no old requests, which takes less time to find out.
        let any = format!("SELECT 1 FROM {table} WHERE {is_old} LIMIT 1");
        let left = BATCH - purged;
        let deleted = if db.prepare_cached(&any)?.exists(params![run, key, before.unix_micros()])? {
            let delete = format!(
                "DELETE FROM {table} WHERE {run_is} AND (key, at, id) IN \
                 (SELECT key, at, id FROM {table} WHERE {is_old} ORDER BY at, id LIMIT ?4)"
            );
            let limits = params![run, key, before.unix_micros(), left as i64];
            db.prepare_cached(&delete)?.execute(limits)?
        } else {
            0
        };
        purged += deleted;
        visited += 1;
        if deleted == left {
            *from = Some(Place { run, key });
            break;
        }
        let next =
            format!("SELECT key FROM {table} WHERE {run_is} AND key > ?2 ORDER BY key LIMIT 1");
        let next = db.prepare_cached(&next)?.query_row(params![run, key], |row| row.get(0));
        *from = match next.optional()? {
            Some(key) => Some(Place { run, key }),
            None => {
                if let Some(run) = run {
                    sorted::purged(db, run, before)?;
                }
                let next = sorted::next_before(db, run, before)?;
                next.map(|run| Place { run: Some(run), key: Vec::new() })
            }
        };
        if visited == BATCH {
            break;
        }
    }
    Ok(purged)
}
