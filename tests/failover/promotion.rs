//! A primary is lost under load, and its standby is promoted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use keygate::store::CacheState;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;

use crate::cluster_support::changes::number;
use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::worker::Worker;
use crate::load::{Load, change, revoke, until, verify, verify_revoked};
use crate::proxy::{Network, Proxy, address};
use crate::{MAX_STALENESS, actor, behind, cache, host, is_revoked, manager, new_key, open};

/// The shortest time in which a failover manager decides that a primary is gone.
const HESITATION: Duration = Duration::from_secs(1);

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
    let cached = is_cached.then(|| cache(&verifying));
    let keys = behind(cached.as_ref(), &verifying).build().unwrap();
    let made = manager(&changing).create(&actor("steady"), new_key()).await.unwrap();
    let secret = made.secret.expose_secret();

    let load = Arc::new(Load::default());
    let (mut outages, mut acceptances, mut workers) =
        (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for n in 0..2 {
        outages.spawn(verify(Arc::clone(&load), keys.clone(), secret.to_owned()));
        let grace = if is_cached { MAX_STALENESS } else { Duration::ZERO };
        acceptances.spawn(verify_revoked(Arc::clone(&load), keys.clone(), grace));
        workers.spawn(change(Arc::clone(&load), Worker::new(&changing, &format!("org-{n}"))));
    }
    // The cache of this process sees its own changes at once.
    let builder = behind(cached.as_ref(), &verifying);
    workers.spawn(change(Arc::clone(&load), Worker::over(builder, &verifying, "org-2")));
    let revoker = tokio::spawn(revoke(Arc::clone(&load), manager(&changing), keys.clone()));
    until("changes and verifications", || load.works()).await;
    let follows =
        || cached.as_ref().is_none_or(|cached| cached.health().state == CacheState::Following);
    until("the cache follows", follows).await;
    sleep(Duration::from_millis(500 + number() % 500)).await;

    let lost = Instant::now();
    match loss {
        Loss::Killed => block_in_place(|| primary.kill()),
        Loss::Silent => network.set(Network::Silent),
    }
    sleep(HESITATION).await;
    block_in_place(|| standby.promote());
    let promoted = lost.elapsed();
    load.recover();
    let verified = until("verification", || load.verifies()).await;
    let changed = until("changes", || load.works()).await;
    let followed = until("the cache follows", follows).await;
    println!(
        "  promoted after {promoted:.1?}; then verification within {verified:.1?}, changes within \
         {:.1?}, all within {:.1?}",
        verified + changed,
        verified + changed + followed
    );
    sleep(Duration::from_secs(1)).await;
    load.over.store(true, Ordering::SeqCst);

    let verifications = outages.join_all().await.into_iter().max_by_key(|outage| outage.longest);
    for (what, outage) in
        [("verification", verifications.unwrap()), ("changes", revoker.await.unwrap())]
    {
        println!("  {what}: none for {:.1?}, {} 503s", outage.longest, outage.failures);
        let may_be_cached = is_cached && what == "verification";
        assert!(outage.longest >= HESITATION || may_be_cached, "no request noticed the outage");
    }
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
        assert!(is_revoked(&verified), "{verified:?}");
    }
    println!("  {} acknowledged revocations, all stored", revoked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_promoted_standby_has_every_acknowledged_change_and_a_cache_follows_it() {
    for is_cached in [false, true] {
        for loss in [Loss::Killed, Loss::Silent] {
            fail_over(loss, is_cached).await;
        }
    }
}
