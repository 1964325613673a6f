//! The builder of a `KeyManager`.

use std::sync::Arc;
use std::time::Duration;

use rand_core::TryCryptoRng;
use thiserror::Error;

use crate::audit::copies::WithCopies;
use crate::audit::country::CountryLookup;
use crate::audit::delivery::Delivery;
use crate::audit::log::AuditLog;
use crate::audit::record::AuditIds;
use crate::audit::sink::AuditSink;
use crate::audit::writer::AuditWriter;
use crate::key::existing::{ExistingFormat, ExistingFormatError};
use crate::key::format::KeyFormat;
use crate::key::formats::{Environment, EnvironmentError, Formats};
use crate::manager::admission::refusal_records;
use crate::runtime::clock::{Clock, SystemClock};

use crate::manager::asking::{Asking, ExistingKeys};
use crate::manager::cache::Cache;
use crate::manager::ended::Ended;
use crate::manager::last_use::LastUses;
use crate::manager::listener::{self, ChangeListener};
use crate::manager::rate::RateLimiter;
use crate::manager::report::Probe;
use crate::manager::{Inner, KeyManager, LimitsFor};
use crate::meters::VerifyMeter;
use crate::org::OrgId;
use crate::random::{RandomError, SharedRng};
use crate::record::Limits;
use crate::runtime::spawn::{self, Runtime};
use crate::scopes::ScopeCatalog;
use crate::store::key_store::KeyStore;
use crate::store::search::KeySearch;
use crate::text::debug_with_causes;
use crate::throttle::Throttle;

/// Builds a [`KeyManager`]. Only the store is required; without an audit sink, nothing is
/// logged.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use keygate::{Delivery, KeyFormat, KeyManager, MemoryAuditLog, MemoryStore};
///
/// let keys = KeyManager::builder(MemoryStore::new())
///     .audit(MemoryAuditLog::new())
///     .delivery(Delivery::strict())
///     .format(KeyFormat::new("acme_")?)
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct KeyManagerBuilder {
    store: Arc<dyn KeyStore>,
    cache: Cache,
    store_deadline: Duration,
    format: KeyFormat,
    environments: Vec<Environment>,
    existing: Vec<ExistingFormat>,
    existing_keys: Option<Arc<dyn ExistingKeys>>,
    existing_keys_at_once: usize,
    limits: LimitsFor,
    scopes: Option<ScopeCatalog>,
    max_overlap: Duration,
    clock: Arc<dyn Clock>,
    rng: SharedRng,
    runtime: Option<Arc<dyn Runtime>>,
    sink: Option<Arc<dyn AuditSink>>,
    log: Option<Arc<dyn AuditLog>>,
    delivery: Delivery,
    countries: Option<Arc<dyn CountryLookup>>,
    copies: Vec<Arc<dyn AuditSink>>,
    listener: Option<Arc<dyn ChangeListener>>,
    limiter: Option<Arc<dyn RateLimiter>>,
    revoke_unused: Option<(Duration, Arc<dyn KeySearch>)>,
}

impl KeyManager {
    /// Starts building a manager for this store: one of this crate's, your own, or an `Arc`
    /// of either.
    pub fn builder(store: impl KeyStore) -> KeyManagerBuilder {
        KeyManagerBuilder {
            cache: Cache::of(&store),
            store: Arc::new(store),
            store_deadline: Duration::from_secs(2),
            format: KeyFormat::default(),
            environments: Vec::new(),
            existing: Vec::new(),
            existing_keys: None,
            existing_keys_at_once: 4,
            limits: LimitsFor(Box::new(|_| Limits::default())),
            scopes: None,
            max_overlap: Duration::ZERO,
            clock: Arc::new(SystemClock),
            rng: SharedRng::System,
            runtime: None,
            sink: None,
            log: None,
            delivery: Delivery::buffered(),
            countries: None,
            copies: Vec::new(),
            listener: None,
            limiter: None,
            revoke_unused: None,
        }
    }
}

impl KeyManagerBuilder {
    /// Writes audit records to this log, and reads them from it.
    pub fn audit(self, log: impl AuditSink + AuditLog) -> Self {
        let log = Arc::new(log);
        Self { sink: Some(log.clone()), log: Some(log), ..self }
    }

    /// Writes audit records to this sink.
    pub fn audit_sink(self, sink: impl AuditSink) -> Self {
        Self { sink: Some(Arc::new(sink)), ..self }
    }

    /// Passes a copy of the audit records on to a further sink, such as one for a log
    /// collector. It gets each batch once the sink of [`audit`](Self::audit) or
    /// [`audit_sink`](Self::audit_sink) has it. Nothing waits for it, and nothing fails
    /// because of it: an error, a panic, or a call of more than 10 seconds is logged, and the
    /// batch is not given again. If 64 batches wait, further ones are left out.
    pub fn audit_copy(mut self, sink: impl AuditSink) -> Self {
        self.copies.push(Arc::new(sink));
        self
    }

    /// Tells this listener of each change that took place.
    pub fn change_listener(self, listener: impl ChangeListener) -> Self {
        Self { listener: Some(Arc::new(listener)), ..self }
    }

    /// Reads audit records from this log.
    pub fn audit_log(self, log: impl AuditLog) -> Self {
        Self { log: Some(Arc::new(log)), ..self }
    }

    /// Sets how the records of requests reach the sink. The default is buffered delivery.
    pub fn delivery(self, delivery: Delivery) -> Self {
        Self { delivery, ..self }
    }

    /// Adds the country of the client's address to audit records.
    pub fn countries(self, lookup: impl CountryLookup) -> Self {
        Self { countries: Some(Arc::new(lookup)), ..self }
    }

    /// Sets the format of keys. The default is `vsp_sk_…`.
    pub fn format(self, format: KeyFormat) -> Self {
        Self { format, ..self }
    }

    /// Adds an environment: a name of 1 to 40 of `[a-z0-9_-]`, and the format of its keys.
    /// The first one is the default. They replace [`KeyManagerBuilder::format`].
    pub fn environment(mut self, name: &str, format: KeyFormat) -> Self {
        self.environments.push(Environment::new(name, format));
        self
    }

    /// Declares a format of keys that were issued before keygate, so that they are looked
    /// up. [`KeyManager::adopt`] stores them.
    pub fn existing(mut self, format: ExistingFormat) -> Self {
        self.existing.push(format);
        self
    }

    /// Asks this for existing keys whose digest cannot be computed from their text.
    pub fn existing_keys(self, keys: impl ExistingKeys) -> Self {
        Self { existing_keys: Some(Arc::new(keys)), ..self }
    }

    /// Sets for how many credentials [`ExistingKeys`] is asked at a time. Others wait, and
    /// are refused as unavailable after the [store deadline](Self::store_deadline). The
    /// default is 4.
    pub fn existing_keys_at_once(self, at_once: usize) -> Self {
        Self { existing_keys_at_once: at_once, ..self }
    }

    /// Sets the limits of every organisation. The default is 20 keys, and 50 allowlist
    /// entries per key.
    pub fn limits(self, limits: Limits) -> Self {
        self.limits_for(move |_| limits)
    }

    /// Sets the limits of each organisation, for example by its plan. The function is
    /// called often, so it should not block.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::{KeyManager, Limits, MemoryStore};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new())
    ///     .limits_for(|org| match org.as_str() {
    ///         "big" => Limits::default().max_keys(200),
    ///         _ => Limits::default(),
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn limits_for(self, limits: impl Fn(&OrgId) -> Limits + Send + Sync + 'static) -> Self {
        Self { limits: LimitsFor(Box::new(limits)), ..self }
    }

    /// Offers these scopes. From then on, a new key has to say which of them it has, or
    /// that it has full access. The keys that already exist have full access.
    pub fn scopes(self, scopes: ScopeCatalog) -> Self {
        Self { scopes: Some(scopes), ..self }
    }

    /// Allows rotations after which the old secret works for up to this time: see
    /// [`KeyManager::rotate_with_overlap`]. The default is zero, which allows none. Set it
    /// once every process runs a version with this setting: earlier ones refuse old secrets.
    pub fn max_overlap(self, max_overlap: Duration) -> Self {
        Self { max_overlap, ..self }
    }

    /// Limits how many requests each key may make in a time. The default is no limit.
    pub fn rate_limiter(self, limiter: impl RateLimiter) -> Self {
        Self { limiter: Some(Arc::new(limiter)), ..self }
    }

    /// Once an hour, revokes the keys that were not used for this time, nor created, rotated or
    /// enabled in it. The change is in the audit log with the actor `keygate: unused`, and the organisation can enable the key
    /// again. The default is never; [`Operator`](crate::manager::Operator) lists such keys, for a
    /// reminder before.
    ///
    /// `store` is the store of this manager; if that is a cache, the one behind it.
    pub fn revoke_unused_after(self, time: Duration, store: impl KeySearch) -> Self {
        Self { revoke_unused: Some((time, Arc::new(store))), ..self }
    }

    /// Sets how long a call of the store may take before the store counts as unavailable.
    /// The default is 2 seconds.
    pub fn store_deadline(self, deadline: Duration) -> Self {
        Self { store_deadline: deadline, ..self }
    }

    /// Sets the clock. The default is the system clock.
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// Sets the random number generator for secrets and ids: a hardware generator, or one
    /// with a known seed in tests. The default is the operating system's.
    ///
    /// Anyone who can predict the generator can forge keys. It is used under a lock, and
    /// if it panics, it is not used again.
    ///
    /// ```
    /// # use keygate::{KeyManager, MemoryStore};
    /// use keygate::rand_core::{CryptoRng, SeedableRng};
    ///
    /// fn reproducible<R: CryptoRng + SeedableRng + Send + 'static>(seed: u64) {
    ///     let builder = KeyManager::builder(MemoryStore::new()).rng(R::seed_from_u64(seed));
    /// }
    /// ```
    pub fn rng<R>(self, rng: R) -> Self
    where
        R: TryCryptoRng<Error: std::error::Error + Send + Sync + 'static> + Send + 'static,
    {
        Self { rng: SharedRng::given(rng), ..self }
    }

    /// Sets the async runtime. The default is the tokio runtime that [`build`](Self::build)
    /// is called on.
    pub fn runtime(self, runtime: impl Runtime) -> Self {
        Self { runtime: Some(Arc::new(runtime)), ..self }
    }

    /// Starts the manager and its background tasks. A tokio runtime needs timers
    /// (`enable_time`), as it has under `#[tokio::main]`.
    ///
    /// # Errors
    ///
    /// [`BuildError::NoRuntime`] if no runtime is set and this is not called on a tokio
    /// runtime, [`BuildError::CopyWithoutSink`] for [`audit_copy`](Self::audit_copy) alone,
    /// [`BuildError::Environment`] for environments that are not valid, and
    /// [`BuildError::Existing`] for a format of existing keys that new keys could have, too.
    pub fn build(self) -> Result<KeyManager, BuildError> {
        let runtime = self.runtime.or_else(spawn::current).ok_or(BuildError::NoRuntime)?;
        let ids = AuditIds::new(&mut self.rng.clone()).map_err(BuildError::Random)?;
        let audit_ids = Arc::new(ids);
        let formats = match self.environments {
            none if none.is_empty() => Formats::single(self.format),
            environments => Formats::named(environments).map_err(BuildError::Environment)?,
        };
        let formats = formats
            .with_existing(self.existing, self.existing_keys.is_some())
            .map_err(BuildError::Existing)?;
        let at_once = self.existing_keys_at_once;
        if self.sink.is_none() && !self.copies.is_empty() {
            return Err(BuildError::CopyWithoutSink);
        }
        let mut copies = None;
        let audit = self.sink.map(|mut sink| {
            if !self.copies.is_empty() {
                let with_copies = Arc::new(WithCopies::start(sink, self.copies, &runtime));
                copies = Some(Arc::clone(&with_copies));
                sink = with_copies;
            }
            let runtime = Arc::clone(&runtime);
            let refusals = refusal_records(formats.clone(), Arc::clone(&audit_ids));
            Arc::new(AuditWriter::start(sink, self.countries, self.delivery, runtime, refusals))
        });
        let store = self.store;
        let uses = LastUses::start(Arc::clone(&store), self.store_deadline, Arc::clone(&runtime));
        let listener = self.listener.map(|listener| listener::relay(listener, &runtime));
        let inner = Arc::new(Inner {
            store,
            cache: self.cache,
            store_deadline: self.store_deadline,
            formats,
            limits: self.limits,
            scopes: self.scopes,
            max_overlap: self.max_overlap,
            existing_keys: self.existing_keys.map(|keys| Asking::new(keys, at_once)),
            clock: self.clock,
            audit_ids,
            rng: self.rng,
            runtime,
            uses,
            ended: Ended::default(),
            changes: Arc::default(),
            watched: Arc::default(),
            listener,
            copies,
            turns: Arc::default(),
            log_turns: Arc::default(),
            probe: Probe::default(),
            audit,
            audit_log: self.log,
            verifications: VerifyMeter::new(),
            limiter: self.limiter,
            unlimited: Throttle::default(),
            unverified: Throttle::default(),
            unrecorded: Throttle::default(),
            foreign: Throttle::default(),
            not_taken_over: Throttle::default(),
            no_address: Throttle::default(),
            unhealthy: Throttle::default(),
        });
        let keys = KeyManager { inner };
        #[cfg(feature = "metrics")]
        keys.report_metrics();
        keys.tidy_rates();
        if let Some((time, store)) = self.revoke_unused {
            keys.revoke_unused(time, store);
        }
        Ok(keys)
    }
}

/// Why a manager could not be started.
#[derive(Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no runtime for the background tasks.
    #[error(
        "no async runtime: build on a tokio runtime (feature `tokio`), or set one with `runtime`"
    )]
    NoRuntime,
    /// There is a copy of the audit log, but no audit log.
    #[error("`audit_copy` needs an audit log: set one with `audit` or `audit_sink`")]
    CopyWithoutSink,
    /// The random number generator failed.
    #[error(transparent)]
    Random(RandomError),
    /// The environments are not valid.
    #[error(transparent)]
    Environment(EnvironmentError),
    /// A format of existing keys is not valid.
    #[error(transparent)]
    Existing(ExistingFormatError),
}

debug_with_causes!(BuildError);
