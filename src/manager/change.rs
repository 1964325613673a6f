//! Runs changes to completion, even if the caller stops waiting, and corrects the audit log
//! when a change did not take place.

use std::future::Future;
use std::iter;

use futures_channel::oneshot;
use tracing::Instrument;

use crate::audit::changed::ChangedFields;
use crate::audit::delivery::DeliveryError;
use crate::audit::record::{AuditEvent, AuditRecord, ChangeAction, ChangeEvent, ChangePhase};
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::error::ManageError;
use crate::manager::listener::KeyChange;
use crate::manager::under_way::UnderWay;
use crate::org::Actor;
use crate::runtime::spawn::{all, caught};

/// How a change ended that did not fail.
pub(super) enum Done<T> {
    Changed(T),
    /// The key already was in the requested state, through another change.
    Unchanged(T),
}

impl KeyManager {
    /// Writes the change's audit record and makes the change, as
    /// [`carry_all_through`](Self::carry_all_through) does.
    pub(super) async fn carry_through<T, F>(
        &self,
        actor: &Actor,
        key: KeyId,
        what: (ChangeAction, ChangedFields),
        change: impl FnOnce(KeyManager) -> F + Send + 'static,
    ) -> Result<T, ManageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Done<T>, ManageError>> + Send,
    {
        let entry = self.entry(actor.clone(), key, what);
        let change = async move |keys| match change(keys).await? {
            Done::Changed(done) => Ok((done, vec![true])),
            Done::Unchanged(done) => Ok((done, vec![false])),
        };
        self.carry_all_through(vec![entry], change).await
    }

    /// Writes the audit records of several changes and makes them in a separate task, so that
    /// dropping the caller stops neither. If the caller is gone before the records are
    /// durable, nothing is changed. `change` also returns which of the changes it has made;
    /// a second record says of each other one that it did not take place.
    pub(super) async fn carry_all_through<T, F>(
        &self,
        entries: Vec<Entry>,
        change: impl FnOnce(KeyManager) -> F + Send + 'static,
    ) -> Result<T, ManageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<(T, Vec<bool>), ManageError>> + Send,
    {
        let under_way = UnderWay::begin(&self.inner.changes)
            .map_err(|shut_down| ManageError::Unavailable(Box::new(shut_down)))?;
        let (caller, answer) = oneshot::channel();
        let keys = self.clone();
        let task = async move {
            let _under_way = under_way;
            let begun = all(entries.iter().map(|entry| entry.write(ChangePhase::Begun))).await;
            let is_begun: Vec<bool> = begun.iter().map(Result::is_ok).collect();
            let changed = match begun.into_iter().collect::<Result<(), _>>() {
                Err(error) => Err(error.into()),
                Ok(()) if caller.is_canceled() => {
                    Err(ManageError::Unavailable("the caller has given up".into()))
                }
                Ok(()) => {
                    let changed = caught(async move { change(keys).await }).await;
                    changed.unwrap_or_else(|_| Err(lost("the key store panicked")))
                }
            };
            // None of them, if it is not known which were made.
            if !matches!(changed, Err(ManageError::InDoubt(_))) {
                let made = changed.as_ref().map_or(&[][..], |(_, made)| made);
                let made = made.iter().copied().chain(iter::repeat(false));
                let entries: Vec<_> = entries.iter().zip(is_begun).zip(made).collect();
                entries.iter().filter(|(_, is_made)| *is_made).for_each(|((e, _), _)| e.tell());
                let not_made =
                    entries.iter().filter(|((_, is_begun), is_made)| *is_begun && !is_made);
                all(not_made.map(|((entry, _), _)| entry.take_back())).await;
            }
            // The caller may be gone.
            let _ = caller.send(changed.map(|(done, _)| done));
        };
        self.inner.runtime.spawn(Box::pin(task.in_current_span()));
        answer.await.unwrap_or_else(|_| Err(lost("the runtime has ended the change")))
    }

    /// A change in the audit log.
    pub(super) fn entry(
        &self,
        actor: Actor,
        key: KeyId,
        (action, fields): (ChangeAction, ChangedFields),
    ) -> Entry {
        Entry { keys: self.clone(), actor, key, action, fields }
    }
}

fn lost(how: &'static str) -> ManageError {
    ManageError::InDoubt(how.into())
}

/// A change in the audit log.
pub(super) struct Entry {
    keys: KeyManager,
    actor: Actor,
    key: KeyId,
    action: ChangeAction,
    fields: ChangedFields,
}

impl Entry {
    /// Returns once the record is durable. If writing the first record fails, it may still
    /// reach the log later, so the abandoned change is followed by a second record.
    async fn write(&self, phase: ChangePhase) -> Result<(), DeliveryError> {
        let Some(audit) = &self.keys.inner.audit else { return Ok(()) };
        let written = audit.write(self.record(phase)).await;
        let perhaps = matches!(written, Err(DeliveryError::TimedOut | DeliveryError::Failed));
        if perhaps && phase == ChangePhase::Begun {
            audit.enqueue(None, self.record(ChangePhase::Abandoned));
        }
        written
    }

    /// Records that the change did not take place.
    async fn take_back(&self) {
        if let Err(error) = self.write(ChangePhase::Abandoned).await {
            let (key, action) = (self.key, self.action.as_str());
            tracing::warn!(%key, action, %error, "an abandoned change is not in the audit log");
        }
    }

    /// Tells the host that the change took place.
    fn tell(&self) {
        let inner = &*self.keys.inner;
        inner.watched.notify(&self.key);
        if let Some(listener) = &inner.listener {
            listener.send(KeyChange {
                at: self.keys.now(),
                org: self.actor.org().clone(),
                key: self.key,
                actor: self.actor.shared_name(),
                action: self.action,
                fields: self.fields.clone(),
            });
        }
    }

    fn record(&self, phase: ChangePhase) -> AuditRecord {
        AuditRecord {
            id: self.keys.inner.audit_ids.next(),
            at: self.keys.now(),
            org: self.actor.org().clone(),
            key: self.key,
            event: AuditEvent::Change(ChangeEvent {
                actor: self.actor.shared_name(),
                action: self.action,
                phase,
                fields: self.fields.clone(),
            }),
        }
    }
}
