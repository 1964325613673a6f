//! `PostgresStore` on a real server: `cargo test --features postgres,conformance
//! --test postgres -- --ignored`.
#![cfg(all(feature = "postgres", feature = "conformance"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use keygate::conformance::{self, TwoHandles};
use keygate::{
    Allowlist, ApiKey, AuditEvent, AuditId, AuditLog, AuditQuery, AuditRecord, AuditScope,
    AuditSink, ChangeAction, ChangeEvent, ChangePhase, KeyDigest, KeyId, KeyName, KeyStore, KeyUse,
    OrgId, OrgLimit, PostgresOpenError, PostgresOptions, PostgresStore, Revision, Status,
    StoreError, Timestamp,
};
use tokio_postgres::{Client, NoTls};

fn url() -> String {
    std::env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

async fn administrator() -> Client {
    let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let (process, n) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{what}_{now:x}_{process:x}_{n}")
}

/// Four suites at once on a small machine are slower than a service may be.
const PATIENT: Duration = Duration::from_secs(10);

/// Runs a test in a schema of its own, which is dropped even when it fails.
async fn in_schema<T, F>(test: T)
where
    T: FnOnce(PostgresOptions) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let schema = unique("keygate_test");
    let options = PostgresOptions::from_url(&url()).unwrap().schema(&schema).unwrap();
    let outcome = tokio::spawn(test(options)).await;
    let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
    administrator().await.batch_execute(&drop).await.unwrap();
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn schema_of(options: &PostgresOptions) -> String {
    let text = format!("{options:?}");
    let (_, rest) = text.split_once("schema: \"").unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

fn key(n: u8) -> ApiKey {
    ApiKey {
        id: KeyId::from_bytes([n; 16]),
        org: OrgId::new("acme").unwrap(),
        name: KeyName::new("CI deploy").unwrap(),
        key_prefix: "vsp_sk_4fT9x".to_owned(),
        digest: KeyDigest::of([n]),
        status: Status::Active,
        allowlist: Allowlist::parse(["192.0.2.0/24"]).unwrap(),
        created_at: Timestamp::from_unix_micros(1_700_000_000_000_001).unwrap(),
        expires_at: None,
        rotated_at: None,
        last_used_at: None,
        revision: Revision::FIRST,
    }
}

fn change(n: u8, actor: &str) -> AuditRecord {
    AuditRecord {
        id: AuditId::from_bytes([n; 16]),
        at: Timestamp::from_unix_micros(i64::from(n)).unwrap(),
        org: OrgId::new("acme").unwrap(),
        key: KeyId::from_bytes([1; 16]),
        event: AuditEvent::Change(ChangeEvent {
            actor: actor.into(),
            action: ChangeAction::Created,
            phase: ChangePhase::Begun,
        }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_store_conforms() {
    in_schema(|options| async move {
        let store = options.deadline(PATIENT).connect().await.unwrap();
        conformance::check_store(|| async { store.clone() }).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_store_conforms_without_prepared_statements() {
    in_schema(|options| async move {
        let store =
            options.prepared(false).connections(1).deadline(PATIENT).connect().await.unwrap();
        conformance::check_store(|| async { store.clone() }).await.unwrap();
        conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn two_stores_on_one_schema_conform_together() {
    in_schema(|options| async move {
        let options = options.deadline(PATIENT);
        let (a, b) = (options.clone().connect().await.unwrap(), options.connect().await.unwrap());
        conformance::check_store(|| async { TwoHandles::new(a.clone(), b.clone()) }).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn the_audit_log_conforms() {
    in_schema(|options| async move {
        let store = options.deadline(PATIENT).connect().await.unwrap();
        conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn texts_with_nul_come_back() {
    in_schema(|options| async move {
        let store = options.connect().await.unwrap();
        let record = change(1, "a\0b\u{FDD0}0\u{FDD0}c");
        store.record(std::slice::from_ref(&record)).await.unwrap();
        let query = AuditQuery::new(record.org.clone(), AuditScope::OrgChanges);
        assert_eq!(store.page(&query).await.unwrap().records, [record]);
        let key = ApiKey {
            key_prefix: "a\0b".to_owned(),
            allowlist: Allowlist::restore(["10.0.0.1\0", "\0"]),
            ..key(1)
        };
        store.insert(&key, OrgLimit::NONE).await.unwrap();
        let found = store.find_by_digest(&key.digest).await.unwrap().unwrap();
        assert_eq!(*found, key);
        assert!(!found.allowlist.is_readable());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn eight_stores_open_a_new_schema_at_once() {
    for _ in 0..5 {
        in_schema(|options| async move {
            let opened: Vec<_> = (0..8).map(|_| tokio::spawn(options.clone().connect())).collect();
            let mut stores = Vec::new();
            for store in opened {
                stores.push(store.await.unwrap().unwrap());
            }
            stores[0].insert(&key(1), OrgLimit::NONE).await.unwrap();
            let found = stores[7].find_by_digest(&key(1).digest).await.unwrap();
            assert_eq!(*found.unwrap(), key(1));
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_newer_schema_and_a_foreign_one_are_refused() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        drop(options.clone().connect().await.unwrap());
        let newer = format!("UPDATE {schema}.schema_version SET version = 99");
        administrator().await.batch_execute(&newer).await.unwrap();
        let error = options.connect().await.unwrap_err();
        assert!(matches!(error, PostgresOpenError::TooNew { found: 99, .. }), "{error:?}");
    })
    .await;
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let foreign = format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.keys (door text)");
        administrator().await.batch_execute(&foreign).await.unwrap();
        let error = options.connect().await.unwrap_err();
        assert!(matches!(error, PostgresOpenError::NotKeygate { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_is_wrong_is_said() {
    let refused = async |url: String| {
        let error = PostgresStore::connect(&url).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
        error
    };
    let error = refused("mysql://app:sesame@localhost/app".to_owned()).await;
    assert!(matches!(error, PostgresOpenError::BadUrl { .. }), "{error:?}");
    let error = refused("postgres://app:sesame@127.0.0.1:1/app".to_owned()).await;
    assert!(matches!(error, PostgresOpenError::Unreachable { .. }), "{error:?}");
    let error = refused("postgres://app:sesame@no-such-host.invalid/app".to_owned()).await;
    assert!(
        matches!(error, PostgresOpenError::Unreachable { .. } | PostgresOpenError::NoAnswer { .. }),
        "{error:?}"
    );
    let at = |user: &str, database: &str| {
        let (_, rest) = url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        format!("postgres://{user}@{}/{database}", rest.split_once('/').unwrap().0)
    };
    let error = refused(at("postgres:sesame", "no_such_database")).await;
    assert!(matches!(error, PostgresOpenError::NoDatabase { .. }), "{error:?}");
    let error = refused(at("no_such_user:sesame", "test")).await;
    assert!(matches!(error, PostgresOpenError::AccessDenied { .. }), "{error:?}");
    #[cfg(not(feature = "postgres-tls"))]
    {
        let error = refused(at("postgres:sesame", "test?sslmode=require")).await;
        assert!(matches!(error, PostgresOpenError::NoTls { .. }), "{error:?}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn missing_rights_are_said_and_enough_rights_are_enough() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let role = unique("keygate_role");
        let administrator = administrator().await;
        administrator.batch_execute(&format!("CREATE ROLE {role} LOGIN")).await.unwrap();
        let (_, rest) = url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let url = format!("postgres://{role}@{rest}");
        let limited = PostgresOptions::from_url(&url).unwrap().schema(&schema).unwrap();
        let no_schema = limited.clone().connect().await.unwrap_err();
        administrator.batch_execute(&format!("CREATE SCHEMA {schema}")).await.unwrap();
        let no_usage = limited.clone().connect().await.unwrap_err();
        drop(options.connect().await.unwrap());
        let grant = format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
        );
        administrator.batch_execute(&grant).await.unwrap();
        let store = limited.connect().await.unwrap();
        let inserted = store.insert(&key(1), OrgLimit::at_most(1)).await;
        let limit = store.insert(&key(2), OrgLimit::at_most(1)).await;
        drop(store);
        let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
        administrator.batch_execute(&drop).await.unwrap();
        assert!(matches!(no_schema, PostgresOpenError::NoRights { .. }), "{no_schema:?}");
        assert!(matches!(no_usage, PostgresOpenError::NoRights { .. }), "{no_usage:?}");
        inserted.unwrap();
        assert!(matches!(limit, Err(StoreError::LimitReached)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn killed_server_sessions_are_replaced() {
    in_schema(|options| async move {
        let name = unique("kg");
        let mut config: tokio_postgres::Config = url().parse().unwrap();
        config.application_name(&name);
        let options = PostgresOptions::new(config).schema(schema_of(&options)).unwrap();
        let store = options.connect().await.unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        let administrator = administrator().await;
        let readers = (0..8).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let begun = Instant::now();
                let mut failed = 0;
                while begun.elapsed() < Duration::from_secs(2) {
                    match store.find_by_digest(&key(1).digest).await {
                        Ok(found) => assert!(found.is_some()),
                        Err(StoreError::Unavailable(_)) => failed += 1,
                        Err(error) => panic!("{error:?}"),
                    }
                }
                failed
            })
        });
        let readers: Vec<_> = readers.collect();
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE application_name = $1";
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            assert!(administrator.query(kill, &[&name]).await.unwrap().len() >= 2);
        }
        let mut failed = 0;
        for reader in readers {
            failed += reader.await.unwrap();
        }
        assert_eq!(failed, 0, "reads are tried once more");
        // The connection for transactions was killed as well.
        administrator.query(kill, &[&name]).await.unwrap();
        store.insert(&key(2), OrgLimit::NONE).await.unwrap();
        let uses = [KeyUse { id: key(2).id, at: key(2).created_at }];
        store.record_uses(&uses).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_dropped_store_leaves_no_session_behind() {
    in_schema(|options| async move {
        let name = unique("kg");
        let mut config: tokio_postgres::Config = url().parse().unwrap();
        config.application_name(&name);
        let options = PostgresOptions::new(config).schema(schema_of(&options)).unwrap();
        let store = options.connect().await.unwrap();
        store.find_by_digest(&key(1).digest).await.unwrap();
        drop(store);
        let administrator = administrator().await;
        let sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1";
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if administrator.query(sessions, &[&name]).await.unwrap().is_empty() {
                return;
            }
        }
        panic!("sessions are left");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_listener_that_never_answers_is_given_up_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("postgres://app:sesame@127.0.0.1:{port}/app");
    let options = PostgresOptions::from_url(&url).unwrap().deadline(Duration::from_millis(300));
    let begun = Instant::now();
    let error = options.connect().await.unwrap_err();
    assert!(matches!(error, PostgresOpenError::NoAnswer { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
}

/// A proxy that stops passing bytes on, as a network does that loses them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn connections_that_went_silent_are_given_up_and_replaced() {
    in_schema(|options| async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (server, target): (tokio_postgres::Config, _) = (url().parse().unwrap(), url());
        let (_, rest) = target.split_once('@').unwrap();
        let address = rest.split_once('/').unwrap().0.to_owned();
        let (silence, silent) = tokio::sync::watch::channel(0_u32);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let (address, mut silent) = (address.clone(), silent.clone());
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                    silent.mark_unchanged();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = silent.changed() => std::future::pending().await,
                    }
                });
            }
        });
        let url = format!(
            "postgres://{}@127.0.0.1:{port}/{}",
            server.get_user().unwrap(),
            server.get_dbname().unwrap()
        );
        let deadline = Duration::from_millis(400);
        let store = PostgresOptions::from_url(&url)
            .unwrap()
            .schema(schema_of(&options))
            .unwrap()
            .deadline(deadline)
            .connect()
            .await
            .unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        for round in 1..=2 {
            silence.send(round).unwrap();
            let mut failed = 0;
            let begun = Instant::now();
            loop {
                let call = Instant::now();
                let found = store.find_by_digest(&key(1).digest).await;
                assert!(call.elapsed() < deadline * 2, "{:?}", call.elapsed());
                match found {
                    Ok(found) => break assert!(found.is_some()),
                    Err(StoreError::Unavailable(_)) => failed += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
            assert!(failed <= 2, "one for each connection");
            assert!(begun.elapsed() < deadline * 4);
        }
        // A caller with a shorter deadline than the store's gets there, too.
        silence.send(3).unwrap();
        let digest = key(1).digest;
        let mut tries = 0;
        let found = loop {
            tries += 1;
            let call = store.find_by_digest(&digest);
            if let Ok(Ok(found)) = tokio::time::timeout(deadline / 2, call).await {
                break found;
            }
            assert!(tries < 10);
        };
        assert!(found.is_some());
        // The connection for transactions, at last.
        let _ = store.insert(&key(2), OrgLimit::NONE).await;
        store.insert(&key(3), OrgLimit::NONE).await.unwrap();
    })
    .await;
}
