//! Changes void what is cached, and nothing else does.

use keygate::store::{News, OrgLimit, PreviousSecret, Revision};
use keygate::*;

use crate::cache_support::support::{Call, SpyStore, org, soon};
use crate::cache_support::{acme, digest, insert, key, revoke, status};
use crate::{LONG, cached, find, following, lasting, late, probe, status_of};

#[tokio::test]
async fn a_local_change_is_effective_before_the_call_returns() {
    let cached = cached(&probe());
    assert!(!find(&cached, 1).await);
    let key = insert(&cached, 1).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    revoke(&cached, &key).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    // A rotation: the old digest is removed, the new one is added.
    assert!(!find(&cached, 2).await);
    let revoked = cached.get(&acme(), &key.id).await.unwrap().unwrap();
    let rotated =
        ApiKey { digest: digest(2), revision: revoked.revision.next(), ..ApiKey::clone(&revoked) };
    cached.replace(&rotated, revoked.revision).await.unwrap();
    assert!(!find(&cached, 1).await);
    assert!(find(&cached, 2).await);
    cached.delete(&acme(), &key.id, None).await.unwrap();
    assert!(!find(&cached, 2).await);
}

#[tokio::test]
async fn a_failed_change_voids_the_entry() {
    let probe = probe();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    assert!(find(&cached, 1).await);
    probe.after(|_| async { Err(StoreError::unavailable("the line is cut")) });
    cached.delete(&acme(), &key.id, None).await.unwrap_err();
    probe.heal();
    assert!(!find(&cached, 1).await);
}

#[tokio::test]
async fn a_cancelled_change_voids_the_entry() {
    let probe = probe();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    assert!(find(&cached, 1).await);
    let gate = probe.hold_after(Call::Delete);
    let deleting = {
        let (cached, id) = (cached.clone(), key.id);
        tokio::spawn(async move { cached.delete(&acme(), &id, None).await })
    };
    gate.reached().await;
    deleting.abort();
    assert!(deleting.await.unwrap_err().is_cancelled());
    assert!(!find(&cached, 1).await);
}

/// Imported ids need not be random.
#[tokio::test]
async fn a_change_voids_no_other_key_even_with_sequential_ids() {
    let probe = probe();
    let cached = cached(&probe);
    for shift in [0, 40, 64, 100] {
        let numbered = |number: u64| {
            let id = KeyId::from_bytes((u128::from(number) << shift).to_be_bytes());
            ApiKey { id, ..key(shift * 1_000 + number) }
        };
        let look = async || {
            for number in 1..200 {
                status(&cached, &numbered(number)).await;
            }
        };
        for number in 1..200 {
            cached.insert(&numbered(number), OrgLimit::NONE).await.unwrap();
        }
        look().await;
        let before = probe.finds();
        revoke(&cached, &numbered(77)).await;
        look().await;
        assert_eq!(probe.finds() - before, 1, "shift {shift}");
        for number in 1..200 {
            cached.delete(&acme(), &numbered(number).id, None).await.unwrap();
        }
    }
}

/// A caller that reads or tries to change ids in its own organisation.
#[tokio::test]
async fn case_51_unknown_and_foreign_ids_void_nothing() {
    let probe = probe();
    let cached = lasting(&probe, 10_000).await;
    let mallory = org("mallory");
    for number in 0..100 {
        insert(&probe, number).await;
    }
    let look = async || {
        for number in 0..200 {
            assert_eq!(find(&cached, number).await, number < 100);
        }
    };
    look().await;
    let before = probe.finds();
    for number in 0..2_000 {
        let ours = key(1_000 + number % 100).id;
        let theirs = key(number % 100).id;
        for id in [key(100_000 + number).id, theirs] {
            assert_eq!(cached.get(&mallory, &id).await.unwrap(), None);
            let foreign = ApiKey { id, org: mallory.clone(), ..key(number % 100) };
            for refused in [
                cached.replace(&foreign, Revision::FIRST).await,
                cached.delete(&mallory, &id, None).await,
            ] {
                assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
            }
            let refused = cached.insert(&foreign, OrgLimit::at_most(0)).await.unwrap_err();
            assert!(
                matches!(refused, StoreError::LimitReached | StoreError::Conflict),
                "{refused:?}"
            );
        }
        // The owner voids nothing either by reading an unchanged key or a missing one.
        assert_eq!(cached.get(&acme(), &ours).await.unwrap(), None);
        assert!(cached.get(&acme(), &theirs).await.unwrap().is_some());
    }
    look().await;
    assert_eq!(probe.finds(), before, "every entry was still there");
}

/// The key is changed in another process without an announcement.
#[tokio::test]
async fn look_ups_see_every_change_that_an_earlier_refused_change_saw() {
    let probe = probe();
    let cached = cached(&probe);
    insert(&cached, 1).await;
    for refuse in ["replace", "delete"] {
        assert!(find(&cached, 1).await);
        let stored = probe.inner.get(&acme(), &key(1).id).await.unwrap().unwrap();
        revoke(&probe.inner, &stored).await;
        let refused = match refuse {
            "replace" => cached.replace(&stored, stored.revision).await,
            _ => cached.delete(&acme(), &stored.id, Some(stored.revision)).await,
        };
        assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
        let found = cached.find_by_digest(&stored.digest).await.unwrap().unwrap();
        assert_eq!(found.revision, stored.revision.next(), "{refuse}");
    }
}

/// A key with the secrets 1 and 2 that overlap, both cached, whose overlap another process has
/// ended.
async fn ended_overlap(probe: &SpyStore, cached: &CachedStore) -> KeyId {
    let old = insert(cached, 1).await;
    let previous = Some(PreviousSecret { digest: old.digest, until: Timestamp::MAX });
    let new = ApiKey { digest: digest(2), previous, revision: old.revision.next(), ..old.clone() };
    probe.inner.replace(&new, old.revision).await.unwrap();
    cached.get(&acme(), &new.id).await.unwrap();
    assert!(find(cached, 1).await && find(cached, 2).await);
    let ended = ApiKey { previous: None, revision: new.revision.next(), ..new.clone() };
    probe.inner.replace(&ended, new.revision).await.unwrap();
    let finds = probe.finds();
    assert!(find(cached, 1).await && find(cached, 2).await);
    assert_eq!(probe.finds(), finds, "both are cached");
    new.id
}

#[tokio::test]
async fn case_59_news_of_a_key_voids_both_its_digests() {
    let probe = probe();
    let (cached, say) = following(&probe, LONG).await;
    let id = ended_overlap(&probe, &cached).await;
    let finds = probe.finds();
    say.news(News::Changed(id));
    say.heard().await;
    assert!(!find(&cached, 1).await && find(&cached, 2).await);
    assert_eq!(probe.finds(), finds + 2, "both were asked for again");
}

#[tokio::test]
async fn case_59_a_secret_whose_end_a_get_has_seen_is_void_in_the_cache() {
    let probe = probe();
    let cached = cached(&probe);
    let id = ended_overlap(&probe, &cached).await;
    cached.get(&acme(), &id).await.unwrap();
    assert!(!find(&cached, 1).await && find(&cached, 2).await);
}

#[tokio::test]
async fn case_30_a_request_after_a_revocation_does_not_join_a_look_up_from_before() {
    let probe = probe();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    let (before, gate) = late(&probe, &cached, &key).await;
    revoke(&cached, &key).await;
    assert_eq!(soon(status(&cached, &key)).await, Some(Status::Revoked));
    // The old answer arrives last and does not replace the newer one.
    gate.open();
    assert_eq!(status_of(soon(before).await.unwrap()), Some(Status::Active));
    let finds = probe.finds();
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    assert_eq!(probe.finds(), finds, "the newer answer was kept");
}

#[tokio::test]
async fn case_30_a_late_answer_from_before_a_change_is_not_reused() {
    for change in ["in this process", "announced", "missed"] {
        let probe = probe();
        let key = insert(&probe, 1).await;
        let (cached, say) = following(&probe, LONG).await;
        let (late, gate) = late(&probe, &cached, &key).await;
        if change == "in this process" {
            revoke(&cached, &key).await;
        } else {
            revoke(&probe.inner, &key).await;
            say.news(if change == "missed" { News::Missed } else { News::Changed(key.id) });
            say.up_to_date();
            say.heard().await;
        }
        gate.open();
        // It began before the revocation, so it may return the earlier state.
        assert_eq!(status_of(soon(late).await.unwrap()), Some(Status::Active), "{change}");
        assert_eq!(status(&cached, &key).await, Some(Status::Revoked), "{change}");
    }
}
