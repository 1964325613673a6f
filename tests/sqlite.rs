//! `SqliteStore` on real files.
#![cfg(all(feature = "sqlite", feature = "conformance"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod sqlite_support;
mod support;

#[path = "sqlite_support/damage.rs"]
mod damage;
#[path = "sqlite_support/full.rs"]
mod full;
#[path = "sqlite_support/large.rs"]
mod large;
#[path = "sqlite_support/locked.rs"]
mod locked;
#[cfg(unix)]
#[path = "sqlite_support/moved.rs"]
mod moved;
#[cfg(unix)]
#[path = "sqlite_support/opening.rs"]
mod opening;
#[cfg(unix)]
#[path = "sqlite_support/probe.rs"]
mod probe;
#[path = "sqlite_support/races.rs"]
mod races;
#[path = "sqlite_support/restore.rs"]
mod restore;
#[path = "sqlite_support/space.rs"]
mod space;
#[cfg(target_os = "linux")]
#[path = "sqlite_support/sync.rs"]
mod sync;

use keygate::SqliteStore;
use keygate::conformance::{self, TwoHandles};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("keys.db")).unwrap();
    conformance::check_store(|| async { store.clone() }).await.unwrap();
    conformance::check_export(|| async { store.clone() }).await.unwrap();
    conformance::check_import(|| async { store.clone() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reopened_file_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let open = || async { SqliteStore::open(&path).unwrap() };
    conformance::check_reopened_store(open).await.unwrap();
    conformance::check_reopened_audit_log(open).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_handles_on_one_file_conform_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let (a, b) = (SqliteStore::open(&path).unwrap(), SqliteStore::open(&path).unwrap());
    conformance::check_store(|| async { TwoHandles::new(a.clone(), b.clone()) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_audit_log_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("keys.db")).unwrap();
    conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
}
