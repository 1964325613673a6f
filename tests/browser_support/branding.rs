//! The page's settings for the host, and the paths at which it can be mounted.

use axum::Router;
use axum::middleware;
use keygate::{KeyManager, MemoryAuditLog, MemoryStore, SettingsPage};
use serde_json::json;

use crate::browser_support::{Browser, Role, login, serve, visit_at};

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

async fn create(browser: &Browser, name: &str) {
    browser.press("Create API key").await;
    browser.fill("Name", name).await;
    browser.press("Create key").await;
    browser.press("Done").await;
    browser.no_dialog().await;
    assert_eq!(browser.rows().await, [name]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_host_sets_title_accent_and_links() {
    let title = "Keys & </title><script>window.hit = 1</script>";
    let page = page().title(title).accent("#ffd500").unwrap();
    let page =
        page.back_link("Acme", "/account").unwrap().docs_link("https://docs.acme.example/api");
    let page = page.unwrap().example_url("https://api.acme.example/v2/me?a=1&b=2").unwrap();
    let router = page.router().layer(middleware::from_fn(login));
    let origin = serve(Router::new().nest("/account/keys", router)).await;
    visit_at(&format!("{origin}/account/keys"), async |browser| {
        assert_eq!(browser.client.title().await.unwrap(), title);
        browser.sees(title).await;
        assert_eq!(browser.js("return window.hit", &[]).await, json!(null));
        let back = browser.find(Role::Link, "← Acme").await;
        assert_eq!(back.attr("href").await.unwrap().as_deref(), Some("/account"));
        let button = browser.find(Role::Button, "Create API key").await;
        assert_eq!(button.css_value("background-color").await.unwrap(), "rgba(255, 213, 0, 1)");
        assert_eq!(button.css_value("color").await.unwrap(), "rgba(0, 0, 0, 1)");

        browser.press("Create API key").await;
        browser.fill("Name", "CI deploy").await;
        browser.press("Create key").await;
        browser.sees("curl 'https://api.acme.example/v2/me?a=1&b=2'").await;
        let docs = browser.find(Role::Link, "How to use your key").await;
        assert_eq!(
            docs.attr("href").await.unwrap().as_deref(),
            Some("https://docs.acme.example/api")
        );
        browser.press("Done").await;
        browser.no_dialog().await;
        // The back link leaves the page.
        back.click().await.unwrap();
        browser.expect_console("status of 404");
        let path = browser.client.current_url().await.unwrap().path().to_owned();
        assert_eq!(path, "/account");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_translation_is_shown_and_dates_follow_its_language() {
    let page = page().title("API-Schlüssel").translation("de", GERMAN).unwrap();
    let page = page.docs_link("/anleitung").unwrap();
    let router = page.router().layer(middleware::from_fn(login));
    let origin = serve(Router::new().nest("/konto", router)).await;
    visit_at(&format!("{origin}/konto"), async |browser| {
        assert_eq!(browser.js("return document.documentElement.lang", &[]).await, "de");
        browser.sees("0 von 20 Schlüsseln").await;
        // Texts without a translation stay English.
        browser.sees("No API keys yet").await;
        for (name, expiration) in [("dauernd", "Never"), ("befristet", "1 year")] {
            browser.press("Schlüssel erstellen").await;
            browser.fill("Bezeichnung", name).await;
            browser.choose("Expiration", expiration).await;
            browser.press("Erstellen").await;
            browser.sees("Schlüssel sichern").await;
            browser.find(Role::Button, "Zeigen").await;
            browser.find(Role::Link, "Anleitung").await;
            browser.press("Fertig").await;
            browser.no_dialog().await;
        }
        assert_eq!(browser.cell_text("dauernd", "Läuft ab").await, "Nie");
        assert_eq!(browser.cell_text("dauernd", "Zuletzt benutzt").await, "Noch nie");
        let date = browser.cell_text("befristet", "Läuft ab").await;
        let parts: Vec<_> = date.split('.').collect();
        assert!(parts.len() == 3 && parts[2].len() == 4, "day.month.year: {date}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_page_works_at_the_root_and_below_any_path() {
    let root = page().router().layer(middleware::from_fn(login));
    let origin = serve(root).await;
    visit_at(&origin, async |browser| create(browser, "at the root").await).await;

    // A path of several segments, one of them percent-encoded.
    let deep = page().router().layer(middleware::from_fn(login));
    let origin = serve(Router::new().nest("/a%20b/keys", deep)).await;
    visit_at(&format!("{origin}/a%20b/keys"), async |browser| {
        create(browser, "deep down").await;
        browser.menu("deep down", "View audit log").await;
        browser.sees("No request has used this key yet.").await;
    })
    .await;
}
