//! The README's Rust: each block is repeated here, so that it compiles.
#![cfg(all(
    feature = "settings-page",
    feature = "sqlite",
    feature = "postgres",
    feature = "cache",
    feature = "conformance"
))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    dead_code,
    reason = "the README's blocks, and tests"
)]

mod support;

use std::error::Error;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use keygate::guard::{ClientIp, ProxyHeader};
use keygate::{
    Actor, ApiKeyLayer, CachedStore, KeyManager, MemoryStore as MyStore, Network, NewKey, OrgId,
    PostgresStore, SettingsPage, SqliteStore,
};
use support::Client;
use tokio::net::TcpListener;

type Tried<T = ()> = Result<T, Box<dyn Error>>;

#[rustfmt::skip]
async fn in_a_service(presented: &str, client_ip: Option<IpAddr>) -> Tried<KeyManager> {
    // Within an async function; `presented` is what the caller sent, `client_ip` where from.
    use keygate::{Actor, Expiration, KeyManager, MemoryAuditLog, MemoryStore, NewKey, OrgId};

    let keys = KeyManager::builder(MemoryStore::new())
        .audit(MemoryAuditLog::new())
        .build()?;

    // On behalf of somebody who is logged in:
    let actor = Actor::new(OrgId::new("acme")?, "ada@acme.example");
    let new = NewKey::named("CI deploy")?.expires(Expiration::OneYear).allow(["10.0.0.0/8"])?;
    let issued = keys.create(&actor, new).await?;
    println!("shown once: {}", issued.secret.expose_secret());

    // On each request (`admit` in its place also puts the request on record, as the layer does):
    match keys.verify(presented, client_ip).await {
        Ok(key) => println!("a request of {}", key.org()),
        Err(error) => println!("answer with status {}", error.http_status()),
    }
    Ok(keys)
}

#[rustfmt::skip]
async fn as_a_layer(keys: KeyManager, listener: TcpListener) -> Tried {
    use std::{net::SocketAddr, time::Duration};
    use axum::{Router, extract::Request, middleware::{self, Next}, response::Response, routing::get};
    use keygate::{Actor, ApiKeyLayer, OrgId, SettingsPage, VerifiedKey};

    async fn whoami(key: VerifiedKey) -> String {
        key.org().to_string()
    }

    async fn login(mut request: Request, next: Next) -> Response {
        // Here you look at your session; without one, answer 401 or redirect.
        let (org, user) = (OrgId::new("acme").unwrap(), "ada@acme.example");
        request.extensions_mut().insert(Actor::new(org, user));
        next.run(request).await
    }

    async fn told_to_stop() {
        use tokio::signal::{ctrl_c, unix::{SignalKind, signal}};
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = ctrl_c() => {}
        }
    }

    let app = Router::new()
        .route("/v1/whoami", get(whoami))
        .route_layer(ApiKeyLayer::new(keys.clone()))
        // The settings page with its API, behind your own login:
        .nest("/settings", SettingsPage::new(keys.clone()).router().layer(middleware::from_fn(login)));

    // Allowlists are checked against the peer's address, so axum has to supply it:
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(told_to_stop())
        .await?;

    // What is queued for the audit log is written now, or never:
    let report = keys.shutdown(Duration::from_secs(5)).await;
    println!("stopped; {report:?}");
    Ok(())
}

#[rustfmt::skip]
fn branded(keys: KeyManager) -> Tried<SettingsPage> {
    Ok(
    SettingsPage::new(keys).title("Acme API keys").accent("#0b6e4f")?
        .back_link("Acme", "/")?
        .docs_link("https://docs.acme.example/api")?
        // What the `curl` line beside a new key calls:
        .example_url("https://api.acme.example/v1/me")?
        // Names and placeholders are those of src/web/page/files/text.json:
        .translation("de", r#"{"create.open": "API-Schlüssel anlegen"}"#)?
    )
}

#[rustfmt::skip]
fn behind_proxies(keys: KeyManager) -> Tried<ApiKeyLayer> {
    Ok({
        let proxies = ["10.0.0.0/8".parse::<Network>()?];
        ApiKeyLayer::new(keys).client_ip(ClientIp::behind(proxies, ProxyHeader::XForwardedFor))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn my_store_conforms() {
    keygate::conformance::check_store(|| async { MyStore::new() }).await.unwrap();
}

async fn strictly_and_not_for_ever(store: SqliteStore) -> Tried<KeyManager> {
    use keygate::{AuditLog, Delivery};

    let keys = KeyManager::builder(store.clone())
        .audit(store.clone())
        .delivery(Delivery::strict())
        .build()?;
    let ninety_days_ago = SystemTime::now() - Duration::from_secs(90 * 24 * 60 * 60);
    store.purge_before(ninety_days_ago.into()).await?;
    Ok(keys)
}

fn on_sqlite() -> Tried<KeyManager> {
    let store = SqliteStore::open("keygate.db")?;
    let keys = KeyManager::builder(store.clone()).audit(store).build()?;
    Ok(keys)
}

async fn through_a_cache(url: &str) -> Tried<KeyManager> {
    let store = PostgresStore::connect(url).await?;
    let cached = CachedStore::builder(store.clone(), Duration::from_secs(2))
        .feed(store.changes())
        .build()?;
    let keys = KeyManager::builder(cached.clone()).audit(store).build()?;
    Ok(keys)
}

/// The blocks of the README that begin with this word alone.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    let parts = include_str!("../README.md").split(&*open).skip(1);
    parts.map(|rest| rest.split_once("```\n").unwrap().0).collect()
}

#[test]
fn every_block_of_the_readme_is_in_this_file() {
    let unindented = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let here = unindented(include_str!("readme.rs"));
    let blocks = blocks("rust");
    assert_eq!(blocks.len(), 7, "each begins with ```rust alone");
    for block in blocks {
        assert!(here.contains(&unindented(block)), "not in tests/readme.rs:\n{block}");
    }
}

/// Finds what an interactive zsh reads differently from a script, outside of quotes: `#`
/// starts no comment, and a pattern that matches no file is an error.
fn unfit_for_zsh(block: &str) -> Option<char> {
    let mut quote = None;
    let mut chars = block.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), '\\') => _ = chars.next(),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (None, '#' | '?' | '*' | '[' | '~' | '^' | '!' | '…') => return Some(c),
            (Some(_), '…') | (Some('"'), '!') => return Some(c),
            _ => {}
        }
    }
    quote
}

#[test]
fn every_shell_block_works_unchanged_in_an_interactive_zsh() {
    let blocks = blocks("sh");
    assert_eq!(blocks.len(), 2, "each begins with ```sh alone");
    for block in blocks {
        assert_eq!(unfit_for_zsh(block), None, "{block}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_blocks_without_a_database_work_as_described() {
    let keys = in_a_service("vsp_sk_typo", None).await.unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    let issued = keys.create(&actor, NewKey::named("anywhere").unwrap()).await.unwrap();
    let authorization = format!("Authorization: Bearer {}", issued.secret.expose_secret());
    behind_proxies(keys.clone()).unwrap();
    branded(keys.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = Client::connect(listener.local_addr().unwrap());
    let app = tokio::spawn(async { as_a_layer(keys, listener).await.unwrap() });
    for (path, headers, status, part) in [
        ("/v1/whoami", &[][..], 401, ""),
        ("/v1/whoami", &[&*authorization], 200, "acme"),
        ("/v1/nothing", &[], 404, ""),
        ("/settings", &[], 200, "<html"),
        ("/settings/api/keys", &[], 200, "CI deploy"),
    ] {
        let reply = client.ask("GET", path, headers);
        assert_eq!(reply.status, status, "{path}");
        assert!(reply.text().contains(part), "{path}: {}", reply.text());
    }
    app.abort();
}
