//! Filters of the audit log.

use std::fmt;
use std::str::FromStr;

use crate::audit::record::{AuditEvent, AuditRecord, Outcome, RequestEvent};
use crate::names::{UnknownName, names};
use crate::network::Network;
use crate::runtime::clock::Timestamp;

/// Which records of the audit log to read: those that meet all conditions. The default has
/// none.
///
/// Changes are filtered by time only.
///
/// ```
/// use keygate::audit::{AuditFilter, OutcomeFilter};
///
/// let mut filter = AuditFilter::default();
/// filter.outcome = Some(OutcomeFilter::Refused);
/// filter.status = Some("4xx".parse()?);
/// filter.ip = Some("203.0.113.0/24".parse()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditFilter {
    /// Only requests with this outcome.
    pub outcome: Option<OutcomeFilter>,
    /// Only requests that were answered with this status.
    pub status: Option<StatusFilter>,
    /// Only requests with this method. Methods are case-sensitive (RFC 9110).
    pub method: Option<String>,
    /// Only requests from these addresses.
    pub ip: Option<Network>,
    /// Only records of this instant and later.
    pub since: Option<Timestamp>,
    /// Only records from before this instant.
    pub until: Option<Timestamp>,
}

impl AuditFilter {
    /// Whether the record meets all conditions.
    pub fn matches(&self, record: &AuditRecord) -> bool {
        let in_time = self.since.is_none_or(|since| since <= record.at)
            && self.until.is_none_or(|until| record.at < until);
        in_time
            && match &record.event {
                AuditEvent::Request(request) => self.takes(request),
                AuditEvent::Change(_) => true,
            }
    }

    fn takes(&self, request: &RequestEvent) -> bool {
        self.outcome.is_none_or(|outcome| outcome.takes(request.outcome))
            && self.status.is_none_or(|status| request.status.is_some_and(|s| status.takes(s)))
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.ip.is_none_or(|network| request.ip.is_some_and(|ip| network.contains(ip)))
    }

    /// Whether there is a condition that only the record itself can answer.
    pub(crate) fn is_selective(&self) -> bool {
        let Self { outcome, status, method, ip, since: _, until: _ } = self;
        outcome.is_some() || status.is_some() || method.is_some() || ip.is_some()
    }
}

names! {
    /// The outcomes that a filter tells apart. There is no fourth.
    pub enum OutcomeFilter: "allowed, refused or aborted" {
        /// The key was valid and the service answered.
        Allowed = "allowed",
        /// The request was refused because of its key, for whatever reason.
        Refused = "refused",
        /// The key was valid, but there was no response.
        Aborted = "aborted",
    }
}

impl OutcomeFilter {
    fn takes(self, outcome: Outcome) -> bool {
        self == match outcome {
            Outcome::Allowed => Self::Allowed,
            Outcome::Aborted => Self::Aborted,
            _ => Self::Refused,
        }
    }
}

/// A status, such as `404`, or a class of them, such as `4xx` (RFC 9110 § 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFilter {
    first: u16,
    last: u16,
}

impl StatusFilter {
    fn takes(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromStr for StatusFilter {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let error = UnknownName::new("a status such as 404, or a class from 1xx to 5xx");
        let of_class = |class: u16| Self { first: class * 100, last: class * 100 + 99 };
        match text.as_bytes() {
            [class @ b'1'..=b'5', b'x', b'x'] => Ok(of_class(u16::from(class - b'0'))),
            [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] => {
                let status = text.parse().map_err(|_| error)?;
                Ok(Self { first: status, last: status })
            }
            _ => Err(error),
        }
    }
}

/// Writes the text that [`str::parse`] reads.
impl fmt::Display for StatusFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}xx", self.first / 100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_is_one_or_a_class() {
        let client: StatusFilter = "4xx".parse().unwrap();
        assert!([400, 499].iter().all(|status| client.takes(*status)));
        assert!([399, 500].iter().all(|status| !client.takes(*status)));
        let missing: StatusFilter = "404".parse().unwrap();
        assert!(missing.takes(404) && !missing.takes(403) && !missing.takes(405));
    }

    #[test]
    fn every_outcome_is_allowed_aborted_or_refused() {
        for outcome in Outcome::ALL {
            let taken = OutcomeFilter::ALL.iter().filter(|filter| filter.takes(*outcome));
            assert_eq!(taken.count(), 1, "{outcome}");
        }
        assert!(OutcomeFilter::Refused.takes(Outcome::Unknown));
    }

    proptest! {
        #[test]
        fn a_status_filter_has_one_text(text in "[0-9]{3}|[0-9]xx|[1-5x]{3}|\\PC{0,4}") {
            if let Ok(filter) = text.parse::<StatusFilter>() {
                prop_assert_eq!(filter.to_string(), text);
            }
        }
    }
}
