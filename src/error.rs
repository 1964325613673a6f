//! Errors of parsing a value, of opening a store and of building a service. The errors of
//! calls, such as [`VerifyError`](crate::VerifyError), are in the crate root.

pub use crate::allowlist::{AllowlistError, EntryProblem};
pub use crate::audit::changed::ChangedFieldsError;
pub use crate::audit::country::CountryCodeError;
pub use crate::audit::delivery::DeliveryError;
#[cfg(feature = "geoip")]
#[cfg_attr(docsrs, doc(cfg(feature = "geoip")))]
pub use crate::audit::geoip::GeoIpError;
pub use crate::audit::log::AuditCursorError;
pub use crate::audit::record::AuditIdError;
pub use crate::key::digest::KeyDigestError;
pub use crate::key::existing::{ExistingDigestError, ExistingFormatError};
pub use crate::key::expiration::ExpirationError;
pub use crate::key::format::{MalformedKey, PrefixError};
pub use crate::key::formats::EnvironmentError;
pub use crate::key::id::KeyIdError;
pub use crate::key::idempotency::IdempotencyKeyError;
pub use crate::key::name::KeyNameError;
pub use crate::manager::builder::BuildError;
pub use crate::manager::rate::RateLimitError;
pub use crate::names::UnknownName;
pub use crate::network::NetworkError;
pub use crate::org::OrgIdError;
pub use crate::random::RandomError;
pub use crate::record::attributes::{AttributesError, MetadataError};
pub use crate::runtime::clock::TimestampError;
pub use crate::scopes::{MissingScope, ScopeError, ScopesError};
#[cfg(feature = "cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
pub use crate::store::cache::CacheError;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use crate::store::postgres::PostgresOpenError;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use crate::store::sqlite::SqliteOpenError;
pub use crate::store::transfer::ImportError;
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use crate::web::extract::KeyRejection;
#[cfg(feature = "settings-page")]
#[cfg_attr(docsrs, doc(cfg(feature = "settings-page")))]
pub use crate::web::page::SettingsPageError;
