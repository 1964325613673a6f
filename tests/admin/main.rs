//! The management API: a real router on a store and an audit log in memory.
#![cfg(feature = "admin")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod audit;
mod bodies;
mod changes;
mod environments;
mod export;
mod failures;
mod guard;
mod idempotency;
mod isolation;
mod keys;
mod kit;
mod openapi;
mod overlap;
mod payloads;
mod preconditions;
mod queries;
mod schema;
mod scopes;
#[path = "../support/mod.rs"]
mod support;
