//! The statements over audit records.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rusqlite::{Connection, Row, params};

use crate::audit::log::{AuditPage, AuditQuery, AuditScope, Position};
use crate::audit::record::{AuditEvent, AuditRecord, RequestEvent};
use crate::audit::usage::{HOUR, UsageBucket, UsageCounts, UsageQuery};
use crate::runtime::clock::Timestamp;
use crate::store::sql::{self, CHANGES, COUNTS, REQUESTS};
use crate::store::sqlite::columns::Columns;
use crate::store::sqlite::counts::{COUNTED, Counts, counted};
use crate::store::sqlite::error::Result;
use crate::store::sqlite::recent::{self, Sizes, State};
use crate::store::sqlite::rows::{bind_request, change, insertion, request};
use crate::store::sqlite::sorted::{self, Sorted};

/// With so many requests of one key in a batch, they are written to `requests` directly, since
/// they share a page.
const MANY: usize = 16;

/// The statements that name each column.
struct Texts {
    request: String,
    change: String,
    hours: String,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| Texts {
    request: insertion("requests", &REQUESTS),
    change: insertion("changes", &CHANGES),
    hours: format!(
        "SELECT hour, {} FROM hourly_usage \
             WHERE key = ?1 AND org = ?2 AND hour >= ?3 AND hour < ?4 ORDER BY hour",
        sql::list(COUNTS)
    ),
});

/// Writes the batch. A record that is stored already is left unchanged and is not counted
/// again.
pub(super) fn record(db: &Connection, sizes: Sizes, batch: &[AuditRecord]) -> Result<()> {
    let mut requests = Vec::with_capacity(batch.len());
    let mut change_row = db.prepare_cached(&TEXTS.change)?;
    for record in batch {
        match &record.event {
            AuditEvent::Request(request) => requests.push((record, request)),
            AuditEvent::Change(change) => {
                change_row.execute(params![
                    record.key.to_bytes(),
                    record.at.unix_micros(),
                    record.id.to_bytes(),
                    record.org.as_str(),
                    change.actor,
                    change.action.as_str(),
                    change.phase.as_str(),
                    change.fields.to_string(),
                ])?;
            }
        }
    }
    requests.sort_unstable_by_key(|(record, _)| (record.key, record.at, record.id));
    let mut few = Vec::with_capacity(requests.len());
    let mut counts = Counts::default();
    for of_key in requests.chunk_by(|(a, _), (b, _)| a.key == b.key) {
        if of_key.len() < MANY {
            few.extend_from_slice(of_key);
        } else {
            write(db, of_key, &mut counts)?;
        }
    }
    if !few.is_empty() {
        recent::append(db, sizes, &few)?;
    }
    counts.write(db)
}

fn write(
    db: &Connection,
    requests: &[(&AuditRecord, &RequestEvent)],
    counts: &mut Counts,
) -> Result<()> {
    let sorted = Sorted::read(db)?;
    let mut row = db.prepare_cached(&TEXTS.request)?;
    for (record, request) in requests {
        if sorted.has(db, record)? {
            continue;
        }
        bind_request(&mut row, record, request)?;
        if row.raw_execute()? == 1 {
            let of_request = UsageCounts::of_request(request);
            counts.add(record.key.to_bytes(), record.org.as_str(), record.at, of_request);
        }
    }
    Ok(())
}

/// The counts that are stored, and those of recent requests.
pub(super) fn usage(db: &Connection, query: &UsageQuery) -> Result<Vec<UsageBucket>> {
    let snapshot = db.unchecked_transaction()?;
    let mut hours = BTreeMap::<_, UsageCounts>::new();
    let (key, org) = (query.key.to_bytes(), query.org.as_str());
    let (from, until) = (query.from.unix_micros(), query.until.unix_micros());
    let mut stored = snapshot.prepare_cached(&TEXTS.hours)?;
    for hour in stored.query_and_then(params![key, org, from, until], stored_hour)? {
        let (start, counts) = hour?;
        hours.entry(start).or_default().add(counts);
    }
    let mut recent = snapshot.prepare_cached(&uncounted(State::read(&snapshot)?))?;
    // The last hour may go on after `until`.
    let until = query.until.saturating_add(HOUR).unix_micros();
    for request in recent.query_and_then(params![key, org, from, until], counted)? {
        let (at, counts) = request?;
        let start = UsageBucket::hour_of(at);
        if query.takes(start) {
            hours.entry(start).or_default().add(counts);
        }
    }
    Ok(hours.into_iter().map(|(start, counts)| UsageBucket { start, counts }).collect())
}

/// The recent requests of a key, each record once, unless it is counted already.
fn uncounted(state: State) -> String {
    let is_sorted = sorted::contains(["?1", "recent.at", "recent.id"]);
    let [merging, taking] = state.tables().map(|table| {
        format!(
            "SELECT {COUNTED}, id FROM {name} AS recent WHERE run IN \
             (WITH RECURSIVE runs(run) AS (SELECT 0 UNION ALL SELECT run + 1 FROM runs \
              WHERE run < (SELECT max(run) FROM {name})) SELECT run FROM runs) \
             AND key = ?1 AND org = ?2 AND at >= ?3 AND at <= ?4 \
             AND NOT EXISTS (SELECT 1 FROM requests \
              WHERE key = ?1 AND at = recent.at AND id = recent.id) \
             AND NOT {is_sorted}",
            name = table.name
        )
    });
    // What was merged is counted, even if it has been purged since.
    format!(
        "{merging} AND (+key, +at, +id) > \
         (SELECT key, at, id FROM recent_slices ORDER BY key, at, id LIMIT 1) UNION {taking}"
    )
}

fn stored_hour(row: &Row<'_>) -> Result<(Timestamp, UsageCounts)> {
    let columns = Columns { row, name: "usage" };
    let counts = UsageCounts {
        allowed: columns.number("allowed")?,
        client_errors: columns.number("client_errors")?,
        server_errors: columns.number("server_errors")?,
        aborted: columns.number("aborted")?,
        refused: columns.number("refused")?,
    };
    Ok((columns.instant("hour")?, counts))
}

/// A short scan along an index of each part of the log.
pub(super) fn page(db: &Connection, query: &AuditQuery) -> Result<AuditPage> {
    type Read = fn(&Row<'_>) -> Result<AuditRecord>;
    let snapshot = db.unchecked_transaction()?;
    let of_key = "key = ?2 AND org = ?1";
    let (mut parts, scope, key, read): (_, _, _, Read) = match query.scope {
        AuditScope::KeyRequests(key) => (requests(&snapshot)?, of_key, Some(key), request),
        AuditScope::KeyChanges(key) => (vec![alone("changes")], of_key, Some(key), change),
        AuditScope::OrgChanges => (vec![alone("changes")], "org = ?1 AND ?2 IS NULL", None, change),
    };
    let is_ascending = matches!(query.position, Position::After(_));
    let order = if is_ascending { "ASC" } else { "DESC" };
    if !is_ascending {
        parts.reverse();
    }
    let [mut after, mut before] = sql::outside(query.range());
    let place = |record: &AuditRecord| (record.at.unix_micros(), record.id.to_bytes());
    let mut fetched: Vec<AuditRecord> = Vec::new();
    for Part { table, run_is, runs } in parts {
        let sql = format!(
            "SELECT * FROM {table} WHERE {run_is} = ?8 AND {scope} \
             AND (at, id) > (?3, ?4) AND (at, id) < (?5, ?6) \
             ORDER BY at {order}, id {order} LIMIT ?7"
        );
        let mut statement = snapshot.prepare_cached(&sql)?;
        for n in 0..runs.len() {
            let n = if is_ascending { n } else { runs.len() - 1 - n };
            let parameters = params![
                query.org.as_str(),
                key.map(|key| key.to_bytes()),
                after.0,
                after.1,
                before.0,
                before.1,
                i64::try_from(query.to_fetch()).unwrap_or(i64::MAX),
                runs.get(n),
            ];
            let found: Result<Vec<_>> = statement.query_and_then(parameters, read)?.collect();
            fetched.extend(found?);
            // A record may be in several parts.
            fetched.sort_unstable_by_key(place);
            fetched.dedup_by_key(|record| place(record));
            if !is_ascending {
                fetched.reverse();
            }
            fetched.truncate(query.to_fetch());
            // What is behind the last one is not on the page, and is not read from other parts.
            if fetched.len() == query.to_fetch()
                && let Some(last) = fetched.last().map(place)
            {
                if is_ascending { before = last } else { after = last }
            }
        }
    }
    Ok(AuditPage::assemble(query, fetched))
}

/// A table that has a part of the records, in runs that are each in order.
struct Part {
    table: &'static str,
    /// What is the number of a run.
    run_is: &'static str,
    /// The numbers, older ones first.
    runs: Vec<i64>,
}

/// All records of their kind, as a single run.
fn alone(table: &'static str) -> Part {
    Part { table, run_is: "0", runs: vec![0] }
}

/// The parts of the log of requests, older ones first.
fn requests(db: &Connection) -> Result<Vec<Part>> {
    let mut parts = vec![alone("requests")];
    parts.push(Part { table: "sorted", run_is: "run", runs: sorted::runs(db)? });
    for table in State::read(db)?.tables() {
        let runs = (0..table.runs(db)?).collect();
        parts.push(Part { table: table.name, run_is: "run", runs });
    }
    Ok(parts)
}
