//! The table of keys, and the page without keys.

use std::time::Duration;

use keygate::runtime::{Clock, ManualClock, SystemClock};
use keygate::store::KeyUse;
use keygate::{Actor, Expiration, KeyPatch, KeyStore, NewKey, OrgId, SqliteStore, Timestamp};
use serde_json::{Value, json};

use crate::browser_support::{Browser, Role, visit};

/// Red, green and blue of a computed colour.
async fn colour_of_badge(browser: &Browser, key: &str, column: &str) -> [f64; 3] {
    let cell = browser.cell(key, column).await;
    // Whatever the notation of the computed colour, a pixel has three numbers.
    let script = "const pen = document.createElement('canvas').getContext('2d'); \
        pen.fillStyle = getComputedStyle(arguments[0].querySelector('.badge')).color; \
        pen.fillRect(0, 0, 1, 1); return [...pen.getImageData(0, 0, 1, 1).data]";
    let rgb = browser.js(script, &[serde_json::to_value(&cell).unwrap()]).await;
    [0, 1, 2].map(|n| rgb[n].as_f64().unwrap())
}

/// An instant as the browser formats it in the user's time zone.
async fn as_date(browser: &Browser, instant: &Value, options: Value) -> String {
    let script = "const [instant, options] = arguments; \
        return new Intl.DateTimeFormat('en', options).format(new Date(instant))";
    browser.js(script, &[instant.clone(), options]).await.as_str().unwrap().to_owned()
}

async fn title_in(browser: &Browser, key: &str, column: &str) -> String {
    let cell = browser.cell(key, column).await;
    let script = "return arguments[0].querySelector('[title]')?.title ?? 'no title'";
    let title = browser.js(script, &[serde_json::to_value(&cell).unwrap()]).await;
    title.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn without_keys_the_page_explains_keys() {
    visit(async |browser, server| {
        browser.sees("No API keys yet").await;
        browser.sees("Create one for each program that calls the API").await;
        browser.sees("0 of 20 keys").await;
        assert_eq!(browser.names(Role::Button).await, ["Create API key"]);

        server.create("first");
        browser.reload().await;
        assert_eq!(browser.rows().await, ["first"]);
        browser.sees_no_more("No API keys yet").await;
        browser.sees("1 of 20 keys").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_table_shows_every_key_with_its_state() {
    visit(async |browser, server| {
        let actor = Actor::new(OrgId::new("demo").unwrap(), "a test");
        let past =
            server.library(ManualClock::new("2020-02-29T12:00:00Z".parse::<Timestamp>().unwrap()));
        let day = NewKey::named("expired").unwrap().expires(Expiration::OneDay);
        past.create(&actor, day).await.unwrap();
        let now = server.library(SystemClock);
        let year = NewKey::named("dated").unwrap().expires(Expiration::OneYear);
        let year = year.allow(["10.0.0.0/8", "2001:db8::/32"]).unwrap();
        now.create(&actor, year).await.unwrap();
        let revoked = now.create(&actor, NewKey::named("revoked").unwrap()).await.unwrap();
        now.update(&actor, &revoked.key.id, KeyPatch::revoke()).await.unwrap();
        let restricted = NewKey::named("one address").unwrap().allow(["127.0.0.1"]).unwrap();
        let used = now.create(&actor, restricted).await.unwrap();
        let at = SystemClock.now().saturating_sub(Duration::from_secs(3 * 3600 + 60));
        let store = SqliteStore::open(server.file()).unwrap();
        store.record_uses(&[KeyUse { id: used.key.id, at }]).await.unwrap();

        browser.reload().await;
        assert_eq!(browser.rows().await, ["expired", "dated", "revoked", "one address"]);
        browser.sees("4 of 20 keys").await;
        for key in server.keys() {
            let name = key["name"].as_str().unwrap();
            let prefix = format!("{}…", key["key_prefix"].as_str().unwrap());
            assert_eq!(browser.cell_text(name, "Key").await, prefix);
            let status = if name == "revoked" { "Revoked" } else { "Active" };
            assert_eq!(browser.cell_text(name, "Status").await, status);
        }
        let name = browser.cell_text("dated", "Name").await;
        assert!(name.contains("Restricted to 2 addresses"), "{name}");
        let name = browser.cell_text("one address", "Name").await;
        assert!(name.contains("Restricted to 1 address"), "{name}");
        let name = browser.cell_text("revoked", "Name").await;
        let lines: Vec<_> = name.lines().collect();
        assert!(
            matches!(lines[..], ["revoked", made] if made.starts_with("Created by a test ")),
            "{name}"
        );

        let expires = server.key("dated")["expires_at"].clone();
        let day = as_date(browser, &expires, json!({ "dateStyle": "medium" })).await;
        let exact = json!({ "dateStyle": "medium", "timeStyle": "medium" });
        assert_eq!(browser.cell_text("dated", "Expires").await, day);
        let moment = as_date(browser, &expires, exact.clone()).await;
        let title = title_in(browser, "dated", "Expires").await;
        assert!(title.starts_with(&moment), "{title} and {moment}");
        assert_eq!(browser.cell_text("revoked", "Expires").await, "Never");
        assert_eq!(browser.cell_text("expired", "Expires").await, "Expired");
        let title = title_in(browser, "expired", "Expires").await;
        assert!(title.starts_with("Mar 1, 2020"), "{title}");

        assert_eq!(browser.cell_text("dated", "Last used").await, "Never");
        assert_eq!(browser.cell_text("one address", "Last used").await, "3 hours ago");
        let last = server.key("one address")["last_used_at"].clone();
        let moment = as_date(browser, &last, exact).await;
        assert_eq!(title_in(browser, "one address", "Last used").await, moment);

        for scheme in ["light", "dark"] {
            let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
            browser.cdp("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
            let [r, g, b] = colour_of_badge(browser, "dated", "Status").await;
            assert!(g > r + 40.0 && g > b + 20.0, "green, {scheme}: {r} {g} {b}");
            for (key, column) in [("revoked", "Status"), ("expired", "Expires")] {
                let [r, g, b] = colour_of_badge(browser, key, column).await;
                assert!(r > g + 40.0 && r > b + 40.0, "red, {scheme}: {r} {g} {b}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_recent_use_is_shown() {
    visit(async |browser, server| {
        let secret = server.create("CI deploy");
        browser.reload().await;
        assert_eq!(browser.cell_text("CI deploy", "Last used").await, "Never");
        assert_eq!(server.whoami(&secret), 200);
        browser
            .until("a use in the API", async || {
                server.key("CI deploy")["last_used_at"].is_string().then_some(())
            })
            .await;
        browser.reload().await;
        assert_eq!(browser.cell_text("CI deploy", "Last used").await, "now");
    })
    .await;
}
