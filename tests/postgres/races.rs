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

/// A store makes the creations of an organisation one after the other. Those of several stores
/// meet in the database.
async fn two_stores(schema: &str) -> [PostgresStore; 2] {
    let options = PostgresOptions::from_url(&url()).unwrap().schema(schema).unwrap();
    let options = options.deadline(PATIENT).connections(1);
    [options.clone().connect().await.unwrap(), options.connect().await.unwrap()]
}

/// 32 tasks create a key each. Returns how many succeeded.
async fn creators(stores: &[PostgresStore; 2], org: &OrgId) -> usize {
    let mut tasks = JoinSet::new();
    for n in 0..32 {
        let (store, key) = (stores[n % 2].clone(), new_key(org));
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
async fn case_26_of_64_creators_in_two_processes_as_many_succeed_as_there_are_places() {
    let schema = Schema::new();
    let stores = two_stores(&schema.name).await;
    let variables = [("KEYGATE_CHILD_SCHEMA", OsStr::new(&schema.name))];
    let mut peer = Peer::start(this_program(), "races::child", &variables);
    assert_eq!(peer.says(), "ready");
    let (mut ours, mut theirs) = (0, 0);
    for round in 0..60 {
        let org = org(&format!("round-{round}"));
        let places = if round % 2 == 0 { 20 } else { 1 };
        for _ in places..20 {
            stores[0].insert(&new_key(&org), OrgLimit::NONE).await.unwrap();
        }
        peer.order(org.as_str());
        let here = creators(&stores, &org).await;
        let there: usize = peer.says().parse().unwrap();
        assert_eq!(here + there, places, "round {round}: {here} + {there}");
        assert_eq!(stores[0].list(&org).await.unwrap().len(), 20);
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
    let stores = two_stores(&schema).await;
    say("ready");
    for line in io::stdin().lines().map_while(Result::ok) {
        say(&creators(&stores, &org(&line)).await.to_string());
    }
}
