//! Concurrent histories of keys: the threads that make them, their checker, and broken stores.

pub(crate) mod broken;
pub(crate) mod checker;
pub(crate) mod event;
mod handmade;
pub(crate) mod workload;
