//! Recorded histories: threads use and change keys concurrently, and a checker decides whether
//! some order of the changes explains every outcome.
//!
//! | variable | default | |
//! |---|---|---|
//! | `KEYGATE_HISTORY_OPS` | some thousands for each store | how many operations |
//!
//! In full, for each store of a release build:
//! `KEYGATE_HISTORY_OPS=1000000 cargo test --release --all-features --test histories memory -- --nocapture`,
//! with 100000 for `sqlite`, and for `postgres` with `--ignored` as well.
#![cfg(feature = "tokio")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod histories_support;
#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_support;

use std::env;
use std::time::{Duration, Instant};

use keygate::{KeyManager, KeyStore, MemoryStore};
use tokio::runtime::Runtime;

use crate::histories_support::broken::{Fault, FaultyStore};
use crate::histories_support::checker::{Demand, Kind};
use crate::histories_support::event::Outcome;
use crate::histories_support::workload::{History, Plan, run};

/// Many threads on a few keys.
fn plan(operations: u64) -> Plan {
    let operations = env::var("KEYGATE_HISTORY_OPS").map_or(operations, |ops| ops.parse().unwrap());
    Plan { operations, threads: 8, keys: 6, changes: 20, lifetime: Duration::from_millis(20) }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Prints a summary. Fails with the first violations.
fn assert_explained(what: &str, plan: &Plan, demand: Demand, history: &History) {
    let begun = Instant::now();
    let violations = history.violations(demand);
    let [accepted, denied, unknown, changed, refused] = [
        history.count(|outcome| matches!(outcome, Outcome::Accepted { .. })),
        history.count(|outcome| matches!(outcome, Outcome::Denied { .. })),
        history.count(|outcome| matches!(outcome, Outcome::Unknown { .. })),
        history.count(|outcome| {
            matches!(
                outcome,
                Outcome::Created(_) | Outcome::Updated(..) | Outcome::Rotated(_) | Outcome::Deleted
            )
        }),
        history.count(|outcome| matches!(outcome, Outcome::Conflict(_) | Outcome::NotFound(_))),
    ];
    let races = history.races();
    println!(
        "{what}: {} operations of {} threads in {:.1?} ({accepted} accepted, {denied} denied, \
         {unknown} unknown, {changed} changes, {refused} refused; {races} verifications raced \
         with a change), checked in {:.1?}: {} violations",
        history.operations,
        plan.threads,
        history.took,
        begun.elapsed(),
        violations.len(),
    );
    for violation in violations.iter().take(5) {
        println!("  {violation}");
    }
    assert!(violations.is_empty(), "{what}: {} violations", violations.len());
    // A history with few events is easily explained.
    let operations = history.operations;
    assert!(operations as u64 >= plan.operations);
    assert!(accepted > operations / 8 && changed > operations / 25, "too little happened");
    assert!(denied > operations / 50 && unknown > operations / 50, "too little was refused");
    assert!(races > operations / 20_000, "no races");
}

fn assert_history(what: &str, plan: &Plan, demand: Demand, store: impl KeyStore) {
    let runtime = runtime();
    let history = run(runtime.handle(), store, plan);
    assert_explained(what, plan, demand, &history);
}

#[test]
fn case_28_memory_every_history_is_explained() {
    assert_history("memory", &plan(100_000), Demand::Together, MemoryStore::new());
}

#[test]
fn case_28_memory_every_history_of_threads_that_yield_is_explained() {
    let store = FaultyStore::with(Fault::None);
    assert_history("memory in turns", &plan(50_000), Demand::Together, store);
}

#[cfg(feature = "cache")]
#[test]
fn case_28_memory_every_history_of_a_cache_is_explained() {
    let cached =
        |store| keygate::CachedStore::builder(store, Duration::from_secs(5)).build().unwrap();
    let store = cached(FaultyStore::with(Fault::None));
    assert_history("cache over memory", &plan(50_000), Demand::Each, store);
}

/// A revocation or deletion that was already made by another process has the same effect when
/// it returns: this process refuses the key from then on.
#[cfg(feature = "cache")]
#[tokio::test]
async fn case_28_a_repeated_change_made_first_by_another_process_takes_effect_when_it_returns() {
    use keygate::{Actor, Denial, KeyPatch, ManageError, NewKey, OrgId, VerifyError};
    let store = std::sync::Arc::new(MemoryStore::new());
    let cached =
        keygate::CachedStore::builder(store.clone(), Duration::from_secs(5)).build().unwrap();
    let here = KeyManager::builder(cached).build().unwrap();
    let there = KeyManager::builder(store).build().unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "tester");
    let issued = here.create(&actor, NewKey::named("CI").unwrap()).await.unwrap();
    let (id, secret) = (issued.key.id, issued.secret.expose_secret());
    here.verify(secret, None).await.unwrap();

    there.update(&actor, &id, KeyPatch::revoke()).await.unwrap();
    let revoked = here.update(&actor, &id, KeyPatch::revoke()).await.unwrap();
    assert_eq!(revoked.status, keygate::Status::Revoked);
    let refused = here.verify(secret, None).await;
    let denial = Denial::Revoked;
    assert!(
        matches!(&refused, Err(VerifyError::Denied { denial: d, .. }) if *d == denial),
        "accepted after the revocation returned: {refused:?}"
    );
    there.delete(&actor, &id).await.unwrap();
    let gone = here.delete(&actor, &id).await;
    assert!(matches!(gone, Err(ManageError::NotFound)), "{gone:?}");
    let refused = here.verify(secret, None).await;
    assert!(matches!(refused, Err(VerifyError::Unknown)), "{refused:?}");
}

#[cfg(feature = "sqlite")]
#[test]
fn case_28_sqlite_every_history_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let store = keygate::SqliteStore::open(folder.path().join("keys.db")).unwrap();
    assert_history("SQLite", &plan(5_000), Demand::Together, store);
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use crate::postgres_support::in_schema;

    /// The threads wait for the server most of the time.
    fn patient(operations: u64) -> Plan {
        Plan { threads: 16, keys: 10, lifetime: Duration::from_millis(200), ..plan(operations) }
    }

    async fn assert_history(what: &'static str, demand: Demand, store: impl KeyStore) {
        let handle = tokio::runtime::Handle::current();
        let work = move || {
            let plan = patient(20_000);
            let history = run(&handle, store, &plan);
            assert_explained(what, &plan, demand, &history);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs PostgreSQL"]
    async fn case_28_postgres_every_history_is_explained() {
        in_schema(|options| async move {
            let store = options.connect().await.unwrap();
            assert_history("PostgreSQL", Demand::Together, store).await;
        })
        .await;
    }

    #[cfg(feature = "cache")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs PostgreSQL"]
    async fn case_28_postgres_every_history_of_a_cache_with_a_feed_is_explained() {
        in_schema(|options| async move {
            let store = options.connect().await.unwrap();
            let feed = store.changes().heartbeat(Duration::from_millis(20));
            let cached = keygate::CachedStore::builder(store, Duration::from_secs(5))
                .feed(feed)
                .build()
                .unwrap();
            let health = cached.clone();
            assert_history("cache over PostgreSQL", Demand::Each, cached).await;
            assert_eq!(health.health().state, keygate::store::CacheState::Following);
        })
        .await;
    }
}

/// Repeats the workload until a violation is found. Returns the violations of that round.
fn kinds_found(fault: Fault) -> Vec<Kind> {
    let runtime = runtime();
    let begun = Instant::now();
    loop {
        let plan = Plan { operations: 10_000, keys: 3, changes: 30, ..plan(0) };
        let history = run(runtime.handle(), FaultyStore::with(fault), &plan);
        let violations = history.violations(Demand::Each);
        if let Some(first) = violations.first() {
            println!("{fault:?} after {:.1?}: {first}", begun.elapsed());
            return violations.iter().map(|violation| violation.kind).collect();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{fault:?} is not found");
    }
}

#[test]
fn every_fault_of_a_store_is_detected() {
    for (fault, kind) in [
        (Fault::LateFill, Kind::TooLate),
        (Fault::OldSecretLingers, Kind::TooLate),
        (Fault::AwayDuringEdits, Kind::NoCause),
        (Fault::LostEdits, Kind::Unmade),
        (Fault::DeletedLingers, Kind::TooLate),
    ] {
        assert!(kinds_found(fault).contains(&kind), "{fault:?} without {kind:?}");
    }
}
