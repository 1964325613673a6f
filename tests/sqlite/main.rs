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

mod damage;
mod files;
mod full;
mod large;
mod locked;
#[cfg(unix)]
mod moved;
#[cfg(unix)]
mod opening;
#[cfg(unix)]
mod probe;
mod races;
mod recent;
#[cfg(all(unix, feature = "serde"))]
mod remote;
mod restore;
mod space;
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod sync;
mod upgrade;

use keygate::SqliteStore;
use keygate::conformance::{self, TwoHandles};

use crate::files::new_store;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms() {
    let (_folder, _path, store) = new_store();
    conformance::check_store(|| async { store.clone() }).await.unwrap();
    conformance::check_export(|| async { store.clone() }).await.unwrap();
    conformance::check_import(|| async { store.clone() }).await.unwrap();
    conformance::check_search(|| async { store.clone() }).await.unwrap();
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
    let (_folder, path, a) = new_store();
    let b = SqliteStore::open(&path).unwrap();
    conformance::check_store(|| async { TwoHandles::new(a.clone(), b.clone()) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_audit_log_conforms() {
    let (_folder, _path, store) = new_store();
    conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
}
