//! The service of a test, which the test can stop, hold, log out of, and move in time.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use keygate::audit::{CountryCode, CountryLookup};
use keygate::guard::{ClientIp, ProxyHeader};
use keygate::manager::KeyManagerBuilder;
use keygate::runtime::Clock;
use keygate::{ApiKeyLayer, Delivery, KeyManager, SettingsPage, SqliteStore, Timestamp};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::kit::{Browser, login, visit_at};
use crate::port::free_port;
use crate::support::{Client, Reply, poll};

const DAY: Duration = Duration::from_secs(86_400);

/// How the service answers the page's requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Open,
    /// The host's login rejects the user: the API answers 401.
    LoggedOut,
    /// The host's login redirects every request.
    SentToLogin,
    /// The host's login answers by itself, with a page.
    LoginPage,
    /// A proxy without a service behind it.
    BadGateway,
    /// The API answers only after the mode changes.
    Held,
}

const KEYS: &str = "/settings/api/keys";

/// The system's clock, shifted.
#[derive(Clone, Debug, Default)]
struct ShiftedClock(Arc<AtomicI64>);

impl Clock for ShiftedClock {
    fn now(&self) -> Timestamp {
        let now = Timestamp::from(SystemTime::now());
        let days = self.0.load(Ordering::SeqCst);
        let shift = DAY * u32::try_from(days.unsigned_abs()).unwrap();
        if days < 0 { now.saturating_sub(shift) } else { now.saturating_add(shift) }
    }
}

/// Knows the networks reserved for documentation.
#[derive(Debug)]
struct TestCountries;

impl CountryLookup for TestCountries {
    fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        match ip {
            IpAddr::V4(ip) if ip.octets().starts_with(&[203, 0, 113]) => CountryCode::new("DE"),
            IpAddr::V4(ip) if ip.octets().starts_with(&[198, 51, 100]) => CountryCode::new("US"),
            _ => None,
        }
    }
}

/// The service, on a SQLite file and an address that stay the same when it stops.
#[derive(Debug)]
pub(crate) struct Service {
    folder: TempDir,
    address: SocketAddr,
    clock: ShiftedClock,
    mode: watch::Sender<Mode>,
    running: Mutex<Option<Runtime>>,
    configure: Configure,
}

/// A setting of the service.
pub(crate) type Configure = fn(KeyManagerBuilder) -> KeyManagerBuilder;

/// Runs a test on the settings page of a new service with this setting. `before` prepares the
/// service; the test gets its result.
pub(crate) fn visit_with<T>(
    configure: Configure,
    before: impl FnOnce(&Service) -> T,
    test: impl AsyncFnOnce(&Browser, &Service, T),
) {
    let service = Service::build(configure);
    let given = before(&service);
    visit_at(&service.page(), async |browser| test(browser, &service, given).await);
}

pub(crate) fn visit_service<T>(
    before: impl FnOnce(&Service) -> T,
    test: impl AsyncFnOnce(&Browser, &Service, T),
) {
    visit_with(|builder| builder, before, test);
}

pub(crate) fn visit(test: impl AsyncFnOnce(&Browser, &Service)) {
    visit_service(|_| (), async |browser, service, ()| test(browser, service).await);
}

/// Runs a test on the page of a service with the key `CI deploy`. The test gets its secret.
pub(crate) fn visit_key(test: impl AsyncFnOnce(&Browser, &Service, String)) {
    visit_service(|service| service.create("CI deploy"), test);
}

impl Service {
    fn build(configure: Configure) -> Self {
        let service = Self {
            folder: tempfile::tempdir().unwrap(),
            address: SocketAddr::from(([127, 0, 0, 1], free_port())),
            clock: ShiftedClock::default(),
            mode: watch::Sender::new(Mode::Open),
            running: Mutex::default(),
            configure,
        };
        service.start();
        service
    }

    /// Starts the service again, on the same file and address.
    pub(crate) fn start(&self) {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let (address, clock, mode) = (self.address, self.clock.clone(), self.mode.subscribe());
        let store = SqliteStore::open(self.file()).unwrap();
        let builder = KeyManager::builder(store.clone()).audit(store);
        let builder = (self.configure)(builder.delivery(Delivery::strict()).clock(clock));
        runtime.spawn(async move {
            let app = app(builder.countries(TestCountries).build().unwrap(), mode);
            let listener = TcpListener::bind(address).await.unwrap();
            let app = app.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, app).await.unwrap();
        });
        *self.running.lock().unwrap() = Some(runtime);
        poll("the service is there", || TcpStream::connect(self.address).ok());
    }

    /// Ends the service like a crash: every connection breaks.
    pub(crate) fn stop(&self) {
        let runtime = self.running.lock().unwrap().take().expect("a service that runs");
        runtime.shutdown_background();
        poll("the service is gone", || TcpStream::connect(self.address).err());
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Moves the service's clock this many days from now.
    pub(crate) fn days_from_now(&self, days: i64) {
        self.clock.0.store(days, Ordering::SeqCst);
    }

    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("keygate.db")
    }

    /// The service's file, for states that no call can produce.
    pub(crate) fn database(&self) -> Connection {
        let database = Connection::open(self.file()).unwrap();
        database.busy_timeout(Duration::from_secs(5)).unwrap();
        database
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn page(&self) -> String {
        self.origin() + "/settings"
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// All keys, as the API lists them.
    pub(crate) fn keys(&self) -> Vec<Value> {
        let reply = answered(200, self.client().ask("GET", KEYS, &[]));
        reply.json()["keys"].as_array().expect("keys").clone()
    }

    /// The names of all keys.
    pub(crate) fn names(&self) -> Vec<String> {
        self.keys().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The only key with that name.
    pub(crate) fn key(&self, name: &str) -> Value {
        let mut named = self.keys();
        named.retain(|key| key["name"] == name);
        assert_eq!(named.len(), 1, "keys named {name}");
        named.remove(0)
    }

    /// Creates a key that never expires. Returns its secret.
    pub(crate) fn create(&self, name: &str) -> String {
        self.create_with(name, "never", &[])
    }

    pub(crate) fn create_with(&self, name: &str, expires: &str, allowlist: &[&str]) -> String {
        let body = json!({ "name": name, "expiration": expires, "ip_allowlist": allowlist });
        let reply = answered(201, self.client().ask_json("POST", KEYS, &[], body));
        reply.json()["secret"].as_str().expect("a secret").to_owned()
    }

    pub(crate) fn edit(&self, name: &str, patch: Value) {
        let path = format!("{KEYS}/{}", self.key(name)["id"].as_str().unwrap());
        answered(200, self.client().ask_json("PATCH", &path, &[], patch));
    }

    /// Rotates a key over the API, as another user does.
    pub(crate) fn rotate(&self, name: &str) {
        let path = format!("{KEYS}/{}/rotate", self.key(name)["id"].as_str().unwrap());
        let body = json!({ "confirm_name": name });
        answered(200, self.client().ask_json("POST", &path, &[], body));
    }

    /// The status of the answer to a request with the key, from 192.0.2.1.
    pub(crate) fn whoami(&self, secret: &str) -> u16 {
        self.call(secret, "GET", "/v1/whoami", "192.0.2.1")
    }

    /// The status of the answer to a request with the key. `/v1/…?status=404` answers 404.
    pub(crate) fn call(&self, secret: &str, method: &str, target: &str, from: &str) -> u16 {
        let headers =
            [&*format!("Authorization: Bearer {secret}"), &*format!("X-Forwarded-For: {from}")];
        self.client().ask(method, target, &headers).status
    }
}

fn answered(status: u16, reply: Reply) -> Reply {
    assert_eq!(reply.status, status, "{}", reply.text());
    reply
}

impl Drop for Service {
    fn drop(&mut self) {
        // Do not wait for it in a test.
        if let Some(runtime) = self.running.get_mut().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

fn app(keys: KeyManager, mode: watch::Receiver<Mode>) -> Router {
    let proxy = ClientIp::behind(["127.0.0.0/8".parse().unwrap()], ProxyHeader::XForwardedFor);
    let answers = async |uri: Uri| {
        let query = uri.query().unwrap_or_default();
        let status = query.strip_prefix("status=").and_then(|code| code.parse().ok());
        status.unwrap_or(StatusCode::OK)
    };
    let calls =
        Router::new().fallback(answers).layer(ApiKeyLayer::new(keys.clone()).client_ip(proxy));
    let page = SettingsPage::new(keys).example_url("/v1/whoami").unwrap();
    let login = from_fn(move |request: Request, next: Next| gate(mode.clone(), request, next));
    let app = Router::new().route("/elsewhere", get(async || "another page"));
    app.nest("/v1", calls).nest("/settings", page.router().layer(login))
}

/// The host's login and other middleware in front of the page.
async fn gate(mut mode: watch::Receiver<Mode>, request: Request, next: Next) -> Response {
    let page =
        |status: StatusCode| (status, axum::response::Html("<h1>Log in</h1>")).into_response();
    let is_api = request.uri().path().starts_with("/api");
    if is_api {
        let _ = mode.wait_for(|mode| *mode != Mode::Held).await;
    }
    let mode = *mode.borrow();
    match mode {
        Mode::SentToLogin => Redirect::to("/login").into_response(),
        Mode::LoginPage if is_api => page(StatusCode::UNAUTHORIZED),
        Mode::BadGateway if is_api => page(StatusCode::BAD_GATEWAY),
        Mode::LoggedOut => next.run(request).await,
        _ => login(request, next).await,
    }
}
