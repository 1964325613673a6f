//! Opens a database file: checks and settings.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::path::obstacle;
use crate::store::sqlite::{file, integrity, schema};

/// How long opening a file waits for other processes, which may be creating its tables.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a write waits for another process that is writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a read waits in the rare cases in which it must. It blocks a thread of the
/// caller's runtime.
const READ_TIMEOUT: Duration = Duration::from_millis(100);
/// The size of the write-ahead log, in bytes, once its pages are in the file. SQLite begins
/// to copy them at half of that.
const LOG_LIMIT: u32 = 8 << 20;
/// How much memory the writer's pages may take, in KiB: as much as merging requests touches
/// at once.
const WRITER_CACHE: u32 = 8 << 10;

/// Opens the file for writing, checks that it is keygate's and undamaged, and migrates its
/// schema.
pub(super) fn prepare(path: &Path, check_within: Duration) -> Result<Connection, SqliteOpenError> {
    if let Some((place, reason)) = obstacle(path) {
        return Err(SqliteOpenError::BadPath { path: path.to_owned(), place, reason });
    }
    create_private(path).map_err(|source| SqliteOpenError::cannot_open(path, source))?;
    // SQLite treats a file of one byte as empty and would overwrite it. The file is not
    // opened for this check: closing it would release the locks that other connections of
    // this process hold.
    if fs::metadata(path).is_ok_and(|file| file.len() == 1) {
        return Err(SqliteOpenError::NotKeygate { path: path.to_owned() });
    }
    let log_is_left = log_is_left(path);
    let mut connection = connect(path, OPEN_TIMEOUT)?;
    let failed = |e| SqliteOpenError::from_sqlite(path, e);
    // If the file is refused, the log, which may belong to another file, is not merged into
    // it.
    let leave_log = |leave| {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, leave).map_err(failed)
    };
    if log_is_left {
        leave_log(true)?;
    }
    if schema::is_new(&connection, path)? {
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL").map_err(failed)?;
    } else {
        integrity::check(&connection, path, check_within)?;
    }
    leave_log(false)?;
    schema::migrate(&mut connection, path)?;
    let mode = write_ahead(&connection).map_err(failed)?;
    if mode != "wal" {
        let reason = format!("its journal mode is {mode} and cannot be set to WAL");
        return Err(SqliteOpenError::cannot_open(path, reason));
    }
    // The first read creates the write-ahead log.
    let settings = format!(
        "PRAGMA journal_size_limit = {LOG_LIMIT}; PRAGMA cache_size = -{WRITER_CACHE}; \
         PRAGMA user_version"
    );
    connection.execute_batch(&settings).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    Ok(connection)
}

/// Whether the write-ahead log contains changes that may not be in the file yet.
fn log_is_left(path: &Path) -> bool {
    let [log, _] = file::beside(&fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
    fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

/// Sets the journal mode, and returns the resulting mode. SQLite does not wait here for
/// other processes that open the file.
fn write_ahead(connection: &Connection) -> rusqlite::Result<String> {
    const PAUSE: Duration = Duration::from_millis(5);
    let give_up = Instant::now() + OPEN_TIMEOUT;
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && Instant::now() < give_up =>
            {
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Opens another connection to a file that [`prepare`] has checked.
pub(super) fn reader(path: &Path) -> Result<Connection, SqliteOpenError> {
    let connection = connect(path, READ_TIMEOUT)?;
    let failed = |e| SqliteOpenError::from_sqlite(path, e);
    connection.execute_batch("PRAGMA query_only = ON").map_err(failed)?;
    Ok(connection)
}

fn connect(path: &Path, busy_timeout: Duration) -> Result<Connection, SqliteOpenError> {
    let failed = |e| SqliteOpenError::from_sqlite(path, e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    // Done before any read, since reading creates files next to this one.
    if connection.is_readonly("main").map_err(failed)? {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(SqliteOpenError::cannot_open(path, denied));
    }
    connection.busy_timeout(busy_timeout).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(32);
    connection
        .execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF",
        )
        .map_err(failed)?;
    Ok(connection)
}

/// Creates an empty file that only its owner can read, unless it exists.
fn create_private(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
