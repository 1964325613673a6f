//! A PostgreSQL primary is lost under load, and its standby takes over:
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

mod cluster_support;
#[path = "postgres_support/proxy.rs"]
mod proxy;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keygate::manager::RequestInfo;
use keygate::store::{CacheState, PostgresOptions};
use keygate::{
    Actor, CachedStore, Denial, KeyManager, KeyPatch, ManageError, NewKey, OrgId, PostgresStore,
    VerifyError,
};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;

use crate::cluster_support::changes::number;
use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::worker::Worker;
use crate::proxy::{Network, Proxy, address};

/// The deadline of a call. A host gets the same time to be reached.
const DEADLINE: Duration = Duration::from_secs(1);
const MAX_STALENESS: Duration = Duration::from_secs(2);
/// Within this time after the promotion everything works again. An idle machine needs far
/// less.
const RECOVERY: Duration = Duration::from_secs(30);
/// The shortest time in which a failover manager decides that a primary is gone.
const HESITATION: Duration = Duration::from_secs(1);

async fn open(hosts: &str) -> PostgresStore {
    let url = format!("postgres://postgres@{hosts}/postgres");
    PostgresOptions::from_url(&url).unwrap().deadline(DEADLINE).connect().await.unwrap()
}

fn manager(store: &PostgresStore) -> KeyManager {
    KeyManager::builder(store.clone()).build().unwrap()
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

/// Polls until the condition holds. Returns how long that took.
async fn until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < RECOVERY, "not within {RECOVERY:?}: {what}");
        sleep(Duration::from_millis(1)).await;
    }
    begun.elapsed()
}

// ---------------------------------------------------------------------- the load

/// State shared by the tasks of a failover test.
#[derive(Debug, Default)]
struct Load {
    verified: AtomicU32,
    changed: AtomicU32,
    promoted: AtomicBool,
    over: AtomicBool,
    /// Keys whose revocation was acknowledged, with the time of the acknowledgement.
    revoked: Mutex<Vec<(String, Instant)>>,
}

impl Load {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn is_promoted(&self) -> bool {
        self.promoted.load(Ordering::SeqCst)
    }

    /// Starts the measurement of recovery.
    fn reset_counts(&self) {
        self.verified.store(0, Ordering::SeqCst);
        self.changed.store(0, Ordering::SeqCst);
    }

    fn one_revoked(&self) -> Option<(String, Instant)> {
        let revoked = self.revoked.lock().unwrap();
        // Every second pick is one of the latest keys.
        let range = if number().is_multiple_of(2) { revoked.len() } else { revoked.len().min(5) };
        let back = number() as usize % range.max(1);
        revoked.len().checked_sub(back + 1).map(|place| revoked[place].clone())
    }
}

/// The longest time for which an operation did not work.
#[derive(Debug)]
struct Outage {
    worked: Instant,
    longest: Duration,
    failures: u32,
}

impl Outage {
    fn none() -> Self {
        Self { worked: Instant::now(), longest: Duration::ZERO, failures: 0 }
    }

    fn works(&mut self) {
        self.longest = self.longest.max(self.worked.elapsed());
        self.worked = Instant::now();
    }

    fn merge(self, other: Self) -> Self {
        Self {
            longest: self.longest.max(other.longest),
            failures: self.failures + other.failures,
            ..self
        }
    }
}

/// The key is right or its state is unknown. Any other result fails the test.
async fn verify(load: Arc<Load>, keys: KeyManager, secret: String) -> Outage {
    let mut outage = Outage::none();
    while !load.is_over() {
        match keys.verify(&secret, None).await {
            Ok(key) => {
                assert_eq!(key.org().as_str(), "steady");
                outage.works();
                load.verified.fetch_add(1, Ordering::SeqCst);
            }
            Err(VerifyError::Unavailable(_)) => outage.failures += 1,
            Err(error) => panic!("{error:?}"),
        }
        sleep(Duration::from_millis(1)).await;
    }
    outage
}

/// A revoked key is accepted for no longer than `grace` after the acknowledgement. Returns the
/// longest delay.
async fn verify_revoked(load: Arc<Load>, keys: KeyManager, grace: Duration) -> Duration {
    let mut latest = Duration::ZERO;
    while !load.is_over() {
        if let Some((secret, revoked)) = load.one_revoked() {
            let age = revoked.elapsed();
            match keys.verify(&secret, None).await {
                Ok(key) => {
                    assert!(age < grace, "{key:?} was accepted {age:?} after its revocation");
                    latest = latest.max(age);
                }
                Err(VerifyError::Denied { denial: Denial::Revoked, .. }) => {}
                Err(VerifyError::Unavailable(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        sleep(Duration::from_micros(200)).await;
    }
    latest
}

/// Creates keys, lets the other process see them, and revokes them.
async fn revoke(load: Arc<Load>, keys: KeyManager, other: KeyManager) -> Outage {
    let mut outage = Outage::none();
    for n in 0_u32.. {
        if load.is_over() {
            break;
        }
        let actor = actor(&format!("revoked-{n}"));
        let revoked = async {
            let made = keys.create(&actor, new_key()).await?;
            let seen = other.verify(made.secret.expose_secret(), None).await;
            assert!(matches!(seen, Ok(_) | Err(VerifyError::Unavailable(_))), "{seen:?}");
            keys.update(&actor, &made.key.id, KeyPatch::revoke()).await?;
            Ok(made.secret)
        };
        match revoked.await {
            Ok(secret) => {
                let secret = secret.expose_secret().to_owned();
                load.revoked.lock().unwrap().push((secret, Instant::now()));
                outage.works();
                load.changed.fetch_add(1, Ordering::SeqCst);
            }
            Err(ManageError::Unavailable(_) | ManageError::InDoubt(_)) => outage.failures += 1,
            Err(error) => panic!("{error:?}"),
        }
        sleep(Duration::from_millis(1)).await;
    }
    outage
}

/// Makes changes of every kind. Whether a failed change took place is known only after the
/// failover.
async fn change(load: Arc<Load>, mut worker: Worker) -> (Worker, Vec<bool>) {
    let mut in_doubt = Vec::new();
    while !load.is_over() {
        if worker.change().await {
            load.changed.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        while !load.is_promoted() {
            sleep(Duration::from_millis(1)).await;
        }
        worker.wait_for_recovery().await;
        in_doubt.extend(worker.check().await);
    }
    (worker, in_doubt)
}

// ------------------------------------------------------------------ the failover

/// How the primary is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Its processes are killed: connections end, and new ones are refused.
    Killed,
    /// The network or the power fails: connections neither end nor are refused.
    Silent,
}

/// One process makes changes. Another one verifies, with or without a cache.
async fn fail_over(loss: Loss, is_cached: bool) {
    println!("primary {loss:?}, cache: {is_cached}");
    let mut primary = block_in_place(Cluster::synchronous);
    let standby = block_in_place(|| primary.standby());
    let network = Proxy::start(host(&primary)).await;
    let first = match loss {
        Loss::Killed => host(&primary),
        Loss::Silent => address(&network.url("postgres://postgres@primary/postgres")),
    };
    let hosts = format!("{first},{}", host(&standby));
    let (changing, verifying) = (open(&hosts).await, open(&hosts).await);
    let cached = is_cached.then(|| {
        let cached = CachedStore::builder(verifying.clone(), MAX_STALENESS);
        cached.feed(verifying.changes()).build().unwrap()
    });
    let keys = match &cached {
        Some(cached) => KeyManager::builder(cached.clone()).build().unwrap(),
        None => manager(&verifying),
    };
    let made = manager(&changing).create(&actor("steady"), new_key()).await.unwrap();
    let secret = made.secret.expose_secret();

    let load = Arc::new(Load::default());
    let (mut outages, mut acceptances) = (JoinSet::new(), JoinSet::new());
    let (mut revokers, mut workers) = (JoinSet::new(), JoinSet::new());
    for n in 0..2 {
        outages.spawn(verify(Arc::clone(&load), keys.clone(), secret.to_owned()));
        let grace = if is_cached { MAX_STALENESS } else { Duration::ZERO };
        acceptances.spawn(verify_revoked(Arc::clone(&load), keys.clone(), grace));
        workers.spawn(change(Arc::clone(&load), Worker::new(&changing, &format!("org-{n}"))));
    }
    // The cache of this process sees its own changes at once.
    let through_cache = match &cached {
        Some(cached) => KeyManager::builder(cached.clone()),
        None => KeyManager::builder(verifying.clone()),
    };
    workers.spawn(change(Arc::clone(&load), Worker::over(through_cache, &verifying, "org-2")));
    revokers.spawn(revoke(Arc::clone(&load), manager(&changing), keys.clone()));
    let works = |load: &Load| {
        load.verified.load(Ordering::SeqCst) >= 20 && load.changed.load(Ordering::SeqCst) >= 20
    };
    until("changes and verifications", || works(&load)).await;
    if let Some(cached) = &cached {
        until("the cache follows", || cached.health().state == CacheState::Following).await;
    }
    sleep(Duration::from_millis(500 + number() % 500)).await;

    let lost = Instant::now();
    match loss {
        Loss::Killed => block_in_place(|| primary.kill()),
        Loss::Silent => network.set(Network::Silent),
    }
    sleep(HESITATION).await;
    block_in_place(|| standby.promote());
    let promoted = lost.elapsed();
    load.reset_counts();
    load.promoted.store(true, Ordering::SeqCst);
    let verified = until("verification", || load.verified.load(Ordering::SeqCst) >= 20).await;
    let all = until("changes", || works(&load)).await;
    println!(
        "  promoted after {promoted:.1?}; then verification within {verified:.1?}, changes within \
         {:.1?}",
        verified + all
    );
    if let Some(cached) = &cached {
        let follows =
            until("the cache follows", || cached.health().state == CacheState::Following).await;
        println!("  and the cache follows within {:.1?}", verified + all + follows);
    }
    sleep(Duration::from_secs(1)).await;
    load.over.store(true, Ordering::SeqCst);

    let ended = outages.join_all().await.into_iter().reduce(Outage::merge).unwrap();
    println!("  verification: none for {:.1?}, {} 503s", ended.longest, ended.failures);
    assert!(ended.longest >= HESITATION || is_cached, "no request noticed the outage");
    let ended = revokers.join_all().await.pop().unwrap();
    println!("  changes: none for {:.1?}, {} 503s", ended.longest, ended.failures);
    assert!(ended.longest >= HESITATION, "no request noticed the outage");
    let latest = acceptances.join_all().await.into_iter().max().unwrap();
    println!("  a revoked key was accepted at most {latest:.1?} after the answer");

    // Acknowledged changes are visible to a new process.
    let mut doubts = Vec::new();
    for (mut worker, in_doubt) in workers.join_all().await {
        doubts.extend(in_doubt);
        doubts.extend(worker.check().await);
    }
    println!("  changes in doubt, and whether they took effect: {doubts:?}");
    let keys = manager(&open(&host(&standby)).await);
    let revoked = load.revoked.lock().unwrap().clone();
    for (secret, _) in &revoked {
        let verified = keys.verify(secret, None).await;
        let is_revoked =
            matches!(&verified, Err(VerifyError::Denied { denial: Denial::Revoked, .. }));
        assert!(is_revoked, "{verified:?}");
    }
    println!("  {} acknowledged revocations, all stored", revoked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_promoted_standby_has_every_acknowledged_change() {
    for loss in [Loss::Killed, Loss::Silent] {
        fail_over(loss, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_cache_follows_the_promoted_standby() {
    for loss in [Loss::Killed, Loss::Silent] {
        fail_over(loss, true).await;
    }
}

// --------------------------------------------------------------- the split brain

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
    let begun = Instant::now();
    while let Err(error) = keys.update(&acme, &made.key.id, KeyPatch::revoke()).await {
        assert!(
            matches!(error, ManageError::Unavailable(_) | ManageError::InDoubt(_)),
            "{error:?}"
        );
        assert!(begun.elapsed() < RECOVERY, "{error:?}");
    }
    block_in_place(|| old.run());

    // The process that ran during the failover stays with the new primary, even when its
    // connections are lost.
    let refuses = async |keys: &KeyManager| {
        let begun = Instant::now();
        loop {
            match keys.verify(secret, None).await {
                Err(VerifyError::Denied { denial: Denial::Revoked, .. }) => return true,
                Ok(_) => return false,
                // The pause before a reconnect grows with each lost connection.
                Err(VerifyError::Unavailable(_)) if begun.elapsed() < RECOVERY => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    assert!(refuses(&keys).await);
    for _ in 0..5 {
        // Only connections in use: a host is considered gone after two failed attempts in a
        // row.
        let used = "pid <> pg_backend_pid() AND backend_type = 'client backend' \
            AND query NOT IN ('', 'SHOW transaction_read_only')";
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity";
        assert_ne!(new.ask(&format!("{ended} WHERE {used}")).trim(), "0");
        assert!(refuses(&keys).await);
    }
    keys.create(&acme, new_key()).await.unwrap();
    // A new process with the new primary first in its list does the same.
    assert!(refuses(&manager(&open(&new_first).await)).await);

    // With the old primary first, it does not know the revocation. It changes nothing there: a
    // commit that needs a standby's confirmation gets none.
    let stray = manager(&open(&old_first).await);
    assert!(!refuses(&stray).await, "if this is refused now, document it");
    let change = stray.create(&actor("stray"), new_key()).await;
    assert!(
        matches!(change, Err(ManageError::Unavailable(_) | ManageError::InDoubt(_))),
        "{change:?}"
    );

    // If the new primary is gone, even the first process uses the old one and stays with it.
    block_in_place(|| new.kill());
    assert!(!refuses(&keys).await, "if this is refused now, document it");
    block_in_place(|| new.run());
    assert!(!refuses(&keys).await);
}

// -------------------------------------------------------------- a lost standby

/// The outcomes and durations of requests.
#[derive(Debug, Default)]
struct Service {
    admitted: u32,
    refused: u32,
    times: Vec<Duration>,
}

impl Service {
    fn merge(mut self, other: Self) -> Self {
        self.times.extend(other.times);
        let (admitted, refused) = (self.admitted + other.admitted, self.refused + other.refused);
        Self { admitted, refused, times: self.times }
    }

    fn slowest_of_a_hundred(&mut self) -> Duration {
        self.times.sort_unstable();
        self.times[self.times.len() * 99 / 100]
    }
}

/// Sends requests with a valid key: 16 clients, 100 requests a second each.
async fn serve(keys: &KeyManager, secret: &str, time: Duration) -> Service {
    let (mut clients, until) = (JoinSet::new(), Instant::now() + time);
    for _ in 0..16 {
        let (keys, secret) = (keys.clone(), secret.to_owned());
        clients.spawn(async move {
            let mut service = Service::default();
            while Instant::now() < until {
                let request = RequestInfo::new("GET", "/v1/things");
                let begun = Instant::now();
                match keys.admit(&secret, request).await {
                    Ok(admission) => {
                        service.times.push(begun.elapsed());
                        admission.finish(200).await.unwrap();
                        service.admitted += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.http_status(), 503, "{error:?}");
                        service.times.push(begun.elapsed());
                        service.refused += 1;
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
            service
        });
    }
    clients.join_all().await.into_iter().reduce(Service::merge).unwrap()
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
        let cached = is_cached.then(|| {
            let cached = CachedStore::builder(store.clone(), MAX_STALENESS);
            cached.feed(store.changes()).build().unwrap()
        });
        let builder = match &cached {
            Some(cached) => KeyManager::builder(cached.clone()),
            None => KeyManager::builder(store.clone()),
        };
        let keys = builder.audit(store.clone()).build().unwrap();
        let acme = actor(&format!("acme-{is_cached}"));
        let made = keys.create(&acme, new_key()).await.unwrap();
        let secret = made.secret.expose_secret();
        let mut before = serve(&keys, secret, Duration::from_secs(3)).await;
        block_in_place(|| standby.kill());
        // Answers cached before the outage do not count.
        sleep(MAX_STALENESS).await;
        let mut without = serve(&keys, secret, Duration::from_secs(5)).await;
        let change = keys.create(&acme, new_key()).await;
        assert!(
            matches!(change, Err(ManageError::Unavailable(_) | ManageError::InDoubt(_))),
            "{change:?}"
        );
        let state = cached.as_ref().map(|cached| cached.health().state);
        for (what, service) in [("with a standby", &mut before), ("without", &mut without)] {
            let slowest = service.slowest_of_a_hundred();
            println!(
                "{what}, cache {is_cached}: {} admitted, {} 503s, 99 of 100 within {:.1?}",
                service.admitted, service.refused, slowest
            );
        }
        println!("  cache: {state:?}; audit: {:?}", keys.audit_stats());
        assert_eq!(without.refused, 0, "requests were refused because writes fail");
        assert!(without.slowest_of_a_hundred() < DEADLINE / 4);
        block_in_place(|| standby.run());
        let begun = Instant::now();
        while let Err(error) = keys.create(&acme, new_key()).await {
            assert!(
                matches!(error, ManageError::Unavailable(_) | ManageError::InDoubt(_)),
                "{error:?}"
            );
            assert!(begun.elapsed() < RECOVERY, "{error:?}");
        }
    }
}
