//! Last-used times on their way to the store.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keygate::runtime::{Clock, ManualClock};
use keygate::store::KeyUse;
use keygate::*;

use crate::support::{Call, SpyStore, capture_logs, eventually, log_lines, org, soon};
use crate::{ada, bench, get, millis, new_key, shut_down};

/// What the store does with last uses.
#[derive(Clone, Copy, Debug, Default)]
enum Answer {
    #[default]
    Write,
    Err,
    Hang,
    Panic,
}

struct UseBench {
    store: Arc<SpyStore>,
    /// Answers to the next writes of last uses.
    plan: Arc<Mutex<VecDeque<Answer>>>,
    /// Answers to all writes after those.
    then: Arc<Mutex<Answer>>,
    clock: Arc<ManualClock>,
    keys: KeyManager,
}

fn use_bench() -> UseBench {
    let store = Arc::new(SpyStore::default());
    let (plan, then) = (Arc::<Mutex<VecDeque<Answer>>>::default(), Arc::<Mutex<Answer>>::default());
    let (planned, otherwise) = (plan.clone(), then.clone());
    store.before(move |call| {
        let answer = if call == Call::Uses {
            let planned = planned.lock().unwrap().pop_front();
            planned.unwrap_or(*otherwise.lock().unwrap())
        } else {
            Answer::Write
        };
        async move {
            match answer {
                Answer::Write => Ok(()),
                Answer::Hang => pending().await,
                Answer::Panic => panic!("the store of a test panics"),
                Answer::Err => Err(StoreError::unavailable("locked")),
            }
        }
    });
    let start = "2027-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
    let clock = Arc::new(ManualClock::new(start));
    let builder = KeyManager::builder(store.clone()).clock(clock.clone());
    let keys = builder.store_deadline(millis(100)).build().unwrap();
    UseBench { store, plan, then, clock, keys }
}

impl UseBench {
    async fn create(&self, new: NewKey) -> (String, KeyId) {
        let issued = self.keys.create(&ada(), new).await.unwrap();
        (issued.secret.expose_secret().to_owned(), issued.key.id)
    }

    fn calls(&self) -> Vec<Vec<KeyUse>> {
        self.store.uses.lock().unwrap().clone()
    }

    async fn last_used(&self, id: KeyId) -> Option<Timestamp> {
        self.keys.get(&org("acme"), &id).await.unwrap().last_used_at
    }

    async fn called(&self, times: usize) {
        eventually("the store is given uses", async || self.calls().len() >= times).await;
    }
}

#[tokio::test]
async fn a_thousand_uses_of_a_key_become_at_most_two_writes() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    for _ in 0..1_000 {
        b.keys.verify(&secret, None).await.unwrap();
        b.clock.advance(Duration::from_micros(1));
        tokio::task::yield_now().await;
    }
    shut_down(&b.keys).await;
    let calls = b.calls();
    assert!(calls.len() <= 4, "{} writes", calls.len());
    assert!(calls.iter().all(|uses| uses.len() == 1 && uses[0].id == id), "{calls:?}");
    let last = b.clock.now().saturating_sub(Duration::from_micros(1));
    assert_eq!(b.last_used(id).await, Some(last));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uses_on_many_threads_are_written_once_per_key() {
    let b = use_bench();
    let (one, other) = (b.create(new_key()).await, b.create(new_key()).await);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (keys, secrets) = (b.keys.clone(), [one.0.clone(), other.0.clone()]);
            tokio::spawn(async move {
                for _ in 0..100 {
                    for secret in &secrets {
                        keys.verify(secret, None).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    shut_down(&b.keys).await;
    for uses in b.calls() {
        assert!(uses.len() <= 2 && (uses.len() < 2 || uses[0].id != uses[1].id), "{uses:?}");
    }
    assert!(b.last_used(one.1).await.is_some() && b.last_used(other.1).await.is_some());
}

#[tokio::test]
async fn last_used_times_never_move_back() {
    for is_written in [true, false] {
        let b = use_bench();
        let (secret, id) = b.create(new_key()).await;
        let late = b.clock.now();
        b.keys.verify(&secret, None).await.unwrap();
        if is_written {
            b.called(1).await;
        }
        for _ in 0..2 {
            b.clock.set(late.saturating_sub(Duration::from_secs(60)));
            b.keys.verify(&secret, None).await.unwrap();
        }
        if is_written {
            b.called(2).await;
        }
        shut_down(&b.keys).await;
        assert_eq!(b.last_used(id).await, Some(late), "written: {is_written}");
    }
}

#[tokio::test]
async fn case_56_a_last_use_in_the_future_is_replaced_by_the_next() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    let (right, wrong) = (b.clock.now(), "2099-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
    b.clock.set(wrong);
    b.keys.verify(&secret, None).await.unwrap();
    b.called(1).await;
    assert_eq!(b.last_used(id).await, Some(wrong));
    b.clock.set(right);
    b.keys.verify(&secret, None).await.unwrap();
    b.called(2).await;
    assert_eq!(b.last_used(id).await, Some(right), "written already");

    // It does not stay in an unwritten or failed batch either.
    b.plan.lock().unwrap().push_back(Answer::Err);
    b.clock.set(wrong);
    b.keys.verify(&secret, None).await.unwrap();
    b.called(3).await;
    b.clock.set(right.saturating_add(millis(1)));
    b.keys.verify(&secret, None).await.unwrap();
    shut_down(&b.keys).await;
    assert_eq!(b.last_used(id).await, Some(right.saturating_add(millis(1))));
}

#[tokio::test]
async fn uses_that_could_not_be_written_are_written_later() {
    for failure in [Answer::Err, Answer::Hang] {
        let b = use_bench();
        b.plan.lock().unwrap().push_back(failure);
        let (secret, id) = b.create(new_key()).await;
        let first = b.clock.now();
        b.keys.verify(&secret, None).await.unwrap();
        b.called(1).await;
        assert_eq!(b.last_used(id).await, None);
        // Without another use as a trigger.
        b.called(2).await;
        shut_down(&b.keys).await;
        assert_eq!(b.last_used(id).await, Some(first), "{failure:?}");
    }
}

#[tokio::test]
async fn after_a_panic_of_the_store_the_next_uses_are_written() {
    let b = use_bench();
    b.plan.lock().unwrap().push_back(Answer::Panic);
    let (secret, id) = b.create(new_key()).await;
    b.keys.verify(&secret, None).await.unwrap();
    b.called(1).await;
    b.keys.verify(&secret, None).await.unwrap();
    b.called(2).await;
    shut_down(&b.keys).await;
    assert!(b.last_used(id).await.is_some());
}

#[tokio::test]
async fn a_refused_request_does_not_count_as_a_use() {
    let b = use_bench();
    let (revoked, id) = b.create(new_key()).await;
    b.keys.update(&ada(), &id, KeyPatch::revoke()).await.unwrap();
    let (restricted, _) = b.create(new_key().allow(["10.0.0.0/8"]).unwrap()).await;
    let (expired, _) = b.create(new_key().expires(Expiration::OneDay)).await;
    b.clock.advance(Duration::from_secs(86_400));
    let (unknown, _) = use_bench().create(new_key()).await;
    for secret in [&revoked, &restricted, &expired, &unknown, "junk"] {
        b.keys.verify(secret, None).await.unwrap_err();
        b.keys.admit(secret, get("/")).await.unwrap_err();
    }
    shut_down(&b.keys).await;
    assert_eq!(b.calls(), [] as [Vec<KeyUse>; 0]);

    // A request that was refused because it could not be recorded is no use either.
    let b = bench(Delivery::strict().capacity(1)).await;
    let held = b.store.list(&org("acme")).await.unwrap();
    assert_eq!(held[0].last_used_at, None);
    shut_down(&b.keys).await;
    b.admit("/").await.unwrap_err();
    shut_down(&b.keys).await; // complete: no use was noted
}

#[tokio::test]
async fn admitted_requests_count_as_uses_and_shutdown_writes_them_at_once() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    drop(b.keys.admit(&secret, get("/")).await.unwrap());
    assert_eq!(b.calls(), [] as [Vec<KeyUse>; 0]);
    shut_down(&b.keys).await;
    assert_eq!(b.last_used(id).await, Some(b.clock.now()));
}

#[tokio::test]
async fn dropping_the_last_handle_still_writes_the_uses() {
    let b = use_bench();
    let (secret, id) = b.create(new_key()).await;
    b.keys.verify(&secret, None).await.unwrap();
    let UseBench { store, keys, clock, .. } = b;
    drop(keys);
    eventually("the use is written", async || {
        let key = store.get(&org("acme"), &id).await.unwrap().unwrap();
        key.last_used_at == Some(clock.now())
    })
    .await;
}

#[tokio::test]
async fn case_37_shutdown_counts_the_uses_that_it_could_not_write() {
    for failure in [Answer::Err, Answer::Hang] {
        for held in [false, true] {
            capture_logs();
            let b = use_bench();
            *b.then.lock().unwrap() = failure;
            for _ in 0..3 {
                let (secret, _) = b.create(new_key()).await;
                b.keys.verify(&secret, None).await.unwrap();
            }
            if held {
                b.called(1).await;
            }
            let report = soon(b.keys.shutdown(millis(20))).await;
            assert_eq!(
                (report.unwritten_uses, report.unwritten_records),
                (3, 0),
                "{failure:?} {held}"
            );
            assert!(log_lines(&["ERROR", "last-used times were not written"]) >= 1);
        }
    }
}
