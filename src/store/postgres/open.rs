//! Opening a database: what may be wrong with it.

use std::error::Error as StdError;
use std::time::Duration;

use thiserror::Error;

use crate::store::postgres::error::{Fault, Refusal};
use crate::store::postgres::schema::{self, SchemaFault};
use crate::store::postgres::target::Target;

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
    /// The database cannot hold every character of a name.
    #[error(
        "database {database} has the encoding {encoding}; create one with ENCODING 'UTF8' and \
         TEMPLATE template0, and name it in the URL"
    )]
    NotUtf8 {
        /// The database.
        database: String,
        /// Its encoding.
        encoding: String,
    },
    /// The tables have to be brought up to date, and are in use all the time.
    #[error(
        "the tables of schema {schema} could not be brought up to date within {waited:?}: another \
         transaction or a vacuum uses them (see pg_locks); end it and try again, nothing was \
         changed"
    )]
    InUse {
        /// The schema.
        schema: String,
        /// How long it was tried.
        waited: Duration,
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
            SchemaFault::NotUtf8 { encoding } => {
                Self::NotUtf8 { database: target.database.clone(), encoding }
            }
            SchemaFault::NoRights { missing } => {
                let (user, database) = (target.user.clone(), target.database.clone());
                Self::NoRights { user, database, schema, source: missing.into() }
            }
            SchemaFault::InUse => Self::InUse { schema, waited: schema::LOCK_PATIENCE },
            SchemaFault::Failed(fault) => Self::from_fault(target, fault),
        }
    }

    pub(super) fn from_fault(target: &Target, fault: Fault) -> Self {
        let (servers, fault) = match fault {
            Fault::Unconnected { servers, cause } => (servers, *cause),
            fault => (target.servers.clone(), fault),
        };
        let (user, database) = (target.user.clone(), target.database.clone());
        let refusal = fault.refusal();
        let source: Box<dyn StdError + Send + Sync> = match fault {
            Fault::Late(waited) => return Self::NoAnswer { servers, waited },
            Fault::Postgres(error) => error.into(),
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
