//! A change that has begun is completed even if its caller hangs up, and a repeated creation
//! makes no second key.
#![cfg(feature = "admin")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

#[path = "changes_support/mod.rs"]
mod changes_support;
mod support;

#[path = "changes_support/hang_ups.rs"]
mod hang_ups;
#[path = "changes_support/idempotency.rs"]
mod idempotency;
