//! What a store is connected to.

use std::time::Duration;

/// What is connected to, in the words of errors.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) servers: String,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) schema: String,
    pub(super) connections: usize,
    pub(super) deadline: Duration,
}
