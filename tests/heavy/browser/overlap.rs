//! Rotation with overlap: the choice, the row, and where the old secret is used.

use std::time::Duration;

use crate::kit::Browser;
use crate::service::{Configure, Service, visit_with};

const DAY: Duration = Duration::from_secs(86_400);

fn visit_overlap(configure: Configure, test: impl AsyncFnOnce(&Browser, &Service, String)) {
    visit_with(configure, |service| service.create("CI deploy"), test);
}

async fn rotate(browser: &Browser) {
    browser.confirm("CI deploy").await;
    browser.press("Rotate key").await;
    browser.done().await;
}

async fn choices(browser: &Browser) -> Vec<String> {
    browser.sees("Old key stops working").await;
    let script = "return [...document.querySelectorAll('dialog option')].map((it) => it.innerText)";
    browser.list(script, &[]).await
}

#[test]
#[ignore = "needs chromium"]
fn overlap_the_old_secret_works_until_it_is_ended_on_its_row() {
    visit_overlap(
        |builder| builder.max_overlap(DAY),
        async |browser, service, old| {
            browser.menu("CI deploy", "Rotate").await;
            browser.sees("A new secret replaces the old one.").await;
            let offered = ["immediately", "in 1 hour", "in 1 day"];
            assert_eq!(choices(browser).await, offered, "as far as the host allows");
            browser.choose("Old key stops working", "in 1 hour").await;
            rotate(browser).await;
            assert_eq!(service.whoami(&old), 200);
            assert!(service.key("CI deploy")["previous_secret_until"].is_string());
            browser.sees("Old secret works until").await;

            browser.reload().await;
            browser.sees("last used from 192.0.2.1").await;
            browser.menu("CI deploy", "View Audit Log").await;
            browser.sees("old secret").await;
            browser.close_with("Close").await;

            browser.press("End the old secret of “CI deploy”").await;
            browser.sees("Programs that still use the old secret will be refused at once.").await;
            browser.close_with("End now").await;
            browser.sees("The old secret of “CI deploy” has ended.").await;
            browser.sees_no_more("Old secret works until").await;
            browser.sees_focus("Actions for CI deploy").await;
            assert_eq!(service.whoami(&old), 401);
        },
    );
}

#[test]
#[ignore = "needs chromium"]
fn overlap_immediately_is_the_default_and_ends_the_old_secret() {
    visit_overlap(
        |builder| builder.max_overlap(7 * DAY),
        async |browser, service, old| {
            browser.menu("CI deploy", "Rotate").await;
            let all = ["immediately", "in 1 hour", "in 1 day", "in 7 days"];
            assert_eq!(choices(browser).await, all);
            rotate(browser).await;
            assert_eq!(service.whoami(&old), 401);
            browser.sees_no_more("Old secret works until").await;
        },
    );
}
