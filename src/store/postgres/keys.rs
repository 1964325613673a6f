//! The statements over keys.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::allowlist::Allowlist;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, PreviousSecret, Revision, Status};
use crate::runtime::clock::Timestamp;
use crate::store::postgres::columns::{Columns, escaped, plain};
use crate::store::postgres::encoded::Encoded;
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::gate::Gate;
use crate::store::postgres::pool::Pool;
use crate::store::postgres::statements::Sql;
use crate::store::search::{Search, SearchCursor, SearchPage, day_of};
use crate::store::sql;

/// Changes and other calls that record uses lock rows only briefly. A row that is still
/// locked after these pauses is locked for longer.
const LOCKED_PAUSES: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(60),
    Duration::from_millis(200),
];

/// Counts and inserts while the organisation's row is locked.
pub(super) async fn insert(
    changes: &Pool,
    reads: &Pool,
    key: &ApiKey,
    limit: OrgLimit,
) -> Result<()> {
    let limit = limit.get().map(i64::from);
    let parameters: Vec<_> =
        row(key).into_iter().chain(Encoded::all(&[(&limit as _, Type::INT8)])).collect();
    let parameters = Encoded::refs(&parameters);
    let until = changes.until();
    // All connections may have been lost at once before this was noticed.
    let mut repeats = changes.size();
    let mut lost = false;
    let rows = loop {
        let gates = [Gate::Creation(key.org.clone()), Gate::Organisation(key.org.clone())];
        match changes.change(gates, Sql::InsertKey, &parameters, until).await {
            // Repeated if the answer was lost: the id is unique.
            Err(DbError::InDoubt(fault)) if repeats > 0 && fault.may_be_repeated() => {
                (repeats, lost) = (repeats - 1, true);
            }
            Err(fault) if lost => return Err(DbError::InDoubt(Box::new(fault))),
            answer => break answer?,
        }
    };
    let result = rows.first().and_then(|row| row.try_get("result").ok());
    if lost && result != Some("done") {
        // Either the key existed before, or the first attempt succeeded.
        return match get(reads, &key.org, &key.id).await {
            Ok(Some(stored)) if stored.digest == key.digest => Ok(()),
            Ok(_) if result == Some("taken") => Err(DbError::Conflict),
            Ok(_) if result == Some("full") => Err(DbError::LimitReached),
            Ok(_) => Err(DbError::TooLate(changes.deadline())),
            Err(fault) => Err(DbError::InDoubt(Box::new(fault))),
        };
    }
    match result {
        Some("done") => Ok(()),
        Some("taken") => Err(DbError::Conflict),
        Some("full") => Err(DbError::LimitReached),
        Some("late") => Err(DbError::TooLate(changes.deadline())),
        _ => Err(DbError::Unreadable { row: "answer", column: "result" }),
    }
}

/// Inserts those whose id and digest are free, and says of each whether it was inserted.
pub(super) async fn insert_all(changes: &Pool, keys: &[ApiKey]) -> Result<Vec<bool>> {
    let Some(first) = keys.first() else { return Ok(Vec::new()) };
    let mut columns: Vec<(Vec<Encoded>, Type)> = Vec::new();
    for key in keys {
        let list = array_literal(&entries(&key.allowlist));
        for (at, (value, kind)) in row(key).into_iter().enumerate() {
            // There are no arrays of arrays of different lengths.
            let (value, kind) = match kind {
                Type::TEXT_ARRAY => (Encoded::one(&list, &Type::TEXT), Type::TEXT),
                kind => (value, kind),
            };
            match columns.get_mut(at) {
                Some((values, _)) => values.push(value),
                None => columns.push((vec![value], array_of(&kind))),
            }
        }
    }
    let parameters: Vec<_> = columns
        .iter()
        .map(|(values, kind)| (values as &(dyn ToSql + Sync), kind.clone()))
        .collect();
    let gates = [Gate::Key(first.id), Gate::Organisation(first.org.clone())];
    let rows = changes.change(gates, Sql::InsertKeys, &parameters, changes.until()).await?;
    if !flag(&rows, "timely")? {
        return Err(DbError::TooLate(changes.deadline()));
    }
    let unreadable = DbError::Unreadable { row: "answer", column: "inserted" };
    let ids = rows.first().and_then(|row| row.try_get::<_, Vec<Uuid>>("inserted").ok());
    let mut ids: HashSet<Uuid> = ids.ok_or(unreadable)?.into_iter().collect();
    Ok(keys.iter().map(|key| ids.remove(&uuid(key.id))).collect())
}

fn array_of(element: &Type) -> Type {
    match *element {
        Type::UUID => Type::UUID_ARRAY,
        Type::BYTEA => Type::BYTEA_ARRAY,
        Type::INT8 => Type::INT8_ARRAY,
        _ => Type::TEXT_ARRAY,
    }
}

/// An array of texts as a literal, `{"10.0.0.0/8","::1"}`.
fn array_literal(elements: &[String]) -> String {
    let quoted = elements.iter().map(|element| {
        let escaped = element.replace('\\', r"\\").replace('"', r#"\""#);
        format!("\"{escaped}\"")
    });
    format!("{{{}}}", sql::list(quoted))
}

pub(super) async fn find_by_digest(pool: &Pool, digest: &KeyDigest) -> Result<Option<ApiKey>> {
    let digest = digest.as_bytes().as_slice();
    let rows = pool.query(Sql::FindByDigest, &[(&digest, Type::BYTEA)]).await?;
    rows.first().map(key).transpose()
}

pub(super) async fn get(pool: &Pool, org: &OrgId, id: &KeyId) -> Result<Option<ApiKey>> {
    let parameters = [(&uuid(*id) as _, Type::UUID), (&org.as_str() as _, Type::TEXT)];
    let rows = pool.query(Sql::GetKey, &parameters).await?;
    rows.first().map(key).transpose()
}

pub(super) async fn list(pool: &Pool, org: &OrgId) -> Result<Vec<ApiKey>> {
    let rows = pool.query(Sql::ListKeys, &[(&org.as_str(), Type::TEXT)]).await?;
    rows.iter().map(key).collect()
}

/// The keys of all organisations, by id.
pub(super) async fn export(
    pool: &Pool,
    after: Option<&KeyId>,
    limit: usize,
) -> Result<Vec<ApiKey>> {
    // No id follows the highest one.
    let next = |id: &KeyId| u128::from_be_bytes(id.to_bytes()).checked_add(1);
    let Some(first) = after.map_or(Some(0), next) else { return Ok(Vec::new()) };
    let (first, limit) = (Uuid::from_u128(first), i64::try_from(limit).unwrap_or(i64::MAX));
    let parameters = [(&first as _, Type::UUID), (&limit as _, Type::INT8)];
    let rows = pool.query(Sql::ExportKeys, &parameters).await?;
    rows.iter().map(key).collect()
}

pub(super) async fn find_by_id(pool: &Pool, id: &KeyId) -> Result<Option<ApiKey>> {
    let rows = pool.query(Sql::FindById, &[(&uuid(*id) as _, Type::UUID)]).await?;
    rows.first().map(key).transpose()
}

/// A short scan along the index of the search.
pub(super) async fn search(
    pool: &Pool,
    search: &Search,
    after: Option<&SearchCursor>,
    limit: usize,
) -> Result<SearchPage> {
    let id = |none: Uuid| after.map_or(none, |cursor| uuid(cursor.id()));
    let at = |none: i64| after.map_or(none, SearchCursor::at);
    let rows = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = match search {
        Search::KeyPrefix(prefix) => {
            let prefix = escaped(prefix);
            let next = |cursor: &SearchCursor| uuid(cursor.id()).as_u128().checked_add(1);
            let Some(first) = after.map_or(Some(0), next) else { return Ok(SearchPage::default()) };
            let first = Uuid::from_u128(first);
            let parameters =
                [(&prefix as _, Type::TEXT), (&first as _, Type::UUID), (&rows as _, Type::INT8)];
            pool.query(Sql::KeysWithPrefix, &parameters).await?
        }
        Search::Expiring { from, until } => {
            let (before, id) = (at(from.unix_micros().saturating_sub(1)), id(Uuid::max()));
            let until = until.unix_micros();
            pool.query(Sql::ExpiringKeys, &range(&before, &id, &until, &rows)).await?
        }
        Search::UnusedSince(since) => {
            let (before, id, last) = (at(i64::MIN), id(Uuid::nil()), day_of(*since));
            pool.query(Sql::UnusedKeys, &range(&before, &id, &last, &rows)).await?
        }
    };
    let placed = |row: &Row| {
        let key = key(row)?;
        let place = match search {
            // Of an older key, the day is not known yet.
            Search::UnusedSince(_) => {
                let day = Columns { row, name: "key" }.value("active_day", Some)?;
                SearchCursor::new(day, key.id)
            }
            _ => search.place(&key),
        };
        Ok((place, Arc::new(key)))
    };
    let found: Result<Vec<_>> = found.iter().map(placed).collect();
    Ok(SearchPage::assemble(search, found?, limit))
}

/// The parameters of a search: after a place, up to an end, and how many.
fn range<'a>(
    at: &'a i64,
    id: &'a Uuid,
    end: &'a i64,
    rows: &'a i64,
) -> [(&'a (dyn ToSql + Sync), Type); 4] {
    [(at, Type::INT8), (id, Type::UUID), (end, Type::INT8), (rows, Type::INT8)]
}

pub(super) async fn replace(
    changes: &Pool,
    reads: &Pool,
    key: &ApiKey,
    expected: Revision,
) -> Result<()> {
    let at = Encoded::all(&[
        (&uuid(key.id) as _, Type::UUID),
        (&key.org.as_str() as _, Type::TEXT),
        (&i64::from(expected.get()) as _, Type::INT8),
    ]);
    let parameters: Vec<_> = at.into_iter().chain(sql::only_edited(row(key))).collect();
    let parameters = Encoded::refs(&parameters);
    let rows = changes
        .change(
            [Gate::Key(key.id), Gate::Organisation(key.org.clone())],
            Sql::ReplaceKey,
            &parameters,
            changes.until(),
        )
        .await?;
    changed(&rows, changes, reads, (&key.org, &key.id)).await
}

pub(super) async fn delete(
    changes: &Pool,
    reads: &Pool,
    (org, id): (&OrgId, &KeyId),
    expected: Option<Revision>,
) -> Result<()> {
    let parameters = [
        (&uuid(*id) as _, Type::UUID),
        (&org.as_str() as _, Type::TEXT),
        (&expected.map(|revision| i64::from(revision.get())) as _, Type::INT8),
    ];
    let rows = changes
        .change(
            [Gate::Key(*id), Gate::Organisation(org.clone())],
            Sql::DeleteKey,
            &parameters,
            changes.until(),
        )
        .await?;
    changed(&rows, changes, reads, (org, id)).await
}

/// Interprets the answer to a statement that changes one key.
async fn changed(
    rows: &[Row],
    changes: &Pool,
    reads: &Pool,
    (org, id): (&OrgId, &KeyId),
) -> Result<()> {
    match (flag(rows, "done")?, flag(rows, "present")?, flag(rows, "late")?) {
        (true, ..) => Ok(()),
        (false, _, true) => Err(DbError::TooLate(changes.deadline())),
        (false, false, _) => Err(DbError::NotFound),
        // The answer shows the state before the statement waited for concurrent changes of
        // the key, one of which may have deleted it.
        (false, true, false) => match get(reads, org, id).await? {
            Some(_) => Err(DbError::Conflict),
            None => Err(DbError::NotFound),
        },
    }
}

/// Tests whether changes can be made: uses the same rights, tables, locks and connections
/// as a change, but changes nothing.
pub(super) async fn probe(changes: &Pool) -> Result<()> {
    changes.query(Sql::Probe, &[]).await.map(drop)
}

pub(super) async fn record_uses(pool: &Pool, uses: &[KeyUse]) -> Result<()> {
    let mut latest = BTreeMap::new();
    for used in uses {
        let at = latest.entry(uuid(used.id)).or_insert(used.at);
        if used.replaces(Some(*at)) {
            *at = used.at;
        }
    }
    let (ids, times): (Vec<Uuid>, Vec<i64>) =
        latest.into_iter().map(|(id, at)| (id, at.unix_micros())).unzip();
    let parameters = [(&ids as _, Type::UUID_ARRAY), (&times as _, Type::INT8_ARRAY)];
    let mut pauses = LOCKED_PAUSES.into_iter();
    loop {
        let rows = pool.query(Sql::RecordUses, &parameters).await?;
        let left_out = rows.first().and_then(|row| row.try_get("left_out").ok()).unwrap_or(0);
        match pauses.next() {
            _ if left_out <= 0 => return Ok(()),
            Some(pause) => sleep(pause).await,
            None => return Err(DbError::Locked(left_out)),
        }
    }
}

/// A whole row, in the order of [`KEYS`](sql::KEYS).
fn row(key: &ApiKey) -> Vec<(Encoded, Type)> {
    let time = |at: Option<Timestamp>| at.map(Timestamp::unix_micros);
    Encoded::all(&[
        (&uuid(key.id), Type::UUID),
        (&key.org.as_str(), Type::TEXT),
        (&key.name.as_str(), Type::TEXT),
        (&escaped(&key.key_prefix), Type::TEXT),
        (&key.digest.as_bytes().as_slice(), Type::BYTEA),
        (&key.status.as_str(), Type::TEXT),
        (&entries(&key.allowlist), Type::TEXT_ARRAY),
        (&time(Some(key.created_at)), Type::INT8),
        (&time(key.expires_at), Type::INT8),
        (&time(key.rotated_at), Type::INT8),
        (&time(key.last_used_at), Type::INT8),
        (&i64::from(key.revision.get()), Type::INT8),
        // JSON, so it contains no U+0000.
        (&key.attributes.to_string(), Type::TEXT),
        (&key.previous.as_ref().map(|previous| previous.digest.as_bytes().as_slice()), Type::BYTEA),
        (&time(key.previous.map(|previous| previous.until)), Type::INT8),
    ])
}

fn key(row: &Row) -> Result<ApiKey> {
    let columns = Columns { row, name: "key" };
    let digest = |digest: &[u8]| KeyDigest::from_slice(digest).ok();
    let until = columns.optional_instant("previous_until")?;
    let previous = match (columns.optional("previous_digest", digest)?, until) {
        (Some(digest), Some(until)) => Some(PreviousSecret { digest, until }),
        (None, None) => None,
        _ => return Err(DbError::Unreadable { row: "key", column: "previous_until" }),
    };
    Ok(ApiKey {
        id: KeyId::from_bytes(columns.bytes16("id")?),
        org: columns.text("org", |org| OrgId::new(org).ok())?,
        name: columns.text("name", |name| KeyName::restore(name).ok())?,
        key_prefix: columns.text("key_prefix", |prefix| Some(plain(prefix).into_owned()))?,
        digest: columns.value("digest", digest)?,
        status: columns.text("status", |text| text.parse::<Status>().ok())?,
        allowlist: columns.value("allowlist", |list| Some(allowlist(list)))?,
        created_at: columns.instant("created_at")?,
        expires_at: columns.optional_instant("expires_at")?,
        rotated_at: columns.optional_instant("rotated_at")?,
        previous,
        last_used_at: columns.optional_instant("last_used_at")?,
        revision: columns
            .value("revision", |n: i64| Some(Revision::new(u32::try_from(n).ok()?)))?,
        attributes: columns.text("attributes", |text| text.parse().ok())?,
    })
}

/// An element that was set to NULL by hand is restored as a damaged entry.
fn allowlist(stored: Vec<Option<&str>>) -> Allowlist {
    Allowlist::restore(stored.into_iter().map(|entry| plain(entry.unwrap_or_default())))
}

fn entries(list: &Allowlist) -> Vec<String> {
    list.entries()
        .into_iter()
        .map(|entry| match escaped(&entry) {
            Cow::Borrowed(_) => entry,
            Cow::Owned(stored) => stored,
        })
        .collect()
}

fn flag(rows: &[Row], column: &'static str) -> Result<bool> {
    let unreadable = DbError::Unreadable { row: "answer", column };
    rows.first().and_then(|row| row.try_get(column).ok()).ok_or(unreadable)
}

pub(super) fn uuid(id: KeyId) -> Uuid {
    Uuid::from_bytes(id.to_bytes())
}
