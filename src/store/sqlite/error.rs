//! SQLite's errors, sorted into those of the store and of the audit log.

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::audit::sink::AuditError;
use crate::store::contract::StoreError;

/// What went wrong with a statement.
#[derive(Debug, Error)]
pub(super) enum Fault {
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
    /// The transaction that carried this change, and others, was not committed.
    #[error("the transaction failed: {0}")]
    NotCommitted(String),
    #[error("the database's writer has ended")]
    Ended,
}

impl Fault {
    /// Whether trying again could be of use.
    fn may_pass(&self) -> bool {
        match self {
            Self::NotCommitted(_) | Self::Ended => true,
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

    fn is_constraint(&self) -> bool {
        matches!(self, Self::Sqlite(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation))
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::LimitReached => Self::LimitReached,
            Fault::NotFound => Self::NotFound,
            Fault::Conflict => Self::Conflict,
            fault if fault.is_constraint() => Self::Conflict,
            fault if fault.may_pass() => Self::unavailable(fault),
            fault => Self::corrupt(fault),
        }
    }
}

impl From<Fault> for AuditError {
    fn from(fault: Fault) -> Self {
        if fault.may_pass() { Self::unavailable(fault) } else { Self::rejected(fault) }
    }
}
