//! Guides, step by step.

#[doc = include_str!("restore.md")]
pub mod restore {}

#[doc = include_str!("restore_sqlite.md")]
pub mod restore_sqlite {}
