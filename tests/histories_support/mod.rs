//! Concurrent histories of keys: a workload that records them, a checker, and faulty stores.

pub(crate) mod broken;
pub(crate) mod checker;
pub(crate) mod event;
mod handmade;
pub(crate) mod workload;
