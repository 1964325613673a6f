//! The cache itself, under every order in which its tasks can run: look-ups that share a call
//! of the store, cancelled callers, and changes. `heavy/cache_model.rs` tests the counters alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(all(feature = "cache", feature = "tokio"))]

#[allow(dead_code, reason = "other tests use the rest")]
mod cache_support;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use cache_support::support::{Call, SpyStore};
use cache_support::{acme, digest, key, revoke, status};
use keygate::runtime::BoxFuture;
use keygate::store::{OrgLimit, Revision};
use keygate::*;

type Task = BoxFuture<'static, ()>;

/// Lets every other task run first.
async fn pause() {
    let mut paused = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A memory store that pauses before and after it looks up or changes a key.
fn pausing() -> Arc<SpyStore> {
    async fn pause_at(call: Call) -> Result<(), StoreError> {
        if !matches!(call, Call::List | Call::Uses) {
            pause().await;
        }
        Ok(())
    }
    let store = SpyStore::default();
    store.before(pause_at);
    store.after(pause_at);
    Arc::new(store)
}

struct Awake(AtomicBool);

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// Runs one task to completion.
fn now<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
    }
}

/// Runs the tasks in every order. Returns the number of orders.
fn in_every_order(make: impl Fn() -> (CachedStore, Vec<Task>, fn(&CachedStore))) -> usize {
    // The choice at each turn, and the number of options.
    let mut choices: Vec<(usize, usize)> = Vec::new();
    let mut orders = 0;
    loop {
        let (cached, tasks, check) = make();
        let mut tasks: Vec<_> = tasks
            .into_iter()
            .map(|task| (Some(task), Arc::new(Awake(AtomicBool::new(true)))))
            .collect();
        for turn in 0.. {
            let ready: Vec<_> = (0..tasks.len())
                .filter(|&i| tasks[i].0.is_some() && tasks[i].1.0.load(SeqCst))
                .collect();
            if ready.is_empty() {
                break;
            }
            if turn == choices.len() {
                choices.push((0, ready.len()));
            }
            assert_eq!(choices[turn].1, ready.len(), "the tasks do the same each time");
            let (task, awake) = &mut tasks[ready[choices[turn].0]];
            awake.0.store(false, SeqCst);
            let waker = Waker::from(Arc::clone(awake));
            let polled = task.as_mut().unwrap().as_mut().poll(&mut Context::from_waker(&waker));
            if polled.is_ready() {
                *task = None;
            }
        }
        assert!(tasks.iter().all(|(task, _)| task.is_none()), "a task waits forever");
        check(&cached);
        orders += 1;
        while choices.last().is_some_and(|(chosen, of)| chosen + 1 == *of) {
            choices.pop();
        }
        let Some((chosen, _)) = choices.last_mut() else { return orders };
        *chosen += 1;
    }
}

fn cached() -> CachedStore {
    over(&pausing())
}

/// Changes in the store itself are not announced to the cache.
fn over(store: &Arc<SpyStore>) -> CachedStore {
    now(store.inner.insert(&key(1), OrgLimit::NONE)).unwrap();
    CachedStore::builder(Arc::clone(store), Duration::from_secs(5)).build().unwrap()
}

fn look(cached: &CachedStore) -> Task {
    let cached = cached.clone();
    Box::pin(async move {
        status(&cached, &key(1)).await;
    })
}

/// A look-up that is dropped when `drop_it` runs, unless it has ended.
fn look_and_go_away(cached: &CachedStore) -> (Task, Task) {
    let lookup = Arc::new(Mutex::new((Some(look(cached)), None::<Waker>)));
    let shared = Arc::clone(&lookup);
    let run = Box::pin(poll_fn(move |cx| {
        let (lookup, waker) = &mut *shared.lock().unwrap();
        *waker = Some(cx.waker().clone());
        lookup.as_mut().map_or(Poll::Ready(()), |lookup| lookup.as_mut().poll(cx))
    }));
    let drop_it = Box::pin(async move {
        let (lookup, waker) = &mut *lookup.lock().unwrap();
        *lookup = None;
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    });
    (run, drop_it)
}

fn revocation(cached: &CachedStore) -> Task {
    let cached = cached.clone();
    Box::pin(async move {
        revoke(&cached, &key(1)).await;
        assert_eq!(status(&cached, &key(1)).await, Some(Status::Revoked));
    })
}

fn is_revoked(cached: &CachedStore) {
    assert_eq!(now(status(cached, &key(1))), Some(Status::Revoked));
}

fn is_active(cached: &CachedStore) {
    assert_eq!(now(status(cached, &key(1))), Some(Status::Active));
}

#[test]
fn case_30_no_look_up_after_a_revocation_gets_the_record_from_before() {
    let orders = in_every_order(|| {
        let cached = cached();
        let tasks = vec![look(&cached), look(&cached), look(&cached), revocation(&cached)];
        (cached, tasks, is_revoked as fn(&CachedStore))
    });
    assert!(orders > 1_000, "{orders}");
}

#[test]
fn case_30_no_look_up_after_a_revocation_and_a_cancelled_caller_gets_the_old_record() {
    let orders = in_every_order(|| {
        let cached = cached();
        let (look_up, drop_it) = look_and_go_away(&cached);
        let tasks = vec![look_up, drop_it, look(&cached), revocation(&cached)];
        (cached, tasks, is_revoked as fn(&CachedStore))
    });
    assert!(orders > 1_000, "{orders}");
}

#[test]
fn case_30_a_deleted_key_stays_deleted_and_a_new_one_is_found() {
    let orders = in_every_order(|| {
        let cached = cached();
        let change = {
            let cached = cached.clone();
            Box::pin(async move {
                cached.delete(&acme(), &key(1).id, None).await.unwrap();
                assert_eq!(status(&cached, &key(1)).await, None);
                cached.insert(&key(1), OrgLimit::NONE).await.unwrap();
                assert_eq!(status(&cached, &key(1)).await, Some(Status::Active));
            })
        };
        let tasks = vec![look(&cached), change as Task];
        (cached, tasks, is_active as fn(&CachedStore))
    });
    assert!(orders > 50, "{orders}");
}

/// The key is changed elsewhere and read with `get` at some point. Every later look-up sees
/// what `get` saw, whatever was cached or under way.
fn after_a_get(change: fn(Arc<SpyStore>) -> Task, digests: &'static [u64]) -> usize {
    in_every_order(|| {
        let store = pausing();
        let cached = over(&store);
        let reader: Task = {
            let (cached, store) = (cached.clone(), Arc::clone(&store));
            Box::pin(async move {
                let seen = cached.get(&acme(), &key(1).id).await.unwrap();
                let has_changed = seen.is_none_or(|key| key.revision > Revision::FIRST);
                for number in digests {
                    let found = cached.find_by_digest(&digest(*number)).await.unwrap();
                    if has_changed {
                        assert_eq!(
                            found,
                            now(store.inner.find_by_digest(&digest(*number))).unwrap()
                        );
                    }
                }
            })
        };
        let looks = digests.iter().map(|number| -> Task {
            let (cached, digest) = (cached.clone(), digest(*number));
            Box::pin(async move {
                cached.find_by_digest(&digest).await.unwrap();
            })
        });
        let tasks = looks.chain([change(store), reader]).collect();
        (cached, tasks, |_| {})
    })
}

#[test]
fn after_a_get_no_look_up_sees_the_key_from_before_a_revocation_or_a_deletion() {
    let orders = [
        after_a_get(|store| Box::pin(async move { revoke(&store.inner, &key(1)).await }), &[1]),
        after_a_get(
            |store| {
                Box::pin(
                    async move { store.inner.delete(&acme(), &key(1).id, None).await.unwrap() },
                )
            },
            &[1],
        ),
    ];
    assert!(orders.iter().all(|orders| *orders > 50), "{orders:?}");
}

#[test]
fn after_a_get_no_look_up_sees_the_old_secret_or_misses_the_new_one() {
    let rotate = |store: Arc<SpyStore>| -> Task {
        Box::pin(async move {
            let rotated = ApiKey { digest: digest(2), revision: Revision::FIRST.next(), ..key(1) };
            store.inner.replace(&rotated, Revision::FIRST).await.unwrap();
        })
    };
    for digest in [&[1], &[2]] {
        let orders = after_a_get(rotate, digest);
        assert!(orders > 50, "{orders}");
    }
}

#[test]
fn no_task_waits_forever_whichever_caller_is_cancelled() {
    let orders = in_every_order(|| {
        let cached = cached();
        let (first, drop_first) = look_and_go_away(&cached);
        let (second, drop_second) = look_and_go_away(&cached);
        let tasks = vec![first, drop_first, second, drop_second, look(&cached)];
        (cached, tasks, is_active as fn(&CachedStore))
    });
    assert!(orders > 1_000, "{orders}");
}
