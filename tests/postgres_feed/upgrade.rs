//! A schema of an earlier version, upgraded while it is in use.

use std::future::poll_fn;

use keygate::error::PostgresOpenError;
use keygate::store::{KeySearch, OrgLimit, PreviousSecret, Search};
use keygate::{ApiKey, KeyStore, Timestamp};
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::postgres_support::{Role, Schema, count, key, new_key, org, url};
use crate::recorder::{Recorder, changed};
use crate::support::soon;

/// The tables of version 1, with one key.
pub(crate) const VERSION_1: &str = "
    CREATE SCHEMA {schema};
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
        NULL, NULL, NULL, 1);";

/// The additions of version 3.
const VERSION_3: &str = "
    CREATE FUNCTION announce_change() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_notify(TG_TABLE_SCHEMA, (coalesce(NEW, OLD)).id::text); RETURN NULL; END';
    CREATE TRIGGER announce_change AFTER INSERT OR DELETE OR UPDATE OF
        id, org, name, key_prefix, digest, status, allowlist, created_at, expires_at,
        rotated_at, revision
    ON keys FOR EACH ROW EXECUTE FUNCTION announce_change();
    ALTER TABLE requests ADD COLUMN count bigint NOT NULL DEFAULT 1;
    UPDATE schema_version SET version = 3;";

/// A schema of an earlier version, and a session in it.
pub(crate) async fn earlier_schema(statements: &str) -> (Schema, Client) {
    let schema = Schema::new();
    let db = schema.db().await;
    db.batch_execute(&statements.replace("{schema}", &schema.name)).await.unwrap();
    (schema, db)
}

async fn version(db: &Client) -> i64 {
    count(db, "SELECT version FROM schema_version").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn eight_stores_upgrade_a_schema_while_an_older_version_writes() {
    let newest = Schema::new();
    drop(newest.store().await);
    let newest = version(&newest.db().await).await;
    for _ in 0..3 {
        let (schema, db) = earlier_schema(VERSION_1).await;
        let write = "BEGIN; UPDATE keys SET revision = revision + 1; SELECT pg_sleep(0.05); \
                     UPDATE keys SET revision = revision - 1; COMMIT";
        let older = schema.db().await;
        let writer = tokio::spawn(async move {
            for _ in 0..10 {
                older.batch_execute(write).await.unwrap();
            }
        });
        let stores = (0..8).map(|_| schema.options().connect()).collect::<JoinSet<_>>();
        let stores: Vec<_> = stores.join_all().await.into_iter().map(Result::unwrap).collect();
        writer.await.unwrap();
        assert_eq!(version(&db).await, newest);
        let found = stores[0].find_by_digest(&key(1).digest).await.unwrap().unwrap();
        assert_eq!(*found, key(1));
        // The day of its last use is not known, but it is found.
        let unused = Search::UnusedSince(Timestamp::MAX);
        let page = stores[0].search(&unused, None, 10).await.unwrap();
        assert!(page.keys.len() == 1 && *page.keys[0] == key(1), "{page:?}");
        let recorder = Recorder::by(&stores[1]);
        assert_eq!(recorder.of(db.batch_execute(write)).await, changed(key(1).id));
        let news = recorder.of(stores[2].insert(&key(2), OrgLimit::NONE)).await;
        assert_eq!(news, changed(key(2).id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_role_that_may_only_use_the_tables_waits_for_their_owner_and_then_announces() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    let role = Role::new().await;
    let grants = format!(
        "GRANT USAGE ON SCHEMA {0} TO {1}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {0} TO {1}",
        schema.name, role.name
    );
    db.batch_execute(&grants).await.unwrap();
    let limited = schema.options_at(&role.url());
    let too_early = limited.clone().connect().await.unwrap_err();
    assert!(matches!(too_early, PostgresOpenError::NoRights { .. }), "{too_early:?}");
    let owner = schema.store().await;
    let store = limited.connect().await.unwrap();
    let new = new_key(&org("acme"));
    let recorder = Recorder::by(&owner);
    assert_eq!(recorder.of(store.insert(&new, OrgLimit::NONE)).await, changed(new.id));
    let recorder = Recorder::by(&store);
    assert_eq!(recorder.of(store.delete(&new.org, &new.id, None)).await, changed(new.id));
}

/// A transaction has announced a change only to processes of the earlier version. It ends when
/// a newer process relies on its own channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn changes_made_before_an_upgrade_are_committed_before_it() {
    let (schema, watcher) = earlier_schema(&format!("{VERSION_1}{VERSION_3}")).await;
    let db = schema.lock("UPDATE keys SET status = 'revoked'").await;
    let opening = tokio::spawn(schema.options().connect());
    schema.until_lock_wait().await;
    assert_eq!(version(&watcher).await, 3);
    db.batch_execute("COMMIT").await.unwrap();
    opening.await.unwrap().unwrap();
    assert!(version(&watcher).await > 3);
}

/// Processes of version 3 and earlier listen on the channel named like the schema, and may
/// still run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_process_of_an_earlier_version_still_receives_announcements() {
    let schema = Schema::new();
    let store = schema.store().await;
    let (earlier, mut wire) = tokio_postgres::connect(&url(), NoTls).await.unwrap();
    let (hear, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| wire.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                hear.send(notification.payload().to_owned()).unwrap();
            }
        }
    });
    earlier.batch_execute(&format!("LISTEN {}", schema.name)).await.unwrap();
    store.insert(&key(1), OrgLimit::NONE).await.unwrap();
    assert_eq!(soon(heard.recv()).await.unwrap(), key(1).id.to_string());
    schema.db().await.batch_execute("TRUNCATE keys").await.unwrap();
    assert_eq!(soon(heard.recv()).await.unwrap(), "*");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_55_a_migration_beside_a_long_transaction_blocks_no_other_session_and_gives_up() {
    let (schema, db) = earlier_schema(VERSION_1).await;
    let long = schema.lock("SELECT count(*) FROM requests").await;
    let opening = tokio::spawn(schema.options().connect());
    schema.until_lock_wait().await;
    // Others read and write what the migration waits for.
    db.batch_execute("SET statement_timeout = '2s'").await.unwrap();
    let write = "SELECT count(*) FROM requests; UPDATE keys SET last_used_at = NULL";
    let mut uses = 0;
    while !opening.is_finished() {
        db.batch_execute(write).await.unwrap();
        uses += 1;
    }
    assert!(uses > 10, "{uses}");
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, PostgresOpenError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains(&schema.name), "{error}");
    assert_eq!(version(&db).await, 1);

    schema.sessions_end().await;
    let opening = tokio::spawn(schema.options().connect());
    schema.until_lock_wait().await;
    long.batch_execute("COMMIT").await.unwrap();
    let store = opening.await.unwrap().unwrap();
    assert_eq!(*store.get(&key(1).org, &key(1).id).await.unwrap().unwrap(), key(1));
}

/// The statements of an earlier version know nothing of previous digests.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn case_59_a_previous_digest_belongs_to_one_key_for_an_earlier_version_too() {
    let schema = Schema::new();
    let store = schema.store().await;
    let previous = PreviousSecret { digest: key(9).digest, until: Timestamp::MAX };
    let old = ApiKey { previous: Some(previous), ..key(1) };
    store.insert(&old, OrgLimit::NONE).await.unwrap();
    store.insert(&key(2), OrgLimit::NONE).await.unwrap();
    let db = schema.db().await;
    let digest = |key: &ApiKey| key.digest.as_bytes().to_vec();
    let (second, taken) = (digest(&key(2)), digest(&key(9)));
    let copy = "INSERT INTO keys (id, org, name, key_prefix, digest, status, allowlist, \
             created_at, revision) SELECT gen_random_uuid(), org, name, key_prefix, $2, status, \
             allowlist, created_at, revision FROM keys WHERE digest = $1";
    let replace = "UPDATE keys SET digest = $2 WHERE digest = $1";
    for statement in [copy, replace] {
        let refused = db.execute(statement, &[&second, &taken]).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::UNIQUE_VIOLATION), "{refused:?}");
    }
    let found = store.find_by_digest(&previous.digest).await.unwrap().unwrap();
    assert_eq!(*found, old);
    // Many in one transaction take few locks.
    let many = "INSERT INTO keys (id, org, name, key_prefix, digest, status, allowlist, \
             created_at, revision) SELECT gen_random_uuid(), org, name, key_prefix, \
             sha256(n::text::bytea), status, allowlist, created_at, revision \
             FROM keys, generate_series(1, 30000) AS n WHERE digest = $1";
    assert_eq!(db.execute(many, &[&second]).await.unwrap(), 30_000);
}
