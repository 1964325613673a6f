//! A server that is killed and restarted during changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, block_in_place};

use crate::cluster_support::changes::number;
use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::worker::Worker;
use crate::load::{Load, change, until, verify};
use crate::support::soon;
use crate::{DEADLINE, actor, host, manager, new_key, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_killed_server_loses_no_change_and_leaves_none_half_done() {
    let mut cluster = block_in_place(Cluster::start);
    let store = open(&host(&cluster)).await;
    let made = manager(&store).create(&actor("steady"), new_key()).await.unwrap();
    let mut workers: Vec<_> = (0..3).map(|n| Worker::new(&store, &format!("org-{n}"))).collect();
    let mut in_doubt = Vec::new();
    for round in 0..6 {
        let load = Arc::new(Load::default());
        let (mut changing, mut verifying) = (JoinSet::new(), JoinSet::new());
        for worker in workers.drain(..) {
            changing.spawn(change(Arc::clone(&load), worker));
        }
        for _ in 0..2 {
            let secret = made.secret.expose_secret().to_owned();
            verifying.spawn(verify(Arc::clone(&load), manager(&store), secret));
        }
        // The moment of the kill: after a number of changes, plus some microseconds.
        let changes = 10 + (number() % 40) as u32;
        until("changes", || load.changed.load(Ordering::SeqCst) >= changes).await;
        let moment = Instant::now() + Duration::from_micros(number() % 3_000);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        block_in_place(|| cluster.kill());
        // Alternate between a short outage and one that affects every task.
        if round % 2 == 0 {
            until("failures", || load.failing.load(Ordering::SeqCst) >= 5).await;
        }
        block_in_place(|| cluster.run());
        load.recover();
        let works = || {
            load.changed.load(Ordering::SeqCst) >= 3 && load.verified.load(Ordering::SeqCst) >= 2
        };
        let recovered = until("changes and verifications", works).await;
        assert!(recovered < DEADLINE * 5, "recovered only after {recovered:?}");
        load.over.store(true, Ordering::SeqCst);
        for (mut worker, doubts) in soon(changing.join_all()).await {
            assert!(worker.longest_call < DEADLINE * 4, "a call of {:?}", worker.longest_call);
            in_doubt.extend(doubts);
            in_doubt.extend(worker.check().await);
            workers.push(worker);
        }
        for outage in soon(verifying.join_all()).await {
            assert!(outage.longest_call < DEADLINE * 4, "a call of {:?}", outage.longest_call);
        }
    }
    println!("changes in doubt, and whether they took effect: {in_doubt:?}");
    assert!(!in_doubt.is_empty(), "nothing was interrupted");
}
