//! Creators at the limit in two processes.

#[path = "../support/peer.rs"]
mod peer;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};

use keygate::store::{OrgLimit, PostgresOptions};
use keygate::{KeyStore, OrgId, PostgresStore, StoreError};
use tokio::task::JoinSet;

use self::peer::{Peer, this_program};
use crate::postgres_support::{PATIENT, Schema, new_key, org, url};

/// 32 tasks create a key each. Returns how many succeeded.
async fn creators(store: &PostgresStore, org: &OrgId) -> usize {
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let (store, key) = (store.clone(), new_key(org));
        tasks.spawn(async move { store.insert(&key, OrgLimit::at_most(20)).await });
    }
    let mut created = 0;
    for result in tasks.join_all().await {
        match result {
            Ok(()) => created += 1,
            Err(StoreError::LimitReached) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    created
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_26_of_64_creators_in_two_processes_20_succeed_in_each_of_100_rounds() {
    let schema = Schema::new();
    let store = schema.store().await;
    let variables = [("KEYGATE_CHILD_SCHEMA", OsStr::new(&schema.name))];
    let mut peer = Peer::start(this_program(), "races::child", &variables);
    assert_eq!(peer.says(), "ready");
    let (mut ours, mut theirs) = (0, 0);
    for round in 0..100 {
        let org = org(&format!("round-{round}"));
        peer.order(org.as_str());
        let here = creators(&store, &org).await;
        let there: usize = peer.says().parse().unwrap();
        assert_eq!(here + there, 20, "round {round}: {here} + {there}");
        assert_eq!(store.list(&org).await.unwrap().len(), 20);
        (ours, theirs) = (ours + here, theirs + there);
    }
    assert!(ours > 0 && theirs > 0, "no race: {ours} and {theirs}");
    peer.end();
}

/// Creates keys in the organisations named on its standard input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test: a process that other tests start"]
async fn child() {
    let Ok(schema) = env::var("KEYGATE_CHILD_SCHEMA") else { return };
    let say = |line: &str| {
        let mut out = io::stdout().lock();
        write!(out, "\n@{line}\n").unwrap();
        out.flush().unwrap();
    };
    let options = PostgresOptions::from_url(&url()).unwrap().schema(&schema).unwrap();
    let store = options.deadline(PATIENT).connect().await.unwrap();
    say("ready");
    for line in io::stdin().lines().map_while(Result::ok) {
        say(&creators(&store, &org(&line)).await.to_string());
    }
}
