//! Reads stored columns and reports unreadable ones.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::allowlist::Allowlist;
use crate::runtime::clock::Timestamp;
use crate::store::sqlite::error::{DbError, Result};

/// One row of a table; `name` is what errors call it.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) row: &'a Row<'a>,
    pub(super) name: &'static str,
}

impl<'a> Columns<'a> {
    pub(super) fn text<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<T> {
        self.value(column, |value| value.as_str().ok().and_then(parse))
    }

    pub(super) fn optional_text<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<Option<T>> {
        self.value(column, |value| match value {
            ValueRef::Null => Some(None),
            value => value.as_str().ok().and_then(parse).map(Some),
        })
    }

    pub(super) fn bytes<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<T> {
        self.value(column, |value| value.as_blob().ok().and_then(parse))
    }

    pub(super) fn optional_bytes<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        self.value(column, |value| match value {
            ValueRef::Null => Some(None),
            value => value.as_blob().ok().and_then(parse).map(Some),
        })
    }

    pub(super) fn number<T: TryFrom<i64>>(self, column: impl Place) -> Result<T> {
        self.value(column, |value| T::try_from(value.as_i64().ok()?).ok())
    }

    pub(super) fn optional_number<T: TryFrom<i64>>(self, column: impl Place) -> Result<Option<T>> {
        self.value(column, |value| match value {
            ValueRef::Null => Some(None),
            value => T::try_from(value.as_i64().ok()?).ok().map(Some),
        })
    }

    pub(super) fn instant(self, column: impl Place) -> Result<Timestamp> {
        let micros = self.number(column)?;
        Timestamp::from_unix_micros(micros).ok_or(self.unreadable(column))
    }

    pub(super) fn optional_instant(self, column: impl Place) -> Result<Option<Timestamp>> {
        let micros = self.optional_number(column)?;
        let instant = |micros| Timestamp::from_unix_micros(micros).ok_or(self.unreadable(column));
        micros.map(instant).transpose()
    }

    fn value<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(ValueRef<'a>) -> Option<T>,
    ) -> Result<T> {
        parse(column.read(self.row)?).ok_or(self.unreadable(column))
    }

    pub(super) fn unreadable(self, column: impl Place) -> DbError {
        DbError::Unreadable { row: self.name, column: column.name() }
    }
}

/// Identifies a column by name, or by its position in the query and its name. Positions are
/// for the look-up on every request, where comparing names would take a tenth of the time.
pub(super) trait Place: Copy {
    fn read<'a>(self, row: &'a Row<'_>) -> rusqlite::Result<ValueRef<'a>>;
    fn name(self) -> &'static str;
}

impl Place for &'static str {
    fn read<'a>(self, row: &'a Row<'_>) -> rusqlite::Result<ValueRef<'a>> {
        row.get_ref(self)
    }

    fn name(self) -> &'static str {
        self
    }
}

impl Place for (usize, &'static str) {
    fn read<'a>(self, row: &'a Row<'_>) -> rusqlite::Result<ValueRef<'a>> {
        row.get_ref(self.0)
    }

    fn name(self) -> &'static str {
        self.1
    }
}

/// An allowlist as stored: each entry ends with a line feed, so that only the empty list is
/// an empty text. A line feed in a damaged entry is escaped as `\n`, so that one bad entry
/// does not become two good ones.
pub(super) fn lines(list: &Allowlist) -> String {
    let escaped = |entry: &String| entry.replace('\\', "\\\\").replace('\n', "\\n") + "\n";
    list.entries().iter().map(escaped).collect()
}

/// Reads what [`lines`] wrote. A truncated text is not a readable list, since part of an
/// address may be a different address, and part of a range a wider one. The loss of whole
/// entries, or of a digit that became another one, cannot be detected.
pub(super) fn from_lines(text: &str) -> Allowlist {
    if text.is_empty() {
        return Allowlist::default();
    }
    let (entries, missing) = match text.strip_suffix('\n') {
        Some(entries) => (entries, None),
        // No store accepts a list with an empty entry.
        None => (text, Some("")),
    };
    let entries = entries.split('\n').chain(missing);
    if text.contains('\\') {
        Allowlist::restore(entries.map(|entry| unescaped(entry).unwrap_or(entry.to_owned())))
    } else {
        Allowlist::restore(entries)
    }
}

/// `None` for an escape that [`lines`] does not write.
fn unescaped(entry: &str) -> Option<String> {
    let mut chars = entry.chars();
    let mut plain = String::with_capacity(entry.len());
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use crate::network::Network;

    /// The range of at most this many bits that contains the address.
    fn network(ip: IpAddr, bits: u8) -> Network {
        let bits = u32::from(bits);
        let range = match ip {
            IpAddr::V4(ip) => {
                let bits = bits.min(32);
                let first = ip.to_bits() & u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                format!("{}/{bits}", Ipv4Addr::from_bits(first))
            }
            IpAddr::V6(ip) => {
                let first = ip.to_bits() & u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                format!("{}/{bits}", Ipv6Addr::from_bits(first))
            }
        };
        range.parse().unwrap()
    }

    proptest! {
        #[test]
        fn case_17_a_damaged_list_never_becomes_one_that_allows_another_address(
            entries in proptest::collection::vec("[0-9.\n\\\\n/]{0,12}|\\PC{0,6}", 1..5),
            ip: IpAddr,
        ) {
            let list = Allowlist::restore(&entries);
            let stored = from_lines(&lines(&list));
            prop_assert_eq!(stored.entries(), list.entries());
            prop_assert_eq!(stored.is_readable(), list.is_readable());
            prop_assert_eq!(stored.allows(Some(ip)), list.allows(Some(ip)));
            prop_assert_eq!(stored.is_empty(), list.is_empty());
        }

        #[test]
        fn case_17_a_truncated_list_allows_no_other_address(
            ranges in proptest::collection::vec((any::<IpAddr>(), 0_u8..=128), 1..5),
            place: proptest::sample::Index,
        ) {
            let networks = ranges.iter().map(|(ip, bits)| network(*ip, *bits));
            let list: Allowlist = networks.collect();
            let text = lines(&list);
            let place = 1 + place.index(text.len());

            let cut = from_lines(&text[..place]);
            prop_assert!(!cut.is_readable() || list.entries().starts_with(&cut.entries()));
            prop_assert_eq!(&from_lines(&lines(&cut)), &cut);

            let mut inserted = text.clone();
            inserted.insert(place, '\\');
            let (before, after) = (&text[..place - 1], &text[place..]);
            let blanks = [" ", "\t", "\r", "\u{2028}"].map(|blank| format!("{before}{blank}{after}"));
            for spoilt in blanks.into_iter().chain([inserted]) {
                let spoilt = from_lines(&spoilt);
                prop_assert!(!spoilt.is_readable());
                prop_assert_eq!(&from_lines(&lines(&spoilt)), &spoilt);
            }
        }
    }
}
