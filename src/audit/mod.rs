//! What was done with keys: records, where they go, and how they get there.

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
