//! Creating, listing, updating, rotating and deleting keys.

use std::time::Duration;

use keygate::audit::ChangeAction::{Created, Deleted, Rotated, Updated};
use keygate::audit::ChangePhase::{Abandoned, Begun};
use keygate::runtime::Clock;
use keygate::store::{KeyDigest, Revision};
use keygate::*;

use crate::support::{Call, org, soon};
use crate::{
    ada, assert_denied, assert_gone, assert_not_found, assert_stale, assert_unknown, bench,
    change_first_key, fail, interfere, ip, name, new_key, no_key, rename,
};

#[tokio::test]
async fn create_stores_a_digest_and_shows_the_key_once() {
    let b = bench();
    let new = new_key().expires(Expiration::OneMonth).allow(["10.0.0.0/8"]).unwrap();
    let issued = b.keys.create(&ada(), new).await.unwrap();
    let secret = issued.secret.expose_secret();

    let stored = b.snapshot().await;
    assert_eq!(stored, [ApiKey::clone(&issued.key)]);
    let mut expected = ApiKey {
        id: issued.key.id,
        org: org("acme"),
        name: name("CI"),
        key_prefix: secret[..12].to_owned(),
        digest: KeyDigest::of(secret),
        allowlist: Allowlist::parse(["10.0.0.0/8"]).unwrap(),
        created_at: b.clock.now(),
        expires_at: "2027-02-28T10:00:00Z".parse().ok(),
        ..ApiKey::sample(0)
    };
    expected.attributes.created_by = Some(ada().name().to_owned());
    assert_eq!(stored[0], expected);
    let shown = format!("{issued:?} {} {:?} {:?}", issued.secret, b.keys, b.log);
    assert!(!shown.contains(&secret[12..]));

    let verified = b.keys.verify(secret, ip("10.1.2.3")).await.unwrap();
    assert_eq!((verified.org(), verified.name()), (&org("acme"), &name("CI")));
    assert_eq!((verified.id(), verified.record()), (issued.key.id, &stored[0]));
}

#[tokio::test]
async fn revoking_stops_a_key_and_enabling_admits_it_again() {
    let b = bench();
    let issued = b.create().await;
    // Often enough that a thread may cache it.
    for _ in 0..100 {
        b.verify(&issued).await.unwrap();
    }
    b.keys.update(&ada(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_denied(b.verify(&issued).await, Denial::Revoked);
    b.keys.update(&ada(), &issued.key.id, KeyPatch::enable()).await.unwrap();
    b.verify(&issued).await.unwrap();
}

#[tokio::test]
async fn an_update_that_changes_nothing_writes_nothing_and_leaves_no_record() {
    let b = bench();
    let issued = b.create().await;
    let id = issued.key.id;
    b.store.take_calls();
    for patch in [KeyPatch::default(), KeyPatch::enable(), rename(" CI ")] {
        let same = b.keys.update(&ada(), &id, patch.clone()).await.unwrap();
        assert_eq!(same, issued.key);
        let same = b.keys.update_if(&ada(), &id, patch, Revision::FIRST).await.unwrap();
        assert_eq!(same, issued.key);
    }
    assert!(b.store.take_calls().iter().all(|call| *call == Call::Get));
    assert_eq!(b.changes().await, [(Created, Begun)]);
}

#[tokio::test]
async fn case_50_a_change_at_another_revision_is_refused() {
    let b = bench();
    let id = b.create().await.key.id;
    let second = b.keys.update_if(&ada(), &id, rename("b"), Revision::FIRST).await.unwrap();
    assert_eq!(second.revision, Revision::new(2));
    let before = b.snapshot().await;
    for stale in [Revision::FIRST, Revision::new(3)] {
        let edited = b.keys.update_if(&ada(), &id, KeyPatch::revoke(), stale).await;
        assert_stale(edited, second.revision);
        let rotated = b.keys.rotate_with_overlap(&ada(), &id, Duration::ZERO, Some(stale)).await;
        assert_stale(rotated, second.revision);
        assert_stale(b.keys.delete_if(&ada(), &id, stale).await, second.revision);
    }
    assert_eq!(b.snapshot().await, before);
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun)]);
    let at_second = Some(second.revision);
    let third = b.keys.rotate_with_overlap(&ada(), &id, Duration::ZERO, at_second).await;
    let third = third.unwrap().key;
    assert_eq!((third.revision, b.snapshot().await), (Revision::new(3), vec![(*third).clone()]));
    b.keys.delete_if(&ada(), &id, third.revision).await.unwrap();
    assert_eq!(b.snapshot().await, []);
    assert_gone(b.keys.delete_if(&ada(), &id, third.revision).await);
}

#[tokio::test]
async fn case_50_a_change_of_one_revision_loses_to_an_edit_between_its_read_and_its_write() {
    let first = Revision::FIRST;
    for action in [Updated, Rotated, Deleted] {
        let b = bench();
        let issued = b.create().await;
        let id = issued.key.id;
        let at = if action == Deleted { Call::Delete } else { Call::Replace };
        interfere(&b.store, at, |store| async move {
            change_first_key(&store, |key| key.name = name("theirs")).await;
        });
        let lost = match action {
            Updated => b.keys.update_if(&ada(), &id, rename("mine"), first).await.map(drop),
            Rotated => {
                let none = Duration::ZERO;
                b.keys.rotate_with_overlap(&ada(), &id, none, Some(first)).await.map(drop)
            }
            _ => b.keys.delete_if(&ada(), &id, first).await,
        };
        assert_stale(lost, Revision::new(2));
        assert_eq!(b.snapshot().await[0].name, name("theirs"));
        b.verify(&issued).await.unwrap();
        assert_eq!(b.changes().await, [(Created, Begun), (action, Begun), (action, Abandoned)]);
    }
}

#[tokio::test]
async fn an_update_that_always_loses_ends_as_a_conflict() {
    let b = bench();
    let id = b.create().await.key.id;
    fail(&b.store, &[Call::Replace], || StoreError::Conflict);
    let lost = soon(b.keys.update(&ada(), &id, rename("b"))).await;
    assert!(matches!(lost, Err(ManageError::Conflict)), "{lost:?}");
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun), (Updated, Abandoned)]);
}

#[tokio::test]
async fn rotate_changes_the_secret_and_nothing_else() {
    let b = bench();
    let new = new_key().expires(Expiration::OneDay).allow(["192.0.2.0/24"]).unwrap();
    let first = b.keys.create(&ada(), new).await.unwrap();
    let id = first.key.id;
    b.clock.advance(Duration::from_secs(60));
    let second = b.keys.rotate(&ada(), &id).await.unwrap();
    let secret = second.secret.expose_secret();
    let expected = ApiKey {
        digest: KeyDigest::of(secret),
        key_prefix: secret[..12].to_owned(),
        rotated_at: Some(b.clock.now()),
        revision: Revision::new(2),
        ..ApiKey::clone(&first.key)
    };
    assert_eq!((&*second.key, b.snapshot().await), (&expected, vec![expected.clone()]));
    let from = ip("192.0.2.1");
    assert_unknown(b.keys.verify(first.secret.expose_secret(), from).await);
    b.keys.verify(secret, from).await.unwrap();

    // A new secret does not bypass a revocation, an expiry or an allowlist.
    assert_denied(b.keys.verify(secret, ip("198.51.100.1")).await, Denial::IpNotAllowed);
    b.keys.update(&ada(), &id, KeyPatch::revoke()).await.unwrap();
    let third = b.keys.rotate(&ada(), &id).await.unwrap();
    assert_denied(b.keys.verify(third.secret.expose_secret(), from).await, Denial::Revoked);
    b.keys.update(&ada(), &id, KeyPatch::enable()).await.unwrap();
    b.clock.advance(Duration::from_secs(86_400));
    let fourth = b.keys.rotate(&ada(), &id).await.unwrap();
    assert_denied(b.keys.verify(fourth.secret.expose_secret(), from).await, Denial::Expired);
}

#[tokio::test]
async fn after_a_deletion_no_operation_finds_the_key() {
    let b = bench();
    let issued = b.create().await;
    let id = issued.key.id;
    b.keys.delete(&ada(), &id).await.unwrap();
    assert_unknown(b.verify(&issued).await);
    assert!(b.keys.list(&org("acme")).await.unwrap().is_empty());
    for missing in [id, no_key()] {
        assert_not_found(&b, &ada(), &missing).await;
    }
}
