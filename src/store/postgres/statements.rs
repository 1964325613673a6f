//! The SQL statements, generated for the schema in use.

use crate::store::sql::{self, CHANGES, COUNTS, KEYS, REQUESTS};

/// A query for whole rows of keys.
macro_rules! keys {
    ($condition:literal) => {
        concat!("SELECT {key columns} FROM {schema}.keys ", $condition)
    };
}

/// The records between two places, in the order that pages are assembled from. With a limit
/// on an index in that order, this is a short scan at any table size. The time is compared
/// alone as well, since only that excludes partitions.
macro_rules! page {
    ($table:literal, $columns:literal, $scope:expr, $order:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM {schema}.",
            $table,
            " WHERE ",
            $scope,
            " AND (at, id) > ($3, $4) AND (at, id) < ($5, $6) AND at >= $3 AND at <= $5 ORDER BY at ",
            $order,
            ", id ",
            $order,
            " LIMIT $7"
        )
    };
}

/// The records of one key. The condition is written so that the planner cannot estimate how
/// many belong to the organisation: it would guess few, read all and sort them.
macro_rules! of_key {
    () => {
        "CASE WHEN org = $1 THEN true END AND key = $2"
    };
}

/// Rows are locked in the order of the index, so that concurrent purges wait for each other
/// instead of deadlocking, and neither ends before the rows are gone. The limit is not a
/// parameter, since a plan for any number of rows reads the whole table. Each batch begins
/// where the last one ended, since deleted rows are still scanned while a snapshot may need
/// them.
macro_rules! purge {
    ($table:literal) => {
        concat!(
            "WITH old AS (SELECT key, at, id FROM {schema}.",
            $table,
            " WHERE at < $1 AND at >= $2 AND $3 ORDER BY at LIMIT 1000 FOR UPDATE), gone AS (DELETE FROM {schema}.",
            $table,
            " AS rows USING old WHERE rows.key = old.key AND rows.at = old.at \
             AND rows.id = old.id RETURNING rows.at) \
             SELECT count(*) AS purged, max(at) AS last FROM gone"
        )
    };
}

/// The server's time, in microseconds since 1970.
macro_rules! micros {
    () => {
        "(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint"
    };
}
pub(super) use micros;

/// A change of one key. Its last three parameters are those of
/// [`Patience::of_a_change`](super::session::Patience::of_a_change). The row is locked at
/// the expected revision before the clock is read: however long the statement waited, it
/// changes nothing after its deadline.
macro_rules! change {
    ($revision:literal, $deadline:literal, $window:literal, $lock_timeout:literal, $change:expr) => {
        concat!(
            "WITH locked AS MATERIALIZED (SELECT id FROM {schema}.keys WHERE id = $1 AND org = $2 AND ",
            $revision,
            " AND (SELECT pg_catalog.set_config('lock_timeout', ",
            $lock_timeout,
            ", true)) IS NOT NULL FOR UPDATE), \
             timely AS MATERIALIZED (SELECT id FROM locked WHERE ",
            $deadline,
            " - ",
            micros!(),
            " BETWEEN 1 AND ",
            $window,
            "), ",
            $change,
            " SELECT EXISTS (SELECT 1 FROM changed) AS done, \
             EXISTS (SELECT 1 FROM {schema}.keys WHERE id = $1 AND org = $2) AS present, \
             EXISTS (SELECT 1 FROM locked) AND NOT EXISTS (SELECT 1 FROM timely) AS late, ",
            micros!(),
            " AS now"
        )
    };
}

macro_rules! statements {
    ($($(#[$condition:meta])? $name:ident: $text:expr,)*) => {
        /// Names a statement.
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Sql {
            $($(#[$condition])? $name,)*
        }

        const TEMPLATES: &[&str] = &[$($(#[$condition])? $text,)*];
    };
}

statements! {
    FindByDigest: keys!("WHERE digest = $1 OR previous_digest = $1"),
    GetKey: keys!("WHERE id = $1 AND org = $2"),
    ListKeys: keys!("WHERE org = $1 ORDER BY created_at, id"),
    FindById: keys!("WHERE id = $1"),
    KeysWithPrefix: keys!("WHERE key_prefix = $1 AND id >= $2 ORDER BY id LIMIT $3"),
    ExpiringKeys: keys!(
        "WHERE (expires_at, id) > ($1, $2) AND expires_at < $3 ORDER BY expires_at, id LIMIT $4"),
    UnusedKeys: "SELECT {key columns}, active_day FROM {schema}.keys \
        WHERE (active_day, id) > ($1, $2) AND active_day <= $3 ORDER BY active_day, id LIMIT $4",
    ExportKeys: keys!("WHERE id >= $1 ORDER BY id LIMIT $2"),
    // In a function, so that it is one round trip and each step sees what was committed
    // before the organisation was locked.
    InsertKey: concat!(
        "SELECT {schema}.insert_key('{schema}', {insertion}) AS result, ", micros!(), " AS now"),
    // Organisations are locked in order, so that two batches do not deadlock, and before the
    // clock is read. Not by calls of `insert_key`: each would plan its statements again.
    InsertKeys: concat!(
        "WITH new AS MATERIALIZED (SELECT * FROM unnest({key values}) AS new ({key columns}) \
         WHERE (SELECT pg_catalog.set_config('lock_timeout', {insert patience}, true)) IS NOT NULL), \
         locked AS (INSERT INTO {schema}.organisations (org) SELECT DISTINCT org FROM new ORDER BY org \
         ON CONFLICT (org) DO UPDATE SET org = excluded.org RETURNING 1), \
         timely AS MATERIALIZED (SELECT {insert by} - ", micros!(), " BETWEEN 1 AND {insert window} AS timely \
         FROM (SELECT count(*) FROM locked) AS locked), \
         inserted AS (INSERT INTO {schema}.keys ({key columns}) SELECT {insertions} FROM new \
         WHERE (SELECT timely FROM timely) ON CONFLICT DO NOTHING RETURNING id) \
         SELECT ARRAY(SELECT id FROM inserted) AS inserted, (SELECT timely FROM timely) AS timely, ",
        micros!(), " AS now"),
    ReplaceKey: change!("revision = $3", "{edit by}", "{edit window}", "{edit patience}",
        "changed AS (UPDATE {schema}.keys AS keys SET {edited} \
         FROM timely WHERE keys.id = timely.id RETURNING 1)"),
    // The row of an organisation without keys is deleted as well, unless it is locked: it
    // exists only to be locked, and the next creation adds it again.
    DeleteKey: change!("($3 IS NULL OR revision = $3)", "$4", "$5", "$6",
        "changed AS (DELETE FROM {schema}.keys AS keys USING timely WHERE keys.id = timely.id \
         RETURNING 1), \
         left_over AS MATERIALIZED (SELECT org FROM {schema}.organisations WHERE org = $2 \
         AND EXISTS (SELECT 1 FROM changed) \
         AND NOT EXISTS (SELECT 1 FROM {schema}.keys WHERE org = $2 AND id <> $1) \
         FOR UPDATE SKIP LOCKED), \
         forgotten AS (DELETE FROM {schema}.organisations USING left_over \
         WHERE organisations.org = left_over.org)"),
    // What a creation, an edit and its announcement need, without changing a row.
    Probe: "WITH organisation AS (INSERT INTO {schema}.organisations (org) SELECT '' WHERE false), \
        created AS (INSERT INTO {schema}.keys SELECT * FROM {schema}.keys WHERE false), \
        edited AS (UPDATE {schema}.keys SET revision = revision WHERE false), \
        deleted AS (DELETE FROM {schema}.keys WHERE false) \
        SELECT count(*) FROM {schema}.schema_version",
    // Locked in the order of their ids, so that two batches that name the same keys in
    // opposite order do not deadlock. A locked row is skipped and counted. A stored time a
    // day ahead was set by a wrong clock.
    RecordUses: "WITH locked AS MATERIALIZED (SELECT id FROM {schema}.keys WHERE id = ANY($1) \
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED), \
        written AS (UPDATE {schema}.keys AS keys SET last_used_at = uses.at \
        FROM locked JOIN unnest($1, $2) AS uses (id, at) ON uses.id = locked.id \
        WHERE keys.id = locked.id AND (keys.last_used_at IS NULL OR keys.last_used_at < uses.at \
        OR keys.last_used_at > uses.at + 86400000000)) \
        SELECT (SELECT count(*) FROM {schema}.keys WHERE id = ANY($1)) \
        - (SELECT count(*) FROM locked) AS left_out",
    // Requests are written and counted in one statement, so that one does not happen without
    // the other. It fails if one of them is stored already: checking for that in advance, for
    // each row, takes time. So does one `unnest` of several arrays, which keeps their rows in
    // between.
    RecordRequests: "WITH written AS (INSERT INTO {schema}.requests ({request columns}) \
        SELECT {requests}) \
        INSERT INTO {schema}.hourly_usage (writer, key, org, hour, {counts}) \
        SELECT pg_catalog.pg_backend_pid(), {usage} \
        ON CONFLICT (key, org, hour, writer) DO UPDATE SET {added}",
    // Each is looked for in the index, whether or not there are statistics.
    StoredRequests: "SELECT given.* FROM unnest($1, $2, $3) AS given (key, at, id), \
        LATERAL (SELECT 1 FROM {schema}.requests AS stored WHERE stored.key = given.key \
        AND stored.at = given.at AND stored.id = given.id OFFSET 0) AS stored",
    MakePartitions: "SELECT {schema}.make_partitions('{schema}', $1, $2, $3) AS made",
    RecordChanges: "INSERT INTO {schema}.changes ({change columns}) \
        SELECT * FROM unnest({change values}) ON CONFLICT DO NOTHING",
    KeyRequestsBefore: page!("requests", "{request columns}", of_key!(), "DESC"),
    KeyRequestsAfter: page!("requests", "{request columns}", of_key!(), "ASC"),
    KeyChangesBefore: page!("changes", "{change columns}", of_key!(), "DESC"),
    KeyChangesAfter: page!("changes", "{change columns}", of_key!(), "ASC"),
    OrgChangesBefore: page!("changes", "{change columns}", "org = $1 AND $2 IS NULL", "DESC"),
    OrgChangesAfter: page!("changes", "{change columns}", "org = $1 AND $2 IS NULL", "ASC"),
    Usage: "SELECT hour, {total} FROM {schema}.hourly_usage \
        WHERE key = $1 AND org = $2 AND hour >= $3 AND hour < $4 GROUP BY hour ORDER BY hour",
    PurgeRequests: purge!("requests"),
    PurgeChanges: purge!("changes"),
    DetachPartitions: "SELECT {schema}.detach_partitions('{schema}', $1)",
    DetachedPartitions: "SELECT oid, relname FROM pg_catalog.pg_class \
        WHERE relnamespace = '{schema}'::pg_catalog.regnamespace AND relkind = 'r' \
        AND relname ~ '^purged_requests_[0-9]+$' AND NOT relispartition",
    DropPartition: "SELECT coalesce({schema}.drop_partition('{schema}', $1), 0) AS dropped",
    PurgeUsage: "WITH old AS (SELECT key, org, hour, writer FROM {schema}.hourly_usage \
        WHERE hour < $1 AND hour >= $2 AND $3 ORDER BY hour LIMIT 1000 FOR UPDATE), \
        gone AS (DELETE FROM {schema}.hourly_usage AS rows USING old WHERE rows.key = old.key \
        AND rows.org = old.org AND rows.hour = old.hour AND rows.writer = old.writer \
        RETURNING rows.hour) SELECT count(*) AS purged, max(hour) AS last FROM gone",
    #[cfg(feature = "cache")]
    Channel: "SELECT channel || ' ' || tableoid FROM {schema}.schema_version",
    // Nothing is sent once changes are announced on a channel other than $3.
    #[cfg(feature = "cache")]
    Notify: "SELECT pg_catalog.pg_notify($1, $2) FROM {schema}.schema_version \
        WHERE channel || ' ' || tableoid = $3",
}

impl Sql {
    pub(super) const COUNT: usize = TEMPLATES.len();

    /// Its position among all statements.
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// The number of the first parameter that an edit writes, after id, organisation and
/// expected revision.
const EDIT: usize = 4;

/// The texts of all statements for one schema.
#[derive(Debug)]
pub(super) struct Texts(Box<[String]>);

impl Texts {
    pub(super) fn new(schema: &str) -> Self {
        let (keys, edited) = (KEYS.len(), sql::edited_count());
        let parameters = |count| sql::parameters('$', 1, count);
        let unnested = |first: usize, count| {
            sql::list((first..first + count).map(|number| format!("unnest(${number})")))
        };
        let after_edit = |number| format!("${}", EDIT + edited + number);
        let places = [
            ("{schema}", format!("\"{schema}\"")),
            ("{key columns}", sql::key_columns()),
            // The row, the limit, and what `change!` needs.
            ("{insertion}", parameters(keys + 1 + 3)),
            ("{insertions}", sql::insertions()),
            ("{insert by}", format!("${}", keys + 1)),
            ("{insert window}", format!("${}", keys + 2)),
            ("{insert patience}", format!("${}", keys + 3)),
            ("{key values}", parameters(keys)),
            ("{edited}", sql::edited('$', EDIT)),
            ("{edit by}", after_edit(0)),
            ("{edit window}", after_edit(1)),
            ("{edit patience}", after_edit(2)),
            ("{request columns}", sql::list(REQUESTS)),
            ("{requests}", unnested(1, REQUESTS.len())),
            ("{counts}", sql::list(COUNTS)),
            ("{usage}", unnested(REQUESTS.len() + 1, 3 + COUNTS.len())),
            ("{added}", sql::added()),
            ("{total}", sql::list(COUNTS.map(|count| format!("sum({count})::bigint AS {count}")))),
            ("{change columns}", sql::list(CHANGES)),
            ("{change values}", parameters(CHANGES.len())),
        ];
        let filled = |text: &&str| {
            places.iter().fold((*text).to_owned(), |text, (place, with)| text.replace(place, with))
        };
        Self(TEMPLATES.iter().map(filled).collect())
    }

    pub(super) fn of(&self, statement: Sql) -> &str {
        self.0.get(statement.index()).map_or("", String::as_str)
    }
}
