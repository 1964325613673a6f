//! Opening a store: errors are specific, and many stores may open at once.

use std::error::Error as _;

use keygate::error::PostgresOpenError;
use keygate::store::OrgLimit;
use keygate::{KeyStore, PostgresStore, StoreError};
use tokio::task::JoinSet;

use crate::postgres_support::{Database, Role, Schema, key, session, url};
use crate::proxy::address;

/// Whether an error is of that kind.
macro_rules! is {
    ($($kind:ident)|+) => {{
        let is_it: fn(&PostgresOpenError) -> bool =
            |error| matches!(error, $(PostgresOpenError::$kind { .. })|+);
        is_it
    }};
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn each_error_names_its_cause() {
    let at =
        |user: &str, database: &str| format!("postgres://{user}@{}/{database}", address(&url()));
    for (url, is_right) in [
        ("mysql://app:sesame@localhost/app".to_owned(), is!(BadUrl)),
        ("postgres://app:sesame@127.0.0.1:1/app".to_owned(), is!(Unreachable)),
        ("postgres://app:sesame@no-such-host.invalid/app".to_owned(), is!(Unreachable | NoAnswer)),
        (at("postgres:sesame", "no_such_database"), is!(NoDatabase)),
        (at("no_such_user:sesame", "test"), is!(AccessDenied)),
        #[cfg(not(feature = "postgres-tls"))]
        (at("postgres:sesame", "test?sslmode=require"), is!(NoTls)),
    ] {
        let error = PostgresStore::connect(&url).await.unwrap_err();
        assert!(is_right(&error), "{url}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_newer_schema_and_a_foreign_one_are_refused() {
    let schema = Schema::new();
    drop(schema.store().await);
    let db = schema.db().await;
    db.batch_execute("UPDATE schema_version SET version = 99").await.unwrap();
    let error = schema.options().connect().await.unwrap_err();
    assert!(matches!(error, PostgresOpenError::TooNew { found: 99, .. }), "{error:?}");

    let schema = Schema::new();
    let foreign = format!("CREATE SCHEMA {0}; CREATE TABLE {0}.keys (door text)", schema.name);
    db.batch_execute(&foreign).await.unwrap();
    let error = schema.options().connect().await.unwrap_err();
    assert!(matches!(error, PostgresOpenError::NotKeygate { .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn case_55_missing_rights_are_named_and_the_documented_rights_suffice() {
    let (schema, role) = (Schema::new(), Role::new().await);
    let (limited, db) = (schema.options_at(&role.url()), schema.db().await);
    let run = async |sql: &str| {
        let sql = sql.replace("{schema}", &schema.name).replace("{role}", &role.name);
        db.batch_execute(&sql).await.unwrap();
    };
    let lacks = async |missing: &str| {
        let error = limited.clone().connect().await.unwrap_err();
        assert!(matches!(error, PostgresOpenError::NoRights { .. }), "{error:?}");
        let cause = format!("{:?}", error.source().unwrap());
        assert!(cause.contains(missing), "{missing}: {cause}");
    };
    lacks("permission denied for database").await;
    run("CREATE SCHEMA {schema}").await;
    lacks("permission denied for schema").await;
    run("GRANT USAGE ON SCHEMA {schema} TO {role}").await;
    lacks("permission denied for schema").await;
    // Created by another role, and up to date.
    drop(schema.store().await);
    run("GRANT SELECT ON schema_version TO {role}").await;
    lacks("DELETE on keys").await;
    run("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}").await;
    let store = limited.clone().connect().await.unwrap();
    store.insert(&key(1), OrgLimit::at_most(1)).await.unwrap();
    let full = store.insert(&key(2), OrgLimit::at_most(1)).await;
    assert!(matches!(full, Err(StoreError::LimitReached)), "{full:?}");
    run("REVOKE DELETE ON keys FROM {role}").await;
    lacks("DELETE on keys").await;
    run("GRANT DELETE ON keys TO {role}; REVOKE UPDATE, DELETE ON requests, changes FROM {role}; \
         REVOKE INSERT, UPDATE, DELETE ON schema_version FROM {role}; \
         REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
    .await;
    lacks("EXECUTE on insert_key").await;
    run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}").await;
    // The remaining rights are those that the guide lists.
    let append_only = limited.connect().await.unwrap();
    append_only.insert(&key(2), OrgLimit::NONE).await.unwrap();
    append_only.delete(&key(2).org, &key(2).id, None).await.unwrap();
    append_only.record_uses(&[]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn case_55_a_database_that_is_not_utf8_is_refused_and_unchanged() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let settings =
            format!("ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        let database = Database::new(&settings).await;
        let error = PostgresStore::connect(&database.url()).await.unwrap_err();
        let named = matches!(&error, PostgresOpenError::NotUtf8 { database: d, encoding: e }
            if *d == database.name && e == encoding);
        assert!(named, "{error:?}");
        let db = session(&database.url().parse().unwrap()).await;
        let schemas = "SELECT 1 FROM pg_namespace WHERE nspname = 'keygate'";
        assert!(db.query(schemas, &[]).await.unwrap().is_empty(), "{encoding}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn eight_stores_open_a_new_schema_at_once() {
    for _ in 0..5 {
        let schema = Schema::new();
        let stores = (0..8).map(|_| schema.options().connect()).collect::<JoinSet<_>>();
        let stores: Vec<_> = stores.join_all().await.into_iter().map(Result::unwrap).collect();
        stores[0].insert(&key(1), OrgLimit::NONE).await.unwrap();
        let found = stores[7].find_by_digest(&key(1).digest).await.unwrap();
        assert_eq!(*found.unwrap(), key(1));
    }
}
