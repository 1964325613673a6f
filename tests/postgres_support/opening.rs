//! Opening: what is wrong is said, and many may open at once.

use std::time::{Duration, Instant};

use keygate::{KeyStore, OrgLimit, PostgresOpenError, PostgresOptions, PostgresStore, StoreError};

use crate::postgres_support::{administrator, in_schema, key, schema_of, unique, url};

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
