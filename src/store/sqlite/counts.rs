//! Writes how many requests of each key there were in each hour.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rusqlite::{Connection, Row, params};

use crate::audit::record::{Outcome, RequestEvent};
use crate::audit::usage::{UsageBucket, UsageCounts};
use crate::runtime::clock::Timestamp;
use crate::store::sql::{self, COUNTS};
use crate::store::sqlite::columns::Columns;
use crate::store::sqlite::error::{DbError, Result};

/// The columns that [`counted`] and [`Counts::add_row`] read.
pub(super) const COUNTED: &str = "at, outcome, status, count, key, org";

static ADD: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO hourly_usage (key, org, hour, {}) VALUES ({}) \
         ON CONFLICT (key, org, hour) DO UPDATE SET {}",
        sql::list(COUNTS),
        sql::parameters('?', 1, 3 + COUNTS.len()),
        sql::added()
    )
});

/// The counts of new requests, by key and hour, and by organisation.
#[derive(Default)]
pub(super) struct Counts(BTreeMap<KeyAndHour, Vec<(String, UsageCounts)>>);

type KeyAndHour = ([u8; 16], Timestamp);

impl Counts {
    pub(super) fn add(&mut self, key: [u8; 16], org: &str, at: Timestamp, counts: UsageCounts) {
        let of_hour = self.0.entry((key, UsageBucket::hour_of(at))).or_default();
        match of_hour.iter_mut().find(|(known, _)| known == org) {
            Some((_, sum)) => sum.add(counts),
            None => of_hour.push((org.to_owned(), counts)),
        }
    }

    /// Adds what the row of a request counts, which is nothing if the row was damaged.
    pub(super) fn add_row(&mut self, row: &Row<'_>) -> Result<()> {
        let columns = Columns { row, name: "request" };
        let mut add = || {
            let (at, of_request) = counted(row)?;
            let key = columns.bytes((4, "key"), |key| key.try_into().ok())?;
            self.add(key, columns.text((5, "org"), Some)?, at, of_request);
            Ok(())
        };
        match add() {
            Err(DbError::Unreadable { .. }) => Ok(()),
            done => done,
        }
    }

    /// Adds them to those that are stored.
    pub(super) fn write(self, db: &Connection) -> Result<()> {
        let mut row = db.prepare_cached(&ADD)?;
        for ((key, hour), of_hour) in self.0 {
            for (org, counts) in of_hour {
                let UsageCounts { allowed, client_errors, server_errors, aborted, refused } =
                    counts;
                let counts = [allowed, client_errors, server_errors, aborted, refused];
                let [a, b, c, d, e] = counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
                row.execute(params![key, org, hour.unix_micros(), a, b, c, d, e])?;
            }
        }
        Ok(())
    }
}

/// When the request of a row was verified, and what it adds to the counts. The row begins with
/// [`COUNTED`]; looking for the names of columns would take a tenth of the time of merging.
pub(super) fn counted(row: &Row<'_>) -> Result<(Timestamp, UsageCounts)> {
    let columns = Columns { row, name: "request" };
    let outcome = columns.text((1, "outcome"), |text| Some(Outcome::restore(text)))?;
    let mut event = RequestEvent::new("", "", outcome);
    event.status = columns.optional_number((2, "status"))?;
    event.count = columns.number((3, "count"))?;
    Ok((columns.instant((0, "at"))?, UsageCounts::of_request(&event)))
}
