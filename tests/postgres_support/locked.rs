//! Rows and tables locked by others, and statements that arrive late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use keygate::manager::RequestInfo;
use keygate::store::{KeyDigest, KeyUse, OrgLimit, PostgresOptions, Revision};
use keygate::{
    Actor, ApiKey, AuditSink, KeyManager, KeyPatch, KeyStore, NewKey, PostgresStore, Status,
    StoreError, Timestamp,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::postgres_support::{
    PATIENT, administrator, change, in_schema, in_session, key, new_key, org, schema_of,
    sessions_end, unique, url,
};
use crate::proxy::{Network, Proxy, Side, address};

const DEADLINE: Duration = Duration::from_secs(1);
/// The default that the documentation of `PostgresOptions::connections` promises.
const MOST_SESSIONS: i64 = 11;

fn at_next(key: &ApiKey, change: impl FnOnce(&mut ApiKey)) -> ApiKey {
    let mut changed = ApiKey { revision: key.revision.next(), ..key.clone() };
    change(&mut changed);
    changed
}

fn revoked(n: u8) -> ApiKey {
    ApiKey { status: Status::Revoked, ..key(n) }
}

/// Three kinds of change to the keys 1 to 3, and a creation.
async fn all_changes(store: &PostgresStore) -> [Result<(), StoreError>; 4] {
    let enabled = at_next(&revoked(1), |key| key.status = Status::Active);
    let rotated = at_next(&revoked(2), |key| key.digest = KeyDigest::of("rotated"));
    let (deleted, created) = (revoked(3), key(4));
    let (a, b, c, d) = tokio::join!(
        store.replace(&enabled, Revision::FIRST),
        store.replace(&rotated, Revision::FIRST),
        store.delete(&deleted.org, &deleted.id, None),
        store.insert(&created, OrgLimit::NONE),
    );
    [a, b, c, d]
}

/// None of [`all_changes`] has taken place.
async fn assert_nothing_changed(store: &PostgresStore) {
    for n in 1..=3 {
        let found = store.get(&key(n).org, &key(n).id).await.unwrap();
        assert_eq!(*found.unwrap(), revoked(n), "key {n}");
    }
    assert_eq!(store.get(&key(4).org, &key(4).id).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_44_a_change_that_timed_out_on_a_lock_never_takes_effect() {
    in_schema(|options| async move {
        let direct = options.clone().connect().await.unwrap();
        for n in 1..=3 {
            direct.insert(&revoked(n), OrgLimit::NONE).await.unwrap();
        }
        let schema = schema_of(&options);
        for lock in [
            format!(
                "SELECT 1 FROM {schema}.keys FOR UPDATE; \
                 SELECT 1 FROM {schema}.organisations FOR UPDATE"
            ),
            format!("LOCK TABLE {schema}.keys IN EXCLUSIVE MODE"),
        ] {
            let name = unique("keygate_locked");
            let store = in_session(&schema, &name).deadline(DEADLINE).connect().await.unwrap();
            let db = administrator().await;
            db.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
            for changed in all_changes(&store).await {
                // The server has given up, so the outcome is known.
                assert!(matches!(changed, Err(StoreError::Unavailable(_))), "{changed:?}");
            }
            drop(store);
            db.batch_execute("ROLLBACK").await.unwrap();
            sessions_end(&name).await;
            assert_nothing_changed(&direct).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_44_a_cancelled_change_does_not_wait_for_its_lock_forever() {
    in_schema(|options| async move {
        let name = unique("keygate_gone");
        let options = in_session(&schema_of(&options), &name).deadline(DEADLINE);
        let store = options.clone().connect().await.unwrap();
        store.insert(&revoked(1), OrgLimit::NONE).await.unwrap();
        let db = administrator().await;
        let schema = schema_of(&options);
        let lock = format!("BEGIN; SELECT 1 FROM {schema}.keys FOR UPDATE");
        db.batch_execute(&lock).await.unwrap();
        let enabled = at_next(&revoked(1), |key| key.status = Status::Active);
        let dropped = tokio::time::timeout(
            Duration::from_millis(200),
            store.replace(&enabled, Revision::FIRST),
        );
        assert!(dropped.await.is_err());
        let waits = "SELECT count(*) FROM pg_stat_activity \
                     WHERE application_name = $1 AND wait_event_type = 'Lock'";
        let administrator = administrator().await;
        let begun = Instant::now();
        loop {
            let waiting: i64 = administrator.query_one(waits, &[&name]).await.unwrap().get(0);
            if waiting == 0 {
                break;
            }
            assert!(begun.elapsed() < PATIENT, "the change still waits for the lock");
            sleep(Duration::from_millis(5)).await;
        }
        db.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(*store.get(&key(1).org, &key(1).id).await.unwrap().unwrap(), revoked(1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_44_a_change_that_arrives_late_changes_nothing() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let direct = options.connect().await.unwrap();
        for n in 1..=3 {
            direct.insert(&revoked(n), OrgLimit::NONE).await.unwrap();
        }
        for prepared in [true, false] {
            let proxy = Proxy::start(address(&url())).await;
            let name = unique("keygate_late");
            let mut config: tokio_postgres::Config = proxy.url(&url()).parse().unwrap();
            config.application_name(&name);
            let options = PostgresOptions::new(config).schema(&schema).unwrap();
            let store = options.deadline(DEADLINE).prepared(prepared).connect().await.unwrap();
            // Every connection is open, and its statements are prepared.
            for _ in 0..8 {
                let own = new_key(&org("own"));
                store.insert(&own, OrgLimit::NONE).await.unwrap();
                let edit = at_next(&own, |_| {});
                store.replace(&edit, own.revision).await.unwrap();
                store.delete(&own.org, &own.id, None).await.unwrap();
            }
            proxy.set_on(Side::ToServer, Network::Slow(DEADLINE * 3 / 2));
            // Two are under way at a time; the others have not begun.
            let errors = all_changes(&store).await.map(|changed| changed.unwrap_err());
            let on_their_way = errors.iter().filter(|e| matches!(e, StoreError::InDoubt(_)));
            assert_eq!(on_their_way.count(), 2, "{errors:?}");
            drop(store);
            sessions_end(&name).await;
            assert_nothing_changed(&direct).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_while_the_table_of_requests_is_locked_changes_are_made_and_recorded() {
    in_schema(|options| async move {
        let (schema, name) = (schema_of(&options), unique("keygate_requests"));
        let store = in_session(&schema, &name).deadline(DEADLINE).connect().await.unwrap();
        let log = Arc::new(store.clone());
        let keys = KeyManager::builder(store).audit(log).build().unwrap();
        let actor = Actor::new(org("acme"), "ada");
        let issued = keys.create(&actor, NewKey::named("CI").unwrap()).await.unwrap();
        let db = administrator().await;
        let lock = format!("BEGIN; LOCK TABLE {schema}.requests IN ACCESS EXCLUSIVE MODE");
        db.batch_execute(&lock).await.unwrap();
        let mut passed = 0;
        for round in 0..10 {
            let request = RequestInfo::new("GET", "/");
            let admitted = keys.admit(issued.secret.expose_secret(), request).await.unwrap();
            admitted.finish(200).await.unwrap();
            let waiting = until_lock_wait(&name).await;
            let new = format!("name {round}").parse().unwrap();
            keys.update(&actor, &issued.key.id, KeyPatch::rename(new)).await.unwrap();
            passed += usize::from(lock_waits(&name).await == waiting);
        }
        assert!(passed > 0, "each change waited until that batch of requests was given up");
        db.batch_execute("ROLLBACK").await.unwrap();
        let report = keys.shutdown(Duration::from_secs(10)).await;
        assert!(report.is_complete(), "{report:?}");
        let count = format!("SELECT count(*) FROM {schema}.requests");
        let records: i64 = db.query_one(&count, &[]).await.unwrap().get(0);
        assert_eq!(records, 10);
    })
    .await;
}

/// The sessions that wait for a lock, with the beginning of their statements.
async fn lock_waits(name: &str) -> Vec<(i32, SystemTime)> {
    let waits = "SELECT pid, query_start FROM pg_stat_activity \
                 WHERE application_name = $1 AND wait_event_type = 'Lock'";
    let rows = administrator().await.query(waits, &[&name]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn until_lock_wait(name: &str) -> Vec<(i32, SystemTime)> {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let waits = lock_waits(name).await;
        if !waits.is_empty() {
            return waits;
        }
        assert!(Instant::now() < give_up, "nothing waits for the lock");
        sleep(Duration::from_millis(1)).await;
    }
}

/// However many changes wait for a lock, most of them wait without a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_changes_to_one_key_or_organisation_do_not_take_all_connections() {
    in_schema(|options| async move {
        let (schema, name) = (schema_of(&options), unique("keygate_gates"));
        let store = in_session(&schema, &name).deadline(DEADLINE).connect().await.unwrap();
        let keys: Vec<_> = (0..8).map(|_| new_key(&org("acme"))).collect();
        for key in &keys {
            store.insert(key, OrgLimit::NONE).await.unwrap();
        }
        let db = administrator().await;
        let lock = format!(
            "BEGIN; SELECT 1 FROM {schema}.keys FOR UPDATE; \
             SELECT 1 FROM {schema}.organisations FOR UPDATE"
        );
        db.batch_execute(&lock).await.unwrap();
        for (wanted, creations, most) in [(&keys[..1], 0, 1), (&keys[..0], 8, 1), (&keys[..], 8, 2)]
        {
            let mut waiting = JoinSet::new();
            for key in wanted.iter().cycle().take(if wanted.is_empty() { 0 } else { 8 }) {
                let (store, edit) = (store.clone(), at_next(key, |_| {}));
                waiting.spawn(async move { store.replace(&edit, Revision::FIRST).await });
            }
            for _ in 0..creations {
                let (store, new) = (store.clone(), new_key(&org("acme")));
                waiting.spawn(async move { store.insert(&new, OrgLimit::NONE).await });
            }
            until_lock_wait(&name).await;
            let mut seen = 0;
            while !waiting.is_empty() {
                seen = seen.max(lock_waits(&name).await.len());
                while let Some(done) = waiting.try_join_next() {
                    done.unwrap().unwrap_err();
                }
            }
            assert!((1..=most).contains(&seen), "{seen} wait for {most}");
        }
        db.batch_execute("ROLLBACK").await.unwrap();
    })
    .await;
}

/// Also if the tables of keys and of last uses are not locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn health_reports_failing_changes_while_a_table_they_need_is_locked() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let keys = KeyManager::builder(options.deadline(DEADLINE).connect().await.unwrap());
        let keys = keys.build().unwrap();
        let db = administrator().await;
        let until_changes_work = async |work: bool| {
            let give_up = Instant::now() + Duration::from_secs(20);
            loop {
                let report = keys.health().await;
                assert!(report.lookups.works(), "{report:?}");
                if report.changes.works() == work {
                    return;
                }
                assert!(Instant::now() < give_up, "{report:?}");
                sleep(Duration::from_millis(20)).await;
            }
        };
        for lock in ["organisations IN EXCLUSIVE", "schema_version IN ACCESS EXCLUSIVE"] {
            until_changes_work(true).await;
            db.batch_execute(&format!("BEGIN; LOCK TABLE {schema}.{lock} MODE")).await.unwrap();
            until_changes_work(false).await;
            db.batch_execute("ROLLBACK").await.unwrap();
        }
        until_changes_work(true).await;
    })
    .await;
}

/// The regular work of another organisation on the same store.
async fn undisturbed(store: &PostgresStore, name: &str, seconds: u64) {
    let own = new_key(&org(name));
    store.insert(&own, OrgLimit::NONE).await.unwrap();
    let (begun, mut current) = (Instant::now(), own);
    while begun.elapsed() < Duration::from_secs(seconds) {
        assert!(store.find_by_digest(&current.digest).await.unwrap().is_some());
        let edit = at_next(&current, |_| {});
        store.replace(&edit, current.revision).await.unwrap();
        current = edit;
        let new = new_key(&current.org);
        store.insert(&new, OrgLimit::NONE).await.unwrap();
        store.delete(&new.org, &new.id, None).await.unwrap();
        let used = KeyUse { id: current.id, at: current.created_at };
        store.record_uses(&[used]).await.unwrap();
        store.record(&[change(7, "ada")]).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_a_locked_row_blocks_only_that_row() {
    in_schema(|options| async move {
        let (schema, name) = (schema_of(&options), unique("keygate_row"));
        let store = in_session(&schema, &name).deadline(DEADLINE).connect().await.unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        let same = ApiKey { org: org("same"), ..key(2) };
        store.insert(&same, OrgLimit::NONE).await.unwrap();
        // Many rows of one organisation, and one row of each of the others.
        let mut locked = vec![key(1)];
        locked.extend((0..20).map(|_| new_key(&key(1).org)));
        locked.extend((0..60).map(|n| new_key(&org(&format!("locked {n}")))));
        for key in &locked[1..] {
            store.insert(key, OrgLimit::NONE).await.unwrap();
        }
        let db = administrator().await;
        let lock = format!(
            "BEGIN; SELECT 1 FROM {schema}.keys WHERE org <> 'same' FOR UPDATE; \
             SELECT 1 FROM {schema}.organisations WHERE org <> 'same' FOR UPDATE"
        );
        db.batch_execute(&lock).await.unwrap();

        let mut others = JoinSet::new();
        for locked in &locked {
            let (store, locked) = (store.clone(), locked.clone());
            others.spawn(async move {
                loop {
                    let edit = at_next(&locked, |_| {});
                    store.replace(&edit, Revision::FIRST).await.unwrap_err();
                    store.insert(&new_key(&locked.org), OrgLimit::NONE).await.unwrap_err();
                }
            });
        }
        let most = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let counting = tokio::spawn({
            let (most, stop, name) = (Arc::clone(&most), Arc::clone(&stop), name.clone());
            async move {
                let administrator = administrator().await;
                let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
                while !stop.load(Ordering::Relaxed) {
                    let now: i64 =
                        administrator.query_one(sessions, &[&name]).await.unwrap().get(0);
                    most.fetch_max(now as usize, Ordering::Relaxed);
                    sleep(Duration::from_millis(10)).await;
                }
            }
        });
        undisturbed(&store, "globex", 5).await;
        // Of a batch with the locked key, the other uses are written.
        let at = Timestamp::from_unix_micros(1_800_000_000_000_000).unwrap();
        let uses = [&key(1), &same].map(|key| KeyUse { id: key.id, at });
        let recorded = store.record_uses(&uses).await;
        assert!(matches!(recorded, Err(StoreError::Unavailable(_))), "{recorded:?}");
        let last_use =
            async |key: &ApiKey| store.get(&key.org, &key.id).await.unwrap().unwrap().last_used_at;
        assert_eq!((last_use(&key(1)).await, last_use(&same).await), (None, Some(at)));

        stop.store(true, Ordering::Relaxed);
        counting.await.unwrap();
        others.shutdown().await;
        db.batch_execute("ROLLBACK").await.unwrap();
        store.record_uses(&uses).await.unwrap();
        assert_eq!(last_use(&key(1)).await, Some(at));
        let most = most.load(Ordering::Relaxed);
        assert!((1..=MOST_SESSIONS as usize).contains(&most), "{most} sessions");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_45_a_locked_table_blocks_only_the_operations_that_need_it() {
    in_schema(|options| async move {
        let (schema, name) = (schema_of(&options), unique("keygate_table"));
        let store = in_session(&schema, &name).deadline(DEADLINE).connect().await.unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        let db = administrator().await;
        for table in ["requests", "changes"] {
            let lock = format!("BEGIN; LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE");
            db.batch_execute(&lock).await.unwrap();
            let pages = {
                let store = store.clone();
                tokio::spawn(async move {
                    use keygate::AuditLog;
                    use keygate::audit::{AuditQuery, AuditScope};
                    let scopes = [AuditScope::OrgChanges, AuditScope::KeyRequests(key(1).id)];
                    for _ in 0..4 {
                        for scope in scopes {
                            let _ = store.page(&AuditQuery::new(org("acme"), scope)).await;
                        }
                    }
                })
            };
            let own = new_key(&org(table));
            for _ in 0..20 {
                store.insert(&own, OrgLimit::NONE).await.unwrap();
                assert!(store.find_by_digest(&own.digest).await.unwrap().is_some());
                store.record_uses(&[KeyUse { id: own.id, at: own.created_at }]).await.unwrap();
                store.delete(&own.org, &own.id, None).await.unwrap();
            }
            pages.await.unwrap();
            db.batch_execute("ROLLBACK").await.unwrap();
        }
        // Reads work while the keys cannot be changed, and health shows it.
        let lock = format!("BEGIN; LOCK TABLE {schema}.keys IN SHARE MODE");
        db.batch_execute(&lock).await.unwrap();
        let probe = store.record_uses(&[]).await;
        assert!(matches!(probe, Err(StoreError::Unavailable(_))), "{probe:?}");
        assert!(store.find_by_digest(&key(1).digest).await.unwrap().is_some());
        db.batch_execute("ROLLBACK").await.unwrap();
        store.record_uses(&[]).await.unwrap();
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
        let now: i64 = db.query_one(sessions, &[&name]).await.unwrap().get(0);
        assert!(now <= MOST_SESSIONS, "{now} sessions");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_46_one_organisations_creations_do_not_delay_those_of_others() {
    in_schema(|options| async move {
        let proxy = Proxy::start(address(&url())).await;
        let far = PostgresOptions::from_url(&proxy.url(&url())).unwrap();
        let far = far.schema(schema_of(&options)).unwrap().deadline(DEADLINE);
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
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn organisations_without_keys_are_forgotten() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let keys: Vec<_> = (0..5).map(|n| new_key(&org(&format!("org {n}")))).collect();
        for key in &keys {
            store.insert(key, OrgLimit::at_most(1)).await.unwrap();
            let full = store.insert(&new_key(&key.org), OrgLimit::at_most(1)).await;
            assert!(matches!(full, Err(StoreError::LimitReached)), "{full:?}");
        }
        for key in &keys[1..] {
            store.delete(&key.org, &key.id, None).await.unwrap();
        }
        let rows = format!("SELECT org FROM {schema}.organisations");
        let rows = administrator().await.query(&rows, &[]).await.unwrap();
        let left: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(left, ["org 0"]);
        store.insert(&keys[1], OrgLimit::at_most(1)).await.unwrap();
    })
    .await;
}
