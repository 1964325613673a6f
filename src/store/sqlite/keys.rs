//! The statements over keys.

use std::sync::{Arc, LazyLock};

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::org::OrgId;
use crate::record::{ApiKey, KeyUse, OrgLimit, PreviousSecret, Revision, Status};
use crate::runtime::clock::Timestamp;
use crate::store::search::{Search, SearchCursor, SearchPage, day_of};
use crate::store::sql::{self, KEYS};
use crate::store::sqlite::columns::{Columns, from_lines, lines};
use crate::store::sqlite::error::{DbError, Result};

/// The statements that name each column.
struct Texts {
    find: String,
    find_by_either: String,
    taken: String,
    get: String,
    list: String,
    find_by_id: String,
    with_prefix: String,
    expiring: String,
    unused: String,
    export: String,
    insert: String,
    replace: String,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| {
    let columns = sql::key_columns();
    let select = |condition| format!("SELECT {columns} FROM keys WHERE {condition}");
    let changes = "(SELECT count FROM key_changes)";
    let find = |condition| format!("SELECT {columns}, {changes} FROM keys WHERE {condition}");
    Texts {
        find: find("digest = ?1"),
        find_by_either: find("digest = ?1 OR previous_digest = ?1"),
        taken: select("(digest IN (?2, ?3) OR previous_digest IN (?2, ?3)) AND id IS NOT ?1"),
        get: select("id = ?1 AND org = ?2"),
        list: select("org = ?1 ORDER BY created_at, id"),
        find_by_id: select("id = ?1"),
        with_prefix: select("key_prefix = ?1 AND id > ?2 ORDER BY id LIMIT ?3"),
        expiring: select(
            "(expires_at, id) > (?1, ?2) AND expires_at < ?3 ORDER BY expires_at, id LIMIT ?4",
        ),
        unused: format!(
            "SELECT {columns}, active_day FROM keys WHERE (active_day, id) > (?1, ?2) \
             AND active_day <= ?3 ORDER BY active_day, id LIMIT ?4"
        ),
        export: select("id > ?1 ORDER BY id LIMIT ?2"),
        insert: format!(
            "INSERT INTO keys ({columns}) VALUES ({})",
            sql::parameters('?', 1, KEYS.len())
        ),
        replace: format!(
            "UPDATE keys SET {} WHERE id = ?1 AND org = ?2 AND revision = ?3",
            sql::edited('?', 4)
        ),
    }
});

pub(super) fn insert(db: &Connection, key: &ApiKey, limit: OrgLimit) -> Result<()> {
    // The transaction is IMMEDIATE: there is no other insert between these statements.
    let taken = db
        .prepare_cached("SELECT 1 FROM keys WHERE id = ?1")?
        .exists(params![key.id.to_bytes()])?;
    if taken || is_taken(db, key, None)? {
        return Err(DbError::Conflict);
    }
    // Without a limit, an import does not count the keys again for each one.
    if limit != OrgLimit::NONE {
        let present: i64 = db
            .prepare_cached("SELECT count(*) FROM keys WHERE org = ?1")?
            .query_row([key.org.as_str()], |row| row.get(0))?;
        if !limit.admits_one_more(usize::try_from(present).unwrap_or(usize::MAX)) {
            return Err(DbError::LimitReached);
        }
    }
    db.prepare_cached(&TEXTS.insert)?.execute(params_from_iter(row(key)))?;
    Ok(())
}

/// Whether another key than the one with this id has a digest of the key, as its current or
/// previous one. No unique index covers both columns.
fn is_taken(db: &Connection, key: &ApiKey, id: Option<&KeyId>) -> Result<bool> {
    let previous = key.previous.as_ref().map(|previous| previous.digest.as_bytes());
    let parameters = params![id.map(|id| id.to_bytes()), key.digest.as_bytes(), previous];
    Ok(db.prepare_cached(&TEXTS.taken)?.exists(parameters)?)
}

/// Inserts those whose id and digest are free, and says of each whether it was inserted.
pub(super) fn insert_all(db: &Connection, keys: &[ApiKey]) -> Result<Vec<bool>> {
    let inserted = keys.iter().map(|key| match insert(db, key, OrgLimit::NONE) {
        Ok(()) => Ok(true),
        Err(DbError::Conflict) => Ok(false),
        Err(error) => Err(error),
    });
    inserted.collect()
}

/// The key, and how often keys had been changed when it was read.
pub(super) fn find_by_digest(db: &Connection, digest: &KeyDigest) -> Result<Option<(ApiKey, i64)>> {
    // Most requests use a current secret. The second statement looks for that again, since
    // a change may have come in between.
    for text in [&TEXTS.find, &TEXTS.find_by_either] {
        let mut statement = db.prepare_cached(text)?;
        let read = |row: &Row<'_>| Ok((key(row), row.get(KEYS.len())?));
        if let Some((found, changes)) = statement.query_row([digest.as_bytes()], read).optional()? {
            return Ok(Some((found?, changes)));
        }
    }
    Ok(None)
}

pub(super) fn get(db: &Connection, org: &OrgId, id: &KeyId) -> Result<Option<ApiKey>> {
    let mut statement = db.prepare_cached(&TEXTS.get)?;
    let parameters = params![id.to_bytes(), org.as_str()];
    statement.query_row(parameters, |row| Ok(key(row))).optional()?.transpose()
}

pub(super) fn list(db: &Connection, org: &OrgId) -> Result<Vec<ApiKey>> {
    let mut statement = db.prepare_cached(&TEXTS.list)?;
    statement.query_and_then([org.as_str()], key)?.collect()
}

/// The keys of all organisations, by id.
pub(super) fn export(db: &Connection, after: Option<&KeyId>, limit: usize) -> Result<Vec<ApiKey>> {
    // The empty blob sorts before every id.
    let after = after.map_or(Vec::new(), |id| id.to_bytes().to_vec());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = db.prepare_cached(&TEXTS.export)?;
    statement.query_and_then(params![after, limit], key)?.collect()
}

pub(super) fn find_by_id(db: &Connection, id: &KeyId) -> Result<Option<ApiKey>> {
    let mut statement = db.prepare_cached(&TEXTS.find_by_id)?;
    statement.query_row([id.to_bytes()], |row| Ok(key(row))).optional()?.transpose()
}

/// A short scan along the index of the search.
pub(super) fn search(
    db: &Connection,
    search: &Search,
    after: Option<&SearchCursor>,
    limit: usize,
) -> Result<SearchPage> {
    // The empty blob sorts before every id, and a longer one after it.
    let id = |none: Vec<u8>| after.map_or(none, |cursor| cursor.id().to_bytes().to_vec());
    let at = |none: i64| after.map_or(none, SearchCursor::at);
    let rows = i64::try_from(limit).unwrap_or(i64::MAX);
    let of_key = |row: &Row<'_>| key(row).map(|key| (search.place(&key), Arc::new(key)));
    let found: Result<Vec<_>> = match search {
        Search::KeyPrefix(prefix) => db
            .prepare_cached(&TEXTS.with_prefix)?
            .query_and_then(params![prefix, id(Vec::new()), rows], of_key)?
            .collect(),
        Search::Expiring { from, until } => {
            let before = at(from.unix_micros().saturating_sub(1));
            db.prepare_cached(&TEXTS.expiring)?
                .query_and_then(
                    params![before, id(vec![u8::MAX; 17]), until.unix_micros(), rows],
                    of_key,
                )?
                .collect()
        }
        Search::UnusedSince(since) => db
            .prepare_cached(&TEXTS.unused)?
            .query_and_then(params![at(i64::MIN), id(Vec::new()), day_of(*since), rows], of_key)?
            .collect(),
    };
    Ok(SearchPage::assemble(search, found?, limit))
}

pub(super) fn replace(db: &Connection, key: &ApiKey, expected: Revision) -> Result<()> {
    if is_taken(db, key, Some(&key.id))? {
        return Err(conflict_or_not_found(db, &key.org, &key.id)?);
    }
    let at: [Value; 3] = [
        key.id.to_bytes().to_vec().into(),
        key.org.as_str().to_owned().into(),
        expected.get().into(),
    ];
    let parameters = at.into_iter().chain(sql::only_edited(row(key)));
    let changed = db.prepare_cached(&TEXTS.replace)?.execute(params_from_iter(parameters))?;
    if changed == 1 { Ok(()) } else { Err(conflict_or_not_found(db, &key.org, &key.id)?) }
}

pub(super) fn delete(
    db: &Connection,
    org: &OrgId,
    id: &KeyId,
    expected: Option<Revision>,
) -> Result<()> {
    let sql = "DELETE FROM keys WHERE id = ?1 AND org = ?2 AND (?3 IS NULL OR revision = ?3)";
    let deleted = db.prepare_cached(sql)?.execute(params![
        id.to_bytes(),
        org.as_str(),
        expected.map(Revision::get),
    ])?;
    if deleted == 1 { Ok(()) } else { Err(conflict_or_not_found(db, org, id)?) }
}

/// Why no row of the key had the expected revision.
fn conflict_or_not_found(db: &Connection, org: &OrgId, id: &KeyId) -> Result<DbError> {
    let exists = db
        .prepare_cached("SELECT 1 FROM keys WHERE id = ?1 AND org = ?2")?
        .exists(params![id.to_bytes(), org.as_str()])?;
    Ok(if exists { DbError::Conflict } else { DbError::NotFound })
}

pub(super) fn record_uses(db: &Connection, uses: &[KeyUse]) -> Result<()> {
    let sql = "UPDATE keys SET last_used_at = ?2 \
               WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?2 OR last_used_at > ?3)";
    let mut statement = db.prepare_cached(sql)?;
    for used in uses {
        let (at, plausible) = (used.at.unix_micros(), used.latest_plausible().unix_micros());
        statement.execute(params![used.id.to_bytes(), at, plausible])?;
    }
    Ok(())
}

/// A whole row, in the order of [`KEYS`].
fn row(key: &ApiKey) -> [Value; KEYS.len()] {
    let time = |at: Option<Timestamp>| Value::from(at.map(Timestamp::unix_micros));
    [
        key.id.to_bytes().to_vec().into(),
        key.org.as_str().to_owned().into(),
        key.name.as_str().to_owned().into(),
        key.key_prefix.clone().into(),
        key.digest.as_bytes().to_vec().into(),
        key.status.as_str().to_owned().into(),
        lines(&key.allowlist).into(),
        time(Some(key.created_at)),
        time(key.expires_at),
        time(key.rotated_at),
        time(key.last_used_at),
        key.revision.get().into(),
        key.attributes.to_string().into(),
        key.previous.map(|previous| previous.digest.as_bytes().to_vec()).into(),
        time(key.previous.map(|previous| previous.until)),
    ]
}

fn key(row: &Row<'_>) -> Result<ApiKey> {
    let columns = Columns { row, name: "key" };
    let mut place = KEYS.iter().map(|column| column.name).enumerate();
    let mut next = || place.next().unwrap_or((KEYS.len(), "no column"));
    let mut key = ApiKey {
        id: columns.bytes(next(), |id| id.try_into().ok().map(KeyId::from_bytes))?,
        org: columns.text(next(), |org| OrgId::new(org).ok())?,
        name: columns.text(next(), |name| KeyName::restore(name).ok())?,
        key_prefix: columns.text(next(), |prefix| Some(prefix.to_owned()))?,
        digest: columns.bytes(next(), |digest| KeyDigest::from_slice(digest).ok())?,
        status: columns.text(next(), |text| text.parse::<Status>().ok())?,
        allowlist: columns.text(next(), |list| Some(from_lines(list)))?,
        created_at: columns.instant(next())?,
        expires_at: columns.optional_instant(next())?,
        rotated_at: columns.optional_instant(next())?,
        previous: None,
        last_used_at: columns.optional_instant(next())?,
        revision: Revision::new(columns.number(next())?),
        attributes: columns.text(next(), |text| text.parse().ok())?,
    };
    let digest = columns.optional_bytes(next(), |digest| KeyDigest::from_slice(digest).ok())?;
    let at_end = next();
    key.previous = match (digest, columns.optional_instant(at_end)?) {
        (Some(digest), Some(until)) => Some(PreviousSecret { digest, until }),
        (None, None) => None,
        _ => return Err(columns.unreadable(at_end)),
    };
    Ok(key)
}
