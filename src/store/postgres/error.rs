//! PostgreSQL's errors, sorted into those of the store and of the audit log.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

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
    Postgres(#[from] tokio_postgres::Error),
    #[error("the database did not answer within {0:?}")]
    Late(Duration),
    #[error("the change was not begun: others were before it for most of {0:?}")]
    NotBegun(Duration),
    #[error("the change came too late: its {0:?} were over when the database got to it")]
    TooLate(Duration),
    #[error("{0} of the keys are locked by other transactions")]
    Locked(i64),
    /// A change that may have taken place.
    #[error("the answer to a change was lost")]
    InDoubt(#[source] Box<Fault>),
    #[error("the server's name has no address")]
    NoAddress(#[source] io::Error),
    #[error("cannot connect to {servers}")]
    Unconnected {
        servers: String,
        #[source]
        cause: Box<Fault>,
    },
    #[error("no connection to the database within {waited:?}: {reason}")]
    NoConnection { waited: Duration, reason: String },
    #[error("the runtime that the store was opened on has ended")]
    Ended,
}

/// Why a server does not let us in, or not work. What comes later says more of what
/// has to be mended, where several servers fail in different ways.
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

impl Fault {
    /// tokio-postgres tells its own errors apart by their texts only; each that is
    /// looked for here is pinned by a test.
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
            // Without a password where one is asked for, it is the configuration
            // that is said to be wrong.
            None if text.starts_with("authentication")
                || text.starts_with("invalid configuration") =>
            {
                Refusal::AccessDenied
            }
            None if text.contains("TLS") => Refusal::Tls,
            // What is reported of a server that is not the kind asked for.
            None if own == Some(io::ErrorKind::PermissionDenied)
                && text.starts_with("error connecting") =>
            {
                Refusal::ReadOnly
            }
            None if io.is_some() || error.is_closed() => Refusal::Unreachable,
            None => Refusal::Other,
        }
    }

    /// Whether the connection is of no further use: it is lost, its server is
    /// no longer the primary or going down, or a pooler has put it in front of
    /// another server session than the one that knows our statements.
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

    /// Whether the change that ran into this surely did not take place, and never will.
    pub(super) fn is_no_change(&self) -> bool {
        match self {
            // A session that the server ends may have done its work.
            Self::Postgres(error) => match error.as_db_error() {
                Some(db) => !ends_the_session(db),
                None => is_about_a_value(error),
            },
            Self::Late(_) | Self::Ended | Self::InDoubt(_) => false,
            _ => true,
        }
    }

    /// Whether the server says that nothing was changed, and the same may succeed
    /// at once or over another connection.
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

    /// Whether something that the statement needs is locked.
    pub(super) fn is_a_lock(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether a call that may be made twice is worth another attempt at once.
    pub(super) fn may_be_repeated(&self) -> bool {
        !matches!(self, Self::Late(_)) && (self.changed_nothing() || self.costs_the_connection())
    }

    /// Whether a session had begun, and the server ended it: this one, or all of them.
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

    /// Whether trying again could be of use.
    fn may_pass(&self) -> bool {
        match self {
            Self::Late(_)
            | Self::NotBegun(_)
            | Self::TooLate(_)
            | Self::Locked(_)
            | Self::InDoubt(_)
            | Self::NoAddress(_)
            | Self::Unconnected { .. }
            | Self::NoConnection { .. }
            | Self::Ended => true,
            // Classes: 22 is a value that does not fit, 23 a constraint.
            Self::Postgres(error) => match error.code() {
                Some(code) => !matches!(code.code().get(..2), Some("22" | "23")),
                None => !is_about_a_value(error),
            },
            _ => false,
        }
    }

    fn is_constraint(&self) -> bool {
        self.code() == Some(&SqlState::UNIQUE_VIOLATION)
    }
}

/// The word itself may be in the server's language.
fn ends_the_session(error: &DbError) -> bool {
    matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// Whether the client could not turn a value into a column or back. All else
/// that it reports by itself is about the connection.
fn is_about_a_value(error: &tokio_postgres::Error) -> bool {
    let text = error.to_string();
    ["error serializing", "error deserializing", "invalid column", "expected "]
        .iter()
        .any(|start| text.starts_with(start))
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::LimitReached => Self::LimitReached,
            Fault::NotFound => Self::NotFound,
            Fault::Conflict => Self::Conflict,
            Fault::InDoubt(fault) => Self::in_doubt(*fault),
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
