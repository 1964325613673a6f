//! A schema of an earlier version, upgraded while it is in use.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use keygate::KeyStore;
use keygate::error::PostgresOpenError;
use keygate::store::{OrgLimit, PostgresOptions, PreviousSecret};
use keygate::{ApiKey, Timestamp};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::postgres_support::{
    PATIENT, administrator, in_schema, in_session, key, new_key, org, schema_of, unique, url,
};
use crate::recorder::{Recorder, changed};

/// The tables of version 1, with one key.
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

/// The additions of version 3.
const VERSION_3: &str = "
    CREATE FUNCTION {schema}.announce_change() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_notify(TG_TABLE_SCHEMA, (coalesce(NEW, OLD)).id::text); RETURN NULL; END';
    CREATE TRIGGER announce_change AFTER INSERT OR DELETE OR UPDATE OF
        id, org, name, key_prefix, digest, status, allowlist, created_at, expires_at,
        rotated_at, revision
    ON {schema}.keys FOR EACH ROW EXECUTE FUNCTION {schema}.announce_change();
    ALTER TABLE {schema}.requests ADD COLUMN count bigint NOT NULL DEFAULT 1;
    UPDATE {schema}.schema_version SET version = 3;";

async fn version(db: &Client, schema: &str) -> i64 {
    let version = format!("SELECT version FROM {schema}.schema_version");
    db.query_one(&version, &[]).await.unwrap().get(0)
}

/// Waits until a session of that name waits for a lock.
async fn until_it_waits(db: &Client, name: &str) {
    let waits = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1 \
                 AND wait_event_type = 'Lock'";
    let begun = Instant::now();
    while db.query(waits, &[&name]).await.unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn eight_stores_upgrade_a_schema_while_an_older_version_writes() {
    let (send, newest) = tokio::sync::oneshot::channel();
    in_schema(|options| async move {
        drop(options.clone().connect().await.unwrap());
        send.send(version(&administrator().await, &schema_of(&options)).await).unwrap();
    })
    .await;
    let newest = newest.await.unwrap();
    for _ in 0..3 {
        in_schema(move |options| async move {
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
            assert_eq!(version(&db, &schema).await, newest);
            let found = stores[0].find_by_digest(&key(1).digest).await.unwrap().unwrap();
            assert_eq!(*found, key(1));
            let recorder = Recorder::by(&stores[1]);
            let by_older = recorder.of(async { db.batch_execute(&write).await.unwrap() }).await;
            assert_eq!(by_older, changed(key(1).id));
            let key = key(2);
            let inserted =
                recorder.of(async { stores[2].insert(&key, OrgLimit::NONE).await.unwrap() }).await;
            assert_eq!(inserted, changed(key.id));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_role_that_may_only_use_the_tables_waits_for_their_owner_and_then_announces() {
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
        let (recorder, theirs) = (Recorder::by(&owner), Recorder::by(&store));
        let new = new_key(&org("acme"));
        let news = recorder.of(async { store.insert(&new, OrgLimit::NONE).await.unwrap() }).await;
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

/// A transaction has announced a change only to processes of the earlier version. It ends when
/// a newer process relies on its own channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn changes_made_before_an_upgrade_are_committed_before_it() {
    in_schema(|options| async move {
        let (schema, db) = (schema_of(&options), administrator().await);
        let sql = format!("{VERSION_1}{VERSION_3}").replace("{schema}", &schema);
        db.batch_execute(&sql).await.unwrap();
        let change = format!("BEGIN; UPDATE {schema}.keys SET status = 'revoked'");
        db.batch_execute(&change).await.unwrap();
        let name = unique("kg");
        let opening = tokio::spawn(in_session(&schema, &name).connect());
        let watcher = administrator().await;
        until_it_waits(&watcher, &name).await;
        assert_eq!(version(&watcher, &schema).await, 3);
        db.batch_execute("COMMIT").await.unwrap();
        opening.await.unwrap().unwrap();
        assert!(version(&watcher, &schema).await > 3);
    })
    .await;
}

/// Processes of version 3 and earlier listen on the channel named like the schema, and may
/// still run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_process_of_an_earlier_version_still_receives_announcements() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let (earlier, mut wire) = tokio_postgres::connect(&url(), NoTls).await.unwrap();
        let (hear, mut heard) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| wire.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    hear.send(notification.payload().to_owned()).unwrap();
                }
            }
        });
        earlier.batch_execute(&format!("LISTEN {schema}")).await.unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        let mut next = async || timeout(PATIENT, heard.recv()).await.unwrap().unwrap();
        assert_eq!(next().await, key(1).id.to_string());
        let truncate = format!("TRUNCATE {schema}.keys");
        administrator().await.batch_execute(&truncate).await.unwrap();
        assert_eq!(next().await, "*");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_55_a_migration_beside_a_long_transaction_blocks_no_other_session_and_gives_up() {
    in_schema(|options| async move {
        let (schema, db) = (schema_of(&options), administrator().await);
        db.batch_execute(&VERSION_1.replace("{schema}", &schema)).await.unwrap();
        let long = administrator().await;
        let read = format!("SELECT count(*) FROM {schema}.requests");
        long.batch_execute(&format!("BEGIN; {read}")).await.unwrap();
        let (name, other) = (unique("kg"), unique("kg"));
        let opening = tokio::spawn(in_session(&schema, &name).connect());
        until_it_waits(&db, &name).await;
        // Others read and write what the migration waits for.
        db.batch_execute("SET statement_timeout = '2s'").await.unwrap();
        let write = format!("{read}; UPDATE {schema}.keys SET last_used_at = NULL");
        let mut uses = 0;
        while !opening.is_finished() {
            db.batch_execute(&write).await.unwrap();
            uses += 1;
        }
        assert!(uses > 10, "{uses}");
        let error = opening.await.unwrap().unwrap_err();
        assert!(matches!(error, PostgresOpenError::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains(&schema), "{error}");
        assert_eq!(version(&db, &schema).await, 1);

        let opening = tokio::spawn(in_session(&schema, &other).connect());
        until_it_waits(&db, &other).await;
        long.batch_execute("COMMIT").await.unwrap();
        let store = opening.await.unwrap().unwrap();
        assert_eq!(*store.get(&key(1).org, &key(1).id).await.unwrap().unwrap(), key(1));
    })
    .await;
}

/// The statements of an earlier version know nothing of previous digests.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_59_whoever_writes_it_a_previous_digest_belongs_to_one_key() {
    in_schema(|options| async move {
        let schema = schema_of(&options);
        let store = options.connect().await.unwrap();
        let previous = PreviousSecret { digest: key(9).digest, until: Timestamp::MAX };
        let old = ApiKey { previous: Some(previous), ..key(1) };
        store.insert(&old, OrgLimit::NONE).await.unwrap();
        store.insert(&key(2), OrgLimit::NONE).await.unwrap();
        let db = administrator().await;
        let digest = |key: &ApiKey| key.digest.as_bytes().to_vec();
        let (second, taken) = (digest(&key(2)), digest(&key(9)));
        let copy = format!(
            "INSERT INTO {schema}.keys (id, org, name, key_prefix, digest, status, allowlist, \
             created_at, revision) SELECT gen_random_uuid(), org, name, key_prefix, $2, status, \
             allowlist, created_at, revision FROM {schema}.keys WHERE digest = $1"
        );
        let replace = format!("UPDATE {schema}.keys SET digest = $2 WHERE digest = $1");
        for statement in [&copy, &replace] {
            let refused = db.execute(statement, &[&second, &taken]).await.unwrap_err();
            assert_eq!(refused.code(), Some(&SqlState::UNIQUE_VIOLATION), "{refused:?}");
        }
        let found = store.find_by_digest(&previous.digest).await.unwrap().unwrap();
        assert_eq!(*found, old);
        // Many in one transaction take few locks.
        let many = format!(
            "INSERT INTO {schema}.keys (id, org, name, key_prefix, digest, status, allowlist, \
             created_at, revision) SELECT gen_random_uuid(), org, name, key_prefix, \
             sha256(n::text::bytea), status, allowlist, created_at, revision \
             FROM {schema}.keys, generate_series(1, 30000) AS n WHERE digest = $1"
        );
        assert_eq!(db.execute(&many, &[&second]).await.unwrap(), 30_000);
    })
    .await;
}
