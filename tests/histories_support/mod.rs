//! Concurrent histories of keys: the threads that make them, and their checker.

pub(crate) mod checker;
pub(crate) mod event;
mod handmade;
mod history;
pub(crate) mod processes;
mod slots;
pub(crate) mod workload;
