//! The tables, and their migrations.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::store::postgres::connection::{Connection, Parameters};
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::partitioning;
use crate::store::sql::{self, KEYS};

/// Each migrates the schema from its position to the next. Released ones never change.
const MIGRATIONS: [&str; 16] = [
    // Times are microseconds since 1970. The rows of `organisations` exist to be locked.
    // Characters that PostgreSQL cannot store are escaped as U+FDD0 and a digit.
    "CREATE TABLE {schema}.organisations (org text PRIMARY KEY);

     CREATE TABLE {schema}.keys (
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
     CREATE INDEX keys_by_org ON {schema}.keys (org, created_at, id);

     CREATE TABLE {schema}.requests (
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
     CREATE INDEX requests_by_time ON {schema}.requests (at);

     CREATE TABLE {schema}.changes (
         key    uuid   NOT NULL,
         at     bigint NOT NULL,
         id     uuid   NOT NULL,
         org    text   NOT NULL,
         actor  text   NOT NULL,
         action text   NOT NULL,
         phase  text   NOT NULL,
         PRIMARY KEY (key, at, id)
     );
     CREATE INDEX changes_by_org ON {schema}.changes (org, at, id);
     CREATE INDEX changes_by_time ON {schema}.changes (at);",
    // Every change of a key except its last use is announced on the channel named after the
    // schema, as the key's id or `*` for all. Triggers do this, so that changes made by
    // hand or by an older version are announced as well, and with ALWAYS those from logical
    // replication, too. To keep announcements in order, PostgreSQL commits such
    // transactions one after the other.
    "CREATE FUNCTION {schema}.announce_change() RETURNS trigger
     LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
     BEGIN
         IF TG_OP = 'TRUNCATE' THEN
             PERFORM pg_notify(TG_TABLE_SCHEMA, '*');
         END IF;
         IF TG_OP IN ('UPDATE', 'DELETE') THEN
             PERFORM pg_notify(TG_TABLE_SCHEMA, OLD.id::text);
         END IF;
         IF TG_OP IN ('INSERT', 'UPDATE') THEN
             PERFORM pg_notify(TG_TABLE_SCHEMA, NEW.id::text);
         END IF;
         RETURN NULL;
     END
     $body$;

     CREATE TRIGGER announce_change AFTER INSERT OR DELETE OR UPDATE OF
         id, org, name, key_prefix, digest, status, allowlist, created_at, expires_at,
         rotated_at, revision
     ON {schema}.keys FOR EACH ROW EXECUTE FUNCTION {schema}.announce_change();
     CREATE TRIGGER announce_truncation AFTER TRUNCATE
     ON {schema}.keys FOR EACH STATEMENT EXECUTE FUNCTION {schema}.announce_change();
     ALTER TABLE {schema}.keys ENABLE ALWAYS TRIGGER announce_change;
     ALTER TABLE {schema}.keys ENABLE ALWAYS TRIGGER announce_truncation;",
    // How many requests a row stands for.
    "ALTER TABLE {schema}.requests ADD COLUMN count bigint NOT NULL DEFAULT 1;",
    // Changes are announced on a channel that another role cannot guess. Its name is in
    // `schema_version` and not in the function, whose text every role may read. The
    // schema's name is not in the text either, so that a schema can be renamed. The table's
    // oid is part of the channel, so that a restored table has a different channel.
    // Processes of earlier versions listen on the channel named after the schema. The lock
    // waits for transactions that have announced a change only there.
    "LOCK TABLE {schema}.keys IN SHARE ROW EXCLUSIVE MODE;
     ALTER TABLE {schema}.schema_version
         ADD COLUMN channel uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid();
     CREATE OR REPLACE FUNCTION {schema}.announce_change() RETURNS trigger
     LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
     DECLARE
         secret text;
         name   text;
     BEGIN
         EXECUTE format(
             'SELECT channel || '' '' || tableoid FROM %I.schema_version', TG_TABLE_SCHEMA
         ) INTO STRICT secret;
         FOREACH name IN ARRAY ARRAY[secret, TG_TABLE_SCHEMA] LOOP
             IF TG_OP = 'TRUNCATE' THEN
                 PERFORM pg_notify(name, '*');
             END IF;
             IF TG_OP IN ('UPDATE', 'DELETE') THEN
                 PERFORM pg_notify(name, OLD.id::text);
             END IF;
             IF TG_OP IN ('INSERT', 'UPDATE') THEN
                 PERFORM pg_notify(name, NEW.id::text);
             END IF;
         END LOOP;
         RETURN NULL;
     END
     $body$;",
    // A creation in one round trip. Each statement of a function sees what was committed
    // before it, so the count includes keys inserted before the organisation was locked.
    // The schema is a parameter, so that a schema can be renamed. From now on the rows of
    // organisations without keys are deleted.
    "CREATE FUNCTION {schema}.insert_key(
         own_schema text, new_id uuid, new_org text, new_name text, new_key_prefix text, new_digest bytea,
         new_status text, new_allowlist text[], new_created_at bigint, new_expires_at bigint,
         new_rotated_at bigint, new_last_used_at bigint, new_revision bigint,
         max_keys bigint, deadline bigint, time_window bigint, patience text
     ) RETURNS text
     LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
     BEGIN
         PERFORM set_config('search_path', 'pg_catalog, ' || own_schema || ', pg_temp', true),
             set_config('lock_timeout', patience, true);
         INSERT INTO organisations (org) VALUES (new_org)
             ON CONFLICT (org) DO UPDATE SET org = excluded.org;
         IF NOT deadline - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
             BETWEEN 1 AND time_window THEN
             RETURN 'late';
         END IF;
         IF EXISTS (SELECT 1 FROM keys WHERE id = new_id OR digest = new_digest) THEN
             RETURN 'taken';
         END IF;
         IF (SELECT count(*) FROM keys WHERE org = new_org) >= max_keys THEN
             RETURN 'full';
         END IF;
         INSERT INTO keys (id, org, name, key_prefix, digest, status, allowlist,
                 created_at, expires_at, rotated_at, last_used_at, revision)
             VALUES (new_id, new_org, new_name, new_key_prefix, new_digest, new_status,
                 new_allowlist, new_created_at, new_expires_at, new_rotated_at,
                 new_last_used_at, new_revision);
         RETURN 'done';
     END
     $body$;
     DELETE FROM {schema}.organisations AS organisations
         WHERE NOT EXISTS (SELECT 1 FROM {schema}.keys WHERE keys.org = organisations.org);",
    // A JSON object of parts that are never searched for.
    "ALTER TABLE {schema}.keys ADD COLUMN attributes text NOT NULL DEFAULT '{}';",
    // The secret from before a rotation, and until when it works. Which of its secrets a
    // request was made with. No unique index covers current and previous digests, so a
    // trigger compares them. It first locks new ones until the transaction ends, so that
    // the next one to write the same sees it. They are locked in groups, of which there are
    // few, since the server has little room for locks. Old tables may lack the statistics by
    // which the planner would use the indexes.
    "ALTER TABLE {schema}.keys ADD COLUMN previous_digest bytea, ADD COLUMN previous_until bigint;
     CREATE UNIQUE INDEX keys_by_previous_digest ON {schema}.keys (previous_digest)
         WHERE previous_digest IS NOT NULL;
     ALTER TABLE {schema}.requests ADD COLUMN secret text NOT NULL DEFAULT 'current';

     CREATE FUNCTION {schema}.check_digests() RETURNS trigger
     LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $body$
     DECLARE
         new_digests bytea[] := array_remove(ARRAY[NEW.digest, NEW.previous_digest], NULL);
         lock_group integer;
     BEGIN
         IF TG_OP = 'UPDATE' THEN
             new_digests := array_remove(array_remove(new_digests, OLD.digest), OLD.previous_digest);
         END IF;
         FOR lock_group IN
             SELECT DISTINCT (get_byte(digest, 0) * 256 + get_byte(digest, 1)) % 1024 AS number
             FROM unnest(new_digests) AS digest WHERE length(digest) >= 2 ORDER BY number
         LOOP
             PERFORM pg_advisory_xact_lock(TG_RELID::integer, lock_group);
         END LOOP;
         IF cardinality(new_digests) > 0 THEN
             PERFORM set_config(
                 'search_path', 'pg_catalog, ' || quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true
             );
             IF EXISTS (SELECT 1 FROM keys WHERE digest = ANY(new_digests) AND id <> NEW.id)
                 OR EXISTS (SELECT 1 FROM keys WHERE previous_digest = ANY(new_digests) AND id <> NEW.id)
             THEN
                 RAISE unique_violation USING MESSAGE = 'another key has the digest';
             END IF;
         END IF;
         RETURN NULL;
     END
     $body$;
     CREATE TRIGGER check_digests AFTER INSERT OR UPDATE OF digest, previous_digest
     ON {schema}.keys FOR EACH ROW EXECUTE FUNCTION {schema}.check_digests();",
    // A JSON array of the fields that a change has changed.
    "ALTER TABLE {schema}.changes ADD COLUMN fields text NOT NULL DEFAULT '[]';",
    // How many requests of each key there were in each hour, from now on. Each server process
    // (`writer`) has rows of its own, so that statements do not wait for each other.
    "CREATE TABLE {schema}.hourly_usage (
         key           uuid   NOT NULL,
         org           text   NOT NULL,
         hour          bigint NOT NULL,
         writer        integer NOT NULL,
         allowed       bigint NOT NULL,
         client_errors bigint NOT NULL,
         server_errors bigint NOT NULL,
         aborted       bigint NOT NULL,
         refused       bigint NOT NULL,
         PRIMARY KEY (key, org, hour, writer)
     );
     CREATE INDEX hourly_usage_by_time ON {schema}.hourly_usage (hour);
     -- Roles that may use the log may count in it.
     DO $body$
     DECLARE
         granted record;
     BEGIN
         FOR granted IN
             SELECT CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role,
                 CASE privilege_type WHEN 'INSERT' THEN 'INSERT, UPDATE' ELSE privilege_type END
                     AS rights
             FROM pg_class, aclexplode(relacl)
             WHERE oid = '{schema}.requests'::regclass AND grantee <> relowner
                 AND privilege_type IN ('SELECT', 'INSERT', 'DELETE')
         LOOP
             EXECUTE format(
                 'GRANT %s ON {schema}.hourly_usage TO %s', granted.rights, granted.role
             );
         END LOOP;
     END
     $body$;",
    // For operators. `active_day` is the day, since 1970, of the last use or else of the
    // creation. An index on the time itself would change with each use. The day of a key from
    // before this migration is 0 until its next use.
    "ALTER TABLE {schema}.keys ADD COLUMN active_day bigint NOT NULL DEFAULT 0;
     CREATE FUNCTION {schema}.set_active_day() RETURNS trigger
     LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
     DECLARE
         day    bigint := 86400000000;
         active bigint := coalesce(NEW.last_used_at, NEW.created_at);
     BEGIN
         NEW.active_day := (active - ((active % day) + day) % day) / day;
         RETURN NEW;
     END
     $body$;
     CREATE TRIGGER set_active_day BEFORE INSERT OR UPDATE OF last_used_at
     ON {schema}.keys FOR EACH ROW EXECUTE FUNCTION {schema}.set_active_day();
     CREATE INDEX keys_by_prefix ON {schema}.keys (key_prefix, id);
     CREATE INDEX keys_by_expiry ON {schema}.keys (expires_at, id) WHERE expires_at IS NOT NULL;
     CREATE INDEX keys_by_activity ON {schema}.keys (active_day, id);",
    partitioning::TABLES,
    partitioning::MAKE,
    partitioning::DETACH,
    partitioning::DROP,
    partitioning::RIGHTS,
    partitioning::SAMPLE,
];

/// Objects that depend on the columns of the table of keys, recreated after the migrations:
/// the function that inserts a key, and the trigger that announces changes. The functions
/// of earlier versions are kept for processes that are not upgraded yet.
fn routines() -> String {
    let columns = sql::key_columns();
    let taken = sql::list(KEYS.map(|column| format!("new_{} {}", column.name, column.sql_type)));
    let values = sql::list(KEYS.map(|column| format!("new_{}", column.name)));
    let announced = sql::announced();
    format!(
        "CREATE OR REPLACE FUNCTION {{schema}}.insert_key(
             own_schema text, {taken},
             max_keys bigint, deadline bigint, time_window bigint, patience text
         ) RETURNS text
         LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
         BEGIN
             PERFORM set_config('search_path', 'pg_catalog, ' || own_schema || ', pg_temp', true),
                 set_config('lock_timeout', patience, true);
             INSERT INTO organisations (org) VALUES (new_org)
                 ON CONFLICT (org) DO UPDATE SET org = excluded.org;
             IF NOT deadline - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                 BETWEEN 1 AND time_window THEN
                 RETURN 'late';
             END IF;
             IF EXISTS (SELECT 1 FROM keys WHERE id = new_id OR digest = new_digest) THEN
                 RETURN 'taken';
             END IF;
             IF (SELECT count(*) FROM keys WHERE org = new_org) >= max_keys THEN
                 RETURN 'full';
             END IF;
             INSERT INTO keys ({columns}) VALUES ({values});
             RETURN 'done';
         END
         $body$;

         DROP TRIGGER announce_change ON {{schema}}.keys;
         CREATE TRIGGER announce_change AFTER INSERT OR DELETE OR UPDATE OF {announced}
         ON {{schema}}.keys FOR EACH ROW EXECUTE FUNCTION {{schema}}.announce_change();
         ALTER TABLE {{schema}}.keys ENABLE ALWAYS TRIGGER announce_change;"
    )
}

pub(super) const CURRENT: i64 = MIGRATIONS.len() as i64;

/// How often a migration is retried after a conflict with another process.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// How long the whole migration may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);
/// How long an attempt waits for a table that is in use. Queries that need the table wait
/// behind it, and their deadline is a second.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// The pause before the next attempt, in which those queries run.
const LOCK_PAUSE: Duration = Duration::from_secs(1);
/// How long locking the tables is attempted.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Why the schema cannot be used.
#[derive(Debug)]
pub(super) enum SchemaError {
    TooNew { found: i64 },
    NotKeygate,
    NotUtf8 { encoding: String },
    NoRights { missing: String },
    InUse,
    Failed(DbError),
}

impl From<DbError> for SchemaError {
    fn from(fault: DbError) -> Self {
        Self::Failed(fault)
    }
}

/// Migrates the schema. Several processes may do so at once. A current schema is only read,
/// which requires no right to change it.
pub(super) async fn open(db: &Connection, schema: &str) -> Result<(), SchemaError> {
    check_encoding(db).await?;
    migrate(db, schema).await?;
    check_rights(db, schema).await
}

/// Names may be in any script, and other encodings lack characters.
async fn check_encoding(db: &Connection) -> Result<(), SchemaError> {
    let sql = "SELECT pg_catalog.current_setting('server_encoding')";
    match text(db, sql, &[]).await? {
        Some(encoding) if encoding != "UTF8" => Err(SchemaError::NotUtf8 { encoding }),
        _ => Ok(()),
    }
}

/// The rights that every store needs. Purging audit records needs more, which may be
/// denied.
async fn check_rights(db: &Connection, schema: &str) -> Result<(), SchemaError> {
    let sql = "SELECT string_agg(missing, ', ') FROM ( \
         SELECT needed || ' on ' || relname AS missing FROM (VALUES \
         ('schema_version', ARRAY['SELECT']), \
         ('organisations', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']), \
         ('keys', ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']), \
         ('requests', ARRAY['SELECT', 'INSERT']), \
         ('changes', ARRAY['SELECT', 'INSERT']), \
         ('hourly_usage', ARRAY['SELECT', 'INSERT', 'UPDATE']) \
         ) AS tables (name, rights), unnest(rights) AS needed, pg_catalog.pg_class \
         JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace \
         WHERE nspname = $1 AND relname = tables.name \
         AND NOT pg_catalog.has_table_privilege(pg_class.oid, needed) \
         UNION ALL \
         SELECT DISTINCT 'EXECUTE on ' || proname FROM pg_catalog.pg_proc \
         JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pronamespace \
         WHERE nspname = $1 AND proname IN ('insert_key', 'make_partitions') \
         AND NOT pg_catalog.has_function_privilege(pg_proc.oid, 'EXECUTE')) AS all_missing";
    match text(db, sql, &[(&schema as _, Type::TEXT)]).await? {
        Some(missing) => Err(SchemaError::NoRights { missing }),
        None => Ok(()),
    }
}

async fn migrate(db: &Connection, schema: &str) -> Result<(), SchemaError> {
    let begun = Instant::now();
    let mut attempt = 1;
    loop {
        let fault = match migrate_once(db, schema).await {
            Err(SchemaError::Failed(fault)) => fault,
            done => return done,
        };
        if fault.costs_the_connection() {
            return Err(fault.into());
        }
        db.run("ROLLBACK").await?;
        if fault.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            if begun.elapsed() >= LOCK_PATIENCE {
                return Err(SchemaError::InUse);
            }
            sleep(LOCK_PAUSE).await;
            continue;
        }
        if !is_race(&fault) || attempt == ATTEMPTS {
            // No other process is migrating any more, but a table is still in the way.
            let others = [SqlState::DUPLICATE_TABLE, SqlState::UNDEFINED_COLUMN];
            let taken = fault.code().is_some_and(|code| others.contains(code));
            return Err(if taken { SchemaError::NotKeygate } else { fault.into() });
        }
        sleep(PAUSE).await;
        attempt += 1;
    }
}

async fn migrate_once(db: &Connection, schema: &str) -> Result<(), SchemaError> {
    let quoted = format!("\"{schema}\"");
    // Checked first, since `IF NOT EXISTS` needs the right to create a schema even if it
    // exists.
    if !exists(db, "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", schema).await? {
        db.run(&format!("CREATE SCHEMA {quoted}")).await?;
    }
    let version_table = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = $1 \
                         AND tablename = 'schema_version'";
    let read = format!("SELECT version FROM {quoted}.schema_version");
    if exists(db, version_table, schema).await? {
        match version(db, &read).await? {
            Some(CURRENT) => return Ok(()),
            Some(found) if found > CURRENT => return Err(SchemaError::TooNew { found }),
            _ => {}
        }
    }
    db.run(&format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {}; \
         SET LOCAL statement_timeout = {}",
        LOCK_TIMEOUT.as_millis(),
        TIMEOUT.as_millis()
    ))
    .await?;
    db.run(&format!(
        "CREATE TABLE IF NOT EXISTS {quoted}.schema_version \
         (one boolean PRIMARY KEY DEFAULT true CHECK (one), version bigint NOT NULL); \
         INSERT INTO {quoted}.schema_version (version) VALUES (0) ON CONFLICT DO NOTHING"
    ))
    .await?;
    let found = version(db, &format!("{read} FOR UPDATE")).await?.unwrap_or_default();
    if found > CURRENT {
        db.run("ROLLBACK").await?;
        return Err(SchemaError::TooNew { found });
    }
    let done = usize::try_from(found).unwrap_or_default();
    for migration in MIGRATIONS.iter().skip(done) {
        db.run(&migration.replace("{schema}", &quoted)).await?;
    }
    db.run(&routines().replace("{schema}", &quoted)).await?;
    db.run(&format!("UPDATE {quoted}.schema_version SET version = {CURRENT}; COMMIT")).await?;
    Ok(())
}

async fn exists(db: &Connection, sql: &str, schema: &str) -> Result<bool> {
    let parameters = [(&schema as _, Type::TEXT)];
    Ok(!db.client().query_typed(sql, &parameters).await?.is_empty())
}

async fn version(db: &Connection, sql: &str) -> Result<Option<i64>> {
    let rows = db.client().query_typed(sql, &[]).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}

async fn text(db: &Connection, sql: &str, parameters: &Parameters<'_>) -> Result<Option<String>> {
    let rows = db.client().query_typed(sql, parameters).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?.flatten())
}

/// Errors that a process may get while another one creates the same tables.
fn is_race(fault: &DbError) -> bool {
    let races = [
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_SCHEMA,
        SqlState::DUPLICATE_TABLE,
        // A table is also a type.
        SqlState::DUPLICATE_OBJECT,
        SqlState::INTERNAL_ERROR,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        // The table was there, but its transaction has not committed yet, or was rolled
        // back.
        SqlState::UNDEFINED_TABLE,
    ];
    fault.code().is_some_and(|code| races.contains(code))
}
