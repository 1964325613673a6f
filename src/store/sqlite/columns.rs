//! Reading stored columns, and what is said of one that cannot be read.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::allowlist::Allowlist;
use crate::clock::Timestamp;
use crate::store::sqlite::Outcome;
use crate::store::sqlite::error::Fault;

/// One row of a table whose rows are called `name`.
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
    ) -> Outcome<T> {
        self.value(column, |value| value.as_str().ok().and_then(parse))
    }

    pub(super) fn optional_text<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Outcome<Option<T>> {
        self.value(column, |value| match value {
            ValueRef::Null => Some(None),
            value => value.as_str().ok().and_then(parse).map(Some),
        })
    }

    pub(super) fn bytes<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Outcome<T> {
        self.value(column, |value| value.as_blob().ok().and_then(parse))
    }

    pub(super) fn number<T: TryFrom<i64>>(self, column: impl Place) -> Outcome<T> {
        self.value(column, |value| T::try_from(value.as_i64().ok()?).ok())
    }

    pub(super) fn optional_number<T: TryFrom<i64>>(self, column: impl Place) -> Outcome<Option<T>> {
        self.value(column, |value| match value {
            ValueRef::Null => Some(None),
            value => T::try_from(value.as_i64().ok()?).ok().map(Some),
        })
    }

    pub(super) fn instant(self, column: impl Place) -> Outcome<Timestamp> {
        let micros = self.number(column)?;
        Timestamp::from_unix_micros(micros).ok_or(self.unreadable(column))
    }

    pub(super) fn optional_instant(self, column: impl Place) -> Outcome<Option<Timestamp>> {
        let micros = self.optional_number(column)?;
        let instant = |micros| Timestamp::from_unix_micros(micros).ok_or(self.unreadable(column));
        micros.map(instant).transpose()
    }

    fn value<T>(
        self,
        column: impl Place,
        parse: impl FnOnce(ValueRef<'a>) -> Option<T>,
    ) -> Outcome<T> {
        parse(column.read(self.row)?).ok_or(self.unreadable(column))
    }

    fn unreadable(self, column: impl Place) -> Fault {
        Fault::Unreadable { row: self.name, column: column.name() }
    }
}

/// Where a column is: by its name, or by its place in the query and its name.
/// Places are for the look-up on every request, of which the comparing of names
/// would be a tenth.
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

/// An allowlist as it is stored: each entry ended by a line feed, so that no
/// list but the empty one is an empty text. A line feed within a damaged entry
/// is written as `\n`, so that it does not make two good entries of a bad one.
pub(super) fn lines(list: &Allowlist) -> String {
    let escaped = |entry: &String| entry.replace('\\', "\\\\").replace('\n', "\\n") + "\n";
    list.entries().iter().map(escaped).collect()
}

/// Reads what [`lines`] wrote.
pub(super) fn from_lines(text: &str) -> Allowlist {
    if text.is_empty() {
        return Allowlist::default();
    }
    let entries = text.strip_suffix('\n').unwrap_or(text).split('\n');
    if text.contains('\\') {
        Allowlist::restore(entries.map(unescaped))
    } else {
        Allowlist::restore(entries)
    }
}

fn unescaped(entry: &str) -> String {
    let mut chars = entry.chars();
    let mut plain = String::with_capacity(entry.len());
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next().map(|c| if c == 'n' { '\n' } else { c })),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn case_17_no_damaged_list_comes_back_as_one_that_lets_somebody_in(
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
    }
}
