//! The servers: the same handler, with no guard or behind one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use keygate::audit::{AuditQuery, AuditRecord, AuditScope, Position};
use keygate::manager::KeyManagerBuilder;
use keygate::store::{CacheState, PostgresOptions, import};
use keygate::{
    Actor, ApiKey, ApiKeyLayer, AuditError, AuditLog, AuditSink, CachedStore, Delivery, Expiration,
    KeyId, KeyManager, KeyName, MemoryStore, NewKey, OrgId, PostgresStore, SqliteStore,
    VerifiedKey,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const ORGS: usize = 50;
const KEYS_PER_ORG: usize = 20;

#[derive(Clone, Copy)]
pub(crate) enum Keys {
    /// No guard.
    None,
    Memory,
    Sqlite,
    /// Behind a cache.
    Postgres,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    Off,
    /// To a sink that forgets the records.
    Nowhere,
    Buffered,
    Strict,
}

/// A row of the table.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) keys: Keys,
    pub(crate) log: Log,
}

pub(crate) const UNGUARDED: usize = 0;
pub(crate) const MEMORY: usize = 1;
pub(crate) const SQLITE_LOG: usize = 4;
pub(crate) const KINDS: [Kind; 9] = [
    Kind { name: "unguarded", keys: Keys::None, log: Log::Off },
    Kind { name: "memory", keys: Keys::Memory, log: Log::Off },
    Kind { name: "memory, log nowhere", keys: Keys::Memory, log: Log::Nowhere },
    Kind { name: "SQLite", keys: Keys::Sqlite, log: Log::Off },
    Kind { name: "SQLite, log", keys: Keys::Sqlite, log: Log::Buffered },
    Kind { name: "SQLite, strict log", keys: Keys::Sqlite, log: Log::Strict },
    Kind { name: "PostgreSQL", keys: Keys::Postgres, log: Log::Off },
    Kind { name: "PostgreSQL, log", keys: Keys::Postgres, log: Log::Buffered },
    Kind { name: "PostgreSQL, strict log", keys: Keys::Postgres, log: Log::Strict },
];

/// Takes records and forgets them.
#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl AuditSink for Nowhere {
    async fn record(&self, _: &[AuditRecord]) -> Result<(), AuditError> {
        Ok(())
    }
}

/// Prints its keys, a line each, then where it listens, and serves until it is killed. `place`
/// is a file for SQLite and a schema for PostgreSQL.
pub(crate) async fn serve(kind: &Kind, place: &str) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let memory = Arc::new(MemoryStore::new());
    let made = make_keys(&memory).await;
    let (keys, log) = match kind.keys {
        Keys::None => (None, None),
        Keys::Memory => {
            let builder = KeyManager::builder(memory);
            let builder = if kind.log == Log::Off { builder } else { builder.audit_sink(Nowhere) };
            (Some(builder.build().unwrap()), None)
        }
        Keys::Sqlite => {
            let store = SqliteStore::open(place).unwrap();
            import(&memory, &store).await.unwrap();
            guarded(kind.log, KeyManager::builder(store.clone()), store)
        }
        Keys::Postgres => {
            let store = postgres(place).await;
            import(&memory, &store).await.unwrap();
            guarded(kind.log, KeyManager::builder(cached(&store).await), store)
        }
    };
    let caller = Arc::clone(&made[0]);
    let app = Router::new()
        .nest("/v1", api(keys.as_ref(), caller))
        .route("/written", get(async move || written(keys.as_ref()).to_string()))
        .route("/records", get(async move || records(log, &made).await.to_string()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}/", listener.local_addr().unwrap());
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await.unwrap();
}

/// Makes keys of several organisations and prints their secrets.
async fn make_keys(store: &Arc<MemoryStore>) -> Vec<Arc<ApiKey>> {
    let keys = KeyManager::builder(Arc::clone(store)).build().unwrap();
    let mut made = Vec::new();
    for number in 0..ORGS * KEYS_PER_ORG {
        let org = OrgId::new(format!("org-{}", number % ORGS)).unwrap();
        let new = NewKey::named("CI deploy").unwrap().expires(Expiration::OneYear);
        let new = new.allow(["127.0.0.0/8"]).unwrap();
        let issued = keys.create(&Actor::new(org, "bench"), new).await.unwrap();
        println!("{}", issued.secret.expose_secret());
        made.push(issued.key);
    }
    made
}

/// A log that is written and read.
trait Written: AuditSink + AuditLog {}
impl<L: AuditSink + AuditLog> Written for L {}

type Guard = (Option<KeyManager>, Option<Arc<dyn Written>>);

fn guarded(log: Log, builder: KeyManagerBuilder, written: impl Written) -> Guard {
    let written: Arc<dyn Written> = Arc::new(written);
    let builder = match log {
        Log::Off => builder,
        Log::Nowhere => builder.audit_sink(Nowhere),
        Log::Buffered => builder.audit(Arc::clone(&written)).delivery(Delivery::buffered()),
        Log::Strict => builder.audit(Arc::clone(&written)).delivery(Delivery::strict()),
    };
    (Some(builder.build().unwrap()), Some(written))
}

async fn postgres(schema: &str) -> PostgresStore {
    let url = std::env::var("KEYGATE_TEST_POSTGRES").unwrap();
    let options = PostgresOptions::from_url(&url).unwrap().schema(schema).unwrap();
    options.connect().await.unwrap()
}

async fn cached(store: &PostgresStore) -> CachedStore {
    let cached = CachedStore::builder(store.clone(), Duration::from_secs(5));
    let cached = cached.feed(store.changes()).build().unwrap();
    while cached.health().state != CacheState::Following {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cached
}

/// The handler, behind a guard if there are keys. Unguarded, it is told who calls.
fn api(keys: Option<&KeyManager>, caller: Arc<ApiKey>) -> Router {
    let api = Router::new().fallback(async || StatusCode::NOT_FOUND);
    let api = match keys {
        None => {
            let whoami = async |State(caller): State<Arc<ApiKey>>| {
                whoami(&caller.org, caller.id, &caller.name)
            };
            api.route("/whoami", get(whoami))
        }
        Some(keys) => {
            let whoami = async |key: VerifiedKey| whoami(key.org(), key.id(), key.name());
            api.route("/whoami", get(whoami)).layer(ApiKeyLayer::new(keys.clone()))
        }
    };
    api.with_state(caller)
}

fn whoami(org: &OrgId, id: KeyId, name: &KeyName) -> Json<Value> {
    Json(json!({ "org": org.as_str(), "key_id": id.to_string(), "key_name": name.as_str() }))
}

/// How many records the sink has taken.
fn written(keys: Option<&KeyManager>) -> u64 {
    keys.unwrap().audit_stats().written
}

/// How many records of requests with these keys the log has.
async fn records(log: Option<Arc<dyn Written>>, made: &[Arc<ApiKey>]) -> usize {
    let log = log.unwrap();
    let mut records = 0;
    for key in made {
        let scope = AuditScope::KeyRequests(key.id);
        let all = AuditQuery::new(key.org.clone(), scope).limit(AuditQuery::MAX_LIMIT);
        let mut page = log.page(&all).await.unwrap();
        records += page.records.len();
        while let Some(older) = page.older {
            page = log.page(&all.clone().at(Position::Before(older))).await.unwrap();
            records += page.records.len();
        }
    }
    records
}
