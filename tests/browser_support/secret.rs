//! The second step: the key itself, shown once.

use fantoccini::key::Key;

use crate::browser_support::{Browser, Role, Server, visit};
use crate::support::assert_no_leak;

const WARNING: &str = "This key is shown only once.";
const FIELD: &str = "Your API key";

async fn create(browser: &Browser) {
    browser.press("Create API key").await;
    create_in_open_dialog(browser).await;
}

async fn create_in_open_dialog(browser: &Browser) {
    browser.fill("Name", "CI deploy").await;
    browser.press("Create key").await;
    browser.sees("Save your key").await;
}

async fn copied(browser: &Browser) -> String {
    browser.press("Copy key").await;
    let script =
        "return [...document.querySelectorAll('button')].some((it) => it.innerText === 'Copied')";
    browser.until("“Copied”", async || (browser.js(script, &[]).await == true).then_some(())).await;
    browser.clipboard().await
}

/// Asserts that no part of the key is where a script or a user could find it.
async fn assert_forgotten(browser: &Browser, secret: &str) {
    assert_no_leak("the document", &browser.everything().await, secret);
    let script = "return JSON.stringify([{...localStorage}, {...sessionStorage}, history.state, \
        location.href, document.cookie, name, performance.getEntries().map((it) => it.name)])";
    let kept = browser.js(script, &[]).await;
    assert_no_leak("what the browser keeps", kept.as_str().unwrap(), secret);
    let script = "const done = arguments[0]; \
        Promise.all([indexedDB.databases(), caches.keys()]).then((all) => done(all.flat().length))";
    assert_eq!(browser.client.execute_async(script, vec![]).await.unwrap(), 0);
    let count = "return [localStorage.length, sessionStorage.length]";
    assert_eq!(browser.js(count, &[]).await, serde_json::json!([0, 0]));
}

/// Tries everything that a user might do to see the key again.
async fn try_to_see_it_again(browser: &Browser, server: &Server, secret: &str) {
    assert_forgotten(browser, secret).await;
    browser.reload().await;
    assert_forgotten(browser, secret).await;
    browser.goto(&format!("{}/healthz", server.origin())).await;
    browser.client.back().await.unwrap();
    browser.loaded().await;
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
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_new_key_is_hidden_until_it_is_shown_and_can_be_hidden_again() {
    visit(async |browser, server| {
        create(browser).await;
        browser.sees(WARNING).await;
        let prefix = server.key("CI deploy")["key_prefix"].as_str().unwrap().to_owned();
        let masked = format!("{prefix}{}", "•".repeat(24));
        assert_eq!(browser.value(FIELD).await, masked);
        assert!(browser.command().await.contains(&masked));

        browser.press("Show").await;
        let secret = browser.value(FIELD).await;
        assert!(secret.starts_with(&prefix) && server.whoami(&secret) == 200);
        let command = browser.command().await;
        assert_eq!(
            command,
            format!(
                "curl '{}/v1/whoami' \\\n  -H \"Authorization: Bearer {secret}\"",
                server.origin()
            )
        );
        browser.press("Hide").await;
        assert_eq!(browser.value(FIELD).await, masked);
        assert_no_leak("the document", &browser.everything().await, &secret);
        browser.press("Show").await;
        assert_eq!(browser.value(FIELD).await, secret);
        // The hidden field can still be read.
        browser.find(Role::TextBox, FIELD).await.click().await.unwrap();
        browser.keys("x").await;
        assert_eq!(browser.value(FIELD).await, secret);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_key_and_the_command_can_be_copied_while_hidden() {
    visit(async |browser, server| {
        create(browser).await;
        let secret = copied(browser).await;
        assert_eq!(server.whoami(&secret), 200);
        assert_no_leak("the document", &browser.everything().await, &secret);
        browser.press("Copy command").await;
        let expected = format!(
            "curl '{}/v1/whoami' \\\n  -H \"Authorization: Bearer {secret}\"",
            server.origin()
        );
        browser.becomes("what was copied", expected, async || browser.clipboard().await).await;
        assert_no_leak("the document", &browser.everything().await, &secret);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn if_the_browser_refuses_to_copy_the_key_is_shown_and_selected() {
    visit(async |browser, server| {
        create(browser).await;
        // Like a page over plain HTTP: a click in Chromium copies whatever the permission.
        browser.js("Object.defineProperty(navigator, 'clipboard', { value: undefined })", &[]).await;
        browser.press("Copy key").await;
        browser.sees("The browser does not allow copying. Select the text and copy it yourself.").await;
        let secret = browser.value(FIELD).await;
        assert_eq!(server.whoami(&secret), 200);
        let script = "const it = document.activeElement; return it.value?.slice(it.selectionStart, it.selectionEnd) ?? ''";
        let selected = browser.js(script, &[]).await;
        assert_eq!(selected, serde_json::json!(secret));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn escape_does_not_lose_a_key() {
    visit(async |browser, server| {
        create(browser).await;
        for _ in 0..4 {
            browser.key(Key::Escape.into()).await;
        }
        browser.sees(WARNING).await;
        // Also with the focus in a field, and after another click.
        browser.press("Show").await;
        browser.find(Role::TextBox, FIELD).await.click().await.unwrap();
        for _ in 0..4 {
            browser.key(Key::Escape.into()).await;
        }
        browser.sees(WARNING).await;
        assert_eq!(server.whoami(&browser.value(FIELD).await), 200);
        browser.press("Done").await;
        browser.no_dialog().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn case_40_after_done_a_created_key_is_nowhere_in_the_browser() {
    visit(async |browser, server| {
        create(browser).await;
        browser.press("Show").await;
        let secret = copied(browser).await;
        assert_eq!(secret, browser.value(FIELD).await);
        browser.press("Done").await;
        browser.no_dialog().await;
        browser.sees_focus("Create API key").await;
        assert_eq!(browser.rows().await, ["CI deploy"]);
        assert_eq!(server.whoami(&secret), 200);
        try_to_see_it_again(browser, server, &secret).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn case_40_after_done_a_rotated_key_is_nowhere_in_the_browser() {
    visit(async |browser, server| {
        server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Rotate").await;
        browser.fill("Type CI deploy to confirm", "CI deploy").await;
        browser.press("Rotate key").await;
        browser.sees("Save your new key").await;
        browser.press("Show").await;
        let secret = browser.value(FIELD).await;
        browser.press("Done").await;
        browser.no_dialog().await;
        assert_eq!(server.whoami(&secret), 200);
        try_to_see_it_again(browser, server, &secret).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_reload_before_done_forgets_the_key_as_well() {
    visit(async |browser, server| {
        create(browser).await;
        browser.press("Show").await;
        let secret = browser.value(FIELD).await;
        browser.reload().await;
        browser.sees("1 of 20 keys").await;
        try_to_see_it_again(browser, server, &secret).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_page_left_with_the_key_visible_returns_without_it() {
    visit(async |browser, server| {
        create(browser).await;
        let secret = copied(browser).await;
        browser.press("Show").await;
        assert_eq!(browser.value(FIELD).await, secret);
        browser.goto(&format!("{}/healthz", server.origin())).await;
        browser.client.back().await.unwrap();
        browser.loaded().await;
        assert_no_leak("the document", &browser.everything().await, &secret);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_double_click_opens_one_dialog() {
    visit(async |browser, _| {
        let twice =
            "const open = document.querySelector('button.primary'); open.click(); open.click()";
        browser.js(twice, &[]).await;
        browser.sees("Expiration").await;
        // If a second dialog could open, it would have done so by now.
        create_in_open_dialog(browser).await;
        let count = "return document.querySelectorAll('dialog').length";
        assert_eq!(browser.js(count, &[]).await, 1);
        browser.press("Done").await;
        browser.no_dialog().await;
    })
    .await;
}
