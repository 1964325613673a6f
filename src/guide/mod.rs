//! Guides, step by step.

#[doc = include_str!("restore.md")]
pub mod restore {}
