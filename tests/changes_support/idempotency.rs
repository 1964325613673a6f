//! Repeated creations.

use std::sync::Arc;
use std::time::Duration;

use keygate::manager::{IdempotencyKey, IssuedKey};
use keygate::*;
use tokio::task::JoinSet;

use crate::changes_support::{Setup, actor, new_key};
use crate::support::TestClock;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const START: &str = "2027-05-03T23:59:59.9Z";

fn once(text: &str) -> NewKey {
    new_key().idempotent(IdempotencyKey::new(text).unwrap())
}

fn already(result: Result<IssuedKey, ManageError>) -> KeyId {
    match result {
        Err(ManageError::AlreadyCreated { id }) => id,
        other => panic!("{other:?}"),
    }
}

fn at(clock: &TestClock, after: Duration) {
    clock.set(START.parse::<Timestamp>().unwrap().saturating_add(after));
}

fn manager(limit: u32) -> (KeyManager, TestClock) {
    let clock = TestClock::at(START);
    let limits = Limits::default().max_keys(limit);
    let builder = KeyManager::builder(MemoryStore::new()).clock(clock.clone()).limits(limits);
    (builder.build().unwrap(), clock)
}

#[tokio::test]
async fn a_creation_that_is_sent_again_within_a_day_makes_no_second_key() {
    let (keys, clock) = manager(20);
    let (a, b) = (actor("a"), actor("b"));
    let first = keys.create(&a, once("x")).await.unwrap().key.id;
    for after in [Duration::ZERO, DAY / 2, DAY - Duration::from_micros(1)] {
        at(&clock, after);
        assert_eq!(already(keys.create(&a, once("x")).await), first, "{after:?}");
    }
    // A changed key is found too.
    keys.rotate(&a, &first).await.unwrap();
    keys.update(&a, &first, KeyPatch::revoke()).await.unwrap();
    assert_eq!(already(keys.create(&a, once("x")).await), first);
    // Another text, another organisation, and no idempotency key.
    let others = [
        keys.create(&a, once("y")).await.unwrap().key.id,
        keys.create(&b, once("x")).await.unwrap().key.id,
        keys.create(&a, new_key()).await.unwrap().key.id,
    ];
    assert!(!others.contains(&first));

    at(&clock, DAY);
    let second = keys.create(&a, once("x")).await.unwrap().key.id;
    assert_ne!(second, first);
    assert_eq!(already(keys.create(&a, once("x")).await), second);
    // The deletion of the first key does not matter.
    keys.delete(&a, &first).await.unwrap();
    assert_eq!(already(keys.create(&a, once("x")).await), second);
    keys.delete(&a, &second).await.unwrap();
    keys.create(&a, once("x")).await.unwrap();
    assert_eq!(keys.list(a.org()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_repeated_creation_of_the_last_key_does_not_report_the_limit() {
    let (keys, clock) = manager(2);
    let a = actor("a");
    keys.create(&a, once("x")).await.unwrap();
    at(&clock, DAY);
    let last = keys.create(&a, once("x")).await.unwrap().key.id;
    assert_eq!(already(keys.create(&a, once("x")).await), last, "the limit must not be reported");
    at(&clock, 2 * DAY);
    let full = keys.create(&a, once("x")).await;
    assert!(matches!(full, Err(ManageError::LimitReached { max: 2 })), "{full:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_concurrent_creations_makes_the_key() {
    // Two managers, as in two processes.
    let (setup, a) = (Setup::new(Delivery::buffered()), actor("a"));
    let other = KeyManager::builder(setup.store.clone()).limits(setup.keys.limits(a.org()));
    let other = other.build().unwrap();
    for round in 0..100 {
        let text = format!("round-{round}");
        let mut calls = JoinSet::new();
        for keys in [&setup.keys, &other].into_iter().cycle().take(6) {
            let (keys, a, text) = (keys.clone(), a.clone(), text.clone());
            calls.spawn(async move { keys.create(&a, once(&text)).await });
        }
        let (made, refused): (Vec<_>, Vec<_>) =
            calls.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!(made.len(), 1, "{refused:?}");
        let id = made[0].as_ref().unwrap().key.id;
        assert!(refused.into_iter().all(|refused| already(refused) == id));
    }
    assert_eq!(setup.keys.list(a.org()).await.unwrap().len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creations_of_the_last_key_all_report_that_key() {
    for _ in 0..50 {
        let store = Arc::new(crate::changes_support::PausingStore::default());
        let limits = Limits::default().max_keys(1);
        let keys = KeyManager::builder(store).limits(limits).build().unwrap();
        let calls = (0..6).map(|_| {
            let keys = keys.clone();
            async move { keys.create(&actor("a"), once("x")).await }
        });
        let results = calls.collect::<JoinSet<_>>().join_all().await;
        let refused = results.into_iter().filter(Result::is_err);
        assert_eq!(refused.map(already).count(), 5);
    }
}
