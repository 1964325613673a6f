//! A cache that follows a feed of announcements.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keygate::manager::PartHealth;
use keygate::runtime::{BoxFuture, Runtime};
use keygate::store::{CacheState, News};
use keygate::*;

use crate::cache_support::support::{SpyStore, eventually};
use crate::cache_support::{Say, feed, insert, revoke, status};
use crate::{LONG, becomes, find, following, probe};

/// A cache that has read an active key and the absence of another. Since then, another process
/// has revoked the one and created the other.
async fn changed_elsewhere(probe: &Arc<SpyStore>) -> (CachedStore, Say, ApiKey) {
    let key = insert(probe, 1).await;
    let (cached, say) = following(probe, LONG).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    assert!(!find(&cached, 2).await);
    revoke(&probe.inner, &key).await;
    insert(&probe.inner, 2).await;
    (cached, say, key)
}

#[tokio::test]
async fn an_announced_change_is_seen_at_once() {
    let probe = probe();
    let (cached, say, key) = changed_elsewhere(&probe).await;
    let finds = probe.finds();
    assert_eq!(status(&cached, &key).await, Some(Status::Active), "the change was not announced");
    assert_eq!(probe.finds(), finds);
    say.news(News::Changed(key.id));
    eventually("the revocation is seen", async || {
        status(&cached, &key).await == Some(Status::Revoked)
    })
    .await;
    // The change of one key voids every cached absence.
    assert!(find(&cached, 2).await);
}

#[tokio::test]
async fn with_a_feed_answers_do_not_expire() {
    let max = Duration::from_millis(400);
    let probe = probe();
    let key = insert(&probe, 1).await;
    let (cached, say) = following(&probe, max).await;
    let begin = Instant::now();
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    let mut proof = Instant::now();
    let mut gap = Duration::ZERO;
    while begin.elapsed() < max * 3 {
        gap = gap.max(proof.elapsed());
        proof = Instant::now();
        say.up_to_date();
        tokio::time::sleep(Duration::from_millis(10)).await;
        status(&cached, &key).await;
    }
    gap = gap.max(proof.elapsed());
    // A machine that paused for this long was rightly bypassed.
    assert!(probe.finds() == 1 || gap > max / 2, "{} finds, {gap:?}", probe.finds());
}

#[tokio::test]
async fn until_the_feed_is_connected_nothing_is_cached() {
    let probe = probe();
    let key = insert(&probe, 1).await;
    let (say, feed) = feed();
    let cached = CachedStore::builder(Arc::clone(&probe), LONG).feed(feed).build().unwrap();
    assert_eq!(cached.health().state, CacheState::Bypassed);
    for finds in 1..4 {
        assert_eq!(status(&cached, &key).await, Some(Status::Active));
        assert_eq!(probe.finds(), finds);
    }
    assert_eq!(cached.health().entries, 0);
    say.news(News::Missed);
    say.up_to_date();
    becomes(&cached, CacheState::Following).await;
    for _ in 0..3 {
        assert_eq!(status(&cached, &key).await, Some(Status::Active));
        assert_eq!(probe.finds(), 4);
    }
    assert_eq!(cached.health().entries, 1);
}

#[tokio::test]
async fn the_health_of_a_manager_says_whether_its_cache_is_used() {
    let probe = probe();
    let (say, feed) = feed();
    let cached = CachedStore::builder(Arc::clone(&probe), LONG).feed(feed).build().unwrap();
    let managers = [
        KeyManager::builder(cached.clone()).build().unwrap(),
        KeyManager::builder(Arc::new(cached.clone())).build().unwrap(),
    ];
    for keys in &managers {
        let health = keys.health().await;
        let error = health.cache.as_ref().and_then(PartHealth::error);
        assert!(error.is_some_and(|error| error.contains("every look-up goes to the store")));
        assert!(!health.works() && health.lookups.works(), "{health:?}");
    }
    say.news(News::Missed);
    say.up_to_date();
    becomes(&cached, CacheState::Following).await;
    for keys in &managers {
        assert!(keys.health().await.cache.is_some_and(|cache| cache.works()));
    }
    let without = KeyManager::builder(MemoryStore::new()).build().unwrap();
    assert_eq!(without.health().await.cache, None);
}

#[tokio::test]
async fn missed_announcements_void_every_entry() {
    let probe = probe();
    let (cached, say, key) = changed_elsewhere(&probe).await;
    say.news(News::Missed);
    becomes(&cached, CacheState::Bypassed).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    assert!(find(&cached, 2).await);
    assert_eq!((cached.health().entries, cached.health().negative_entries), (0, 0));
    say.up_to_date();
    becomes(&cached, CacheState::Following).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    assert!(find(&cached, 2).await);
}

#[tokio::test]
async fn an_outdated_proof_is_ignored() {
    let max = Duration::from_millis(200);
    let probe = probe();
    let before = Instant::now();
    tokio::time::sleep(max).await;
    let (say, feed) = feed();
    let cached = CachedStore::builder(Arc::clone(&probe), max).feed(feed).build().unwrap();
    say.news(News::Missed);
    say.news(News::UpToDate { as_of: before });
    say.news(News::UpToDate { as_of: before });
    for _ in 0..50 {
        tokio::task::yield_now().await;
        assert_eq!(cached.health().state, CacheState::Bypassed);
    }
    // A proof from the future counts no more than one from now.
    let begin = Instant::now();
    say.news(News::UpToDate { as_of: begin + Duration::from_secs(3600) });
    becomes(&cached, CacheState::Following).await;
    becomes(&cached, CacheState::Bypassed).await;
    assert!(begin.elapsed() >= max);
}

#[tokio::test]
async fn after_a_panic_of_the_feed_the_cache_stays_bypassed() {
    let probe = probe();
    let key = insert(&probe, 1).await;
    let (cached, say) = following(&probe, LONG).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    say.panic();
    becomes(&cached, CacheState::Bypassed).await;
    eventually("the task has ended", async || say.is_unheard()).await;
    revoke(&probe.inner, &key).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    assert_eq!(cached.health().entries, 0);
}

/// A runtime on which time stands still.
#[derive(Debug)]
struct NoTime;

impl Runtime for NoTime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn the_feed_is_dropped_with_the_last_handle() {
    let probe = probe();
    let (say, feed) = feed();
    let cached = CachedStore::builder(Arc::clone(&probe), LONG).feed(feed).runtime(NoTime);
    let cached = cached.build().unwrap();
    say.news(News::Missed);
    say.up_to_date();
    becomes(&cached, CacheState::Following).await;
    let other = cached.clone();
    drop(cached);
    say.up_to_date();
    assert!(!find(&other, 1).await);
    say.heard().await;
    assert!(!say.is_unheard());
    drop(other);
    eventually("the task has ended", async || say.is_unheard()).await;
}

/// If the runtime of the feed is gone, no proof can arrive.
#[test]
fn a_runtime_that_is_shut_down_bypasses_the_cache() {
    let max = Duration::from_millis(100);
    let probe = probe();
    let theirs = tokio::runtime::Runtime::new().unwrap();
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (cached, _say) = theirs.block_on(following(&probe, max));
    theirs.shutdown_timeout(Duration::from_secs(5));
    ours.block_on(becomes(&cached, CacheState::Bypassed));
}
