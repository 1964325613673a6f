//! `CachedStore` from outside: no answer outlives a change, whatever fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(all(feature = "cache", feature = "tokio"))]

mod cache_support;

use std::error::Error as StdError;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use cache_support::{
    Failure, Probe, Say, acme, digest, eventually, feed, insert, key, revoke, soon, status,
};
use keygate::error::CacheError;
use keygate::manager::IssuedKey;
use keygate::runtime::{BoxFuture, ManualClock, Runtime};
use keygate::store::{CacheState, KeyUse, News, OrgLimit, PreviousSecret, Revision};
use keygate::*;

const LONG: Duration = Duration::from_secs(5);

fn cached(probe: &Probe) -> CachedStore {
    CachedStore::builder(probe.clone(), LONG).build().unwrap()
}

/// A cache that follows its feed.
async fn following(probe: &Probe, max_staleness: Duration) -> (CachedStore, Say) {
    let (say, feed) = feed();
    let cached = CachedStore::builder(probe.clone(), max_staleness).feed(feed).build().unwrap();
    say.news(News::Missed);
    say.up_to_date();
    becomes(&cached, CacheState::Following).await;
    (cached, say)
}

async fn becomes(cached: &CachedStore, state: CacheState) {
    eventually("that state", async || cached.health().state == state).await;
}

async fn find(store: &impl KeyStore, number: u64) -> bool {
    store.find_by_digest(&digest(number)).await.unwrap().is_some()
}

/// Starts a look-up in its own task.
fn lookup(cached: &CachedStore, key: &ApiKey) -> tokio::task::JoinHandle<Found> {
    tokio::spawn(owned(cached, key))
}

fn owned(cached: &CachedStore, key: &ApiKey) -> BoxFuture<'static, Found> {
    let (cached, digest) = (cached.clone(), key.digest);
    Box::pin(async move { cached.find_by_digest(&digest).await })
}

type Found = Result<Option<Arc<ApiKey>>, StoreError>;

fn status_of(found: Found) -> Option<Status> {
    found.unwrap().map(|key| key.status)
}

// ---- conformance ----

#[cfg(feature = "conformance")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_without_a_feed_conforms() {
    let store = || async { CachedStore::builder(MemoryStore::new(), LONG).build().unwrap() };
    keygate::conformance::check_store(store).await.unwrap();
}

#[cfg(feature = "conformance")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_that_follows_a_feed_conforms() {
    let store = || async {
        let feed = cache_support::Quiet::default();
        let cached = CachedStore::builder(MemoryStore::new(), LONG).feed(feed).build().unwrap();
        becomes(&cached, CacheState::Following).await;
        cached
    };
    keygate::conformance::check_store(store).await.unwrap();
}

#[cfg(feature = "conformance")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bypassed_cache_conforms() {
    let store = || async {
        let (_, feed) = feed();
        CachedStore::builder(MemoryStore::new(), LONG).feed(feed).build().unwrap()
    };
    keygate::conformance::check_store(store).await.unwrap();
}

#[cfg(all(feature = "conformance", feature = "sqlite"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_in_front_of_a_database_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("keys.db")).unwrap();
    let cached = CachedStore::builder(store, LONG).build().unwrap();
    keygate::conformance::check_store(|| async { cached.clone() }).await.unwrap();
}

#[test]
fn max_staleness_is_bounded() {
    for bad in [Duration::ZERO, LONG + Duration::from_nanos(1), Duration::MAX] {
        let error = CachedStore::builder(MemoryStore::new(), bad).build().unwrap_err();
        assert!(matches!(error, CacheError::MaxStaleness(told) if told == bad), "{error:?}");
        assert!(error.to_string().contains("more than zero and at most 5 s"), "{error}");
    }
    for good in [Duration::from_nanos(1), LONG] {
        CachedStore::builder(MemoryStore::new(), good).build().unwrap();
    }
}

#[test]
fn a_feed_needs_a_runtime() {
    let (_say, feed) = feed();
    let error = CachedStore::builder(MemoryStore::new(), LONG).feed(feed).build().unwrap_err();
    assert!(matches!(error, CacheError::NoRuntime), "{error:?}");
}

// ---- what is cached ----

#[tokio::test]
async fn a_key_and_its_absence_are_cached() {
    let probe = Probe::new();
    insert(&probe, 1).await;
    let cached = cached(&probe);
    for _ in 0..10 {
        assert!(find(&cached, 1).await);
        assert!(!find(&cached, 2).await);
    }
    assert_eq!(probe.finds(), 2);
    let health = cached.health();
    assert_eq!((health.entries, health.negative_entries), (1, 1));
    assert_eq!(health.state, CacheState::WithoutFeed);
    assert!(format!("{cached:?}").contains("entries: 1"), "{cached:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unknown_keys_evicts_no_real_key() {
    let probe = Probe::new();
    for number in 0..1_000 {
        insert(&probe, number).await;
    }
    // With a feed, since this many look-ups may take longer than an answer lasts.
    let feed = cache_support::Quiet::default();
    let cached = CachedStore::builder(probe.clone(), LONG).feed(feed).build().unwrap();
    becomes(&cached, CacheState::Following).await;
    for number in 0..1_000 {
        assert!(find(&cached, number).await);
    }
    for number in 0..1_000_000 {
        assert!(!find(&cached, 1_000_000 + number).await);
    }
    assert_eq!(probe.finds(), 1_001_000);
    for number in 0..1_000 {
        assert!(find(&cached, number).await);
    }
    assert_eq!(probe.finds(), 1_001_000, "every key was still there");
    let health = cached.health();
    assert_eq!(health.entries, 1_000);
    assert!(health.negative_entries <= 10_000, "{health:?}");
}

#[tokio::test]
async fn the_cache_never_exceeds_its_capacity() {
    let probe = Probe::new();
    let builder = CachedStore::builder(probe.clone(), LONG);
    let cached = builder.entries(1_024).negative_entries(128).build().unwrap();
    for number in 0..5_000 {
        insert(&probe, number).await;
        assert!(find(&cached, number).await);
        assert!(!find(&cached, 1_000_000 + number).await);
        let health = cached.health();
        assert!(health.entries <= 1_024 && health.negative_entries <= 128, "{health:?}");
    }
    let health = cached.health();
    assert!(health.entries > 512 && health.negative_entries > 64, "{health:?}");
}

#[tokio::test]
async fn with_capacity_zero_every_look_up_goes_to_the_store() {
    let probe = Probe::new();
    insert(&probe, 1).await;
    let builder = CachedStore::builder(probe.clone(), LONG);
    let cached = builder.entries(0).negative_entries(0).build().unwrap();
    for _ in 0..3 {
        assert!(find(&cached, 1).await);
        assert!(!find(&cached, 2).await);
    }
    assert_eq!(probe.finds(), 6);
    assert_eq!((cached.health().entries, cached.health().negative_entries), (0, 0));
}

#[test]
fn a_hit_costs_one_allocation() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = runtime.block_on(insert(&probe, 1));
    let look = || runtime.block_on(status(&cached, &key));
    look();
    // `block_on` itself does not allocate.
    let counted = allocation_counter::measure(|| assert_eq!(look(), Some(Status::Active)));
    assert_eq!(counted.count_total, 1);
    assert_eq!(probe.finds(), 1);
}

#[tokio::test]
async fn other_calls_go_to_the_store() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    assert!(find(&cached, 1).await);
    let used = Timestamp::from_unix_micros(7).unwrap();
    cached.record_uses(&[KeyUse { id: key.id, at: used }]).await.unwrap();
    assert_eq!(
        probe.inner().get(&acme(), &key.id).await.unwrap().unwrap().last_used_at,
        Some(used)
    );
    assert!(find(&cached, 1).await);
    assert_eq!(probe.finds(), 1, "a use does not void the entry");
    assert_eq!(cached.get(&acme(), &key.id).await.unwrap().unwrap().last_used_at, Some(used));
    assert_eq!(cached.list(&acme()).await.unwrap()[0].last_used_at, Some(used));
}

// ---- changes of this process ----

#[tokio::test]
async fn a_local_change_is_effective_before_the_call_returns() {
    let probe = Probe::new();
    let cached = cached(&probe);
    assert!(!find(&cached, 1).await);
    let key = insert(&cached, 1).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    revoke(&cached, &key).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    // A rotation: the old digest is removed, the new one is added.
    assert!(!find(&cached, 2).await);
    let revoked = cached.get(&acme(), &key.id).await.unwrap().unwrap();
    let rotated =
        ApiKey { digest: digest(2), revision: revoked.revision.next(), ..ApiKey::clone(&revoked) };
    cached.replace(&rotated, revoked.revision).await.unwrap();
    assert!(!find(&cached, 1).await);
    assert!(find(&cached, 2).await);
    cached.delete(&acme(), &key.id, None).await.unwrap();
    assert!(!find(&cached, 2).await);
}

/// A manager on the cache, whose clock the test moves.
fn overlapping(cached: &CachedStore) -> (KeyManager, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new("2027-01-31T10:00:00Z".parse::<Timestamp>().unwrap()));
    let builder = KeyManager::builder(cached.clone()).clock(clock.clone());
    (builder.max_overlap(HOUR).build().unwrap(), clock)
}

const HOUR: Duration = Duration::from_secs(3_600);

fn actor() -> Actor {
    Actor::new(acme(), "ada")
}

#[tokio::test]
async fn case_59_a_cached_secret_ends_with_its_overlap() {
    let cached = cached(&Probe::new());
    let (keys, clock) = overlapping(&cached);
    let works = async |issued: &IssuedKey| {
        // The second time from the cache.
        let secret = issued.secret.expose_secret();
        let [first, again] = [keys.verify(secret, None).await, keys.verify(secret, None).await];
        assert_eq!(first.is_ok(), again.is_ok());
        again.is_ok()
    };
    let first = keys.create(&actor(), NewKey::named("CI").unwrap()).await.unwrap();
    let id = first.key.id;
    let rotate = async || keys.rotate_with_overlap(&actor(), &id, HOUR, None).await.unwrap();
    assert!(works(&first).await);
    let second = rotate().await;
    assert!(works(&first).await && works(&second).await);
    clock.advance(HOUR - Duration::from_micros(1));
    assert!(works(&first).await && works(&second).await);
    clock.advance(Duration::from_micros(1));
    assert!(!works(&first).await && works(&second).await);

    let third = rotate().await;
    assert!(works(&second).await && works(&third).await);
    let fourth = rotate().await;
    assert!(!works(&second).await && works(&third).await && works(&fourth).await);
    keys.end_previous_secret(&actor(), &id).await.unwrap();
    assert!(!works(&third).await && works(&fourth).await);
    let fifth = rotate().await;
    assert!(works(&fourth).await && works(&fifth).await);
    keys.delete(&actor(), &id).await.unwrap();
    assert!(!works(&fourth).await && !works(&fifth).await);
}

/// The key with that number as its secret, rotated to the next one with an overlap by
/// another process, and cached by both digests.
async fn overlapping_entry(probe: &Probe, cached: &CachedStore, number: u64) -> ApiKey {
    let old = insert(cached, number).await;
    let previous = Some(PreviousSecret { digest: old.digest, until: Timestamp::MAX });
    let (digest, revision) = (digest(number + 1), old.revision.next());
    let new = ApiKey { digest, previous, revision, ..old.clone() };
    probe.inner().replace(&new, old.revision).await.unwrap();
    cached.get(&acme(), &new.id).await.unwrap();
    assert!(find(cached, number).await && find(cached, number + 1).await);
    new
}

#[tokio::test]
async fn case_59_news_of_a_key_voids_both_its_digests() {
    let probe = Probe::new();
    let (cached, say) = following(&probe, LONG).await;
    let key = overlapping_entry(&probe, &cached, 1).await;
    let finds = probe.finds();
    assert!(find(&cached, 1).await && find(&cached, 2).await);
    assert_eq!(probe.finds(), finds, "both are cached");
    let ended = ApiKey { previous: None, revision: key.revision.next(), ..key.clone() };
    probe.inner().replace(&ended, key.revision).await.unwrap();
    say.news(News::Changed(key.id));
    say.heard().await;
    assert!(!find(&cached, 1).await && find(&cached, 2).await);
    assert_eq!(probe.finds(), finds + 2, "both were asked for again");
}

#[tokio::test]
async fn case_59_what_a_get_has_seen_ends_the_secret_in_the_cache() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = overlapping_entry(&probe, &cached, 1).await;
    let ended = ApiKey { previous: None, revision: key.revision.next(), ..key.clone() };
    probe.inner().replace(&ended, key.revision).await.unwrap();
    cached.get(&acme(), &key.id).await.unwrap();
    assert!(!find(&cached, 1).await && find(&cached, 2).await);
}

#[tokio::test]
async fn a_failed_change_voids_the_entry() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    assert!(find(&cached, 1).await);
    probe.fail(Some(Failure::Unavailable));
    cached.delete(&acme(), &key.id, None).await.unwrap_err();
    probe.fail(None);
    assert!(!find(&cached, 1).await);
}

#[tokio::test]
async fn a_cancelled_change_voids_the_entry() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    assert!(find(&cached, 1).await);
    let gate = probe.hold_after_change();
    let deleting = {
        let (cached, id) = (cached.clone(), key.id);
        tokio::spawn(async move { cached.delete(&acme(), &id, None).await })
    };
    gate.reached().await;
    deleting.abort();
    assert!(deleting.await.unwrap_err().is_cancelled());
    assert!(!find(&cached, 1).await);
}

#[tokio::test]
async fn a_change_voids_only_the_entry_of_its_key() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let first = insert(&cached, 0).await;
    for number in 1..1_000 {
        insert(&cached, number).await;
    }
    for number in 0..1_000 {
        find(&cached, number).await;
    }
    let before = probe.finds();
    revoke(&cached, &first).await;
    for number in 0..1_000 {
        find(&cached, number).await;
    }
    assert_eq!(probe.finds() - before, 1);
}

/// A caller that reads or tries to change ids in its own organisation.
#[tokio::test]
async fn case_51_unknown_and_foreign_ids_void_nothing() {
    let probe = Probe::new();
    // With a feed, since this many calls may take longer than an answer lasts.
    let feed = cache_support::Quiet::default();
    let cached = CachedStore::builder(probe.clone(), LONG).feed(feed).build().unwrap();
    becomes(&cached, CacheState::Following).await;
    let mallory = OrgId::new("mallory").unwrap();
    for number in 0..100 {
        insert(&probe, number).await;
    }
    let look = async || {
        for number in 0..200 {
            assert_eq!(find(&cached, number).await, number < 100);
        }
    };
    look().await;
    let before = probe.finds();
    for number in 0..2_000 {
        let ours = key(1_000 + number % 100).id;
        let theirs = key(number % 100).id;
        for id in [key(100_000 + number).id, theirs] {
            assert_eq!(cached.get(&mallory, &id).await.unwrap(), None);
            let foreign = ApiKey { id, org: mallory.clone(), ..key(number % 100) };
            let refused = cached.replace(&foreign, Revision::FIRST).await.unwrap_err();
            assert!(matches!(refused, StoreError::NotFound), "{refused:?}");
            let refused = cached.delete(&mallory, &id, None).await.unwrap_err();
            assert!(matches!(refused, StoreError::NotFound), "{refused:?}");
            let refused = cached.insert(&foreign, OrgLimit::at_most(0)).await.unwrap_err();
            assert!(
                matches!(refused, StoreError::LimitReached | StoreError::Conflict),
                "{refused:?}"
            );
        }
        // The owner voids nothing either by reading an unchanged key or a missing one.
        assert_eq!(cached.get(&acme(), &ours).await.unwrap(), None);
        assert!(cached.get(&acme(), &theirs).await.unwrap().is_some());
    }
    look().await;
    assert_eq!(probe.finds(), before, "every entry was still there");
}

/// A shared look-up is not repeated for each id that another caller reads.
#[tokio::test]
async fn case_51_unknown_ids_do_not_split_a_shared_look_up() {
    let mut finds = Vec::new();
    // Sometimes an id shares its slot with the key, and the store is asked again.
    for number in 0..3 {
        let probe = Probe::new();
        let key = insert(&probe, number).await;
        let cached = cached(&probe);
        let gate = probe.hold_before();
        let mut first = cached.find_by_digest(&key.digest);
        assert!(waits(&mut first));
        assert_eq!(cached.get(&acme(), &cache_support::key(77).id).await.unwrap(), None);
        let mut second = cached.find_by_digest(&key.digest);
        assert!(waits(&mut second));
        probe.let_pass();
        gate.open();
        for caller in [first, second] {
            assert_eq!(status_of(soon(caller).await), Some(Status::Active));
        }
        finds.push(probe.finds());
    }
    assert!(finds.contains(&1), "{finds:?}");
}

/// The key is changed in another process without an announcement.
#[tokio::test]
async fn look_ups_see_every_change_that_an_earlier_get_saw() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = insert(&probe, 1).await;
    assert!(find(&cached, 1).await && !find(&cached, 2).await);
    revoke(probe.inner(), &key).await;
    insert(probe.inner(), 2).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    cached.get(&acme(), &key.id).await.unwrap().unwrap();
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    cached.get(&acme(), &cache_support::key(2).id).await.unwrap().unwrap();
    assert!(find(&cached, 2).await);
    probe.inner().delete(&acme(), &key.id, None).await.unwrap();
    assert_eq!(cached.get(&acme(), &key.id).await.unwrap(), None);
    assert_eq!(status(&cached, &key).await, None);

    // A refused change shows the same.
    for refuse in ["replace", "delete"] {
        assert!(find(&cached, 2).await);
        let stored = probe.inner().get(&acme(), &cache_support::key(2).id).await.unwrap().unwrap();
        revoke(probe.inner(), &stored).await;
        let refused = match refuse {
            "replace" => cached.replace(&stored, stored.revision).await,
            _ => cached.delete(&acme(), &stored.id, Some(stored.revision)).await,
        };
        assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
        let found = cached.find_by_digest(&stored.digest).await.unwrap().unwrap();
        assert_eq!(found.revision, stored.revision.next(), "{refuse}");
    }
}

/// Imported ids need not be random.
#[tokio::test]
async fn keys_with_sequential_ids_do_not_void_each_other() {
    let probe = Probe::new();
    let cached = cached(&probe);
    for shift in [0, 40, 64, 100] {
        let numbered = |number: u64| {
            let id = KeyId::from_bytes((u128::from(number) << shift).to_be_bytes());
            ApiKey { id, ..key(shift * 1_000 + number) }
        };
        for number in 1..200 {
            cached.insert(&numbered(number), OrgLimit::NONE).await.unwrap();
        }
        for number in 1..200 {
            status(&cached, &numbered(number)).await;
        }
        let before = probe.finds();
        revoke(&cached, &numbered(77)).await;
        for number in 1..200 {
            status(&cached, &numbered(number)).await;
        }
        let asked = probe.finds() - before;
        assert_eq!(asked, 1, "shift {shift}");
        for number in 1..200 {
            cached.delete(&acme(), &numbered(number).id, None).await.unwrap();
        }
    }
}

// ---- look-ups under way during a change ----

#[tokio::test]
async fn case_30_the_result_of_a_look_up_from_before_a_revocation_is_not_reused() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    let gate = probe.hold_after();
    let late = lookup(&cached, &key);
    gate.reached().await;
    revoke(&cached, &key).await;
    probe.let_pass();
    gate.open();
    // It began before the revocation, so it may return the earlier state.
    assert_eq!(status_of(soon(late).await.unwrap()), Some(Status::Active));
    let before = probe.finds();
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    assert_eq!(probe.finds(), before + 1);
}

#[tokio::test]
async fn case_30_a_deleted_key_does_not_come_back() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    let gate = probe.hold_after();
    let late = lookup(&cached, &key);
    gate.reached().await;
    cached.delete(&acme(), &key.id, None).await.unwrap();
    probe.let_pass();
    gate.open();
    assert!(soon(late).await.unwrap().unwrap().is_some());
    assert_eq!(status(&cached, &key).await, None);
    assert_eq!(status(&cached, &key).await, None);
}

#[tokio::test]
async fn case_30_a_late_absence_does_not_hide_a_new_key() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let gate = probe.hold_after();
    let late = lookup(&cached, &key(1));
    gate.reached().await;
    insert(&cached, 1).await;
    probe.let_pass();
    gate.open();
    assert!(soon(late).await.unwrap().unwrap().is_none());
    assert!(find(&cached, 1).await);
}

#[tokio::test]
async fn case_30_a_request_after_a_revocation_does_not_join_a_look_up_from_before() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let key = insert(&cached, 1).await;
    let gate = probe.hold_after();
    let before = lookup(&cached, &key);
    gate.reached().await;
    probe.let_pass();
    revoke(&cached, &key).await;
    assert_eq!(soon(status(&cached, &key)).await, Some(Status::Revoked));
    // The old answer arrives last and does not replace the newer one.
    gate.open();
    assert_eq!(status_of(soon(before).await.unwrap()), Some(Status::Active));
    let finds = probe.finds();
    assert_eq!(status(&cached, &key).await, Some(Status::Revoked));
    assert_eq!(probe.finds(), finds, "the newer answer was kept");
}

#[tokio::test]
async fn case_30_a_late_answer_from_before_an_announced_change_is_not_reused() {
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    for missed in [false, true] {
        let (cached, say) = following(&probe, LONG).await;
        let gate = probe.hold_after();
        let late = lookup(&cached, &key);
        gate.reached().await;
        // The change is made in another process.
        let stored = probe.inner().get(&acme(), &key.id).await.unwrap().unwrap();
        let changed = ApiKey {
            status: if missed { Status::Active } else { Status::Revoked },
            revision: stored.revision.next(),
            ..ApiKey::clone(&stored)
        };
        probe.inner().replace(&changed, stored.revision).await.unwrap();
        say.news(if missed { News::Missed } else { News::Changed(key.id) });
        say.up_to_date();
        say.heard().await;
        probe.let_pass();
        gate.open();
        assert_eq!(status_of(soon(late).await.unwrap()), Some(stored.status));
        assert_eq!(status(&cached, &key).await, Some(changed.status));
    }
}

// ---- shared look-ups ----

/// Polls a look-up until it cannot continue.
fn waits<T>(lookup: &mut BoxFuture<'_, T>) -> bool {
    lookup.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[tokio::test]
async fn a_hundred_concurrent_callers_share_one_call() {
    for bypassed in [false, true] {
        let probe = Probe::new();
        let key = insert(&probe, 1).await;
        let (_say, feed) = feed();
        let builder = CachedStore::builder(probe.clone(), LONG);
        let builder = if bypassed { builder.feed(feed) } else { builder };
        let cached = builder.build().unwrap();
        let gate = probe.hold_before();
        let mut callers: Vec<_> = (0..100).map(|_| cached.find_by_digest(&key.digest)).collect();
        assert!(callers.iter_mut().all(waits));
        gate.open();
        for caller in callers {
            assert_eq!(status_of(soon(caller).await), Some(Status::Active));
        }
        assert_eq!(probe.finds(), 1, "bypassed: {bypassed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_on_several_threads_share_one_call() {
    for round in 1..200 {
        let probe = Probe::new();
        let key = insert(&probe, round).await;
        let cached = cached(&probe);
        let callers: Vec<_> = (0..16).map(|_| lookup(&cached, &key)).collect();
        for caller in callers {
            assert_eq!(status_of(soon(caller).await.unwrap()), Some(Status::Active));
        }
        assert_eq!(probe.finds(), 1);
    }
}

/// Sometimes a call starts between another caller's check of the cache and its own call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synchronised_callers_on_four_threads_share_one_call_per_digest() {
    const CALLERS: u64 = 4;
    const DIGESTS: u64 = 40_000;
    let probe = Probe::new();
    // With a feed, since all of this may take longer than an answer lasts.
    let feed = cache_support::Quiet::default();
    let cached = CachedStore::builder(probe.clone(), LONG).feed(feed);
    let cached = cached.negative_entries(4 * DIGESTS as usize).build().unwrap();
    becomes(&cached, CacheState::Following).await;
    let arrived = Arc::new(AtomicU64::new(0));
    let callers = [(); CALLERS as usize].map(|()| {
        let (cached, arrived) = (cached.clone(), Arc::clone(&arrived));
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            for number in 0..DIGESTS {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < CALLERS * (number + 1) {
                    std::thread::yield_now();
                }
                assert!(!runtime.block_on(find(&cached, number)));
            }
        })
    });
    for done in callers {
        done.await.unwrap();
    }
    assert_eq!(probe.finds() as u64, DIGESTS);
}

#[tokio::test]
async fn callers_of_different_digests_do_not_wait_for_each_other() {
    let probe = Probe::new();
    let (one, two) = (insert(&probe, 1).await, insert(&probe, 2).await);
    let cached = cached(&probe);
    let gate = probe.hold_before();
    let held = lookup(&cached, &one);
    gate.reached().await;
    probe.let_pass();
    assert_eq!(soon(status(&cached, &two)).await, Some(Status::Active));
    gate.open();
    soon(held).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cancelled_caller_leaves_the_call_to_the_others() {
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let cached = cached(&probe);
    let gate = probe.hold_before();
    let mut first = cached.find_by_digest(&key.digest);
    assert!(waits(&mut first));
    let mut others = [(); 2].map(|()| cached.find_by_digest(&key.digest));
    assert!(others.iter_mut().all(waits));
    drop(first);
    gate.open();
    for other in others {
        assert_eq!(status_of(soon(other).await), Some(Status::Active));
    }
    assert_eq!((probe.finds(), probe.dropped()), (1, 0));
}

/// A dropped caller wakes no one by itself; the others need another wake-up.
#[tokio::test]
async fn a_cancelled_caller_loses_no_wake_up() {
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let cached = cached(&probe);
    let gate = probe.hold_before();
    let mut first = cached.find_by_digest(&key.digest);
    assert!(waits(&mut first));
    let other = lookup(&cached, &key);
    tokio::task::yield_now().await;
    assert!(waits(&mut first));
    gate.open();
    drop(first);
    assert_eq!(status_of(soon(other).await.unwrap()), Some(Status::Active));
    assert_eq!(probe.finds(), 1);
}

#[tokio::test]
async fn the_call_ends_when_its_last_caller_is_cancelled() {
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let cached = cached(&probe);
    let _gate = probe.hold_before();
    let mut callers = [(); 2].map(|()| cached.find_by_digest(&key.digest));
    assert!(callers.iter_mut().all(waits));
    for caller in callers {
        assert_eq!(probe.dropped(), 0);
        drop(caller);
    }
    assert_eq!(probe.dropped(), 1);
    probe.let_pass();
    assert_eq!(soon(status(&cached, &key)).await, Some(Status::Active));
    assert_eq!(probe.finds(), 2);
}

#[tokio::test]
async fn all_callers_get_the_error_and_the_next_asks_again() {
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let cached = cached(&probe);
    for (failure, message) in [
        (Failure::Unavailable, "the line is cut"),
        (Failure::Corrupt, "no such status"),
        (Failure::Panic, "the store panicked"),
    ] {
        let finds = probe.finds();
        let gate = probe.hold_before();
        let mut callers = [(); 3].map(|()| cached.find_by_digest(&key.digest));
        assert!(callers.iter_mut().all(waits));
        probe.fail(Some(failure));
        probe.let_pass();
        gate.open();
        for caller in callers {
            let error = soon(caller).await.unwrap_err();
            let is_corrupt = matches!(error, StoreError::Corrupt(_));
            assert_eq!(is_corrupt, failure == Failure::Corrupt, "{error:?}");
            assert!(is_corrupt || matches!(error, StoreError::Unavailable(_)), "{error:?}");
            let source = error.source().unwrap();
            assert_eq!(source.to_string(), message);
            assert!(source.source().is_none());
        }
        assert_eq!(probe.finds(), finds + 1);
        probe.fail(None);
        assert_eq!(status(&cached, &key).await, Some(Status::Active));
        cached.delete(&acme(), &key.id, None).await.unwrap();
        insert(&cached, 1).await;
    }
}

// ---- time ----

#[tokio::test]
async fn without_a_feed_an_answer_is_used_for_max_staleness() {
    let max = Duration::from_millis(300);
    let probe = Probe::new();
    insert(&probe, 1).await;
    let cached = CachedStore::builder(probe.clone(), max).build().unwrap();
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
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let cached = CachedStore::builder(probe.clone(), max).build().unwrap();
    let gate = probe.hold_after();
    let slow = lookup(&cached, &key);
    gate.reached().await;
    // By now the cache has read the clock, not long ago.
    let asked = Instant::now();
    // The key is revoked in another process halfway through the answer's delay.
    revoke(probe.inner(), &key).await;
    tokio::time::sleep(max / 2).await;
    probe.let_pass();
    gate.open();
    let _ = soon(slow).await.unwrap();
    let mut used_until = asked;
    eventually("the revocation is seen", async || {
        let now = Instant::now();
        let active = status(&cached, &key).await == Some(Status::Active);
        if active {
            used_until = now;
        }
        !active
    })
    .await;
    assert!(used_until - asked <= max, "{:?}", used_until - asked);
}

#[tokio::test]
async fn an_answer_that_took_longer_than_max_staleness_is_refused() {
    let max = Duration::from_millis(50);
    for with_feed in [false, true] {
        let probe = Probe::new();
        let key = insert(&probe, 1).await;
        let (_say, feed) = feed();
        let builder = CachedStore::builder(probe.clone(), max);
        let builder = if with_feed { builder.feed(feed) } else { builder };
        let cached = builder.build().unwrap();
        let gate = probe.hold_after();
        let slow = lookup(&cached, &key);
        gate.reached().await;
        tokio::time::sleep(max + Duration::from_millis(1)).await;
        probe.let_pass();
        gate.open();
        let error = soon(slow).await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(error.source().unwrap().to_string().contains("longer to answer"), "{error:?}");
    }
}

#[tokio::test]
async fn no_caller_joins_a_hanging_call() {
    let max = Duration::from_secs(2);
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let cached = CachedStore::builder(probe.clone(), max).build().unwrap();
    let gate = probe.hold_before();
    let hangs = lookup(&cached, &key);
    gate.reached().await;
    probe.let_pass();
    tokio::time::sleep(max / 2 + Duration::from_millis(1)).await;
    soon(cached.find_by_digest(&key.digest)).await.unwrap().unwrap();
    assert!(!hangs.is_finished());
    gate.open();
    let _ = soon(hangs).await.unwrap();
}

// ---- the feed ----

#[tokio::test]
async fn an_announced_change_is_seen_at_once() {
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let (cached, say) = following(&probe, LONG).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    assert!(!find(&cached, 2).await);
    revoke(probe.inner(), &key).await;
    insert(probe.inner(), 2).await;
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
    let probe = Probe::new();
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
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let (say, feed) = feed();
    let cached = CachedStore::builder(probe.clone(), LONG).feed(feed).build().unwrap();
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
async fn missed_announcements_void_every_entry() {
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let (cached, say) = following(&probe, LONG).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    assert!(!find(&cached, 2).await);
    revoke(probe.inner(), &key).await;
    insert(probe.inner(), 2).await;
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
async fn a_silent_feed_is_bypassed_after_max_staleness() {
    let max = Duration::from_millis(300);
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let (cached, say) = following(&probe, max).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    // The key is revoked in another process, and the connection is cut.
    revoke(probe.inner(), &key).await;
    let revoked = Instant::now();
    let mut accepted = revoked;
    eventually("the revocation is seen", async || {
        let now = Instant::now();
        let active = status(&cached, &key).await == Some(Status::Active);
        if active {
            accepted = now;
        }
        !active
    })
    .await;
    assert!(accepted - revoked <= max, "{:?}", accepted - revoked);
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

#[tokio::test]
async fn an_outdated_proof_is_ignored() {
    let max = Duration::from_millis(200);
    let probe = Probe::new();
    let before = Instant::now();
    tokio::time::sleep(max).await;
    let (say, feed) = feed();
    let cached = CachedStore::builder(probe.clone(), max).feed(feed).build().unwrap();
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
    let probe = Probe::new();
    let key = insert(&probe, 1).await;
    let (cached, say) = following(&probe, LONG).await;
    assert_eq!(status(&cached, &key).await, Some(Status::Active));
    say.panic();
    becomes(&cached, CacheState::Bypassed).await;
    eventually("the task has ended", async || say.is_unheard()).await;
    revoke(probe.inner(), &key).await;
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
    let probe = Probe::new();
    let (say, feed) = feed();
    let cached = CachedStore::builder(probe.clone(), LONG).feed(feed).runtime(NoTime);
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
    let probe = Probe::new();
    let theirs = tokio::runtime::Runtime::new().unwrap();
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (cached, _say) = theirs.block_on(following(&probe, max));
    theirs.shutdown_timeout(Duration::from_secs(5));
    ours.block_on(becomes(&cached, CacheState::Bypassed));
}

// ---- a manager over a cache ----

#[tokio::test]
async fn status_expiry_and_address_are_checked_on_each_request() {
    let probe = Probe::new();
    let cached = cached(&probe);
    let begin = Timestamp::from_unix_micros(1_700_000_000_000_000).unwrap();
    let clock = Arc::new(ManualClock::new(begin));
    let keys = KeyManager::builder(cached).clock(Arc::clone(&clock)).build().unwrap();
    let ada = Actor::new(acme(), "ada");
    let new = NewKey::named("CI").unwrap().allow(["10.0.0.0/8"]).unwrap();
    let issued = keys.create(&ada, new.expires(Expiration::OneDay)).await.unwrap();
    let secret = issued.secret.expose_secret();
    let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let denied = |result: Result<VerifiedKey, VerifyError>| match result {
        Err(VerifyError::Denied { denial, .. }) => denial,
        other => panic!("{other:?}"),
    };
    keys.verify(secret, ip("10.0.0.1")).await.unwrap();
    assert_eq!(denied(keys.verify(secret, ip("192.0.2.1")).await), Denial::IpNotAllowed);
    assert_eq!(denied(keys.verify(secret, None).await), Denial::IpNotAllowed);
    clock.set(issued.key.expires_at.unwrap());
    assert_eq!(denied(keys.verify(secret, ip("10.0.0.1")).await), Denial::Expired);
    assert_eq!(probe.finds(), 1);
    clock.set(begin);
    keys.verify(secret, ip("10.0.0.1")).await.unwrap();
    assert_eq!(probe.finds(), 1);
    keys.update(&ada, &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_eq!(denied(keys.verify(secret, ip("10.0.0.1")).await), Denial::Revoked);
    keys.delete(&ada, &issued.key.id).await.unwrap();
    assert!(matches!(keys.verify(secret, None).await, Err(VerifyError::Unknown)));
}

/// Another process revoked the key. A caller that sees the key as revoked relies on it.
#[tokio::test]
async fn an_earlier_revocation_by_another_process_takes_effect_too() {
    let store = Arc::new(MemoryStore::new());
    let manager = || {
        let cached = CachedStore::builder(Arc::clone(&store), LONG).build().unwrap();
        KeyManager::builder(cached).build().unwrap()
    };
    let (here, elsewhere) = (manager(), manager());
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    let issued = here.create(&actor, NewKey::named("CI").unwrap()).await.unwrap();
    let secret = issued.secret.expose_secret();
    here.verify(secret, None).await.unwrap();
    elsewhere.update(&actor, &issued.key.id, KeyPatch::revoke()).await.unwrap();
    let told = here.update(&actor, &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_eq!(told.status, Status::Revoked);
    assert!(here.verify(secret, None).await.is_err());
}
