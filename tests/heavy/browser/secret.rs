//! The second step: the key itself, shown once.

use fantoccini::key::Key;
use serde_json::json;

use crate::kit::{Browser, Role};
use crate::service::{Service, visit};
use crate::support::assert_no_leak;

const WARNING: &str = "This key is shown only once.";
const FIELD: &str = "Your API key";

async fn create(browser: &Browser) {
    browser.create("CI deploy").await;
    browser.sees(WARNING).await;
}

/// Clicks “Show” and returns the key.
async fn show(browser: &Browser) -> String {
    browser.press("Show key").await;
    browser.value(FIELD).await
}

/// Presses Escape several times, which does not close the dialog.
async fn escape(browser: &Browser) {
    for _ in 0..4 {
        browser.escape().await;
    }
    browser.sees(WARNING).await;
}

fn command(service: &Service, secret: &str) -> String {
    let origin = service.origin();
    format!("curl '{origin}/v1/whoami' \\\n  -H \"Authorization: Bearer {secret}\"")
}

async fn go_away_and_back(browser: &Browser, service: &Service) {
    browser.goto(&format!("{}/elsewhere", service.origin())).await;
    browser.client.back().await.unwrap();
    browser.loaded().await;
}

/// Asserts that no part of the key is where a script or a user could find it.
async fn assert_forgotten(browser: &Browser, secret: &str) {
    assert_no_leak("the document", &browser.everything().await, secret);
    let script = "return JSON.stringify([{...localStorage}, {...sessionStorage}, history.state, \
        location.href, document.cookie, name, performance.getEntries().map((it) => it.name)])";
    assert_no_leak("what the browser keeps", &browser.read(script, &[]).await, secret);
    let script = "const done = arguments[0]; \
        Promise.all([indexedDB.databases(), caches.keys()]).then((all) => done(all.flat().length))";
    assert_eq!(browser.client.execute_async(script, vec![]).await.unwrap(), 0);
    let count = "return [localStorage.length, sessionStorage.length]";
    assert_eq!(browser.js(count, &[]).await, json!([0, 0]));
}

/// Tries everything that a user might do to see the key again.
async fn try_to_see_it_again(browser: &Browser, service: &Service, secret: &str) {
    assert_forgotten(browser, secret).await;
    browser.reload().await;
    assert_forgotten(browser, secret).await;
    go_away_and_back(browser, service).await;
    browser.sees("1 of 20 keys").await;
    assert_forgotten(browser, secret).await;
    browser.client.forward().await.unwrap();
    browser.client.back().await.unwrap();
    browser.loaded().await;
    browser.sees("1 of 20 keys").await;
    assert_forgotten(browser, secret).await;
    browser.menu("CI deploy", "Edit").await;
    browser.sees("Edit “CI deploy”").await;
    assert_forgotten(browser, secret).await;
    browser.close_with("Cancel").await;
}

#[test]
#[ignore = "needs chromium"]
fn a_new_key_can_be_copied_while_hidden_and_is_not_lost_by_escape() {
    visit(async |browser, service| {
        create(browser).await;
        let prefix = service.key("CI deploy")["key_prefix"].as_str().unwrap().to_owned();
        let masked = format!("{prefix}{}", "•".repeat(24));
        assert_eq!(browser.value(FIELD).await, masked);
        assert!(browser.command().await.contains(&masked));
        escape(browser).await;

        let secret = browser.copied().await;
        assert!(secret.starts_with(&prefix) && service.whoami(&secret) == 200);
        browser.press("Copy command").await;
        let expected = command(service, &secret);
        browser.becomes("the clipboard", expected, async || browser.clipboard().await).await;
        assert_no_leak("the document", &browser.everything().await, &secret);

        assert_eq!(show(browser).await, secret);
        assert_eq!(browser.command().await, command(service, &secret));
        browser.press("Hide key").await;
        assert_eq!(browser.value(FIELD).await, masked);
        assert_no_leak("the document", &browser.everything().await, &secret);
        assert_eq!(show(browser).await, secret);
        // The field cannot be changed.
        browser.find(Role::TEXT_BOX, FIELD).await.click().await.unwrap();
        browser.keys("x").await;
        assert_eq!(browser.value(FIELD).await, secret);
        escape(browser).await;
        browser.done().await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_selection_of_everything_copies_the_key_and_no_dots() {
    visit(async |browser, service| {
        create(browser).await;
        let secret = browser.copied().await;
        let empty = "const done = arguments[0]; navigator.clipboard.writeText('').then(done)";
        browser.client.execute_async(empty, vec![]).await.unwrap();
        // The title has the focus, as when the dialog opens.
        browser.js("document.querySelector('dialog h2').focus()", &[]).await;
        browser.chord(&[Key::Control.into(), 'a']).await;
        browser.chord(&[Key::Control.into(), 'c']).await;
        let copied = browser
            .until("a copy", async || Some(browser.clipboard().await).filter(|it| !it.is_empty()))
            .await;
        assert!(copied.contains(&secret) && !copied.contains('•'), "{copied}");
        assert_eq!(service.whoami(&secret), 200);
        browser.done().await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn if_the_browser_refuses_to_copy_the_key_is_shown_and_selected() {
    visit(async |browser, service| {
        create(browser).await;
        // Like a page over plain HTTP: a click in Chromium copies whatever the permission.
        browser
            .js(
                "Object.defineProperty(navigator, 'clipboard', { value: undefined }); \
                 document.execCommand = () => false",
                &[],
            )
            .await;
        browser.press("Copy key").await;
        browser
            .sees("The browser does not allow copying. Select the text and copy it yourself.")
            .await;
        let secret = browser.value(FIELD).await;
        assert_eq!(service.whoami(&secret), 200);
        let script = "const it = document.activeElement; return it.value?.slice(it.selectionStart, it.selectionEnd) ?? ''";
        assert_eq!(browser.read(script, &[]).await, secret);
    });
}

#[test]
#[ignore = "needs chromium"]
fn case_40_after_done_a_created_or_rotated_key_is_nowhere_in_the_browser() {
    visit(async |browser, service| {
        create(browser).await;
        let secret = show(browser).await;
        assert_eq!(browser.copied().await, secret);
        browser.done().await;
        browser.sees_focus("Create API Key").await;
        assert_eq!(service.whoami(&secret), 200);
        try_to_see_it_again(browser, service, &secret).await;

        browser.menu("CI deploy", "Rotate").await;
        browser.confirm("CI deploy").await;
        browser.press("Rotate key").await;
        let secret = show(browser).await;
        browser.done().await;
        assert_eq!(service.whoami(&secret), 200);
        try_to_see_it_again(browser, service, &secret).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_reload_before_done_forgets_the_key_as_well() {
    visit(async |browser, service| {
        create(browser).await;
        let secret = show(browser).await;
        browser.reload().await;
        browser.sees("1 of 20 keys").await;
        try_to_see_it_again(browser, service, &secret).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_page_left_with_the_key_visible_returns_with_the_key_hidden() {
    visit(async |browser, service| {
        create(browser).await;
        let secret = show(browser).await;
        go_away_and_back(browser, service).await;
        assert_no_leak("the document", &browser.everything().await, &secret);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_double_click_opens_one_dialog() {
    visit(async |browser, _| {
        let twice =
            "const open = document.querySelector('button.primary'); open.click(); open.click()";
        browser.js(twice, &[]).await;
        browser.fill("Name", "CI deploy").await;
        browser.press("Create key").await;
        // If a second dialog could open, it would have done so by now.
        browser.sees(WARNING).await;
        let count = "return document.querySelectorAll('dialog').length";
        assert_eq!(browser.js(count, &[]).await, 1);
        browser.done().await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_hidden_key_that_is_selected_and_copied_is_the_key_and_not_its_dots() {
    visit(async |browser, service| {
        create(browser).await;
        for (what, selector) in [("the key", "input"), ("the command", "pre")] {
            // Like a user who clicks into the field, selects all and copies.
            let select = "const [selector] = arguments; const it = document.querySelector(`dialog ${selector}`); \
                it.focus(); if (it.select) it.select(); else getSelection().selectAllChildren(it);";
            browser.js(select, &[json!(selector)]).await;
            browser.chord(&[Key::Control.into(), 'c']).await;
            let copied = browser
                .until(what, async || {
                    let text = browser.clipboard().await;
                    (text.starts_with("vsp_sk_") == (selector == "input")).then_some(text)
                })
                .await;
            assert!(!copied.contains('•'), "{what}: {copied}");
            let secret = copied.split("Bearer ").last().unwrap().trim_end_matches('"');
            assert_eq!(service.whoami(secret), 200, "{what}");
            assert_no_leak("the document", &browser.everything().await, secret);
        }
        // It was copied, so nothing is asked.
        browser.close_with("Done").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn done_asks_when_the_key_was_neither_copied_nor_shown() {
    visit(async |browser, service| {
        create(browser).await;
        let toast = "return document.querySelector('.toast').checkVisibility()";
        assert_eq!(browser.js(toast, &[]).await, false, "a message that nobody can see");
        browser.press("Done").await;
        browser.sees("You have not copied or looked at this key.").await;
        browser.sees_focus("Back to the key").await;
        browser.press("Back to the key").await;
        browser.sees_no_more("You have not copied or looked at this key.").await;
        browser.press("Done").await;
        browser.close_with("Close without it").await;
        browser.sees("Key “CI deploy” was created.").await;
        browser.press("Create API Key").await;
        browser.fill("Name", "CI deploy").await;
        browser.sees("There is already a key of this name.").await;
        browser.fill("Name", "second").await;
        browser.sees_no_more("There is already a key of this name.").await;
        browser.add("192.0.2.0/24").await;
        browser.press("Create key").await;
        // It says which key it is and what it can be used for.
        browser.sees("second").await;
        browser.sees("IP allowlist\n192.0.2.0/24").await;
        show(browser).await;
        browser.close_with("Done").await;
        assert_eq!(service.names(), ["CI deploy", "second"]);
    });
}

#[test]
#[ignore = "needs chromium"]
fn without_the_clipboard_of_a_secure_page_copy_works_all_the_same() {
    visit(async |browser, service| {
        create(browser).await;
        browser
            .js("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })", &[])
            .await;
        for button in ["Copy key", "Copy command"] {
            browser.press(button).await;
            browser.sees("Copied").await;
            browser.sees_focus(button).await;
        }
        assert!(browser.value(FIELD).await.contains('•'), "the key stays hidden");
        browser.js("delete navigator.clipboard", &[]).await;
        let copied = browser.clipboard().await;
        let secret = copied.split("Bearer ").last().unwrap().trim_end_matches('"');
        assert_eq!(service.whoami(secret), 200, "{copied}");
        browser.close_with("Done").await;
    });
}
