//! The statements, each written out once for the schema that it works in.

/// A query for whole rows of keys.
macro_rules! keys {
    ($condition:literal) => {
        concat!(
            "SELECT id, org, name, key_prefix, digest, status, allowlist, created_at, expires_at, \
             rotated_at, last_used_at, revision FROM {schema}.keys ",
            $condition
        )
    };
}

/// One side of a cursor, in the order that pages are put together from. A limit
/// on an index in that order: a short scan, however large the table is.
macro_rules! page {
    ($table:literal, $columns:literal, $scope:expr, $side:literal, $order:literal) => {
        concat!(
            "SELECT key, at, id, org, ",
            $columns,
            " FROM {schema}.",
            $table,
            " WHERE ",
            $scope,
            " AND (at, id) ",
            $side,
            " ($3, $4) ORDER BY at ",
            $order,
            ", id ",
            $order,
            " LIMIT $5"
        )
    };
}

/// The records of one key. How many of them are the organisation's the planner
/// must not guess: it would take them for few, read all, and sort them.
macro_rules! of_key {
    () => {
        "CASE WHEN org = $1 THEN true END AND key = $2"
    };
}

/// Rows are locked in the order of the index, so that two purges at once wait
/// for each other instead of deadlocking, and neither ends before the rows are gone.
/// The limit is no parameter: a plan for any number of rows reads the whole table.
/// Each batch begins where the last one ended, since rows that are gone are still
/// walked over for as long as somebody's snapshot shows them.
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
    FindByDigest: keys!("WHERE digest = $1"),
    GetKey: keys!("WHERE id = $1 AND org = $2"),
    ListKeys: keys!("WHERE org = $1 ORDER BY created_at, id"),
    ExportKeys: keys!("WHERE id >= $1 ORDER BY id LIMIT $2"),
    AddOrganisation: "INSERT INTO {schema}.organisations (org) VALUES ($1) ON CONFLICT DO NOTHING",
    LockOrganisation: "SELECT org FROM {schema}.organisations WHERE org = $1 FOR UPDATE",
    InsertKey: "WITH taken AS (SELECT 1 FROM {schema}.keys WHERE id = $1 OR digest = $5), \
        inserted AS (INSERT INTO {schema}.keys (id, org, name, key_prefix, digest, status, \
        allowlist, created_at, expires_at, rotated_at, last_used_at, revision) \
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 \
        WHERE NOT EXISTS (SELECT 1 FROM taken) AND ($13 IS NULL OR \
        (SELECT count(*) FROM {schema}.keys WHERE org = $2) < $13) RETURNING 1) \
        SELECT EXISTS (SELECT 1 FROM inserted) AS done, EXISTS (SELECT 1 FROM taken) AS taken",
    ReplaceKey: "WITH changed AS (UPDATE {schema}.keys SET name = $4, key_prefix = $5, \
        digest = $6, status = $7, allowlist = $8, expires_at = $9, rotated_at = $10, \
        revision = $11 WHERE id = $1 AND org = $2 AND revision = $3 RETURNING 1) \
        SELECT EXISTS (SELECT 1 FROM changed) AS done, \
        EXISTS (SELECT 1 FROM {schema}.keys WHERE id = $1 AND org = $2) AS present",
    // The last parameter is there so that no other statement takes the same ones.
    // Behind a pooler that mixes up the prepared statements of two processes,
    // a look-up is then an error and never a deletion. So it is with purges.
    DeleteKey: "WITH deleted AS (DELETE FROM {schema}.keys WHERE id = $1 AND org = $2 \
        AND ($3 IS NULL OR revision = $3) AND $4 RETURNING 1) \
        SELECT EXISTS (SELECT 1 FROM deleted) AS done, \
        EXISTS (SELECT 1 FROM {schema}.keys WHERE id = $1 AND org = $2) AS present",
    // Locked in the order of their ids: two batches that name the same keys in
    // opposite order wait for each other instead of deadlocking.
    RecordUses: "WITH locked AS (SELECT id FROM {schema}.keys WHERE id = ANY($1) ORDER BY id \
        FOR NO KEY UPDATE) \
        UPDATE {schema}.keys AS keys SET last_used_at = uses.at \
        FROM locked JOIN unnest($1, $2) AS uses (id, at) ON uses.id = locked.id \
        WHERE keys.id = locked.id AND (keys.last_used_at IS NULL OR keys.last_used_at < uses.at \
        OR keys.last_used_at > uses.at + 86400000000)",
    RecordRequests: "INSERT INTO {schema}.requests \
        (key, at, id, org, method, endpoint, ip, country, status, outcome, count) \
        SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
    RecordChanges: "INSERT INTO {schema}.changes (key, at, id, org, actor, action, phase) \
        SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    KeyRequestsBefore: page!("requests", "method, endpoint, ip, country, status, outcome, count", of_key!(), "<", "DESC"),
    KeyRequestsAfter: page!("requests", "method, endpoint, ip, country, status, outcome, count", of_key!(), ">", "ASC"),
    KeyChangesBefore: page!("changes", "actor, action, phase", of_key!(), "<", "DESC"),
    KeyChangesAfter: page!("changes", "actor, action, phase", of_key!(), ">", "ASC"),
    OrgChangesBefore: page!("changes", "actor, action, phase", "org = $1 AND $2 IS NULL", "<", "DESC"),
    OrgChangesAfter: page!("changes", "actor, action, phase", "org = $1 AND $2 IS NULL", ">", "ASC"),
    PurgeRequests: purge!("requests"),
    PurgeChanges: purge!("changes"),
    #[cfg(feature = "cache")]
    Notify: "SELECT pg_catalog.pg_notify($1, $2)",
}

impl Sql {
    pub(super) const COUNT: usize = TEMPLATES.len();

    /// Its place among all statements.
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// The texts of all statements for one schema.
#[derive(Debug)]
pub(super) struct Texts(Box<[String]>);

impl Texts {
    pub(super) fn new(schema: &str) -> Self {
        let quoted = format!("\"{schema}\"");
        Self(TEMPLATES.iter().map(|text| text.replace("{schema}", &quoted)).collect())
    }

    pub(super) fn of(&self, statement: Sql) -> &str {
        self.0.get(statement.index()).map_or("", String::as_str)
    }
}
