//! Concurrent histories of keys: what makes them, what judges them, and stores that spoil them.

pub(crate) mod broken;
pub(crate) mod checker;
pub(crate) mod event;
mod handmade;
pub(crate) mod workload;
