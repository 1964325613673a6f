//! Opening a database: what may be wrong with it.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio_postgres::error::SqlState;

use crate::store::postgres::error::Fault;
use crate::store::postgres::options::Target;
use crate::store::postgres::schema::{self, SchemaFault};

/// Why a database could not be opened. No password is ever part of it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PostgresOpenError {
    /// The URL cannot be used.
    #[error("the database's URL cannot be used: {reason}")]
    BadUrl {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The schema cannot be named like that.
    #[error(
        "{name:?} cannot name a schema; use 1 to 63 of a-z, 0-9 and _, not beginning with a digit"
    )]
    BadSchema {
        /// What was given.
        name: String,
    },
    /// There is no tokio runtime.
    #[error("a PostgresStore is opened within a tokio runtime")]
    NoRuntime,
    /// Nobody answers there.
    #[error("{servers} cannot be reached; check host, port and network, and that PostgreSQL runs")]
    Unreachable {
        /// Hosts and ports.
        servers: String,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server, or what is listening there, did not answer in time.
    #[error(
        "{servers} did not answer within {waited:?}; check that it is PostgreSQL and in health"
    )]
    NoAnswer {
        /// Hosts and ports.
        servers: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The server does not let this user in.
    #[error(
        "{servers} does not let {user} in; check user and password, and the server's pg_hba.conf"
    )]
    AccessDenied {
        /// Hosts and ports.
        servers: String,
        /// The user.
        user: String,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// There is no such database.
    #[error("{servers} has no database {database}; create it, or name another")]
    NoDatabase {
        /// Hosts and ports.
        servers: String,
        /// The database.
        database: String,
    },
    /// The user may not do what is needed.
    #[error(
        "{user} lacks rights on schema {schema} of database {database}; grant CREATE on the \
         database, or make the schema and grant CREATE and USAGE on it and its tables"
    )]
    NoRights {
        /// The user.
        user: String,
        /// The database.
        database: String,
        /// The schema.
        schema: String,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server takes no writes.
    #[error("{servers} takes no writes; name the primary, or all hosts, in the URL")]
    ReadOnly {
        /// Hosts and ports.
        servers: String,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// TLS is asked for and was not built in.
    #[error("{servers} is to be reached over TLS; build with feature `postgres-tls`")]
    NoTls {
        /// Hosts and ports.
        servers: String,
    },
    /// There is no secure connection to the server.
    #[error(
        "no TLS with {servers}; check that the server offers it and that its certificate is \
         trusted here (SSL_CERT_FILE), or give sslmode=disable on a network you trust"
    )]
    Tls {
        /// Hosts and ports.
        servers: String,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A newer version of keygate has changed the schema.
    #[error(
        "schema {schema} has version {found}, this version knows {supported}; use a newer keygate"
    )]
    TooNew {
        /// The schema.
        schema: String,
        /// The version of the schema.
        found: i64,
        /// The newest version known.
        supported: i64,
    },
    /// The schema holds something else than keys.
    #[error(
        "schema {schema} holds tables that are not keygate's; name another, nothing was changed"
    )]
    NotKeygate {
        /// The schema.
        schema: String,
    },
    /// Something else went wrong.
    #[error("{servers} cannot be used for keys")]
    Failed {
        /// Hosts and ports.
        servers: String,
        /// What was reported.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl PostgresOpenError {
    pub(super) fn from_schema(target: &Target, fault: SchemaFault) -> Self {
        let schema = target.schema.clone();
        match fault {
            SchemaFault::TooNew { found } => {
                Self::TooNew { schema, found, supported: schema::CURRENT }
            }
            SchemaFault::NotKeygate => Self::NotKeygate { schema },
            SchemaFault::Failed(fault) => Self::from_fault(target, fault),
        }
    }

    pub(super) fn from_fault(target: &Target, fault: Fault) -> Self {
        let servers = target.servers.clone();
        let (user, database) = (target.user.clone(), target.database.clone());
        let error = match fault {
            Fault::Postgres(error) => error,
            Fault::Late(waited) => return Self::NoAnswer { servers, waited },
            other => return Self::Failed { servers, source: other.into() },
        };
        let code = error.code().map(SqlState::code);
        let text = error.to_string();
        match code {
            Some("28000" | "28P01") => Self::AccessDenied { servers, user, source: error.into() },
            Some("3D000") => Self::NoDatabase { servers, database },
            Some("42501") => {
                let schema = target.schema.clone();
                Self::NoRights { user, database, schema, source: error.into() }
            }
            Some("25006") => Self::ReadOnly { servers, source: error.into() },
            Some(_) => Self::Failed { servers, source: error.into() },
            // Without a password where one is asked for, it is the configuration
            // that is said to be wrong.
            None if text.starts_with("authentication")
                || text.starts_with("invalid configuration") =>
            {
                Self::AccessDenied { servers, user, source: error.into() }
            }
            None if text.contains("TLS") => Self::Tls { servers, source: error.into() },
            None => match io_kind(&error) {
                // What tokio-postgres reports of a server that is not the kind
                // asked for.
                Some(io::ErrorKind::PermissionDenied) if text.starts_with("error connecting") => {
                    Self::ReadOnly { servers, source: error.into() }
                }
                Some(_) => Self::Unreachable { servers, source: error.into() },
                None if error.is_closed() => Self::Unreachable { servers, source: error.into() },
                None => Self::Failed { servers, source: error.into() },
            },
        }
    }
}

fn io_kind(error: &tokio_postgres::Error) -> Option<io::ErrorKind> {
    error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind)
}
