//! The harness of the browser tests: one Chromium and one service for each test.
//!
//! Elements are found as users find them: by role and accessible name, among the visible
//! elements, in the topmost dialog if one is open. The driver performs the clicks, which fail
//! on covered or disabled elements; scripts only read. Every check waits until its condition
//! holds. An unexpected error or warning in the browser's console fails the test, and so does
//! anything that the content security policy blocks.

use std::fmt::Debug;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::elements::{Element, ElementRef};
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use keygate::{Actor, OrgId};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::process::{Driver, Session};
use crate::service::visit;
use crate::support::{Answer, PATIENCE};

/// The number of concurrent browsers: a third would only slow down the others.
static PLACES: Semaphore = Semaphore::const_new(2);

fn run(test: impl Future<Output = ()>) {
    Runtime::new().unwrap().block_on(async {
        let _place = PLACES.acquire().await.unwrap();
        test.await;
    });
}

async fn open(page: &str, test: impl AsyncFnOnce(&Browser)) {
    let browser = Browser::open().await;
    browser.goto(page).await;
    test(&browser).await;
    browser.assert_console();
}

/// Runs a test on a page that is mounted at this path, behind a login.
pub(crate) fn visit_app(
    page: impl FnOnce() -> Router,
    path: &str,
    test: impl AsyncFnOnce(&Browser),
) {
    run(async {
        let page = page().layer(from_fn(login));
        let app = if path == "/" { page } else { Router::new().nest(path, page) };
        open(&(serve(app).await + path), test).await;
    });
}

/// Serves a router of the test until the test ends. Returns its origin.
pub(crate) async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    origin
}

/// A stand-in for a host's login.
pub(crate) async fn login(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Actor::new(OrgId::new("demo").unwrap(), "demo user"));
    next.run(request).await
}

/// Runs a test on a page that the test serves itself.
pub(crate) fn visit_at(page: &str, test: impl AsyncFnOnce(&Browser)) {
    run(open(page, test));
}

/// The kinds of elements that users look for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role(&'static str);

impl Role {
    pub(crate) const BUTTON: Self = Self("button:not([role])");
    pub(crate) const LINK: Self = Self("a[href]");
    pub(crate) const TAB: Self = Self("[role=tab]");
    pub(crate) const SUMMARY: Self = Self("summary");
    pub(crate) const MENU_ITEM: Self = Self("[role=menuitem]");
    pub(crate) const TEXT_BOX: Self = Self("input[type=text]");
    pub(crate) const COMBO_BOX: Self = Self("select");
    pub(crate) const RADIO: Self = Self("input[type=radio]");
    pub(crate) const CHECK_BOX: Self = Self("input[type=checkbox]");
}

/// `scope` selects the usable elements; `called` returns an element's accessible name.
const LOOKING: &str = r#"
    const scope = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
    const visible = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    const plain = (text) => text.replace(/\s+/g, " ").trim();
    const called = (element) => plain(element.getAttribute("aria-label")
        ?? (element.labels?.length ? element.labels[0].innerText : element.innerText) ?? "");
    const all = (selector) => [...scope.querySelectorAll(selector)].filter(visible);
"#;

/// A browser with one window, and the actions of its user.
#[derive(Debug)]
pub(crate) struct Browser {
    /// For actions without a helper: windows, sizes, screenshots, history.
    pub(crate) client: Client,
    session: Session,
    expected: Mutex<Vec<String>>,
}

impl Browser {
    async fn open() -> Self {
        let driver = Driver::start();
        let capabilities = json!({
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": {
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-dev-shm-usage",
                    "--disable-gpu",
                    "--no-first-run",
                    "--lang=en-US",
                    "--window-size=1100,900",
                    format!("--user-data-dir={}", driver.profile()),
                ],
                // Its default start page would be loaded from the network.
                "prefs": {
                    "session.restore_on_startup": 4,
                    "session.startup_urls": ["about:blank"],
                },
            },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&driver.url()).await;
        let client = client.expect("a session of Chromium");
        let id = client.session_id().await.unwrap().expect("the id of the session");
        let browser =
            Self { client, session: Session::new(driver, &id), expected: Mutex::default() };
        if let Ok(width) = std::env::var("KEYGATE_BROWSER_WIDTH") {
            let width: u32 = width.parse().expect("KEYGATE_BROWSER_WIDTH is a number of pixels");
            let size =
                json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
            browser.cdp("Emulation.setDeviceMetricsOverride", size);
        }
        let permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"];
        browser.cdp("Browser.grantPermissions", json!({ "permissions": permissions }));
        // The console outlives the page, so violations are logged there.
        let listener = "addEventListener('securitypolicyviolation', (event) => \
            console.error('CSP: ' + event.violatedDirective + ' ' + event.blockedURI));";
        browser.cdp("Page.addScriptToEvaluateOnNewDocument", json!({ "source": listener }));
        browser
    }

    /// A command of the Chrome DevTools Protocol.
    pub(crate) fn cdp(&self, command: &str, parameters: Value) -> Value {
        self.session.post("goog/cdp/execute", json!({ "cmd": command, "params": parameters }))
    }

    /// Expects a message in the console during the test and allows it. `part` is a part of the
    /// message, for instance `"status of 422"`.
    pub(crate) fn expect_console(&self, part: &str) {
        self.expected.lock().unwrap().push(part.to_owned());
    }

    /// Asserts that the console has all expected messages and no others.
    fn assert_console(&self) {
        let entries = self.session.post("se/log", json!({ "type": "browser" }));
        let messages: Vec<String> =
            entries.as_array().expect("entries").iter().map(entry).collect();
        let expected = self.expected.lock().unwrap();
        let is_bad =
            |message: &&String| message.starts_with("SEVERE") || message.starts_with("WARNING");
        let is_expected = |message: &&String| {
            // A page without an icon is not ours.
            message.contains("/favicon.ico") || expected.iter().any(|part| message.contains(part))
        };
        let unexpected: Vec<_> =
            messages.iter().filter(is_bad).filter(|s| !is_expected(s)).collect();
        assert!(unexpected.is_empty(), "in the console: {unexpected:#?}");
        for part in expected.iter() {
            assert!(
                messages.iter().any(|message| message.contains(part)),
                "{part:?} is not among {messages:?}"
            );
        }
    }

    /// Opens an address and waits until the page shows the keys or an error.
    pub(crate) async fn goto(&self, url: &str) {
        self.client.goto(url).await.unwrap();
        self.loaded().await;
    }

    pub(crate) async fn reload(&self) {
        self.client.refresh().await.unwrap();
        self.loaded().await;
    }

    /// Waits until the page is no longer loading. A foreign page never is.
    pub(crate) async fn loaded(&self) {
        let script = "return document.readyState === 'complete' && \
            document.querySelector('#page')?.getAttribute('aria-busy') !== 'true'";
        self.until("the page has loaded", async || self.js(script, &[]).await == true).await;
    }

    /// Runs a script that reads, and returns its result.
    pub(crate) async fn js(&self, script: &str, arguments: &[Value]) -> Value {
        let done = self.client.execute(script, arguments.to_vec()).await;
        done.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// The text that a script returns.
    pub(crate) async fn read(&self, script: &str, arguments: &[Value]) -> String {
        self.js(script, arguments).await.as_str().expect("a text").to_owned()
    }

    /// The texts that a script returns.
    pub(crate) async fn list(&self, script: &str, arguments: &[Value]) -> Vec<String> {
        texts(self.js(script, arguments).await)
    }

    /// All visible text of the topmost dialog, or of the page if none is open.
    pub(crate) async fn text(&self) -> String {
        self.read(&format!("{LOOKING} return scope.innerText ?? ''"), &[]).await
    }

    /// All text of the document, visible or not, and the values of its fields.
    pub(crate) async fn everything(&self) -> String {
        let script = "return document.documentElement.outerHTML + '\\n' + \
            [...document.querySelectorAll('input, textarea, select')].map((it) => it.value).join('\\n')";
        self.read(script, &[]).await
    }

    /// Polls until there is an answer. A failure shows the visible text.
    async fn poll<T>(&self, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let missing = match ask().await {
                Ok(answer) => return answer,
                Err(missing) => missing,
            };
            if Instant::now() > give_up {
                panic!("not within {PATIENCE:?}: {missing}; there is:\n{}", self.text().await);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Polls until a condition holds or there is a value.
    pub(crate) async fn until<A: Answer>(
        &self,
        what: &str,
        mut ask: impl AsyncFnMut() -> A,
    ) -> A::Value {
        self.poll(async || ask().await.value().ok_or_else(|| what.to_owned())).await
    }

    /// Polls until the answer has this value.
    pub(crate) async fn becomes<T: Debug + PartialEq>(
        &self,
        what: &str,
        expected: T,
        mut ask: impl AsyncFnMut() -> T,
    ) {
        self.poll(async || match ask().await {
            answer if answer == expected => Ok(()),
            answer => Err(format!("{what}: {answer:?} and not {expected:?}")),
        })
        .await;
    }

    /// Waits until the text is visible.
    pub(crate) async fn sees(&self, text: &str) {
        self.until(&format!("the text {text:?}"), async || self.text().await.contains(text)).await;
    }

    /// Waits until the text is no longer visible.
    pub(crate) async fn sees_no_more(&self, text: &str) {
        self.until(&format!("no text {text:?}"), async || !self.text().await.contains(text)).await;
    }

    /// Waits until the table has exactly these keys.
    pub(crate) async fn sees_rows(&self, names: &[&str]) {
        let names = names.iter().copied().map(str::to_owned).collect();
        self.becomes("the rows", names, async || self.rows().await).await;
    }

    /// The command shown beside a new key.
    pub(crate) async fn command(&self) -> String {
        let script = format!("{LOOKING} return all('pre').map((it) => it.textContent).join()");
        self.read(&script, &[]).await
    }

    /// Waits until no dialog is open and the page below has loaded.
    pub(crate) async fn no_dialog(&self) {
        let script = "return document.querySelector('dialog') === null";
        self.until("no dialog", async || self.js(script, &[]).await == true).await;
        self.loaded().await;
    }

    /// The only visible control with that role and name.
    pub(crate) async fn find(&self, role: Role, name: &str) -> Element {
        let script = format!(
            "{LOOKING} const [selector, name] = arguments; \
             return all(selector).filter((it) => called(it) === name)"
        );
        let arguments = [json!(role.0), json!(name)];
        self.only(&format!("{role:?} {name:?}"), &script, &arguments).await
    }

    /// The names of all visible controls of a role, in order.
    pub(crate) async fn names(&self, role: Role) -> Vec<String> {
        let script = format!("{LOOKING} return all(arguments[0]).map(called)");
        self.list(&script, &[json!(role.0)]).await
    }

    /// Waits until a script finds exactly one element.
    async fn only(&self, what: &str, script: &str, arguments: &[Value]) -> Element {
        self.until(&format!("one {what}"), async || {
            let found = self.js(script, arguments).await;
            let [element] = found.as_array().expect("elements").as_slice() else { return None };
            let id = element.as_object().expect("an element").values().next();
            let id = id.and_then(Value::as_str).expect("its id").to_owned();
            Some(Element::from_element_id(self.client.clone(), ElementRef::from(id)))
        })
        .await
    }

    pub(crate) async fn click(&self, role: Role, name: &str) {
        self.until(&format!("a click on {role:?} {name:?}"), async || {
            match self.find(role, name).await.click().await {
                Ok(()) => Some(()),
                // The table was redrawn between the two steps.
                Err(error) if error.is_stale_element_reference() => None,
                Err(error) => panic!("{role:?} {name:?}: {error}"),
            }
        })
        .await;
    }

    /// Clicks a button.
    pub(crate) async fn press(&self, button: &str) {
        self.click(Role::BUTTON, button).await;
    }

    /// Clicks a button that closes the dialog.
    pub(crate) async fn close_with(&self, button: &str) {
        self.press(button).await;
        self.no_dialog().await;
    }

    /// Leaves the dialog with a new key, whether it was copied or not.
    pub(crate) async fn done(&self) {
        self.press("Done").await;
        self.leave_the_key().await;
    }

    /// Answers the question after a key that was not copied, if it is asked.
    pub(crate) async fn leave_the_key(&self) {
        const LEAVE: &str = "Close without it";
        if self.names(Role::BUTTON).await.iter().any(|name| name == LEAVE) {
            self.press(LEAVE).await;
        }
        self.no_dialog().await;
    }

    /// Adds entries to the allowlist.
    pub(crate) async fn add(&self, entries: &str) {
        self.fill("Address or range", entries).await;
        self.press("Add").await;
    }

    /// Submits the form for a new key with that name. The key is then shown.
    pub(crate) async fn create(&self, name: &str) {
        self.press("Create API Key").await;
        self.fill("Name", name).await;
        self.press("Create key").await;
    }

    /// Types the name of a key to confirm its rotation or deletion.
    pub(crate) async fn confirm(&self, name: &str) {
        self.fill(&format!("Type {name} to confirm"), name).await;
    }

    /// Clicks a radio button.
    pub(crate) async fn pick(&self, radio: &str) {
        self.click(Role::RADIO, radio).await;
    }

    /// Chooses from a list.
    pub(crate) async fn choose(&self, list: &str, option: &str) {
        self.find(Role::COMBO_BOX, list).await.select_by_label(option).await.unwrap();
    }

    /// Opens the menu of a key's row, and clicks an item.
    pub(crate) async fn menu(&self, key: &str, item: &str) {
        self.press(&format!("Actions for {key}")).await;
        self.click(Role::MENU_ITEM, item).await;
    }

    /// Whether a button is enabled.
    pub(crate) async fn is_enabled(&self, button: &str) -> bool {
        self.find(Role::BUTTON, button).await.is_enabled().await.unwrap()
    }

    /// Replaces the text of a field by typing.
    pub(crate) async fn fill(&self, label: &str, text: &str) {
        self.click(Role::TEXT_BOX, label).await;
        self.chord(&[Key::Control.into(), 'a']).await;
        self.key(Key::Delete).await;
        if !text.is_empty() {
            self.keys(text).await;
        }
        let value = self.value(label).await;
        assert_eq!(value, text, "typed into {label}");
    }

    /// Types into the focused element.
    pub(crate) async fn keys(&self, text: &str) {
        self.client.active_element().await.unwrap().send_keys(text).await.unwrap();
    }

    /// Presses one key on the focused element.
    pub(crate) async fn key(&self, key: impl Into<char>) {
        self.chord(&[key.into()]).await;
    }

    pub(crate) async fn escape(&self) {
        self.key(Key::Escape).await;
    }

    /// Presses keys together: all but the last are held.
    pub(crate) async fn chord(&self, keys: &[char]) {
        let down = keys.iter().map(|key| KeyAction::Down { value: *key });
        let up = keys.iter().rev().map(|key| KeyAction::Up { value: *key });
        let actions = KeyActions::new("keyboard".to_owned());
        let actions = down.chain(up).fold(actions, |actions, action| actions.then(action));
        self.client.perform_actions(actions).await.unwrap();
    }

    /// The text of a field.
    pub(crate) async fn value(&self, label: &str) -> String {
        self.find(Role::TEXT_BOX, label).await.prop("value").await.unwrap().unwrap_or_default()
    }

    /// The error at a field, from its description; empty if there is none.
    pub(crate) async fn error_at(&self, label: &str) -> String {
        let field = self.find(Role::TEXT_BOX, label).await;
        let script = "const [field] = arguments; \
            const lines = field.getAttribute('aria-describedby').split(' ').map((id) => document.getElementById(id)); \
            const error = lines.find((line) => line.matches('.field-error')); \
            const shown = error.checkVisibility() ? error.innerText : ''; \
            return (field.getAttribute('aria-invalid') === 'true') === (shown !== '') ? shown : 'aria-invalid lies: ' + shown";
        self.read(script, &[serde_json::to_value(&field).unwrap()]).await
    }

    /// Waits for an error at a field that contains this text.
    pub(crate) async fn sees_error(&self, label: &str, part: &str) {
        let what = format!("at {label:?} the error {part:?}");
        self.until(&what, async || self.error_at(label).await.contains(part)).await;
    }

    /// The text that was copied last.
    pub(crate) async fn clipboard(&self) -> String {
        let script = "const done = arguments[0]; \
            navigator.clipboard.readText().then(done, (error) => done(`refused: ${error}`))";
        let text = self.client.execute_async(script, vec![]).await.unwrap();
        text.as_str().expect("a text").to_owned()
    }

    /// Clicks “Copy key” and returns what was copied.
    pub(crate) async fn copied(&self) -> String {
        self.press("Copy key").await;
        self.sees("Copied").await;
        self.clipboard().await
    }

    /// Waits until the element with that name has the focus.
    pub(crate) async fn sees_focus(&self, name: &str) {
        self.becomes("the focus", name.to_owned(), async || self.focused().await).await;
    }

    /// The name of the focused element.
    pub(crate) async fn focused(&self) -> String {
        let script = format!(
            "{LOOKING} return document.activeElement === document.body ? 'nothing' : called(document.activeElement)"
        );
        self.read(&script, &[]).await
    }

    /// The names of the keys, in the order of the table.
    pub(crate) async fn rows(&self) -> Vec<String> {
        let script = "return [...document.querySelectorAll('table.keys tbody tr th.name span.name')]\
            .map((name) => name.textContent)";
        self.list(script, &[]).await
    }

    /// The cell of a key in the column with that heading.
    pub(crate) async fn cell(&self, key: &str, column: &str) -> Element {
        let script = "const [key, column] = arguments; \
            const table = document.querySelector('table.keys'); \
            const at = [...table?.querySelectorAll('thead th') ?? []].findIndex((th) => th.innerText === column); \
            const rows = [...table?.querySelectorAll('tbody tr') ?? []]; \
            return rows.filter((row) => row.querySelector('.name span').textContent === key) \
                .map((row) => row.cells[at]).filter(Boolean)";
        let what = format!("row {key:?} with {column:?}");
        self.only(&what, script, &[json!(key), json!(column)]).await
    }

    /// The text of [`Browser::cell`].
    pub(crate) async fn cell_text(&self, key: &str, column: &str) -> String {
        // The row may be replaced between the two steps.
        self.until(&format!("the text of {key:?}, {column:?}"), async || {
            self.cell(key, column).await.text().await.ok()
        })
        .await
    }
}

pub(crate) fn texts(list: Value) -> Vec<String> {
    serde_json::from_value(list).expect("texts")
}

/// A line of the console.
fn entry(entry: &Value) -> String {
    format!("{} {} {}", entry["level"], entry["source"], entry["message"]).replace('"', "")
}

#[test]
#[ignore = "needs chromium"]
#[should_panic(expected = "in the console")]
fn an_error_in_the_console_fails_a_test() {
    visit(async |browser, _| _ = browser.js("console.error('broken')", &[]).await);
}
