//! What can go wrong in managing keys.

use std::error::Error as StdError;

use thiserror::Error;

use crate::audit::delivery::DeliveryError;
use crate::key::id::KeyId;
use crate::random::RandomError;
use crate::record::Revision;
use crate::store::contract::StoreError;

/// Why a key was not made, read or changed.
///
/// The management API answers [`Unavailable`](Self::Unavailable) and
/// [`InDoubt`](Self::InDoubt) both with 503, and says in words which of them it is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManageError {
    /// The organisation has no such key; it may be another's.
    #[error("no such key")]
    NotFound,
    /// The organisation has as many keys as it may have.
    #[error("the organisation has reached its limit of {max} keys")]
    LimitReached {
        /// The limit.
        max: u32,
    },
    /// The allowlist has more entries than one key may have.
    #[error("an allowlist has at most {max} entries")]
    AllowlistTooLong {
        /// The limit.
        max: u32,
    },
    /// The name holds what is, or was meant to be, a key of this service.
    #[error("the name holds an API key")]
    NameHoldsKey,
    /// The instant at which the key is to expire is not in the future.
    #[error("the expiration is not in the future")]
    ExpirationInThePast,
    /// Another change to the key came first.
    #[error("another change to the key came first")]
    Conflict,
    /// The key is not at the revision that the change was meant for.
    #[error("the key is at revision {} by now", current.get())]
    StaleRevision {
        /// The revision that the key is at.
        current: Revision,
    },
    /// The organisation has made a key with this idempotency key in the last 24 hours.
    #[error("key {id} was made with this idempotency key already")]
    AlreadyCreated {
        /// The key that was made.
        id: KeyId,
    },
    /// The store or the audit log does not work now; worth a retry. A change did not
    /// take place, and does not take place later.
    #[error("key management is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// The store did not confirm the change in time, and it may have taken place: read
    /// the key before you try again. Where it has not taken place by the store's own
    /// deadline, it does not take place later.
    #[error("the change was not confirmed, and may have taken place")]
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

/// A call of the store or the audit log took longer than the manager allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the database exceeded its deadline")]
pub(crate) struct StoreTimeout;

/// Other changes of a key took all the time that this one had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("other changes of the same key are under way")]
pub(crate) struct Busy;

/// The manager takes no more changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the key manager has been shut down")]
pub(crate) struct ShutDown;
