//! Helpers of the PostgreSQL tests: a schema for each test, keys and sessions.

use std::env;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use getrandom::SysRng;
use keygate::audit::{AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase};
use keygate::store::{KeyDigest, OrgLimit, PostgresOptions};
use keygate::{Allowlist, ApiKey, KeyId, KeyName, OrgId, Timestamp};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

pub(crate) const LIMIT: OrgLimit = OrgLimit::at_most(20);

/// Concurrent suites on a small machine are slow.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

pub(crate) fn url() -> String {
    env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

/// A connection outside of keygate. A server may be full of sessions whose clients were cut
/// off, until it notices.
pub(crate) async fn administrator() -> Client {
    let begun = Instant::now();
    loop {
        match tokio_postgres::connect(&url(), NoTls).await {
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

/// Runs a test in its own schema, which is dropped even when the test fails.
pub(crate) async fn in_schema<T, F>(test: T)
where
    T: FnOnce(PostgresOptions) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let schema = unique("keygate_test");
    let options = PostgresOptions::from_url(&url()).unwrap().schema(&schema).unwrap();
    // Tests that depend on the deadline set their own.
    let options = options.deadline(PATIENT);
    let outcome = tokio::spawn(test(options)).await;
    let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
    administrator().await.batch_execute(&drop).await.unwrap();
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

pub(crate) fn schema_of(options: &PostgresOptions) -> String {
    let text = format!("{options:?}");
    let (_, rest) = text.split_once("schema: \"").unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

/// Options for that schema. The server shows the store's sessions under that name.
pub(crate) fn in_session(schema: &str, name: &str) -> PostgresOptions {
    let mut config: tokio_postgres::Config = url().parse().unwrap();
    config.application_name(name);
    PostgresOptions::new(config).schema(schema).unwrap().deadline(PATIENT)
}

/// Waits until the server has no session of that name.
pub(crate) async fn sessions_end(name: &str) {
    let administrator = administrator().await;
    let sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1";
    let give_up = Instant::now() + PATIENT;
    while !administrator.query(sessions, &[&name]).await.unwrap().is_empty() {
        assert!(Instant::now() < give_up, "sessions are left");
        tokio::time::sleep(Duration::from_millis(5)).await;
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
        org: OrgId::new("acme").unwrap(),
        name: KeyName::new("CI deploy").unwrap(),
        digest: KeyDigest::of([n]),
        allowlist: Allowlist::parse(["192.0.2.0/24"]).unwrap(),
        created_at: Timestamp::from_unix_micros(1_700_000_000_000_001).unwrap(),
        ..ApiKey::sample(0)
    }
}

pub(crate) fn change(n: u8, actor: &str) -> AuditRecord {
    AuditRecord {
        id: AuditId::from_bytes([n; 16]),
        at: Timestamp::from_unix_micros(i64::from(n)).unwrap(),
        org: OrgId::new("acme").unwrap(),
        key: KeyId::from_bytes([1; 16]),
        event: AuditEvent::Change(ChangeEvent::new(
            actor,
            ChangeAction::Created,
            ChangePhase::Begun,
        )),
    }
}
