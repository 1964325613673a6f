//! The page's settings for the host, and the paths at which it can be mounted.

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use keygate::{KeyManager, MemoryAuditLog, MemoryStore, SettingsPage};
use serde_json::json;

use crate::accessibility::violations;
use crate::kit::{Role, visit_app};

const GERMAN: &str = r#"{
    "create.open": "Schlüssel erstellen",
    "create.title": "Schlüssel erstellen",
    "create.submit": "Erstellen",
    "field.name": "Bezeichnung",
    "count": "{count} von {max} Schlüsseln",
    "expires.never": "Nie",
    "used.never": "Noch nie",
    "column.expires": "Läuft ab",
    "column.last_used": "Zuletzt benutzt",
    "secret.title": "Schlüssel sichern",
    "secret.done": "Fertig",
    "secret.show": "Zeigen",
    "docs": "Anleitung"
}"#;

fn page() -> SettingsPage {
    let keys = KeyManager::builder(MemoryStore::new()).audit(MemoryAuditLog::new());
    SettingsPage::new(keys.build().unwrap())
}

#[test]
#[ignore = "needs chromium"]
fn the_host_sets_title_accent_and_links() {
    let title = "Keys & </title><script>window.hit = 1</script>";
    let page = || {
        let page = page().title(title).accent("#ffd500").unwrap();
        let page = page.back_link("Acme", "/account").unwrap();
        let page = page.docs_link("https://docs.acme.example/api").unwrap();
        page.example_url("https://api.acme.example/v2/me?a=1&b=2").unwrap().router()
    };
    // The path has several segments, one of them percent-encoded.
    visit_app(page, "/a%20b/keys", async |browser| {
        assert_eq!(browser.client.title().await.unwrap(), title);
        browser.sees(title).await;
        assert_eq!(browser.js("return window.hit", &[]).await, json!(null));
        let back = browser.find(Role::LINK, "← Acme").await;
        assert_eq!(back.attr("href").await.unwrap().as_deref(), Some("/account"));
        let button = browser.find(Role::BUTTON, "Create API Key").await;
        assert_eq!(button.css_value("background-color").await.unwrap(), "rgba(255, 213, 0, 1)");
        assert_eq!(button.css_value("color").await.unwrap(), "rgba(0, 0, 0, 1)");

        browser.create("CI deploy").await;
        browser.sees("curl 'https://api.acme.example/v2/me?a=1&b=2'").await;
        let docs = browser.find(Role::LINK, "How to use your key").await;
        let docs = docs.attr("href").await.unwrap();
        assert_eq!(docs.as_deref(), Some("https://docs.acme.example/api"));
        browser.done().await;
        // The back link leaves the page.
        back.click().await.unwrap();
        browser.expect_console("status of 404");
        assert_eq!(browser.client.current_url().await.unwrap().path(), "/account");
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_translation_is_shown_and_dates_follow_its_language() {
    let page = || {
        let page = page().title("API-Schlüssel").translation("de", GERMAN).unwrap();
        page.docs_link("/anleitung").unwrap().router()
    };
    visit_app(page, "/konto", async |browser| {
        assert_eq!(browser.js("return document.documentElement.lang", &[]).await, "de");
        browser.sees("0 von 20 Schlüsseln").await;
        // Texts without a translation stay English.
        browser.sees("No API keys yet").await;
        for (name, expiration) in [("dauernd", "No Expiry"), ("befristet", "1 Year")] {
            browser.press("Schlüssel erstellen").await;
            browser.fill("Bezeichnung", name).await;
            browser.choose("Expiration", expiration).await;
            browser.press("Erstellen").await;
            browser.sees("Schlüssel sichern").await;
            browser.find(Role::BUTTON, "Zeigen").await;
            browser.find(Role::LINK, "Anleitung").await;
            browser.press("Fertig").await;
            browser.leave_the_key().await;
        }
        assert_eq!(browser.cell_text("dauernd", "Läuft ab").await, "Nie");
        assert_eq!(browser.cell_text("dauernd", "Zuletzt benutzt").await, "Noch nie");
        let date = browser.cell_text("befristet", "Läuft ab").await;
        let parts: Vec<_> = date.split('.').collect();
        assert!(parts.len() == 3 && parts[2].len() == 4, "day.month.year: {date}");
    });
}

#[test]
#[ignore = "needs chromium, and axe-core in KEYGATE_AXE"]
fn a_language_from_right_to_left_turns_the_page_and_has_its_plurals() {
    let arabic = r#"{
        "count": "{count} من {max} مفتاح", "count.few": "{count} مفاتيح من {max}",
        "edit.title": "تعديل {name}", "menu.edit": "تعديل"
    }"#;
    let page = || page().translation("ar", arabic).unwrap().router();
    visit_app(page, "/settings", async |browser| {
        assert_eq!(browser.js("return document.dir", &[]).await, "rtl");
        for name in ["one", "two", "three"] {
            browser.create(name).await;
            browser.done().await;
        }
        // Three is “few”. The values are isolated from the text around them.
        browser.until("the plural", async || browser.text().await.contains("مفاتيح من")).await;
        let left = "const [first, last] = [...document.querySelectorAll('thead th')] \
            .map((it) => it.getBoundingClientRect().left).filter((_, at, all) => at % (all.length - 1) === 0); \
            return first > last";
        assert_eq!(browser.js(left, &[]).await, true, "the first column is on the right");
        assert_eq!(violations(browser), [""; 0], "the table");
        let name = "Actions for \u{2068}one\u{2069}";
        browser.press(name).await;
        browser.click(Role::MENU_ITEM, "تعديل").await;
        browser.sees("تعديل \u{2068}one\u{2069}").await;
        assert_eq!(violations(browser), [""; 0], "a dialog");
        browser.close_with("Cancel").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_users_own_address_is_added_if_the_host_offers_it() {
    let page = || {
        let client_ip = keygate::guard::ClientIp::peer();
        page().client_ip(client_ip).router().layer(from_fn(from_a_peer))
    };
    visit_app(page, "/settings", async |browser| {
        browser.press("Create API Key").await;
        browser.press("Add my address").await;
        browser.find(Role::BUTTON, "Remove 192.0.2.7").await;
        browser.press("Add my address").await;
        browser.sees_error("Address or range", "192.0.2.7: already on the list").await;
    });
}

async fn from_a_peer(mut request: Request, next: Next) -> Response {
    let peer = keygate::guard::PeerAddr("192.0.2.7:4711".parse().unwrap());
    request.extensions_mut().insert(peer);
    next.run(request).await
}
