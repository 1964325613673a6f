//! The management API: a real router on a store and an audit log in memory.
#![cfg(feature = "admin")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod admin_support;

#[path = "admin_support/audit.rs"]
mod audit;
#[path = "admin_support/bodies.rs"]
mod bodies;
#[path = "admin_support/environments.rs"]
mod environments;
#[path = "admin_support/failures.rs"]
mod failures;
#[path = "admin_support/guard.rs"]
mod guard;
#[path = "admin_support/idempotency.rs"]
mod idempotency;
#[path = "admin_support/isolation.rs"]
mod isolation;
#[path = "admin_support/keys.rs"]
mod keys;
#[path = "admin_support/openapi.rs"]
mod openapi;
#[path = "admin_support/overlap.rs"]
mod overlap;
#[path = "admin_support/payloads.rs"]
mod payloads;
#[path = "admin_support/preconditions.rs"]
mod preconditions;
#[path = "admin_support/queries.rs"]
mod queries;
#[path = "admin_support/schema.rs"]
mod schema;
#[path = "admin_support/scopes.rs"]
mod scopes;
mod support;
