//! Feeds whose connection is lost, goes silent, or leads through a pooler.

use std::time::{Duration, Instant};

use keygate::store::{CacheState, News, OrgLimit, PostgresOptions};
use keygate::{CachedStore, KeyManager, KeyPatch, KeyStore};

use crate::caches::{actor, new};
use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::pgbouncer::PgBouncer;
use crate::postgres_support::{PATIENT, Schema, administrator, key, new_key, org, url};
use crate::proxy::{Network, Proxy, address};
use crate::recorder::{HEARTBEAT, REACH, Recorder, changed, proves};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_killed_session_is_reported_and_replaced() {
    let schema = Schema::new();
    let store = schema.store().await;
    let recorder = Recorder::by(&store);
    for _ in 0..3 {
        recorder.proof().await;
        let (from, listener) = (recorder.count(), schema.until_listeners(1).await[0]);
        let kill = "SELECT pg_terminate_backend($1)";
        administrator().await.query(kill, &[&listener]).await.unwrap();
        let lost = recorder.loss(from).await;
        // Announced again when it listens again, before any proof.
        let next = recorder.wait(lost + 1, |_| true).await;
        assert_eq!(recorder.all()[next], News::Missed);
    }
    assert_eq!(recorder.of(store.insert(&key(1), OrgLimit::NONE)).await, changed(key(1).id));
}

/// To the server, a session that only listens is idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_server_that_ends_idle_sessions_does_not_end_the_listening_one() {
    let schema = Schema::new();
    let url = format!("{}?options=-c%20idle_session_timeout%3D500", url());
    let store = schema.options_at(&url).connect().await.unwrap();
    let recorder = Recorder::by(&store);
    let from = recorder.proof().await;
    let later = Instant::now() + Duration::from_millis(1_500);
    let until = recorder.wait(from, |news| proves(news, later)).await;
    assert!(!recorder.all()[from..until].contains(&News::Missed), "{:?}", recorder.all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_dropped_feed_leaves_no_session_behind() {
    let schema = Schema::new();
    let store = schema.store().await;
    let recorders = [Recorder::by(&store), Recorder::by(&store)];
    schema.until_listeners(2).await;
    drop(recorders);
    schema.until_listeners(0).await;
    let cached = CachedStore::builder(store.clone(), Duration::from_secs(1)).feed(store.changes());
    let cached = cached.build().unwrap();
    schema.until_listeners(1).await;
    drop(cached);
    schema.until_listeners(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_cut_network_gives_no_proof_until_it_is_restored() {
    let schema = Schema::new();
    let store = schema.store().await;
    let proxy = Proxy::start(address(&url())).await;
    let far = schema.options_at(&proxy.url(&url())).deadline(REACH).connect().await.unwrap();
    let recorder = Recorder::by(&far);
    for cut in [Network::Silent, Network::Closed, Network::Silent] {
        recorder.proof().await;
        let from = recorder.count();
        proxy.set(cut);
        let at = Instant::now();
        let lost = recorder.loss(from).await;
        store.insert(&new_key(&org("acme")), OrgLimit::NONE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let since = &recorder.all()[from..];
        assert!(!since.iter().any(|news| proves(news, at)), "{cut:?}: {since:?}");
        assert_eq!(since.len(), lost - from + 1, "{cut:?}: one loss is reported once");
        proxy.set(Network::Intact);
        let again = recorder.wait(lost + 1, |_| true).await;
        assert_eq!(recorder.all()[again], News::Missed);
    }
    assert_eq!(recorder.of(store.insert(&key(1), OrgLimit::NONE)).await, changed(key(1).id));
}

/// The store has moved to another server, but the listener's server still runs: its
/// announcements are not about the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_listener_on_another_server_than_the_store_is_dropped() {
    let (schema, cluster) = (Schema::new(), Cluster::start());
    let url = url();
    let (_, database) = url.rsplit_once('/').unwrap();
    if database != "postgres" {
        cluster.ask(&format!("CREATE DATABASE {database}"));
    }
    let there = format!("postgres://postgres@127.0.0.1:{}/{database}", cluster.port());
    drop(schema.options_at(&there).connect().await.unwrap());
    let proxy = Proxy::start(address(&url)).await;
    let store = schema.options_at(&proxy.url(&url)).deadline(REACH).connect().await.unwrap();
    let recorder = Recorder::by(&store);
    recorder.proof().await;
    let listener = schema.until_listeners(1).await[0];
    proxy.redirect(address(&there));
    let from = recorder.count();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE application_name = $1 AND pid <> $2";
    let killed = administrator().await.query(kill, &[&schema.name, &listener]).await.unwrap();
    assert_eq!(killed.len(), 10, "look-ups: 2, changes: 4, uses: 1, records: 2, pages: 1");
    recorder.loss(from).await;
    schema.until_listeners(0).await;
    recorder.proof().await;
}

/// PgBouncer assigns server sessions per transaction. The feed hears some of its own
/// statements, but not the announcements of others in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn behind_pgbouncer_there_is_no_proof_and_keys_are_still_verified() {
    let cluster = Cluster::start();
    let direct = PostgresOptions::from_url(&cluster.url("")).unwrap();
    let direct = direct.deadline(PATIENT).connect().await.unwrap();
    for sessions in [1, 3] {
        let bouncer = PgBouncer::start(&cluster, sessions, "");
        let options = PostgresOptions::from_url(&bouncer.url("")).unwrap();
        let store = options.prepared(false).deadline(PATIENT).connect().await.unwrap();
        let recorder = Recorder::by(&store);
        let cached = CachedStore::builder(store.clone(), Duration::from_secs(1))
            .feed(store.changes().heartbeat(HEARTBEAT))
            .build()
            .unwrap();
        let keys = KeyManager::builder(cached.clone()).store_deadline(PATIENT).build().unwrap();
        let others = KeyManager::builder(direct.clone()).store_deadline(PATIENT).build().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let made = others.create(&actor(), new()).await.unwrap();
            let secret = made.secret.expose_secret();
            keys.verify(secret, None).await.unwrap();
            others.update(&actor(), &made.key.id, KeyPatch::revoke()).await.unwrap();
            keys.verify(secret, None).await.unwrap_err();
            assert_eq!(cached.health().state, CacheState::Bypassed);
            others.delete(&actor(), &made.key.id).await.unwrap();
        }
        let news = recorder.all();
        assert!(!news.iter().any(|news| matches!(news, News::UpToDate { .. })), "{news:?}");
        assert!(news.contains(&News::Missed), "it has listened");
    }
}
