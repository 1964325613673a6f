//! An axum service with all features:
//! `cargo run --release --example server --all-features`.
//!
//! | variable | default | |
//! |---|---|---|
//! | `KEYGATE_ADDR` | `127.0.0.1:3000` | where to listen |
//! | `KEYGATE_STORE` | `sqlite:keygate.db` | or `memory:`, or `postgres://…` |
//! | `KEYGATE_AUDIT` | `buffered` | or `strict` |
//! | `KEYGATE_TRUSTED_PROXIES` | none | comma-separated addresses and CIDR ranges |
//! | `KEYGATE_PROXY_HEADER` | `x-forwarded-for` | or `forwarded`, or a header with one address |
//! | `KEYGATE_GEOIP` | none | a MaxMind DB file (`.mmdb`), for countries in the audit log |
//! | `KEYGATE_KEY_PREFIX` | `vsp_sk_` | the prefix of keys |
//! | `KEYGATE_KEY_HEADER` | none | a header in which a key is taken as well, such as `x-api-key` |
//! | `KEYGATE_ENVIRONMENTS` | none | such as `live=vsp_sk_,test=vsp_sk_test_`; the first is the default |
//! | `KEYGATE_ORG_LIMITS` | none | keys of single organisations, such as `big=200,small=5` |
//! | `KEYGATE_SCOPES` | none | such as `reports:read=Read reports,reports:write=Change reports` |
//! | `KEYGATE_ROTATION_OVERLAP` | `0` | how long old secrets may work after a rotation, in seconds |
//! | `KEYGATE_RATE_LIMIT` | none | requests of each key: `50/s`, `600/m` or `10000/h` |
//! | `KEYGATE_EXISTING_KEYS` | none | a CSV file `org,name,key_prefix,sha256_hex` of keys issued before keygate |
//! | `KEYGATE_EXISTING_FORMAT` | none | `acme_live_:32`: their prefix and the length of what follows |
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::collections::HashMap;
use std::env::{self, VarError};
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Json, Router};
use keygate::audit::MaxMindCountries;
use keygate::error::{BuildError, MissingScope};
use keygate::guard::{ClientIp, ProxyHeader};
use keygate::manager::{KeyManagerBuilder, RateLimits};
use keygate::store::{KeyExport, KeyImport};
use keygate::{
    Actor, ApiKeyLayer, Delivery, KeyFormat, KeyManager, Limits, MemoryAuditLog, MemoryStore,
    Network, OrgId, PostgresStore, ScopeCatalog, SettingsPage, SqliteStore, VerifiedKey,
    close_if_unread,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

type Failure = Box<dyn Error>;

/// The time for requests in progress after SIGTERM, and then for the audit queue. Together
/// less than the 10 seconds after which many supervisors kill a process.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let filter: Targets = variable("RUST_LOG", "info")?.parse()?;
    let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
    // Before the manager is built, which asks the recorder for its counters.
    let metrics = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    tokio::spawn(keep_small(metrics.clone()));
    let keys = key_manager().await?;
    let client_ip = ClientIp::behind(trusted_proxies()?, proxy_header()?);
    let mut layer = ApiKeyLayer::new(keys.clone()).client_ip(client_ip.clone());
    if let Some(name) = key_header()? {
        layer = layer.key_header(name);
    }

    let api = Router::new()
        .route("/whoami", get(whoami))
        .route("/status/{code}", any(status))
        .route("/slow/{ms}", get(slow))
        .route("/scoped/{scope}", get(scoped))
        // Otherwise axum answers unknown paths without going through the layer.
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(layer);
    let named = variable("KEYGATE_ADDR", "127.0.0.1:3000")?;
    let listener =
        TcpListener::bind(&named).await.map_err(|e| format!("KEYGATE_ADDR={named}: {e}"))?;
    let address = listener.local_addr()?;

    let settings = SettingsPage::new(keys.clone()).hosts(hosts(named, address));
    let settings = settings.example_url("/v1/whoami")?.client_ip(client_ip).router();
    let app = Router::new()
        .route("/healthz", get(healthz))
        .with_state(keys.clone())
        .route("/metrics", get(async move || prometheus(&metrics)))
        .nest("/v1", api)
        .nest("/settings", settings.layer(middleware::from_fn(demo_login)))
        .layer(middleware::from_fn(close_if_unread));

    println!("settings: http://{address}/settings");

    let (stop, mut stopped) = watch::channel(());
    let serve = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async move {
            shutdown_signal().await;
            stop.send_replace(());
        });
    let too_late = async {
        let _ = stopped.changed().await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        served = serve.into_future() => served?,
        () = too_late => tracing::warn!("aborting the requests still in progress"),
    }
    let report = keys.shutdown(SHUTDOWN_GRACE).await;
    println!("stopped; {report:?}");
    Ok(())
}

async fn key_manager() -> Result<KeyManager, Failure> {
    let delivery = match variable("KEYGATE_AUDIT", "buffered")?.as_str() {
        "buffered" => Delivery::buffered(),
        "strict" => Delivery::strict(),
        other => return Err(format!("KEYGATE_AUDIT={other}: must be buffered or strict").into()),
    };
    let prefix = variable("KEYGATE_KEY_PREFIX", KeyFormat::DEFAULT_PREFIX)?;
    let format =
        KeyFormat::new(&prefix).map_err(|e| format!("KEYGATE_KEY_PREFIX={prefix}: {e}"))?;
    let countries = countries()?;
    let overlap = rotation_overlap()?;
    let (builder, store) = store().await?;
    let mut builder = builder.delivery(delivery).format(format).max_overlap(overlap);
    for (name, prefix) in pairs("KEYGATE_ENVIRONMENTS")? {
        let format = KeyFormat::new(&prefix)
            .map_err(|e| format!("KEYGATE_ENVIRONMENTS: {name}={prefix}: {e}"))?;
        builder = builder.environment(&name, format);
    }
    let org_limits = org_limits()?;
    builder = builder.limits_for(move |org| match org_limits.get(org.as_str()) {
        Some(keys) => Limits::default().max_keys(*keys),
        None => Limits::default(),
    });
    if let Some(scopes) = scopes()? {
        builder = builder.scopes(scopes);
    }
    let rate = variable("KEYGATE_RATE_LIMIT", "")?;
    if !rate.is_empty() {
        let limit = rate.parse().map_err(|e| format!("KEYGATE_RATE_LIMIT={rate}: {e}"))?;
        builder = builder.rate_limiter(RateLimits::new(limit));
    }
    let existing = variable("KEYGATE_EXISTING_FORMAT", "")?;
    if !existing.is_empty() {
        let format = existing::format(&existing);
        builder = builder.existing(format.map_err(|e| format!("KEYGATE_EXISTING_FORMAT: {e}"))?);
    }
    if let Some(countries) = countries {
        builder = builder.countries(countries);
    }
    let keys = builder.build().map_err(|error| match error {
        BuildError::Environment(error) => format!("KEYGATE_ENVIRONMENTS: {error}"),
        BuildError::Existing(error) => format!("KEYGATE_EXISTING_FORMAT: {error}"),
        other => other.to_string(),
    })?;
    if let Err(error) = keys.check_prefixes(&*store).await {
        tracing::warn!(%error, "could not look at the keys in the store");
    }
    adopt_existing(&keys, store, existing.is_empty()).await?;
    Ok(keys)
}

/// Adopts the keys of the file, as at each start: those that are there stay as they are.
async fn adopt_existing(
    keys: &KeyManager,
    store: Arc<dyn KeyImport>,
    no_format: bool,
) -> Result<(), Failure> {
    let file = variable("KEYGATE_EXISTING_KEYS", "")?;
    if file.is_empty() {
        return Ok(());
    }
    if no_format {
        return Err("KEYGATE_EXISTING_KEYS needs KEYGATE_EXISTING_FORMAT".into());
    }
    let report = existing::adopt(keys, store, FilePath::new(&file)).await;
    let report = report.map_err(|e| format!("KEYGATE_EXISTING_KEYS={file}: {e}"))?;
    for line in &report.refused {
        tracing::error!("KEYGATE_EXISTING_KEYS: {line}");
    }
    if let Some(stopped) = report.stopped {
        return Err(format!("KEYGATE_EXISTING_KEYS: {stopped}").into());
    }
    println!(
        "existing keys: {} adopted, {} there already, {} deleted since",
        report.adopted, report.already_there, report.deleted
    );
    Ok(())
}

/// Any of the stores.
trait Stored: KeyExport + KeyImport {}
impl<S: KeyExport + KeyImport> Stored for S {}

async fn store() -> Result<(KeyManagerBuilder, Arc<dyn Stored>), Failure> {
    let url = variable("KEYGATE_STORE", "sqlite:keygate.db")?;
    let scheme = url.split(':').next().unwrap_or_default();
    println!("store: {}", if scheme == "sqlite" { &url } else { scheme });
    match scheme {
        "memory" if url == "memory:" => {
            let audit = Arc::new(MemoryAuditLog::new());
            let store = Arc::new(MemoryStore::new());
            Ok((KeyManager::builder(store.clone()).audit(audit), store))
        }
        "sqlite" => {
            let store = SqliteStore::open(&url).map_err(|e| format!("KEYGATE_STORE: {e}"))?;
            Ok((KeyManager::builder(store.clone()).audit(store.clone()), Arc::new(store)))
        }
        "postgres" | "postgresql" => {
            let store = PostgresStore::connect(&url).await;
            let store = store.map_err(|e| format!("KEYGATE_STORE: {e}"))?;
            Ok((KeyManager::builder(store.clone()).audit(store.clone()), Arc::new(store)))
        }
        _ => Err("KEYGATE_STORE: must be memory:, sqlite:<path> or postgres://…".into()),
    }
}

fn rotation_overlap() -> Result<Duration, Failure> {
    let text = variable("KEYGATE_ROTATION_OVERLAP", "0")?;
    let seconds = text.parse().map_err(|e| format!("KEYGATE_ROTATION_OVERLAP={text}: {e}"))?;
    Ok(Duration::from_secs(seconds))
}

fn countries() -> Result<Option<MaxMindCountries>, Failure> {
    let path = variable("KEYGATE_GEOIP", "")?;
    if path.is_empty() {
        return Ok(None);
    }
    let opened = MaxMindCountries::open(path).map_err(|error| {
        let source = error.source().map(|source| format!(" ({source})")).unwrap_or_default();
        format!("KEYGATE_GEOIP: {error}{source}")
    });
    Ok(Some(opened?))
}

fn scopes() -> Result<Option<ScopeCatalog>, Failure> {
    let list = variable("KEYGATE_SCOPES", "")?;
    if list.is_empty() {
        return Ok(None);
    }
    let scopes = list.split(',').map(|scope| {
        let (name, description) = scope.split_once('=').unwrap_or((scope, ""));
        (name.trim(), description.trim())
    });
    Ok(Some(ScopeCatalog::new(scopes).map_err(|e| format!("KEYGATE_SCOPES: {e}"))?))
}

fn trusted_proxies() -> Result<Vec<Network>, Failure> {
    let list = variable("KEYGATE_TRUSTED_PROXIES", "")?;
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let parse = |entry: &str| {
        entry.parse().map_err(|e| format!("KEYGATE_TRUSTED_PROXIES: {entry}: {e}").into())
    };
    entries.map(parse).collect()
}

fn proxy_header() -> Result<ProxyHeader, Failure> {
    let name = variable("KEYGATE_PROXY_HEADER", "x-forwarded-for")?;
    let name =
        name.parse::<HeaderName>().map_err(|e| format!("KEYGATE_PROXY_HEADER={name}: {e}"))?;
    Ok(name.into())
}

fn key_header() -> Result<Option<HeaderName>, Failure> {
    let name = variable("KEYGATE_KEY_HEADER", "")?;
    if name.is_empty() {
        return Ok(None);
    }
    let header = name.parse().map_err(|e| format!("KEYGATE_KEY_HEADER={name}: {e}"))?;
    if [AUTHORIZATION, HOST].contains(&header) {
        return Err(format!("KEYGATE_KEY_HEADER={name}: this header has another meaning").into());
    }
    Ok(Some(header))
}

fn org_limits() -> Result<HashMap<String, u32>, Failure> {
    let parse = |(org, keys): (String, String)| {
        let keys = keys.parse().map_err(|e| format!("KEYGATE_ORG_LIMITS: {org}={keys}: {e}"))?;
        Ok((org, keys))
    };
    pairs("KEYGATE_ORG_LIMITS")?.into_iter().map(parse).collect()
}

/// A variable with a list such as `a=1,b=2`.
fn pairs(name: &str) -> Result<Vec<(String, String)>, Failure> {
    let list = variable(name, "")?;
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let pair = |entry: &str| {
        let (left, right) =
            entry.split_once('=').ok_or_else(|| format!("{name}: {entry}: `=` is missing"))?;
        Ok((left.trim().to_owned(), right.trim().to_owned()))
    };
    entries.map(pair).collect()
}

fn variable(name: &str, default: &str) -> Result<String, Failure> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) | Err(VarError::NotPresent) => Ok(default.to_owned()),
        Err(VarError::NotUnicode(_)) => Err(format!("{name} is not UTF-8").into()),
    }
}

/// The hosts of the management API. The placeholder login has no password, so without this
/// a page of any site could use the API by DNS rebinding.
fn hosts(named: String, address: SocketAddr) -> Vec<String> {
    let mut hosts = vec![named, address.to_string()];
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        let port = address.port();
        hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}")));
    }
    hosts
}

/// A placeholder for the host's login: it trusts any request that names an organisation. A
/// real service uses its own session.
async fn demo_login(mut request: Request, next: Next) -> Response {
    let org = match request.headers().get("x-demo-org") {
        Some(org) => org.to_str().ok().and_then(|org| OrgId::new(org).ok()),
        None => OrgId::new("demo").ok(),
    };
    // Without an organisation there is no actor, and the API responds with 401.
    if let Some(org) = org {
        request.extensions_mut().insert(Actor::new(org, "demo user"));
    }
    next.run(request).await
}

async fn whoami(key: VerifiedKey) -> Json<Value> {
    Json(
        json!({ "org": key.org().as_str(), "key_id": key.id().to_string(), "key_name": key.name().as_str() }),
    )
}

async fn scoped(key: VerifiedKey, Path(scope): Path<String>) -> Result<Json<Value>, MissingScope> {
    key.require_scope(&scope)?;
    Ok(whoami(key).await)
}

async fn status(Path(code): Path<String>) -> StatusCode {
    // 1xx responses are not final.
    let code = code.parse().ok().filter(|code: &StatusCode| !code.is_informational());
    code.unwrap_or(StatusCode::BAD_REQUEST)
}

async fn slow(Path(ms): Path<String>) -> Result<String, StatusCode> {
    let ms = ms.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(format!("answered after {ms} ms\n"))
}

/// The response shows only which part failed; the cause is in the log.
async fn healthz(State(keys): State<KeyManager>) -> (StatusCode, Json<Value>) {
    let health = keys.health().await;
    let status =
        if health.lookups.works() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let parts =
        health.parts().into_iter().map(|(name, part)| (name.to_owned(), part.works().into()));
    let mut body: Map<String, Value> = parts.collect();
    body.insert("queued_records".to_owned(), health.audit_queue.queued.into());
    let written = health.audit_queue.last_written.map(|ago| ago.as_secs());
    body.insert("seconds_since_last_record".to_owned(), written.into());
    (status, Json(Value::Object(body)))
}

/// The limits of the histograms' buckets, in seconds.
const BUCKETS: [f64; 9] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 2.5];

/// Merges what was measured, even if nobody asks for it.
async fn keep_small(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        metrics.run_upkeep();
    }
}

fn prometheus(metrics: &PrometheusHandle) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}

async fn shutdown_signal() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "cannot handle SIGTERM");
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}
