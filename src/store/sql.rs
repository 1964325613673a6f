//! The tables' columns in SQL databases, and parts of statements built from them.

use std::fmt::Write;
use std::ops::Bound;

use crate::audit::log::AuditCursor;

/// A column of the table of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// The type in PostgreSQL. The SQLite schema is written in full elsewhere.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for PostgreSQL"))]
    pub(super) sql_type: &'static str,
    role: Role,
}

/// What writes a column after the insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Nothing.
    Fixed,
    /// An edit or a rotation.
    Edited,
    /// A use of the key.
    Used,
}

const fn column(name: &'static str, sql_type: &'static str, role: Role) -> Column {
    Column { name, sql_type, role }
}

/// The table of keys. A row is read and inserted in this order.
pub(super) const KEYS: [Column; 15] = [
    column("id", "uuid", Role::Fixed),
    column("org", "text", Role::Fixed),
    column("name", "text", Role::Edited),
    column("key_prefix", "text", Role::Edited),
    column("digest", "bytea", Role::Edited),
    column("status", "text", Role::Edited),
    column("allowlist", "text[]", Role::Edited),
    column("created_at", "bigint", Role::Fixed),
    column("expires_at", "bigint", Role::Edited),
    column("rotated_at", "bigint", Role::Edited),
    column("last_used_at", "bigint", Role::Used),
    column("revision", "bigint", Role::Edited),
    column("attributes", "text", Role::Edited),
    column("previous_digest", "bytea", Role::Edited),
    column("previous_until", "bigint", Role::Edited),
];

/// The table of requests in the audit log. A row is read and inserted in this order.
pub(super) const REQUESTS: [&str; 12] = [
    "key", "at", "id", "org", "method", "endpoint", "ip", "country", "status", "outcome", "count",
    "secret",
];

/// The table of changes in the audit log. A row is read and inserted in this order.
pub(super) const CHANGES: [&str; 8] =
    ["key", "at", "id", "org", "actor", "action", "phase", "fields"];

/// The counts of the table of usage, whose key is key, organisation and hour.
pub(super) const COUNTS: [&str; 5] =
    ["allowed", "client_errors", "server_errors", "aborted", "refused"];

/// `allowed = hourly_usage.allowed + excluded.allowed, …`: adds counts to those that are there.
pub(super) fn added() -> String {
    list(COUNTS.map(|count| format!("{count} = hourly_usage.{count} + excluded.{count}")))
}

/// A place in the order of audit records: microseconds since 1970, and an id.
pub(super) type Place = (i64, [u8; 16]);

/// The places just outside of a part of the audit log: before the oldest record, and after
/// the newest.
pub(super) fn outside((oldest, newest): (Bound<AuditCursor>, Bound<AuditCursor>)) -> [Place; 2] {
    let place = |cursor: AuditCursor| (cursor.at().unix_micros(), cursor.id().to_bytes());
    let before = match oldest {
        Bound::Unbounded => (i64::MIN, [0; 16]),
        Bound::Excluded(cursor) => place(cursor),
        Bound::Included(cursor) => match place(cursor) {
            (at, id) if id == [0; 16] => (at.saturating_sub(1), [u8::MAX; 16]),
            (at, _) => (at, cursor.id().before().to_bytes()),
        },
    };
    let after = match newest {
        Bound::Unbounded => (i64::MAX, [u8::MAX; 16]),
        Bound::Excluded(cursor) => place(cursor),
        Bound::Included(cursor) => (cursor.at().unix_micros(), cursor.id().after().to_bytes()),
    };
    [before, after]
}

/// The names of the columns of [`KEYS`], separated by commas.
pub(super) fn key_columns() -> String {
    list(KEYS.iter().map(|column| column.name))
}

/// The columns of one of many rows, in which an array is written as a text.
#[cfg(feature = "postgres")]
pub(super) fn insertions() -> String {
    list(KEYS.iter().map(|column| match column.sql_type {
        "text[]" => format!("{}::text[]", column.name),
        _ => column.name.to_owned(),
    }))
}

/// `name = $4, …`: the columns that an edit writes, with parameters numbered from `first`,
/// in the order of [`KEYS`].
pub(super) fn edited(mark: char, first: usize) -> String {
    let edited = KEYS.iter().filter(|column| column.role == Role::Edited);
    list((first..).zip(edited).map(|(number, column)| format!("{} = {mark}{number}", column.name)))
}

/// How many columns an edit writes.
#[cfg(feature = "postgres")]
pub(super) fn edited_count() -> usize {
    KEYS.iter().filter(|column| column.role == Role::Edited).count()
}

/// The columns that affect how a key is verified or shown.
#[cfg(feature = "postgres")]
pub(super) fn announced() -> String {
    list(KEYS.iter().filter(|column| column.role != Role::Used).map(|column| column.name))
}

/// Selects the values that an edit writes from those of a whole row.
pub(super) fn only_edited<T>(row: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
    let edited = KEYS.iter().map(|column| column.role == Role::Edited);
    row.into_iter().zip(edited).filter_map(|(value, edited)| edited.then_some(value))
}

/// `$1, $2, …`: `count` parameters numbered from `first`.
pub(super) fn parameters(mark: char, first: usize, count: usize) -> String {
    list((first..first + count).map(|number| format!("{mark}{number}")))
}

/// The items, separated by commas.
pub(super) fn list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for item in items {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{item}");
    }
    text
}
