//! Tells the host of changes that took place.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::audit::changed::ChangedFields;
use crate::audit::record::ChangeAction;
use crate::key::id::KeyId;
use crate::org::OrgId;
use crate::runtime::clock::Timestamp;
use crate::runtime::relay::Relay;
use crate::runtime::spawn::Runtime;

/// How many changes may wait.
const CAPACITY: usize = 1_024;

/// Is told of each change of a key after it took place, for example to send an e-mail or
/// a webhook. Set it with
/// [`KeyManagerBuilder::change_listener`](crate::manager::KeyManagerBuilder::change_listener).
///
/// It is told by a background task, one change after the other in the order in which they
/// ended. A change that was made does not wait for it, and does not fail because of it: an
/// error, a panic, or a call of more than 10 seconds is logged, and the next change follows.
/// If 1,024 changes wait, further ones are left out. The audit log is complete; this is not:
/// it is not told of a change whose outcome is unknown
/// ([`InDoubt`](crate::ManageError::InDoubt)), nor of changes by other processes, which have
/// listeners of their own.
///
/// ```
/// use keygate::audit::ChangeAction;
/// use keygate::manager::{ChangeListener, KeyChange};
///
/// #[derive(Debug)]
/// struct Mail;
///
/// #[async_trait::async_trait]
/// impl ChangeListener for Mail {
///     async fn changed(&self, change: &KeyChange) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///         if change.action == ChangeAction::Rotated {
///             println!("to {}: {} has rotated a key", change.org, change.actor);
///         }
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait ChangeListener: fmt::Debug + Send + Sync + 'static {
    /// A change took place. An error is logged.
    async fn changed(
        &self,
        change: &KeyChange,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

#[async_trait]
impl<L: ChangeListener + ?Sized> ChangeListener for Arc<L> {
    async fn changed(
        &self,
        change: &KeyChange,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        (**self).changed(change).await
    }
}

/// A change of a key that took place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyChange {
    /// When it was done.
    pub at: Timestamp,
    /// The organisation that owns the key.
    pub org: OrgId,
    /// The key.
    pub key: KeyId,
    /// The name of the [`Actor`](crate::Actor) that made the change.
    pub actor: Arc<str>,
    /// What the actor did.
    pub action: ChangeAction,
    /// The fields that were changed, with their values before and after.
    pub fields: ChangedFields,
}

/// Passes changes on to a listener.
pub(super) fn relay(
    listener: Arc<dyn ChangeListener>,
    runtime: &Arc<dyn Runtime>,
) -> Relay<KeyChange> {
    Relay::start("the change listener", CAPACITY, runtime, move |change| {
        let listener = Arc::clone(&listener);
        Box::pin(async move { listener.changed(&change).await })
    })
}
