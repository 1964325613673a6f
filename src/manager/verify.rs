//! Verification: parse, look up by digest, compare, apply the policy.

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;

use thiserror::Error;

use crate::audit::record::Outcome;
use crate::key::digest::KeyDigest;
use crate::key::existing::{Lookup, Of};
use crate::key::format::{KeyFormat, MalformedKey};
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::manager::error::StoreTimeout;
use crate::manager::{Inner, KeyManager};
use crate::meters::{MALFORMED, Timer, UNAVAILABLE, UNKNOWN, measure_call};
use crate::org::OrgId;
use crate::policy::{self, Denial};
use crate::record::attributes::Metadata;
use crate::record::{ApiKey, SecretUsed};
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::{BoxFuture, Panicked, poll_caught, timeout};
use crate::scopes::{MissingScope, Scopes};
use crate::store::key_store::StoreError;

impl KeyManager {
    /// Checks whether a presented credential is a key that may be used now, from this
    /// address.
    ///
    /// `ip` is the client's address. If it is `None`, only keys without an allowlist pass.
    /// The credential is read before the first `await` and not held across it, except for
    /// a credential of a declared [existing format](crate::existing::ExistingFormat) if
    /// there are [`ExistingKeys`](crate::existing::ExistingKeys) to be asked.
    ///
    /// A key that passes is marked as used. Nothing is written to the audit log; use
    /// [`KeyManager::admit`] for that.
    ///
    /// # Errors
    ///
    /// On any error, the credential is not authenticated. Tell the caller no more than
    /// [`VerifyError::http_status`]: the details are for the operator.
    pub fn verify(
        &self,
        credential: &str,
        ip: Option<IpAddr>,
    ) -> impl Future<Output = Result<VerifiedKey, VerifyError>> + Send + use<'_> {
        let lookup = self.inner.lookup(credential.as_bytes());
        async move {
            let lookup = lookup.as_ref().map_err(|e| VerifyError::Malformed(*e))?;
            let timer = Timer::start();
            let checked = self.inner.check(lookup, ip.as_ref()).await;
            self.inner.count(checked.as_ref().err(), timer);
            let (verified, now) = checked?;
            self.inner.uses.record(verified.id(), now);
            Ok(verified)
        }
    }
}

impl Inner {
    pub(super) fn lookup(&self, credential: &[u8]) -> Result<Lookup, MalformedKey> {
        let lookup = match credential.len() {
            0..=KeyFormat::MAX_CREDENTIAL_LEN => self.formats.lookup(credential, None),
            _ => Err(MalformedKey),
        };
        lookup.inspect_err(|_| self.count_malformed())
    }

    /// Counts a credential that cannot be a key.
    pub(super) fn count_malformed(&self) {
        self.verifications.count(MALFORMED, None);
    }

    /// Counts a request over its rate limit.
    pub(super) fn count_rate_limited(&self, timer: Timer) {
        self.verifications.count(Outcome::RateLimited.as_str(), Some(timer));
    }

    /// Counts a verification, with its error if it failed.
    pub(super) fn count(&self, error: Option<&VerifyError>, timer: Timer) {
        let outcome = match error {
            None => Outcome::Allowed.as_str(),
            Some(VerifyError::Malformed(_)) => MALFORMED,
            Some(VerifyError::Unknown) => UNKNOWN,
            Some(VerifyError::Denied { denial, .. }) => Outcome::from(*denial).as_str(),
            Some(VerifyError::Unavailable(_)) => UNAVAILABLE,
        };
        self.verifications.count(outcome, Some(timer));
    }

    pub(super) async fn check(
        &self,
        Lookup { digest, of }: &Lookup,
        ip: Option<&IpAddr>,
    ) -> Result<(VerifiedKey, Timestamp), VerifyError> {
        let (key, secret, environment) = match of {
            Of::Own(position) => {
                let (key, secret) = self.find(digest).await?.ok_or(VerifyError::Unknown)?;
                (key, secret, self.formats.name_at(*position))
            }
            // Boxed, so that other requests do not pay for its size.
            Of::Existing(further) => Box::pin(self.find_existing(digest, further)).await?,
        };
        // Read after the look-up, so that a slow store does not extend the life of a key.
        let now = self.clock.now();
        let mut allowed = policy::evaluate(&key, secret, ip.copied(), now);
        if secret == SecretUsed::Previous {
            allowed = self.unless_ended(&key, *digest, allowed, now);
        }
        match allowed {
            Ok(()) => Ok((VerifiedKey { key, secret, environment }, now)),
            Err(denial) => Err(VerifyError::Denied { denial, key, secret }),
        }
    }

    /// A previous secret that was refused once after its end stays refused, even if the clock
    /// steps back.
    fn unless_ended(
        &self,
        key: &ApiKey,
        digest: KeyDigest,
        allowed: Result<(), Denial>,
        now: Timestamp,
    ) -> Result<(), Denial> {
        match allowed {
            Ok(()) if self.ended.contains(&digest) => return Err(Denial::Expired),
            Err(Denial::Expired) if !key.is_expired(now) => self.ended.insert(digest),
            _ => {}
        }
        allowed
    }

    /// The key with this digest, and which of its secrets has it.
    pub(super) async fn find(
        &self,
        digest: &KeyDigest,
    ) -> Result<Option<(Arc<ApiKey>, SecretUsed)>, VerifyError> {
        let timer = Timer::start();
        let found = self.within_deadline(self.store.find_by_digest(digest)).await;
        self.verifications.looked_up(&found, timer);
        with_secret(found, digest)
    }

    /// Runs and measures a call of the store within its deadline. If it panics, the store is
    /// unavailable.
    pub(super) async fn bounded<T>(
        &self,
        operation: &'static str,
        call: BoxFuture<'_, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let timer = Timer::start();
        let answer = self.within_deadline(call).await;
        measure_call(operation, timer, &answer);
        answer
    }

    /// As [`Inner::bounded`], but does not measure it.
    // One future and not `timeout(caught(…))`, since each request waits for one.
    fn within_deadline<'a, T>(
        &'a self,
        mut call: BoxFuture<'a, Result<T, StoreError>>,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + use<'a, T> {
        let mut timer = None;
        poll_fn(move |cx| match poll_caught(call.as_mut(), cx) {
            Poll::Ready(Ok(answer)) => Poll::Ready(answer),
            Poll::Ready(Err(Panicked)) => {
                Poll::Ready(Err(StoreError::unavailable("the key store panicked")))
            }
            Poll::Pending => {
                let timer = timer.get_or_insert_with(|| self.runtime.sleep(self.store_deadline));
                timer.as_mut().poll(cx).map(|()| Err(StoreError::unavailable(StoreTimeout)))
            }
        })
    }

    /// Runs and measures a call of the store that changes something within its deadline. If
    /// the deadline passes, the change may have taken place.
    pub(super) async fn confirmed<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let timer = Timer::start();
        let answer = timeout(&*self.runtime, self.store_deadline, call)
            .await
            .unwrap_or_else(|_| Err(StoreError::in_doubt(StoreTimeout)));
        measure_call(operation, timer, &answer);
        answer
    }
}

#[inline]
fn with_secret(
    found: Result<Option<Arc<ApiKey>>, StoreError>,
    digest: &KeyDigest,
) -> Result<Option<(Arc<ApiKey>, SecretUsed)>, VerifyError> {
    let key = found.map_err(VerifyError::Unavailable)?;
    // A second check, in case a faulty store returns the wrong key.
    Ok(key.and_then(|key| key.secret_with(digest).map(|secret| (key, secret))))
}

/// A key that has passed every check. Only a [`KeyManager`] creates one, so it proves
/// authentication. This does not compile:
///
/// ```compile_fail
/// fn forge(key: std::sync::Arc<keygate::ApiKey>) -> keygate::VerifiedKey {
///     keygate::VerifiedKey { key, secret: keygate::audit::SecretUsed::Current, environment: None }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedKey {
    key: Arc<ApiKey>,
    secret: SecretUsed,
    environment: Option<Arc<str>>,
}

impl VerifiedKey {
    /// A key for tests of a service's own handlers. Only with the feature `test-util`, which
    /// belongs into `[dev-dependencies]`: it would let production code forge a key.
    ///
    /// ```
    /// use keygate::{ApiKey, VerifiedKey};
    ///
    /// async fn greet(key: VerifiedKey) -> String {
    ///     format!("hello, {}", key.org())
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let key = VerifiedKey::for_test(ApiKey::sample(1));
    /// assert_eq!(greet(key).await, "hello, acme");
    /// # }
    /// ```
    ///
    /// For a whole router, put it into the request's extensions, where the layer would:
    /// `request.extensions_mut().insert(key)`.
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn for_test(key: ApiKey) -> Self {
        Self { key: Arc::new(key), secret: SecretUsed::Current, environment: None }
    }

    /// The organisation that the caller belongs to.
    pub fn org(&self) -> &OrgId {
        &self.key.org
    }

    /// The key's identifier.
    pub fn id(&self) -> KeyId {
        self.key.id
    }

    /// The key's name.
    pub fn name(&self) -> &KeyName {
        &self.key.name
    }

    /// The name of the key's environment; `None` if the service has none.
    pub fn environment(&self) -> Option<&str> {
        self.environment.as_deref()
    }

    /// The name of the actor who created the key, if it is known.
    pub fn created_by(&self) -> Option<&str> {
        self.key.attributes.created_by.as_deref()
    }

    /// The host's own metadata, such as the customer's plan.
    pub fn metadata(&self) -> &Metadata {
        &self.key.attributes.metadata
    }

    /// What the key may be used for.
    pub fn scopes(&self) -> &Scopes {
        &self.key.attributes.scopes
    }

    /// Whether the key has this scope, or full access.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().has(scope)
    }

    /// Fails if the key has neither this scope nor full access. In an axum handler:
    ///
    /// ```
    /// use keygate::error::MissingScope;
    /// use keygate::VerifiedKey;
    ///
    /// async fn reports(key: VerifiedKey) -> Result<String, MissingScope> {
    ///     key.require_scope("reports:read")?;
    ///     Ok(format!("the reports of {}", key.org()))
    /// }
    /// ```
    pub fn require_scope(&self, scope: &str) -> Result<(), MissingScope> {
        if self.has_scope(scope) { Ok(()) } else { Err(MissingScope::named(scope.parse().ok())) }
    }

    /// The error for a request that needs a scope which the key lacks.
    pub(super) fn lacks_scope(&self) -> VerifyError {
        let (key, secret) = (Arc::clone(&self.key), self.secret);
        VerifyError::Denied { denial: Denial::InsufficientScope, key, secret }
    }

    /// Which of the key's secrets the request was made with: after a rotation with an
    /// overlap, clients may still have the previous one.
    pub fn secret_used(&self) -> SecretUsed {
        self.secret
    }

    /// The whole record as the store returned it for this verification. Its last-used time
    /// may be out of date.
    pub fn record(&self) -> &ApiKey {
        &self.key
    }
}

/// Why a credential was not authenticated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The text cannot be a key; nothing was looked up.
    #[error(transparent)]
    Malformed(MalformedKey),
    /// There is no such key, or it was deleted.
    #[error("no such key")]
    Unknown,
    /// The key exists but may not be used.
    #[error("{denial}")]
    Denied {
        /// The reason.
        denial: Denial,
        /// The key.
        key: Arc<ApiKey>,
        /// Which of its secrets was presented.
        secret: SecretUsed,
    },
    /// The store failed or took too long, so the result is unknown.
    #[error("the key could not be checked")]
    Unavailable(#[source] StoreError),
}

impl VerifyError {
    /// Whether the credential might pass later, so that a retry makes sense.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The HTTP status of the refusal: 403 for an address that is not allowed or a missing
    /// scope, 503 if the key could not be checked, and 401 otherwise.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Unknown => 401,
            Self::Denied { denial, .. } => match denial {
                Denial::Revoked | Denial::Expired => 401,
                Denial::IpNotAllowed | Denial::AllowlistUnreadable | Denial::InsufficientScope => {
                    403
                }
            },
            Self::Unavailable(_) => 503,
        }
    }
}
