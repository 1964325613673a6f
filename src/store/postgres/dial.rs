//! Opens a connection.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Socket};

use crate::store::postgres::connection::Connection;
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::server::{Server, shuffle};
use crate::store::postgres::session::{Patience, ServerClock};
use crate::store::postgres::statements::{Texts, micros};
use crate::text::with_causes;
use crate::throttle::Throttle;

#[cfg(feature = "postgres-tls")]
type Tls = tokio_postgres_rustls::MakeRustlsConnect;
#[cfg(not(feature = "postgres-tls"))]
type Tls = tokio_postgres::NoTls;

/// Moves a connection's bytes while it is polled.
pub(super) type Wire = tokio_postgres::Connection<Socket, <Tls as MakeTlsConnect<Socket>>::Stream>;

/// Everything needed to open a connection.
pub(super) struct Dialer {
    pub(super) servers: Vec<Server>,
    /// Whether each connection tries the servers in a different order.
    pub(super) balanced: bool,
    pub(super) texts: Arc<Texts>,
    pub(super) prepared: bool,
    /// How long connecting to one server may take, including authentication.
    pub(super) reach: Duration,
    pub(super) tls: Tls,
    pub(super) patience: Patience,
    pub(super) last_failure: LastFailure,
}

/// How often an earlier connection is checked.
const CHECK: Duration = Duration::from_secs(2);

/// Why the last attempt to connect failed.
#[derive(Debug, Default)]
pub(super) struct LastFailure {
    text: Mutex<Option<String>>,
    said: Throttle,
}

impl LastFailure {
    pub(super) fn set(&self, fault: &DbError) {
        let text = with_causes(fault);
        if let Some(left_out) = self.said.pass() {
            tracing::warn!(reason = text, left_out, "keygate: cannot connect to PostgreSQL");
        }
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    pub(super) fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner).clone();
        text.unwrap_or_else(|| "still connecting".to_owned())
    }
}

/// Reads the server's clock and the number of the server process.
const BEGIN: &str = concat!("SELECT ", micros!(), ", pg_catalog.pg_backend_pid()");

impl Dialer {
    /// A connection for statements, and the task that ends with it. The server ends a
    /// statement before its caller gives up.
    pub(super) async fn dial(&self) -> Result<(Connection, JoinHandle<()>)> {
        self.connection(self.prepared).await
    }

    /// A connection for statements that may take long.
    pub(super) async fn dial_patiently(&self) -> Result<(Connection, JoinHandle<()>)> {
        self.connection(false).await
    }

    /// The session is configured only if it is not shared with other clients: a pooler
    /// would pass the settings on to the next client.
    async fn connection(&self, settings: bool) -> Result<(Connection, JoinHandle<()>)> {
        let (client, wire) = self.dial_bare().await?;
        let driver = tokio::spawn(async move {
            // Reports the end of the connection to the calls in progress.
            let _ = wire.await;
        });
        let begun = timeout(self.reach, self.begin(&client, settings)).await;
        match begun.unwrap_or(Err(DbError::Late(self.reach))) {
            Ok(begun) => {
                let texts = Arc::clone(&self.texts);
                Ok((Connection::new(client, &driver, texts, self.prepared, begun), driver))
            }
            Err(fault) => {
                driver.abort();
                Err(fault)
            }
        }
    }

    async fn begin(&self, client: &Client, settings: bool) -> Result<(ServerClock, i32)> {
        if settings {
            let [needed, known_to_some] = self.patience.settings();
            client.batch_execute(&needed).await?;
            // Not every system can detect that a client is gone.
            let _ = client.batch_execute(&known_to_some).await;
        }
        let rows = client.query_typed(BEGIN, &[]).await?;
        let unreadable = DbError::Unreadable { row: "answer", column: "now" };
        let row = rows.first().ok_or(unreadable)?;
        Ok((ServerClock::new(row.try_get(0)?), row.try_get(1)?))
    }

    /// Whether a process of the server is working on a statement, as a new connection sees
    /// it.
    async fn is_at_work(&self, process: i32) -> Result<bool> {
        let (connection, _) = self.dial_patiently().await?;
        let seen = timeout(self.reach, connection.sees_at_work(process)).await;
        seen.unwrap_or(Err(DbError::Late(self.reach)))
    }

    /// Waits until the server no longer works on the call of an earlier connection, and
    /// ends that connection. Its own end alone would not do: the network may have lost the
    /// call or its answer.
    pub(super) async fn outlast(&self, process: i32, mut earlier: JoinHandle<()>) {
        while timeout(CHECK, &mut earlier).await.is_err() {
            if matches!(self.is_at_work(process).await, Ok(false)) {
                return earlier.abort();
            }
        }
    }

    /// The client and the wire of a connection to the first usable server.
    pub(super) async fn dial_bare(&self) -> Result<(Client, Wire)> {
        let mut order: Vec<&Server> = self.servers.iter().collect();
        if self.balanced {
            shuffle(&mut order);
        }
        // Failed servers come last. Otherwise, after a failover, each call that connects
        // would spend its deadline on the lost server.
        order.sort_by_cached_key(|server| server.has_failed());
        let mut failed = Failed::default();
        for server in order {
            let attempt = server.attempt();
            let mut made = self.reach(server).await;
            if made.as_ref().is_err_and(DbError::is_an_ended_session) {
                // The server may work all the same, and the next one be an old primary.
                made = self.reach(server).await;
            }
            match made {
                Ok(made) => {
                    attempt.succeeded();
                    return Ok(made);
                }
                Err(fault) => failed.add(server.name(), fault),
            }
        }
        Err(failed.into_fault())
    }

    /// The addresses of the server share the remaining time.
    async fn reach(&self, server: &Server) -> Result<(Client, Wire)> {
        let until = Instant::now() + self.reach;
        let late = |_| DbError::NoAddress(io::ErrorKind::TimedOut.into());
        let addresses = timeout_at(until, server.addresses()).await.map_err(late)??;
        let mut failed = Failed::default();
        let mut rest = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        for config in addresses {
            let share = until.saturating_duration_since(Instant::now()) / rest.max(1);
            rest = rest.saturating_sub(1);
            match timeout(share, self.connect(&config)).await.unwrap_or(Err(DbError::Late(share))) {
                Ok(made) => return Ok(made),
                Err(fault) => failed.add("", fault),
            }
        }
        Err(failed.telling.unwrap_or(DbError::Ended))
    }

    async fn connect(&self, config: &Config) -> Result<(Client, Wire)> {
        Ok(config.connect(Clone::clone(&self.tls)).await?)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("prepared", &self.prepared).finish_non_exhaustive()
    }
}

/// Keeps the most informative fault, and the servers that had one of that kind.
#[derive(Default)]
struct Failed<'a> {
    names: Vec<&'a str>,
    telling: Option<DbError>,
}

impl<'a> Failed<'a> {
    fn add(&mut self, name: &'a str, fault: DbError) {
        let known = self.telling.as_ref().map(DbError::refusal);
        if known.is_none_or(|known| known < fault.refusal()) {
            (self.names, self.telling) = (vec![name], Some(fault));
        } else if known == Some(fault.refusal()) {
            self.names.push(name);
        }
    }

    fn into_fault(mut self) -> DbError {
        self.names.sort_unstable();
        let cause = Box::new(self.telling.unwrap_or(DbError::Ended));
        DbError::Unconnected { servers: self.names.join(", "), cause }
    }
}
