//! SQLite's errors, and their conversion to errors of the store and of the audit log.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::audit::sink::AuditError;
use crate::store::key_store::StoreError;

/// The result of a statement.
pub(super) type Result<T, E = DbError> = std::result::Result<T, E>;

/// Why a statement failed.
#[derive(Debug, Error)]
pub(super) enum DbError {
    #[error("the limit of keys is reached")]
    LimitReached,
    #[error("no such key")]
    NotFound,
    #[error("another change came first")]
    Conflict,
    #[error("column {column} of a stored {row} cannot be read")]
    Unreadable { row: &'static str, column: &'static str },
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The transaction with this and other changes did not take place.
    #[error("the transaction failed: {0}")]
    NotCommitted(#[source] Arc<DbError>),
    /// The transaction failed when its pages may already have been on disk.
    #[error("the transaction failed but may be on disk: {0}")]
    InDoubt(#[source] Arc<DbError>),
    #[error("{path} is missing or cannot be reached")]
    Gone { path: PathBuf, source: io::Error },
    #[error("{path} is no longer the file that was opened")]
    Replaced { path: PathBuf },
    #[error("{path} has damaged pages")]
    Damaged { path: PathBuf },
    #[error("the database's writer has ended")]
    Ended,
}

impl DbError {
    /// Whether a retry may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::NotCommitted(_) | Self::InDoubt(_) => true,
            Self::Gone { .. } | Self::Replaced { .. } | Self::Ended => true,
            Self::Sqlite(error) => !matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::DatabaseCorrupt
                        | ErrorCode::NotADatabase
                        | ErrorCode::TypeMismatch
                        | ErrorCode::ConstraintViolation
                        | ErrorCode::TooBig
                )
            ),
            _ => false,
        }
    }

    /// Whether the cause is a damaged page in the file.
    pub(super) fn is_damage(&self) -> bool {
        let damage = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        matches!(self, Self::Sqlite(e) if e.sqlite_error_code().is_some_and(|c| damage.contains(&c)))
    }

    fn is_constraint(&self) -> bool {
        matches!(self, Self::Sqlite(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation))
    }
}

impl From<DbError> for StoreError {
    fn from(fault: DbError) -> Self {
        match fault {
            DbError::LimitReached => Self::LimitReached,
            DbError::NotFound => Self::NotFound,
            DbError::Conflict => Self::Conflict,
            fault @ DbError::InDoubt(_) => Self::in_doubt(fault),
            fault if fault.is_constraint() => Self::Conflict,
            fault if fault.may_pass() => Self::unavailable(fault),
            fault => Self::corrupt(fault),
        }
    }
}

impl From<DbError> for AuditError {
    fn from(fault: DbError) -> Self {
        // No record causes damage, so none may be given up because of it.
        let keeps = fault.may_pass() || fault.is_damage();
        if keeps { Self::unavailable(fault) } else { Self::rejected(fault) }
    }
}
