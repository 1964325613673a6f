//! The table of keys, and the page without keys.

use serde_json::{Value, json};

use crate::kit::{Browser, Role};
use crate::service::{Service, visit, visit_service};

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
    browser.read(script, &[instant.clone(), options]).await
}

async fn title_in(browser: &Browser, key: &str, column: &str) -> String {
    let cell = browser.cell(key, column).await;
    let script = "return arguments[0].querySelector('[title]')?.title ?? 'no title'";
    browser.read(script, &[serde_json::to_value(&cell).unwrap()]).await
}

#[test]
#[ignore = "needs chromium"]
fn without_keys_the_page_explains_them_and_then_it_shows_the_first_key_and_its_use() {
    visit(async |browser, service| {
        assert_eq!(browser.client.title().await.unwrap(), "API keys");
        browser.sees("No API keys yet").await;
        browser.sees("Create one for each program that calls the API").await;
        browser.sees("0 of 20 keys").await;
        assert_eq!(browser.names(Role::BUTTON).await[..2], ["Create API Key", "Refresh"]);

        let secret = service.create("first");
        browser.reload().await;
        assert_eq!(browser.rows().await, ["first"]);
        browser.sees_no_more("No API keys yet").await;
        browser.sees("1 of 20 keys").await;

        assert_eq!(browser.cell_text("first", "Last Used").await, "Never");
        assert_eq!(service.whoami(&secret), 200);
        let is_used = async || service.key("first")["last_used_at"].is_string();
        browser.until("a use in the API", is_used).await;
        browser.reload().await;
        assert_eq!(browser.cell_text("first", "Last Used").await, "now");
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_table_shows_every_key_with_its_state() {
    let before = |service: &Service| {
        service.days_from_now(-40);
        service.create_with("expired", "1_day", &[]);
        service.days_from_now(0);
        service.create_with("dated", "1_year", &["10.0.0.0/8", "2001:db8::/32"]);
        service.create("revoked");
        service.edit("revoked", json!({ "status": "revoked" }));
        service.create_with("one address", "never", &["127.0.0.1"]);
        let update = "UPDATE keys SET last_used_at = (unixepoch() - 3 * 3600 - 60) * 1000000 \
            WHERE name = 'one address'";
        assert_eq!(service.database().execute(update, []).unwrap(), 1);
    };
    visit_service(before, async |browser, service, ()| {
        assert_eq!(browser.rows().await, ["one address", "revoked", "dated", "expired"]);
        browser.sees("4 of 20 keys").await;
        for key in service.keys() {
            let name = key["name"].as_str().unwrap();
            let prefix = format!("{}…", key["key_prefix"].as_str().unwrap());
            assert_eq!(browser.cell_text(name, "Key Prefix").await, prefix);
            let status = match name {
                "revoked" => "Revoked",
                "expired" => "Expired",
                _ => "Active",
            };
            assert_eq!(browser.cell_text(name, "Status").await, status);
        }
        for (name, part) in [
            ("dated", "Restricted to 2 entries"),
            ("one address", "Restricted to 127.0.0.1"),
            ("revoked", "revoked\nCreated now by demo user"),
        ] {
            let text = browser.cell_text(name, "Name").await;
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(browser.cell_text("revoked", "Name").await.lines().count(), 2);

        let exact = json!({ "dateStyle": "medium", "timeStyle": "medium" });
        for name in ["dated", "expired"] {
            let expires = service.key(name)["expires_at"].clone();
            let moment = as_date(browser, &expires, exact.clone()).await;
            let title = title_in(browser, name, "Expires").await;
            assert!(title.starts_with(&moment), "{title} and {moment}");
            let day = as_date(browser, &expires, json!({ "dateStyle": "medium" })).await;
            let shown = if name == "dated" { day } else { format!("{day} expired") };
            assert_eq!(browser.cell_text(name, "Expires").await, shown);
        }
        assert_eq!(browser.cell_text("revoked", "Expires").await, "Never");

        assert_eq!(browser.cell_text("dated", "Last Used").await, "Never");
        assert_eq!(browser.cell_text("one address", "Last Used").await, "3 hours ago");
        let last = service.key("one address")["last_used_at"].clone();
        let moment = as_date(browser, &last, exact).await;
        assert_eq!(title_in(browser, "one address", "Last Used").await, moment);

        for scheme in ["light", "dark"] {
            let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
            browser.cdp("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
            let [r, g, b] = colour_of_badge(browser, "dated", "Status").await;
            assert!(g > r + 40.0 && g > b + 20.0, "green, {scheme}: {r} {g} {b}");
            for (key, column) in [("revoked", "Status"), ("expired", "Status")] {
                let [r, g, b] = colour_of_badge(browser, key, column).await;
                assert!(r > g + 40.0 && r > b + 40.0, "red, {scheme}: {r} {g} {b}");
            }
        }
    });
}

/// The text of the toast, without its buttons.
async fn toast(browser: &Browser) -> String {
    let script = "return document.querySelector('.toast:not([hidden]) span')?.innerText ?? ''";
    browser.read(script, &[]).await
}

async fn is_marked(browser: &Browser, key: &str) -> bool {
    let script =
        "return [...document.querySelectorAll('tr.fresh .name')].map((it) => it.innerText)";
    browser.list(script, &[]).await.iter().any(|name| name == key)
}

#[test]
#[ignore = "needs chromium"]
fn a_key_is_revoked_and_enabled_from_its_menu_and_each_can_be_undone() {
    let before = |service: &Service| {
        let secret = service.create("CI deploy");
        service.create("other");
        assert_eq!(service.whoami(&secret), 200);
        secret
    };
    visit_service(before, async |browser, service, secret| {
        browser.until("a use", async || service.key("CI deploy")["last_used_at"].is_string()).await;
        browser.reload().await;
        for (item, status, refused) in [("Revoke", "Revoked", 401), ("Re-enable", "Active", 200)] {
            browser.menu("CI deploy", item).await;
            // Which key it is, and whether it is in use.
            browser.sees("Last Used\nnow").await;
            browser.sees(service.key("CI deploy")["key_prefix"].as_str().unwrap()).await;
            browser.close_with(&format!("{item} key")).await;
            browser.sees(&format!("Key “CI deploy” was {}d.", item.to_lowercase())).await;
            browser.until("a mark", async || is_marked(browser, "CI deploy").await).await;
            assert!(!is_marked(browser, "other").await);
            assert_eq!(browser.cell_text("CI deploy", "Status").await, status);
            assert_eq!(service.whoami(&secret), refused);
            browser.press("Undo").await;
            browser
                .becomes("undone", "The change was undone.".to_owned(), async || {
                    toast(browser).await
                })
                .await;
            browser.loaded().await;
            let undone = if status == "Active" { (401, "Revoked") } else { (200, "Active") };
            let shown = browser.cell_text("CI deploy", "Status").await;
            assert_eq!((service.whoami(&secret), &*shown), undone, "{item}");
            service.edit("CI deploy", json!({ "status": status.to_lowercase() }));
            browser.press("Refresh").await;
            browser.loaded().await;
        }
        browser.press("Close this message").await;
        assert_eq!(toast(browser).await, "");
        browser.sees_focus("Create API Key").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn an_undo_that_comes_too_late_changes_nothing() {
    let before = |service: &Service| _ = service.create("CI deploy");
    visit_service(before, async |browser, service, ()| {
        browser.expect_console("status of 412");
        browser.menu("CI deploy", "Revoke").await;
        browser.close_with("Revoke key").await;
        service.edit("CI deploy", json!({ "name": "Renamed" }));
        browser.press("Undo").await;
        browser.sees("This key was changed after this page last read it").await;
        browser.sees_rows(&["Renamed"]).await;
        assert_eq!(service.key("Renamed")["status"], "revoked");
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_near_end_is_marked_and_times_go_on_and_can_be_shown_in_utc() {
    let before = |service: &Service| _ = service.create_with("Ends soon", "1_week", &[]);
    visit_service(before, async |browser, service, ()| {
        let zone = json!({ "timezoneId": "Pacific/Auckland" });
        browser.cdp("Emulation.setTimezoneOverride", zone);
        browser.reload().await;
        let expires = service.key("Ends soon")["expires_at"].clone();
        let day = as_date(browser, &expires, json!({ "dateStyle": "medium" })).await;
        let shown = browser.cell_text("Ends soon", "Expires").await;
        assert_eq!(shown, format!("{day} in 6 days"));
        browser.sees("Times are in Pacific/Auckland.").await;
        browser.press("Show UTC").await;
        browser.sees("Times are in UTC.").await;
        let utc = json!({ "dateStyle": "medium", "timeStyle": "medium", "timeZone": "UTC" });
        let exact = as_date(browser, &expires, utc).await;
        let title = title_in(browser, "Ends soon", "Expires").await;
        assert!(title.starts_with(&exact), "{title} and {exact}");
        browser.press("Show local time").await;
        browser.sees("Times are in Pacific/Auckland.").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn times_go_on_while_the_page_is_open() {
    let before = |service: &Service| _ = service.create("CI deploy");
    visit_service(before, async |browser, _, ()| {
        // The test calls what the page would call from time to time.
        let ticks = "window.ticks = []; window.setInterval = (tick) => window.ticks.push(tick)";
        browser.cdp("Page.addScriptToEvaluateOnNewDocument", json!({ "source": ticks }));
        browser.reload().await;
        assert!(browser.cell_text("CI deploy", "Name").await.ends_with("Created now by demo user"));
        let later = "const now = Date.now; Date.now = () => now() + 7_260_000; \
            window.ticks.forEach((tick) => tick())";
        browser.js(later, &[]).await;
        let text = browser.cell_text("CI deploy", "Name").await;
        assert!(text.ends_with("Created 2 hours ago by demo user"), "{text}");
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_key_that_expires_while_the_page_is_open_is_shown_as_expired() {
    let before = |service: &Service| {
        service.create("Soon");
        let end = "UPDATE keys SET expires_at = (unixepoch() + 5) * 1000000";
        assert_eq!(service.database().execute(end, []).unwrap(), 1);
    };
    visit_service(before, async |browser, _, ()| {
        assert_eq!(browser.cell_text("Soon", "Status").await, "Active");
        let status = async || browser.cell_text("Soon", "Status").await;
        browser.becomes("the status", "Expired".to_owned(), status).await;
    });
}
