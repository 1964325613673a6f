//! Reading the audit log: pages, cursors, retention.

use std::fmt;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

use crate::audit::filter::AuditFilter;
use crate::audit::record::{AuditId, AuditRecord};
use crate::audit::sink::AuditError;
use crate::audit::usage::{UsageBucket, UsageQuery};
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;

/// Reads and purges audit records.
///
/// # Writing an audit log
///
/// [`AuditLog`] is separate from the sink, since a sink may be write-only. Records are
/// ordered by `(at, id)`; no two are equal. For a page, take the records of the query's
/// [scope](AuditQuery::scope) within its [range](AuditQuery::range), in descending order, or
/// in ascending order for [`Position::After`]. Fetch the first [`AuditQuery::to_fetch`] of
/// them, and let [`AuditPage::assemble`] do the rest: it applies the filter, cuts the page
/// and finds its cursors.
///
/// Since a cursor is a place in that order and not a count, new records cause no repeated
/// or missing ones. The record of a slow request arrives late, at the place of its
/// verification.
///
/// The work for a page is bounded. If a filter finds less than a page among the records that
/// were fetched, the page is short, and its cursor leads on from there.
///
/// # Usage
///
/// [`usage`](Self::usage) reads counters that the sink keeps, since a year of records may be
/// too many to count, and may be purged. With each new record, add [`UsageCounts::of`](crate::audit::UsageCounts::of) it to
/// the counts of its key and of [its hour](UsageBucket::hour_of), in the same transaction: a
/// record that is given again is not counted again.
#[async_trait]
pub trait AuditLog: fmt::Debug + Send + Sync + 'static {
    /// One page of the records of one organisation, newest first.
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError>;

    /// How often a key was used in each hour of the query that has requests, oldest first.
    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError>;

    /// Deletes the records of all organisations from before this instant, and returns how
    /// many there were. A log that drops many at a time may estimate their number. Counts of
    /// hours before it may be deleted as well, or later.
    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError>;
}

#[async_trait]
impl<L: AuditLog + ?Sized> AuditLog for Arc<L> {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        (**self).page(query).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        (**self).usage(query).await
    }

    async fn purge_before(&self, instant: Timestamp) -> Result<u64, AuditError> {
        (**self).purge_before(instant).await
    }
}

/// Which records to read.
///
/// ```
/// use keygate::audit::{AuditQuery, AuditScope};
/// use keygate::OrgId;
///
/// let changes = AuditQuery::new(OrgId::new("acme")?, AuditScope::OrgChanges).limit(50);
/// # Ok::<(), keygate::error::OrgIdError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditQuery {
    /// The organisation. Records of other organisations are never returned.
    pub org: OrgId,
    /// Which of its records to read.
    pub scope: AuditScope,
    /// The position of the page.
    pub position: Position,
    /// The size of the page.
    pub limit: usize,
    /// Which of these records the page contains.
    pub filter: AuditFilter,
}

impl AuditQuery {
    /// The largest page.
    pub const MAX_LIMIT: usize = 1_000;

    /// The newest 25.
    pub fn new(org: OrgId, scope: AuditScope) -> Self {
        Self { org, scope, position: Position::Newest, limit: 25, filter: AuditFilter::default() }
    }

    /// Reads only the records that meet the filter.
    pub fn filter(self, filter: AuditFilter) -> Self {
        Self { filter, ..self }
    }

    /// Sets the position of the page.
    pub fn at(self, position: Position) -> Self {
        Self { position, ..self }
    }

    /// Sets the size of the page, clamped between 1 and [`AuditQuery::MAX_LIMIT`].
    pub fn limit(self, limit: usize) -> Self {
        Self { limit: limit.clamp(1, Self::MAX_LIMIT), ..self }
    }

    /// How many records to fetch: one more than the page, or, with a filter, as many as may
    /// be read to find the page.
    pub fn to_fetch(&self) -> usize {
        let page = self.limit.saturating_add(1);
        if self.filter.is_selective() { page.max(Self::MAX_LIMIT) } else { page }
    }

    /// The part of the log to fetch from, by the position and the times of the filter: from
    /// the oldest to the newest record. The newest one is never included.
    pub fn range(&self) -> (Bound<AuditCursor>, Bound<AuditCursor>) {
        let first_at = |at| AuditCursor { at, id: AuditId::from_bytes([0; 16]) };
        let mut oldest =
            self.filter.since.map_or(Bound::Unbounded, |at| Bound::Included(first_at(at)));
        let mut newest =
            self.filter.until.map_or(Bound::Unbounded, |at| Bound::Excluded(first_at(at)));
        match self.position {
            Position::Newest => {}
            Position::Before(cursor) => match newest {
                Bound::Excluded(end) if end <= cursor => {}
                _ => newest = Bound::Excluded(cursor),
            },
            Position::After(cursor) => match oldest {
                Bound::Included(start) if cursor < start => {}
                _ => oldest = Bound::Excluded(cursor),
            },
        }
        match (oldest, newest) {
            // Empty, in a form that a `BTreeMap` takes as well.
            (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
                if end <= start =>
            {
                (Bound::Included(end), Bound::Excluded(end))
            }
            range => range,
        }
    }
}

/// Which of an organisation's records to read. A deleted key's records stay readable until
/// they are purged.
///
/// No variants will be added to this type: every log has to handle each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditScope {
    /// The requests made with one key.
    KeyRequests(KeyId),
    /// The changes made to one key.
    KeyChanges(KeyId),
    /// The changes made to any key of the organisation.
    OrgChanges,
}

/// The position of a page.
///
/// No variants will be added to this type: every log has to handle each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The newest records.
    Newest,
    /// The records just before the cursor.
    Before(AuditCursor),
    /// The records just after the cursor.
    After(AuditCursor),
}

/// A place in the order of the records. Its text is opaque: take it from a page and pass it
/// back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditCursor {
    at: Timestamp,
    id: AuditId,
}

impl AuditCursor {
    /// The place of this record.
    pub fn of(record: &AuditRecord) -> Self {
        Self { at: record.at, id: record.id }
    }

    /// The time of the record.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// The identifier of the record.
    pub fn id(&self) -> AuditId {
        self.id
    }
}

const TIME_DIGITS: usize = 16;
const ID_DIGITS: usize = 32;

impl fmt::Display for AuditCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u128::from_be_bytes(self.id.to_bytes());
        write!(f, "{:0TIME_DIGITS$x}{id:0ID_DIGITS$x}", self.at.unix_micros())
    }
}

impl FromStr for AuditCursor {
    type Err = AuditCursorError;

    fn from_str(text: &str) -> Result<Self, AuditCursorError> {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != TIME_DIGITS + ID_DIGITS || !text.bytes().all(lower_hex) {
            return Err(AuditCursorError);
        }
        let (time, id) = text.split_at(TIME_DIGITS);
        let time = u64::from_str_radix(time, 16).map_err(|_| AuditCursorError)?;
        let id = u128::from_str_radix(id, 16).map_err(|_| AuditCursorError)?;
        Ok(Self {
            at: Timestamp::from_unix_micros(time.cast_signed()).ok_or(AuditCursorError)?,
            id: AuditId::from_bytes(id.to_be_bytes()),
        })
    }
}

/// The text is not a cursor from an audit page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a cursor from an audit page")]
pub struct AuditCursorError;

/// A page of records, newest first, with cursors to the neighbouring pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditPage {
    /// The records, newest first.
    pub records: Vec<AuditRecord>,
    /// Pass it to [`Position::Before`] for the next older page; `None` if there is none.
    pub older: Option<AuditCursor>,
    /// Pass it to [`Position::After`] for the next newer page; `None` if there is none yet.
    pub newer: Option<AuditCursor>,
}

impl AuditPage {
    /// Makes a page from the records that were fetched for the query, in the order described
    /// at [`AuditLog`].
    pub fn assemble(query: &AuditQuery, mut fetched: Vec<AuditRecord>) -> Self {
        let last_read = fetched.last().map(AuditCursor::of);
        let is_end = fetched.len() < query.to_fetch();
        fetched.retain(|record| query.filter.matches(record));
        let is_cut = fetched.len() > query.limit;
        fetched.truncate(query.limit);
        // Where the next page in the same direction begins, if there is one.
        let onward = match fetched.last().map(AuditCursor::of) {
            last if is_cut => last,
            _ if is_end => None,
            _ => last_read,
        };
        if matches!(query.position, Position::After(_)) {
            fetched.reverse();
        }
        let first = fetched.first().map(AuditCursor::of);
        let last = fetched.last().map(AuditCursor::of);
        let (older, newer) = match query.position {
            Position::Newest => (onward, None),
            // From an empty page, the cursor leads back to where the query came from,
            // including the record under its cursor.
            Position::Before(c) => {
                let back = AuditCursor { id: c.id.before(), ..c };
                (onward, first.or(Some(back)))
            }
            Position::After(c) => {
                let back = AuditCursor { id: c.id.after(), ..c };
                (last.or(Some(back)), onward)
            }
        };
        Self { records: fetched, older, newer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(micros in Timestamp::MIN.unix_micros()..=Timestamp::MAX.unix_micros(), id: [u8; 16]) {
            let at = Timestamp::from_unix_micros(micros).unwrap();
            let cursor = AuditCursor { at, id: AuditId::from_bytes(id) };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn a_cursor_parses_only_from_its_canonical_text(text in "[0-9a-f]{48}|[0-9a-fA-F+]{48}|\\PC{0,60}") {
            if let Ok(cursor) = text.parse::<AuditCursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }
    }
}
