//! What the tests on PostgreSQL servers of their own share.

pub(crate) mod certificates;
pub(crate) mod changes;
pub(crate) mod cluster;
pub(crate) mod pgbouncer;
pub(crate) mod process;
