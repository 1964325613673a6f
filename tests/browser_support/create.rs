//! The dialog that creates a key, up to the creation.

use fantoccini::key::Key;
use keygate::{Expiration, Timestamp};

use crate::browser_support::{Browser, Role, Server, visit};

const EXPIRATIONS: [(&str, &str); 6] = [
    ("1 day", "1_day"),
    ("1 week", "1_week"),
    ("1 month", "1_month"),
    ("3 months", "3_months"),
    ("1 year", "1_year"),
    ("Never", "never"),
];

async fn create(browser: &Browser, name: &str) {
    browser.press("Create API key").await;
    browser.fill("Name", name).await;
    browser.press("Create key").await;
}

async fn finish(browser: &Browser) {
    browser.sees("Save your key").await;
    browser.press("Done").await;
    browser.no_dialog().await;
}

/// The expiry of a key with that expiration, created when this key was.
fn end_of(server: &Server, name: &str, expiration: &str) -> Option<Timestamp> {
    let created = server.key(name)["created_at"].as_str().and_then(|at| at.parse().ok());
    expiration.parse::<Expiration>().unwrap().after(created.expect("a time"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_key_is_created_with_each_of_the_six_expirations() {
    visit(async |browser, server| {
        for (label, value) in EXPIRATIONS {
            browser.press("Create API key").await;
            let list = browser.find(Role::ComboBox, "Expiration").await;
            assert_eq!(list.text().await.unwrap().lines().count(), 6);
            assert_eq!(list.prop("value").await.unwrap().as_deref(), Some("3_months"));
            browser.fill("Name", label).await;
            browser.choose("Expiration", label).await;
            let never = browser.text().await.contains("A key that never expires works until");
            assert_eq!(never, value == "never", "the hint, at {label}");
            browser.press("Create key").await;
            finish(browser).await;
            let key = server.key(label);
            let expires =
                key["expires_at"].as_str().map(|at| at.parse::<Timestamp>().expect("a time"));
            assert_eq!(expires, end_of(server, label, value), "{label}");
            assert_eq!(key["ip_allowlist"], serde_json::json!([]));
            let shown = browser.cell_text(label, "Expires").await;
            assert_eq!(shown == "Never", value == "never", "{label}: {shown}");
        }
        assert_eq!(browser.rows().await, EXPIRATIONS.map(|(label, _)| label));
        browser.sees("6 of 20 keys").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_name_is_required_and_has_at_most_100_characters() {
    visit(async |browser, server| {
        browser.press("Create API key").await;
        browser.sees_focus("Name").await;
        for empty in ["", "   "] {
            browser.fill("Name", empty).await;
            browser.press("Create key").await;
            browser.sees_error("Name", "Give the key a name.").await;
            browser.sees_focus("Name").await;
        }
        browser.fill("Name", &"é".repeat(101)).await;
        // The error is shown while typing, and again after an attempt to submit.
        browser.sees_error("Name", "A name has at most 100 characters.").await;
        browser.press("Create key").await;
        browser.sees_error("Name", "A name has at most 100 characters.").await;
        browser.key(Key::Backspace.into()).await;
        assert_eq!(browser.error_at("Name").await, "", "the error disappears when it is fixed");
        assert_eq!(server.keys().len(), 0);
        browser.press("Create key").await;
        finish(browser).await;
        assert_eq!(server.keys()[0]["name"], "é".repeat(100));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn errors_of_the_service_are_shown_at_the_field() {
    visit(async |browser, server| {
        browser.expect_console("status of 422");
        create(browser, "CI\u{202e}yolped").await;
        browser.sees_error("Name", "202").await;
        browser.sees("Create key").await;
        browser.fill("Name", "CI deploy").await;
        browser.press("Create key").await;
        finish(browser).await;
        assert_eq!(server.keys().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_21st_key_is_refused_and_the_page_explains_it_beforehand() {
    visit(async |browser, server| {
        browser.expect_console("status of 409");
        for n in 1..=20 {
            server.create(&format!("key {n}"));
        }
        browser.reload().await;
        browser.sees("20 of 20 keys").await;
        browser.press("Create API key").await;
        browser.sees("You have reached the limit of 20 keys. Delete one to create another.").await;
        browser.fill("Name", "one more").await;
        browser.press("Create key").await;
        browser.sees("Your organisation has reached its limit of keys.").await;
        assert_eq!(browser.value("Name").await, "one more");
        assert_eq!(server.keys().len(), 20);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_limit_may_be_reached_before_the_form_is_submitted() {
    visit(async |browser, server| {
        browser.expect_console("status of 409");
        for n in 1..=19 {
            server.create(&format!("key {n}"));
        }
        browser.reload().await;
        browser.press("Create API key").await;
        browser.fill("Name", "mine").await;
        assert!(!browser.text().await.contains("reached the limit"));
        server.create("somebody else's");
        browser.press("Create key").await;
        browser.sees("Your organisation has reached its limit of keys.").await;
        assert_eq!(browser.value("Name").await, "mine", "the typed text is kept");
        assert_eq!(server.keys().len(), 20);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn cancel_and_escape_create_nothing_and_return_the_focus() {
    visit(async |browser, server| {
        for cancel in [true, false] {
            browser.press("Create API key").await;
            browser.fill("Name", "not this one").await;
            if cancel {
                browser.press("Cancel").await;
            } else {
                browser.key(Key::Escape.into()).await;
            }
            browser.no_dialog().await;
            browser.sees_focus("Create API key").await;
            browser.press("Create API key").await;
            assert_eq!(browser.value("Name").await, "", "a new form is empty");
            browser.press("Cancel").await;
            browser.no_dialog().await;
        }
        assert_eq!(server.keys().len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_form_submitted_twice_creates_one_key() {
    visit(async |browser, server| {
        browser.press("Create API key").await;
        browser.fill("Name", "only one").await;
        let enter = char::from(Key::Enter).to_string();
        browser.keys(&enter.repeat(3)).await;
        browser.sees("Save your key").await;
        assert_eq!(server.keys().len(), 1);
        browser.press("Done").await;
        browser.no_dialog().await;
        assert_eq!(browser.rows().await, ["only one"]);
    })
    .await;
}
