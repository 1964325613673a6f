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
pub(crate) mod search;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
pub(crate) mod transfer;

pub use crate::key::digest::KeyDigest;
pub use crate::record::attributes::Attributes;
pub use crate::record::{KeyUse, OrgLimit, PreviousSecret, Revision};
#[cfg(feature = "serde")]
#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
pub use crate::serialize::key::WithDigest;
#[cfg(feature = "cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
pub use crate::store::cache::{CacheHealth, CacheState, CachedStoreBuilder};
#[cfg(feature = "cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
pub use crate::store::feed::{ChangeFeed, News};
#[cfg(all(feature = "cache", feature = "postgres"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "cache", feature = "postgres"))))]
pub use crate::store::postgres::PostgresChanges;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use crate::store::postgres::PostgresOptions;
pub use crate::store::search::{KeySearch, Search, SearchCursor, SearchPage};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use crate::store::sqlite::SqliteOptions;
pub use crate::store::transfer::{Imported, KeyExport, KeyImport, import};
