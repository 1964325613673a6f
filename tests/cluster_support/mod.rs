//! Shared by the tests that run their own PostgreSQL servers.

pub(crate) mod certificates;
#[path = "../support/changes.rs"]
pub(crate) mod changes;
pub(crate) mod cluster;
pub(crate) mod pgbouncer;
#[path = "../support/port.rs"]
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod worker;
