//! Reads and purges audit records.

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::audit::country::CountryCode;
use crate::audit::log::{AuditPage, AuditQuery, AuditScope, Position};
use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
use crate::audit::usage::{UsageBucket, UsageCounts, UsageQuery};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;
use crate::store::postgres::columns::{Columns, plain};
use crate::store::postgres::connection::{Connection, Parameters};
use crate::store::postgres::error::Result;
use crate::store::postgres::keys::uuid;
use crate::store::postgres::pool::Pool;
use crate::store::postgres::statements::Sql;
use crate::store::sql;

pub(super) async fn page(pool: &Pool, query: &AuditQuery) -> Result<AuditPage> {
    let (before, after, key) = match query.scope {
        AuditScope::KeyRequests(key) => {
            (Sql::KeyRequestsBefore, Sql::KeyRequestsAfter, Some(uuid(key)))
        }
        AuditScope::KeyChanges(key) => {
            (Sql::KeyChangesBefore, Sql::KeyChangesAfter, Some(uuid(key)))
        }
        AuditScope::OrgChanges => (Sql::OrgChangesBefore, Sql::OrgChangesAfter, None),
    };
    let statement = match query.position {
        Position::Newest | Position::Before(_) => before,
        Position::After(_) => after,
    };
    let [start, end] = sql::outside(query.range()).map(|(at, id)| (at, Uuid::from_bytes(id)));
    let limit = i64::try_from(query.to_fetch()).unwrap_or(i64::MAX);
    let parameters = [
        (&query.org.as_str() as _, Type::TEXT),
        (&key as _, Type::UUID),
        (&start.0 as _, Type::INT8),
        (&start.1 as _, Type::UUID),
        (&end.0 as _, Type::INT8),
        (&end.1 as _, Type::UUID),
        (&limit as _, Type::INT8),
    ];
    let rows = pool.query(statement, &parameters).await?;
    let read = match query.scope {
        AuditScope::KeyRequests(_) => request,
        AuditScope::KeyChanges(_) | AuditScope::OrgChanges => change,
    };
    let fetched: Result<Vec<AuditRecord>> = rows.iter().map(read).collect();
    Ok(AuditPage::assemble(query, fetched?))
}

/// A short scan along the primary key.
pub(super) async fn usage(pool: &Pool, query: &UsageQuery) -> Result<Vec<UsageBucket>> {
    let (key, from, until) = (uuid(query.key), query.from.unix_micros(), query.until.unix_micros());
    let parameters = [
        (&key as _, Type::UUID),
        (&query.org.as_str() as _, Type::TEXT),
        (&from as _, Type::INT8),
        (&until as _, Type::INT8),
    ];
    let read = |row: &Row| {
        let columns = Columns { row, name: "usage" };
        let count = |column| columns.value(column, |n: i64| u64::try_from(n).ok());
        let counts = UsageCounts {
            allowed: count("allowed")?,
            client_errors: count("client_errors")?,
            server_errors: count("server_errors")?,
            aborted: count("aborted")?,
            refused: count("refused")?,
        };
        Ok(UsageBucket { start: columns.instant("hour")?, counts })
    };
    pool.query(Sql::Usage, &parameters).await?.iter().map(read).collect()
}

/// Leaves only the plan that uses the indexes. Otherwise, after a restore and until the
/// tables are analysed, the server would sort all remaining rows for each batch. It would also
/// compile each plan, which takes longer than a batch. A session whose client is gone releases
/// its locks.
const BEGIN_PURGE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
    SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
    SET LOCAL enable_mergejoin = off; SET LOCAL jit = off; \
    SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// Runs a statement of a purge in a transaction, which the caller must roll back after an error.
pub(super) async fn purge(
    db: &Connection,
    statement: Sql,
    parameters: &Parameters<'_>,
) -> Result<Vec<Row>> {
    db.run(BEGIN_PURGE).await?;
    if matches!(statement, Sql::DropPartition) {
        db.run("SET LOCAL statement_timeout = '1min'").await?;
    }
    let rows = db.query(statement, parameters).await?;
    db.run("COMMIT").await?;
    Ok(rows)
}

/// How many records were deleted, and the latest instant among them.
pub(super) fn purged(rows: &[Row]) -> Result<(u64, Option<Timestamp>)> {
    let Some(row) = rows.first() else { return Ok((0, None)) };
    let columns = Columns { row, name: "answer" };
    let purged = columns.value("purged", |n: i64| u64::try_from(n).ok())?;
    Ok((purged, columns.optional_instant("last")?))
}

fn request(row: &Row) -> Result<AuditRecord> {
    let columns = Columns { row, name: "request" };
    record_of(
        columns,
        AuditEvent::Request(RequestEvent {
            method: columns.text("method", |text| Some(plain(text).into_owned().into()))?,
            endpoint: columns.text("endpoint", |text| Some(plain(text).into()))?,
            ip: columns.optional("ip", Some)?,
            country: columns.optional("country", |text: &str| CountryCode::new(text))?,
            status: columns.optional("status", |status: i32| u16::try_from(status).ok())?,
            outcome: columns.text("outcome", |text| Some(Outcome::restore(text)))?,
            count: columns.value("count", |n: i64| u32::try_from(n).ok())?,
            secret: columns.text("secret", |text| text.parse().ok())?,
        }),
    )
}

fn change(row: &Row) -> Result<AuditRecord> {
    let columns = Columns { row, name: "change" };
    record_of(
        columns,
        AuditEvent::Change(ChangeEvent {
            actor: columns.text("actor", |text| Some(plain(text).into()))?,
            action: columns.text("action", |text| Some(ChangeAction::restore(text)))?,
            phase: columns.text("phase", |text| Some(ChangePhase::restore(text)))?,
            fields: columns.text("fields", |text| text.parse().ok())?,
        }),
    )
}

fn record_of(columns: Columns<'_>, event: AuditEvent) -> Result<AuditRecord> {
    Ok(AuditRecord {
        id: AuditId::from_bytes(columns.bytes16("id")?),
        at: columns.instant("at")?,
        org: columns.text("org", |org| OrgId::new(org).ok())?,
        key: KeyId::from_bytes(columns.bytes16("key")?),
        event,
    })
}
