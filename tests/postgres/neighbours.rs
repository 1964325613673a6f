//! Locked rows and tables, and busy organisations, delay only the work that needs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use keygate::audit::{AuditQuery, AuditScope};
use keygate::manager::RequestInfo;
use keygate::store::{KeyUse, OrgLimit, Revision};
use keygate::{
    Actor, ApiKey, AuditLog, AuditSink, KeyManager, KeyPatch, KeyStore, NewKey, PostgresStore,
    StoreError, Timestamp,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::change;
use crate::locked::{DEADLINE, at_next};
use crate::postgres_support::{Schema, count, key, new_key, org, url};
use crate::proxy::{Network, Proxy, address};
use crate::sessions::unlock;
use crate::support::eventually;

/// The default that the documentation of `PostgresOptions::connections` promises.
const MOST_SESSIONS: i64 = 11;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_while_the_table_of_requests_is_locked_changes_are_made_and_recorded() {
    let schema = Schema::new();
    let store = schema.options().deadline(DEADLINE).connect().await.unwrap();
    let keys = KeyManager::builder(store.clone()).audit(Arc::new(store)).build().unwrap();
    let actor = Actor::new(org("acme"), "ada");
    let issued = keys.create(&actor, NewKey::named("CI").unwrap()).await.unwrap();
    let db = schema.lock("LOCK TABLE requests IN ACCESS EXCLUSIVE MODE").await;
    let mut passed = 0;
    for round in 0..10 {
        let request = RequestInfo::new("GET", "/");
        let admitted = keys.admit(issued.secret.expose_secret(), request).await.unwrap();
        admitted.finish(200).await.unwrap();
        let waiting = schema.until_lock_wait().await;
        let new = format!("name {round}").parse().unwrap();
        keys.update(&actor, &issued.key.id, KeyPatch::rename(new)).await.unwrap();
        passed += usize::from(schema.lock_waits().await == waiting);
    }
    assert!(passed > 0, "each change waited until that batch of requests was given up");
    unlock(db).await;
    let report = keys.shutdown(Duration::from_secs(10)).await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(count(&schema.db().await, "SELECT count(*) FROM requests").await, 10);
}

/// However many changes wait for a lock, most of them wait without a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_changes_to_one_key_or_organisation_do_not_take_all_connections() {
    let schema = Schema::new();
    let store = schema.options().deadline(DEADLINE).connect().await.unwrap();
    let keys: Vec<_> = (0..8).map(|_| new_key(&org("acme"))).collect();
    for key in &keys {
        store.insert(key, OrgLimit::NONE).await.unwrap();
    }
    let rows = "SELECT 1 FROM keys FOR UPDATE; SELECT 1 FROM organisations FOR UPDATE";
    let db = schema.lock(rows).await;
    for (changed, creations, most) in [(1, 0, 1), (0, 8, 1), (8, 8, 2)] {
        let mut waiting = JoinSet::new();
        for key in keys[..changed].iter().cycle().take(8) {
            let (store, edit) = (store.clone(), at_next(key));
            waiting.spawn(async move { store.replace(&edit, Revision::FIRST).await });
        }
        for _ in 0..creations {
            let (store, new) = (store.clone(), new_key(&org("acme")));
            waiting.spawn(async move { store.insert(&new, OrgLimit::NONE).await });
        }
        schema.until_lock_wait().await;
        let mut seen = 0;
        while !waiting.is_empty() {
            seen = seen.max(schema.lock_waits().await.len());
            while let Some(done) = waiting.try_join_next() {
                done.unwrap().unwrap_err();
            }
        }
        assert!((1..=most).contains(&seen), "{seen} wait for {most}");
    }
    unlock(db).await;
}

/// Also if the tables of keys and of last uses are not locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn health_reports_failing_changes_while_a_table_they_need_is_locked() {
    let schema = Schema::new();
    let store = schema.options().deadline(DEADLINE).connect().await.unwrap();
    let keys = KeyManager::builder(store).build().unwrap();
    let until_changes_work = async |work: bool| {
        eventually(&format!("changes work: {work}"), async || {
            let report = keys.health().await;
            assert!(report.lookups.works(), "{report:?}");
            report.changes.works() == work
        })
        .await;
    };
    for table in ["organisations IN EXCLUSIVE", "schema_version IN ACCESS EXCLUSIVE"] {
        until_changes_work(true).await;
        let db = schema.lock(&format!("LOCK TABLE {table} MODE")).await;
        until_changes_work(false).await;
        unlock(db).await;
    }
    until_changes_work(true).await;
}

/// The regular work of another organisation on the same store.
async fn undisturbed(store: &PostgresStore, name: &str, seconds: u64) {
    let mut current = new_key(&org(name));
    store.insert(&current, OrgLimit::NONE).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        assert!(store.find_by_digest(&current.digest).await.unwrap().is_some());
        let edit = at_next(&current);
        store.replace(&edit, current.revision).await.unwrap();
        current = edit;
        let new = new_key(&current.org);
        store.insert(&new, OrgLimit::NONE).await.unwrap();
        store.delete(&new.org, &new.id, None).await.unwrap();
        let used = KeyUse { id: current.id, at: current.created_at };
        store.record_uses(&[used]).await.unwrap();
        store.record(&[change("ada")]).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_a_locked_row_blocks_only_that_row() {
    let schema = Schema::new();
    let store = schema.options().deadline(DEADLINE * 4).connect().await.unwrap();
    let same = new_key(&org("same"));
    store.insert(&same, OrgLimit::NONE).await.unwrap();
    // Many rows of one organisation, and one row of each of the others.
    let mut locked = vec![key(1)];
    locked.extend((0..20).map(|_| new_key(&key(1).org)));
    locked.extend((0..60).map(|n| new_key(&org(&format!("locked {n}")))));
    for key in &locked {
        store.insert(key, OrgLimit::NONE).await.unwrap();
    }
    let rows = "SELECT 1 FROM keys WHERE org <> 'same' FOR UPDATE; \
                SELECT 1 FROM organisations WHERE org <> 'same' FOR UPDATE";
    let db = schema.lock(rows).await;

    let mut others = JoinSet::new();
    for locked in locked {
        let store = store.clone();
        others.spawn(async move {
            loop {
                store.replace(&at_next(&locked), Revision::FIRST).await.unwrap_err();
                store.insert(&new_key(&locked.org), OrgLimit::NONE).await.unwrap_err();
            }
        });
    }
    let most = AtomicI64::new(0);
    let count_sessions = async {
        let db = schema.db().await;
        loop {
            most.fetch_max(schema.sessions(&db).await, Ordering::Relaxed);
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = undisturbed(&store, "globex", 5) => {}
        () = count_sessions => {}
    }
    // Of a batch with the locked key, the other uses are written.
    let at = Timestamp::from_unix_micros(1_800_000_000_000_000).unwrap();
    let uses = [&key(1), &same].map(|key| KeyUse { id: key.id, at });
    let recorded = store.record_uses(&uses).await;
    assert!(matches!(recorded, Err(StoreError::Unavailable(_))), "{recorded:?}");
    let last_use =
        async |key: &ApiKey| store.get(&key.org, &key.id).await.unwrap().unwrap().last_used_at;
    assert_eq!((last_use(&key(1)).await, last_use(&same).await), (None, Some(at)));

    others.shutdown().await;
    unlock(db).await;
    store.record_uses(&uses).await.unwrap();
    assert_eq!(last_use(&key(1)).await, Some(at));
    let most = most.load(Ordering::Relaxed);
    assert!((1..=MOST_SESSIONS).contains(&most), "{most} sessions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_a_locked_table_blocks_only_the_operations_that_need_it() {
    let schema = Schema::new();
    let store = schema.options().deadline(DEADLINE).connect().await.unwrap();
    store.insert(&key(1), OrgLimit::NONE).await.unwrap();
    for table in ["requests", "changes"] {
        let db = schema.lock(&format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await;
        let read_pages = async {
            for scope in [AuditScope::OrgChanges, AuditScope::KeyRequests(key(1).id)].repeat(4) {
                let _ = store.page(&AuditQuery::new(org("acme"), scope)).await;
            }
        };
        let make_changes = async {
            let own = new_key(&org(table));
            for _ in 0..20 {
                store.insert(&own, OrgLimit::NONE).await.unwrap();
                assert!(store.find_by_digest(&own.digest).await.unwrap().is_some());
                store.record_uses(&[KeyUse { id: own.id, at: own.created_at }]).await.unwrap();
                store.delete(&own.org, &own.id, None).await.unwrap();
            }
        };
        tokio::join!(read_pages, make_changes);
        unlock(db).await;
    }
    // Reads work while the keys cannot be changed, and health shows it.
    let db = schema.lock("LOCK TABLE keys IN SHARE MODE").await;
    let probe = store.record_uses(&[]).await;
    assert!(matches!(probe, Err(StoreError::Unavailable(_))), "{probe:?}");
    assert!(store.find_by_digest(&key(1).digest).await.unwrap().is_some());
    unlock(db).await;
    store.record_uses(&[]).await.unwrap();
    let now = schema.sessions(&schema.db().await).await;
    assert!(now <= MOST_SESSIONS, "{now} sessions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_46_one_organisations_creations_do_not_delay_those_of_others() {
    let schema = Schema::new();
    let proxy = Proxy::start(address(&url())).await;
    let far = schema.options_at(&proxy.url(&url())).deadline(DEADLINE);
    let store = far.connect().await.unwrap();
    proxy.set(Network::Slow(Duration::from_millis(5)));
    let mut busy = JoinSet::new();
    for _ in 0..57 {
        let store = store.clone();
        busy.spawn(async move {
            loop {
                let new = new_key(&org("busy"));
                if store.insert(&new, OrgLimit::NONE).await.is_ok() {
                    let _ = store.delete(&new.org, &new.id, None).await;
                }
            }
        });
    }
    sleep(Duration::from_millis(500)).await;
    for n in 0..20 {
        let new = new_key(&org(&format!("other {n}")));
        store.insert(&new, OrgLimit::NONE).await.unwrap();
    }
    busy.shutdown().await;
}
