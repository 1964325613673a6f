//! Instants in UTC with microseconds, and clocks.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const MICROS_PER_SECOND: i64 = 1_000_000;

/// An instant in UTC, in whole microseconds since 1970-01-01T00:00:00Z.
///
/// Every store can keep microseconds, so an instant is unchanged by a store. The years run
/// from 1 to 9999, the range of RFC 3339.
///
/// ```
/// use keygate::Timestamp;
///
/// let t = "2026-01-31T12:00:00.000001Z".parse::<Timestamp>().unwrap();
/// assert_eq!(t.unix_micros(), 1_769_860_800_000_001);
/// assert_eq!(t.to_string(), "2026-01-31T12:00:00.000001Z");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01T00:00:00Z, the earliest instant.
    pub const MIN: Self = Self(-62_135_596_800 * MICROS_PER_SECOND);
    /// 9999-12-31T23:59:59.999999Z, the latest instant.
    pub const MAX: Self = Self(253_402_300_800 * MICROS_PER_SECOND - 1);

    /// The instant `micros` microseconds after 1970, or `None` outside [`Timestamp::MIN`]
    /// to [`Timestamp::MAX`].
    pub const fn from_unix_micros(micros: i64) -> Option<Self> {
        if micros < Self::MIN.0 || micros > Self::MAX.0 { None } else { Some(Self(micros)) }
    }

    /// Microseconds since 1970; negative before.
    pub const fn unix_micros(self) -> i64 {
        self.0
    }

    /// This instant moved forward, at most to [`Timestamp::MAX`].
    pub fn saturating_add(self, by: Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros).min(Self::MAX.0))
    }

    /// This instant moved back, at most to [`Timestamp::MIN`].
    pub fn saturating_sub(self, by: Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros).max(Self::MIN.0))
    }

    pub(crate) fn from_datetime(at: OffsetDateTime) -> Option<Self> {
        let micros = at.unix_timestamp_nanos().div_euclid(1_000);
        i64::try_from(micros).ok().and_then(Self::from_unix_micros)
    }

    pub(crate) fn to_datetime(self) -> OffsetDateTime {
        // Cannot fail: the range of a `Timestamp` lies within that of the type.
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    fn clamped(micros: i64) -> Self {
        Self(micros.clamp(Self::MIN.0, Self::MAX.0))
    }
}

impl From<SystemTime> for Timestamp {
    /// Truncated to microseconds, and clamped to the range of the type.
    fn from(at: SystemTime) -> Self {
        match at.duration_since(UNIX_EPOCH) {
            // Not `as_micros`: its 128-bit division costs as much as reading the clock.
            Ok(after) => {
                let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
                let micros = seconds.saturating_mul(MICROS_PER_SECOND);
                Self::clamped(micros.saturating_add(after.subsec_micros().into()))
            }
            Err(before) => {
                let micros = before.duration().as_nanos().div_ceil(1_000);
                Self::clamped(i64::try_from(micros).map_or(i64::MIN, |m| -m))
            }
        }
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    /// Parses an RFC 3339 time with any offset. Digits below a microsecond are truncated.
    fn from_str(rfc3339: &str) -> Result<Self, TimestampError> {
        let parsed = OffsetDateTime::parse(rfc3339, &Rfc3339).ok();
        parsed.and_then(Self::from_datetime).ok_or(TimestampError)
    }
}

/// RFC 3339 in UTC, such as `2026-01-31T12:00:00.000001Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_datetime().format(&Rfc3339).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an RFC 3339 time, or is outside the range of [`Timestamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be an RFC 3339 time, such as 2026-01-31T12:00:00Z")]
pub struct TimestampError;

/// Returns the current time.
///
/// The clock may step back, by an operator or NTP. An expired key is then valid again until
/// the clock passes its expiry; the old secret of a rotation with overlap is not, where a
/// process has refused it once. Last-used times stay until the clock has caught up; a time
/// that is more than a day ahead is set back.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> Timestamp;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// A clock that moves only when told, for tests.
///
/// ```
/// use std::time::Duration;
/// use keygate::runtime::{Clock, ManualClock};
/// use keygate::Timestamp;
///
/// let start = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
/// let clock = ManualClock::new(start);
/// clock.advance(Duration::from_secs(1));
/// assert_eq!(clock.now().to_string(), "2026-01-01T00:00:01Z");
/// ```
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(AtomicI64::new(now.0))
    }

    /// Sets the clock, forward or back.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.set(self.now().saturating_add(by));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_the_range_of_rfc_3339() {
        assert_eq!(Timestamp::MIN.to_string(), "0001-01-01T00:00:00Z");
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp::from_unix_micros(Timestamp::MAX.0 + 1), None);
        assert_eq!(Timestamp::from_unix_micros(Timestamp::MIN.0 - 1), None);
        let never = Duration::from_secs(u64::MAX);
        assert_eq!(Timestamp::MIN.saturating_add(never), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.saturating_sub(never), Timestamp::MIN);
    }

    #[test]
    fn system_times_before_and_after_1970_are_rounded_down() {
        let after = UNIX_EPOCH + Duration::from_nanos(1_999);
        assert_eq!(Timestamp::from(after).unix_micros(), 1);
        let before = UNIX_EPOCH - Duration::from_nanos(1_999);
        assert_eq!(Timestamp::from(before).unix_micros(), -2);
    }

    #[test]
    fn timestamps_round_trip_and_offsets_become_utc() {
        let t = "2026-03-01T01:30:00.1234567+01:30".parse().map(|t: Timestamp| t.to_string());
        assert_eq!(t.as_deref(), Ok("2026-03-01T00:00:00.123456Z"));
        for other in ["2026-03-01", "", "2026-03-01T00:00:00", "0000-12-31T23:59:59Z"] {
            assert_eq!(other.parse::<Timestamp>(), Err(TimestampError), "{other}");
        }
    }
}
