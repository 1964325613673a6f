//! SQLite's errors, sorted into those of the store and of the audit log.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::audit::sink::AuditError;
use crate::store::contract::StoreError;

/// What a statement gives, or the fault that it ran into.
pub(super) type Outcome<T> = Result<T, Fault>;

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
    /// The transaction that carried this change, and others, did not take place.
    #[error("the transaction failed: {0}")]
    NotCommitted(#[source] Arc<Fault>),
    /// It failed at a moment when its pages may have reached the disk.
    #[error("the transaction may be on disk or not: {0}")]
    InDoubt(#[source] Arc<Fault>),
    #[error("{path} is gone, or can no longer be reached")]
    Gone { path: PathBuf, source: io::Error },
    #[error("{path} is no longer the file that was opened")]
    Replaced { path: PathBuf },
    #[error("{path} has damaged pages")]
    Damaged { path: PathBuf },
    #[error("the database's writer has ended")]
    Ended,
}

impl Fault {
    /// Whether trying again could be of use.
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

    /// Whether a damaged page of the file is the reason.
    pub(super) fn is_damage(&self) -> bool {
        let damage = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        matches!(self, Self::Sqlite(e) if e.sqlite_error_code().is_some_and(|c| damage.contains(&c)))
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
            fault @ Fault::InDoubt(_) => Self::in_doubt(fault),
            fault if fault.is_constraint() => Self::Conflict,
            fault if fault.may_pass() => Self::unavailable(fault),
            fault => Self::corrupt(fault),
        }
    }
}

impl From<Fault> for AuditError {
    fn from(fault: Fault) -> Self {
        // Damage is not the fault of a record: none may be given up for it.
        let keeps = fault.may_pass() || fault.is_damage();
        if keeps { Self::unavailable(fault) } else { Self::rejected(fault) }
    }
}
