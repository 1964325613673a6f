//! Audit records of requests and changes, and their delivery to a sink.

pub(crate) mod country;
pub(crate) mod delivery;
#[cfg(feature = "geoip")]
pub(crate) mod geoip;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod record;
#[cfg(test)]
mod samples;
pub(crate) mod sink;
pub(crate) mod sums;
pub(crate) mod writer;

pub use crate::audit::country::{CountryCode, CountryLookup};
pub use crate::audit::delivery::{AuditStats, WhenFull};
#[cfg(feature = "geoip")]
#[cfg_attr(docsrs, doc(cfg(feature = "geoip")))]
pub use crate::audit::geoip::MaxMindCountries;
pub use crate::audit::log::{AuditCursor, AuditPage, AuditQuery, AuditScope, Position};
pub use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
pub use crate::record::SecretUsed;
