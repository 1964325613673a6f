//! PgBouncer in transaction mode between stores and their server.

use std::time::{Duration, Instant};

use keygate::error::PostgresOpenError;
use keygate::store::KeyUse;
use keygate::{
    ApiKey, KeyManager, KeyPatch, KeyStore, ManageError, PostgresStore, Status, StoreError,
    conformance,
};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::pgbouncer::PgBouncer;
use crate::{DEADLINE, PATIENT, actor, create, options, use_once};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn the_store_conforms_behind_pgbouncer() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    let options = options(&bouncer.url("")).prepared(false).deadline(PATIENT);
    let store = options.connections(4).connect().await.unwrap();
    conformance::check_store(|| async { store.clone() }).await.unwrap();
    conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
}

const CROWDED: Duration = Duration::from_secs(4);

/// Many tasks on two stores share fewer sessions. Counts correct answers and failures.
async fn crowd(bouncer: &PgBouncer, prepared: bool, deadline: Duration) -> (u32, Vec<String>) {
    let options = options(&bouncer.url("")).prepared(prepared).deadline(deadline);
    let stores = [options.clone().connect().await.unwrap(), options.connect().await.unwrap()];
    let until = Instant::now() + CROWDED;
    let crowd = (0..16).map(|n| one_of_them(stores[n % 2].clone(), n, until, deadline));
    let (right, failed): (Vec<_>, Vec<_>) =
        crowd.collect::<JoinSet<_>>().join_all().await.into_iter().unzip();
    (right.into_iter().sum(), failed.concat())
}

/// Many tasks on a store that does not wait for its answers. The server is slow with some of
/// them, so that one connection after the other is closed. Counts the interrupted calls.
async fn hasty_crowd(cluster: &Cluster, bouncer: &PgBouncer) -> usize {
    let options = options(&bouncer.url("?connect_timeout=5")).prepared(false);
    let patient = options.clone().deadline(PATIENT).connect().await.unwrap();
    let keys = KeyManager::builder(patient).store_deadline(PATIENT).build().unwrap();
    let made = create(&keys, "hasty").await.unwrap();
    cluster.ask(
        "CREATE FUNCTION keygate.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF random() < 0.3 THEN PERFORM pg_sleep(0.05); END IF; RETURN NULL; END $$; \
         CREATE TRIGGER dawdle BEFORE UPDATE ON keygate.keys FOR EACH ROW \
         WHEN (OLD.org = 'hasty') EXECUTE FUNCTION keygate.dawdle()",
    );
    let store = options.deadline(Duration::from_millis(30)).connect().await.unwrap();
    let uses = KeyUse { id: made.key.id, at: made.key.created_at };
    let until = Instant::now() + CROWDED;
    let hasty = |store: PostgresStore| async move {
        let mut interrupted = 0;
        while Instant::now() < until {
            interrupted += usize::from(store.record_uses(&[uses]).await.is_err());
        }
        interrupted
    };
    let crowd = (0..16).map(|_| hasty(store.clone())).collect::<JoinSet<_>>();
    crowd.join_all().await.into_iter().sum()
}

/// Uses its own keys, so that an answer for another task would be noticed.
async fn one_of_them(
    store: PostgresStore,
    n: usize,
    until: Instant,
    deadline: Duration,
) -> (u32, Vec<String>) {
    let keys = KeyManager::builder(store).store_deadline(deadline).build().unwrap();
    let org = format!("org-{n}");
    let (mut right, mut failed) = (0, Vec::new());
    while Instant::now() < until {
        let begun = Instant::now();
        let made = match create(&keys, &org).await {
            Ok(made) => made,
            // A change in doubt had taken place.
            Err(ManageError::LimitReached { .. }) if !failed.is_empty() => break,
            Err(error) => {
                failed.push(format!("{error:?}"));
                continue;
            }
        };
        assert!(begun.elapsed() < deadline * 4, "{:?}", begun.elapsed());
        for _ in 0..20 {
            let begun = Instant::now();
            match keys.verify(made.secret.expose_secret(), None).await {
                Ok(key) => {
                    assert_eq!((key.id(), key.org()), (made.key.id, actor(&org).org()));
                    right += 1;
                }
                Err(error) => failed.push(format!("{error:?}")),
            }
            assert!(begun.elapsed() < deadline * 4, "{:?}", begun.elapsed());
        }
        if let Err(error) = keys.delete(&actor(&org), &made.key.id).await {
            failed.push(format!("{error:?}"));
        }
    }
    (right, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn concurrent_callers_behind_pgbouncer_get_their_own_answers() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    let (crowd, interrupted) =
        tokio::join!(crowd(&bouncer, false, PATIENT), hasty_crowd(&cluster, &bouncer));
    let (right, failed) = crowd;
    println!("without: {right} right, {} failed, {interrupted} interrupted", failed.len());
    assert_eq!((right > 100, failed), (true, Vec::new()));
    assert!(interrupted > 100, "{interrupted}");
}

/// The limits of a session do not apply through a pooler; those of a statement do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn case_44_behind_pgbouncer_a_change_that_timed_out_never_takes_effect() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 8, "");
    let options = options(&bouncer.url("")).prepared(false);
    let direct = options.clone().deadline(PATIENT).connect().await.unwrap();
    let keys = KeyManager::builder(direct.clone()).build().unwrap();
    let made = create(&keys, "acme").await.unwrap();
    let revoked = keys.update(&actor("acme"), &made.key.id, KeyPatch::revoke()).await.unwrap();
    for lock in ["SELECT 1 FROM keygate.keys FOR UPDATE", "LOCK TABLE keygate.keys IN SHARE MODE"] {
        let store = options.clone().deadline(DEADLINE).connect().await.unwrap();
        let (db, connection) = tokio_postgres::connect(&cluster.url(""), NoTls).await.unwrap();
        tokio::spawn(connection);
        db.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
        let revision = revoked.revision;
        let enabled =
            ApiKey { status: Status::Active, revision: revision.next(), ..ApiKey::clone(&revoked) };
        let changed = store.replace(&enabled, revision).await;
        let error = changed.unwrap_err();
        // The wait for a lock on the table begins before the statement's own limits apply, and
        // the pooler may take its time to cancel it.
        let in_doubt = matches!(error, StoreError::InDoubt(_)) && lock.starts_with("LOCK");
        assert!(in_doubt || matches!(error, StoreError::Unavailable(_)), "{error:?}");
        db.batch_execute("ROLLBACK").await.unwrap();
        drop(store);
        // A statement that queued behind it on the same row: all earlier ones have ended.
        let renamed = ApiKey { revision: revision.next(), ..ApiKey::clone(&revoked) };
        direct.replace(&renamed, revision).await.unwrap();
        let back = ApiKey { revision, ..ApiKey::clone(&revoked) };
        direct.replace(&back, revision.next()).await.unwrap();
    }
}

/// A wrong setting: calls fail and get answers that were meant for others. Even then no call
/// returns another key, and none hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn prepared_statements_behind_pgbouncer_fail_in_time() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    let (right, failed) = crowd(&bouncer, true, DEADLINE).await;
    println!("prepared: {right} right, {} failed", failed.len());
    assert!(right > 0, "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn pgbouncer_refuses_only_the_parameters_that_the_host_adds() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    // `options` is a setting of the host and not among them.
    let with = "?options=-cgeqo%3Doff";
    let error = options(&bouncer.url(with)).prepared(false).connect().await.unwrap_err();
    let PostgresOpenError::Failed { source, .. } = &error else { panic!("{error:?}") };
    assert!(format!("{source:?}").contains("unsupported startup parameter: options"), "{error:?}");
    let bouncer = PgBouncer::start(&cluster, 3, "ignore_startup_parameters = options");
    use_once(&options(&bouncer.url(with)).prepared(false).connect().await.unwrap()).await;
}
