//! Recent requests, which are in no order by key yet.
//!
//! A row of `requests` is on the page of its key: with many keys, each new row would change a
//! page of its own. So new rows are appended to one of two tables, in runs of a thousand that
//! are each in order. Later a full table is merged into one long run (see [`sorted`]), and one
//! that has few rows into `requests`. One table takes rows while the other is merged.
//!
//! Merging takes several short transactions. What the next one has to do is in the file, so
//! that it goes on after a crash, and in whichever process writes next. A row that was merged
//! stays in its table until the whole table is merged, and a record that is given again
//! may be in several runs, so whoever reads all of them has to recognise a record by its id.

use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::{Connection, Row, params};

use crate::audit::record::{AuditRecord, RequestEvent};
use crate::runtime::clock::Timestamp;
use crate::store::sql::{self, REQUESTS};
use crate::store::sqlite::counts::{COUNTED, Counts};
use crate::store::sqlite::error::Result;
use crate::store::sqlite::rows::{bind_request, insertion};
use crate::store::sqlite::sorted;

/// How many rows are handled at once, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// A run. Reading the requests of a key takes a look-up in each.
    pub(super) run: i64,
    /// A table is full and becomes a sorted run once it has so many. The more, the fewer such
    /// runs there are.
    pub(super) table: i64,
    /// Even fewer are merged into `requests` after this time, since reading them takes longer.
    pub(super) age: Duration,
    /// A transaction that merges. Other writes wait for it.
    pub(super) slice: i64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { run: 1_000, table: 200_000, age: Duration::from_secs(60), slice: 4_000 }
    }
}

/// To divide a table into slices, every seventh run is read.
const SAMPLE: i64 = 7;

/// One of the two tables, with its statements.
pub(super) struct Table {
    pub(super) name: &'static str,
    insert: String,
    sample: String,
    merge: String,
    sort: String,
    clear: String,
}

impl Table {
    fn named(name: &'static str) -> Self {
        let columns = sql::list(REQUESTS);
        let with_run: Vec<_> = REQUESTS.into_iter().chain(["run"]).collect();
        // The numbers of the runs, each of which is in order.
        let runs = |step| {
            format!(
                "WITH RECURSIVE runs(run) AS (SELECT 0 UNION ALL SELECT run + {step} FROM runs \
                 WHERE run < (SELECT max(run) FROM {name}))"
            )
        };
        let slice = format!(
            "FROM {name} AS recent WHERE run IN (SELECT run FROM runs) \
             AND (key, at, id) > (?1, ?2, ?3) AND (key, at, id) <= (?4, ?5, ?6)"
        );
        let is_sorted = sorted::contains(["recent.key", "recent.at", "recent.id"]);
        Self {
            name,
            insert: insertion(name, &with_run),
            sample: format!(
                "{} SELECT key, at, id FROM {name} WHERE run IN (SELECT run FROM runs)",
                runs(SAMPLE)
            ),
            merge: format!(
                "{} INSERT OR IGNORE INTO requests ({columns}) SELECT {columns} {slice} \
                 AND NOT {is_sorted} RETURNING {COUNTED}",
                runs(1)
            ),
            sort: format!("{} {}", runs(1), sorted::insertion(&slice)),
            // Without a condition, SQLite releases the pages without looking at the rows.
            clear: format!("DELETE FROM recent_slices; DELETE FROM {name}"),
        }
    }

    /// How many runs it has.
    pub(super) fn runs(&self, db: &Connection) -> Result<i64> {
        let sql = format!("SELECT coalesce(max(run) + 1, 0) FROM {}", self.name);
        Ok(db.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)
    }
}

static TABLES: LazyLock<[Table; 2]> = LazyLock::new(|| ["recent_0", "recent_1"].map(Table::named));

/// The row of `recent`.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// How often the tables have changed roles.
    pub(super) turn: i64,
    /// How many rows were given to the table that takes rows.
    rows: i64,
    /// How many the other one has, which is being merged; 0 if it is empty.
    pub(super) merging: i64,
}

impl State {
    pub(super) fn read(db: &Connection) -> Result<Self> {
        let mut statement = db.prepare_cached("SELECT turn, rows, merging FROM recent")?;
        Ok(statement.query_row([], |row| {
            Ok(Self { turn: row.get(0)?, rows: row.get(1)?, merging: row.get(2)? })
        })?)
    }

    fn write(self, db: &Connection) -> Result<()> {
        let sql = "UPDATE recent SET turn = ?1, rows = ?2, merging = ?3";
        db.prepare_cached(sql)?.execute([self.turn, self.rows, self.merging])?;
        Ok(())
    }

    /// The table that is being merged or is empty, and the one that takes rows.
    pub(super) fn tables(self) -> [&'static Table; 2] {
        let [even, odd] = &*TABLES;
        if self.turn % 2 == 0 { [odd, even] } else { [even, odd] }
    }

    /// Whether all rows that were given until the end of that turn are merged.
    pub(super) fn has_merged(self, turn: i64) -> bool {
        let is_merged = self.turn > turn || self.rows == 0;
        self.turn > turn + 1 || is_merged && self.merging == 0
    }
}

/// No recent request is older. Where it is older, one that was merged cannot be a recent one too.
pub(super) fn oldest(db: &Connection) -> Result<Timestamp> {
    let sql = "SELECT min(at) FROM (SELECT at FROM recent_0 UNION ALL SELECT at FROM recent_1)";
    let oldest: Option<i64> = db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(oldest
        .map_or(Timestamp::MAX, |at| Timestamp::from_unix_micros(at).unwrap_or(Timestamp::MIN)))
}

/// Appends rows, which are in order by key, time and id.
pub(super) fn append(
    db: &Connection,
    sizes: Sizes,
    rows: &[(&AuditRecord, &RequestEvent)],
) -> Result<()> {
    let mut state = State::read(db)?;
    let [_, table] = state.tables();
    let mut statement = db.prepare_cached(&table.insert)?;
    for (record, request) in rows {
        bind_request(&mut statement, record, request)?;
        statement.raw_bind_parameter(REQUESTS.len() + 1, state.rows / sizes.run)?;
        statement.raw_execute()?;
        state.rows += 1;
    }
    state.write(db)
}

/// Whether it is time for [`merge`]: there are rows and they are old, a table is full, or less
/// of the other one is merged than twice what was written since. So that one is empty long
/// before this one is full.
pub(super) fn is_due(db: &Connection, sizes: Sizes, is_old: bool) -> Result<bool> {
    let State { turn: _, rows, merging } = State::read(db)?;
    if merging == 0 {
        return Ok(rows >= sizes.table || is_old && rows > 0);
    }
    let mut statement = db.prepare_cached("SELECT count(*) FROM recent_slices")?;
    let slices: i64 = statement.query_row([], |row| row.get(0))?;
    Ok(is_old || merging - slices * sizes.slice < 2 * rows)
}

/// Takes one step of merging, unless all rows that were given until the end of that turn are
/// merged; returns whether they are.
pub(super) fn merge_until(db: &Connection, sizes: Sizes, turn: i64) -> Result<bool> {
    let has_merged = State::read(db)?.has_merged(turn);
    if !has_merged {
        merge(db, sizes)?;
    }
    Ok(has_merged)
}

/// Takes one step of merging.
pub(super) fn merge(db: &Connection, sizes: Sizes) -> Result<()> {
    let state = State::read(db)?;
    if state.merging == 0 {
        let [_, table] = state.tables();
        slice(db, sizes, table)?;
        return State { turn: state.turn + 1, rows: 0, merging: state.rows }.write(db);
    }
    let [table, _] = state.tables();
    let mut ends =
        db.prepare_cached("SELECT key, at, id FROM recent_slices ORDER BY key, at, id LIMIT 2")?;
    let end = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let ends: rusqlite::Result<Vec<End>> = ends.query_map([], end)?.collect();
    match &ends?[..] {
        [from, to] => {
            if state.merging >= sizes.table {
                sort_slice(db, table, state.turn, from, to)?;
            } else {
                merge_slice(db, table, from, to)?;
            }
            let sql = "DELETE FROM recent_slices WHERE (key, at, id) = (?1, ?2, ?3)";
            db.prepare_cached(sql)?.execute(params![from.0, from.1, from.2])?;
            Ok(())
        }
        _ => {
            db.execute_batch(&table.clear)?;
            State { merging: 0, ..state }.write(db)
        }
    }
}

/// The end of a slice: a place in the order of `requests`.
pub(super) type End = (Vec<u8>, i64, Vec<u8>);

/// Divides a table into slices and writes where they end, from before the first row to after
/// the last one.
fn slice(db: &Connection, sizes: Sizes, table: &Table) -> Result<()> {
    let mut places: Vec<([u8; 16], i64, [u8; 16])> = Vec::new();
    let mut statement = db.prepare_cached(&table.sample)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        // One that was damaged needs no slice of its own.
        if let (Ok(key), Ok(at), Ok(id)) = (row.get(0), row.get(1), row.get(2)) {
            places.push((key, at, id));
        }
    }
    places.sort_unstable();
    let each = usize::try_from(sizes.slice / SAMPLE).unwrap_or_default().max(1);
    let mut end = db.prepare_cached("INSERT OR IGNORE INTO recent_slices VALUES (?1, ?2, ?3)")?;
    end.execute(params![[0_u8; 0], 0, [0_u8; 0]])?;
    for (key, at, id) in places.iter().skip(each).step_by(each) {
        end.execute(params![key, at, id])?;
    }
    end.execute(params![[u8::MAX; 17], 0, [0_u8; 0]])?;
    Ok(())
}

/// Writes the rows between two places to the run of this turn, and counts those.
fn sort_slice(db: &Connection, table: &Table, turn: i64, from: &End, to: &End) -> Result<()> {
    let mut sort = db.prepare_cached(&table.sort)?;
    sort.execute(params![from.0, from.1, from.2, to.0, to.1, to.2, turn])?;
    sorted::count_slice(db, turn, from, to)
}

/// Writes the rows between two places to `requests`, and counts those that are new there.
fn merge_slice(db: &Connection, table: &Table, from: &End, to: &End) -> Result<()> {
    let mut counts = Counts::default();
    let mut merged = db.prepare_cached(&table.merge)?;
    let mut rows = merged.query(params![from.0, from.1, from.2, to.0, to.1, to.2])?;
    while let Some(row) = rows.next()? {
        counts.add_row(row)?;
    }
    counts.write(db)
}
