//! Feature `serde`: how records and values are written and read.
//!
//! A type with a text is that text, and a struct has its fields by their names. What is
//! read passes the same checks as everywhere else. Errors never repeat it, since it may be
//! a key in the wrong place.

pub(crate) mod key;
mod read;
mod structs;
mod values;
