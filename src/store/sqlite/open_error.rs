//! Why a database file could not be opened.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

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
    /// Something on the way to the file is not as it should be: a folder is missing or may
    /// not be entered, or is where the file should be.
    #[error("{path} cannot be opened: {place} {reason}")]
    BadPath {
        /// The file.
        path: PathBuf,
        /// The file, a folder above it, or a link.
        place: PathBuf,
        /// What is wrong with that place.
        reason: &'static str,
    },
    /// The file holds something else than keys, or its beginning is damaged.
    #[error(
        "{path} is no keygate database, or a damaged one; give another path or restore it from a backup, nothing was changed"
    )]
    NotKeygate {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged. If a backup was restored over it just now, the write-ahead log of
    /// the former file was left beside it.
    #[error(
        "{path} is damaged ({found}), nothing was changed; stop every process that uses it and copy it, {path}-wal and {path}-shm away; then remove {path}-wal and {path}-shm, and copy a backup to {path}, also where that was done before"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite found first.
        found: String,
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
    /// The file cannot be opened for another reason.
    #[error("{path} cannot be opened; check the rights on the file and its folder")]
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
            Some(ErrorCode::NotADatabase) => Self::NotKeygate { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, found: error.to_string() },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                Self::ReadOnly { path, source: error.into() }
            }
            _ => Self::CannotOpen { path, source: error.into() },
        }
    }

    pub(super) fn cannot_open(
        path: &Path,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let denied = source.downcast_ref::<io::Error>().is_some_and(|e| {
            matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
        });
        let path = path.to_owned();
        if denied { Self::ReadOnly { path, source } } else { Self::CannotOpen { path, source } }
    }
}
