//! The dialog that edits a key.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use keygate::{KeyManager, MemoryStore, SettingsPage};
use serde_json::json;

use crate::browser_support::{Browser, Role, login, serve, visit, visit_at};

const REVOKED: &str = "Revoked: every request is refused";
const ACTIVE: &str = "Active: requests are allowed";

async fn focus_is_back(browser: &Browser, key: &str) {
    browser.sees_focus(&format!("Actions for {key}")).await;
}

async fn save(browser: &Browser, key: &str) {
    browser.press("Save changes").await;
    browser.no_dialog().await;
    browser.sees(&format!("Key “{key}” was changed.")).await;
    focus_is_back(browser, key).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_name_is_changed_and_nothing_else() {
    visit(async |browser, server| {
        server.create("before");
        server.create("other");
        browser.reload().await;
        let before = server.key("before");
        browser.menu("before", "Edit").await;
        browser.sees("Edit “before”").await;
        assert_eq!(browser.value("Name").await, "before");
        browser.sees_focus("Name").await;
        browser.fill("Name", "  after ").await;
        save(browser, "after").await;
        assert_eq!(browser.rows().await, ["after", "other"]);
        let mut after = server.key("after");
        assert_eq!((&after["revision"], &before["revision"]), (&json!(2), &json!(1)));
        after["name"] = json!("before");
        after["revision"] = json!(1);
        assert_eq!(after, before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_key_is_revoked_and_enabled_again() {
    visit(async |browser, server| {
        let secret = server.create("CI deploy");
        browser.reload().await;
        assert_eq!(server.whoami(&secret), 200);
        for (choice, word, status) in [(REVOKED, "Revoked", 401), (ACTIVE, "Active", 200)] {
            browser.menu("CI deploy", "Edit").await;
            browser.pick(choice).await;
            save(browser, "CI deploy").await;
            assert_eq!(server.whoami(&secret), status);
            assert_eq!(browser.cell_text("CI deploy", "Status").await, word);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_changed_allowlist_takes_effect_at_once() {
    visit(async |browser, server| {
        let secret = server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Edit").await;
        browser.fill("Address or range", "203.0.113.0/24").await;
        browser.press("Add").await;
        save(browser, "CI deploy").await;
        assert_eq!(server.key("CI deploy")["ip_allowlist"], json!(["203.0.113.0/24"]));
        assert_eq!(server.whoami(&secret), 403);
        browser.sees("Restricted to 1 address").await;

        browser.menu("CI deploy", "Edit").await;
        // Without “Add”: text in the field counts as an entry.
        browser.fill("Address or range", "127.0.0.0/8").await;
        save(browser, "CI deploy").await;
        assert_eq!(server.whoami(&secret), 200);
        browser.sees("Restricted to 2 addresses").await;

        browser.menu("CI deploy", "Edit").await;
        browser.press("Remove 203.0.113.0/24").await;
        browser.press("Remove 127.0.0.0/8").await;
        save(browser, "CI deploy").await;
        assert_eq!(server.key("CI deploy")["ip_allowlist"], json!([]));
        browser.sees_no_more("Restricted to").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn an_edit_can_be_cancelled_and_needs_a_change_to_save() {
    visit(async |browser, server| {
        server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Edit").await;
        browser.press("Save changes").await;
        browser.sees("There are no changes to save.").await;
        browser.fill("Name", "").await;
        browser.press("Save changes").await;
        browser.sees_error("Name", "Give the key a name.").await;
        browser.fill("Name", "another").await;
        browser.pick(REVOKED).await;
        browser.press("Cancel").await;
        browser.no_dialog().await;
        focus_is_back(browser, "CI deploy").await;
        let key = server.key("CI deploy");
        assert_eq!((&key["revision"], &key["status"]), (&json!(1), &json!("active")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_name_that_only_the_service_refuses_is_reported_at_the_field() {
    visit(async |browser, server| {
        browser.expect_console("status of 422");
        server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Edit").await;
        browser.fill("Name", "CI\u{200b}deploy").await;
        browser.press("Save changes").await;
        browser.sees_error("Name", "200").await;
        assert_eq!(server.key("CI deploy")["revision"], 1);
        browser.fill("Name", "CI").await;
        save(browser, "CI").await;
    })
    .await;
}

/// A service with stricter address rules than the page.
async fn refusing(request: Request, next: Next) -> Response {
    if request.method() != Method::PATCH {
        return next.run(request).await;
    }
    let problem = json!({
        "type": "about:blank", "title": "Unprocessable Content", "status": 422,
        "code": "validation_failed", "detail": "no",
        "errors": [{ "field": "ip_allowlist[0]", "message": "not one of this company's" }],
    });
    Response::builder()
        .status(StatusCode::UNPROCESSABLE_ENTITY)
        .header(header::CONTENT_TYPE, "application/problem+json")
        .body(Body::from(problem.to_string()))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn an_entry_that_only_the_service_refuses_is_reported_at_the_field() {
    let keys = KeyManager::builder(MemoryStore::new()).build().unwrap();
    let page = SettingsPage::new(keys).router();
    let page = page.layer(middleware::from_fn(refusing)).layer(middleware::from_fn(login));
    let origin = serve(Router::new().nest("/settings", page)).await;
    visit_at(&format!("{origin}/settings"), async |browser| {
        browser.expect_console("status of 422");
        browser.press("Create API key").await;
        browser.fill("Name", "CI deploy").await;
        browser.press("Create key").await;
        browser.press("Done").await;
        browser.no_dialog().await;
        browser.menu("CI deploy", "Edit").await;
        browser.fill("Address or range", "192.0.2.1").await;
        browser.press("Save changes").await;
        browser.sees_error("Address or range", "not one of this company's").await;
        assert!(browser.names(Role::Button).await.contains(&"Remove 192.0.2.1".to_owned()));
    })
    .await;
}
