//! A service in the test's own process, for states that the example server cannot have:
//! stopped and restarted, slow, logged out, with countries, and in another year.

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
use keygate::audit::{CountryCode, CountryLookup};
use keygate::guard::{ClientIp, ProxyHeader};
use keygate::runtime::Clock;
use keygate::{
    Actor, ApiKeyLayer, Delivery, KeyManager, OrgId, SettingsPage, SqliteStore, Timestamp,
};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::browser_support::port::free_port;
use crate::browser_support::{Browser, visit_at};
use crate::support::{Client, poll};

const DAY: Duration = Duration::from_secs(86_400);

/// The texts that a script returned.
pub(crate) fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|text| text.as_str().expect("a text").to_owned()).collect()
}

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

/// A key with its secret.
#[derive(Clone, Debug)]
pub(crate) struct CreatedKey {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// The service, on a SQLite file and an address that stay the same when it stops.
#[derive(Debug)]
pub(crate) struct Service {
    folder: TempDir,
    address: SocketAddr,
    clock: ShiftedClock,
    mode: watch::Sender<Mode>,
    running: Mutex<Option<Runtime>>,
}

/// Runs a test on the settings page of a new service. `before` prepares the service; the test
/// gets its result.
pub(crate) async fn visit_service<T>(
    before: impl FnOnce(&Service) -> T,
    test: impl AsyncFnOnce(&Browser, &Service, T),
) {
    let service = Service::build();
    let given = before(&service);
    visit_at(&service.page(), async |browser| test(browser, &service, given).await).await;
}

impl Service {
    fn build() -> Self {
        let service = Self {
            folder: tempfile::tempdir().unwrap(),
            address: SocketAddr::from(([127, 0, 0, 1], free_port())),
            clock: ShiftedClock::default(),
            mode: watch::Sender::new(Mode::Open),
            running: Mutex::default(),
        };
        service.start();
        service
    }

    /// Starts the service again, on the same file and address.
    pub(crate) fn start(&self) {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let (address, clock, mode) = (self.address, self.clock.clone(), self.mode.subscribe());
        let file = self.file();
        runtime.spawn(async move {
            let app = app(SqliteStore::open(file).unwrap(), clock, mode);
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

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn page(&self) -> String {
        self.origin() + "/settings"
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("keygate.db")
    }

    /// The service's file, for states that no call can produce.
    pub(crate) fn database(&self) -> Connection {
        let database = Connection::open(self.file()).unwrap();
        database.busy_timeout(Duration::from_secs(5)).unwrap();
        database
    }

    fn api(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let target = format!("/settings/api/keys{path}");
        let mut client = Client::connect(self.address);
        let reply = match body {
            Some(body) => client.ask_json(method, &target, &[], body),
            None => client.ask(method, &target, &[]),
        };
        (reply.status, if reply.body.is_empty() { Value::Null } else { reply.json() })
    }

    pub(crate) fn create(&self, name: &str, expiration: &str, allowlist: &[&str]) -> CreatedKey {
        let body = json!({ "name": name, "expiration": expiration, "ip_allowlist": allowlist });
        let (status, made) = self.api("POST", "", Some(body));
        assert_eq!(status, 201, "{made}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        CreatedKey { id: text(&made["key"]["id"]), secret: text(&made["secret"]) }
    }

    pub(crate) fn edit(&self, key: &CreatedKey, patch: Value) {
        let (status, answer) = self.api("PATCH", &format!("/{}", key.id), Some(patch));
        assert_eq!(status, 200, "{answer}");
    }

    /// The key as the API shows it; `None` if it does not exist.
    pub(crate) fn key(&self, key: &CreatedKey) -> Option<Value> {
        let (status, answer) = self.api("GET", &format!("/{}", key.id), None);
        (status == 200).then_some(answer)
    }

    /// The names of all keys.
    pub(crate) fn names(&self) -> Vec<String> {
        let (_, answer) = self.api("GET", "", None);
        let keys = answer["keys"].as_array().unwrap().iter();
        keys.map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The status of the answer to a request with the key. `/v1/…?status=404` answers 404.
    pub(crate) fn call(&self, key: &CreatedKey, method: &str, target: &str, from: &str) -> u16 {
        let headers =
            [format!("Authorization: Bearer {}", key.secret), format!("X-Forwarded-For: {from}")];
        let headers = headers.each_ref().map(String::as_str);
        Client::connect(self.address).ask(method, target, &headers).status
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Do not wait for it in a test.
        if let Some(runtime) = self.running.get_mut().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

fn app(store: SqliteStore, clock: ShiftedClock, mode: watch::Receiver<Mode>) -> Router {
    let builder = KeyManager::builder(store.clone()).audit(store);
    let builder = builder.delivery(Delivery::strict()).clock(clock).countries(TestCountries);
    let keys = builder.build().unwrap();
    let proxy = ClientIp::behind(["127.0.0.0/8".parse().unwrap()], ProxyHeader::XForwardedFor);
    let answers = async |uri: Uri| {
        let query = uri.query().unwrap_or_default();
        let status = query.strip_prefix("status=").and_then(|code| code.parse().ok());
        status.unwrap_or(StatusCode::OK)
    };
    let calls =
        Router::new().fallback(answers).layer(ApiKeyLayer::new(keys.clone()).client_ip(proxy));
    let page = SettingsPage::new(keys).example_url("/v1/whoami").unwrap();
    let login = from_fn(move |request: Request, next: Next| login(mode.clone(), request, next));
    Router::new().nest("/v1", calls).nest("/settings", page.router().layer(login))
}

/// The host's login and other middleware in front of the page.
async fn login(mut mode: watch::Receiver<Mode>, mut request: Request, next: Next) -> Response {
    let page =
        |status: StatusCode| (status, axum::response::Html("<h1>Log in</h1>")).into_response();
    let is_api = request.uri().path().starts_with("/api");
    if is_api {
        let _ = mode.wait_for(|mode| *mode != Mode::Held).await;
    }
    let mode = *mode.borrow();
    match mode {
        Mode::SentToLogin => return Redirect::to("/login").into_response(),
        Mode::LoginPage if is_api => return page(StatusCode::UNAUTHORIZED),
        Mode::BadGateway if is_api => return page(StatusCode::BAD_GATEWAY),
        Mode::LoggedOut => {}
        _ => {
            request.extensions_mut().insert(Actor::new(OrgId::new("demo").unwrap(), "demo user"));
        }
    }
    next.run(request).await
}
