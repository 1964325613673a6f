//! The rows of requests and changes: how they are written and read.

use rusqlite::{Row, Statement};

use crate::audit::country::CountryCode;
use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::store::sql;
use crate::store::sqlite::columns::Columns;
use crate::store::sqlite::error::Result;

/// Inserts a row, unless there is one with its primary key.
pub(super) fn insertion(table: &str, columns: &[&str]) -> String {
    let (names, values) = (sql::list(columns), sql::parameters('?', 1, columns.len()));
    format!("INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING")
}

/// Sets the parameters of an insertion of [`REQUESTS`](sql::REQUESTS).
pub(super) fn bind_request(
    statement: &mut Statement<'_>,
    record: &AuditRecord,
    request: &RequestEvent,
) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(1, record.key.to_bytes())?;
    statement.raw_bind_parameter(2, record.at.unix_micros())?;
    statement.raw_bind_parameter(3, record.id.to_bytes())?;
    statement.raw_bind_parameter(4, record.org.as_str())?;
    statement.raw_bind_parameter(5, &request.method)?;
    statement.raw_bind_parameter(6, &request.endpoint)?;
    statement.raw_bind_parameter(7, request.ip.map(|ip| ip.to_string()))?;
    statement.raw_bind_parameter(8, request.country.as_ref().map(CountryCode::as_str))?;
    statement.raw_bind_parameter(9, request.status)?;
    statement.raw_bind_parameter(10, request.outcome.as_str())?;
    statement.raw_bind_parameter(11, request.count)?;
    statement.raw_bind_parameter(12, request.secret.as_str())
}

pub(super) fn request(row: &Row<'_>) -> Result<AuditRecord> {
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

pub(super) fn change(row: &Row<'_>) -> Result<AuditRecord> {
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
