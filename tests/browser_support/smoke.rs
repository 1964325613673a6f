//! The harness itself works, and fails where it should.

use crate::browser_support::visit;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_page_opens_without_a_console_message() {
    visit(async |browser, _| {
        browser.sees("No API keys yet").await;
        assert_eq!(browser.client.title().await.unwrap(), "API keys");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
#[should_panic(expected = "in the console")]
async fn an_error_in_the_console_fails_a_test() {
    visit(async |browser, _| {
        browser.js("console.error('broken')", &[]).await;
    })
    .await;
}
