//! What the tests on PostgreSQL servers of their own share.

pub(crate) mod certificates;
pub(crate) mod changes;
pub(crate) mod cluster;
pub(crate) mod pgbouncer;
#[path = "../support/port.rs"]
pub(crate) mod port;
pub(crate) mod process;
#[path = "../support/seeded.rs"]
pub(crate) mod seeded;
