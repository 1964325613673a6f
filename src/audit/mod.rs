//! Audit records of requests and changes, and their delivery to a sink.

pub(crate) mod changed;
pub(crate) mod copies;
pub(crate) mod country;
pub(crate) mod delivery;
pub(crate) mod filter;
#[cfg(feature = "geoip")]
pub(crate) mod geoip;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod record;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod sink;
pub(crate) mod sums;
pub(crate) mod usage;
pub(crate) mod writer;

pub use crate::audit::changed::{ChangedField, ChangedFields, FieldValue};
pub use crate::audit::country::{CountryCode, CountryLookup};
pub use crate::audit::delivery::{AuditStats, WhenFull};
pub use crate::audit::filter::{AuditFilter, OutcomeFilter, StatusFilter};
#[cfg(feature = "geoip")]
#[cfg_attr(docsrs, doc(cfg(feature = "geoip")))]
pub use crate::audit::geoip::MaxMindCountries;
pub use crate::audit::log::{AuditCursor, AuditPage, AuditQuery, AuditScope, Position};
pub use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
pub use crate::audit::usage::{Usage, UsageBucket, UsageCounts, UsageQuery, UsageUnit};
pub use crate::record::SecretUsed;
