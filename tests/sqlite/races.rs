//! Concurrent creations at the limit, in one process and in two, and several writers in a
//! transaction.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};

use keygate::runtime::BoxFuture;
use keygate::{ApiKey, KeyStore, OrgId, SqliteStore, StoreError};
use rusqlite::Connection;
use tokio::sync::Barrier;

use crate::files::{LIMIT, assert_sound, key, new_store, org, peer, raw};

/// This many tasks create a key each, concurrently. Returns how many succeeded.
pub(crate) async fn creators(store: &SqliteStore, org: &OrgId, count: usize) -> usize {
    let start = Arc::new(Barrier::new(count));
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let (store, start, key) = (store.clone(), Arc::clone(&start), key(org));
            tokio::spawn(async move {
                start.wait().await;
                store.insert(&key, LIMIT).await
            })
        })
        .collect();
    let mut created = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => created += 1,
            Err(StoreError::LimitReached) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    created
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_26_of_64_creators_20_succeed_in_each_of_100_rounds() {
    let (_folder, path, store) = new_store();
    for round in 0..100 {
        let org = org(&format!("round-{round}"));
        assert_eq!(creators(&store, &org, 64).await, 20, "round {round}");
        assert_eq!(store.list(&org).await.unwrap().len(), 20);
    }
    assert_sound(&path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_26_of_64_creators_in_two_processes_20_succeed_in_each_of_100_rounds() {
    let (_folder, path, store) = new_store();
    let mut peer = peer("create", &path);
    assert_eq!(peer.says(), "ready");
    let (mut ours, mut theirs) = (0, 0);
    for round in 0..100 {
        let org = org(&format!("round-{round}"));
        peer.order(org.as_str());
        let here = creators(&store, &org, 32).await;
        let there: usize = peer.says().parse().unwrap();
        assert_eq!(here + there, 20, "round {round}: {here} + {there}");
        assert_eq!(store.list(&org).await.unwrap().len(), 20);
        (ours, theirs) = (ours + here, theirs + there);
    }
    assert!(ours > 0 && theirs > 0, "no race: {ours} and {theirs}");
    peer.end();
    assert_sound(&path);
}

/// The number of transactions in the write-ahead log: the last frame of each contains the size
/// of the database.
pub(crate) fn commits(path: &Path) -> usize {
    let log = fs::read(path.with_extension("db-wal")).unwrap();
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let page = number(&log[8..12]) as usize;
    let frames = log[32..].chunks_exact(24 + page);
    frames.filter(|frame| frame[8..16] == log[16..24] && number(&frame[4..8]) != 0).count()
}

/// Insertions that wait while the returned connection holds the file's write lock.
fn waiting<'a>(
    store: &'a SqliteStore,
    path: &Path,
    keys: &'a [ApiKey],
) -> (Connection, Waiting<'a>) {
    let other = raw(path);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut inserts: Vec<_> = keys.iter().map(|key| store.insert(key, LIMIT)).collect();
    for insert in &mut inserts {
        // The first poll passes the change to the writer.
        assert!(insert.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    (other, inserts)
}

type Waiting<'a> = Vec<BoxFuture<'a, Result<(), StoreError>>>;

#[tokio::test]
async fn changes_that_wait_at_the_same_time_share_a_transaction() {
    let (_folder, path, store) = new_store();
    store.insert(&key(&org("acme")), LIMIT).await.unwrap();
    let before = commits(&path);
    let keys: Vec<_> = (0..64).map(|n| key(&org(&format!("org-{}", n % 4)))).collect();
    let (lock, inserts) = waiting(&store, &path, &keys);
    drop(lock);
    for insert in inserts {
        insert.await.unwrap();
    }
    let transactions = commits(&path) - before;
    assert!((1..=2).contains(&transactions), "64 changes took {transactions} transactions");
}

#[tokio::test]
async fn a_failed_change_fails_no_other() {
    let (_folder, path, store) = new_store();
    let taken = key(&org("acme"));
    store.insert(&taken, LIMIT).await.unwrap();
    let keys: Vec<_> =
        (0..20).map(|n| if n % 2 == 0 { taken.clone() } else { key(&org("other")) }).collect();
    let (lock, inserts) = waiting(&store, &path, &keys);
    drop(lock);
    for (n, insert) in inserts.into_iter().enumerate() {
        match insert.await {
            Ok(()) => assert_eq!(n % 2, 1),
            Err(StoreError::Conflict) => assert_eq!(n % 2, 0),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(store.list(&org("other")).await.unwrap().len(), 10);
}

#[tokio::test]
async fn a_cancelled_change_does_not_begin() {
    let (_folder, path, store) = new_store();
    let keys = [key(&org("acme")), key(&org("acme"))];
    let (lock, mut inserts) = waiting(&store, &path, &keys);
    drop(inserts.pop());
    drop(lock);
    inserts.pop().unwrap().await.unwrap();
    // All earlier changes have had their turn when this returns.
    store.insert(&key(&org("other")), LIMIT).await.unwrap();
    assert_eq!(store.list(&org("acme")).await.unwrap().len(), 1);
}
