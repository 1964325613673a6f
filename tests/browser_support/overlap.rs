//! Rotation with overlap: the choice, the row, and where the old secret is used.

use serde_json::json;

use crate::browser_support::{Browser, Role, visit_with};

async fn rotate(browser: &Browser, end: &str) {
    browser.menu("CI deploy", "Rotate").await;
    browser.choose("Old key stops working", end).await;
    browser.fill("Type CI deploy to confirm", "CI deploy").await;
    browser.press("Rotate key").await;
    browser.sees("Save your new key").await;
    browser.press("Done").await;
    browser.no_dialog().await;
}

async fn choices(browser: &Browser) -> serde_json::Value {
    let script = "return [...document.querySelectorAll('dialog option')].map((it) => it.innerText)";
    browser.js(script, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn overlap_the_old_secret_works_until_it_is_ended_on_its_row() {
    visit_with(&[("KEYGATE_ROTATION_OVERLAP", "86400")], async |browser, server| {
        let old = server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Rotate").await;
        browser.sees("A new secret replaces the old one.").await;
        let offered = json!(["immediately", "in 1 hour", "in 24 hours"]);
        assert_eq!(choices(browser).await, offered, "as far as the host allows");
        browser.press("Cancel").await;
        browser.no_dialog().await;
        rotate(browser, "in 1 hour").await;
        assert_eq!(server.whoami(&old), 200);
        assert!(server.key("CI deploy")["previous_secret_until"].is_string());
        let name = async || browser.cell_text("CI deploy", "Name").await;
        assert!(name().await.contains("Old secret works until"), "{}", name().await);

        // The log is written a moment after the answer.
        browser
            .until("the use of the old secret", async || {
                browser.reload().await;
                browser.sees("Old secret works until").await;
                let text = browser.until("a use", async || {
                    Some(name().await)
                        .filter(|text| text.contains(" last used ") || text.contains(" not used "))
                });
                text.await.contains("last used from 127.0.0.1").then_some(())
            })
            .await;
        browser.menu("CI deploy", "View audit log").await;
        browser.sees("old secret").await;
        browser.press("Close").await;
        browser.no_dialog().await;

        browser.press("End the old secret of “CI deploy”").await;
        browser.sees("Programs that still use the old secret will be refused at once.").await;
        browser.press("End now").await;
        browser.no_dialog().await;
        browser.sees("The old secret of “CI deploy” has ended.").await;
        browser.sees_no_more("Old secret works until").await;
        browser.sees_focus("Actions for CI deploy").await;
        assert_eq!(server.whoami(&old), 401);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn overlap_immediately_is_the_default_and_ends_the_old_secret() {
    visit_with(&[("KEYGATE_ROTATION_OVERLAP", "604800")], async |browser, server| {
        let old = server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Rotate").await;
        browser.sees("Old key stops working").await;
        let all = json!(["immediately", "in 1 hour", "in 24 hours", "in 7 days"]);
        assert_eq!(choices(browser).await, all);
        browser.fill("Type CI deploy to confirm", "CI deploy").await;
        browser.press("Rotate key").await;
        browser.sees("Save your new key").await;
        browser.press("Done").await;
        browser.no_dialog().await;
        assert_eq!(server.whoami(&old), 401);
        browser.sees_no_more("Old secret works until").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn overlap_is_not_offered_unless_the_host_allows_it() {
    visit_with(&[], async |browser, server| {
        server.create("CI deploy");
        browser.reload().await;
        browser.menu("CI deploy", "Rotate").await;
        browser.sees("A new secret replaces the old one, which stops working at once.").await;
        assert!(browser.names(Role::ComboBox).await.is_empty());
    })
    .await;
}
