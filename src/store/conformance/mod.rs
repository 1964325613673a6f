//! The suite that every store and every audit log should pass: one public async
//! function a property, races included.
//!
//! [`check_store`] runs all properties of a [`KeyStore`], [`check_audit_log`]
//! those of an [`AuditSink`] that is an [`AuditLog`] as well, and [`check_export`]
//! those of a [`KeyExport`]. In a test of yours, under `#[tokio::test(flavor = "multi_thread", worker_threads = 4)]`:
//!
//! ```
//! use keygate::MemoryStore;
//! use keygate::conformance::check_store;
//!
//! # #[tokio::main(worker_threads = 4)]
//! # async fn main() {
//! check_store(|| async { MemoryStore::new() }).await.unwrap();
//! # }
//! ```
//!
//! Three things to know:
//!
//! - **The runtime** has to be tokio's multi-thread one, with timers and at least
//!   two workers: on one thread nothing races.
//! - **The store need not be empty**, and others may work on it meanwhile, this
//!   suite included: every property makes organisations, ids and digests of its
//!   own. It leaves them behind, so take a database made for tests. The audit
//!   suite purges records of 1971 and earlier.
//! - **The factory is called for every property.** It may make a new store each
//!   time, or connect to the same database. [`TwoHandles`] checks one database
//!   through two connections.
//!
//! To run one property, or all but one, see [`store_properties`],
//! [`audit_log_properties`] and [`export_properties`]; or call its function, which has the name that a
//! [`Violation`] is reported under.

use std::sync::Arc;

use crate::audit::log::AuditLog;
use crate::audit::sink::AuditSink;
use crate::store::contract::KeyStore;
use crate::store::transfer::KeyExport;

pub mod audit;
pub mod calls;
mod catalogue;
pub mod change_races;
pub mod creation_races;
pub mod delete;
mod expect;
pub mod export;
pub mod fields;
pub mod find;
mod fixtures;
mod fresh;
mod handles;
pub mod insert;
pub mod isolation;
pub mod limit;
mod property;
mod race;
pub mod read_races;
pub mod replace;
pub mod use_races;
pub mod uses;
mod violation;

pub use catalogue::{audit_log_properties, export_properties, store_properties};
pub use handles::{SinkAndLog, StoreAndExport, TwoHandles};
pub use property::Property;
pub use violation::{Report, Violation, Violations};

/// Checks all [`store_properties`], each on a store that the factory makes or
/// connects to.
///
/// # Errors
///
/// Every property that does not hold; or that the runtime cannot run the races.
pub async fn check_store<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn KeyStore> };
    property::check_all(store_properties(), factory).await
}

/// Checks all [`export_properties`], each on a store that the factory makes or
/// connects to. [`check_store`] is to be run as well.
///
/// # Errors
///
/// Every property that does not hold; or that the runtime cannot run the races.
pub async fn check_export<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore + KeyExport,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn StoreAndExport> };
    property::check_all(export_properties(), factory).await
}

/// Checks all [`audit_log_properties`], each on a log that the factory makes or
/// connects to.
///
/// # Errors
///
/// Every property that does not hold; or that the runtime cannot run the races.
pub async fn check_audit_log<L, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    L: AuditSink + AuditLog,
    F: Future<Output = L>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn SinkAndLog> };
    property::check_all(audit_log_properties(), factory).await
}
