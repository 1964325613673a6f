//! Runs changes to completion, even if the caller stops waiting, and corrects the audit log
//! when a change did not take place.

use std::future::Future;

use futures_channel::oneshot;
use tracing::Instrument;

use crate::audit::delivery::DeliveryError;
use crate::audit::record::{AuditEvent, AuditRecord, ChangeAction, ChangeEvent, ChangePhase};
use crate::key::id::KeyId;
use crate::manager::KeyManager;
use crate::manager::error::ManageError;
use crate::manager::under_way::UnderWay;
use crate::org::Actor;
use crate::record::ApiKey;
use crate::runtime::spawn::{all, caught};

/// How a change ended that did not fail.
pub(super) enum Done<T> {
    Changed(T),
    /// The key already was in the requested state, through another change.
    Unchanged(T),
}

impl KeyManager {
    /// Writes the change's audit record and makes the change in a separate task, so that
    /// dropping the caller stops neither. If the caller is gone before the record is
    /// durable, the change is not made. If nothing was changed, a second record says so.
    pub(super) async fn carry_through<T, F>(
        &self,
        actor: &Actor,
        key: KeyId,
        action: ChangeAction,
        change: impl FnOnce(KeyManager) -> F + Send + 'static,
    ) -> Result<T, ManageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Done<T>, ManageError>> + Send,
    {
        let under_way = UnderWay::begin(&self.inner.changes)
            .map_err(|shut_down| ManageError::Unavailable(Box::new(shut_down)))?;
        let entry = Entry { keys: self.clone(), actor: actor.clone(), key, action };
        let (caller, answer) = oneshot::channel();
        let task = async move {
            let _under_way = under_way;
            let result = match entry.write(ChangePhase::Begun).await {
                Err(error) => Err(error.into()),
                Ok(()) if caller.is_canceled() => {
                    entry.take_back().await;
                    return;
                }
                Ok(()) => {
                    let keys = entry.keys.clone();
                    let changed = caught(async move { change(keys).await }).await;
                    entry
                        .close(changed.unwrap_or_else(|_| Err(lost("the key store panicked"))))
                        .await
                }
            };
            // The caller may be gone.
            let _ = caller.send(result);
        };
        self.inner.runtime.spawn(Box::pin(task.in_current_span()));
        answer.await.unwrap_or_else(|_| Err(lost("the runtime has ended the change")))
    }
}

impl KeyManager {
    /// As [`carry_through`](Self::carry_through), for the creation of many keys at once: a
    /// record for each is durable before `insert` says which of them it has created.
    pub(super) async fn carry_all_through<F>(
        &self,
        by: &str,
        keys: Vec<ApiKey>,
        insert: impl FnOnce(Vec<ApiKey>) -> F + Send + 'static,
    ) -> Result<Vec<bool>, ManageError>
    where
        F: Future<Output = Result<Vec<bool>, ManageError>> + Send,
    {
        let under_way = UnderWay::begin(&self.inner.changes)
            .map_err(|shut_down| ManageError::Unavailable(Box::new(shut_down)))?;
        let entry = |key: &ApiKey| Entry {
            keys: self.clone(),
            actor: Actor::new(key.org.clone(), by),
            key: key.id,
            action: ChangeAction::Created,
        };
        let entries: Vec<_> = keys.iter().map(entry).collect();
        let (caller, answer) = oneshot::channel();
        let task = async move {
            let _under_way = under_way;
            let begun = all(entries.iter().map(|entry| entry.write(ChangePhase::Begun))).await;
            let created = match begun.into_iter().collect::<Result<(), _>>() {
                Err(error) => Err(error.into()),
                Ok(()) if caller.is_canceled() => Ok(vec![false; entries.len()]),
                Ok(()) => {
                    let inserted = caught(async move { insert(keys).await }).await;
                    inserted.unwrap_or_else(|_| Err(lost("the key store panicked")))
                }
            };
            // None of them, if it is not known which.
            if !matches!(created, Err(ManageError::InDoubt(_))) {
                let is_created = |at| created.as_ref().is_ok_and(|all| all.get(at) == Some(&true));
                let entries = entries.iter().enumerate().filter(|(at, _)| !is_created(*at));
                all(entries.map(|(_, entry)| entry.take_back())).await;
            }
            // The caller may be gone.
            let _ = caller.send(created);
        };
        self.inner.runtime.spawn(Box::pin(task.in_current_span()));
        answer.await.unwrap_or_else(|_| Err(lost("the runtime has ended the change")))
    }
}

fn lost(how: &'static str) -> ManageError {
    ManageError::InDoubt(how.into())
}

/// A change in the audit log.
struct Entry {
    keys: KeyManager,
    actor: Actor,
    key: KeyId,
    action: ChangeAction,
}

impl Entry {
    async fn close<T>(&self, changed: Result<Done<T>, ManageError>) -> Result<T, ManageError> {
        match changed {
            Ok(Done::Changed(done)) => Ok(done),
            Ok(Done::Unchanged(done)) => {
                self.take_back().await;
                Ok(done)
            }
            Err(error @ ManageError::InDoubt(_)) => Err(error),
            Err(error) => {
                self.take_back().await;
                Err(error)
            }
        }
    }

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
            }),
        }
    }
}
