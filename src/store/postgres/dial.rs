//! Making one connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Config;

use crate::store::postgres::Outcome;
use crate::store::postgres::connection::Connection;
use crate::store::postgres::error::Fault;
use crate::store::postgres::statements::Texts;

/// Everything that a new connection takes.
pub(super) struct Dialer {
    pub(super) config: Config,
    pub(super) texts: Arc<Texts>,
    pub(super) prepared: bool,
    /// How long it may take until the server has let us in.
    pub(super) patience: Duration,
    #[cfg(feature = "postgres-tls")]
    pub(super) tls: tokio_postgres_rustls::MakeRustlsConnect,
}

impl Dialer {
    /// The connection, and the task that ends with it.
    pub(super) async fn dial(&self) -> Outcome<(Connection, JoinHandle<()>)> {
        timeout(self.patience, self.connect()).await.unwrap_or(Err(Fault::Late(self.patience)))
    }

    async fn connect(&self) -> Outcome<(Connection, JoinHandle<()>)> {
        #[cfg(feature = "postgres-tls")]
        let tls = self.tls.clone();
        #[cfg(not(feature = "postgres-tls"))]
        let tls = tokio_postgres::NoTls;
        let (client, driver) = self.config.connect(tls).await?;
        let driver = tokio::spawn(async move {
            // What it ends with, the calls under way are told.
            let _ = driver.await;
        });
        Ok((Connection::new(client, &driver, Arc::clone(&self.texts), self.prepared), driver))
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("prepared", &self.prepared).finish_non_exhaustive()
    }
}
