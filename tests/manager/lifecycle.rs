//! Creating, listing, updating, rotating and deleting keys.

use std::time::Duration;

use keygate::audit::ChangeAction::{Created, Deleted, Rotated, Updated};
use keygate::audit::ChangePhase::{Abandoned, Begun};
use keygate::audit::{AuditQuery, AuditScope};
use keygate::runtime::Clock;
use keygate::store::{KeyDigest, Revision};
use keygate::*;

use crate::support::{Call, org, soon};
use crate::{
    ada, assert_denied, assert_not_found, assert_unavailable, assert_unknown, bench, bench_with,
    change_first_key, change_of, interfere, ip, name, networks, new_key, no_key, rename,
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
    assert_eq!(
        (verified.org(), verified.id(), verified.name().as_str()),
        (&org("acme"), issued.key.id, "CI")
    );
    assert_eq!(verified.record(), &stored[0]);
}

#[tokio::test]
async fn the_list_is_oldest_first_and_includes_revoked_and_expired_keys() {
    let b = bench();
    let mut ids = Vec::new();
    for name in ["first", "second", "third"] {
        let new = NewKey::named(name).unwrap().expires(Expiration::OneDay);
        ids.push(b.keys.create(&ada(), new).await.unwrap().key.id);
        b.clock.advance(Duration::from_secs(1));
    }
    b.keys.update(&ada(), &ids[0], KeyPatch::revoke()).await.unwrap();
    b.clock.advance(Duration::from_secs(2 * 86_400));
    let list = b.keys.list(&org("acme")).await.unwrap();
    assert_eq!(list.iter().map(|key| key.id).collect::<Vec<_>>(), ids);
    assert_eq!(list[0].status, Status::Revoked);
    assert!(list.iter().all(|key| key.is_expired(b.clock.now())));
    assert_eq!(*b.keys.get(&org("acme"), &ids[1]).await.unwrap(), *list[1]);
}

#[tokio::test]
async fn an_update_changes_name_status_and_allowlist_and_nothing_else() {
    let b = bench();
    let issued = b.create().await;
    let id = issued.key.id;
    let before = ApiKey::clone(&issued.key);
    type Change = fn(&mut ApiKey);
    let changes: [(KeyPatch, Change); 4] = [
        (rename("new"), |key| key.name = name("new")),
        (KeyPatch::restrict(networks(1)), |key| key.allowlist = networks(1)),
        (KeyPatch::revoke(), |key| key.status = Status::Revoked),
        (KeyPatch::enable(), |key| key.status = Status::Active),
    ];
    let mut expected = before;
    for (patch, change) in changes {
        change(&mut expected);
        expected.revision = expected.revision.next();
        b.clock.advance(Duration::from_secs(1));
        let updated = b.keys.update(&ada(), &id, patch).await.unwrap();
        assert_eq!((&*updated, b.snapshot().await), (&expected, vec![expected.clone()]));
    }

    let mut all = KeyPatch::revoke();
    all.name = Some(name("all"));
    all.allowlist = Some(Allowlist::default());
    let updated = b.keys.update(&ada(), &id, all).await.unwrap();
    assert_eq!(updated.revision, expected.revision.next(), "three edits, one change");
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
async fn update_if_writes_only_at_the_given_revision() {
    let b = bench();
    let id = b.create().await.key.id;
    let second = b.keys.update_if(&ada(), &id, rename("b"), Revision::FIRST).await.unwrap();
    assert_eq!(second.revision, Revision::new(2));
    let before = b.snapshot().await;
    for stale in [Revision::FIRST, Revision::new(3)] {
        let refused = b.keys.update_if(&ada(), &id, KeyPatch::revoke(), stale).await;
        assert!(
            matches!(refused, Err(ManageError::StaleRevision { current }) if current == second.revision)
        );
    }
    assert_eq!(b.snapshot().await, before);
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun)]);
}

#[tokio::test]
async fn update_if_loses_to_an_edit_between_its_read_and_its_write() {
    let b = bench();
    let id = b.create().await.key.id;
    interfere(&b.store, Call::Replace, |store| async move {
        change_first_key(&store, |key| key.name = name("theirs")).await;
    });
    let lost = b.keys.update_if(&ada(), &id, rename("mine"), Revision::FIRST).await;
    assert!(
        matches!(lost, Err(ManageError::StaleRevision { current }) if current == Revision::new(2))
    );
    assert_eq!(b.snapshot().await[0].name, name("theirs"));
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun), (Updated, Abandoned)]);
}

#[tokio::test]
async fn case_50_a_rotation_and_a_deletion_at_a_revision_change_only_the_given_revision() {
    let b = bench();
    let id = b.create().await.key.id;
    b.keys.update(&ada(), &id, rename("b")).await.unwrap();
    let (before, second) = (b.snapshot().await, Revision::new(2));
    let is_stale = |current| current == second;
    for stale in [Revision::FIRST, Revision::new(3)] {
        let refused = b.keys.rotate_with_overlap(&ada(), &id, Duration::ZERO, Some(stale)).await;
        assert!(
            matches!(refused, Err(ManageError::StaleRevision { current }) if is_stale(current))
        );
        let refused = b.keys.delete_if(&ada(), &id, stale).await;
        assert!(
            matches!(refused, Err(ManageError::StaleRevision { current }) if is_stale(current))
        );
    }
    assert_eq!(b.snapshot().await, before);
    assert_eq!(b.changes().await, [(Created, Begun), (Updated, Begun)]);
    let third =
        b.keys.rotate_with_overlap(&ada(), &id, Duration::ZERO, Some(second)).await.unwrap().key;
    assert_eq!((third.revision, b.snapshot().await), (Revision::new(3), vec![(*third).clone()]));
    b.keys.delete_if(&ada(), &id, third.revision).await.unwrap();
    assert_eq!(b.snapshot().await, []);
    let gone = b.keys.delete_if(&ada(), &id, third.revision).await;
    assert!(matches!(gone, Err(ManageError::NotFound)), "{gone:?}");
}

#[tokio::test]
async fn case_50_a_rotation_and_a_deletion_at_a_revision_lose_to_an_edit_between_their_read_and_their_write()
 {
    for (action, at) in [(Rotated, Call::Replace), (Deleted, Call::Delete)] {
        let b = bench();
        let issued = b.create().await;
        let id = issued.key.id;
        interfere(&b.store, at, |store| async move {
            change_first_key(&store, |key| key.name = name("theirs")).await;
        });
        let lost = match action {
            Rotated => b
                .keys
                .rotate_with_overlap(&ada(), &id, Duration::ZERO, Some(Revision::FIRST))
                .await
                .map(drop),
            _ => b.keys.delete_if(&ada(), &id, Revision::FIRST).await,
        };
        assert!(
            matches!(lost, Err(ManageError::StaleRevision { current }) if current == Revision::new(2)),
            "{lost:?}"
        );
        assert_eq!(b.snapshot().await[0].name, name("theirs"));
        b.verify(&issued).await.unwrap();
        assert_eq!(b.changes().await, [(Created, Begun), (action, Begun), (action, Abandoned)]);
    }
}

#[tokio::test]
async fn an_update_that_always_loses_ends_as_a_conflict() {
    let b = bench();
    let id = b.create().await.key.id;
    b.store.before(|call| async move {
        if call == Call::Replace { Err(StoreError::Conflict) } else { Ok(()) }
    });
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
async fn delete_removes_the_key_and_keeps_its_records() {
    let b = bench();
    let issued = b.create().await;
    let id = issued.key.id;
    b.keys.delete(&ada(), &id).await.unwrap();
    assert_unknown(b.verify(&issued).await);
    assert!(b.keys.list(&org("acme")).await.unwrap().is_empty());
    let query = AuditQuery::new(org("acme"), AuditScope::KeyChanges(id));
    let page = b.keys.audit_page(&query).await.unwrap().unwrap();
    let kept: Vec<_> = page.records.iter().map(change_of).collect();
    assert_eq!(kept, [(Deleted, Begun), (Created, Begun)]);
}

#[tokio::test]
async fn every_operation_on_a_missing_key_is_not_found() {
    let b = bench();
    let gone = b.create().await.key.id;
    b.keys.delete(&ada(), &gone).await.unwrap();
    let records = b.log.len();
    for id in [gone, no_key()] {
        assert_not_found(&b, &ada(), &id).await;
    }
    assert_eq!(b.log.len(), records, "a change that did not begin leaves no record");
}

#[tokio::test]
async fn a_clone_is_another_handle_to_the_same_manager() {
    let b = bench();
    let other = b.keys.clone();
    let issued = b.create().await;
    other.verify(issued.secret.expose_secret(), None).await.unwrap();
    other.update(&ada(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_denied(b.verify(&issued).await, Denial::Revoked);
    assert_eq!(other.audit_stats(), b.keys.audit_stats());
    let report = other.shutdown(Duration::from_secs(20)).await;
    assert!(report.is_complete());
    assert_unavailable(b.keys.create(&ada(), new_key()).await);
}

#[tokio::test]
async fn a_custom_prefix_is_used_for_every_key() {
    let custom = bench_with(|builder| builder.format(KeyFormat::new("acme_").unwrap()));
    let issued = custom.create().await;
    let secret = issued.secret.expose_secret();
    assert!(secret.starts_with("acme_") && secret.len() == 53);
    assert_eq!(issued.key.key_prefix, secret[..12]);
    assert_eq!(custom.keys.format().prefix(), "acme_");
    custom.verify(&issued).await.unwrap();
    let rotated = custom.keys.rotate(&ada(), &issued.key.id).await.unwrap();
    assert!(rotated.secret.expose_secret().starts_with("acme_"));

    // Keys of another format are not looked up at all.
    let other = bench();
    let foreign = other.create().await;
    custom.store.take_calls();
    let refused = custom.verify(&foreign).await;
    assert!(matches!(refused, Err(VerifyError::Malformed(_))));
    assert_eq!(custom.store.take_calls(), []);

    let long = bench_with(|builder| builder.format(KeyFormat::new("a_long_prefix_").unwrap()));
    let issued = long.create().await;
    assert_eq!(issued.key.key_prefix, issued.secret.expose_secret()[..14 + 5]);
}
