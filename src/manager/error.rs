//! Errors of key management.

use std::error::Error as StdError;
use std::time::Duration;

use thiserror::Error;

use crate::audit::delivery::DeliveryError;
use crate::key::id::KeyId;
use crate::random::RandomError;
use crate::record::Revision;
use crate::store::key_store::StoreError;

/// Why a key was not made, read or changed.
///
/// The management API answers [`Unavailable`](Self::Unavailable) and
/// [`InDoubt`](Self::InDoubt) both with 503, and says in words which of them it is. Both
/// print without their cause, which is their [`source`](StdError::source).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManageError {
    /// The organisation has no such key. Another organisation may have it.
    #[error("no such key")]
    NotFound,
    /// The organisation has reached its limit of keys.
    #[error("the organisation has reached its limit of {max} keys")]
    LimitReached {
        /// The limit.
        max: u32,
    },
    /// The allowlist has more entries than a key may have.
    #[error("an allowlist has at most {max} entries")]
    AllowlistTooLong {
        /// The limit.
        max: u32,
    },
    /// The name contains an API key of this service, or most of one.
    #[error("the name contains an API key")]
    NameHoldsKey,
    /// The service has no environment with this name.
    #[error("there is no such environment")]
    UnknownEnvironment,
    /// The expiration is not in the future.
    #[error("the expiration is not in the future")]
    ExpirationInThePast,
    /// The service has scopes, and the new key does not say which of them it has.
    #[error("a new key needs scopes, or full access")]
    ScopesMissing,
    /// A scope is not one that the service offers.
    #[error("scope {position} is not offered")]
    ScopeNotOffered {
        /// The scope's position, from 1.
        position: usize,
    },
    /// The overlap of a rotation is longer than
    /// [`max_overlap`](crate::manager::KeyManagerBuilder::max_overlap).
    #[error("an overlap is at most {} seconds", max.as_secs())]
    OverlapTooLong {
        /// The longest overlap.
        max: Duration,
    },
    /// Another change to the key came first.
    #[error("another change to the key came first")]
    Conflict,
    /// The key is not at the expected revision.
    #[error("the key is now at revision {}", current.get())]
    StaleRevision {
        /// The key's current revision.
        current: Revision,
    },
    /// The organisation has created a key with this idempotency key in the last 24 hours.
    #[error("key {id} was already created with this idempotency key")]
    AlreadyCreated {
        /// The key that was created.
        id: KeyId,
    },
    /// The store or the audit log does not work now; retry later. A change did not take
    /// place and will not take place later.
    #[error("key management is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// The store did not confirm the change in time, so it may have taken place. Read the
    /// key before you retry. If it has not taken place by the store's own deadline, it will
    /// not take place later.
    #[error("the change was not confirmed and may have taken place")]
    InDoubt(#[source] Box<dyn StdError + Send + Sync>),
}

impl From<StoreError> for ManageError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::NotFound,
            StoreError::Conflict => Self::Conflict,
            StoreError::InDoubt(source) => Self::InDoubt(source),
            other => Self::Unavailable(Box::new(other)),
        }
    }
}

impl From<DeliveryError> for ManageError {
    fn from(error: DeliveryError) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<RandomError> for ManageError {
    fn from(error: RandomError) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

/// A call of the store or the audit log exceeded its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the store did not answer within its deadline")]
pub(crate) struct StoreTimeout;

/// The manager accepts no more changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the key manager has been shut down")]
pub(crate) struct ShutDown;
