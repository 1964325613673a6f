//! When a key expires.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use time::{Date, Month, OffsetDateTime};

use crate::runtime::clock::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a new key is valid.
///
/// Months and years follow the calendar, in UTC: the same day and time, or the last day of
/// a shorter month.
///
/// ```
/// use keygate::{Expiration, Timestamp};
///
/// let created = "2027-01-31T10:00:00Z".parse::<Timestamp>().unwrap();
/// let expires = "1_month".parse::<Expiration>()?.after(created);
/// assert_eq!(expires, "2027-02-28T10:00:00Z".parse().ok());
/// # Ok::<(), keygate::error::ExpirationError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiration {
    /// `1_day`: 24 hours.
    OneDay,
    /// `1_week`: 7 × 24 hours.
    OneWeek,
    /// `1_month`.
    OneMonth,
    /// `3_months`.
    ThreeMonths,
    /// `1_year`.
    OneYear,
    /// `never`.
    Never,
    /// At this instant; only in the library.
    At(Timestamp),
}

impl Expiration {
    /// The texts that [`FromStr`] accepts, in ascending order.
    pub const CHOICES: [&'static str; 6] =
        ["1_day", "1_week", "1_month", "3_months", "1_year", "never"];

    /// The first instant at which a key created at `created` is expired, at most
    /// [`Timestamp::MAX`]; `None` for never.
    pub fn after(self, created: Timestamp) -> Option<Timestamp> {
        match self {
            Self::OneDay => Some(created.saturating_add(DAY)),
            Self::OneWeek => Some(created.saturating_add(DAY * 7)),
            Self::OneMonth => Some(add_months(created, 1)),
            Self::ThreeMonths => Some(add_months(created, 3)),
            Self::OneYear => Some(add_months(created, 12)),
            Self::Never => None,
            Self::At(instant) => Some(instant),
        }
    }
}

fn add_months(to: Timestamp, months: u8) -> Timestamp {
    let from = to.to_datetime();
    let index = from.year() * 12 + i32::from(u8::from(from.month())) - 1 + i32::from(months);
    let (year, month) = (index.div_euclid(12), index.rem_euclid(12) + 1);
    u8::try_from(month)
        .ok()
        .and_then(|month| Month::try_from(month).ok())
        .and_then(|month| {
            let day = from.day().min(month.length(year));
            Date::from_calendar_date(year, month, day).ok()
        })
        .and_then(|date| Timestamp::from_datetime(OffsetDateTime::new_utc(date, from.time())))
        .unwrap_or(Timestamp::MAX)
}

impl FromStr for Expiration {
    type Err = ExpirationError;

    fn from_str(text: &str) -> Result<Self, ExpirationError> {
        Ok(match text {
            "1_day" => Self::OneDay,
            "1_week" => Self::OneWeek,
            "1_month" => Self::OneMonth,
            "3_months" => Self::ThreeMonths,
            "1_year" => Self::OneYear,
            "never" => Self::Never,
            _ => return Err(ExpirationError),
        })
    }
}

impl fmt::Display for Expiration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneDay => "1_day",
            Self::OneWeek => "1_week",
            Self::OneMonth => "1_month",
            Self::ThreeMonths => "3_months",
            Self::OneYear => "1_year",
            Self::Never => "never",
            Self::At(instant) => return instant.fmt(f),
        })
    }
}

/// The text is not one of [`Expiration::CHOICES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
// The text has no subject, since it follows the name of a field.
#[error("must be one of 1_day, 1_week, 1_month, 3_months, 1_year, never")]
pub struct ExpirationError;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(choice: &str, created: &str) -> String {
        let created = created.parse::<Timestamp>().unwrap();
        let expires = choice.parse::<Expiration>().unwrap().after(created);
        expires.map_or("never".into(), |t| t.to_string())
    }

    #[test]
    fn calendar_months_are_clamped_to_the_last_day() {
        for (choice, created, expires) in [
            ("1_day", "2026-12-31T23:59:59.5Z", "2027-01-01T23:59:59.5Z"),
            ("1_week", "2026-02-25T00:00:00Z", "2026-03-04T00:00:00Z"),
            ("1_month", "2026-01-31T01:02:03.000004Z", "2026-02-28T01:02:03.000004Z"),
            ("1_month", "2028-01-31T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("1_month", "2026-12-31T00:00:00Z", "2027-01-31T00:00:00Z"),
            ("3_months", "2026-11-30T00:00:00Z", "2027-02-28T00:00:00Z"),
            ("1_year", "2028-02-29T00:00:00Z", "2029-02-28T00:00:00Z"),
            ("never", "2026-01-01T00:00:00Z", "never"),
        ] {
            assert_eq!(after(choice, created), expires, "{choice} after {created}");
        }
    }

    #[test]
    fn expirations_do_not_exceed_the_maximum_time() {
        assert_eq!(add_months(Timestamp::MAX, 12), Timestamp::MAX);
        assert_eq!(Expiration::OneDay.after(Timestamp::MAX), Some(Timestamp::MAX));
    }

    #[test]
    fn choices_round_trip_and_nothing_else_parses() {
        for choice in Expiration::CHOICES {
            assert_eq!(choice.parse::<Expiration>().unwrap().to_string(), choice);
        }
        for other in ["", "1_DAY", "2_days", "2026-01-01T00:00:00Z", " never"] {
            assert_eq!(other.parse::<Expiration>(), Err(ExpirationError));
        }
    }

    proptest! {
        #[test]
        fn a_month_later_is_28_to_31_days_later(micros in 0i64..4_000_000_000_000_000) {
            let created = Timestamp::from_unix_micros(micros).unwrap();
            let expires = Expiration::OneMonth.after(created).unwrap();
            let days = (expires.unix_micros() - micros) / (86_400 * 1_000_000);
            prop_assert!((28..=31).contains(&days));
            prop_assert_eq!(created.to_datetime().time(), expires.to_datetime().time());
        }
    }
}
