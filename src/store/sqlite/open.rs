//! Opening a database file: its path, its settings, and what may be wrong with it.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

use crate::store::sqlite::schema;

/// How long a write waits for another process that is writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a read waits in the rare moments when a reader has to. It blocks a
/// thread of the caller's runtime.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// The file that a path or a `sqlite:` URL names.
pub(super) fn file_path(path: &Path) -> Result<PathBuf, SqliteOpenError> {
    let bad_url = |reason| SqliteOpenError::BadUrl { url: path.display().to_string(), reason };
    let Some(text) = path.to_str() else { return Ok(path.to_owned()) };
    let url = text.strip_prefix("sqlite:");
    let file = url.map_or(text, |rest| rest.strip_prefix("//").unwrap_or(rest));
    if file.is_empty() {
        Err(bad_url("it names no file"))
    } else if file == ":memory:" || text.starts_with("file:") {
        Err(bad_url("it names no file; for keys in memory there is MemoryStore"))
    } else if url.is_some() && file.contains('?') {
        Err(bad_url("parameters are not supported; the path ends the URL"))
    } else if url.is_none() && text.contains("://") {
        Err(bad_url("it is not a `sqlite:` URL"))
    } else {
        Ok(file.into())
    }
}

/// Opens the file for writing, checks that it is keygate's, and brings its
/// schema up to date.
pub(super) fn prepare(path: &Path) -> Result<Connection, SqliteOpenError> {
    create_private(path).map_err(|source| SqliteOpenError::cannot_open(path, source))?;
    // SQLite takes a single byte for an empty file, and would write over it. The
    // file is not opened for that: closing it would give up the locks that other
    // connections of this process hold.
    if fs::metadata(path).is_ok_and(|file| file.len() == 1) {
        return Err(SqliteOpenError::NotKeygate { path: path.to_owned() });
    }
    let mut connection = connect(path, BUSY_TIMEOUT)?;
    let failed = |e| SqliteOpenError::from_sqlite(path, e);
    schema::migrate(&mut connection, path)?;
    let mode = write_ahead(&connection).map_err(failed)?;
    if mode != "wal" {
        let reason = format!("its journal mode is {mode} and cannot be set to WAL");
        return Err(SqliteOpenError::cannot_open(path, reason));
    }
    Ok(connection)
}

/// Sets the journal mode, and says which it is now. SQLite does not wait here
/// for others who are opening the file.
fn write_ahead(connection: &Connection) -> rusqlite::Result<String> {
    const PAUSE: Duration = Duration::from_millis(5);
    let give_up = Instant::now() + BUSY_TIMEOUT;
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

/// Opens another connection to a file that [`prepare`] has seen.
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
    // Before anything is read: reading leaves files beside this one.
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

/// Makes an empty file that only its owner may read, where there is none.
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

/// Why a database file could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SqliteOpenError {
    /// The path or URL names no file.
    #[error("{url}: {reason}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file holds something else than keys, or is damaged.
    #[error(
        "{path} is no keygate database, or a damaged one; give another path or restore it from a backup, nothing was changed"
    )]
    NotKeygate {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of keygate has written to the file.
    #[error("{path} has schema {found}, this version knows {supported}; use a newer keygate")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The schema of the file.
        found: i64,
        /// The newest schema that this version knows.
        supported: i64,
    },
    /// Another process holds a lock on the file.
    #[error("{path} is locked by another process; try again when it is done")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("{path} cannot be written; check the rights on the file and its folder")]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The file cannot be opened: its folder is missing, it is a folder itself.
    #[error("{path} cannot be opened; check that its folder exists")]
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl SqliteOpenError {
    pub(super) fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::NotKeygate { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                Self::ReadOnly { path, source: error.into() }
            }
            _ => Self::CannotOpen { path, source: error.into() },
        }
    }

    pub(super) fn thread(path: &Path, error: io::Error) -> Self {
        Self::cannot_open(path, error)
    }

    fn cannot_open(path: &Path, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        let denied = source.downcast_ref::<io::Error>().is_some_and(|e| {
            matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
        });
        let path = path.to_owned();
        if denied { Self::ReadOnly { path, source } } else { Self::CannotOpen { path, source } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_name_files_or_are_refused() {
        let named = |text: &str| file_path(Path::new(text)).map(|p| p.display().to_string());
        for (text, file) in [
            ("keygate.db", "keygate.db"),
            ("sqlite:keygate.db", "keygate.db"),
            ("sqlite://keygate.db", "keygate.db"),
            ("sqlite:///var/lib/k.db", "/var/lib/k.db"),
            ("/odd?name.db", "/odd?name.db"),
        ] {
            assert_eq!(named(text).unwrap(), file);
        }
        for text in [
            "",
            "sqlite:",
            "sqlite://",
            ":memory:",
            "sqlite::memory:",
            "sqlite:k.db?mode=ro",
            "postgres://x/y",
            "file:k.db",
        ] {
            assert!(matches!(named(text), Err(SqliteOpenError::BadUrl { .. })), "{text}");
        }
    }
}
