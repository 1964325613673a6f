//! Announced changes, and proofs that never cover too much.

use std::time::{Duration, Instant};

use keygate::store::{ChangeFeed, KeyUse, News, OrgLimit, Revision};
use keygate::{Actor, ApiKey, KeyId, KeyManager, KeyPatch, KeyStore, NewKey};
use tokio::task::JoinSet;

use crate::postgres_support::{PATIENT, Schema, count, key, new_key, org};
use crate::recorder::{Recorder, changed, proves};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn each_change_is_announced_and_a_use_is_not() {
    let schema = Schema::new();
    let (store, other) = (schema.store().await, schema.store().await);
    let recorder = Recorder::by(&store);
    recorder.proof().await;
    assert_eq!(recorder.all()[0], News::Missed);
    let key = key(1);
    assert_eq!(recorder.of(other.insert(&key, OrgLimit::NONE)).await, changed(key.id));
    let uses = [KeyUse { id: key.id, at: key.created_at }];
    assert_eq!(recorder.of(other.record_uses(&uses)).await, []);
    assert!(other.get(&key.org, &key.id).await.unwrap().unwrap().last_used_at.is_some());
    let next = ApiKey { revision: Revision::new(2), ..key.clone() };
    assert_eq!(recorder.of(other.replace(&next, key.revision)).await, changed(key.id));
    let refused = async { other.replace(&next, key.revision).await.err().ok_or("replaced") };
    assert_eq!(recorder.of(refused).await, []);
    assert_eq!(recorder.of(other.delete(&key.org, &key.id, None)).await, changed(key.id));
    // The store's own changes are announced as well.
    assert_eq!(recorder.of(store.insert(&key, OrgLimit::NONE)).await, changed(key.id));

    let keys = KeyManager::builder(other).store_deadline(PATIENT).build().unwrap();
    let actor = Actor::new(org("acme"), "tester");
    let id = keys.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap().key.id;
    assert_eq!(recorder.of(keys.rotate(&actor, &id)).await, changed(id));
    for patch in [KeyPatch::revoke(), KeyPatch::enable()] {
        assert_eq!(recorder.of(keys.update(&actor, &id, patch)).await, changed(id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn manual_changes_are_announced_when_their_transaction_commits() {
    let schema = Schema::new();
    let store = schema.store().await;
    let (key, moved) = (key(1), key(2));
    store.insert(&key, OrgLimit::NONE).await.unwrap();
    let (recorder, db) = (Recorder::by(&store), schema.db().await);
    let by_hand = async |sql: &str| recorder.of(db.batch_execute(sql)).await;
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
        let news = by_hand(&format!("UPDATE keys SET {column} = {value}")).await;
        assert_eq!(news, changed(key.id), "{column}");
    }
    assert_eq!(by_hand("UPDATE keys SET last_used_at = 1").await, []);
    let columns = format!(
        "SELECT count(*) FROM information_schema.columns \
             WHERE table_name = 'keys' AND table_schema = '{}' AND column_name <> 'active_day'",
        schema.name
    );
    assert_eq!(count(&db, &columns).await, 15, "a new one is to be announced, too");

    let both = by_hand(&format!("UPDATE keys SET id = '{}'", moved.id)).await;
    assert_eq!(both, [News::Changed(key.id), News::Changed(moved.id)]);
    assert_eq!(by_hand("BEGIN; UPDATE keys SET status = 'active'; ROLLBACK").await, []);
    let replicated = "SET session_replication_role = replica; \
                          UPDATE keys SET status = 'active'; RESET session_replication_role";
    assert_eq!(by_hand(replicated).await, changed(moved.id));
    // While the transaction is open, nothing is announced.
    assert_eq!(by_hand("BEGIN; DELETE FROM keys").await, []);
    assert_eq!(by_hand("COMMIT").await, changed(moved.id));
    assert_eq!(by_hand("TRUNCATE keys").await, [News::Missed]);
    // As documented.
    let all = "SELECT pg_notify(channel || ' ' || tableoid, '*') FROM keygate.schema_version";
    assert_eq!(by_hand(&all.replace("keygate", &schema.name)).await, [News::Missed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_proof_follows_every_change_committed_before_it() {
    let schema = Schema::new();
    let store = schema.store().await;
    let recorder = Recorder::by(&store);
    recorder.proof().await;
    let mut writers = JoinSet::new();
    for n in 0..6 {
        let (options, db) = (schema.options().connections(1), schema.db().await);
        writers.spawn(async move {
            let store = options.connect().await.unwrap();
            let mut acknowledged = Vec::new();
            for round in 0..150 {
                let key = new_key(&org(&format!("org-{n}")));
                store.insert(&key, OrgLimit::NONE).await.unwrap();
                let mut id = key.id;
                if round % 5 == 0 {
                    // A long transaction.
                    id = KeyId::from_bytes(*key.digest.as_bytes().first_chunk().unwrap());
                    let sql = format!(
                        "BEGIN; UPDATE keys SET id = '{id}' WHERE id = '{}'; \
                         SELECT pg_sleep(0.02); COMMIT",
                        key.id
                    );
                    db.batch_execute(&sql).await.unwrap();
                }
                acknowledged.push((id, Instant::now()));
            }
            acknowledged
        });
    }
    let acknowledged = writers.join_all().await.concat();
    recorder.proof().await;
    let news = recorder.all();
    assert!(!news[1..].contains(&News::Missed));
    for (id, at) in acknowledged {
        let change = news.iter().position(|n| *n == News::Changed(id)).unwrap();
        let proof = news.iter().position(|n| proves(n, at)).unwrap();
        assert!(change < proof, "{change} is behind {proof}");
    }
}

/// Announcements queued in the server for one listener would block the queue for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_feed_that_is_not_polled_is_closed_and_starts_again() {
    let schema = Schema::new();
    let store = schema.store().await;
    store.insert(&key(1), OrgLimit::NONE).await.unwrap();
    let mut feed = store.changes();
    while !matches!(feed.next().await, News::UpToDate { .. }) {}
    schema.until_listeners(1).await;
    let many = "INSERT INTO keys SELECT gen_random_uuid(), org, name, key_prefix, \
             sha256(n::text::bytea), status, allowlist, created_at, NULL, NULL, NULL, 1 \
             FROM keys, generate_series(1, 30000) AS n";
    schema.db().await.batch_execute(many).await.unwrap();
    schema.until_listeners(0).await;
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_dropped_call_loses_no_announcement() {
    let schema = Schema::new();
    let store = schema.store().await;
    let mut feed = store.changes();
    let mut next = async || loop {
        let soon = Duration::from_millis(1);
        if let Ok(news) = tokio::time::timeout(soon, feed.next()).await {
            return news;
        }
    };
    while !matches!(next().await, News::UpToDate { .. }) {}
    let keys: Vec<_> = (0..100).map(|_| new_key(&org("acme"))).collect();
    let written = keys.clone();
    let writer = tokio::spawn(async move {
        for key in written {
            store.insert(&key, OrgLimit::NONE).await.unwrap();
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
}
