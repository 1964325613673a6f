//! The statements over keys.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::clock::Timestamp;
use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, Revision, Status};
use crate::store::sqlite::columns::{Columns, from_lines, lines};
use crate::store::sqlite::error::{Fault, Outcome};

/// A query for whole rows.
macro_rules! select {
    ($condition:literal) => {
        concat!(
            "SELECT id, org, name, key_prefix, digest, status, allowlist, created_at, expires_at, \
             rotated_at, last_used_at, revision FROM keys ",
            $condition
        )
    };
}

pub(super) fn insert(db: &Connection, key: &ApiKey, limit: OrgLimit) -> Outcome<()> {
    // The transaction is IMMEDIATE: nobody inserts between these statements.
    let taken = db
        .prepare_cached("SELECT 1 FROM keys WHERE id = ?1 OR digest = ?2")?
        .exists(params![key.id.to_bytes(), key.digest.as_bytes()])?;
    if taken {
        return Err(Fault::Conflict);
    }
    let present: i64 = db
        .prepare_cached("SELECT count(*) FROM keys WHERE org = ?1")?
        .query_row([key.org.as_str()], |row| row.get(0))?;
    if !limit.admits_one_more(usize::try_from(present).unwrap_or(usize::MAX)) {
        return Err(Fault::LimitReached);
    }
    let sql = "INSERT INTO keys (id, org, name, key_prefix, digest, status, allowlist, created_at, \
               expires_at, rotated_at, last_used_at, revision) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    db.prepare_cached(sql)?.execute(params![
        key.id.to_bytes(),
        key.org.as_str(),
        key.name.as_str(),
        key.key_prefix,
        key.digest.as_bytes(),
        key.status.as_str(),
        lines(&key.allowlist),
        key.created_at.unix_micros(),
        key.expires_at.map(Timestamp::unix_micros),
        key.rotated_at.map(Timestamp::unix_micros),
        key.last_used_at.map(Timestamp::unix_micros),
        key.revision.get(),
    ])?;
    Ok(())
}

pub(super) fn find_by_digest(db: &Connection, digest: &KeyDigest) -> Outcome<Option<ApiKey>> {
    let mut statement = db.prepare_cached(select!("WHERE digest = ?1"))?;
    statement.query_row([digest.as_bytes()], |row| Ok(key(row))).optional()?.transpose()
}

pub(super) fn get(db: &Connection, org: &OrgId, id: &KeyId) -> Outcome<Option<ApiKey>> {
    let mut statement = db.prepare_cached(select!("WHERE id = ?1 AND org = ?2"))?;
    let parameters = params![id.to_bytes(), org.as_str()];
    statement.query_row(parameters, |row| Ok(key(row))).optional()?.transpose()
}

pub(super) fn list(db: &Connection, org: &OrgId) -> Outcome<Vec<ApiKey>> {
    let mut statement = db.prepare_cached(select!("WHERE org = ?1 ORDER BY created_at, id"))?;
    statement.query_and_then([org.as_str()], key)?.collect()
}

/// The keys of all organisations, by id.
pub(super) fn export(db: &Connection, after: Option<&KeyId>, limit: usize) -> Outcome<Vec<ApiKey>> {
    // The empty blob comes before every id.
    let after = after.map_or(Vec::new(), |id| id.to_bytes().to_vec());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = db.prepare_cached(select!("WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
    statement.query_and_then(params![after, limit], key)?.collect()
}

pub(super) fn replace(db: &Connection, key: &ApiKey, expected: Revision) -> Outcome<()> {
    let sql = "UPDATE keys SET name = ?4, key_prefix = ?5, digest = ?6, status = ?7, \
               allowlist = ?8, expires_at = ?9, rotated_at = ?10, revision = ?11 \
               WHERE id = ?1 AND org = ?2 AND revision = ?3";
    let changed = db.prepare_cached(sql)?.execute(params![
        key.id.to_bytes(),
        key.org.as_str(),
        expected.get(),
        key.name.as_str(),
        key.key_prefix,
        key.digest.as_bytes(),
        key.status.as_str(),
        lines(&key.allowlist),
        key.expires_at.map(Timestamp::unix_micros),
        key.rotated_at.map(Timestamp::unix_micros),
        key.revision.get(),
    ])?;
    if changed == 1 { Ok(()) } else { Err(conflict_or_not_found(db, &key.org, &key.id)?) }
}

pub(super) fn delete(
    db: &Connection,
    org: &OrgId,
    id: &KeyId,
    expected: Option<Revision>,
) -> Outcome<()> {
    let sql = "DELETE FROM keys WHERE id = ?1 AND org = ?2 AND (?3 IS NULL OR revision = ?3)";
    let deleted = db.prepare_cached(sql)?.execute(params![
        id.to_bytes(),
        org.as_str(),
        expected.map(Revision::get),
    ])?;
    if deleted == 1 { Ok(()) } else { Err(conflict_or_not_found(db, org, id)?) }
}

/// Why no row of the key was at the expected revision.
fn conflict_or_not_found(db: &Connection, org: &OrgId, id: &KeyId) -> Outcome<Fault> {
    let exists = db
        .prepare_cached("SELECT 1 FROM keys WHERE id = ?1 AND org = ?2")?
        .exists(params![id.to_bytes(), org.as_str()])?;
    Ok(if exists { Fault::Conflict } else { Fault::NotFound })
}

pub(super) fn record_uses(db: &Connection, uses: &[KeyUse]) -> Outcome<()> {
    let sql = "UPDATE keys SET last_used_at = ?2 \
               WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?2 OR last_used_at > ?3)";
    let mut statement = db.prepare_cached(sql)?;
    for used in uses {
        let (at, plausible) = (used.at.unix_micros(), used.latest_plausible().unix_micros());
        statement.execute(params![used.id.to_bytes(), at, plausible])?;
    }
    Ok(())
}

fn key(row: &Row<'_>) -> Outcome<ApiKey> {
    let columns = Columns { row, name: "key" };
    Ok(ApiKey {
        id: columns.bytes((0, "id"), |id| id.try_into().ok().map(KeyId::from_bytes))?,
        org: columns.text((1, "org"), |org| OrgId::new(org).ok())?,
        name: columns.text((2, "name"), |name| KeyName::restore(name).ok())?,
        key_prefix: columns.text((3, "key_prefix"), |prefix| Some(prefix.to_owned()))?,
        digest: columns.bytes((4, "digest"), |digest| KeyDigest::from_slice(digest).ok())?,
        status: columns.text((5, "status"), Status::parse)?,
        allowlist: columns.text((6, "allowlist"), |list| Some(from_lines(list)))?,
        created_at: columns.instant((7, "created_at"))?,
        expires_at: columns.optional_instant((8, "expires_at"))?,
        rotated_at: columns.optional_instant((9, "rotated_at"))?,
        last_used_at: columns.optional_instant((10, "last_used_at"))?,
        revision: Revision::new(columns.number((11, "revision"))?),
    })
}
