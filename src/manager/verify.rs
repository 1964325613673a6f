//! Verification: parse, look up by digest, compare, apply the policy.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::key::digest::KeyDigest;
use crate::key::existing::Lookup;
use crate::key::format::{MAX_CREDENTIAL_LEN, MalformedKey};
use crate::key::id::KeyId;
use crate::key::name::KeyName;
use crate::manager::error::StoreTimeout;
use crate::manager::{Inner, KeyManager};
use crate::org::OrgId;
use crate::policy::{self, Denial};
use crate::record::ApiKey;
use crate::record::attributes::Metadata;
use crate::runtime::clock::Timestamp;
use crate::runtime::spawn::timeout;
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
            let (verified, now) = self.inner.check(lookup?, ip).await?;
            self.inner.uses.record(verified.id(), now);
            Ok(verified)
        }
    }
}

impl Inner {
    pub(super) fn lookup(&self, credential: &[u8]) -> Result<Lookup, VerifyError> {
        if credential.len() > MAX_CREDENTIAL_LEN {
            return Err(VerifyError::Malformed(MalformedKey));
        }
        self.formats.lookup(credential, None).map_err(VerifyError::Malformed)
    }

    pub(super) async fn check(
        &self,
        lookup: Lookup,
        ip: Option<IpAddr>,
    ) -> Result<(VerifiedKey, Timestamp), VerifyError> {
        let key = match (self.find(&lookup.digest).await?, lookup.further) {
            (Some(key), _) => key,
            // Boxed, so that other requests do not pay for its size.
            (None, Some(further)) => Box::pin(self.find_existing(&lookup.digest, *further)).await?,
            (None, None) => return Err(VerifyError::Unknown),
        };
        let environment = self.formats.name_of_shown(key.format_prefix());
        if lookup.environment.is_some_and(|only| environment.as_ref() != Some(&only)) {
            return Err(VerifyError::Unknown);
        }
        // Read after the look-up, so that a slow store does not extend the life of a key.
        let now = self.clock.now();
        match policy::evaluate(&key, ip, now) {
            Ok(()) => Ok((VerifiedKey { key, environment }, now)),
            Err(denial) => Err(VerifyError::Denied { denial, key }),
        }
    }

    /// The key with this digest.
    pub(super) async fn find(
        &self,
        digest: &KeyDigest,
    ) -> Result<Option<Arc<ApiKey>>, VerifyError> {
        let found = self.bounded(self.store.find_by_digest(digest)).await;
        // A second check, in case a faulty store returns the wrong key.
        let is_it = |key: &Arc<ApiKey>| bool::from(key.digest.ct_eq(digest));
        Ok(found.map_err(VerifyError::Unavailable)?.filter(is_it))
    }

    /// Runs a call of the store within its deadline.
    pub(super) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(&*self.runtime, self.store_deadline, call)
            .await
            .unwrap_or_else(|_| Err(StoreError::unavailable(StoreTimeout)))
    }

    /// Runs a call of the store that changes something within its deadline. If the deadline
    /// passes, the change may have taken place.
    pub(super) async fn confirmed<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(&*self.runtime, self.store_deadline, call)
            .await
            .unwrap_or_else(|_| Err(StoreError::in_doubt(StoreTimeout)))
    }
}

/// A key that has passed every check. Only a [`KeyManager`] creates one, so it proves
/// authentication.
///
/// ```compile_fail
/// fn forge(key: std::sync::Arc<keygate::ApiKey>) -> keygate::VerifiedKey {
///     keygate::VerifiedKey { key, environment: None }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedKey {
    key: Arc<ApiKey>,
    environment: Option<Arc<str>>,
}

impl VerifiedKey {
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

    /// The host's own metadata, such as the customer's plan.
    pub fn metadata(&self) -> &Metadata {
        &self.key.attributes.metadata
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

    /// The HTTP status of the refusal: 403 for an address that is not allowed, 503 if the
    /// key could not be checked, and 401 otherwise.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Unknown => 401,
            Self::Denied { denial, .. } => match denial {
                Denial::Revoked | Denial::Expired => 401,
                Denial::IpNotAllowed | Denial::AllowlistUnreadable => 403,
            },
            Self::Unavailable(_) => 503,
        }
    }
}
