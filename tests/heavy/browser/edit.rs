//! The dialog that edits a key.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use keygate::{KeyManager, MemoryStore, SettingsPage};
use serde_json::json;

use crate::kit::{Browser, Role, visit_app};
use crate::service::visit_key;

const REVOKED: &str = "Revoked: every request is refused";
const ACTIVE: &str = "Active: requests are allowed";

async fn save(browser: &Browser, key: &str) {
    browser.close_with("Save changes").await;
    browser.sees(&format!("Key “{key}” was changed.")).await;
    browser.sees_focus(&format!("Actions for {key}")).await;
}

#[test]
#[ignore = "needs chromium"]
fn a_name_is_changed_and_nothing_else() {
    visit_key(async |browser, service, _| {
        let before = service.key("CI deploy");
        service.create("other");
        browser.menu("CI deploy", "Edit").await;
        browser.sees("Edit “CI deploy”").await;
        assert_eq!(browser.value("Name").await, "CI deploy");
        browser.sees_focus("Name").await;
        browser.fill("Name", "  after ").await;
        save(browser, "after").await;
        assert_eq!(browser.rows().await, ["other", "after"]);
        let mut after = service.key("after");
        assert_eq!((&before["revision"], after["revision"].take()), (&json!(1), json!(2)));
        after["name"] = json!("CI deploy");
        after["revision"] = json!(1);
        assert_eq!(after, before);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_key_is_revoked_and_enabled_again() {
    visit_key(async |browser, service, secret| {
        for (choice, word, status) in [(REVOKED, "Revoked", 401), (ACTIVE, "Active", 200)] {
            browser.menu("CI deploy", "Edit").await;
            browser.pick(choice).await;
            save(browser, "CI deploy").await;
            assert_eq!(service.whoami(&secret), status);
            assert_eq!(browser.cell_text("CI deploy", "Status").await, word);
        }
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_changed_allowlist_takes_effect_at_once() {
    visit_key(async |browser, service, secret| {
        browser.menu("CI deploy", "Edit").await;
        browser.add("203.0.113.0/24").await;
        save(browser, "CI deploy").await;
        assert_eq!(service.key("CI deploy")["ip_allowlist"], json!(["203.0.113.0/24"]));
        assert_eq!(service.whoami(&secret), 403);
        browser.sees("Restricted to 203.0.113.0/24").await;

        browser.menu("CI deploy", "Edit").await;
        // Without “Add”: text in the field counts as an entry.
        browser.fill("Address or range", "192.0.2.0/24").await;
        save(browser, "CI deploy").await;
        assert_eq!(service.whoami(&secret), 200);
        browser.sees("Restricted to 2 entries").await;

        browser.menu("CI deploy", "Edit").await;
        browser.press("Remove 203.0.113.0/24").await;
        browser.press("Remove 192.0.2.0/24").await;
        save(browser, "CI deploy").await;
        assert_eq!(service.key("CI deploy")["ip_allowlist"], json!([]));
        browser.sees_no_more("Restricted to").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn an_edit_needs_a_change_and_a_valid_name() {
    visit_key(async |browser, service, _| {
        browser.expect_console("status of 422");
        browser.menu("CI deploy", "Edit").await;
        browser.press("Save changes").await;
        browser.sees("There are no changes to save.").await;
        // Only the service refuses the second name.
        for (name, error) in [("", "Give the key a name."), ("CI\u{200b}deploy", "200")] {
            browser.fill("Name", name).await;
            browser.press("Save changes").await;
            browser.sees_error("Name", error).await;
        }
        assert_eq!(service.key("CI deploy")["revision"], 1);
        browser.fill("Name", "CI").await;
        save(browser, "CI").await;
    });
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

#[test]
#[ignore = "needs chromium"]
fn an_entry_that_only_the_service_refuses_is_reported_at_the_field() {
    let page = || {
        let keys = KeyManager::builder(MemoryStore::new()).build().unwrap();
        SettingsPage::new(keys).router().layer(middleware::from_fn(refusing))
    };
    visit_app(page, "/", async |browser| {
        browser.expect_console("status of 422");
        browser.create("CI deploy").await;
        browser.done().await;
        browser.menu("CI deploy", "Edit").await;
        browser.fill("Address or range", "192.0.2.1").await;
        browser.press("Save changes").await;
        browser.sees_error("Address or range", "not one of this company's").await;
        assert!(browser.names(Role::BUTTON).await.contains(&"Remove 192.0.2.1".to_owned()));
    });
}
