//! The tables, and their migrations.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::store::sqlite::open_error::SqliteOpenError;

/// `kgte`, in the header of every keygate file.
const APPLICATION_ID: i64 = 0x6B67_7465;

/// Each migrates the schema from its position to the next. Released ones never change.
const MIGRATIONS: [&str; 10] = [
    // Times are microseconds since 1970. Ids and digests are raw bytes. Each entry of an
    // allowlist ends with a line feed.
    "CREATE TABLE keys (
         id           BLOB NOT NULL PRIMARY KEY,
         org          TEXT NOT NULL,
         name         TEXT NOT NULL,
         key_prefix   TEXT NOT NULL,
         digest       BLOB NOT NULL UNIQUE,
         status       TEXT NOT NULL,
         allowlist    TEXT NOT NULL,
         created_at   INTEGER NOT NULL,
         expires_at   INTEGER,
         rotated_at   INTEGER,
         last_used_at INTEGER,
         revision     INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX keys_by_org ON keys (org, created_at, id);

     CREATE TABLE requests (
         key      BLOB NOT NULL,
         at       INTEGER NOT NULL,
         id       BLOB NOT NULL,
         org      TEXT NOT NULL,
         method   TEXT NOT NULL,
         endpoint TEXT NOT NULL,
         ip       TEXT,
         country  TEXT,
         status   INTEGER,
         outcome  TEXT NOT NULL,
         PRIMARY KEY (key, at, id)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX requests_by_time ON requests (at);

     CREATE TABLE changes (
         key    BLOB NOT NULL,
         at     INTEGER NOT NULL,
         id     BLOB NOT NULL,
         org    TEXT NOT NULL,
         actor  TEXT NOT NULL,
         action TEXT NOT NULL,
         phase  TEXT NOT NULL,
         PRIMARY KEY (key, at, id)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX changes_by_org ON changes (org, at, id);
     CREATE INDEX changes_by_time ON changes (at);",
    // How many requests a row stands for.
    "ALTER TABLE requests ADD COLUMN count INTEGER NOT NULL DEFAULT 1;",
    // A JSON object of parts that are never searched for.
    "ALTER TABLE keys ADD COLUMN attributes TEXT NOT NULL DEFAULT '{}';",
    // The secret from before a rotation, and until when it works. Which of its secrets a
    // request was made with.
    "ALTER TABLE keys ADD COLUMN previous_digest BLOB;
     ALTER TABLE keys ADD COLUMN previous_until INTEGER;
     CREATE UNIQUE INDEX keys_by_previous_digest ON keys (previous_digest)
         WHERE previous_digest IS NOT NULL;
     ALTER TABLE requests ADD COLUMN secret TEXT NOT NULL DEFAULT 'current';",
    // A JSON array of the fields that a change has changed.
    "ALTER TABLE changes ADD COLUMN fields TEXT NOT NULL DEFAULT '[]';",
    // How many requests of each key there were in each hour, from now on.
    "CREATE TABLE hourly_usage (
         key           BLOB NOT NULL,
         org           TEXT NOT NULL,
         hour          INTEGER NOT NULL,
         allowed       INTEGER NOT NULL,
         client_errors INTEGER NOT NULL,
         server_errors INTEGER NOT NULL,
         aborted       INTEGER NOT NULL,
         refused       INTEGER NOT NULL,
         PRIMARY KEY (key, org, hour)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX hourly_usage_by_time ON hourly_usage (hour);",
    // For operators. The day, since 1970, of the last use or else of the creation. SQLite
    // rounds towards zero, so a day is taken off before 1970.
    "ALTER TABLE keys ADD COLUMN active_day INTEGER GENERATED ALWAYS AS
         (coalesce(last_used_at, created_at) / 86400000000
             - (coalesce(last_used_at, created_at) % 86400000000 < 0)) VIRTUAL;
     CREATE INDEX keys_by_prefix ON keys (key_prefix, id);
     CREATE INDEX keys_by_expiry ON keys (expires_at, id) WHERE expires_at IS NOT NULL;
     CREATE INDEX keys_by_activity ON keys (active_day, id);",
    // Recent requests, until they are merged into the table of all: see `recent`. The ends of
    // the slices that are still to be merged.
    "DROP INDEX requests_by_time;
     CREATE TABLE recent_0 (
         run      INTEGER NOT NULL,
         key      BLOB NOT NULL,
         at       INTEGER NOT NULL,
         id       BLOB NOT NULL,
         org      TEXT NOT NULL,
         method   TEXT NOT NULL,
         endpoint TEXT NOT NULL,
         ip       TEXT,
         country  TEXT,
         status   INTEGER,
         outcome  TEXT NOT NULL,
         count    INTEGER NOT NULL,
         secret   TEXT NOT NULL,
         PRIMARY KEY (run, key, at, id)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE recent_1 (
         run      INTEGER NOT NULL,
         key      BLOB NOT NULL,
         at       INTEGER NOT NULL,
         id       BLOB NOT NULL,
         org      TEXT NOT NULL,
         method   TEXT NOT NULL,
         endpoint TEXT NOT NULL,
         ip       TEXT,
         country  TEXT,
         status   INTEGER,
         outcome  TEXT NOT NULL,
         count    INTEGER NOT NULL,
         secret   TEXT NOT NULL,
         PRIMARY KEY (run, key, at, id)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE recent (
         turn    INTEGER NOT NULL,
         rows    INTEGER NOT NULL,
         merging INTEGER NOT NULL
     ) STRICT;
     INSERT INTO recent VALUES (0, 0, 0);
     CREATE TABLE recent_slices (
         key BLOB NOT NULL,
         at  INTEGER NOT NULL,
         id  BLOB NOT NULL,
         PRIMARY KEY (key, at, id)
     ) STRICT, WITHOUT ROWID;
     CREATE VIEW all_requests AS
         SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count,
             secret
         FROM requests
         UNION ALL
         SELECT * FROM (
             SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count,
             secret
             FROM recent_0
             UNION
             SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count,
             secret
             FROM recent_1
         ) AS recent
         WHERE NOT EXISTS (SELECT 1 FROM requests
             WHERE key = recent.key AND at = recent.at AND id = recent.id);",
    // How often keys were changed, by whichever program; a use is not a change.
    "CREATE TABLE key_changes (count INTEGER NOT NULL) STRICT;
     INSERT INTO key_changes VALUES (0);
     CREATE TRIGGER count_insertion AFTER INSERT ON keys
     BEGIN UPDATE key_changes SET count = count + 1; END;
     CREATE TRIGGER count_deletion AFTER DELETE ON keys
     BEGIN UPDATE key_changes SET count = count + 1; END;
     CREATE TRIGGER count_edit AFTER UPDATE OF
         id, org, name, key_prefix, digest, status, allowlist, created_at, expires_at,
         rotated_at, revision, attributes, previous_digest, previous_until
     ON keys BEGIN UPDATE key_changes SET count = count + 1; END;",
    // Requests in long runs that are each in order: see `sorted`. The times that each run covers.
    "CREATE TABLE sorted (
         run      INTEGER NOT NULL,
         key      BLOB NOT NULL,
         at       INTEGER NOT NULL,
         id       BLOB NOT NULL,
         org      TEXT NOT NULL,
         method   TEXT NOT NULL,
         endpoint TEXT NOT NULL,
         ip       TEXT,
         country  TEXT,
         status   INTEGER,
         outcome  TEXT NOT NULL,
         count    INTEGER NOT NULL,
         secret   TEXT NOT NULL,
         PRIMARY KEY (run, key, at, id)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE sorted_runs (
         run    INTEGER NOT NULL PRIMARY KEY,
         oldest INTEGER NOT NULL,
         newest INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX sorted_runs_by_time ON sorted_runs (newest, oldest);
     DROP VIEW all_requests;
     CREATE VIEW all_requests AS
         SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count,
             secret
         FROM requests
         UNION ALL
         SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count,
             secret
         FROM sorted_runs CROSS JOIN sorted USING (run)
         UNION ALL
         SELECT * FROM (
             SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count,
             secret
             FROM recent_0
             UNION
             SELECT key, at, id, org, method, endpoint, ip, country, status, outcome, count,
             secret
             FROM recent_1
         ) AS recent
         WHERE NOT EXISTS (SELECT 1 FROM requests
             WHERE key = recent.key AND at = recent.at AND id = recent.id)
         AND NOT EXISTS (SELECT 1 FROM sorted_runs CROSS JOIN sorted
             WHERE sorted_runs.newest >= recent.at AND sorted_runs.oldest <= recent.at
             AND sorted.run = sorted_runs.run AND sorted.key = recent.key
             AND sorted.at = recent.at AND sorted.id = recent.id);",
];

const CURRENT: i64 = MIGRATIONS.len() as i64;

/// Whether the file has no schema yet.
///
/// # Errors
///
/// [`NotKeygate`](SqliteOpenError::NotKeygate) and [`TooNew`](SqliteOpenError::TooNew).
pub(super) fn is_new(connection: &Connection, path: &Path) -> Result<bool, SqliteOpenError> {
    let failed = |e| SqliteOpenError::from_sqlite(path, e);
    let transaction = connection.unchecked_transaction().map_err(failed)?;
    Ok(version(&transaction, path)?.is_none())
}

/// Migrates the schema in one transaction. Several processes may do so at once.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), SqliteOpenError> {
    let failed = |e| SqliteOpenError::from_sqlite(path, e);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let done = usize::try_from(version(&transaction, path)?.unwrap_or_default());
    for migration in MIGRATIONS.iter().skip(done.unwrap_or_default()) {
        transaction.execute_batch(migration).map_err(failed)?;
    }
    let stamp =
        format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {CURRENT}");
    transaction.execute_batch(&stamp).map_err(failed)?;
    transaction.commit().map_err(failed)
}

/// The schema's version, or `None` for a new file.
fn version(transaction: &Transaction<'_>, path: &Path) -> Result<Option<i64>, SqliteOpenError> {
    let failed = |e| SqliteOpenError::from_sqlite(path, e);
    let number = |sql| transaction.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed);
    let application_id = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    if application_id == 0 && version == 0 && tables == 0 {
        return Ok(None);
    }
    if application_id != APPLICATION_ID {
        return Err(SqliteOpenError::NotKeygate { path: path.to_owned() });
    }
    if version > CURRENT {
        let path = path.to_owned();
        return Err(SqliteOpenError::TooNew { path, found: version, supported: CURRENT });
    }
    Ok(Some(version))
}

/// Rewrites a page without changing it.
pub(super) fn rewrite(db: &Connection) -> rusqlite::Result<()> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    db.execute_batch(&format!("PRAGMA user_version = {version}"))
}
