//! Storage for keys: the `KeyStore` trait and its implementations.

#[cfg(feature = "cache")]
pub(crate) mod cache;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "cache")]
pub(crate) mod feed;
pub(crate) mod key_store;
pub(crate) mod memory;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
pub(crate) mod transfer;
