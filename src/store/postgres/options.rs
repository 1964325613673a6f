//! Settings of a store: how to connect, and how to use connections.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, TargetSessionAttrs};

use crate::store::postgres::dial::{Dialer, LastFailure};
use crate::store::postgres::open::{PostgresOpenError, Target};
use crate::store::postgres::server::{Server, servers};
use crate::store::postgres::session::Patience;
use crate::store::postgres::statements::Texts;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A longer duration may overflow when added to a point in time.
const LONGEST: Duration = DAY;

/// Settings of a [`PostgresStore`](crate::PostgresStore).
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), keygate::error::PostgresOpenError> {
/// use std::time::Duration;
/// use keygate::store::PostgresOptions;
///
/// let store = PostgresOptions::from_url("postgres://app@db-1,db-2/app?connect_timeout=2")?
///     .schema("api_keys")?
///     .connections(4)
///     .deadline(Duration::from_millis(500))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresOptions {
    config: Config,
    schema: String,
    connections: Option<usize>,
    deadline: Duration,
    prepared: bool,
    partition_width: Duration,
}

impl PostgresOptions {
    /// Reads a URL such as `postgres://user:password@host:5432/database`.
    ///
    /// Several hosts may be given, separated by commas; the one that accepts writes is
    /// used. They are tried in this order (with `load_balance_hosts=random` in random
    /// order), but hosts that failed last time come last. Connecting to each may take
    /// `connect_timeout` seconds, or else the deadline of a call.
    ///
    /// `sslmode=require` requires TLS (feature `postgres-tls`) and checks the certificate
    /// and its name, as `verify-full` does in libpq. Without it, TLS is not used.
    ///
    /// # Errors
    ///
    /// [`PostgresOpenError::BadUrl`]. It does not repeat the URL, which may contain a
    /// password.
    pub fn from_url(url: &str) -> Result<Self, PostgresOpenError> {
        let bad = |reason| PostgresOpenError::BadUrl { reason };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(bad("it does not begin with `postgres://`"));
        }
        let unreadable = "check it, and encode special characters in user and password as %XX";
        let config: Config = url.parse().map_err(|_| match url.contains("sslmode=verify-") {
            true => {
                bad("sslmode must be `require`, which checks certificate and name, or `disable`")
            }
            false => bad(unreadable),
        })?;
        // Text after an `@` may be the rest of a password.
        let odd = |host: &Host| matches!(host, Host::Tcp(name) if name.contains('@'));
        if config.get_hosts().iter().any(odd) {
            return Err(bad(unreadable));
        }
        servers(&config).map_err(bad)?;
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err(bad("a store needs write access: remove target_session_attrs=read-only"));
        }
        Ok(Self::new(config))
    }

    /// Takes a configuration of tokio-postgres. Keepalives, timeouts and the application's
    /// name are set if they are missing. Only servers that accept writes are used, unless
    /// the configuration requests another kind.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            schema: "keygate".to_owned(),
            connections: None,
            deadline: Duration::from_secs(1),
            prepared: true,
            partition_width: 7 * DAY,
        }
    }

    /// Sets the schema that contains the tables. The default is `keygate`. It is created if
    /// it does not exist.
    ///
    /// # Errors
    ///
    /// [`PostgresOpenError::BadSchema`] if the name is not 1 to 63 of `[a-z0-9_]`, or
    /// begins with a digit.
    pub fn schema(self, name: impl Into<String>) -> Result<Self, PostgresOpenError> {
        let schema = name.into();
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let begins = schema.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if !begins || schema.len() > 63 || !schema.bytes().all(fits) {
            return Err(PostgresOpenError::BadSchema { name: schema });
        }
        Ok(Self { schema, ..self })
    }

    /// Sets how many connections are for look-ups, at least 1. The default is 2: each
    /// carries many calls at a time, so few are enough. Without [prepared](Self::prepared)
    /// statements the default is 4, since each carries one call at a time.
    ///
    /// There are 9 more, so that calls of different kinds do not wait for each other: 4 for
    /// changes, 2 for audit records (one batch of requests and one of changes), and one
    /// each for last-used times, pages of the audit log, and purging. So a store has 11
    /// sessions at the server by default, even while rows or tables are locked. While the
    /// server does not answer at all, each connection may have one more session, which the
    /// server has not ended yet, and every 2 seconds a short one that checks whether it
    /// has. A cache's feed has another one.
    pub fn connections(self, connections: usize) -> Self {
        Self { connections: Some(connections.max(1)), ..self }
    }

    /// Sets how long a call may take, at most a day. The default is 1 second. It is also
    /// the time limit for connecting to one host if the URL gives no `connect_timeout`.
    ///
    /// The server enforces it as well. A statement waits for a lock for a quarter of that
    /// time (`lock_timeout`) and ends after three quarters (`statement_timeout`). A
    /// statement that changes a key compares its deadline with the server's clock once it
    /// has locked the row. So a change that failed because of its deadline never takes
    /// place later.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline: deadline.min(LONGEST), ..self }
    }

    /// Sets whether statements are prepared, once on each connection. The default is
    /// `true`.
    ///
    /// It must be `false` behind a pooler that assigns server sessions by transaction, such
    /// as PgBouncer with `pool_mode = transaction`. Otherwise the time limits of a session
    /// are passed on to its next client. In addition, without `max_prepared_statements`
    /// (since PgBouncer 1.21), a statement may be run in a session that does not have it,
    /// so that calls fail as unavailable. Worse, the session may have another process's
    /// statement of the same name, which is run instead.
    ///
    /// If it is `false`, a connection carries one call at a time, and a call whose caller
    /// gives up continues, until the deadline at most. This is because an older PgBouncer
    /// (1.18, but not 1.24) reassigns the session of a client that disconnects during
    /// several calls, and the next client receives their answers.
    ///
    /// Of the parameters at the start of a session, PgBouncer accepts those that the store
    /// sends (`application_name` and `client_encoding`), but not `options`: it accepts a
    /// URL with that only if it is listed in `ignore_startup_parameters`.
    pub fn prepared(self, prepared: bool) -> Self {
        Self { prepared, ..self }
    }

    /// Sets how much time one partition of the requests in the audit log holds, in whole hours
    /// from one hour to a year of 365 days. The default is a week.
    ///
    /// Partitions that are older than the instant of a purge are dropped as a whole. Choose
    /// about a thirtieth of the time for which you keep requests: a page of the log may look
    /// into every partition. Beyond 48 partitions, new ones are wider. Existing partitions are
    /// not changed.
    pub fn partition_width(self, width: Duration) -> Self {
        let hours = width.clamp(HOUR, 365 * DAY).as_secs() / HOUR.as_secs();
        Self { partition_width: Duration::from_secs(hours * HOUR.as_secs()), ..self }
    }

    pub(super) fn parts(self) -> Result<(Dialer, Target), PostgresOpenError> {
        let target = Target {
            servers: names(&self.config),
            user: self.config.get_user().unwrap_or("the system's user").to_owned(),
            database: self.config.get_dbname().unwrap_or("the user's own").to_owned(),
            schema: self.schema,
            connections: self.connections.unwrap_or(if self.prepared { 2 } else { 4 }),
            partition_width: self.partition_width,
        };
        if self.config.get_ssl_mode() == SslMode::Require && !cfg!(feature = "postgres-tls") {
            return Err(PostgresOpenError::NoTls { servers: target.servers });
        }
        let mut config = self.config;
        // TLS with a fallback to plain text protects against nothing, and what worked
        // without the feature keeps working with it.
        if config.get_ssl_mode() == SslMode::Prefer {
            config.ssl_mode(SslMode::Disable);
        }
        let reach = config.get_connect_timeout().copied().unwrap_or(self.deadline).min(LONGEST);
        if config.get_keepalives_idle() == Config::new().get_keepalives_idle() {
            config.keepalives_idle(Duration::from_secs(30));
        }
        if config.get_keepalives_interval().is_none() {
            config.keepalives_interval(Duration::from_secs(10));
        }
        if config.get_keepalives_retries().is_none() {
            config.keepalives_retries(3);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(self.deadline.saturating_mul(4));
        }
        if config.get_application_name().is_none() {
            config.application_name("keygate");
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let bad = |reason| PostgresOpenError::BadUrl { reason };
        let dialer = Dialer {
            servers: servers(&config).map_err(bad)?,
            balanced: config.get_load_balance_hosts() == LoadBalanceHosts::Random,
            texts: Arc::new(Texts::new(&target.schema)),
            prepared: self.prepared,
            reach,
            patience: Patience::of(self.deadline),
            last_failure: LastFailure::default(),
            #[cfg(feature = "postgres-tls")]
            tls: crate::store::postgres::tls::connector(&target.servers)?,
            #[cfg(not(feature = "postgres-tls"))]
            tls: tokio_postgres::NoTls,
        };
        Ok((dialer, target))
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("servers", &names(&self.config))
            .field("user", &self.config.get_user())
            .field("database", &self.config.get_dbname())
            .field("schema", &self.schema)
            .field("connections", &self.connections)
            .field("deadline", &self.deadline)
            .field("prepared", &self.prepared)
            .field("partition_width", &self.partition_width)
            .finish_non_exhaustive()
    }
}

fn names(config: &Config) -> String {
    let servers = servers(config).unwrap_or_default();
    servers.iter().map(Server::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_urls_are_refused_and_not_repeated() {
        for url in [
            "",
            "mysql://u:sesame@h/d",
            "host=h password=sesame",
            "postgres://u:sesame@h:port/d",
            "postgres://u:p@sesame@h/d",
            "postgres://u:sesame@h/d?no_such_option=1",
            "postgres://u:sesame@h/d?sslmode=sesame",
            "postgres:///d?password=sesame",
            "postgres://u:sesame@h/d?sslmode=verify-full",
            "postgres://u:sesame@h/d?target_session_attrs=read-only",
        ] {
            let error = PostgresOptions::from_url(url).unwrap_err();
            assert!(matches!(error, PostgresOpenError::BadUrl { .. }), "{url}");
            assert!(!format!("{error} {error:?}").contains("sesame"), "{url}");
        }
    }

    #[test]
    fn options_do_not_show_the_password() {
        let options = PostgresOptions::from_url("postgres://u:sesame@h/d").unwrap();
        assert!(!format!("{options:?}").contains("sesame"));
    }

    #[test]
    fn the_longest_duration_is_accepted() {
        let url = "postgres://u@h/d?connect_timeout=9223372036854775807";
        let options = PostgresOptions::from_url(url).unwrap().deadline(Duration::MAX);
        let (dialer, _) = options.parts().unwrap();
        assert_eq!((dialer.reach, dialer.patience.deadline), (LONGEST, LONGEST));
    }

    #[test]
    fn schema_names_are_checked() {
        let named = |name: &str| PostgresOptions::new(Config::new()).schema(name);
        for name in ["k", "_k", "keygate_2", &"k".repeat(63)] {
            assert!(named(name).is_ok(), "{name}");
        }
        for name in ["", "2k", "K", "k-k", "k\"", "k.k", "é", &"k".repeat(64)] {
            assert!(matches!(named(name), Err(PostgresOpenError::BadSchema { .. })), "{name}");
        }
    }
}
