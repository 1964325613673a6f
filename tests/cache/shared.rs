//! Look-ups of the same digest share one call of the store.

use std::error::Error as StdError;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

use keygate::runtime::BoxFuture;
use keygate::*;
use tokio::sync::Semaphore;

use crate::cache_support::support::{Call, soon};
use crate::cache_support::{acme, feed, insert, key, status};
use crate::{LONG, cached, find, lasting, lookup, probe, status_of};

/// Polls a look-up until it cannot continue.
fn waits<T>(lookup: &mut BoxFuture<'_, T>) -> bool {
    lookup.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[tokio::test]
async fn a_hundred_concurrent_callers_share_one_call() {
    for bypassed in [false, true] {
        let probe = probe();
        let key = insert(&probe, 1).await;
        let (_say, feed) = feed();
        let builder = CachedStore::builder(Arc::clone(&probe), LONG);
        let builder = if bypassed { builder.feed(feed) } else { builder };
        let cached = builder.build().unwrap();
        let gate = probe.hold_before(Call::Find);
        let mut callers: Vec<_> = (0..100).map(|_| cached.find_by_digest(&key.digest)).collect();
        assert!(callers.iter_mut().all(waits));
        gate.open();
        for caller in callers {
            assert_eq!(status_of(soon(caller).await), Some(Status::Active));
        }
        assert_eq!(probe.finds(), 1, "bypassed: {bypassed}");
    }
}

/// Sometimes a call starts between another caller's check of the cache and its own call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synchronised_callers_on_four_threads_share_one_call_per_digest() {
    const CALLERS: u64 = 4;
    const DIGESTS: u64 = 40_000;
    let probe = probe();
    let cached = lasting(&probe, 4 * DIGESTS as usize).await;
    let arrived = Arc::new(AtomicU64::new(0));
    let callers = [(); CALLERS as usize].map(|()| {
        let (cached, arrived) = (cached.clone(), Arc::clone(&arrived));
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            for number in 0..DIGESTS {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < CALLERS * (number + 1) {
                    std::thread::yield_now();
                }
                assert!(!runtime.block_on(find(&cached, number)));
            }
        })
    });
    for done in callers {
        done.await.unwrap();
    }
    assert_eq!(probe.finds() as u64, DIGESTS);
}

#[tokio::test]
async fn callers_of_different_digests_do_not_wait_for_each_other() {
    let probe = probe();
    let (one, two) = (insert(&probe, 1).await, insert(&probe, 2).await);
    let cached = cached(&probe);
    let gate = probe.hold_before(Call::Find);
    let held = lookup(&cached, &one);
    gate.reached().await;
    probe.heal();
    assert_eq!(soon(status(&cached, &two)).await, Some(Status::Active));
    gate.open();
    soon(held).await.unwrap().unwrap();
}

/// A shared look-up is not repeated for each id that another caller reads.
#[tokio::test]
async fn case_51_unknown_ids_do_not_split_a_shared_look_up() {
    let mut finds = Vec::new();
    // Sometimes an id shares its slot with the key, and the store is asked again.
    for number in 0..3 {
        let probe = probe();
        let wanted = insert(&probe, number).await;
        let cached = cached(&probe);
        let gate = probe.hold_before(Call::Find);
        let mut first = cached.find_by_digest(&wanted.digest);
        assert!(waits(&mut first));
        assert_eq!(cached.get(&acme(), &key(77).id).await.unwrap(), None);
        let mut second = cached.find_by_digest(&wanted.digest);
        assert!(waits(&mut second));
        gate.open();
        gate.open();
        for caller in [first, second] {
            assert_eq!(status_of(soon(caller).await), Some(Status::Active));
        }
        finds.push(probe.finds());
    }
    assert!(finds.contains(&1), "{finds:?}");
}

#[tokio::test]
async fn a_cancelled_caller_leaves_the_call_to_the_others() {
    let probe = probe();
    let key = insert(&probe, 1).await;
    let cached = cached(&probe);
    let gate = probe.hold_before(Call::Find);
    let mut first = cached.find_by_digest(&key.digest);
    assert!(waits(&mut first));
    let mut others = [(); 2].map(|()| cached.find_by_digest(&key.digest));
    assert!(others.iter_mut().all(waits));
    drop(first);
    gate.open();
    for other in others {
        assert_eq!(status_of(soon(other).await), Some(Status::Active));
    }
    assert_eq!(probe.finds(), 1);
}

#[tokio::test]
async fn the_call_ends_when_its_last_caller_is_cancelled() {
    let probe = probe();
    let key = insert(&probe, 1).await;
    let cached = cached(&probe);
    let idle = Arc::new(Semaphore::new(1));
    let semaphore = Arc::clone(&idle);
    probe.before(move |_| {
        let semaphore = Arc::clone(&semaphore);
        async move {
            let _permit = semaphore.acquire().await.unwrap();
            pending().await
        }
    });
    let mut callers = [(); 2].map(|()| cached.find_by_digest(&key.digest));
    assert!(callers.iter_mut().all(waits));
    for caller in callers {
        assert_eq!(idle.available_permits(), 0, "the call is under way");
        drop(caller);
    }
    assert_eq!(idle.available_permits(), 1, "the call has ended");
    probe.heal();
    assert_eq!(soon(status(&cached, &key)).await, Some(Status::Active));
    assert_eq!(probe.finds(), 2);
}

#[tokio::test]
async fn all_callers_get_the_error_and_the_next_asks_again() {
    type Fail = fn() -> StoreError;
    let failures: [(Fail, &str); 3] = [
        (|| StoreError::unavailable("the line is cut"), "the line is cut"),
        (|| StoreError::corrupt("no such status"), "no such status"),
        (|| panic!("the store of a test panics"), "the store panicked"),
    ];
    for (fail, message) in failures {
        let probe = probe();
        let key = insert(&probe, 1).await;
        let cached = cached(&probe);
        let gate = probe.hold_before(Call::Find);
        probe.after(move |_| async move { Err(fail()) });
        let mut callers = [(); 3].map(|()| cached.find_by_digest(&key.digest));
        assert!(callers.iter_mut().all(waits));
        gate.open();
        for caller in callers {
            let error = soon(caller).await.unwrap_err();
            let is_corrupt = matches!(error, StoreError::Corrupt(_));
            assert_eq!(is_corrupt, message == "no such status", "{error:?}");
            assert!(is_corrupt || matches!(error, StoreError::Unavailable(_)), "{error:?}");
            let source = error.source().unwrap();
            assert_eq!(source.to_string(), message);
            assert!(source.source().is_none());
        }
        assert_eq!(probe.finds(), 1);
        probe.heal();
        assert_eq!(status(&cached, &key).await, Some(Status::Active));
    }
}
