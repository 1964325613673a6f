//! Audit records of requests and changes, and their delivery to a sink.

pub(crate) mod country;
pub(crate) mod delivery;
#[cfg(feature = "geoip")]
pub(crate) mod geoip;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod record;
pub(crate) mod sink;
pub(crate) mod sums;
pub(crate) mod writer;
