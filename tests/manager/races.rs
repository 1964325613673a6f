//! Concurrent changes and verifications.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use keygate::audit::ChangeAction::{Created, Rotated};
use keygate::audit::ChangePhase::{Abandoned, Begun};
use keygate::runtime::Clock;
use keygate::store::Revision;
use keygate::*;
use tokio::sync::Barrier;

use crate::support::{Call, Find, Gate, SpyStore, eventually, soon};
use crate::{ada, assert_denied, assert_unknown, bench, concurrently, hold, name, new_key, rename};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_26_of_64_creates_for_the_last_place_one_succeeds() {
    for round in 0..10 {
        let b = bench();
        for _ in 0..19 {
            b.create().await;
        }
        // Every caller sees 19 keys before any of them inserts.
        let barrier = Arc::new(Barrier::new(64));
        b.store.before(move |call| {
            let barrier = barrier.clone();
            async move {
                if call == Call::Insert {
                    barrier.wait().await;
                }
                Ok(())
            }
        });
        let create = |_| {
            let keys = b.keys.clone();
            async move { keys.create(&ada(), new_key()).await }
        };
        let mut winners = Vec::new();
        for created in concurrently(64, create).await {
            match created {
                Ok(issued) => winners.push(issued),
                Err(error) => assert!(matches!(error, ManageError::LimitReached { max: 20 })),
            }
        }
        assert_eq!((winners.len(), b.snapshot().await.len()), (1, 20), "round {round}");
        b.verify(&winners[0]).await.unwrap();
        let changes = b.changes().await;
        let count = |change| changes.iter().filter(|other| **other == change).count();
        assert_eq!((count((Created, Begun)), count((Created, Abandoned))), (19 + 64, 63));
    }
}

/// Lets the first `parties` calls of `replace` start together. Later calls pass.
fn replace_together(store: &SpyStore, parties: usize) {
    let (barrier, seen) = (Arc::new(Barrier::new(parties)), Arc::new(AtomicUsize::new(0)));
    store.before(move |call| {
        let (barrier, seen) = (barrier.clone(), seen.clone());
        async move {
            if call == Call::Replace && seen.fetch_add(1, SeqCst) < parties {
                barrier.wait().await;
            }
            Ok(())
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_27_of_two_rotations_from_one_revision_one_wins() {
    for round in 0..100 {
        let b = bench();
        let old = b.create().await;
        let id = old.key.id;
        b.store.offered.lock().unwrap().clear();
        replace_together(&b.store, 2);
        let rotate = |keys: KeyManager| tokio::spawn(async move { keys.rotate(&ada(), &id).await });
        let (one, other) = (rotate(b.keys.clone()), rotate(b.another()));
        let (one, other) = (soon(one).await.unwrap(), soon(other).await.unwrap());
        let winner = match (one, other) {
            (Ok(won), Err(ManageError::Conflict)) | (Err(ManageError::Conflict), Ok(won)) => won,
            both => panic!("round {round}: {both:?}"),
        };
        b.verify(&winner).await.unwrap();
        assert_unknown(b.verify(&old).await);
        // Of all digests that were offered, one is valid.
        let mut offered = b.store.offered.lock().unwrap().clone();
        offered.push(old.key.digest);
        assert!(offered.len() >= 3, "both tried to write");
        for digest in offered {
            let found = b.store.inner.find_by_digest(&digest).await.unwrap();
            assert_eq!(found.is_some(), digest == winner.secret.digest());
        }
        assert_eq!(b.snapshot().await, [ApiKey::clone(&winner.key)]);
        let mut changes = b.changes().await;
        // Each manager numbers its own records of the same instant.
        changes.sort_by_key(|change| (change.0 == Rotated, change.1 == Abandoned));
        let expected = [(Created, Begun), (Rotated, Begun), (Rotated, Begun), (Rotated, Abandoned)];
        assert_eq!(changes, expected);
    }
}

/// Each edit waits for its turn and then writes once. An edit whose caller is gone does not
/// begin.
#[tokio::test]
async fn case_49_concurrent_edits_of_one_key_do_not_conflict() {
    let b = bench();
    let id = b.create().await.key.id;
    b.store.before(|_| async {
        tokio::task::yield_now().await;
        Ok(())
    });
    let edit = |number: usize| {
        let keys = b.keys.clone();
        async move { keys.update(&ada(), &id, rename(&number.to_string())).await }
    };
    assert!(concurrently(50, edit).await.iter().all(Result::is_ok));
    let writes = b.store.take_calls().into_iter().filter(|call| *call == Call::Replace).count();
    assert_eq!(writes, 50);

    // The first edit holds its turn while the callers of the others leave.
    let held = hold(&b.store, Call::Replace);
    let first = tokio::spawn(edit(100));
    eventually("the first edit is recorded", async || b.changes().await.len() == 52).await;
    let hasty: Vec<_> = (101..150).map(|number| tokio::spawn(edit(number))).collect();
    tokio::task::yield_now().await;
    hasty.iter().for_each(tokio::task::JoinHandle::abort);
    held.add_permits(1_000);
    soon(first).await.unwrap().unwrap();
    soon(edit(150)).await.unwrap();
    assert_eq!(b.changes().await.len(), 53, "no cancelled edit was begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_29_a_rename_that_races_a_revocation_or_a_rotation_takes_effect_with_it() {
    for round in 0..300 {
        let b = bench();
        let issued = b.create().await;
        let id = issued.key.id;
        if round % 2 == 0 {
            replace_together(&b.store, 2);
        }
        let (one, other) = (b.keys.clone(), b.another());
        let renamed = tokio::spawn(async move { one.update(&ada(), &id, rename("b")).await });
        let rotated = tokio::spawn(async move {
            match round % 3 {
                0 => Some(other.rotate(&ada(), &id).await.unwrap()),
                _ => other.update(&ada(), &id, KeyPatch::revoke()).await.map(|_| None).unwrap(),
            }
        });
        soon(renamed).await.unwrap().unwrap();
        let rotated = soon(rotated).await.unwrap();
        let key = &b.snapshot().await[0];
        assert_eq!((&key.name, key.revision), (&name("b"), Revision::new(3)), "round {round}");
        match rotated {
            Some(rotated) => {
                assert_unknown(b.verify(&issued).await);
                b.verify(&rotated).await.unwrap();
            }
            None => assert_denied(b.verify(&issued).await, Denial::Revoked),
        }
    }
}

#[tokio::test]
async fn case_30_a_key_deleted_during_a_verification_stays_deleted() {
    let held: [fn(Arc<Gate>) -> Find; 2] = [Find::HeldAfter, Find::HeldBefore];
    for (hold, found_before) in held.into_iter().zip([true, false]) {
        let b = bench();
        let issued = b.create().await;
        let gate = Arc::new(Gate::default());
        b.store.find(hold(Arc::clone(&gate)));
        let (keys, secret) = (b.keys.clone(), issued.secret.expose_secret().to_owned());
        let late = tokio::spawn(async move { keys.verify(&secret, None).await });
        soon(gate.reached.notified()).await;
        b.store.find(Find::Honest);
        b.keys.delete(&ada(), &issued.key.id).await.unwrap();
        assert_unknown(b.verify(&issued).await);
        gate.opened.notify_one();
        let late = soon(late).await.unwrap();
        if !found_before {
            assert_unknown(late);
        }
        // Neither the late answer nor its use brings the key back.
        assert_unknown(b.verify(&issued).await);
        assert!(b.keys.shutdown(Duration::from_secs(20)).await.is_complete());
        assert_unknown(b.verify(&issued).await);
        assert_eq!(b.snapshot().await, []);
    }
}

#[tokio::test]
async fn case_31_a_last_use_written_after_a_revocation_does_not_undo_it() {
    let b = bench();
    let issued = b.create().await;
    let held = hold(&b.store, Call::Uses);
    b.verify(&issued).await.unwrap();
    let used = b.clock.now();
    eventually("the write begins", async || b.store.uses.lock().unwrap().len() == 1).await;
    b.clock.advance(Duration::from_secs(1));
    let revoked = b.keys.update(&ada(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    held.add_permits(1);
    let expected = ApiKey { last_used_at: Some(used), ..ApiKey::clone(&revoked) };
    eventually("the use is written", async || b.snapshot().await[0] == expected).await;
    assert_denied(b.verify(&issued).await, Denial::Revoked);
}
