//! Errors of opening a database file.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::text::debug_with_causes;

/// Why a database file could not be opened.
#[derive(Error)]
#[non_exhaustive]
pub enum SqliteOpenError {
    /// The path or URL names no file.
    #[error("{url}: {reason}")]
    BadUrl {
        /// The path or URL.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A place on the path is wrong: a folder is missing, cannot be entered, or is where
    /// the file should be.
    #[error("{path} cannot be opened: {place} {reason}")]
    BadPath {
        /// The file.
        path: PathBuf,
        /// The file, a parent folder, or a link.
        place: PathBuf,
        /// What is wrong with that place.
        reason: &'static str,
    },
    /// The file is not a keygate database, or its beginning is damaged.
    #[error(
        "{path} is not a keygate database or is damaged; use another path or restore the file from a backup; nothing was changed"
    )]
    NotKeygate {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged. If a backup was just restored over it, the write-ahead log of
    /// the previous file may have been left next to it.
    #[error(
        "{path} is damaged ({found}); nothing was changed. Stop every process that uses it, and save copies of it, {path}-wal and {path}-shm; then remove {path}-wal and {path}-shm, and copy a backup to {path}, even if you have already done so"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first damage that SQLite found.
        found: String,
    },
    /// The file was written by a newer version of keygate.
    #[error(
        "{path} has schema {found}, but this version supports up to {supported}; use a newer keygate"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The schema of the file.
        found: i64,
        /// The newest schema that this version supports.
        supported: i64,
    },
    /// Another process holds a lock on the file.
    #[error("{path} is locked by another process; try again when that process has finished")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("{path} cannot be written; check the permissions of the file and its folder")]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The file cannot be opened for another reason.
    #[error("{path} cannot be opened; check the permissions of the file and its folder")]
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

debug_with_causes!(SqliteOpenError);

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
