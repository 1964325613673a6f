//! Helpers of the PostgreSQL tests: schemas, roles, databases and keys.

use std::env;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use getrandom::SysRng;
use keygate::store::{KeyDigest, PostgresOptions};
use keygate::{Allowlist, ApiKey, KeyId, OrgId, PostgresStore, Timestamp};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

/// Concurrent suites on a small machine are slow.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

pub(crate) fn url() -> String {
    env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

/// The URL of the test database for another user.
pub(crate) fn url_for(user: &str) -> String {
    format!("postgres://{user}@{}", url().split_once('@').unwrap().1)
}

/// A connection outside of keygate.
pub(crate) async fn administrator() -> Client {
    session(&url().parse().unwrap()).await
}

/// A server may be full of sessions whose clients were cut off, until it notices.
pub(crate) async fn session(config: &Config) -> Client {
    let begun = Instant::now();
    loop {
        match config.connect(NoTls).await {
            Err(error)
                if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
                    && begun.elapsed() < PATIENT =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            connected => {
                let (client, connection) = connected.unwrap();
                tokio::spawn(connection);
                return client;
            }
        }
    }
}

pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let (process, n) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{what}_{now:x}_{process:x}_{n}")
}

/// Statements that run at the end of a test, even if it fails.
#[derive(Debug)]
struct AtEnd(String);

impl Drop for AtEnd {
    fn drop(&mut self) {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async { administrator().await.batch_execute(&self.0).await })
        };
        let done = std::thread::scope(|scope| scope.spawn(run).join());
        assert!(matches!(done, Ok(Ok(()))) || std::thread::panicking(), "{done:?}");
    }
}

/// A name for a schema, which is dropped with this value.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) name: String,
    _end: AtEnd,
}

impl Schema {
    pub(crate) fn new() -> Self {
        let name = unique("keygate_test");
        // Open transactions of a failed test would block the removal.
        let end = AtEnd(format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE starts_with(application_name, '{name}'); DROP SCHEMA IF EXISTS {name} CASCADE"
        ));
        Self { name, _end: end }
    }

    /// Options for a store. Tests that depend on the deadline set their own.
    pub(crate) fn options(&self) -> PostgresOptions {
        self.options_at(&url())
    }

    /// The server shows the sessions of these stores under the name of the schema.
    pub(crate) fn options_at(&self, url: &str) -> PostgresOptions {
        in_session(url, &self.name, &self.name)
    }

    pub(crate) async fn store(&self) -> PostgresStore {
        self.options().connect().await.unwrap()
    }

    /// A connection outside of keygate, in which the schema need not be named.
    pub(crate) async fn db(&self) -> Client {
        let mut config: Config = url().parse().unwrap();
        config.application_name(format!("{} db", self.name));
        let client = session(&config).await;
        client.batch_execute(&format!("SET search_path = {}", self.name)).await.unwrap();
        client
    }
}

/// Options for a schema. The server shows the store's sessions under the name of the session.
pub(crate) fn in_session(url: &str, schema: &str, session: &str) -> PostgresOptions {
    let mut config: Config = url.parse().unwrap();
    config.application_name(session);
    PostgresOptions::new(config).schema(schema).unwrap().deadline(PATIENT)
}

pub(crate) async fn count(db: &Client, sql: &str) -> i64 {
    db.query_one(sql, &[]).await.unwrap().get(0)
}

/// Runs a test in its own schema.
pub(crate) async fn in_schema<F: Future<Output = ()>>(test: impl FnOnce(PostgresOptions) -> F) {
    let schema = Schema::new();
    test(schema.options()).await;
}

pub(crate) fn schema_of(options: &PostgresOptions) -> String {
    let text = format!("{options:?}");
    let (_, rest) = text.split_once("schema: \"").unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

/// A role that may log in. It is dropped with this value.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) name: String,
    _end: AtEnd,
}

impl Role {
    pub(crate) async fn new() -> Self {
        let name = unique("keygate_role");
        let end = AtEnd(format!("DROP OWNED BY {name}; DROP ROLE {name}"));
        administrator().await.batch_execute(&format!("CREATE ROLE {name} LOGIN")).await.unwrap();
        Self { name, _end: end }
    }

    pub(crate) fn url(&self) -> String {
        url_for(&self.name)
    }
}

/// A database, which is dropped with this value.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) name: String,
    _end: AtEnd,
}

impl Database {
    pub(crate) async fn new(settings: &str) -> Self {
        let name = unique("keygate_test");
        let create = format!("CREATE DATABASE {name} {settings}");
        administrator().await.batch_execute(&create).await.unwrap();
        let end = AtEnd(format!("DROP DATABASE {name} WITH (FORCE)"));
        Self { name, _end: end }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/{}", url().rsplit_once('/').unwrap().0, self.name)
    }
}

pub(crate) fn org(name: &str) -> OrgId {
    OrgId::new(name).unwrap()
}

/// A key that is in no store.
pub(crate) fn new_key(org: &OrgId) -> ApiKey {
    let id = KeyId::random(&mut SysRng).unwrap();
    ApiKey { id, org: org.clone(), digest: KeyDigest::of(id.to_bytes()), ..key(0) }
}

pub(crate) fn key(n: u8) -> ApiKey {
    ApiKey {
        id: KeyId::from_bytes([n; 16]),
        org: org("acme"),
        name: "CI deploy".parse().unwrap(),
        digest: KeyDigest::of([n]),
        allowlist: Allowlist::parse(["192.0.2.0/24"]).unwrap(),
        created_at: Timestamp::from_unix_micros(1_700_000_000_000_001).unwrap(),
        ..ApiKey::sample(0)
    }
}
