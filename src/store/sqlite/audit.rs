//! The statements over audit records.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rusqlite::{Connection, Row, params};

use crate::audit::country::CountryCode;
use crate::audit::log::{AuditPage, AuditQuery, AuditScope, Position};
use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::audit::usage::{UsageBucket, UsageCounts, UsageQuery};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;
use crate::store::sql::{self, CHANGES, COUNTS, REQUESTS};
use crate::store::sqlite::columns::Columns;
use crate::store::sqlite::error::Result;

/// How many rows of a table are purged in one transaction.
const PURGE_BATCH: i64 = 1_000;
/// How many pages are returned to the file system with them, more than they filled.
const PURGE_PAGES: i64 = 256;

/// The statements that name each column.
struct Texts {
    request: String,
    change: String,
    count: String,
    usage: String,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| {
    let insert = |table, columns: &[&str]| {
        let (names, values) = (sql::list(columns), sql::parameters('?', 1, columns.len()));
        format!("INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING")
    };
    let counts = sql::list(COUNTS);
    Texts {
        request: insert("requests", &REQUESTS),
        change: insert("changes", &CHANGES),
        count: format!(
            "INSERT INTO hourly_usage (key, org, hour, {counts}) VALUES ({}) \
             ON CONFLICT (key, org, hour) DO UPDATE SET {}",
            sql::parameters('?', 1, 3 + COUNTS.len()),
            sql::added()
        ),
        usage: format!(
            "SELECT hour, {counts} FROM hourly_usage \
             WHERE key = ?1 AND org = ?2 AND hour >= ?3 AND hour < ?4 ORDER BY hour"
        ),
    }
});

/// Writes the batch, and counts its requests. A record that is stored already is left
/// unchanged and is not counted again.
pub(super) fn record(db: &Connection, batch: &[AuditRecord]) -> Result<()> {
    let mut request_row = db.prepare_cached(&TEXTS.request)?;
    let mut change_row = db.prepare_cached(&TEXTS.change)?;
    let mut usage = BTreeMap::<_, UsageCounts>::new();
    for record in batch {
        let (key, at, id) = (record.key.to_bytes(), record.at.unix_micros(), record.id.to_bytes());
        let org = record.org.as_str();
        let written = match &record.event {
            AuditEvent::Request(request) => request_row.execute(params![
                key,
                at,
                id,
                org,
                request.method,
                request.endpoint,
                request.ip.map(|ip| ip.to_string()),
                request.country.as_ref().map(CountryCode::as_str),
                request.status,
                request.outcome.as_str(),
                request.count,
                request.secret.as_str(),
            ])?,
            AuditEvent::Change(change) => change_row.execute(params![
                key,
                at,
                id,
                org,
                change.actor,
                change.action.as_str(),
                change.phase.as_str(),
                change.fields.to_string(),
            ])?,
        };
        if let Some(counts) = UsageCounts::of(record).filter(|_| written == 1) {
            let hour = UsageBucket::hour_of(record.at).unix_micros();
            usage.entry((key, org, hour)).or_default().add(counts);
        }
    }
    let mut count_row = db.prepare_cached(&TEXTS.count)?;
    for ((key, org, hour), counts) in usage {
        let UsageCounts { allowed, client_errors, server_errors, aborted, refused } = counts;
        let counts = [allowed, client_errors, server_errors, aborted, refused];
        let [a, b, c, d, e] = counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        count_row.execute(params![key, org, hour, a, b, c, d, e])?;
    }
    Ok(())
}

/// A short scan along the primary key.
pub(super) fn usage(db: &Connection, query: &UsageQuery) -> Result<Vec<UsageBucket>> {
    let (from, until) = (query.from.unix_micros(), query.until.unix_micros());
    let parameters = params![query.key.to_bytes(), query.org.as_str(), from, until];
    let read = |row: &Row<'_>| {
        let columns = Columns { row, name: "usage" };
        let counts = UsageCounts {
            allowed: columns.number("allowed")?,
            client_errors: columns.number("client_errors")?,
            server_errors: columns.number("server_errors")?,
            aborted: columns.number("aborted")?,
            refused: columns.number("refused")?,
        };
        Ok(UsageBucket { start: columns.instant("hour")?, counts })
    };
    db.prepare_cached(&TEXTS.usage)?.query_and_then(parameters, read)?.collect()
}

/// One short scan along an index, at any size of the log.
pub(super) fn page(db: &Connection, query: &AuditQuery) -> Result<AuditPage> {
    type Read = fn(&Row<'_>) -> Result<AuditRecord>;
    let of_key = "key = ?2 AND org = ?1";
    let (table, scope, key, read): (_, _, _, Read) = match query.scope {
        AuditScope::KeyRequests(key) => ("requests", of_key, Some(key), request),
        AuditScope::KeyChanges(key) => ("changes", of_key, Some(key), change),
        AuditScope::OrgChanges => ("changes", "org = ?1 AND ?2 IS NULL", None, change),
    };
    let order = match query.position {
        Position::Newest | Position::Before(_) => "DESC",
        Position::After(_) => "ASC",
    };
    let sql = format!(
        "SELECT * FROM {table} WHERE {scope} AND (at, id) > (?3, ?4) AND (at, id) < (?5, ?6) \
         ORDER BY at {order}, id {order} LIMIT ?7"
    );
    let [(after, after_id), (before, before_id)] = sql::outside(query.range());
    let mut statement = db.prepare_cached(&sql)?;
    let parameters = params![
        query.org.as_str(),
        key.map(|key| key.to_bytes()),
        after,
        after_id,
        before,
        before_id,
        i64::try_from(query.to_fetch()).unwrap_or(i64::MAX),
    ];
    let fetched: Result<Vec<AuditRecord>> = statement.query_and_then(parameters, read)?.collect();
    Ok(AuditPage::assemble(query, fetched?))
}

/// Deletes some of the records from before this instant, and some of the counts from a year
/// earlier. Returns how many records there were, and whether there may be more of either.
pub(super) fn purge(db: &Connection, before: Timestamp) -> Result<(usize, bool)> {
    let mut purged = 0;
    for table in ["requests", "changes"] {
        let sql = format!(
            "DELETE FROM {table} WHERE (key, at, id) IN \
             (SELECT key, at, id FROM {table} WHERE at < ?1 ORDER BY at LIMIT {PURGE_BATCH})"
        );
        purged += db.prepare_cached(&sql)?.execute([before.unix_micros()])?;
    }
    let sql = format!(
        "DELETE FROM hourly_usage WHERE (key, org, hour) IN \
         (SELECT key, org, hour FROM hourly_usage WHERE hour < ?1 LIMIT {PURGE_BATCH})"
    );
    let kept_from = UsageCounts::kept_from(before).unix_micros();
    let counts = db.prepare_cached(&sql)?.execute([kept_from])?;
    // Has no effect on a file created without `auto_vacuum`: its free pages are reused.
    let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({PURGE_PAGES})"))?;
    let mut steps = vacuum.query([])?;
    while steps.next()?.is_some() {}
    Ok((purged, purged > 0 || counts > 0))
}

fn request(row: &Row<'_>) -> Result<AuditRecord> {
    let columns = Columns { row, name: "request" };
    record_of(
        columns,
        AuditEvent::Request(RequestEvent {
            method: columns.text("method", |method| Some(method.to_owned().into()))?,
            endpoint: columns.text("endpoint", |endpoint| Some(endpoint.into()))?,
            ip: columns.optional_text("ip", |ip| ip.parse().ok())?,
            country: columns.optional_text("country", CountryCode::new)?,
            status: columns.optional_number("status")?,
            outcome: columns.text("outcome", |text| Some(Outcome::restore(text)))?,
            count: columns.number("count")?,
            secret: columns.text("secret", |text| text.parse().ok())?,
        }),
    )
}

fn change(row: &Row<'_>) -> Result<AuditRecord> {
    let columns = Columns { row, name: "change" };
    record_of(
        columns,
        AuditEvent::Change(ChangeEvent {
            actor: columns.text("actor", |actor| Some(actor.into()))?,
            action: columns.text("action", |text| Some(ChangeAction::restore(text)))?,
            phase: columns.text("phase", |text| Some(ChangePhase::restore(text)))?,
            fields: columns.text("fields", |text| text.parse().ok())?,
        }),
    )
}

fn record_of(columns: Columns<'_>, event: AuditEvent) -> Result<AuditRecord> {
    Ok(AuditRecord {
        id: columns.bytes("id", |id| id.try_into().ok().map(AuditId::from_bytes))?,
        at: columns.instant("at")?,
        org: columns.text("org", |org| OrgId::new(org).ok())?,
        key: columns.bytes("key", |key| key.try_into().ok().map(KeyId::from_bytes))?,
        event,
    })
}
