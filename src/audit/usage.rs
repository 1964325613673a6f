//! Usage: counts of the requests made with a key, hour by hour.

use std::time::Duration;

use crate::audit::record::{AuditEvent, AuditRecord, Outcome, RequestEvent};
use crate::key::id::KeyId;
use crate::names::names;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;

pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How much longer counts are kept than records.
const KEPT: Duration = Duration::from_secs(366 * DAY.as_secs());

/// How many requests were made with a key, by how they ended. Each request is in one count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageCounts {
    /// Let in, and answered with a status below 400.
    pub allowed: u64,
    /// Let in, and answered with a status from 400 to 499.
    pub client_errors: u64,
    /// Let in, and answered with a status of 500 or more.
    pub server_errors: u64,
    /// Let in, and not answered.
    pub aborted: u64,
    /// Refused because of the key, for whatever reason.
    pub refused: u64,
}

impl UsageCounts {
    /// What a record adds: as many requests as it stands for. `None` for a change.
    pub fn of(record: &AuditRecord) -> Option<Self> {
        match &record.event {
            AuditEvent::Request(request) => Some(Self::of_request(request)),
            AuditEvent::Change(_) => None,
        }
    }

    pub(crate) fn of_request(request: &RequestEvent) -> Self {
        let mut counts = Self::default();
        let count = match (request.outcome, request.status) {
            (Outcome::Allowed, Some(400..=499)) => &mut counts.client_errors,
            (Outcome::Allowed, Some(500..)) => &mut counts.server_errors,
            (Outcome::Allowed, _) => &mut counts.allowed,
            (Outcome::Aborted, _) => &mut counts.aborted,
            _ => &mut counts.refused,
        };
        *count = request.count.into();
        counts
    }

    /// Requests that were let in, and were answered with a status of 400 or more or not at all.
    pub fn errors(&self) -> u64 {
        self.client_errors + self.server_errors + self.aborted
    }

    /// The first instant whose counts are kept where records from before this one are purged:
    /// a year earlier, since a chart of a year is short and a log of a year is not.
    pub(crate) fn kept_from(purged_before: Timestamp) -> Timestamp {
        UsageBucket::hour_of(purged_before.saturating_sub(KEPT))
    }

    /// Adds the counts of other requests.
    pub fn add(&mut self, other: Self) {
        let Self { allowed, client_errors, server_errors, aborted, refused } = other;
        self.allowed += allowed;
        self.client_errors += client_errors;
        self.server_errors += server_errors;
        self.aborted += aborted;
        self.refused += refused;
    }
}

/// The counts of an hour or a day.
///
/// No fields will be added to this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageBucket {
    /// When it begins, in UTC.
    pub start: Timestamp,
    /// The requests that were verified in it.
    pub counts: UsageCounts,
}

impl UsageBucket {
    /// The beginning of the hour of this instant.
    pub fn hour_of(at: Timestamp) -> Timestamp {
        UsageUnit::Hour.start_of(at)
    }
}

names! {
    /// How long a bucket is. There is no third unit.
    pub enum UsageUnit: "hour or day" {
        /// 60 minutes.
        Hour = "hour",
        /// 24 hours, in UTC.
        Day = "day",
    }
}

impl UsageUnit {
    const fn length(self) -> Duration {
        match self {
            Self::Hour => HOUR,
            Self::Day => DAY,
        }
    }

    /// The beginning of the hour or day of this instant.
    fn start_of(self, at: Timestamp) -> Timestamp {
        let micros = at.unix_micros();
        let length = i64::try_from(self.length().as_micros()).unwrap_or(i64::MAX);
        // Cannot fail: the earliest instant begins a day.
        Timestamp::from_unix_micros(micros - micros.rem_euclid(length)).unwrap_or(at)
    }
}

/// How often a key was used in a number of days: a chart's data.
///
/// No fields will be added to this type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The length of the buckets.
    pub unit: UsageUnit,
    /// All buckets, also those without requests, oldest first. The last one is in progress.
    pub buckets: Vec<UsageBucket>,
}

impl Usage {
    /// The longest time that can be asked for.
    pub const MAX_DAYS: u32 = 366;

    /// Buckets without requests for these days up to now: hours for up to two days,
    /// otherwise days.
    pub(crate) fn empty(days: u32, now: Timestamp) -> Self {
        let days = days.clamp(1, Self::MAX_DAYS);
        let (unit, count) =
            if days <= 2 { (UsageUnit::Hour, days * 24) } else { (UsageUnit::Day, days) };
        let last = unit.start_of(now);
        let bucket = |before: u32| UsageBucket {
            start: last.saturating_sub(unit.length() * before),
            counts: UsageCounts::default(),
        };
        Self { unit, buckets: (0..count).rev().map(bucket).collect() }
    }

    /// The time of the buckets: from the first instant to the one after the last.
    pub(crate) fn time(&self) -> (Timestamp, Timestamp) {
        let start = |bucket: Option<&UsageBucket>| bucket.map_or(Timestamp::MIN, |b| b.start);
        let end = start(self.buckets.last()).saturating_add(self.unit.length());
        (start(self.buckets.first()), end)
    }

    /// Adds the counts of hours within the time of the buckets.
    pub(crate) fn fill(&mut self, hours: &[UsageBucket]) {
        for hour in hours {
            let later = self.buckets.partition_point(|bucket| bucket.start <= hour.start);
            if let Some(bucket) = later.checked_sub(1).and_then(|at| self.buckets.get_mut(at)) {
                bucket.counts.add(hour.counts);
            }
        }
    }
}

/// Whose usage to read, and of which hours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageQuery {
    /// The organisation. The usage of another organisation's key is empty.
    pub org: OrgId,
    /// The key.
    pub key: KeyId,
    /// Only hours that begin at this instant or later.
    pub from: Timestamp,
    /// Only hours that begin before this instant.
    pub until: Timestamp,
}

impl UsageQuery {
    /// The hours that begin from one instant until before another.
    pub fn new(org: OrgId, key: KeyId, from: Timestamp, until: Timestamp) -> Self {
        Self { org, key, from, until }
    }

    pub(crate) fn takes(&self, hour: Timestamp) -> bool {
        (self.from..self.until).contains(&hour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::samples;
    use proptest::prelude::*;

    #[test]
    fn every_request_is_in_one_count() {
        for outcome in Outcome::ALL {
            for status in [None, Some(100), Some(399), Some(400), Some(499), Some(500), Some(999)] {
                let mut event = RequestEvent::new("GET", "/", *outcome);
                event.status = status;
                event.count = 7;
                let record = samples::record(1, AuditEvent::Request(event));
                let counts = UsageCounts::of(&record).unwrap();
                let total = counts.allowed + counts.errors() + counts.refused;
                assert_eq!(total, 7, "{outcome} {status:?}");
                let is_let_in = matches!(outcome, Outcome::Allowed | Outcome::Aborted);
                assert_eq!(counts.refused == 0, is_let_in, "{outcome}");
                let is_error = *outcome == Outcome::Aborted || status.is_some_and(|s| s >= 400);
                assert_eq!(counts.errors() > 0, is_let_in && is_error, "{outcome} {status:?}");
            }
        }
    }

    #[test]
    fn a_chart_has_every_bucket_and_each_hour_is_in_its_own() {
        let now: Timestamp = "2026-03-01T10:59:59.999999Z".parse().unwrap();
        let starts = |usage: &Usage| {
            let start = |bucket: Option<&UsageBucket>| bucket.unwrap().start.to_string();
            (usage.buckets.len(), start(usage.buckets.first()), start(usage.buckets.last()))
        };
        let hours = Usage::empty(2, now);
        assert_eq!(
            starts(&hours),
            (48, "2026-02-27T11:00:00Z".into(), "2026-03-01T10:00:00Z".into())
        );
        let mut days = Usage::empty(3, now);
        assert_eq!(
            starts(&days),
            (3, "2026-02-27T00:00:00Z".into(), "2026-03-01T00:00:00Z".into())
        );
        assert_eq!(days.time().1.to_string(), "2026-03-02T00:00:00Z");
        let hour = |text: &str| UsageBucket {
            start: text.parse().unwrap(),
            counts: UsageCounts { refused: 1, ..UsageCounts::default() },
        };
        days.fill(&[
            hour("2026-02-27T23:00:00Z"),
            hour("2026-02-28T00:00:00Z"),
            hour("2026-02-28T23:00:00Z"),
        ]);
        let counts: Vec<u64> = days.buckets.iter().map(|bucket| bucket.counts.refused).collect();
        assert_eq!(counts, [1, 2, 0]);
        assert_eq!(Usage::empty(90, now).buckets.len(), 90);
    }

    proptest! {
        #[test]
        fn an_hour_begins_at_most_an_hour_before_its_instants(micros in Timestamp::MIN.unix_micros()..=Timestamp::MAX.unix_micros()) {
            let at = Timestamp::from_unix_micros(micros).unwrap();
            let hour = UsageBucket::hour_of(at);
            prop_assert_eq!(hour.unix_micros() % 3_600_000_000, 0);
            prop_assert!((0..3_600_000_000).contains(&(micros - hour.unix_micros())));
        }
    }
}
