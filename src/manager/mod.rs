//! `KeyManager`: creates, changes and verifies keys.

pub(crate) mod admission;
pub(crate) mod adopt;
pub(crate) mod adopted;
pub(crate) mod asking;
pub(crate) mod builder;
mod cache;
mod change;
pub(crate) mod creation;
mod ended;
pub(crate) mod endpoint;
pub(crate) mod error;
mod existing;
pub(crate) mod health;
mod in_use;
mod last_use;
mod lifecycle;
pub(crate) mod listener;
#[cfg(feature = "metrics")]
mod metrics;
pub(crate) mod operator;
pub(crate) mod rate;
#[cfg(feature = "rate-limit")]
pub(crate) mod rate_limits;
mod reading;
mod repeat;
mod report;
mod restore;
mod turns;
mod under_way;
pub(crate) mod verify;
mod watch;

pub use crate::key::formats::Environment;
pub use crate::key::idempotency::IdempotencyKey;
pub use crate::manager::admission::{Admission, AdmitError, RequestInfo};
pub use crate::manager::builder::KeyManagerBuilder;
pub use crate::manager::creation::IssuedKey;
pub use crate::manager::listener::{ChangeListener, KeyChange};
pub use crate::manager::operator::Operator;
pub use crate::manager::rate::{RateLimiter, RatePolicy, RateStatus};
#[cfg(feature = "rate-limit")]
#[cfg_attr(docsrs, doc(cfg(feature = "rate-limit")))]
pub use crate::manager::rate_limits::{RateLimit, RateLimits};
pub use crate::manager::report::{AuditQueue, HealthReport, PartHealth, ShutdownReport};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::copies::WithCopies;
use crate::audit::log::AuditLog;
use crate::audit::record::AuditIds;
use crate::audit::writer::AuditWriter;
use crate::key::format::KeyFormat;
use crate::key::formats::Formats;
use crate::key::id::KeyId;
use crate::manager::asking::Asking;
use crate::manager::cache::Cache;
use crate::manager::ended::Ended;
use crate::manager::last_use::LastUses;
use crate::manager::report::Probe;
use crate::manager::turns::Turns;
use crate::manager::under_way::Changes;
use crate::manager::watch::Watched;
use crate::meters::VerifyMeter;
use crate::org::OrgId;
use crate::random::SharedRng;
use crate::record::{ApiKey, Limits};
use crate::runtime::clock::{Clock, Timestamp};
use crate::runtime::relay::Relay;
use crate::runtime::spawn::Runtime;
use crate::scopes::ScopeCatalog;
use crate::store::key_store::KeyStore;
use crate::throttle::Throttle;

/// A key with its organisation, so that a foreign key's id blocks nothing.
type OwnedKey = (OrgId, KeyId);

/// The limits of each organisation.
struct LimitsFor(Box<dyn Fn(&OrgId) -> Limits + Send + Sync>);

impl fmt::Debug for LimitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LimitsFor")
    }
}

/// Creates, changes and verifies the keys of one service.
///
/// Cloning is cheap: it returns another handle to the same manager. Create one with
/// [`KeyManager::builder`]. A manager lives as long as the runtime that it was built on, so
/// build one for each test.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use keygate::{Actor, KeyManager, KeyPatch, MemoryStore, NewKey, OrgId};
///
/// let keys = KeyManager::builder(MemoryStore::new()).build()?;
/// let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
///
/// // The full key is available only here.
/// let issued = keys.create(&actor, NewKey::named("CI deploy")?).await?;
/// let verified = keys.verify(issued.secret.expose_secret(), None).await?;
/// assert_eq!(verified.org().as_str(), "acme");
///
/// keys.revoke(&actor, &issued.key.id).await?;
/// assert!(keys.verify(issued.secret.expose_secret(), None).await.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KeyManager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn KeyStore>,
    cache: Cache,
    store_deadline: Duration,
    formats: Formats,
    limits: LimitsFor,
    scopes: Option<ScopeCatalog>,
    max_overlap: Duration,
    existing_keys: Option<Asking>,
    clock: Arc<dyn Clock>,
    rng: SharedRng,
    runtime: Arc<dyn Runtime>,
    uses: LastUses,
    ended: Ended,
    changes: Arc<Changes>,
    watched: Arc<Watched>,
    listener: Option<Relay<KeyChange>>,
    copies: Option<Arc<WithCopies>>,
    turns: Arc<Turns<OwnedKey>>,
    /// Of reads of an organisation's audit log.
    log_turns: Arc<Turns<OrgId>>,
    /// Whether the store accepts changes, by its last answer.
    probe: Probe,
    audit: Option<Arc<AuditWriter>>,
    audit_ids: Arc<AuditIds>,
    audit_log: Option<Arc<dyn AuditLog>>,
    verifications: VerifyMeter,
    limiter: Option<Arc<dyn RateLimiter>>,
    /// For requests refused because the store did not answer.
    unverified: Throttle,
    /// For requests refused because they could not be recorded.
    unrecorded: Throttle,
    /// For keys with a prefix that is not configured.
    foreign: Throttle,
    /// For existing keys that keep their digest.
    not_taken_over: Throttle,
    /// For keys with an allowlist that were refused because no address was known.
    no_address: Throttle,
    /// For requests let in because the rate limiter failed.
    unlimited: Throttle,
    /// For health checks that found a failure.
    unhealthy: Throttle,
}

impl KeyManager {
    /// The format of this manager's keys; with environments, that of the first.
    pub fn format(&self) -> &KeyFormat {
        self.inner.formats.default_format()
    }

    /// The environments, the default one first. None unless
    /// [`KeyManagerBuilder::environment`](crate::manager::KeyManagerBuilder::environment) was called.
    pub fn environments(&self) -> impl Iterator<Item = &Environment> {
        self.inner.formats.environments()
    }

    #[cfg(feature = "tower")]
    pub(crate) fn formats(&self) -> &Formats {
        &self.inner.formats
    }

    /// The name of the environment that a key belongs to; `None` without environments.
    pub fn environment_of(&self, key: &ApiKey) -> Option<&str> {
        let of = self.inner.formats.of_shown(key.format_prefix())?;
        self.environments().find(|one| *one == of).map(Environment::name)
    }

    /// The limits of an organisation.
    pub fn limits(&self, org: &OrgId) -> Limits {
        (self.inner.limits.0)(org)
    }

    /// The scopes that keys can be given, if there are any.
    pub fn scopes(&self) -> Option<&ScopeCatalog> {
        self.inner.scopes.as_ref()
    }

    /// How long an old secret may work after a rotation, at most.
    pub fn max_overlap(&self) -> Duration {
        self.inner.max_overlap
    }

    /// The current time, by the manager's clock.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// The audit log to read from, if there is one.
    pub fn audit_log(&self) -> Option<&Arc<dyn AuditLog>> {
        self.inner.audit_log.as_ref()
    }
}
