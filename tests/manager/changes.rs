//! Changes and their audit records.

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keygate::audit::ChangeAction::{Created, Deleted, Rotated, Updated};
use keygate::audit::ChangePhase::{Abandoned, Begun};
use keygate::audit::{AuditEvent, AuditRecord, ChangeEvent};
use keygate::runtime::{Clock, ManualClock};
use keygate::store::OrgLimit;
use keygate::*;

use crate::support::{Call, Sink, SpySink, SpyStore, org, soon};
use crate::{
    ada, assert_gone, assert_in_doubt, assert_unavailable, bench, bench_with, change_first_key,
    fail, interfere, name, new_key, rename,
};

const WRITES: &[Call] = &[Call::Insert, Call::Replace, Call::Delete];

/// Remembers each record with the state of the store when it was written.
#[derive(Debug)]
struct Witness {
    store: Arc<SpyStore>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

type Seen = (AuditRecord, Vec<ApiKey>);

#[async_trait]
impl AuditSink for Witness {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        for record in batch {
            let keys = self.store.snapshot(&record.org).await;
            self.seen.lock().unwrap().push((record.clone(), keys));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_change_is_recorded_before_it_takes_effect() {
    let store = Arc::new(SpyStore::default());
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let witness = Witness { store: store.clone(), seen: Arc::clone(&seen) };
    let clock = Arc::new(ManualClock::new(Timestamp::MAX));
    let b =
        bench_with(|_| KeyManager::builder(store.clone()).audit_sink(witness).clock(clock.clone()));
    let mut before = Vec::new();
    let mut history = vec![];
    let issued = b.create().await;
    let id = issued.key.id;
    for action in [Created, Updated, Rotated, Deleted] {
        match action {
            Updated => drop(b.keys.update(&ada(), &id, rename("b")).await.unwrap()),
            Rotated => drop(b.keys.rotate(&ada(), &id).await.unwrap()),
            Deleted => b.keys.delete(&ada(), &id).await.unwrap(),
            _ => {}
        }
        history.push((action, std::mem::replace(&mut before, store.snapshot(&org("acme")).await)));
        assert_ne!(history.last().unwrap().1, before, "the change took place");
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    for ((record, keys), (action, before)) in seen.iter().zip(&history) {
        let actor: Arc<str> = "ada@acme.example".into();
        let event = AuditEvent::Change(ChangeEvent::new(actor, *action, Begun));
        assert_eq!((&record.org, record.key, &record.event), (&org("acme"), id, &event));
        assert_eq!(record.at, clock.now(), "the time of the manager's clock");
        assert_eq!(keys, before, "{action:?} took effect before its record");
    }
}

#[tokio::test]
async fn a_change_that_did_not_happen_is_recorded_as_abandoned() {
    // The last place is taken between the count and the insert.
    let b = bench_with(|builder| builder.limits(Limits::default().max_keys(1)));
    interfere(&b.store, Call::Insert, |store| async move {
        let other = bench().create().await;
        store.inner.insert(&other.key, OrgLimit::NONE).await.unwrap();
    });
    let full = b.keys.create(&ada(), new_key()).await;
    assert!(matches!(full, Err(ManageError::LimitReached { max: 1 })), "{full:?}");
    assert_eq!(b.changes().await, [(Created, Begun), (Created, Abandoned)]);

    // The key is deleted between the read and the write.
    for action in [Updated, Rotated, Deleted] {
        let b = bench();
        let id = b.create().await.key.id;
        let at = if action == Deleted { Call::Delete } else { Call::Replace };
        interfere(&b.store, at, move |store| async move {
            store.inner.delete(&org("acme"), &id, None).await.unwrap();
        });
        let gone = match action {
            Updated => b.keys.update(&ada(), &id, rename("b")).await.map(drop),
            Rotated => b.keys.rotate(&ada(), &id).await.map(drop),
            _ => b.keys.delete(&ada(), &id).await,
        };
        assert_gone(gone);
        assert_eq!(b.changes().await, [(Created, Begun), (action, Begun), (action, Abandoned)]);
    }

    // The key is edited first, so that the update reads again, and then deleted.
    let b = bench();
    let id = b.create().await.key.id;
    interfere(&b.store, Call::Replace, move |store| async move {
        change_first_key(&store, |key| key.name = name("theirs")).await;
        interfere(&store.clone(), Call::Get, move |store| async move {
            store.inner.delete(&org("acme"), &id, None).await.unwrap();
        });
    });
    assert_gone(b.keys.update(&ada(), &id, rename("mine")).await);
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun), (Updated, Abandoned)]);
}

#[tokio::test]
async fn a_change_that_may_have_happened_is_not_recorded_as_abandoned() {
    let b = bench();
    let id = b.create().await.key.id;
    // The store made the change, but its answer is lost.
    b.store.after(|call| {
        let lost = WRITES.contains(&call);
        ready(if lost { Err(StoreError::in_doubt("connection lost")) } else { Ok(()) })
    });
    b.change(&id).await.into_iter().for_each(assert_in_doubt);
    let begun = [Created, Created, Updated, Rotated, Deleted].map(|action| (action, Begun));
    assert_eq!(b.changes().await, begun);
}

#[tokio::test]
async fn a_change_that_the_store_reports_as_not_made_is_abandoned() {
    let b = bench();
    let id = b.create().await.key.id;
    let before = b.snapshot().await;
    fail(&b.store, WRITES, || StoreError::unavailable("the disk is full"));
    b.change(&id).await.into_iter().for_each(assert_unavailable);
    let mut expected = vec![(Created, Begun)];
    for action in [Created, Updated, Rotated, Deleted] {
        expected.extend([(action, Begun), (action, Abandoned)]);
    }
    assert_eq!((b.changes().await, b.snapshot().await), (expected, before));
}

#[tokio::test]
async fn a_store_that_panics_during_a_change_leaves_it_in_doubt() {
    let b = bench();
    let id = b.create().await.key.id;
    b.store.before(|call| async move {
        assert!(call != Call::Replace, "the store of a test panics");
        Ok(())
    });
    assert_in_doubt(soon(b.keys.rotate(&ada(), &id)).await);
    b.store.heal();
    b.keys.rotate(&ada(), &id).await.unwrap();
    assert!(soon(b.keys.shutdown(Duration::from_secs(20))).await.is_complete());
}

#[tokio::test]
async fn case_35_no_change_without_its_record() {
    let sink = Arc::new(SpySink::default());
    let delivery = Delivery::buffered().deadline(Duration::from_millis(100));
    let b = bench_with(|builder| builder.audit_sink(sink.clone()).delivery(delivery));
    let issued = b.create().await;
    let id = issued.key.id;
    let before = b.snapshot().await;
    b.store.take_calls();
    for how in [Sink::Fails, Sink::Rejects, Sink::Hangs, Sink::Panics] {
        sink.sink(how);
        b.change(&id).await.into_iter().for_each(assert_unavailable);
        let mut keys = b.snapshot().await;
        keys[0].last_used_at = None;
        assert_eq!(keys, before, "{how:?}");
        assert!(!b.store.take_calls().iter().any(|call| WRITES.contains(call)), "{how:?}");
        // Reads continue to work.
        b.verify(&issued).await.unwrap();
        b.keys.list(&org("acme")).await.unwrap();
    }
    sink.sink(Sink::Works);
    b.keys.update(&ada(), &id, KeyPatch::revoke()).await.expect("the sink works again");
}
