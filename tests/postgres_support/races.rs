//! Creators at the limit, over several connections and from two processes.

#[path = "../support/peer.rs"]
mod peer;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::sync::Arc;

use keygate::store::{OrgLimit, PostgresOptions};
use keygate::{KeyStore, OrgId, PostgresStore, StoreError};
use tokio::sync::Barrier;

use self::peer::{Peer, this_program};
use crate::postgres_support::{LIMIT, in_schema, in_session, new_key, org, schema_of};

/// This many tasks create a key each, concurrently, alternating between the stores. Returns
/// how many succeeded.
pub(crate) async fn creators(stores: &[PostgresStore], org: &OrgId, count: usize) -> usize {
    let start = Arc::new(Barrier::new(count));
    let tasks: Vec<_> = (0..count)
        .map(|n| {
            let store = stores[n % stores.len()].clone();
            let (start, key) = (Arc::clone(&start), new_key(org));
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

/// One store inserts over one connection, one key at a time. With several stores the inserts
/// meet in the database.
async fn four_stores(options: &PostgresOptions) -> Vec<PostgresStore> {
    let mut stores = Vec::new();
    for _ in 0..4 {
        let options = options.clone().connections(1);
        stores.push(options.connect().await.unwrap());
    }
    stores
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_26_of_64_creators_20_succeed_in_each_of_100_rounds() {
    in_schema(|options| async move {
        let stores = four_stores(&options).await;
        for round in 0..100 {
            let org = org(&format!("round-{round}"));
            assert_eq!(creators(&stores, &org, 64).await, 20, "round {round}");
            assert_eq!(stores[0].list(&org).await.unwrap().len(), 20);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_26_of_64_creators_at_19_keys_one_succeeds() {
    in_schema(|options| async move {
        let stores = four_stores(&options).await;
        for round in 0..20 {
            let org = org(&format!("round-{round}"));
            for _ in 0..19 {
                stores[0].insert(&new_key(&org), OrgLimit::NONE).await.unwrap();
            }
            assert_eq!(creators(&stores, &org, 64).await, 1, "round {round}");
            assert_eq!(stores[0].list(&org).await.unwrap().len(), 20);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_26_of_64_creators_in_two_processes_20_succeed_in_each_of_100_rounds() {
    in_schema(|options| async move {
        let stores = [options.clone().connect().await.unwrap()];
        let mut peer = peer(&schema_of(&options));
        assert_eq!(peer.says(), "ready");
        let (mut ours, mut theirs) = (0, 0);
        for round in 0..100 {
            let org = org(&format!("round-{round}"));
            peer.order(org.as_str());
            let here = creators(&stores, &org, 32).await;
            let there: usize = peer.says().parse().unwrap();
            assert_eq!(here + there, 20, "round {round}: {here} + {there}");
            assert_eq!(stores[0].list(&org).await.unwrap().len(), 20);
            (ours, theirs) = (ours + here, theirs + there);
        }
        println!("{ours} keys were created here, {theirs} by the other process");
        assert!(ours > 0 && theirs > 0, "no race: {ours} and {theirs}");
        peer.end();
    })
    .await;
}

/// Another process on the same schema. It creates keys in the organisations named on its
/// standard input.
fn peer(schema: &str) -> Peer {
    Peer::start(this_program(), "races::child", &[("KEYGATE_CHILD_SCHEMA", OsStr::new(schema))])
}

#[test]
#[ignore = "not a test: a process that other tests start"]
fn child() {
    let Ok(schema) = env::var("KEYGATE_CHILD_SCHEMA") else { return };
    let say = |line: &str| {
        let mut out = io::stdout().lock();
        write!(out, "\n@{line}\n").unwrap();
        out.flush().unwrap();
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = in_session(&schema, "keygate-peer");
    let stores = [runtime.block_on(options.connect()).unwrap()];
    say("ready");
    for line in io::stdin().lines().map_while(Result::ok) {
        let created = runtime.block_on(creators(&stores, &org(&line), 32));
        say(&created.to_string());
    }
}
