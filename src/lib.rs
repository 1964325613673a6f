//! API keys for Rust services. Your customers create, restrict, rotate, revoke and delete
//! their keys; every request is verified in-process and logged; only a hash of each key is
//! stored.
//!
//! A key looks like `vsp_sk_` followed by 48 letters and digits ([`KeyFormat`]).
//! [`KeyManager`] makes and verifies them, over any [`KeyStore`] and [`AuditSink`].
//! The [`guide`] has everything beyond this page.
//!
//! # An axum service
//!
//! Features `settings-page` and `sqlite`. This is a whole `main.rs`, with keys and audit
//! log in one SQLite file:
//!
#![cfg_attr(
    all(feature = "settings-page", feature = "sqlite"),
    doc = include_str!("guide/service.md")
)]
//!
//! # Without a framework
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use keygate::{Actor, Expiration, KeyManager, MemoryAuditLog, MemoryStore, NewKey, OrgId};
//!
//! let keys = KeyManager::builder(MemoryStore::new())
//!     .audit(MemoryAuditLog::new())
//!     .build()?;
//!
//! // On behalf of a user who is logged in:
//! let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
//! let new = NewKey::named("CI deploy")?.expires(Expiration::OneYear).allow(["10.0.0.0/8"])?;
//! let issued = keys.create(&actor, new).await?;
//! println!("copy this, it is shown once: {}", issued.secret.expose_secret());
//!
//! // On each request (`admit` instead also records the request):
//! let presented = issued.secret.expose_secret();
//! let client_ip = Some("10.1.2.3".parse()?);
//! match keys.verify(presented, client_ip).await {
//!     Ok(key) => println!("a request of {}", key.org()),
//!     Err(error) => println!("answer with status {}", error.http_status()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # With a store of your own
//!
//! Implement [`KeyStore`], whose documentation is a tutorial, and test it with the
//! conformance suite (feature `conformance`). The same goes for [`AuditSink`],
//! [`AuditLog`] and [`KeyExport`](store::KeyExport).
//!
#![cfg_attr(
    feature = "conformance",
    doc = r#"
```
# #[tokio::main(worker_threads = 4)]
# async fn main() {
use keygate::MemoryStore;

// MemoryStore stands for yours.
let report = keygate::conformance::check_store(|| async { MemoryStore::new() }).await.unwrap();
# }
```
"#
)]
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | `tokio` (default) | background tasks and deadlines on tokio; without it, bring a [`Runtime`](runtime::Runtime) |
//! | `tower` | [`ApiKeyLayer`], generic over bodies; under axum, use `axum` |
//! | `axum` | the layer knows axum's peer address and nesting; the [`VerifiedKey`] extractor |
//! | `admin` | [`admin::router`], the management API |
//! | `settings-page` | [`SettingsPage`], the page that uses it; includes `admin`, `axum` and `tower` |
//! | `sqlite` | [`SqliteStore`]: keys and audit records in one file |
//! | `postgres` | [`PostgresStore`]: keys and audit records that many processes share |
//! | `postgres-tls` | TLS for its connections, by rustls |
//! | `cache` | [`CachedStore`]: keys kept in memory in front of a store across a network |
//! | `geoip` | [`MaxMindCountries`](audit::MaxMindCountries): countries in audit records, from a MaxMind DB file |
//! | `metrics` | counts and times by the [`metrics`] facade; the guide has [their names](guide::operations) |
//! | `rate-limit` | [`RateLimits`](manager::RateLimits): a rate limit for each key, counted within the process |
//! | `serde` | `Serialize` and `Deserialize` for records, ids and names, never for a secret |
//! | `conformance` | the test suite for stores and audit logs |
//! | `test-util` | [`VerifiedKey`] for tests of handlers; for `[dev-dependencies]` only |
//!
//! # How it works
//!
//! A presented credential is checked in this order: parse, one look-up by digest,
//! comparison in constant time, status, expiry, address ([`VerifyError`], [`Denial`]).
//! Changes are made on behalf of an [`Actor`] and reach only the keys of the actor's
//! organisation. Every request with a known key, and every change, leaves an
//! [`AuditRecord`](audit::AuditRecord); [`Delivery`] sets how reliably it is kept.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod allowlist;
pub mod audit;
pub mod error;
pub mod existing;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub mod guard;
pub mod guide;
mod key;
pub mod manager;
mod meters;
mod names;
mod network;
mod org;
mod policy;
mod random;
mod record;
pub mod runtime;
mod scopes;
#[cfg(feature = "serde")]
mod serialize;
pub mod store;
mod text;
mod throttle;
#[cfg(feature = "axum")]
mod web;
#[cfg(feature = "tower")]
mod wire;

pub use crate::allowlist::Allowlist;
pub use crate::audit::delivery::Delivery;
pub use crate::audit::log::AuditLog;
pub use crate::audit::memory::MemoryAuditLog;
pub use crate::audit::sink::{AuditError, AuditSink};
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use crate::guard::layer::ApiKeyLayer;
pub use crate::key::expiration::Expiration;
pub use crate::key::format::KeyFormat;
pub use crate::key::id::KeyId;
pub use crate::key::name::KeyName;
pub use crate::key::secret::PlaintextKey;
pub use crate::manager::KeyManager;
pub use crate::manager::error::ManageError;
pub use crate::manager::verify::{VerifiedKey, VerifyError};
pub use crate::network::Network;
pub use crate::org::{Actor, OrgId};
pub use crate::policy::Denial;
pub use crate::record::attributes::Metadata;
pub use crate::record::change::{KeyPatch, NewKey};
pub use crate::record::{ApiKey, Limits, Status};
pub use crate::runtime::clock::Timestamp;
pub use crate::scopes::{Scope, ScopeCatalog, Scopes};
#[cfg(feature = "cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
pub use crate::store::cache::CachedStore;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub use crate::store::conformance;
pub use crate::store::key_store::{KeyStore, StoreError};
pub use crate::store::memory::MemoryStore;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use crate::store::postgres::PostgresStore;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use crate::store::sqlite::SqliteStore;
#[cfg(feature = "admin")]
#[cfg_attr(docsrs, doc(cfg(feature = "admin")))]
pub use crate::web::admin;
#[cfg(feature = "settings-page")]
#[cfg_attr(docsrs, doc(cfg(feature = "settings-page")))]
pub use crate::web::page::SettingsPage;
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use crate::web::unread::close_if_unread;

/// The version of `metrics` whose recorder this crate reports to: install a recorder of the
/// same version, since another one gets nothing.
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub use metrics;
/// The version of `rand_core` whose generators [`KeyManagerBuilder::rng`](manager::KeyManagerBuilder::rng) takes.
pub use rand_core;
