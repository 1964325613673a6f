//! The tables' columns in SQL databases, and parts of statements built from them.

use std::fmt::Write;

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
pub(super) const CHANGES: [&str; 7] = ["key", "at", "id", "org", "actor", "action", "phase"];

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
