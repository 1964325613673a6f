//! Opening a store: errors are specific, and many stores may open at once.

use std::error::Error as _;
use std::time::Duration;

use keygate::error::PostgresOpenError;
use keygate::store::{OrgLimit, PostgresOptions};
use keygate::{KeyStore, PostgresStore, StoreError};

use crate::postgres_support::{PATIENT, administrator, in_schema, key, schema_of, unique, url};

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn each_error_names_its_cause() {
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
async fn missing_rights_are_named_and_the_documented_rights_suffice() {
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
async fn case_55_a_schema_that_another_role_prepared_lacks_what_the_error_names() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let (role, administrator) = (unique("keygate_role"), administrator().await);
        let (_, rest) = url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let limited = PostgresOptions::from_url(&format!("postgres://{role}@{rest}")).unwrap();
        let limited = limited.schema(&schema).unwrap().deadline(PATIENT);
        let run = async |sql: &str| {
            let sql = sql.replace("{schema}", &schema).replace("{role}", &role);
            administrator.batch_execute(&sql).await.unwrap();
        };
        run("CREATE ROLE {role} LOGIN; CREATE SCHEMA {schema}; \
             GRANT USAGE ON SCHEMA {schema} TO {role}")
        .await;
        let empty = limited.clone().connect().await;
        // Created by another role, and up to date.
        drop(options.connect().await.unwrap());
        run("GRANT SELECT ON {schema}.schema_version TO {role}").await;
        let nothing = limited.clone().connect().await;
        run("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; \
             REVOKE DELETE ON {schema}.keys FROM {role}")
        .await;
        let no_deletions = limited.clone().connect().await;
        run("GRANT DELETE ON {schema}.keys TO {role}; \
             REVOKE UPDATE, DELETE ON {schema}.requests, {schema}.changes FROM {role}; \
             REVOKE INSERT, UPDATE, DELETE ON {schema}.schema_version FROM {role}; \
             REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
        .await;
        let no_creations = limited.clone().connect().await;
        run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}").await;
        // The remaining rights are those that the guide lists.
        let append_only = limited.connect().await;
        let appended = format!("{:?}", append_only.as_ref().map(drop));
        let works = match append_only {
            Ok(store) => {
                let inserted = store.insert(&key(1), OrgLimit::NONE).await;
                let deleted = store.delete(&key(1).org, &key(1).id, None).await;
                inserted.and(deleted).and(store.record_uses(&[]).await)
            }
            Err(_) => Ok(()),
        };
        run("DROP OWNED BY {role}; DROP ROLE {role}").await;
        for (opened, missing) in [
            (empty, "permission denied for schema"),
            (nothing, "DELETE on keys"),
            (no_deletions, "DELETE on keys"),
            (no_creations, "EXECUTE on insert_key"),
        ] {
            let error = opened.unwrap_err();
            assert!(matches!(error, PostgresOpenError::NoRights { .. }), "{error:?}");
            let cause = format!("{:?}", error.source().unwrap());
            assert!(cause.contains(missing), "{cause}");
        }
        assert_eq!(appended, "Ok(())");
        works.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn case_55_a_database_that_is_not_utf8_is_refused_and_unchanged() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let (database, administrator) = (unique("keygate_test"), administrator().await);
        let create = format!(
            "CREATE DATABASE {database} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' \
             TEMPLATE template0"
        );
        administrator.batch_execute(&create).await.unwrap();
        let mut config: tokio_postgres::Config = url().parse().unwrap();
        config.dbname(&database);
        let opened = PostgresOptions::new(config.clone()).deadline(PATIENT).connect().await;
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let schemas = "SELECT 1 FROM pg_namespace WHERE nspname = 'keygate'";
        let schemas = client.query(schemas, &[]).await.unwrap();
        drop(client);
        let drop = format!("DROP DATABASE {database} WITH (FORCE)");
        administrator.batch_execute(&drop).await.unwrap();
        let error = opened.unwrap_err();
        let named = matches!(&error, PostgresOpenError::NotUtf8 { database: d, encoding: e }
            if *d == database && e == encoding);
        assert!(named, "{error:?}");
        assert!(schemas.is_empty());
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_server_that_never_answers_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("postgres://app:sesame@127.0.0.1:{port}/app");
    let options = PostgresOptions::from_url(&url).unwrap().deadline(Duration::from_millis(300));
    let error = tokio::time::timeout(PATIENT, options.connect()).await.unwrap().unwrap_err();
    assert!(matches!(error, PostgresOpenError::NoAnswer { .. }), "{error:?}");
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
