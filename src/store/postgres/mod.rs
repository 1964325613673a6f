//! Keys and audit records in PostgreSQL, shared by any number of processes.

mod alone;
mod audit;
#[cfg(feature = "cache")]
mod changes;
mod columns;
mod connection;
mod dial;
mod encoded;
mod error;
mod gate;
mod keys;
mod open;
mod options;
mod partitioning;
mod partitions;
mod pool;
mod recording;
mod schema;
mod server;
mod session;
mod statements;
mod store;
#[cfg(feature = "postgres-tls")]
mod tls;

#[cfg(feature = "cache")]
pub use crate::store::postgres::changes::PostgresChanges;
pub use crate::store::postgres::open::PostgresOpenError;
pub use crate::store::postgres::options::PostgresOptions;
pub use crate::store::postgres::store::PostgresStore;
