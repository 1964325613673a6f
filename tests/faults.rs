//! Faults of the network between keygate and PostgreSQL, caused by a proxy during operations.
#![cfg(feature = "postgres")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "histories_support/checker.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod checker;
#[path = "histories_support/event.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod event;
#[path = "faults_support/operations.rs"]
mod operations;
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_support;
#[path = "postgres_support/proxy.rs"]
mod proxy;
#[path = "faults_support/sink.rs"]
mod sink;
#[path = "faults_support/storm.rs"]
mod storm;
#[path = "faults_support/world.rs"]
mod world;
