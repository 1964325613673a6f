//! Threads use and change keys at the same time, and a checker finds out whether some order of
//! the changes explains every outcome.
//!
//! `KEYGATE_HISTORY_OPS` is the number of operations, some thousands by default. Full runs, for
//! each store, with a release build:
//! `KEYGATE_HISTORY_OPS=1000000 cargo test --release --all-features --test histories memory -- --nocapture`,
//! with 100000 for `sqlite`, and for `postgres` with `--ignored` as well.
#![cfg(all(unix, feature = "tokio"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

#[allow(dead_code, reason = "other tests use the rest")]
mod broken;
mod histories_support;
#[cfg(feature = "sqlite")]
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/peer.rs"]
mod peer;
#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_support;
mod support;

use std::env;
use std::time::{Duration, Instant};

use keygate::{KeyStore, MemoryStore};
use tokio::runtime::Handle;

use crate::broken::fault::Fault;
use crate::broken::store::BrokenStore;
use crate::histories_support::checker::{Demand, Kind};
use crate::histories_support::event::Outcome;
use crate::histories_support::processes::Other;
use crate::histories_support::workload::{Plan, run};
use crate::support::SpyStore;

fn plan(operations: u64) -> Plan {
    let operations = env::var("KEYGATE_HISTORY_OPS").map_or(operations, |ops| ops.parse().unwrap());
    let (lifetime, pause) = (Duration::from_millis(20), Duration::ZERO);
    Plan { operations, threads: 8, keys: 6, changes: 20, lifetime, pause }
}

/// A store in memory that lets other threads run during its calls.
fn yielding_store() -> SpyStore {
    let yields = |_| async {
        std::thread::yield_now();
        tokio::task::yield_now().await;
        Ok(())
    };
    let store = SpyStore::default();
    store.before(yields);
    store.after(yields);
    store
}

fn assert_history(store: impl KeyStore, plan: &Plan, demand: Demand) {
    assert_history_with(None, store, plan, demand);
}

/// Runs the plan and checks the history, in which enough must have happened.
fn assert_history_with(other: Option<Other>, store: impl KeyStore, plan: &Plan, demand: Demand) {
    let begun = Instant::now();
    let has_two_processes = other.is_some();
    let history = tokio::task::block_in_place(|| run(&Handle::current(), store, plan, other));
    let took = begun.elapsed();
    let violations = history.violations(demand);
    let operations = history.count(|_| true);
    let accepted = |outcome| matches!(outcome, Outcome::Verified { denial: None, .. });
    let [accepted, denied, unknown, changed] = [
        history.count(accepted),
        history.count(|o| matches!(o, Outcome::Verified { denial: Some(_), .. })),
        history.count(|o| matches!(o, Outcome::Unknown(_))),
        history.count(|o| o.version().is_some() || o == Outcome::Deleted),
    ];
    let races = history.races();
    println!(
        "{operations} operations of {} threads in {took:.1?} ({accepted} accepted, \
         {denied} denied, {unknown} unknown, {changed} changes; {races} verifications during a \
         change), checked after {:.1?}: {} violations",
        plan.threads,
        begun.elapsed(),
        violations.len(),
    );
    for violation in violations.iter().take(5) {
        println!("  {violation}");
    }
    assert!(violations.is_empty(), "{} violations", violations.len());
    assert!(operations as u64 >= plan.operations);
    assert!(accepted > operations / 8 && changed > operations / 25, "too little happened");
    assert!(denied > operations / 50 && unknown > operations / 50, "too little was refused");
    assert!(races > operations / 20_000, "no races");
    if has_two_processes {
        let handovers = history.handovers;
        println!("{handovers} verifications found a version that the other process made");
        assert!(handovers > operations / 100, "each process was alone");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_28_memory_every_history_is_explained() {
    assert_history(MemoryStore::new(), &plan(100_000), Demand::Together);
    assert_history(yielding_store(), &plan(50_000), Demand::Together);
}

#[cfg(feature = "cache")]
fn cached(store: impl KeyStore) -> keygate::store::CachedStoreBuilder {
    keygate::CachedStore::builder(store, Duration::from_secs(5))
}

#[cfg(feature = "cache")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_28_memory_every_history_of_a_cache_is_explained() {
    let cached = cached(yielding_store()).build().unwrap();
    assert_history(cached, &plan(50_000), Demand::Separately);
}

/// Like a deletion that succeeds, one that finds the key already deleted takes effect in the
/// local cache.
#[cfg(feature = "cache")]
#[tokio::test]
async fn case_28_an_earlier_deletion_by_another_process_takes_effect_in_the_cache() {
    use keygate::{Actor, KeyManager, ManageError, NewKey, OrgId, VerifyError};
    let store = std::sync::Arc::new(MemoryStore::new());
    let here = KeyManager::builder(cached(store.clone()).build().unwrap()).build().unwrap();
    let elsewhere = KeyManager::builder(store).build().unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "tester");
    let issued = here.create(&actor, NewKey::named("CI").unwrap()).await.unwrap();
    let (id, secret) = (issued.key.id, issued.secret.expose_secret());
    here.verify(secret, None).await.unwrap();

    elsewhere.delete(&actor, &id).await.unwrap();
    let missing = here.delete(&actor, &id).await;
    assert!(matches!(missing, Err(ManageError::NotFound)), "{missing:?}");
    let refused = here.verify(secret, None).await;
    assert!(matches!(refused, Err(VerifyError::Unknown)), "{refused:?}");
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};

    use keygate::SqliteStore;

    use super::*;
    use crate::peer::{Peer, this_program};

    const FOLDER: &str = "KEYGATE_HISTORY_FOLDER";

    fn open(folder: &Path) -> SqliteStore {
        SqliteStore::open(folder.join("keys.db")).unwrap()
    }

    fn socket(folder: &Path) -> PathBuf {
        folder.join("socket")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn case_28_sqlite_every_history_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        assert_history(open(folder.path()), &plan(5_000), Demand::Together);
    }

    /// While a process makes changes without a pause, SQLite rarely lets another one make any.
    fn plan_of_two() -> Plan {
        Plan { pause: Duration::from_millis(10), ..plan(5_000) }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn case_28_sqlite_every_history_of_two_processes_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let listener = UnixListener::bind(socket(folder.path())).unwrap();
        let variables = [(FOLDER, folder.path().as_os_str())];
        let mut peer = Peer::start(this_program(), "sqlite::child", &variables);
        assert_eq!(peer.says(), "ready");
        let (stream, _) = listener.accept().unwrap();
        let other = Some(Other::new(0, stream));
        assert_history_with(other, store, &plan_of_two(), Demand::Together);
        peer.end();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "not a test: a process that another test starts"]
    async fn child() {
        let Ok(folder) = env::var(FOLDER).map(PathBuf::from) else { return };
        let store = open(&folder);
        let other = Other::new(1, UnixStream::connect(socket(&folder)).unwrap());
        let mut out = std::io::stdout();
        write!(out, "\n@ready\n").unwrap();
        out.flush().unwrap();
        tokio::task::block_in_place(|| {
            run(&Handle::current(), store, &plan_of_two(), Some(other));
        });
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use crate::postgres_support::in_schema;

    /// The threads wait for the server most of the time.
    fn slow_plan() -> Plan {
        Plan { threads: 16, keys: 10, lifetime: Duration::from_millis(200), ..plan(20_000) }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs PostgreSQL"]
    async fn case_28_postgres_every_history_is_explained() {
        in_schema(|options| async move {
            let store = options.connect().await.unwrap();
            assert_history(store, &slow_plan(), Demand::Together);
        })
        .await;
    }

    #[cfg(feature = "cache")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs PostgreSQL"]
    async fn case_28_postgres_every_history_of_a_cache_that_follows_is_explained() {
        in_schema(|options| async move {
            let store = options.connect().await.unwrap();
            let feed = store.changes().heartbeat(Duration::from_millis(20));
            let cached = cached(store).feed(feed).build().unwrap();
            assert_history(cached.clone(), &slow_plan(), Demand::Separately);
            assert_eq!(cached.health().state, keygate::store::CacheState::Following);
        })
        .await;
    }
}

/// Checks that the fault causes a violation of that kind, in as many rounds as it takes.
fn assert_found(fault: Fault, kind: Kind) {
    let begun = Instant::now();
    loop {
        let plan = Plan { operations: 10_000, keys: 3, changes: 30, ..plan(0) };
        let store = BrokenStore::new(fault);
        let history = tokio::task::block_in_place(|| run(&Handle::current(), store, &plan, None));
        let violations = history.violations(Demand::Separately);
        if let Some(found) = violations.iter().find(|violation| violation.kind == kind) {
            println!("{fault:?} after {:.1?}: {found}", begun.elapsed());
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{fault:?}: no {kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_store_is_found() {
    for (fault, kind) in [
        (Fault::LateCacheFill, Kind::Outdated),
        (Fault::OldDigestLives, Kind::Outdated),
        (Fault::RotationHasAGap, Kind::Unexplained),
        (Fault::ReplaceIgnoresRevision, Kind::WrongVersion),
        (Fault::DeleteLeavesDigest, Kind::Outdated),
    ] {
        assert_found(fault, kind);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_59_a_previous_secret_that_outlives_its_overlap_is_found() {
    assert_found(Fault::PreviousDigestLives, Kind::Outdated);
}
