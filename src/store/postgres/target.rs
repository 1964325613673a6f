//! What a store is connected to, for error messages.

use std::time::Duration;

/// The servers, the user and the database, for error messages.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) servers: String,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) schema: String,
    pub(super) connections: usize,
    pub(super) deadline: Duration,
}
