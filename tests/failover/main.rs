//! A PostgreSQL server is killed or lost under load, and it or its standby takes over:
//! `cargo test --all-features --test failover -- --ignored --nocapture`.
//!
//! Needs PostgreSQL's server binaries; as root also `setpriv` and a user `postgres`,
//! since the server does not run as root. It prints for how long there was no service.
#![cfg(all(target_os = "linux", feature = "cache", feature = "postgres"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests"
)]
#![allow(dead_code, reason = "other tests use the rest of what is shared")]

#[path = "../cluster_support/mod.rs"]
mod cluster_support;
mod killed;
mod load;
mod promotion;
#[path = "../postgres_support/proxy.rs"]
mod proxy;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use keygate::manager::{KeyManagerBuilder, RequestInfo};
use keygate::store::PostgresOptions;
use keygate::{
    Actor, CachedStore, Denial, KeyManager, KeyPatch, ManageError, NewKey, OrgId, PostgresStore,
    VerifyError,
};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;

use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::worker::is_outage;
use crate::support::eventually;

/// The deadline of a call. A host gets the same time to be reached.
const DEADLINE: Duration = Duration::from_secs(1);
const MAX_STALENESS: Duration = Duration::from_secs(2);

async fn open(hosts: &str) -> PostgresStore {
    let url = format!("postgres://postgres@{hosts}/postgres");
    PostgresOptions::from_url(&url).unwrap().deadline(DEADLINE).connect().await.unwrap()
}

fn manager(store: &PostgresStore) -> KeyManager {
    KeyManager::builder(store.clone()).build().unwrap()
}

/// A manager of that store, behind a cache if there is one.
fn behind(cached: Option<&CachedStore>, store: &PostgresStore) -> KeyManagerBuilder {
    match cached {
        Some(cached) => KeyManager::builder(cached.clone()),
        None => KeyManager::builder(store.clone()),
    }
}

fn cache(store: &PostgresStore) -> CachedStore {
    CachedStore::builder(store.clone(), MAX_STALENESS).feed(store.changes()).build().unwrap()
}

fn actor(org: &str) -> Actor {
    Actor::new(OrgId::new(org).unwrap(), "tester")
}

fn new_key() -> NewKey {
    NewKey::named("CI deploy").unwrap()
}

fn host(cluster: &Cluster) -> String {
    format!("127.0.0.1:{}", cluster.port())
}

fn is_revoked<T>(verified: &Result<T, VerifyError>) -> bool {
    matches!(verified, Err(VerifyError::Denied { denial: Denial::Revoked, .. }))
}

/// Repeats a change until the store is available.
async fn until_changed<T>(mut change: impl AsyncFnMut() -> Result<T, ManageError>) {
    eventually("a change", async || match change().await {
        Ok(_) => true,
        Err(error) => {
            assert!(is_outage(&error), "{error:?}");
            false
        }
    })
    .await;
}

/// A client cannot tell a returned primary that was not demoted from the real one. A process
/// stays with its server while that works. A new process, or one whose server is gone, uses
/// the first host that accepts it. Keeping the old primary off the network is the failover
/// manager's task, not keygate's.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_returned_old_primary_is_used_by_processes_that_reach_it_first() {
    let mut old = block_in_place(Cluster::synchronous);
    let mut new = block_in_place(|| old.standby());
    let old_first = format!("{},{}", host(&old), host(&new));
    let new_first = format!("{},{}", host(&new), host(&old));
    let store = open(&old_first).await;
    let (keys, acme) = (manager(&store), actor("acme"));
    let made = keys.create(&acme, new_key()).await.unwrap();
    let secret = made.secret.expose_secret();
    block_in_place(|| {
        old.kill();
        new.promote();
    });
    until_changed(async || keys.update(&acme, &made.key.id, KeyPatch::revoke()).await).await;
    block_in_place(|| old.run());

    // The process that ran during the failover stays with the new primary, even when its
    // connections are lost.
    let refuses = async |keys: &KeyManager| {
        eventually("an answer", async || match keys.verify(secret, None).await {
            Ok(_) => Some(false),
            // The pause before a reconnect grows with each lost connection.
            Err(VerifyError::Unavailable(_)) => None,
            Err(VerifyError::Denied { denial: Denial::Revoked, .. }) => Some(true),
            Err(error) => panic!("{error:?}"),
        })
        .await
    };
    assert!(refuses(&keys).await);
    for _ in 0..5 {
        // Only connections in use: a host is considered gone after two failed attempts in a
        // row.
        let used = "pid <> pg_backend_pid() AND backend_type = 'client backend' \
            AND query NOT IN ('', 'SHOW transaction_read_only')";
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity";
        assert_ne!(new.ask(&format!("{ended} WHERE {used}")), "0");
        assert!(refuses(&keys).await);
    }
    keys.create(&acme, new_key()).await.unwrap();
    // A new process with the new primary first in its list does the same.
    assert!(refuses(&manager(&open(&new_first).await)).await);

    // With the old primary first, it does not know the revocation. It changes nothing there: a
    // commit that needs a standby's confirmation gets none.
    let stray = manager(&open(&old_first).await);
    assert!(!refuses(&stray).await, "if this is refused now, document it");
    let error = stray.create(&actor("stray"), new_key()).await.unwrap_err();
    assert!(is_outage(&error), "{error:?}");

    // If the new primary is gone, even the first process uses the old one and stays with it.
    block_in_place(|| new.kill());
    assert!(!refuses(&keys).await, "if this is refused now, document it");
    block_in_place(|| new.run());
    assert!(!refuses(&keys).await);
}

/// Sends requests with a valid key: 16 clients, 100 requests a second each. Returns how long
/// each took to be admitted.
async fn serve(keys: &KeyManager, secret: &str, time: Duration) -> Vec<Duration> {
    let (mut clients, until) = (JoinSet::new(), Instant::now() + time);
    for _ in 0..16 {
        let (keys, secret) = (keys.clone(), secret.to_owned());
        clients.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let begun = Instant::now();
                let request = RequestInfo::new("GET", "/v1/things");
                let admission = keys.admit(&secret, request).await;
                times.push(begun.elapsed());
                admission.expect("a request is refused").finish(200).await.unwrap();
                sleep(Duration::from_millis(10)).await;
            }
            times
        });
    }
    clients.join_all().await.concat()
}

/// While the only synchronous standby is gone, no write is acknowledged, but verification
/// should hardly be affected.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_lost_standby_stops_changes_but_not_verification() {
    let primary = block_in_place(Cluster::synchronous);
    let mut standby = block_in_place(|| primary.standby());
    for is_cached in [false, true] {
        let store = open(&host(&primary)).await;
        let cached = is_cached.then(|| cache(&store));
        let keys = behind(cached.as_ref(), &store).audit(store.clone()).build().unwrap();
        let acme = actor(&format!("acme-{is_cached}"));
        let made = keys.create(&acme, new_key()).await.unwrap();
        let secret = made.secret.expose_secret();
        serve(&keys, secret, Duration::from_secs(1)).await;
        block_in_place(|| standby.kill());
        // Answers cached before the outage do not count.
        sleep(MAX_STALENESS).await;
        let mut times = serve(&keys, secret, Duration::from_secs(5)).await;
        times.sort_unstable();
        let slowest = times[times.len() * 99 / 100];
        println!("cache {is_cached}: {} admitted, 99 of 100 within {slowest:.1?}", times.len());
        assert!(slowest < DEADLINE / 4, "{slowest:?}");
        let error = keys.create(&acme, new_key()).await.unwrap_err();
        assert!(is_outage(&error), "{error:?}");
        block_in_place(|| standby.run());
        until_changed(async || keys.create(&acme, new_key()).await).await;
    }
}
