//! Rotation with overlap: when the old secret works, and what ends it.

use std::time::Duration;

use keygate::audit::{AuditEvent, AuditQuery, AuditScope, Outcome, SecretUsed};
use keygate::manager::{IssuedKey, RequestInfo};
use keygate::runtime::Clock;
use keygate::*;

use crate::support::org;
use crate::{
    Bench, ada, assert_denied, assert_gone, assert_stale, assert_unknown, bench, bench_with, eve,
    ip, new_key,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn overlapping() -> Bench {
    bench_with(|builder| builder.max_overlap(24 * HOUR))
}

impl Bench {
    async fn overlap(&self, key: &IssuedKey, overlap: Duration) -> IssuedKey {
        self.keys.rotate_with_overlap(&ada(), &key.key.id, overlap, None).await.unwrap()
    }

    async fn used(&self, key: &IssuedKey) -> Result<SecretUsed, VerifyError> {
        self.verify(key).await.map(|verified| verified.secret_used())
    }
}

#[tokio::test]
async fn case_59_both_secrets_work_until_the_exact_end_and_then_the_new_one() {
    let b = overlapping();
    let old = b.create().await;
    let new = b.overlap(&old, HOUR).await;
    let until = b.clock.now().saturating_add(HOUR);
    assert_eq!(new.key.previous_until(b.clock.now()), Some(until));
    for _ in 0..3 {
        assert_eq!(b.used(&old).await.unwrap(), SecretUsed::Previous);
        assert_eq!(b.used(&new).await.unwrap(), SecretUsed::Current);
        b.clock.advance(HOUR / 3);
    }
    assert_eq!(b.clock.now(), until);
    assert_denied(b.verify(&old).await, Denial::Expired);
    assert_eq!(b.used(&new).await.unwrap(), SecretUsed::Current);
    assert_eq!(b.keys.get(&org("acme"), &old.key.id).await.unwrap().previous_until(until), None);
}

#[tokio::test]
async fn case_59_a_clock_that_steps_back_does_not_bring_an_old_secret_back() {
    let b = overlapping();
    let old = b.create().await;
    let begun = b.clock.now();
    let new = b.overlap(&old, HOUR).await;
    b.clock.advance(HOUR);
    assert_denied(b.verify(&old).await, Denial::Expired);
    b.clock.set(begun);
    assert_denied(b.verify(&old).await, Denial::Expired);
    assert_eq!(b.used(&new).await.unwrap(), SecretUsed::Current);
    let other = b.create().await;
    b.overlap(&other, HOUR).await;
    assert_eq!(b.used(&other).await.unwrap(), SecretUsed::Previous);
}

#[tokio::test]
async fn case_59_the_old_secret_ends_with_any_change_that_ends_it_and_does_not_come_back() {
    let b = overlapping();
    // An edit does not end it, and the allowlist holds for both secrets.
    let edited = b.create().await;
    b.overlap(&edited, HOUR).await;
    let patch = KeyPatch::restrict(crate::networks(1));
    b.keys.update(&ada(), &edited.key.id, patch).await.unwrap();
    assert_denied(b.verify(&edited).await, Denial::IpNotAllowed);
    b.keys.verify(edited.secret.expose_secret(), ip("10.0.0.1")).await.unwrap();
    // A second rotation, with and without an overlap.
    for overlap in [Duration::ZERO, HOUR] {
        let first = b.create().await;
        let second = b.overlap(&first, HOUR).await;
        let third = b.overlap(&second, overlap).await;
        assert_unknown(b.verify(&first).await);
        assert_eq!(b.verify(&second).await.is_ok(), overlap > Duration::ZERO);
        assert_eq!(b.used(&third).await.unwrap(), SecretUsed::Current);
    }
    // A revocation, even if the key is enabled again.
    let old = b.create().await;
    let new = b.overlap(&old, HOUR).await;
    b.keys.revoke(&ada(), &old.key.id).await.unwrap();
    assert_unknown(b.verify(&old).await);
    assert_denied(b.verify(&new).await, Denial::Revoked);
    b.keys.enable(&ada(), &old.key.id).await.unwrap();
    assert_unknown(b.verify(&old).await);
    b.verify(&new).await.unwrap();
    // The secret of a revoked key gets no overlap.
    let stolen = b.create().await;
    b.keys.revoke(&ada(), &stolen.key.id).await.unwrap();
    let rotated = b.overlap(&stolen, HOUR).await;
    assert_eq!(rotated.key.previous, None);
    b.keys.enable(&ada(), &stolen.key.id).await.unwrap();
    assert_unknown(b.verify(&stolen).await);
    b.verify(&rotated).await.unwrap();
    // A revocation by hand, which leaves the previous secret in its column.
    let by_hand = b.create().await;
    b.overlap(&by_hand, HOUR).await;
    let stored = b.keys.get(&org("acme"), &by_hand.key.id).await.unwrap();
    let revision = stored.revision.next();
    let revoked = ApiKey { status: Status::Revoked, revision, ..ApiKey::clone(&stored) };
    b.store.inner.replace(&revoked, stored.revision).await.unwrap();
    assert_denied(b.verify(&by_hand).await, Denial::Revoked);
    b.keys.enable(&ada(), &by_hand.key.id).await.unwrap();
    assert_unknown(b.verify(&by_hand).await);
    // `end_previous_secret`, which may be repeated, by an actor of the organisation.
    let newer = b.overlap(&new, HOUR).await;
    assert_gone(b.keys.end_previous_secret(&eve(), &new.key.id).await);
    b.verify(&new).await.unwrap();
    let ended = b.keys.end_previous_secret(&ada(), &new.key.id).await.unwrap();
    assert_eq!((ended.previous, ended.revision), (None, newer.key.revision.next()));
    assert_unknown(b.verify(&new).await);
    b.verify(&newer).await.unwrap();
    let again = b.keys.end_previous_secret(&ada(), &new.key.id).await.unwrap();
    assert_eq!(again.revision, ended.revision);
    // A deletion.
    let newest = b.overlap(&newer, HOUR).await;
    b.keys.delete(&ada(), &new.key.id).await.unwrap();
    assert_unknown(b.verify(&newer).await);
    assert_unknown(b.verify(&newest).await);
}

#[tokio::test]
async fn case_59_an_old_secret_never_outlives_its_key() {
    let b = overlapping();
    let expiry = b.clock.now().saturating_add(HOUR);
    let old = b.keys.create(&ada(), new_key().expires(Expiration::At(expiry))).await.unwrap();
    let new = b.overlap(&old, 2 * HOUR).await;
    assert_eq!(new.key.previous.unwrap().until, expiry);
    b.clock.advance(HOUR);
    assert_denied(b.verify(&old).await, Denial::Expired);
    assert_denied(b.verify(&new).await, Denial::Expired);
    // There is nothing left to overlap with.
    assert_eq!(b.overlap(&new, HOUR).await.key.previous, None);
    assert_unknown(b.verify(&new).await);
}

#[tokio::test]
async fn case_59_after_a_rotation_whose_answer_is_lost_the_old_secret_still_works() {
    let b = overlapping();
    let old = b.create().await;
    let (ada, before) = (ada(), old.key.revision);
    let rotate = || b.keys.rotate_with_overlap(&ada, &old.key.id, HOUR, Some(before));
    drop(rotate().await.unwrap());
    b.verify(&old).await.unwrap();
    assert_stale(rotate().await, before.next());
    b.verify(&old).await.unwrap();
    // Without the revision the lost secret is replaced, and there is a new one.
    let new = b.overlap(&old, HOUR).await;
    b.verify(&new).await.unwrap();
}

#[tokio::test]
async fn an_overlap_is_as_long_as_the_host_allows_and_by_default_there_is_none() {
    let b = bench();
    let old = b.create().await;
    let tiny = Duration::from_micros(1);
    let refused = b.keys.rotate_with_overlap(&ada(), &old.key.id, tiny, None).await;
    let error = refused.unwrap_err();
    assert!(matches!(error, ManageError::OverlapTooLong { max: Duration::ZERO }), "{error:?}");
    assert_eq!(b.snapshot().await, [ApiKey::clone(&old.key)], "nothing was changed");
    assert_eq!(b.changes().await.len(), 1, "nor recorded");
    let new = b.overlap(&old, Duration::ZERO).await;
    assert_eq!(new.key.previous, None);
    assert_unknown(b.verify(&old).await);

    let b = overlapping();
    let old = b.create().await;
    b.overlap(&old, 24 * HOUR).await;
    let refused = b.keys.rotate_with_overlap(&ada(), &old.key.id, 24 * HOUR + tiny, None).await;
    assert_eq!(refused.unwrap_err().to_string(), "an overlap is at most 86400 seconds");
    b.verify(&old).await.unwrap();
}

#[tokio::test]
async fn case_59_every_record_says_which_secret_was_used() {
    let b = overlapping();
    let old = b.create().await;
    let new = b.overlap(&old, HOUR).await;
    let request = |path: &str| RequestInfo::new("GET", path);
    for (key, path) in [(&old, "/old"), (&new, "/new")] {
        let admission = b.keys.admit(key.secret.expose_secret(), request(path)).await.unwrap();
        admission.finish(200).await.unwrap();
        b.clock.advance(Duration::from_secs(1));
    }
    drop(b.keys.admit(old.secret.expose_secret(), request("/aborted")).await.unwrap());
    b.clock.advance(HOUR);
    // Its use after the end is recorded, so that its user can be found.
    b.keys.admit(old.secret.expose_secret(), request("/late")).await.unwrap_err();
    let _ = b.keys.shutdown(Duration::from_secs(10)).await;
    let scope = AuditScope::KeyRequests(old.key.id);
    let page = b.log.page(&AuditQuery::new(org("acme"), scope)).await.unwrap();
    let seen = page.records.iter().map(|record| {
        let AuditEvent::Request(event) = &record.event else { panic!("{record:?}") };
        (&*event.endpoint, event.outcome, event.secret)
    });
    let expected = [
        ("/late", Outcome::Expired, SecretUsed::Previous),
        ("/aborted", Outcome::Aborted, SecretUsed::Previous),
        ("/new", Outcome::Allowed, SecretUsed::Current),
        ("/old", Outcome::Allowed, SecretUsed::Previous),
    ];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn after_a_restore_previous_secrets_end_and_newly_rotated_keys_keep_working() {
    let b = overlapping();
    let (old, stale) = (b.create().await, b.create().await);
    let restored_at = b.clock.now().saturating_add(Duration::from_secs(1));
    b.clock.advance(Duration::from_secs(2));
    let new = b.overlap(&old, HOUR).await;
    let revoked = b.keys.revoke_issued_before(&b.store.inner, restored_at, "restore").await;
    assert_eq!(revoked.unwrap(), 1);
    assert_denied(b.verify(&stale).await, Denial::Revoked);
    assert_unknown(b.verify(&old).await);
    b.verify(&new).await.unwrap();
}
