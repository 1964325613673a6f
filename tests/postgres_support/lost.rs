//! Feeds whose connection is lost, goes silent, or leads through a pooler.

use std::time::{Duration, Instant};

use keygate::store::{CacheState, News, OrgLimit, PostgresOptions};
use keygate::{Actor, CachedStore, KeyManager, KeyPatch, KeyStore, NewKey};

use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::pgbouncer::PgBouncer;
use crate::postgres_support::{
    PATIENT, administrator, in_schema, key, org, schema_of, unique, url,
};
use crate::proxy::{Network, Proxy, address};
use crate::recorder::{HEARTBEAT, REACH, Recorder, changed, listeners, proves, until_listeners};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_killed_session_is_reported_and_replaced() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let recorder = Recorder::by(&store);
        for _ in 0..3 {
            recorder.proof().await;
            let (from, pids) = (recorder.count(), listeners(&schema).await);
            let [pid] = pids[..] else { panic!("one connection listens: {pids:?}") };
            let kill = "SELECT pg_terminate_backend($1)";
            administrator().await.query(kill, &[&pid]).await.unwrap();
            let lost = recorder.wait(from, |news| *news == News::Missed).await;
            // Announced again when it listens again, before any proof.
            let next = recorder.wait(lost + 1, |_| true).await;
            assert_eq!(recorder.all()[next], News::Missed);
        }
        let news =
            recorder.of(async { store.insert(&key(1), OrgLimit::NONE).await.unwrap() }).await;
        assert_eq!(news, changed(key(1).id));
    })
    .await;
}

/// To the server, a session that only listens is idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_server_that_ends_idle_sessions_does_not_end_the_listening_one() {
    in_schema(|options| async move {
        let url = format!("{}?options=-c%20idle_session_timeout%3D500", url());
        let options = PostgresOptions::from_url(&url).unwrap().schema(schema_of(&options));
        let store = options.unwrap().deadline(PATIENT).connect().await.unwrap();
        let recorder = Recorder::by(&store);
        recorder.proof().await;
        let (from, later) = (recorder.count(), Instant::now() + Duration::from_millis(1_500));
        let proof = |news: &News| matches!(news, News::UpToDate { as_of } if *as_of > later);
        let until = recorder.wait(from, proof).await;
        assert!(!recorder.all()[from..until].contains(&News::Missed), "{:?}", recorder.all());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_dropped_feed_leaves_no_session_behind() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let recorder = [Recorder::by(&store), Recorder::by(&store)];
        for recorder in &recorder {
            recorder.proof().await;
        }
        until_listeners(&schema, 2).await;
        drop(recorder);
        until_listeners(&schema, 0).await;
        let cached = CachedStore::builder(store.clone(), Duration::from_secs(1))
            .feed(store.changes())
            .build()
            .unwrap();
        until_listeners(&schema, 1).await;
        drop(cached);
        until_listeners(&schema, 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_cut_network_gives_no_proof_until_it_is_restored() {
    in_schema(|options| async move {
        let store = options.clone().connect().await.unwrap();
        let proxy = Proxy::start(address(&url())).await;
        let far = PostgresOptions::from_url(&proxy.url(&url())).unwrap();
        let far = far.schema(schema_of(&options)).unwrap().deadline(REACH).connect().await.unwrap();
        let recorder = Recorder::by(&far);
        for cut in [Network::Silent, Network::Closed, Network::Silent] {
            recorder.proof().await;
            let from = recorder.count();
            proxy.set(cut);
            let at = Instant::now();
            let lost = recorder.wait(from, |news| *news == News::Missed).await;
            store
                .insert(&crate::postgres_support::new_key(&org("acme")), OrgLimit::NONE)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            let since = &recorder.all()[from..];
            assert!(!since.iter().any(|news| proves(news, at)), "{cut:?}: {since:?}");
            assert_eq!(since.len(), lost - from + 1, "{cut:?}: one loss is reported once");
            proxy.set(Network::Intact);
            let again = recorder.wait(lost + 1, |_| true).await;
            assert_eq!(recorder.all()[again], News::Missed);
        }
        let id = key(1).id;
        let news =
            recorder.of(async { store.insert(&key(1), OrgLimit::NONE).await.unwrap() }).await;
        assert_eq!(news, changed(id));
    })
    .await;
}

/// The store has moved to another server, but the listener's server still runs: its
/// announcements are not about the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_listener_on_another_server_than_the_store_is_dropped() {
    in_schema(|options| async move {
        let cluster = Cluster::start();
        let config: tokio_postgres::Config = url().parse().unwrap();
        let database = config.get_dbname().unwrap();
        if database != "postgres" {
            cluster.sql(&format!("CREATE DATABASE {database}"));
        }
        let (schema, name) = (schema_of(&options), unique("kg"));
        let there = format!("postgres://postgres@127.0.0.1:{}/{database}", cluster.port());
        let there = PostgresOptions::from_url(&there).unwrap().schema(&schema).unwrap();
        drop(there.deadline(PATIENT).connect().await.unwrap());
        let proxy = Proxy::start(address(&url())).await;
        let store = format!("{}?application_name={name}", proxy.url(&url()));
        let store = PostgresOptions::from_url(&store).unwrap().schema(&schema).unwrap();
        let store = store.deadline(REACH).connect().await.unwrap();
        let recorder = Recorder::by(&store);
        recorder.proof().await;
        let [listener] = listeners(&schema).await[..] else { panic!("one connection listens") };
        proxy.redirect(format!("127.0.0.1:{}", cluster.port()));
        let from = recorder.count();
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE application_name = $1 AND pid <> $2";
        let killed = administrator().await.query(kill, &[&name, &listener]).await.unwrap();
        assert_eq!(killed.len(), 10, "look-ups: 2, changes: 4, uses: 1, records: 2, pages: 1");
        recorder.wait(from, |news| *news == News::Missed).await;
        until_listeners(&schema, 0).await;
        recorder.proof().await;
    })
    .await;
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
        let actor = Actor::new(org(&unique("acme")), "tester");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let new = NewKey::named("CI deploy").unwrap();
            let made = others.create(&actor, new).await.unwrap();
            let secret = made.secret.expose_secret();
            keys.verify(secret, None).await.unwrap();
            others.update(&actor, &made.key.id, KeyPatch::revoke()).await.unwrap();
            keys.verify(secret, None).await.unwrap_err();
            assert_eq!(cached.health().state, CacheState::Bypassed);
            others.delete(&actor, &made.key.id).await.unwrap();
        }
        let news = recorder.all();
        assert!(!news.iter().any(|news| matches!(news, News::UpToDate { .. })), "{news:?}");
        assert!(news.contains(&News::Missed), "it has listened");
    }
}
