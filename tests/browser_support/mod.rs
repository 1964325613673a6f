//! The harness of the browser tests: one Chromium and one example server for each test.
//!
//! A test is a call of [`visit`]: it starts the server on a new SQLite file, opens its
//! A test is a call of [`visit`]: it starts the server on a new SQLite file, opens its
//! settings page in a new browser, runs the test, and then checks the browser's console. An
//! error or a warning there, or anything that the content security policy blocked, fails the
//! test, unless the test expects it ([`Browser::expect_console`]). Browser, driver and server
//! end with the test, even if it panics.
//!
//! ```ignore
//! #[tokio::test(flavor = "multi_thread")]
//! #[ignore = "needs chromium"]
//! async fn a_key_is_created() {
//!     visit(async |browser, server| {
//!         browser.press("Create API key").await;
//!         browser.fill("Name", "CI deploy").await;
//!         browser.press("Create key").await;
//!         browser.sees("Save your key").await;
//!         assert_eq!(server.keys().len(), 1);
//!     })
//!     .await;
//! }
//! ```
//!
//! - Elements are found as users find them: by role and accessible name, among the visible
//!   elements, in the topmost dialog if one is open ([`Browser::find`], and `press`, `fill`,
//!   `choose`, `menu` based on it). The driver performs the clicks: they fail on covered or
//!   disabled elements. No script clicks.
//! - Every check waits until its condition holds, for [`PATIENCE`] at most
//!   ([`Browser::until`]). Its error message contains all visible text. Nothing sleeps.
//! - [`visit_at`] opens any address instead, for a server of the test's own;
//!   [`Server::library`] opens the server's file with a clock that the test chooses, for keys
//!   that are expired or old.
//! - [`Browser::js`] only reads. It must not act for the user.
//!
//! Each topic is a file of this folder, with its `mod` line in `tests/browser.rs`.

#[path = "../support/port.rs"]
pub(crate) mod port;
mod process;

use std::fmt::Debug;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::elements::{Element, ElementRef};
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use process::{Driver, Session};
pub(crate) use process::{Server, login, serve};

/// How long a test waits for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The number of concurrent browsers: a third would only slow down the others.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Runs a test on the settings page of a new example server.
pub(crate) async fn visit(test: impl AsyncFnOnce(&Browser, &Server)) {
    visit_with(&[], test).await;
}

/// The same with these environment variables of the server.
pub(crate) async fn visit_with(
    variables: &[(&str, &str)],
    test: impl AsyncFnOnce(&Browser, &Server),
) {
    let _place = PLACES.acquire().await.unwrap();
    let server = Server::start(variables);
    let browser = Browser::open().await;
    browser.goto(&server.page()).await;
    test(&browser, &server).await;
    browser.assert_console();
}

/// Runs a test on a page that the test serves itself.
pub(crate) async fn visit_at(page: &str, test: impl AsyncFnOnce(&Browser)) {
    let _place = PLACES.acquire().await.unwrap();
    let browser = Browser::open().await;
    browser.goto(page).await;
    test(&browser).await;
    browser.assert_console();
}

/// The kinds of elements that users look for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Button,
    Link,
    MenuItem,
    TextBox,
    ComboBox,
    Radio,
    CheckBox,
}

impl Role {
    const fn selector(self) -> &'static str {
        match self {
            Self::Button => "button:not([role])",
            Self::Link => "a[href]",
            Self::MenuItem => "[role=menuitem]",
            Self::TextBox => "input[type=text]",
            Self::ComboBox => "select",
            Self::Radio => "input[type=radio]",
            Self::CheckBox => "input[type=checkbox]",
        }
    }
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

    // ------------------------------------------------------------------ the console

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

    // -------------------------------------------------------------------- the window

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
        self.until("the page has loaded", async || {
            (self.js(script, &[]).await == true).then_some(())
        })
        .await;
    }

    /// Runs a script that reads, and returns its result.
    pub(crate) async fn js(&self, script: &str, arguments: &[Value]) -> Value {
        let done = self.client.execute(script, arguments.to_vec()).await;
        done.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// All visible text of the topmost dialog, or of the page if none is open.
    pub(crate) async fn text(&self) -> String {
        let script = format!("{LOOKING} return scope.innerText");
        self.js(&script, &[]).await.as_str().unwrap_or_default().to_owned()
    }

    /// All text of the document, visible or not, and the values of its fields.
    pub(crate) async fn everything(&self) -> String {
        let script = "return document.documentElement.outerHTML + '\\n' + \
            [...document.querySelectorAll('input, textarea, select')].map((it) => it.value).join('\\n')";
        self.js(script, &[]).await.as_str().expect("a text").to_owned()
    }

    /// Polls until there is an answer. The error of a test that waits in vain contains the
    /// visible text.
    pub(crate) async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            if Instant::now() > give_up {
                panic!("not within {PATIENCE:?}: {what}; there is:\n{}", self.text().await);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Polls until the answer has this value.
    pub(crate) async fn becomes<T: Debug + PartialEq>(
        &self,
        what: &str,
        expected: T,
        mut ask: impl AsyncFnMut() -> T,
    ) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let answer = ask().await;
            if answer == expected {
                return;
            }
            if Instant::now() > give_up {
                let text = self.text().await;
                panic!("{what}: {answer:?} and not {expected:?}; there is:\n{text}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the text is visible.
    pub(crate) async fn sees(&self, text: &str) {
        self.until(&format!("the text {text:?}"), async || {
            self.text().await.contains(text).then_some(())
        })
        .await;
    }

    /// Waits until the text is no longer visible.
    pub(crate) async fn sees_no_more(&self, text: &str) {
        self.until(&format!("no text {text:?}"), async || {
            (!self.text().await.contains(text)).then_some(())
        })
        .await;
    }

    /// The command shown beside a new key.
    pub(crate) async fn command(&self) -> String {
        let script = format!("{LOOKING} return all('pre').map((it) => it.textContent).join()");
        self.js(&script, &[]).await.as_str().expect("a text").to_owned()
    }

    /// Waits until no dialog is open and the page below has loaded.
    pub(crate) async fn no_dialog(&self) {
        let script = "return document.querySelector('dialog') === null";
        self.until("no dialog", async || (self.js(script, &[]).await == true).then_some(())).await;
        self.loaded().await;
    }

    // -------------------------------------------------------------------- controls

    /// The only visible control with that role and name.
    pub(crate) async fn find(&self, role: Role, name: &str) -> Element {
        let script = format!(
            "{LOOKING} const [selector, name] = arguments; \
             return all(selector).filter((it) => called(it) === name)"
        );
        self.until(&format!("one {role:?} {name:?}"), async || {
            let found = self.js(&script, &[json!(role.selector()), json!(name)]).await;
            let found = found.as_array().expect("elements").clone();
            (found.len() == 1).then(|| self.element(&found[0]))
        })
        .await
    }

    /// The names of all visible controls of a role, in order.
    pub(crate) async fn names(&self, role: Role) -> Vec<String> {
        let script = format!("{LOOKING} return all(arguments[0]).map(called)");
        texts(&self.js(&script, &[json!(role.selector())]).await)
    }

    /// An element that a script returned.
    pub(crate) fn element(&self, given: &Value) -> Element {
        let ids = given.as_object().expect("an element").values().next().and_then(Value::as_str);
        let id = ElementRef::from(ids.expect("its id").to_owned());
        Element::from_element_id(self.client.clone(), id)
    }

    async fn click(&self, role: Role, name: &str) {
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
        self.click(Role::Button, button).await;
    }

    /// Clicks a radio button.
    pub(crate) async fn pick(&self, radio: &str) {
        self.click(Role::Radio, radio).await;
    }

    /// Clicks a check box.
    pub(crate) async fn tick(&self, label: &str) {
        self.click(Role::CheckBox, label).await;
    }

    /// Chooses from a list.
    pub(crate) async fn choose(&self, list: &str, option: &str) {
        self.find(Role::ComboBox, list).await.select_by_label(option).await.unwrap();
    }

    /// Opens the menu of a key's row, and clicks an item.
    pub(crate) async fn menu(&self, key: &str, item: &str) {
        self.press(&format!("Actions for {key}")).await;
        self.click(Role::MenuItem, item).await;
    }

    /// Whether a button is enabled.
    pub(crate) async fn is_enabled(&self, button: &str) -> bool {
        self.find(Role::Button, button).await.is_enabled().await.unwrap()
    }

    /// Replaces the text of a field by typing.
    pub(crate) async fn fill(&self, label: &str, text: &str) {
        self.click(Role::TextBox, label).await;
        self.chord(&[Key::Control.into(), 'a']).await;
        self.key(Key::Delete.into()).await;
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
    pub(crate) async fn key(&self, key: char) {
        self.chord(&[key]).await;
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
        self.find(Role::TextBox, label).await.prop("value").await.unwrap().unwrap_or_default()
    }

    /// The error at a field, from its description; empty if there is none.
    pub(crate) async fn error_at(&self, label: &str) -> String {
        let field = self.find(Role::TextBox, label).await;
        let script = "const [field] = arguments; \
            const lines = field.getAttribute('aria-describedby').split(' ').map((id) => document.getElementById(id)); \
            const error = lines.find((line) => line.matches('.field-error')); \
            const shown = error.checkVisibility() ? error.innerText : ''; \
            return (field.getAttribute('aria-invalid') === 'true') === (shown !== '') ? shown : 'aria-invalid lies: ' + shown";
        let error = self.js(script, &[serde_json::to_value(&field).unwrap()]).await;
        error.as_str().expect("a text").to_owned()
    }

    /// Waits for an error at a field that contains this text.
    pub(crate) async fn sees_error(&self, label: &str, part: &str) {
        self.until(&format!("at {label:?} the error {part:?}"), async || {
            self.error_at(label).await.contains(part).then_some(())
        })
        .await;
    }

    /// The text that was copied last.
    pub(crate) async fn clipboard(&self) -> String {
        let script = "const done = arguments[0]; \
            navigator.clipboard.readText().then(done, (error) => done(`refused: ${error}`))";
        let text = self.client.execute_async(script, vec![]).await.unwrap();
        text.as_str().expect("a text").to_owned()
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
        self.js(&script, &[]).await.as_str().expect("a name").to_owned()
    }

    // --------------------------------------------------------------------- the table

    /// The names of the keys, in the order of the table.
    pub(crate) async fn rows(&self) -> Vec<String> {
        let script = "return [...document.querySelectorAll('table.keys tbody tr td.name span.name')]\
            .map((name) => name.textContent)";
        texts(&self.js(script, &[]).await)
    }

    /// The cell of a key in the column with that heading.
    pub(crate) async fn cell(&self, key: &str, column: &str) -> Element {
        let script = "const [key, column] = arguments; \
            const table = document.querySelector('table.keys'); \
            const at = [...table?.querySelectorAll('th') ?? []].findIndex((th) => th.innerText === column); \
            const rows = [...table?.querySelectorAll('tbody tr') ?? []]; \
            return rows.filter((row) => row.querySelector('.name span').textContent === key) \
                .map((row) => row.cells[at]).filter(Boolean)";
        self.until(&format!("one row {key:?} with {column:?}"), async || {
            let found = self.js(script, &[json!(key), json!(column)]).await;
            let found = found.as_array().expect("cells").clone();
            (found.len() == 1).then(|| self.element(&found[0]))
        })
        .await
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

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn entry(entry: &Value) -> String {
    format!("{} {} {}", entry["level"], entry["source"], entry["message"]).replace('"', "")
}
