//! The page works with the keyboard alone, from the creation of the first key to the deletion
//! of the last, and the focus is always where a user expects it.

use fantoccini::key::Key;
use serde_json::json;

use crate::kit::{Browser, Role};
use crate::service::{Service, visit, visit_service};

const TAB: char = '\u{e004}';
const ENTER: char = '\u{e007}';
const ESCAPE: char = '\u{e00c}';
const DOWN: char = '\u{e015}';
const UP: char = '\u{e013}';

/// Asserts that the focused element shows its focus and is within the open dialog, if there is
/// one.
async fn assert_focus_is_seen(browser: &Browser) {
    let script = "const it = document.activeElement; const dialog = document.querySelector('dialog[open]'); \
        const style = getComputedStyle(it); const box = it.getBoundingClientRect(); \
        return { outside: Boolean(dialog) && !dialog.contains(it) && it !== document.body, \
            outline: it.matches(':focus-visible') && style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2, \
            inView: box.top >= 0 && box.bottom <= innerHeight && box.width > 0 }";
    let seen = browser.js(script, &[]).await;
    let expected = json!({ "outside": false, "outline": true, "inView": true });
    assert_eq!(seen, expected, "focus on {:?}", browser.focused().await);
}

/// Presses a key that moves the focus to the element with that name.
async fn press(browser: &Browser, key: char, focus: &str) {
    browser.key(key).await;
    browser.sees_focus(focus).await;
    assert_focus_is_seen(browser).await;
}

/// Presses Tab until the element has the focus. Every stop on the way shows its focus.
async fn tab_to(browser: &Browser, name: &str) {
    walk(browser, &[TAB], name).await;
}

async fn back_tab_to(browser: &Browser, name: &str) {
    walk(browser, &[Key::Shift.into(), TAB], name).await;
}

async fn walk(browser: &Browser, keys: &[char], name: &str) {
    let mut stops = Vec::new();
    while stops.len() < 20 {
        browser.chord(keys).await;
        let focused = browser.focused().await;
        // After the last control the browser's own toolbar has the focus.
        if focused != "nothing" {
            assert_focus_is_seen(browser).await;
        }
        if focused == name {
            return;
        }
        stops.push(focused);
    }
    panic!("{name:?} is not among {stops:?}");
}

#[test]
#[ignore = "needs chromium"]
fn a_key_lives_from_creation_to_deletion_by_keyboard_alone() {
    visit(async |browser, service| {
        tab_to(browser, "Create API Key").await;
        press(browser, ENTER, "Name").await;
        browser.keys("CI deploy").await;
        tab_to(browser, "Expiration").await;
        browser.keys("1 y").await;
        tab_to(browser, "Address or range").await;
        browser.keys("203.0.113.7").await;
        browser.key(ENTER).await;
        browser.sees("203.0.113.7").await;
        browser.sees_focus("Address or range").await;
        browser.keys("192.0.2.1").await;
        tab_to(browser, "Add").await;
        press(browser, ' ', "Address or range").await;
        tab_to(browser, "Remove 203.0.113.7").await;
        press(browser, ENTER, "Remove 192.0.2.1").await;
        back_tab_to(browser, "Address or range").await;
        tab_to(browser, "Create key").await;
        browser.key(ENTER).await;
        browser.sees_focus("Save your key").await;
        let key = browser.read("return document.querySelector('dialog input').value", &[]).await;
        assert!(key.contains('•'), "shown at once: {key}");
        // A key that is lost here is lost forever: two Escapes do not close the dialog.
        browser.key(ESCAPE).await;
        browser.key(ESCAPE).await;
        browser.sees_focus("Save your key").await;
        tab_to(browser, "Copy key").await;
        browser.key(' ').await;
        browser.sees("Copied").await;
        browser.sees_focus("Copy key").await;
        let secret = browser.clipboard().await;
        assert!(secret.starts_with("vsp_sk_"), "{secret}");
        tab_to(browser, "Done").await;
        browser.key(ENTER).await;
        browser.no_dialog().await;
        browser.sees_focus("Create API Key").await;
        assert_eq!(service.names(), ["CI deploy"]);
        assert_eq!(browser.cell_text("CI deploy", "Last Used").await, "Never");

        // The menu, with the arrow keys.
        tab_to(browser, "Actions for CI deploy").await;
        press(browser, DOWN, "Edit").await;
        for (key, focus) in [
            (DOWN, "Rotate"),
            (DOWN, "View Audit Log"),
            (DOWN, "Revoke"),
            (DOWN, "Delete"),
            (DOWN, "Edit"),
            (UP, "Delete"),
            (Key::Home.into(), "Edit"),
            (Key::End.into(), "Delete"),
            (ESCAPE, "Actions for CI deploy"),
            (UP, "Delete"),
            (ESCAPE, "Actions for CI deploy"),
            (ENTER, "Edit"),
        ] {
            press(browser, key, focus).await;
        }

        press(browser, ENTER, "Name").await;
        browser.key(Key::End).await;
        browser.keys(" 2").await;
        tab_to(browser, "Active: requests are allowed").await;
        press(browser, DOWN, "Revoked: every request is refused").await;
        back_tab_to(browser, "Name").await;
        browser.key(ENTER).await;
        browser.no_dialog().await;
        browser.sees_focus("Actions for CI deploy 2").await;
        assert_focus_is_seen(browser).await;
        assert_eq!(browser.cell_text("CI deploy 2", "Status").await, "Revoked");

        press(browser, ENTER, "Edit").await;
        browser.key(DOWN).await;
        press(browser, ' ', "Type CI deploy 2 to confirm").await;
        browser.keys("CI deploy 2").await;
        tab_to(browser, "Rotate key").await;
        browser.key(ENTER).await;
        browser.sees_focus("Save your new key").await;
        tab_to(browser, "Copy key").await;
        browser.key(' ').await;
        tab_to(browser, "Done").await;
        browser.key(' ').await;
        browser.no_dialog().await;
        browser.sees_focus("Actions for CI deploy 2").await;

        press(browser, DOWN, "Edit").await;
        browser.key(DOWN).await;
        browser.key(DOWN).await;
        browser.key(ENTER).await;
        browser.sees("No request has used this key yet.").await;
        tab_to(browser, "Close").await;
        back_tab_to(browser, "Refresh").await;
        press(browser, ENTER, "Refresh").await;
        browser.key(ESCAPE).await;
        browser.no_dialog().await;
        browser.sees_focus("Actions for CI deploy 2").await;

        press(browser, UP, "Delete").await;
        press(browser, ENTER, "Type CI deploy 2 to confirm").await;
        browser.key(ENTER).await;
        assert_eq!(service.names().len(), 1, "deleted without the name");
        browser.keys("CI deploy 2").await;
        browser.key(ENTER).await;
        browser.no_dialog().await;
        browser.sees("No API keys yet").await;
        browser.sees_focus("Create API Key").await;
        assert_focus_is_seen(browser).await;
        assert_eq!(service.names().len(), 0);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_dialog_keeps_the_focus_and_escape_returns_it() {
    let before = |service: &Service| {
        service.create("First");
        service.create_with("Second", "1_year", &["192.0.2.1"]);
    };
    visit_service(before, async |browser, _, ()| {
        browser.press("Actions for Second").await;
        browser.sees_focus("Edit").await;
        browser.key(ESCAPE).await;
        for (downs, last) in
            [(0, "Save changes"), (1, "Cancel"), (2, "Close"), (3, "Cancel"), (4, "Cancel")]
        {
            press(browser, ENTER, "Edit").await;
            for _ in 0..downs {
                browser.key(DOWN).await;
            }
            browser.key(ENTER).await;
            browser.find(Role::BUTTON, last).await;
            // Twice around: no element of the page below gets the focus.
            for keys in [&[TAB][..], &[Key::Shift.into(), TAB]] {
                let mut seen = Vec::new();
                for _ in 0..24 {
                    browser.chord(keys).await;
                    let focused = browser.focused().await;
                    if focused != "nothing" {
                        assert_focus_is_seen(browser).await;
                    }
                    seen.push(focused);
                }
                assert!(seen.iter().any(|name| name == last), "{last:?} is not among {seen:?}");
                assert!(seen.iter().all(|name| !name.starts_with("Actions")), "{seen:?}");
            }
            browser.key(ESCAPE).await;
            browser.no_dialog().await;
            browser.sees_focus("Actions for Second").await;
            assert_focus_is_seen(browser).await;
        }
        // Tab leaves a menu and closes it.
        press(browser, DOWN, "Edit").await;
        browser.key(TAB).await;
        browser.sees_no_more("View Audit Log").await;
        assert_ne!(browser.focused().await, "Rotate");
    });
}
