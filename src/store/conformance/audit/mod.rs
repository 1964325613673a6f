//! Properties of an audit log: what was recorded comes back, once, in order, to
//! its own organisation, until it is purged.

pub mod fields;
mod fixtures;
pub mod pages;
pub mod purge;
pub mod record;
pub mod scope;
