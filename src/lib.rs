//! API keys for Rust services.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod allowlist;
mod audit;
#[cfg(feature = "axum")]
mod axum;
mod clock;
#[cfg(feature = "tower")]
mod http;
mod key;
mod manager;
mod network;
mod org;
mod policy;
mod random;
mod record;
mod runtime;
mod store;
mod text;
#[cfg(feature = "tower")]
mod tower;

pub use crate::allowlist::{Allowlist, AllowlistError, EntryProblem};
pub use crate::audit::country::{CountryCode, CountryLookup};
pub use crate::audit::delivery::{AuditStats, Delivery, DeliveryError, WhenFull};
pub use crate::audit::log::{
    AuditCursor, AuditCursorError, AuditLog, AuditPage, AuditQuery, AuditScope, Position,
};
pub use crate::audit::memory::MemoryAuditLog;
pub use crate::audit::record::{
    AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase, Outcome, RequestEvent,
};
pub use crate::audit::sink::{AuditError, AuditSink};
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use crate::axum::extract::KeyRejection;
pub use crate::clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use crate::key::digest::{KeyDigest, KeyDigestError};
pub use crate::key::expiration::{Expiration, ExpirationError};
pub use crate::key::format::{KeyFormat, MAX_CREDENTIAL_LEN, MalformedKey, PrefixError};
pub use crate::key::id::{KeyId, KeyIdError};
pub use crate::key::name::{KeyName, KeyNameError};
pub use crate::key::secret::PlaintextKey;
pub use crate::manager::KeyManager;
pub use crate::manager::admission::{Admission, AdmitError, RequestInfo};
pub use crate::manager::builder::{BuildError, KeyManagerBuilder};
pub use crate::manager::error::ManageError;
pub use crate::manager::health::ShutdownReport;
pub use crate::manager::lifecycle::IssuedKey;
pub use crate::manager::verify::{VerifiedKey, VerifyError};
pub use crate::network::{Network, NetworkError};
pub use crate::org::{Actor, OrgId, OrgIdError};
pub use crate::policy::Denial;
pub use crate::random::{Random, RandomError, SystemRandom};
pub use crate::record::{ApiKey, KeyPatch, KeyUse, Limits, NewKey, OrgLimit, Revision, Status};
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub use crate::runtime::TokioRuntime;
pub use crate::runtime::{BoxFuture, Runtime};
pub use crate::store::contract::{KeyStore, StoreError};
pub use crate::store::memory::MemoryStore;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use crate::{
    http::client_ip::{ClientIp, ProxyHeader},
    tower::{
        body::ResponseBody,
        future::ResponseFuture,
        layer::{ApiKeyLayer, PeerAddr},
        service::ApiKeyService,
    },
};
