//! Tests that every implementation of a storage trait should pass, races included.
//!
//! Each function checks one trait, or two that belong together:
//!
//! | function | what it checks |
//! |---|---|
//! | [`check_store`] | a [`KeyStore`] |
//! | [`check_reopened_store`] | a [`KeyStore`] that keeps its keys on disk or on a server: it reads back what it wrote |
//! | [`check_export`] | a [`KeyExport`] |
//! | [`check_import`] | a [`KeyImport`] |
//! | [`check_search`] | a [`KeySearch`] |
//! | [`check_audit_log`] | an [`AuditSink`] that is also an [`AuditLog`] |
//! | [`check_reopened_audit_log`] | such a log on disk or on a server: it reads back what it wrote |
//!
//! Call them in a test with a function that opens your store:
//!
//! ```
//! use keygate::MemoryStore;
//! use keygate::conformance::check_store;
//!
//! # /*
//! #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
//! async fn my_store_conforms() {
//! # */
//! # #[tokio::main(worker_threads = 4)]
//! # async fn main() {
//!     // MemoryStore stands for your store.
//!     check_store(|| async { MemoryStore::new() }).await.unwrap();
//! }
//! ```
//!
//! A test that fails lists each property that does not hold, with what was expected and
//! what was found. A [`Report`] that is printed lists the properties that hold.
//!
//! - **The runtime** must be tokio's multi-thread runtime with timers and at least two
//!   workers: races do not occur on one thread.
//! - **The factory is called for every property**, and twice or more by the functions for
//!   reopened stores. It may create a new store each time or open the same one; only
//!   reopened stores must be the same one. It panics where the store cannot be opened.
//! - **The store need not be empty**, and others may use it at the same time: every
//!   property creates organisations, ids and digests of its own. It does not delete all
//!   of its keys, so use a database made for tests. The checks of an audit log purge
//!   records of 1971 and earlier.
//! - **Several processes**: [`TwoHandles`] checks one database through two connections.

use std::sync::Arc;

use crate::audit::log::AuditLog;
use crate::audit::sink::AuditSink;
use crate::store::key_store::KeyStore;
use crate::store::search::KeySearch;
use crate::store::transfer::{KeyExport, KeyImport};

mod audit;
mod calls;
mod catalogue;
mod change_races;
mod creation_races;
mod delete;
mod expect;
mod export;
mod fields;
mod find;
mod fixtures;
mod fresh;
mod handles;
mod import;
mod insert;
mod isolation;
mod limit;
mod property;
mod race;
mod read_races;
mod reopened;
mod replace;
mod search;
mod use_races;
mod uses;
mod violation;

use handles::{SinkAndLog, StoreAndExport, StoreAndImport, StoreAndSearch};
use property::check_all;

pub use handles::TwoHandles;
#[doc(hidden)]
pub use property::only;
pub use violation::{Report, Violation, Violations};

/// Checks a [`KeyStore`].
///
/// # Errors
///
/// The properties that do not hold, or a runtime on which races cannot occur.
pub async fn check_store<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn KeyStore> };
    check_all(catalogue::STORE, factory).await
}

/// Checks that a [`KeyStore`] reads back what it wrote: each property opens the store,
/// writes, drops the store, opens it again and reads.
///
/// The factory must open the same store each time. A store that keeps its keys in memory
/// only does not pass. Run [`check_store`] as well.
///
/// ```
#[cfg_attr(feature = "sqlite", doc = "use keygate::SqliteStore;")]
#[cfg_attr(not(feature = "sqlite"), doc = "# use keygate::MemoryStore;")]
/// use keygate::conformance::check_reopened_store;
///
/// # #[tokio::main(worker_threads = 4)]
/// # async fn main() {
#[cfg_attr(
    feature = "sqlite",
    doc = r#"
let folder = tempfile::tempdir().unwrap();
let path = folder.path().join("keys.db");
// SqliteStore stands for your store.
check_reopened_store(|| async { SqliteStore::open(&path).unwrap() }).await.unwrap();
"#
)]
#[cfg_attr(
    not(feature = "sqlite"),
    doc = r#"
// MemoryStore forgets its keys.
check_reopened_store(|| async { MemoryStore::new() }).await.unwrap_err();
"#
)]
/// # }
/// ```
///
/// # Errors
///
/// The properties that do not hold, or a runtime on which races cannot occur.
pub async fn check_reopened_store<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn KeyStore> };
    check_all(catalogue::REOPENED_STORE, factory).await
}

/// Checks the [`KeyExport`] of a store. Run [`check_store`] as well.
///
/// # Errors
///
/// The properties that do not hold, or a runtime on which races cannot occur.
pub async fn check_export<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore + KeyExport,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn StoreAndExport> };
    check_all(catalogue::EXPORT, factory).await
}

/// Checks the [`KeyImport`] of a store. Run [`check_store`] as well.
///
/// # Errors
///
/// The properties that do not hold, or a runtime on which races cannot occur.
pub async fn check_import<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore + KeyImport,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn StoreAndImport> };
    check_all(catalogue::IMPORT, factory).await
}

/// Checks the [`KeySearch`] of a store. Run [`check_store`] as well.
///
/// # Errors
///
/// The properties that do not hold, or a runtime on which races cannot occur.
pub async fn check_search<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore + KeySearch,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn StoreAndSearch> };
    check_all(catalogue::SEARCH, factory).await
}

/// Checks an [`AuditSink`] that is also an [`AuditLog`].
///
/// # Errors
///
/// The properties that do not hold, or a runtime on which races cannot occur.
pub async fn check_audit_log<L, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    L: AuditSink + AuditLog,
    F: Future<Output = L>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn SinkAndLog> };
    check_all(audit::ALL, factory).await
}

/// Checks that an audit log reads back what it wrote, as [`check_reopened_store`] does
/// for a store. Run [`check_audit_log`] as well.
///
/// # Errors
///
/// The properties that do not hold, or a runtime on which races cannot occur.
pub async fn check_reopened_audit_log<L, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    L: AuditSink + AuditLog,
    F: Future<Output = L>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn SinkAndLog> };
    check_all(audit::REOPENED, factory).await
}
