//! Floods of announcements that say nothing, by other roles and on the schema's own channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keygate::{KeyStore, News, OrgLimit};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::postgres_support::{administrator, in_schema, key, schema_of, unique, url};
use crate::told::{Told, channel};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_51_a_role_without_rights_neither_finds_the_channel_nor_is_heard() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        let told = Told::by(&store);
        told.proof().await;
        let (role, administrator) = (unique("keygate_role"), administrator().await);
        administrator.batch_execute(&format!("CREATE ROLE {role} LOGIN")).await.unwrap();
        let (_, rest) = url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let other = format!("postgres://{role}@{rest}");
        let (other, connection) = tokio_postgres::connect(&other, NoTls).await.unwrap();
        tokio::spawn(connection);
        let secret = channel(&schema).await;
        let read = format!("SELECT channel FROM {schema}.schema_version");
        let denied = other.query(&read, &[]).await.unwrap_err();
        let visible = "SELECT (SELECT string_agg(prosrc, '') FROM pg_proc) || \
                       (SELECT string_agg(query, '') FROM pg_stat_activity)";
        let visible: String = other.query_one(visible, &[]).await.unwrap().get(0);
        let news = told
            .of(async {
                let flood = format!(
                    "SELECT pg_notify('{schema}', payload) FROM generate_series(1, 100), \
                     unnest(ARRAY['*', '{}', 'nonsense']) AS payload",
                    key(1).id
                );
                for _ in 0..20 {
                    other.batch_execute(&flood).await.unwrap();
                }
            })
            .await;
        administrator.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
        assert!(denied.to_string().contains("db error"), "{denied}");
        assert!(visible.contains("schema_version"), "it reads the functions");
        let random = secret.split(' ').next().unwrap();
        assert!(!visible.contains(random), "another role can read the channel");
        assert_eq!(news, []);
    })
    .await;
}

/// Announces those payloads on the schema's own channel, one after the other and all
/// over again, until it is told to stop; how many.
pub(crate) fn flood(channel: String, stop: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let db = administrator().await;
        let say = db.prepare("SELECT pg_notify($1, $2)").await.unwrap();
        let mut said = 0;
        while !stop.load(Ordering::SeqCst) {
            for payload in ["*", "", "nonsense", "**", "00000000-0000-0000-0000"] {
                db.query(&say, &[&channel, &payload]).await.unwrap();
                said += 1;
            }
        }
        said
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_51_a_flood_costs_one_reload_a_heartbeat() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let told = Told::by(&store);
        let from = told.proof().await;
        let stop = Arc::default();
        let flooding = flood(channel(&schema).await, &stop);
        let mut to = from;
        for _ in 0..20 {
            to = told.proof().await;
        }
        stop.store(true, Ordering::SeqCst);
        let said = flooding.await.unwrap();
        let news = &told.all()[from + 1..=to];
        let missed = news.iter().filter(|news| **news == News::Missed).count();
        let proofs = news.len() - missed;
        assert!(said > 200, "no flood: {said}");
        assert!((1..=proofs).contains(&missed), "{said} said, {proofs} proofs: {missed} missed");
    })
    .await;
}
