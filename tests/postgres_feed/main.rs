//! `PostgresChanges` on a real server, and caches that listen to it:
//! `cargo test --all-features --test postgres_feed -- --ignored`.
//!
//! Some of the tests need what `tests/postgres_cluster` needs.
#![cfg(all(target_os = "linux", feature = "postgres", feature = "cache"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]
#![allow(dead_code, reason = "other tests use the rest of what is shared")]

mod caches;
#[path = "../cluster_support/mod.rs"]
mod cluster_support;
mod feed;
mod floods;
mod log;
mod lost;
#[path = "../postgres_support/mod.rs"]
mod postgres_support;
#[path = "../postgres_support/proxy.rs"]
mod proxy;
mod recorder;
mod restoring;
#[path = "../postgres_support/sessions.rs"]
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;
