//! Two caches over one database, like two processes: a key revoked through one is refused by
//! the other.

use std::time::{Duration, Instant};

use keygate::store::CacheState;
use keygate::{
    Actor, CachedStore, Denial, KeyManager, KeyPatch, NewKey, PostgresStore, VerifyError,
};

use crate::floods::Flood;
use crate::postgres_support::{PATIENT, Schema, org, url};
use crate::proxy::{Network, Proxy, address};
use crate::recorder::{HEARTBEAT, REACH};
use crate::support::eventually;

/// A process: its store, its cache, and the feed it listens to.
pub(crate) struct Process {
    cached: CachedStore,
    pub(crate) keys: KeyManager,
}

impl Process {
    pub(crate) async fn start(
        store: PostgresStore,
        feed: &PostgresStore,
        max_staleness: Duration,
    ) -> Self {
        let feed = feed.changes().heartbeat(HEARTBEAT);
        let cached = CachedStore::builder(store, max_staleness).feed(feed).build().unwrap();
        let keys = KeyManager::builder(cached.clone()).store_deadline(PATIENT).build().unwrap();
        let this = Self { cached, keys };
        this.until(CacheState::Following).await;
        this
    }

    async fn until(&self, state: CacheState) {
        let what = format!("the cache is {state:?}");
        eventually(&what, async || self.cached.health().state == state).await;
    }

    /// Verifies until the key is revoked or deleted. Returns when the last accepted call
    /// began.
    pub(crate) async fn last_acceptance(&self, secret: &str) -> Instant {
        let mut last = Instant::now();
        eventually("the key is refused", async || {
            let now = Instant::now();
            match self.keys.verify(secret, None).await {
                Ok(_) => last = now,
                Err(VerifyError::Denied { denial: Denial::Revoked, .. } | VerifyError::Unknown) => {
                    return true;
                }
                Err(other) => panic!("{other:?}"),
            }
            false
        })
        .await;
        last
    }

    /// Checks that the key was not accepted for longer after this instant.
    pub(crate) async fn assert_refused_within(&self, max: Duration, since: Instant, secret: &str) {
        let late = self.last_acceptance(secret).await.saturating_duration_since(since);
        assert!(late <= max, "accepted {late:?} later");
    }
}

pub(crate) fn actor() -> Actor {
    Actor::new(org("acme"), "tester")
}

pub(crate) fn new() -> NewKey {
    NewKey::named("CI deploy").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_change_of_one_process_soon_reaches_the_other() {
    let schema = Schema::new();
    let stores = [schema.store().await, schema.store().await];
    let here = Process::start(stores[0].clone(), &stores[0], Duration::from_secs(5)).await;
    let there = Process::start(stores[1].clone(), &stores[1], Duration::from_secs(5)).await;
    for round in 0..50 {
        let issued = here.keys.create(&actor(), new()).await.unwrap();
        let (id, secret) = (issued.key.id, issued.secret.expose_secret().to_owned());
        for _ in 0..2 {
            here.keys.verify(&secret, None).await.unwrap();
            there.keys.verify(&secret, None).await.unwrap();
        }
        let secret = if round % 2 == 0 {
            secret
        } else {
            let rotated = there.keys.rotate(&actor(), &id).await.unwrap();
            let gone = there.keys.verify(&secret, None).await;
            assert!(matches!(gone, Err(VerifyError::Unknown)), "{gone:?}");
            rotated.secret.expose_secret().to_owned()
        };
        there.keys.verify(&secret, None).await.unwrap();
        here.keys.update(&actor(), &id, KeyPatch::revoke()).await.unwrap();
        // In this process at once.
        let refused = here.keys.verify(&secret, None).await;
        assert!(
            matches!(refused, Err(VerifyError::Denied { denial: Denial::Revoked, .. })),
            "{refused:?}"
        );
        there.last_acceptance(&secret).await;
        here.keys.delete(&actor(), &id).await.unwrap();
        here.keys.verify(&secret, None).await.unwrap_err();
    }
    assert_eq!(there.cached.health().state, CacheState::Following);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn with_the_feed_cut_no_key_is_accepted_later_than_max_staleness() {
    let schema = Schema::new();
    let max_staleness = Duration::from_millis(400);
    let store = schema.store().await;
    let proxy = Proxy::start(address(&url())).await;
    let far = schema.options_at(&proxy.url(&url())).deadline(REACH).connect().await.unwrap();
    let there = Process::start(store.clone(), &far, max_staleness).await;
    let others = KeyManager::builder(store).store_deadline(PATIENT).build().unwrap();
    for round in 0..6 {
        let issued = others.create(&actor(), new()).await.unwrap();
        let (id, secret) = (issued.key.id, issued.secret.expose_secret());
        there.until(CacheState::Following).await;
        for _ in 0..3 {
            there.keys.verify(secret, None).await.unwrap();
        }
        proxy.set(if round % 2 == 0 { Network::Silent } else { Network::Closed });
        others.update(&actor(), &id, KeyPatch::revoke()).await.unwrap();
        let acknowledged = Instant::now();
        there.assert_refused_within(max_staleness, acknowledged, secret).await;
        there.until(CacheState::Bypassed).await;
        there.keys.verify(secret, None).await.unwrap_err();
        proxy.set(Network::Intact);
    }
    there.until(CacheState::Following).await;
}

/// An announcement about one key, or about all, takes effect during the flood.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_51_in_a_flood_no_key_is_accepted_later_than_max_staleness() {
    let schema = Schema::new();
    let max_staleness = Duration::from_secs(2);
    let store = schema.store().await;
    let there = Process::start(store.clone(), &store, max_staleness).await;
    let others = KeyManager::builder(store).store_deadline(PATIENT).build().unwrap();
    let db = schema.db().await;
    let flood = Flood::on(schema.channel().await);
    for round in 0..10 {
        let issued = others.create(&actor(), new()).await.unwrap();
        let (id, secret) = (issued.key.id, issued.secret.expose_secret());
        there.keys.verify(secret, None).await.unwrap();
        if round % 2 == 0 {
            others.update(&actor(), &id, KeyPatch::revoke()).await.unwrap();
        } else {
            let unannounced = "BEGIN; ALTER TABLE keys DISABLE TRIGGER USER; \
                     UPDATE keys SET status = 'revoked'; \
                     ALTER TABLE keys ENABLE ALWAYS TRIGGER announce_change; \
                     ALTER TABLE keys ENABLE ALWAYS TRIGGER announce_truncation; \
                     SELECT pg_notify(channel || ' ' || tableoid, '*') \
                     FROM schema_version; COMMIT";
            db.batch_execute(unannounced).await.unwrap();
        }
        let acknowledged = Instant::now();
        there.assert_refused_within(max_staleness, acknowledged, secret).await;
    }
    assert!(flood.sent() > 100, "no flood: {}", flood.sent());
}
