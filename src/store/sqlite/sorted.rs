//! Requests from full tables of recent ones, in long runs that are each in order by key.
//!
//! Each full table becomes a run of its own, so that its rows are written to new pages, one after
//! the other. In `requests`, they would be written to a page of each key. A run never changes
//! later, except by a purge. The times of runs hardly overlap, so a record that is given again is
//! looked for in few of them.

use std::sync::LazyLock;

use rusqlite::{Connection, params};

use crate::audit::record::AuditRecord;
use crate::runtime::clock::Timestamp;
use crate::store::sql::{self, REQUESTS};
use crate::store::sqlite::counts::{COUNTED, Counts};
use crate::store::sqlite::error::Result;
use crate::store::sqlite::recent::End;

/// Whether a run has the record with this key, time and id.
pub(super) fn contains([key, at, id]: [&str; 3]) -> String {
    format!(
        "EXISTS (SELECT 1 FROM sorted_runs CROSS JOIN sorted \
         WHERE sorted_runs.newest >= {at} AND sorted_runs.oldest <= {at} \
         AND sorted.run = sorted_runs.run \
         AND sorted.key = {key} AND sorted.at = {at} AND sorted.id = {id})"
    )
}

/// Writes what is selected by `slice` from a table named `recent` to the run with the number
/// `?7`, unless it is stored already.
pub(super) fn insertion(slice: &str) -> String {
    let columns = sql::list(REQUESTS);
    let is_sorted = contains(["recent.key", "recent.at", "recent.id"]);
    format!(
        "INSERT OR IGNORE INTO sorted (run, {columns}) SELECT ?7, {columns} {slice} \
         AND NOT EXISTS (SELECT 1 FROM requests \
          WHERE key = recent.key AND at = recent.at AND id = recent.id) \
         AND (at > (SELECT max(newest) FROM sorted_runs WHERE run <> ?7) OR NOT {is_sorted}) \
         ORDER BY key, at, id"
    )
}

static SLICE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COUNTED} FROM sorted WHERE run = ?7 \
         AND (key, at, id) > (?1, ?2, ?3) AND (key, at, id) <= (?4, ?5, ?6)"
    )
});

/// Counts the rows of a run between two places, which have just been written.
pub(super) fn count_slice(db: &Connection, run: i64, from: &End, to: &End) -> Result<()> {
    let mut counts = Counts::default();
    let (mut oldest, mut newest) = (i64::MAX, i64::MIN);
    let mut slice = db.prepare_cached(&SLICE)?;
    let mut rows = slice.query(params![from.0, from.1, from.2, to.0, to.1, to.2, run])?;
    while let Some(row) = rows.next()? {
        let at = row.get(0)?;
        (oldest, newest) = (oldest.min(at), newest.max(at));
        counts.add_row(row)?;
    }
    if oldest <= newest {
        let sql = "INSERT INTO sorted_runs VALUES (?1, ?2, ?3) ON CONFLICT (run) DO UPDATE \
                   SET oldest = min(oldest, excluded.oldest), newest = max(newest, excluded.newest)";
        db.prepare_cached(sql)?.execute([run, oldest, newest])?;
    }
    counts.write(db)
}

/// Tells whether a record is in one of the runs.
pub(super) struct Sorted {
    newest: Option<i64>,
}

static HAS: LazyLock<String> = LazyLock::new(|| format!("SELECT {}", contains(["?1", "?2", "?3"])));

impl Sorted {
    pub(super) fn read(db: &Connection) -> Result<Self> {
        let mut newest = db.prepare_cached("SELECT max(newest) FROM sorted_runs")?;
        Ok(Self { newest: newest.query_row([], |row| row.get(0))? })
    }

    pub(super) fn has(&self, db: &Connection, record: &AuditRecord) -> Result<bool> {
        let at = record.at.unix_micros();
        // Few records are so old.
        if self.newest.is_none_or(|newest| at > newest) {
            return Ok(false);
        }
        let of = params![record.key.to_bytes(), at, record.id.to_bytes()];
        Ok(db.prepare_cached(&HAS)?.query_row(of, |row| row.get(0))?)
    }
}

/// The numbers of the runs, older ones first.
pub(super) fn runs(db: &Connection) -> Result<Vec<i64>> {
    let mut runs = db.prepare_cached("SELECT run FROM sorted_runs ORDER BY run")?;
    let runs: rusqlite::Result<_> = runs.query_map([], |row| row.get(0))?.collect();
    Ok(runs?)
}

/// The first run after this one that has older requests.
pub(super) fn next_before(db: &Connection, run: Option<i64>, at: Timestamp) -> Result<Option<i64>> {
    let sql = "SELECT min(run) FROM sorted_runs WHERE run > ?1 AND oldest < ?2";
    let after = params![run.unwrap_or(i64::MIN), at.unix_micros()];
    Ok(db.prepare_cached(sql)?.query_row(after, |row| row.get(0))?)
}

/// Notes that a run has no older requests. One that has no others is forgotten.
pub(super) fn purged(db: &Connection, run: i64, before: Timestamp) -> Result<()> {
    let (run, before) = (run, before.unix_micros());
    let sql = "DELETE FROM sorted_runs WHERE run = ?1 AND newest < ?2";
    db.prepare_cached(sql)?.execute([run, before])?;
    let sql = "UPDATE sorted_runs SET oldest = max(oldest, ?2) WHERE run = ?1";
    db.prepare_cached(sql)?.execute([run, before])?;
    Ok(())
}
