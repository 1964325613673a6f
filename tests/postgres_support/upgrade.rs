//! A schema of version 1, brought up to date while it is in use.

use std::time::Duration;

use keygate::{KeyStore, OrgLimit, PostgresOpenError, PostgresOptions};

use crate::postgres_support::{
    administrator, in_schema, key, new_key, org, schema_of, unique, url,
};
use crate::told::{Told, changed};

/// What version 1 makes, with one key.
const VERSION_1: &str = "
    CREATE SCHEMA {schema};
    SET search_path = {schema};
    CREATE TABLE schema_version
        (one boolean PRIMARY KEY DEFAULT true CHECK (one), version bigint NOT NULL);
    INSERT INTO schema_version (version) VALUES (1);
    CREATE TABLE organisations (org text PRIMARY KEY);
    CREATE TABLE keys (
        id           uuid   PRIMARY KEY,
        org          text   NOT NULL,
        name         text   NOT NULL,
        key_prefix   text   NOT NULL,
        digest       bytea  NOT NULL UNIQUE,
        status       text   NOT NULL,
        allowlist    text[] NOT NULL,
        created_at   bigint NOT NULL,
        expires_at   bigint,
        rotated_at   bigint,
        last_used_at bigint,
        revision     bigint NOT NULL
    );
    CREATE INDEX keys_by_org ON keys (org, created_at, id);
    CREATE TABLE requests (
        key      uuid   NOT NULL,
        at       bigint NOT NULL,
        id       uuid   NOT NULL,
        org      text   NOT NULL,
        method   text   NOT NULL,
        endpoint text   NOT NULL,
        ip       inet,
        country  text,
        status   integer,
        outcome  text   NOT NULL,
        PRIMARY KEY (key, at, id)
    );
    CREATE INDEX requests_by_time ON requests (at);
    CREATE TABLE changes (
        key    uuid   NOT NULL,
        at     bigint NOT NULL,
        id     uuid   NOT NULL,
        org    text   NOT NULL,
        actor  text   NOT NULL,
        action text   NOT NULL,
        phase  text   NOT NULL,
        PRIMARY KEY (key, at, id)
    );
    CREATE INDEX changes_by_org ON changes (org, at, id);
    CREATE INDEX changes_by_time ON changes (at);
    INSERT INTO organisations VALUES ('acme');
    INSERT INTO keys VALUES ('01010101-0101-0101-0101-010101010101', 'acme', 'CI deploy',
        'vsp_sk_4fT9x', sha256('\\x01'), 'active', '{192.0.2.0/24}', 1700000000000001,
        NULL, NULL, NULL, 1);
    RESET search_path;";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn eight_stores_upgrade_a_schema_while_an_older_version_writes() {
    for _ in 0..3 {
        in_schema(|options| async move {
            let schema = schema_of(&options);
            let db = administrator().await;
            db.batch_execute(&VERSION_1.replace("{schema}", &schema)).await.unwrap();
            let older = administrator().await;
            let write = format!(
                "BEGIN; UPDATE {schema}.keys SET revision = revision + 1; SELECT pg_sleep(0.05); \
                 UPDATE {schema}.keys SET revision = revision - 1; COMMIT"
            );
            let writer = {
                let write = write.clone();
                tokio::spawn(async move {
                    for _ in 0..10 {
                        older.batch_execute(&write).await.unwrap();
                    }
                })
            };
            let opened: Vec<_> = (0..8).map(|_| tokio::spawn(options.clone().connect())).collect();
            let mut stores = Vec::new();
            for store in opened {
                stores.push(store.await.unwrap().unwrap());
            }
            writer.await.unwrap();
            let version = format!("SELECT version FROM {schema}.schema_version");
            let version: i64 = db.query_one(&version, &[]).await.unwrap().get(0);
            assert_eq!(version, 2);
            let found = stores[0].find_by_digest(&key(1).digest).await.unwrap().unwrap();
            assert_eq!(*found, key(1));
            let told = Told::by(&stores[1]);
            let by_older = told.of(async { db.batch_execute(&write).await.unwrap() }).await;
            assert_eq!(by_older, changed(key(1).id));
            let key = key(2);
            let inserted =
                told.of(async { stores[2].insert(&key, OrgLimit::NONE).await.unwrap() }).await;
            assert_eq!(inserted, changed(key.id));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn who_may_only_use_the_tables_waits_for_their_owner_and_then_announces() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let (role, db) = (unique("keygate_role"), administrator().await);
        let grants = format!(
            "{}; CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
            VERSION_1.replace("{schema}", &schema)
        );
        db.batch_execute(&grants).await.unwrap();
        let (_, rest) = url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let limited = PostgresOptions::from_url(&format!("postgres://{role}@{rest}")).unwrap();
        let limited = limited.schema(&schema).unwrap();
        let too_early = limited.clone().connect().await.unwrap_err();
        let owner = options.connect().await.unwrap();
        let store = limited.connect().await.unwrap();
        let (told, theirs) = (Told::by(&owner), Told::by(&store));
        let new = new_key(&org("acme"));
        let news = told.of(async { store.insert(&new, OrgLimit::NONE).await.unwrap() }).await;
        let here = theirs.of(async { store.delete(&new.org, &new.id, None).await.unwrap() }).await;
        drop((store, theirs));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
        db.batch_execute(&drop).await.unwrap();
        assert!(matches!(too_early, PostgresOpenError::NoRights { .. }), "{too_early:?}");
        assert_eq!(news, changed(new.id));
        assert_eq!(here, changed(new.id));
    })
    .await;
}
