//! A server that is killed and restarted during changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use keygate::{KeyManager, VerifyError};
use tokio::task::block_in_place;

use crate::cluster_support::changes::number;
use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::worker::Worker;
use crate::support::{eventually, soon};
use crate::{DEADLINE, create, options};

/// State shared by the tasks of one round.
#[derive(Debug, Default)]
struct Round {
    done: AtomicU32,
    failing: AtomicU32,
    restarted: AtomicBool,
    over: AtomicBool,
}

const WORKERS: u32 = 3;
const VERIFIERS: u32 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_killed_server_loses_no_change_and_leaves_none_half_done() {
    let mut cluster = Cluster::start();
    let store = options(&cluster.url("")).deadline(DEADLINE).connect().await.unwrap();
    let steady = KeyManager::builder(store.clone()).build().unwrap();
    let secret = create(&steady, "steady").await.unwrap().secret;
    let mut workers: Vec<_> =
        (0..WORKERS).map(|n| Worker::new(&store, &format!("org-{n}"))).collect();
    let mut in_doubt = Vec::new();
    for round in 0..6 {
        let state = Arc::new(Round::default());
        let working: Vec<_> = workers
            .drain(..)
            .map(|mut worker| {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    while worker.change().await {
                        state.done.fetch_add(1, Ordering::SeqCst);
                        // A short outage may fall between two statements.
                        if state.restarted.load(Ordering::SeqCst) {
                            return (worker, Instant::now());
                        }
                    }
                    state.failing.fetch_add(1, Ordering::SeqCst);
                    worker.wait_for_recovery().await;
                    (worker, Instant::now())
                })
            })
            .collect();
        let verifying: Vec<_> = (0..VERIFIERS)
            .map(|_| {
                let (state, keys) = (Arc::clone(&state), steady.clone());
                let secret = secret.expose_secret().to_owned();
                tokio::spawn(verify_continuously(state, keys, secret))
            })
            .collect();
        // The moment of the kill: after a number of changes, plus some microseconds.
        let changes = 10 + (number() % 40) as u32;
        // Or after a number of failures, if on a busy machine no worker makes changes any
        // more.
        let so_many = || state.done.load(Ordering::SeqCst) >= changes;
        let stopped = || state.failing.load(Ordering::SeqCst) >= WORKERS;
        eventually("changes", async || so_many() || stopped()).await;
        let moment = Instant::now() + Duration::from_micros(number() % 3_000);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        cluster.kill();
        // Alternate between a short outage and one that affects every task.
        if round % 2 == 0 {
            let all = WORKERS + VERIFIERS;
            eventually("failures", async || state.failing.load(Ordering::SeqCst) >= all).await;
        }
        block_in_place(|| cluster.run());
        let accepting = Instant::now();
        state.restarted.store(true, Ordering::SeqCst);
        for worker in working {
            let (worker, recovered) = soon(worker).await.unwrap();
            let took = recovered.saturating_duration_since(accepting);
            assert!(took < DEADLINE * 5, "recovered only after {took:?}");
            assert!(worker.longest_call < DEADLINE * 4, "a call of {:?}", worker.longest_call);
            workers.push(worker);
        }
        state.over.store(true, Ordering::SeqCst);
        for verifier in verifying {
            let longest = soon(verifier).await.unwrap();
            assert!(longest < DEADLINE * 4, "a verification of {longest:?}");
        }
        for worker in &mut workers {
            in_doubt.extend(worker.check().await);
        }
    }
    println!("changes in doubt, and whether they took effect: {in_doubt:?}");
    assert!(!in_doubt.is_empty(), "nothing was interrupted");
}

/// The key is right or its state is unknown. Any other result fails the test.
async fn verify_continuously(state: Arc<Round>, keys: KeyManager, secret: String) -> Duration {
    let (mut longest, mut failed) = (Duration::ZERO, false);
    loop {
        let over = state.over.load(Ordering::SeqCst);
        let begun = Instant::now();
        let verified = keys.verify(&secret, None).await;
        longest = longest.max(begun.elapsed());
        match verified {
            Ok(key) => assert_eq!(key.org().as_str(), "steady"),
            Err(VerifyError::Unavailable(error)) => {
                assert!(!over, "it does not work after the recovery: {error:?}");
                if !failed {
                    state.failing.fetch_add(1, Ordering::SeqCst);
                }
                failed = true;
            }
            Err(error) => panic!("{error:?}"),
        }
        if over {
            return longest;
        }
        tokio::task::yield_now().await;
    }
}
