//! Changes and their audit records.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use keygate::audit::ChangeAction::{Created, Deleted, Rotated, Updated};
use keygate::audit::ChangePhase::{Abandoned, Begun};
use keygate::audit::{
    AuditEvent, AuditQuery, AuditScope, ChangeAction, ChangeEvent, ChangePhase, ChangedField,
};
use keygate::runtime::Clock;
use keygate::store::OrgLimit;
use keygate::*;

use crate::support::{Call, Sink, SpySink, org, soon};
use crate::{
    Bench, ada, assert_gone, assert_in_doubt, assert_unavailable, bench, bench_with,
    change_first_key, fail, interfere, name, new_key, rename,
};

const WRITES: &[Call] = &[Call::Insert, Call::Replace, Call::Delete];

#[tokio::test]
async fn a_record_says_who_made_which_change_and_when_and_outlives_the_key() {
    let b = bench();
    b.clock.advance(Duration::from_micros(1));
    let id = b.create().await.key.id;
    b.keys.update(&ada(), &id, rename("b")).await.unwrap();
    b.keys.rotate(&ada(), &id).await.unwrap();
    b.keys.delete(&ada(), &id).await.unwrap();
    let query = AuditQuery::new(org("acme"), AuditScope::KeyChanges(id));
    let records = b.keys.audit_page(&query).await.unwrap().unwrap().records;
    assert_eq!(records.len(), 4);
    for (record, action) in records.iter().rev().zip([Created, Updated, Rotated, Deleted]) {
        let AuditEvent::Change(event) = &record.event else { panic!("{record:?}") };
        let what = (&*event.actor, event.action, event.phase);
        assert_eq!(
            (record.at, record.key, what),
            (b.clock.now(), id, (ada().name(), action, Begun))
        );
    }
}

/// What the changes of a key have changed, oldest first.
async fn changed_fields(b: &Bench) -> Vec<(ChangeAction, ChangePhase, String)> {
    let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges).limit(200);
    let page = b.keys.audit_page(&query).await.unwrap().unwrap();
    let changes = page.records.into_iter().rev().filter_map(|record| match record.event {
        AuditEvent::Change(change) => Some(change),
        _ => None,
    });
    let line = |field: &ChangedField| format!("{}: {} / {}", field.name, field.before, field.after);
    let told = |change: ChangeEvent| {
        let fields: Vec<_> = change.fields.iter().map(line).collect();
        (change.action, change.phase, fields.join("; "))
    };
    changes.map(told).collect()
}

#[tokio::test]
async fn a_record_says_what_was_changed() {
    let b = bench_with(|builder| builder.max_overlap(Duration::from_secs(60)));
    let new = NewKey::named("a").unwrap().allow(["10.0.0.0/8"]).unwrap();
    let issued = b.keys.create(&ada(), new).await.unwrap();
    let id = issued.key.id;
    b.keys.update(&ada(), &id, rename("b")).await.unwrap();
    let minute = Duration::from_secs(60);
    let rotated = b.keys.rotate_with_overlap(&ada(), &id, minute, None).await.unwrap();
    b.keys.revoke(&ada(), &id).await.unwrap();
    b.keys.delete(&ada(), &id).await.unwrap();
    let (old, new) = (&issued.key.key_prefix, &rotated.key.key_prefix);
    let end = b.clock.now().saturating_add(minute);
    let told: Vec<_> = changed_fields(&b).await.into_iter().map(|(_, _, fields)| fields).collect();
    assert_eq!(
        told,
        [
            format!(
                "name: - / a; status: - / active; key_prefix: - / {old}; ip_allowlist: - / 10.0.0.0/8; scopes: - / all"
            ),
            "name: a / b".to_owned(),
            format!("key_prefix: {old} / {new}; previous_secret_until: - / {end}"),
            format!("status: active / revoked; previous_secret_until: {end} / -"),
            format!(
                "name: b / -; status: revoked / -; key_prefix: {new} / -; ip_allowlist: 10.0.0.0/8 / -; scopes: all / -"
            ),
        ]
    );
}

#[tokio::test]
async fn case_29_after_a_concurrent_change_the_record_still_says_what_was_changed() {
    // Another edit of the same field comes first: the record of the first attempt is wrong.
    let b = bench();
    let id = b.create().await.key.id;
    interfere(&b.store, Call::Replace, |store| async move {
        change_first_key(&store, |key| key.name = name("theirs")).await;
    });
    b.keys.update(&ada(), &id, rename("mine")).await.unwrap();
    let told = changed_fields(&b).await;
    let wrong = "name: CI / mine".to_owned();
    let right = "name: theirs / mine".to_owned();
    let expected =
        [(Updated, Begun, wrong.clone()), (Updated, Abandoned, wrong), (Updated, Begun, right)];
    assert_eq!(told[1..], expected);

    // An edit of another field leaves the record right.
    let b = bench();
    let id = b.create().await.key.id;
    interfere(&b.store, Call::Replace, |store| async move {
        change_first_key(&store, |key| key.status = Status::Revoked).await;
    });
    b.keys.update(&ada(), &id, rename("mine")).await.unwrap();
    assert_eq!(changed_fields(&b).await[1..], [(Updated, Begun, "name: CI / mine".to_owned())]);
    assert_eq!(b.snapshot().await[0].status, Status::Revoked);
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
async fn case_35_a_change_that_cannot_be_recorded_does_not_take_effect() {
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
