//! Errors of opening a database.

use std::error::Error as StdError;
use std::time::Duration;

use thiserror::Error;

use crate::store::postgres::error::{DbError, Refusal};
use crate::store::postgres::schema::{self, SchemaError};
use crate::text::debug_with_causes;

/// The servers, the user and the database, for error messages, and other settings of the store.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) servers: String,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) schema: String,
    pub(super) connections: usize,
    pub(super) partition_width: Duration,
}

/// Why a database could not be opened. No error contains the password.
#[derive(Error)]
#[non_exhaustive]
pub enum PostgresOpenError {
    /// The URL cannot be used.
    #[error("the database's URL cannot be used: {reason}")]
    BadUrl {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name is not valid for a schema.
    #[error(
        "{name:?} is not a valid schema name; use 1 to 63 of a-z, 0-9 and _, not beginning with a digit"
    )]
    BadSchema {
        /// The name.
        name: String,
    },
    /// There is no tokio runtime.
    #[error("no tokio runtime: open a PostgresStore within one")]
    NoRuntime,
    /// The server cannot be reached.
    #[error(
        "{servers} cannot be reached; check host, port and network, and that PostgreSQL is running"
    )]
    Unreachable {
        /// Hosts and ports.
        servers: String,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server, or whatever listens there, did not answer in time.
    #[error(
        "{servers} did not answer within {waited:?}; check that it is a healthy PostgreSQL server"
    )]
    NoAnswer {
        /// Hosts and ports.
        servers: String,
        /// How long the store waited.
        waited: Duration,
    },
    /// The server does not accept this user.
    #[error(
        "{servers} does not accept the user {user}; check user and password, and the server's pg_hba.conf"
    )]
    AccessDenied {
        /// Hosts and ports.
        servers: String,
        /// The user.
        user: String,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The database does not exist.
    #[error("{servers} has no database {database}; create it, or use another")]
    NoDatabase {
        /// Hosts and ports.
        servers: String,
        /// The database.
        database: String,
    },
    /// The user lacks a right that the store needs.
    #[error(
        "{user} lacks rights on schema {schema} of database {database}; grant CREATE on the \
         database, or create the schema and grant CREATE and USAGE on it and its tables"
    )]
    NoRights {
        /// The user.
        user: String,
        /// The database.
        database: String,
        /// The schema.
        schema: String,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server is read-only.
    #[error("{servers} is read-only; give the primary, or all hosts, in the URL")]
    ReadOnly {
        /// Hosts and ports.
        servers: String,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// TLS is required but was not built in.
    #[error("{servers} requires TLS; build with feature `postgres-tls`")]
    NoTls {
        /// Hosts and ports.
        servers: String,
    },
    /// A TLS connection to the server failed.
    #[error(
        "TLS with {servers} failed; check that the server offers it and that its certificate is \
         trusted here (SSL_CERT_FILE), or give sslmode=disable on a network you trust"
    )]
    Tls {
        /// Hosts and ports.
        servers: String,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The schema was changed by a newer version of keygate.
    #[error(
        "schema {schema} has version {found}, but this keygate supports up to {supported}; use a newer keygate"
    )]
    TooNew {
        /// The schema.
        schema: String,
        /// The version of the schema.
        found: i64,
        /// The newest version that this keygate supports.
        supported: i64,
    },
    /// The schema contains other tables.
    #[error(
        "schema {schema} contains tables that are not keygate's; use another schema; nothing was changed"
    )]
    NotKeygate {
        /// The schema.
        schema: String,
    },
    /// The database's encoding lacks characters that names may contain.
    #[error(
        "database {database} has the encoding {encoding}, which lacks characters; create one \
         with ENCODING 'UTF8' and TEMPLATE template0, and name it in the URL"
    )]
    NotUtf8 {
        /// The database.
        database: String,
        /// Its encoding.
        encoding: String,
    },
    /// The tables have to be migrated, but stayed in use.
    #[error(
        "the tables of schema {schema} could not be migrated within {waited:?}: another \
         transaction or a vacuum uses them (see pg_locks); end it and try again; nothing was \
         changed"
    )]
    InUse {
        /// The schema.
        schema: String,
        /// How long the store waited.
        waited: Duration,
    },
    /// Another error.
    #[error("{servers} cannot be used as a key store")]
    Failed {
        /// Hosts and ports.
        servers: String,
        /// The underlying error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

debug_with_causes!(PostgresOpenError);

impl PostgresOpenError {
    pub(super) fn from_schema(target: &Target, fault: SchemaError) -> Self {
        let schema = target.schema.clone();
        match fault {
            SchemaError::TooNew { found } => {
                Self::TooNew { schema, found, supported: schema::CURRENT }
            }
            SchemaError::NotKeygate => Self::NotKeygate { schema },
            SchemaError::NotUtf8 { encoding } => {
                Self::NotUtf8 { database: target.database.clone(), encoding }
            }
            SchemaError::NoRights { missing } => {
                let (user, database) = (target.user.clone(), target.database.clone());
                Self::NoRights { user, database, schema, source: missing.into() }
            }
            SchemaError::InUse => Self::InUse { schema, waited: schema::LOCK_PATIENCE },
            SchemaError::Failed(fault) => Self::from_error(target, fault),
        }
    }

    pub(super) fn from_error(target: &Target, fault: DbError) -> Self {
        let (servers, fault) = match fault {
            DbError::Unconnected { servers, cause } => (servers, *cause),
            fault => (target.servers.clone(), fault),
        };
        let (user, database) = (target.user.clone(), target.database.clone());
        let refusal = fault.refusal();
        let source: Box<dyn StdError + Send + Sync> = match fault {
            DbError::Late(waited) => return Self::NoAnswer { servers, waited },
            DbError::Postgres(error) => error.into(),
            fault => fault.into(),
        };
        match refusal {
            Refusal::AccessDenied => Self::AccessDenied { servers, user, source },
            Refusal::NoDatabase => Self::NoDatabase { servers, database },
            Refusal::NoRights => {
                Self::NoRights { user, database, schema: target.schema.clone(), source }
            }
            Refusal::ReadOnly => Self::ReadOnly { servers, source },
            Refusal::Tls => Self::Tls { servers, source },
            Refusal::Unreachable => Self::Unreachable { servers, source },
            Refusal::NoAnswer | Refusal::Other => Self::Failed { servers, source },
        }
    }
}
