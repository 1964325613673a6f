//! The dialogs that rotate and delete a key.

use fantoccini::key::Key;

use crate::browser_support::{Browser, Server, visit};

/// Names that are not `CI deploy`.
const WRONG: [&str; 5] = ["", "CI", "ci deploy", "CI deploy!", "CIdeploy"];

async fn assert_closed_to(browser: &Browser, button: &str) {
    browser.sees_focus("Type CI deploy to confirm").await;
    for wrong in WRONG {
        browser.fill("Type CI deploy to confirm", wrong).await;
        assert!(!browser.is_enabled(button).await, "{button} after {wrong:?}");
        // Enter does not submit a form whose button is disabled.
        browser.key(Key::Enter.into()).await;
    }
    browser.fill("Type CI deploy to confirm", "CI deploy").await;
    assert!(browser.is_enabled(button).await);
    browser.keys("x").await;
    assert!(!browser.is_enabled(button).await, "disabled again");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_key_is_rotated_only_under_its_name() {
    visit(async |browser, server| {
        let old = server.create("CI deploy");
        let other = server.create("other");
        browser.reload().await;
        browser.menu("CI deploy", "Rotate").await;
        browser.sees("A new secret replaces the old one, which stops working at once.").await;
        assert_closed_to(browser, "Rotate key").await;
        assert_eq!(server.whoami(&old), 200);
        browser.key(Key::Backspace.into()).await;
        browser.press("Rotate key").await;
        browser.sees("Save your new key").await;
        browser.press("Copy key").await;
        let prefix = server.key("CI deploy")["key_prefix"].as_str().unwrap().to_owned();
        let new = browser
            .until("the new key", async || {
                Some(browser.clipboard().await).filter(|text| text.starts_with(&prefix))
            })
            .await;
        assert_eq!((server.whoami(&old), server.whoami(&new)), (401, 200));
        assert_eq!(server.whoami(&other), 200);
        for _ in 0..3 {
            browser.key(Key::Escape.into()).await;
        }
        browser.sees("This key is shown only once.").await;
        browser.press("Done").await;
        browser.no_dialog().await;
        browser.sees_focus("Actions for CI deploy").await;
        assert_eq!(browser.cell_text("CI deploy", "Key").await, format!("{prefix}…"));
        assert_eq!(browser.rows().await, ["CI deploy", "other"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_key_is_deleted_only_under_its_name() {
    visit(async |browser, server| {
        let secret = server.create("CI deploy");
        let other = server.create("other");
        browser.reload().await;
        browser.menu("CI deploy", "Delete").await;
        browser.sees("Every request with this key will be refused. This cannot be undone.").await;
        assert_closed_to(browser, "Delete key").await;
        assert_eq!(server.whoami(&secret), 200);
        browser.key(Key::Backspace.into()).await;
        browser.press("Delete key").await;
        browser.no_dialog().await;
        browser.sees("Key “CI deploy” was deleted.").await;
        browser.becomes("the rows", vec!["other".to_owned()], async || browser.rows().await).await;
        browser.sees_focus("Create API key").await;
        browser.sees("1 of 20 keys").await;
        assert_eq!((server.whoami(&secret), server.whoami(&other)), (401, 200));
        assert_eq!(server.keys().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn cancel_and_escape_leave_the_rotate_and_delete_dialogs() {
    visit(async |browser, server| {
        let secret = server.create("CI deploy");
        browser.reload().await;
        for item in ["Rotate", "Delete"] {
            browser.menu("CI deploy", item).await;
            browser.fill("Type CI deploy to confirm", "CI deploy").await;
            browser.press("Cancel").await;
            browser.no_dialog().await;
            browser.sees_focus("Actions for CI deploy").await;
            browser.menu("CI deploy", item).await;
            browser.fill("Type CI deploy to confirm", "CI deploy").await;
            browser.key(Key::Escape.into()).await;
            browser.no_dialog().await;
            browser.sees_focus("Actions for CI deploy").await;
        }
        assert_eq!(server.whoami(&secret), 200);
        assert_eq!(server.key("CI deploy")["revision"], 1);
    })
    .await;
}

/// Changes the key over the API, as another user does.
fn ask(server: &Server, method: &str, path: &str, body: &str) {
    let id = server.key("CI deploy")["id"].as_str().unwrap().to_owned();
    let path = format!("/settings/api/keys/{id}{path}");
    assert_eq!(server.client().ask_json(method, &path, &[], body).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_key_that_was_changed_since_the_page_read_it_is_not_rotated_or_deleted() {
    visit(async |browser, server| {
        browser.expect_console("status of 412");
        server.create("CI deploy");
        browser.reload().await;
        for (item, button) in [("Rotate", "Rotate key"), ("Delete", "Delete key")] {
            browser.menu("CI deploy", item).await;
            browser.fill("Type CI deploy to confirm", "CI deploy").await;
            ask(server, "POST", "/rotate", r#"{"confirm_name":"CI deploy"}"#);
            let rotated = server.key("CI deploy");
            let shown = format!("{}…", rotated["key_prefix"].as_str().unwrap());
            for _ in 0..2 {
                browser.press(button).await;
                browser.sees("This key was changed after this page last read it").await;
            }
            assert_eq!(server.key("CI deploy"), rotated, "nothing was changed");
            // The table behind the dialog is up to date.
            browser
                .becomes("the prefix", shown, async || browser.cell_text("CI deploy", "Key").await)
                .await;
            browser.press("Cancel").await;
            browser.no_dialog().await;
        }
        browser.menu("CI deploy", "Rotate").await;
        browser.fill("Type CI deploy to confirm", "CI deploy").await;
        browser.press("Rotate key").await;
        browser.sees("Save your new key").await;
        assert_eq!(server.key("CI deploy")["revision"], 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_renamed_key_is_not_deleted_under_its_old_name() {
    visit(async |browser, server| {
        browser.expect_console("status of 412");
        let secret = server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Delete").await;
        ask(server, "PATCH", "", r#"{"name":"production"}"#);
        browser.fill("Type CI deploy to confirm", "CI deploy").await;
        browser.press("Delete key").await;
        browser.sees("This key was changed after this page last read it").await;
        assert_eq!(server.whoami(&secret), 200);
    })
    .await;
}
