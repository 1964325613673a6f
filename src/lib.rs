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
//! [`AuditLog`] and [`KeyExport`].
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
//! | `tokio` (default) | background tasks and deadlines on tokio; without it, bring a [`Runtime`] |
//! | `tower` | [`ApiKeyLayer`], generic over bodies |
//! | `axum` | the layer knows axum's peer address and nesting; the [`VerifiedKey`] extractor |
//! | `admin` | [`admin::router`], the management API |
//! | `settings-page` | [`SettingsPage`], the page that uses it |
//! | `sqlite` | [`SqliteStore`]: keys and audit records in one file |
//! | `postgres` | [`PostgresStore`]: keys and audit records that many processes share |
//! | `postgres-tls` | TLS for its connections, by rustls |
//! | `cache` | [`CachedStore`]: keys kept in memory in front of a store across a network |
//! | `geoip` | [`MaxMindCountries`]: countries in audit records, from a MaxMind DB file |
//! | `serde` | records, ids and names are read and written by serde, and never a secret |
//! | `conformance` | the test suite for stores and audit logs |
//!
//! # How it works
//!
//! A presented credential is checked in this order: parse, one look-up by digest,
//! comparison in constant time, status, expiry, address ([`VerifyError`], [`Denial`]).
//! Changes are made on behalf of an [`Actor`] and reach only the keys of the actor's
//! organisation. Every request with a known key, and every change, leaves an
//! [`AuditRecord`]; [`Delivery`] sets how reliably it is kept.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod allowlist;
mod audit;
mod clock;
#[cfg(feature = "tower")]
mod guard;
pub mod guide;
mod key;
mod manager;
mod names;
mod network;
mod org;
mod policy;
mod random;
mod record;
mod runtime;
#[cfg(feature = "serde")]
mod serialize;
mod store;
mod text;
mod throttle;
#[cfg(feature = "axum")]
mod web;
#[cfg(feature = "tower")]
mod wire;

pub use crate::allowlist::{Allowlist, AllowlistError, EntryProblem};
pub use crate::audit::country::{CountryCode, CountryCodeError, CountryLookup};
pub use crate::audit::delivery::{AuditStats, Delivery, DeliveryError, WhenFull};
#[cfg(feature = "geoip")]
#[cfg_attr(docsrs, doc(cfg(feature = "geoip")))]
pub use crate::audit::geoip::{GeoIpError, MaxMindCountries};
pub use crate::audit::log::{
    AuditCursor, AuditCursorError, AuditLog, AuditPage, AuditQuery, AuditScope, Position,
};
pub use crate::audit::memory::MemoryAuditLog;
pub use crate::audit::record::{
    AuditEvent, AuditId, AuditIdError, AuditRecord, ChangeAction, ChangeEvent, ChangePhase,
    Outcome, RequestEvent,
};
pub use crate::audit::sink::{AuditError, AuditSink};
pub use crate::clock::{Clock, ManualClock, SystemClock, Timestamp, TimestampError};
pub use crate::key::digest::{KeyDigest, KeyDigestError};
pub use crate::key::expiration::{Expiration, ExpirationError};
pub use crate::key::format::{KeyFormat, MAX_CREDENTIAL_LEN, MalformedKey, PrefixError};
pub use crate::key::id::{KeyId, KeyIdError};
pub use crate::key::idempotency::{IdempotencyKey, IdempotencyKeyError};
pub use crate::key::name::{KeyName, KeyNameError};
pub use crate::key::secret::PlaintextKey;
pub use crate::manager::KeyManager;
pub use crate::manager::admission::{Admission, AdmitError, RequestInfo};
pub use crate::manager::builder::{BuildError, KeyManagerBuilder};
pub use crate::manager::error::ManageError;
pub use crate::manager::lifecycle::IssuedKey;
pub use crate::manager::report::{HealthReport, PartHealth, ShutdownReport};
pub use crate::manager::verify::{VerifiedKey, VerifyError};
pub use crate::names::UnknownName;
pub use crate::network::{Network, NetworkError};
pub use crate::org::{Actor, OrgId, OrgIdError};
pub use crate::policy::Denial;
pub use crate::random::RandomError;
pub use crate::record::attributes::{Attributes, AttributesError, Metadata, MetadataError};
pub use crate::record::{ApiKey, KeyPatch, KeyUse, Limits, NewKey, OrgLimit, Revision, Status};
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub use crate::runtime::TokioRuntime;
pub use crate::runtime::{BoxFuture, Runtime};
#[cfg(feature = "serde")]
#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
pub use crate::serialize::key::WithDigest;
#[cfg(feature = "cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
pub use crate::store::cache::{
    CacheError, CacheHealth, CacheState, CachedStore, CachedStoreBuilder,
};
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub use crate::store::conformance;
#[cfg(feature = "cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
pub use crate::store::feed::{ChangeFeed, News};
pub use crate::store::key_store::{KeyStore, StoreError};
pub use crate::store::memory::MemoryStore;
#[cfg(all(feature = "cache", feature = "postgres"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "cache", feature = "postgres"))))]
pub use crate::store::postgres::PostgresChanges;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use crate::store::postgres::{PostgresOpenError, PostgresOptions, PostgresStore};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use crate::store::sqlite::{SqliteOpenError, SqliteOptions, SqliteStore};
pub use crate::store::transfer::{ImportError, Imported, KeyExport, import};
#[cfg(feature = "admin")]
#[cfg_attr(docsrs, doc(cfg(feature = "admin")))]
pub use crate::web::admin;
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use crate::web::extract::KeyRejection;
#[cfg(feature = "settings-page")]
#[cfg_attr(docsrs, doc(cfg(feature = "settings-page")))]
pub use crate::web::page::{SettingsPage, SettingsPageError};
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use crate::web::unread::close_if_unread;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use crate::{
    guard::{
        body::ResponseBody, config::PeerAddr, future::ResponseFuture, layer::ApiKeyLayer,
        service::ApiKeyService,
    },
    wire::client_ip::{ClientIp, ProxyHeader},
};

/// The version of `rand_core` whose generators [`KeyManagerBuilder::rng`] takes.
pub use rand_core;
