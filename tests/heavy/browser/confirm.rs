//! The dialogs that rotate and delete a key.

use fantoccini::key::Key;
use serde_json::json;

use crate::kit::{Browser, Role};
use crate::service::{Service, visit_key, visit_service};

/// Asserts that the button is enabled only while the field holds the name of the key.
async fn assert_name_is_needed(browser: &Browser, button: &str) {
    browser.sees_focus("Type CI deploy to confirm").await;
    for wrong in ["", "CI", "ci deploy", "CI deploy!", "CIdeploy"] {
        browser.fill("Type CI deploy to confirm", wrong).await;
        assert!(!browser.is_enabled(button).await, "{button} after {wrong:?}");
        // Enter does not submit a form whose button is disabled.
        browser.key(Key::Enter).await;
    }
    browser.confirm("CI deploy").await;
    assert!(browser.is_enabled(button).await);
    browser.keys("x").await;
    assert!(!browser.is_enabled(button).await, "disabled again");
    browser.key(Key::Backspace).await;
}

#[test]
#[ignore = "needs chromium"]
fn a_key_is_rotated_only_under_its_name() {
    visit_key(async |browser, service, old| {
        let other = service.create("other");
        browser.menu("CI deploy", "Rotate").await;
        browser.sees("A new secret replaces the old one, which stops working at once.").await;
        assert_eq!(browser.names(Role::COMBO_BOX).await, [""; 0], "the host allows no overlap");
        assert_name_is_needed(browser, "Rotate key").await;
        assert_eq!(service.whoami(&old), 200);
        browser.press("Rotate key").await;
        browser.sees("Save your new key").await;
        let new = browser.copied().await;
        assert_eq!([&old, &new, &other].map(|key| service.whoami(key)), [401, 200, 200]);
        for _ in 0..3 {
            browser.escape().await;
        }
        browser.sees("This key is shown only once.").await;
        browser.done().await;
        browser.sees_focus("Actions for CI deploy").await;
        let prefix = service.key("CI deploy")["key_prefix"].as_str().unwrap().to_owned();
        assert!(new.starts_with(&prefix));
        assert_eq!(browser.cell_text("CI deploy", "Key Prefix").await, format!("{prefix}…"));
        assert_eq!(browser.rows().await, ["other", "CI deploy"]);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_key_is_deleted_only_under_its_name() {
    visit_key(async |browser, service, secret| {
        let other = service.create("other");
        browser.menu("CI deploy", "Delete").await;
        browser.sees("Every request with this key will be refused. This cannot be undone.").await;
        assert_name_is_needed(browser, "Delete key").await;
        assert_eq!(service.whoami(&secret), 200);
        browser.close_with("Delete key").await;
        browser.sees("Key “CI deploy” was deleted.").await;
        browser.sees_rows(&["other"]).await;
        browser.sees_focus("Actions for other").await;
        browser.sees("1 of 20 keys").await;
        assert_eq!((service.whoami(&secret), service.whoami(&other)), (401, 200));
        assert_eq!(service.names(), ["other"]);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_key_that_was_changed_since_the_page_read_it_is_not_rotated_or_deleted() {
    visit_key(async |browser, service, _| {
        browser.expect_console("status of 412");
        for (item, button) in [("Rotate", "Rotate key"), ("Delete", "Delete key")] {
            browser.menu("CI deploy", item).await;
            browser.confirm("CI deploy").await;
            service.rotate("CI deploy");
            let rotated = service.key("CI deploy");
            let shown = format!("{}…", rotated["key_prefix"].as_str().unwrap());
            for _ in 0..2 {
                browser.press(button).await;
                browser.sees("This key was changed after this page last read it").await;
            }
            assert_eq!(service.key("CI deploy"), rotated, "nothing was changed");
            // The table behind the dialog is up to date.
            browser
                .becomes("the prefix", shown, async || {
                    browser.cell_text("CI deploy", "Key Prefix").await
                })
                .await;
            browser.close_with("Cancel").await;
        }
        browser.menu("CI deploy", "Rotate").await;
        browser.confirm("CI deploy").await;
        browser.press("Rotate key").await;
        browser.sees("Save your new key").await;
        assert_eq!(service.key("CI deploy")["revision"], 4);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_renamed_key_is_not_deleted_under_its_old_name() {
    visit_key(async |browser, service, secret| {
        browser.expect_console("status of 412");
        browser.menu("CI deploy", "Delete").await;
        service.edit("CI deploy", json!({ "name": "production" }));
        browser.confirm("CI deploy").await;
        browser.press("Delete key").await;
        browser.sees("This key was changed after this page last read it").await;
        assert_eq!(service.whoami(&secret), 200);
    });
}

#[test]
#[ignore = "needs chromium"]
fn before_the_rotation_of_a_key_that_does_not_work_the_dialog_says_so() {
    let before = |service: &Service| {
        service.days_from_now(-40);
        service.create_with("old", "1_day", &[]);
        service.days_from_now(0);
        service.create("off");
        service.edit("off", json!({ "status": "revoked" }));
        service.create("fine");
    };
    visit_service(before, async |browser, service, ()| {
        for (name, warning) in [
            ("old", "This key has expired. The new secret will not work either."),
            ("off", "This key is revoked. The new secret will not work either"),
            ("fine", ""),
        ] {
            browser.menu(name, "Rotate").await;
            browser.sees(service.key(name)["key_prefix"].as_str().unwrap()).await;
            browser.sees("Last Used\nNever").await;
            assert_eq!(browser.text().await.contains("will not work"), !warning.is_empty());
            browser.sees(warning).await;
            browser.close_with("Cancel").await;
        }
        browser.menu("old", "Edit").await;
        browser.find(Role::RADIO, "Active, but expired: every request is refused").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_name_that_was_copied_with_its_isolates_confirms() {
    let name = "\u{645}\u{641}\u{62a}\u{627}\u{62d}";
    visit_service(
        |service| drop(service.create(name)),
        async |browser, service, ()| {
            let isolated = format!("\u{2068}{name}\u{2069}");
            browser.menu(&isolated, "Delete").await;
            browser.fill(&format!("Type {isolated} to confirm"), &isolated).await;
            browser.close_with("Delete key").await;
            assert!(service.names().is_empty());
        },
    );
}

#[test]
#[ignore = "needs chromium"]
fn enter_that_is_held_since_the_menu_does_not_confirm() {
    visit_key(async |browser, service, _| {
        browser.menu("CI deploy", "Revoke").await;
        browser.sees_focus("Revoke key").await;
        let repeated = "const held = new KeyboardEvent('keydown', \
            { key: 'Enter', repeat: true, bubbles: true, cancelable: true }); \
            return document.activeElement.dispatchEvent(held)";
        assert_eq!(browser.js(repeated, &[]).await, json!(false), "its effect is prevented");
        assert_eq!(service.key("CI deploy")["status"], "active");
        browser.close_with("Cancel").await;
    });
}
