//! Announced changes, and proofs that never cover too much.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keygate::store::{KeyUse, News, OrgLimit, Revision};
use keygate::{Actor, ApiKey, KeyManager, KeyPatch, KeyStore, NewKey};

use crate::postgres_support::{PATIENT, administrator, in_schema, key, new_key, org, schema_of};
use crate::recorder::{Recorder, changed, proves};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn each_change_is_announced_and_a_use_is_not() {
    in_schema(|options| async move {
        let (store, other) =
            (options.clone().connect().await.unwrap(), options.connect().await.unwrap());
        let recorder = Recorder::by(&store);
        recorder.proof().await;
        assert_eq!(recorder.all()[0], News::Missed);
        let key = key(1);
        let inserted =
            recorder.of(async { other.insert(&key, OrgLimit::NONE).await.unwrap() }).await;
        assert_eq!(inserted, changed(key.id));
        let uses = [KeyUse { id: key.id, at: key.created_at }];
        let used = recorder.of(async { other.record_uses(&uses).await.unwrap() }).await;
        assert_eq!(used, []);
        assert!(other.get(&key.org, &key.id).await.unwrap().unwrap().last_used_at.is_some());
        let next = ApiKey { revision: Revision::new(2), ..key.clone() };
        let replaced =
            recorder.of(async { other.replace(&next, key.revision).await.unwrap() }).await;
        assert_eq!(replaced, changed(key.id));
        let refused = recorder
            .of(async {
                other.replace(&next, key.revision).await.unwrap_err();
            })
            .await;
        assert_eq!(refused, []);
        let deleted =
            recorder.of(async { other.delete(&key.org, &key.id, None).await.unwrap() }).await;
        assert_eq!(deleted, changed(key.id));
        // The store's own changes are announced as well.
        let inserted =
            recorder.of(async { store.insert(&key, OrgLimit::NONE).await.unwrap() }).await;
        assert_eq!(inserted, changed(key.id));

        let keys = KeyManager::builder(other).store_deadline(PATIENT).build().unwrap();
        let actor = Actor::new(org("acme"), "tester");
        let issued = keys.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap();
        let id = issued.key.id;
        let rotated = recorder.of(async { drop(keys.rotate(&actor, &id).await.unwrap()) }).await;
        assert_eq!(rotated, changed(id));
        for patch in [KeyPatch::revoke(), KeyPatch::enable()] {
            let updated =
                recorder.of(async { drop(keys.update(&actor, &id, patch).await.unwrap()) }).await;
            assert_eq!(updated, changed(id));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn manual_changes_are_announced_when_their_transaction_commits() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let (key, moved) = (key(1), key(2));
        store.insert(&key, OrgLimit::NONE).await.unwrap();
        let recorder = Recorder::by(&store);
        let db = administrator().await;
        let by_hand = async |sql: String| {
            let sql = sql.replace("{keys}", &format!("{schema}.keys"));
            recorder.of(async { db.batch_execute(&sql).await.unwrap() }).await
        };
        for (column, value) in [
            ("org", "org || '2'"),
            ("name", "name || '2'"),
            ("key_prefix", "key_prefix || '2'"),
            ("digest", "sha256(digest)"),
            ("status", "'revoked'"),
            ("allowlist", "'{}'"),
            ("created_at", "created_at + 1"),
            ("expires_at", "1"),
            ("rotated_at", "1"),
            ("revision", "revision + 1"),
            ("attributes", "'{\"a\":1}'"),
            ("previous_digest", "sha256('old')"),
            ("previous_until", "1"),
        ] {
            let news = by_hand(format!("UPDATE {{keys}} SET {column} = {value}")).await;
            assert_eq!(news, changed(key.id), "{column}");
        }
        let used = by_hand("UPDATE {keys} SET last_used_at = 1".to_owned()).await;
        assert_eq!(used, []);
        let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'keys' \
                       AND table_schema = $1";
        let columns: i64 = db.query_one(columns, &[&schema]).await.unwrap().get(0);
        assert_eq!(columns, 15, "a new one is to be announced, too");

        let both = by_hand(format!("UPDATE {{keys}} SET id = '{}'", moved.id)).await;
        assert_eq!(both, [News::Changed(key.id), News::Changed(moved.id)]);
        let back = "BEGIN; UPDATE {keys} SET status = 'active'; ROLLBACK".to_owned();
        assert_eq!(by_hand(back).await, []);
        let replicated = "SET session_replication_role = replica; \
                          UPDATE {keys} SET status = 'active'; RESET session_replication_role";
        assert_eq!(by_hand(replicated.to_owned()).await, changed(moved.id));
        // While the transaction is open, nothing is announced.
        let open = "BEGIN; DELETE FROM {keys}".to_owned();
        assert_eq!(by_hand(open).await, []);
        assert_eq!(by_hand("COMMIT".to_owned()).await, changed(moved.id));
        assert_eq!(by_hand("TRUNCATE {keys}".to_owned()).await, [News::Missed]);
        // As documented.
        let all = "SELECT pg_notify(channel || ' ' || tableoid, '*') FROM keygate.schema_version";
        assert_eq!(by_hand(all.replace("keygate", &schema)).await, [News::Missed]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_proof_follows_every_change_committed_before_it() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.clone().connect().await.unwrap();
        let recorder = Arc::new(Recorder::by(&store));
        recorder.proof().await;
        let writers: Vec<_> = (0..6)
            .map(|n| {
                let (options, schema) = (options.clone(), schema.clone());
                tokio::spawn(async move {
                    let store = options.connect().await.unwrap();
                    let db = administrator().await;
                    let mut acknowledged = Vec::new();
                    for round in 0..150 {
                        let key = new_key(&org(&format!("org-{n}")));
                        store.insert(&key, OrgLimit::NONE).await.unwrap();
                        let mut id = key.id;
                        if round % 5 == 0 {
                            // A long transaction.
                            id = keygate::KeyId::from_bytes(
                                key.digest.as_bytes()[..16].try_into().unwrap(),
                            );
                            let sql = format!(
                                "BEGIN; UPDATE {schema}.keys SET id = '{id}' WHERE id = '{}'; \
                                 SELECT pg_sleep(0.02); COMMIT",
                                key.id
                            );
                            db.batch_execute(&sql).await.unwrap();
                        }
                        acknowledged.push((id, Instant::now()));
                    }
                    acknowledged
                })
            })
            .collect();
        let mut acknowledged = Vec::new();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        recorder.proof().await;
        let news = recorder.all();
        assert!(!news[1..].contains(&News::Missed));
        for (id, at) in acknowledged {
            let change = news.iter().position(|n| *n == News::Changed(id)).unwrap();
            let proof = news.iter().position(|n| proves(n, at)).unwrap();
            assert!(change < proof, "{change} is behind {proof}");
        }
    })
    .await;
}

/// Announcements queued in the server for one listener would block the queue for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_feed_that_is_not_polled_is_closed_and_starts_again() {
    use keygate::store::ChangeFeed;
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        let mut feed = store.changes();
        while !matches!(feed.next().await, News::UpToDate { .. }) {}
        crate::recorder::until_listeners(&schema, 1).await;
        let many = format!(
            "INSERT INTO {schema}.keys SELECT gen_random_uuid(), org, name, key_prefix, \
             sha256(n::text::bytea), status, allowlist, created_at, NULL, NULL, NULL, 1 \
             FROM {schema}.keys, generate_series(1, 30000) AS n"
        );
        administrator().await.batch_execute(&many).await.unwrap();
        crate::recorder::until_listeners(&schema, 0).await;
        let mut changes = 0;
        loop {
            match feed.next().await {
                News::Changed(_) => changes += 1,
                News::UpToDate { .. } => {}
                News::Missed => break,
            }
        }
        assert!(changes < 30_000);
        let now = Instant::now();
        while !proves(&feed.next().await, now) {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_dropped_call_loses_no_announcement() {
    use keygate::store::ChangeFeed;
    in_schema(|options| async move {
        let store = options.connect().await.unwrap();
        let mut feed = store.changes();
        let mut next = async || loop {
            let soon = Duration::from_millis(1);
            if let Ok(news) = tokio::time::timeout(soon, feed.next()).await {
                return news;
            }
        };
        while !matches!(next().await, News::UpToDate { .. }) {}
        let keys: Vec<_> = (0..100).map(|_| new_key(&org("acme"))).collect();
        let writer = tokio::spawn({
            let keys = keys.clone();
            async move {
                for key in keys {
                    store.insert(&key, OrgLimit::NONE).await.unwrap();
                }
            }
        });
        let mut announced = Vec::new();
        while announced.len() < keys.len() {
            match next().await {
                News::Changed(id) => announced.push(id),
                News::UpToDate { .. } => {}
                News::Missed => panic!("nothing was missed"),
            }
        }
        assert_eq!(announced, keys.iter().map(|key| key.id).collect::<Vec<_>>());
        writer.await.unwrap();
    })
    .await;
}
