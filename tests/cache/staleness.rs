//! How long an answer is used without news of a feed.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keygate::store::{CacheState, News};
use keygate::*;

use crate::cache_support::support::{Call, eventually, soon};
use crate::cache_support::{feed, insert, revoke, status};
use crate::{becomes, cached_for, find, following, late, lookup, probe};

/// Waits until the revocation is seen. Returns the start of the last look-up before that.
async fn last_use(cached: &CachedStore, key: &ApiKey) -> Instant {
    let mut last = Instant::now();
    eventually("the revocation is seen", async || {
        let now = Instant::now();
        let active = status(cached, key).await == Some(Status::Active);
        if active {
            last = now;
        }
        !active
    })
    .await;
    last
}

#[tokio::test]
async fn without_a_feed_an_answer_is_used_for_max_staleness() {
    let max = Duration::from_millis(300);
    let probe = probe();
    insert(&probe, 1).await;
    let cached = cached_for(&probe, max);
    for number in [1, 2] {
        let finds = probe.finds();
        let begin = Instant::now();
        find(&cached, number).await;
        let mut hits = 0;
        eventually("the store is asked again", async || {
            find(&cached, number).await;
            hits += 1;
            probe.finds() > finds + 1
        })
        .await;
        assert!(begin.elapsed() >= max, "the store was asked again too early");
        assert!(hits > 1);
    }
}

#[tokio::test]
async fn the_age_of_an_answer_counts_from_the_question() {
    let max = Duration::from_millis(300);
    let probe = probe();
    let key = insert(&probe, 1).await;
    let cached = cached_for(&probe, max);
    let (slow, gate) = late(&probe, &cached, &key).await;
    // By now the cache has read the clock, not long ago.
    let asked = Instant::now();
    // The key is revoked in another process halfway through the answer's delay.
    revoke(&probe.inner, &key).await;
    tokio::time::sleep(max / 2).await;
    gate.open();
    let _ = soon(slow).await.unwrap();
    let used = last_use(&cached, &key).await - asked;
    assert!(used <= max, "{used:?}");
}

#[tokio::test]
async fn an_answer_that_took_longer_than_max_staleness_is_refused() {
    let max = Duration::from_millis(50);
    for with_feed in [false, true] {
        let probe = probe();
        let key = insert(&probe, 1).await;
        let (_say, feed) = feed();
        let builder = CachedStore::builder(Arc::clone(&probe), max);
        let builder = if with_feed { builder.feed(feed) } else { builder };
        let cached = builder.build().unwrap();
        let (slow, gate) = late(&probe, &cached, &key).await;
        tokio::time::sleep(max + Duration::from_millis(1)).await;
        gate.open();
        let error = soon(slow).await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(error.source().unwrap().to_string().contains("longer to answer"), "{error:?}");
    }
}

#[tokio::test]
async fn no_caller_joins_a_hanging_call() {
    let max = Duration::from_secs(2);
    let probe = probe();
    let key = insert(&probe, 1).await;
    let cached = cached_for(&probe, max);
    let gate = probe.hold_before(Call::Find);
    let hangs = lookup(&cached, &key);
    gate.reached().await;
    probe.heal();
    tokio::time::sleep(max / 2 + Duration::from_millis(1)).await;
    soon(cached.find_by_digest(&key.digest)).await.unwrap().unwrap();
    assert!(!hangs.is_finished());
    gate.open();
    let _ = soon(hangs).await.unwrap();
}

#[tokio::test]
async fn a_silent_feed_is_bypassed_after_max_staleness() {
    let max = Duration::from_millis(300);
    let probe = probe();
    let key = insert(&probe, 1).await;
    let (cached, say) = following(&probe, max).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    // The key is revoked in another process, and the connection is cut.
    revoke(&probe.inner, &key).await;
    let revoked = Instant::now();
    let used = last_use(&cached, &key).await.saturating_duration_since(revoked);
    assert!(used <= max, "{used:?}");
    assert_eq!(cached.health().state, CacheState::Bypassed);
    eventually("the entries are dropped", async || cached.health().entries == 0).await;
    // An announced change does not prove that all changes were announced.
    say.news(News::Changed(key.id));
    let finds = probe.finds();
    status(&cached, &key).await;
    assert_eq!(probe.finds(), finds + 1);
    assert_eq!(cached.health().state, CacheState::Bypassed);
    say.up_to_date();
    becomes(&cached, CacheState::Following).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
}
