//! The statements over audit records.

use std::sync::LazyLock;

use rusqlite::{Connection, Row, params};

use crate::audit::country::CountryCode;
use crate::audit::log::{AuditCursor, AuditPage, AuditQuery, AuditScope, Position};
use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;
use crate::store::sql::{self, CHANGES, REQUESTS};
use crate::store::sqlite::columns::Columns;
use crate::store::sqlite::error::Result;

/// How many rows of a table are purged in one transaction.
const PURGE_BATCH: i64 = 1_000;
/// How many pages are returned to the file system with them, more than they filled.
const PURGE_PAGES: i64 = 256;

/// The statements that write a request and a change.
static TEXTS: LazyLock<(String, String)> = LazyLock::new(|| {
    let insert = |table, columns: &[&str]| {
        let (names, values) = (sql::list(columns), sql::parameters('?', 1, columns.len()));
        format!("INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING")
    };
    (insert("requests", &REQUESTS), insert("changes", &CHANGES))
});

/// Writes the batch. A record that is stored already is left unchanged.
pub(super) fn record(db: &Connection, batch: &[AuditRecord]) -> Result<()> {
    let mut request_row = db.prepare_cached(&TEXTS.0)?;
    let mut change_row = db.prepare_cached(&TEXTS.1)?;
    for record in batch {
        let (key, at, id) = (record.key.to_bytes(), record.at.unix_micros(), record.id.to_bytes());
        let org = record.org.as_str();
        match &record.event {
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
            ])?,
        };
    }
    Ok(())
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
    let (side, order, cursor) = match query.position {
        Position::Newest => ("AND ?3 IS NULL AND ?4 IS NULL", "DESC", None),
        Position::Before(cursor) => ("AND (at, id) < (?3, ?4)", "DESC", Some(cursor)),
        Position::After(cursor) => ("AND (at, id) > (?3, ?4)", "ASC", Some(cursor)),
    };
    let sql = format!(
        "SELECT * FROM {table} WHERE {scope} {side} ORDER BY at {order}, id {order} LIMIT ?5"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let parameters = params![
        query.org.as_str(),
        key.map(|key| key.to_bytes()),
        cursor.as_ref().map(|c: &AuditCursor| c.at().unix_micros()),
        cursor.as_ref().map(|c| c.id().to_bytes()),
        i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1),
    ];
    let fetched: Result<Vec<AuditRecord>> = statement.query_and_then(parameters, read)?.collect();
    Ok(AuditPage::assemble(query, fetched?))
}

/// Deletes some of the records from before this instant, and returns how many.
pub(super) fn purge(db: &Connection, before: Timestamp) -> Result<usize> {
    let mut purged = 0;
    for table in ["requests", "changes"] {
        let sql = format!(
            "DELETE FROM {table} WHERE (key, at, id) IN \
             (SELECT key, at, id FROM {table} WHERE at < ?1 ORDER BY at LIMIT {PURGE_BATCH})"
        );
        purged += db.prepare_cached(&sql)?.execute([before.unix_micros()])?;
    }
    // Has no effect on a file created without `auto_vacuum`: its free pages are reused.
    let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({PURGE_PAGES})"))?;
    let mut steps = vacuum.query([])?;
    while steps.next()?.is_some() {}
    Ok(purged)
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
