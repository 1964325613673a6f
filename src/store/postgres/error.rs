//! PostgreSQL's errors, and their conversion to errors of the store and of the audit log.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio_postgres::error::{DbError as ServerError, Severity, SqlState};

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
    Postgres(#[from] tokio_postgres::Error),
    #[error("the database did not answer within {0:?}")]
    Late(Duration),
    #[error("the change was not begun: earlier changes took most of the {0:?}")]
    NotBegun(Duration),
    #[error("the change was too late: its {0:?} had passed when the database reached it")]
    TooLate(Duration),
    #[error("{0} keys are locked by other transactions")]
    Locked(i64),
    #[error("the audit log has no partition for the time of a request")]
    NoPartition(#[source] Box<DbError>),
    /// A change that may have taken place.
    #[error("no answer to the change was received")]
    InDoubt(#[source] Box<DbError>),
    #[error("the server's name has no address")]
    NoAddress(#[source] io::Error),
    #[error("cannot connect to {servers}")]
    Unconnected {
        servers: String,
        #[source]
        cause: Box<DbError>,
    },
    #[error("no connection to the database within {waited:?}: {reason}")]
    NoConnection { waited: Duration, reason: String },
    #[error("the runtime that the store was opened on has ended")]
    Ended,
}

/// Why a server cannot be used. If several servers fail in different ways, the later
/// variants are reported first, since they say more about what to fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    ReadOnly,
    NoAnswer,
    Unreachable,
    Other,
    NoDatabase,
    NoRights,
    AccessDenied,
    Tls,
}

impl DbError {
    /// tokio-postgres distinguishes its own errors only by their texts; tests check each
    /// text used here.
    pub(super) fn refusal(&self) -> Refusal {
        let error = match self {
            Self::Postgres(error) => error,
            Self::Late(_) => return Refusal::NoAnswer,
            Self::NoAddress(_) => return Refusal::Unreachable,
            _ => return Refusal::Other,
        };
        let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        // One that the operating system did not report.
        let own = io.filter(|io| io.raw_os_error().is_none()).map(io::Error::kind);
        let text = error.to_string();
        match error.code().map(SqlState::code) {
            Some("28000" | "28P01") => Refusal::AccessDenied,
            Some("3D000") => Refusal::NoDatabase,
            Some("42501") => Refusal::NoRights,
            Some("25006") => Refusal::ReadOnly,
            Some(_) => Refusal::Other,
            // If a password is required and none is set, the error is about the
            // configuration.
            None if text.starts_with("authentication")
                || text.starts_with("invalid configuration") =>
            {
                Refusal::AccessDenied
            }
            None if text.contains("TLS") => Refusal::Tls,
            // The error for a server that is not of the requested kind.
            None if own == Some(io::ErrorKind::PermissionDenied)
                && text.starts_with("error connecting") =>
            {
                Refusal::ReadOnly
            }
            None if io.is_some() || error.is_closed() => Refusal::Unreachable,
            None => Refusal::Other,
        }
    }

    /// Whether the connection is unusable: it is lost, its server is no longer the primary
    /// or is shutting down, or a pooler has assigned it a server session that does not have
    /// our prepared statements.
    pub(super) fn costs_the_connection(&self) -> bool {
        let Self::Postgres(error) = self else { return matches!(self, Self::Late(_)) };
        let Some(db) = error.as_db_error() else { return !is_about_a_value(error) };
        ends_the_session(db)
            || [
                SqlState::READ_ONLY_SQL_TRANSACTION,
                SqlState::ADMIN_SHUTDOWN,
                SqlState::CRASH_SHUTDOWN,
                SqlState::CANNOT_CONNECT_NOW,
                SqlState::INVALID_SQL_STATEMENT_NAME,
                SqlState::DUPLICATE_PSTATEMENT,
                SqlState::FEATURE_NOT_SUPPORTED,
                SqlState::PROTOCOL_VIOLATION,
            ]
            .contains(db.code())
    }

    /// Whether the change that failed with this did not take place and never will.
    pub(super) fn is_no_change(&self) -> bool {
        match self {
            // A session that the server ends may have committed.
            Self::Postgres(error) => match error.as_db_error() {
                Some(db) => !ends_the_session(db),
                None => is_about_a_value(error),
            },
            Self::Late(_) | Self::Ended | Self::InDoubt(_) => false,
            _ => true,
        }
    }

    /// Whether the server reports that nothing was changed, and a retry may succeed at once
    /// or over another connection.
    pub(super) fn changed_nothing(&self) -> bool {
        let codes = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::INVALID_SQL_STATEMENT_NAME,
            SqlState::DUPLICATE_PSTATEMENT,
            SqlState::FEATURE_NOT_SUPPORTED,
        ];
        self.code().is_some_and(|code| codes.contains(code))
    }

    /// Whether the statement waited for a lock.
    pub(super) fn is_a_lock(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether a repeatable call should be retried at once.
    pub(super) fn may_be_repeated(&self) -> bool {
        !matches!(self, Self::Late(_)) && (self.changed_nothing() || self.costs_the_connection())
    }

    /// Whether the server ended an established session: this one, or all of them.
    pub(super) fn is_an_ended_session(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN)
    }

    pub(super) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// Whether a retry may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Late(_)
            | Self::NotBegun(_)
            | Self::TooLate(_)
            | Self::Locked(_)
            | Self::NoPartition(_)
            | Self::InDoubt(_)
            | Self::NoAddress(_)
            | Self::Unconnected { .. }
            | Self::NoConnection { .. }
            | Self::Ended => true,
            // Class 22 is a value that does not fit, and class 23 a constraint.
            Self::Postgres(error) => match error.code() {
                Some(code) => !matches!(code.code().get(..2), Some("22" | "23")),
                None => !is_about_a_value(error),
            },
            _ => false,
        }
    }

    pub(super) fn is_constraint(&self) -> bool {
        self.code() == Some(&SqlState::UNIQUE_VIOLATION)
    }

    pub(super) fn lacks_rights(&self) -> bool {
        self.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Whether a table has no partition for a row, rather than a constraint that refuses it. The
    /// first partition has a constraint shortly before it ends.
    pub(super) fn lacks_partition(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        error.as_db_error().is_some_and(|db| {
            *db.code() == SqlState::CHECK_VIOLATION
                && db.constraint().is_none_or(|name| name.starts_with("at_before_"))
        })
    }
}

/// The severity may be translated into the server's language.
fn ends_the_session(error: &ServerError) -> bool {
    matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// Whether the client could not convert a value to or from a column. All other errors that
/// the client reports are about the connection.
fn is_about_a_value(error: &tokio_postgres::Error) -> bool {
    let text = error.to_string();
    ["error serializing", "error deserializing", "invalid column", "expected "]
        .iter()
        .any(|start| text.starts_with(start))
}

impl From<DbError> for StoreError {
    fn from(fault: DbError) -> Self {
        match fault {
            DbError::LimitReached => Self::LimitReached,
            DbError::NotFound => Self::NotFound,
            DbError::Conflict => Self::Conflict,
            DbError::InDoubt(fault) => Self::in_doubt(*fault),
            fault if fault.is_constraint() => Self::Conflict,
            fault if fault.may_pass() => Self::unavailable(fault),
            fault => Self::corrupt(fault),
        }
    }
}

impl From<DbError> for AuditError {
    fn from(fault: DbError) -> Self {
        if fault.may_pass() { Self::unavailable(fault) } else { Self::rejected(fault) }
    }
}
