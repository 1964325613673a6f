//! `PostgresChanges` on a real server, and caches that listen to it:
//! `cargo test --all-features --test postgres_feed -- --ignored`.
//!
//! Some of the tests need what `tests/postgres_cluster.rs` needs.
#![cfg(all(target_os = "linux", feature = "postgres", feature = "cache"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

#[allow(dead_code, reason = "other tests use the rest")]
mod cluster_support;
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_support;

#[path = "postgres_support/caches.rs"]
mod caches;
#[path = "postgres_support/feed.rs"]
mod feed;
#[path = "postgres_support/floods.rs"]
mod floods;
#[path = "postgres_support/lost.rs"]
mod lost;
#[path = "postgres_support/proxy.rs"]
mod proxy;
#[path = "postgres_support/recorder.rs"]
mod recorder;
#[path = "postgres_support/restoring.rs"]
mod restoring;
#[path = "postgres_support/upgrade.rs"]
mod upgrade;
