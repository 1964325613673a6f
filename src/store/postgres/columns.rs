//! Reads stored values and reports unreadable ones.

use std::borrow::Cow;

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use uuid::Uuid;

use crate::runtime::clock::Timestamp;
use crate::store::postgres::error::{DbError, Result};

/// One row of a table; `name` is what errors call it.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) row: &'a Row,
    pub(super) name: &'static str,
}

impl<'a> Columns<'a> {
    /// Reads a column and converts its value.
    pub(super) fn value<V: FromSql<'a>, T>(
        self,
        column: &'static str,
        parse: impl FnOnce(V) -> Option<T>,
    ) -> Result<T> {
        let value = self.row.try_get(column).ok();
        value.and_then(parse).ok_or(DbError::Unreadable { row: self.name, column })
    }

    pub(super) fn optional<V: FromSql<'a>, T>(
        self,
        column: &'static str,
        parse: impl FnOnce(V) -> Option<T>,
    ) -> Result<Option<T>> {
        self.value(column, |value: Option<V>| match value {
            None => Some(None),
            Some(value) => parse(value).map(Some),
        })
    }

    pub(super) fn text<T>(
        self,
        column: &'static str,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<T> {
        self.value(column, parse)
    }

    pub(super) fn bytes16(self, column: &'static str) -> Result<[u8; 16]> {
        self.value(column, |id: Uuid| Some(id.into_bytes()))
    }

    pub(super) fn instant(self, column: &'static str) -> Result<Timestamp> {
        self.value(column, Timestamp::from_unix_micros)
    }

    pub(super) fn optional_instant(self, column: &'static str) -> Result<Option<Timestamp>> {
        self.optional(column, Timestamp::from_unix_micros)
    }
}

/// Starts an escape sequence: a code point that is not a character, so that texts rarely
/// contain it.
const ESCAPE: char = '\u{FDD0}';

/// The text in a form that PostgreSQL accepts, without U+0000.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut stored = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\0' => stored.extend([ESCAPE, '0']),
            ESCAPE => stored.extend([ESCAPE, '1']),
            c => stored.push(c),
        }
    }
    Cow::Owned(stored)
}

/// Reads what [`escaped`] wrote.
pub(super) fn plain(stored: &str) -> Cow<'_, str> {
    if stored.is_ascii() || !stored.contains(ESCAPE) {
        return Cow::Borrowed(stored);
    }
    let mut text = String::with_capacity(stored.len());
    let mut chars = stored.chars();
    while let Some(c) = chars.next() {
        match c {
            ESCAPE if chars.next() == Some('0') => text.push('\0'),
            c => text.push(c),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_round_trips_and_is_stored_without_nul(text in "[\\x00\u{FDD0}01a]{0,12}|\\PC{0,6}") {
            let stored = escaped(&text);
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(plain(&stored), text.as_str());
        }
    }
}
