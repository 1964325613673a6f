//! Dialogs have addresses, so that Back closes them, and a page that cannot start says so.

use serde_json::json;

use crate::kit::Browser;
use crate::service::{Service, visit_key};

async fn address(browser: &Browser) -> String {
    browser.client.current_url().await.unwrap().fragment().unwrap_or_default().to_owned()
}

fn link(service: &Service, more: &str) -> String {
    format!("key={}{more}", service.key("CI deploy")["id"].as_str().unwrap())
}

#[test]
#[ignore = "needs chromium"]
fn a_dialog_has_an_address_and_back_closes_it() {
    visit_key(async |browser, service, _| {
        for (item, more) in [("Edit", ""), ("View Audit Log", "&audit"), ("Delete", "&delete")] {
            browser.menu("CI deploy", item).await;
            browser
                .becomes("the address", link(service, more), async || address(browser).await)
                .await;
            browser.client.back().await.unwrap();
            browser.no_dialog().await;
            assert_eq!(address(browser).await, "", "{item}");
        }
        // A dialog that was left by its button leaves no address, and Back leaves the page.
        browser.menu("CI deploy", "Edit").await;
        browser.close_with("Cancel").await;
        assert_eq!(address(browser).await, "");
    });
}

#[test]
#[ignore = "needs chromium"]
fn an_address_opens_its_dialog_and_one_without_a_key_is_explained() {
    visit_key(async |browser, service, _| {
        let page = service.page();
        browser.goto(&format!("{page}#{}", link(service, ""))).await;
        browser.sees("Edit “CI deploy”").await;
        browser.close_with("Cancel").await;
        browser.goto(&format!("{page}?a=b#{}", link(service, "&audit"))).await;
        browser.sees("Audit log of “CI deploy”").await;
        browser.close_with("Close").await;
        browser.goto(&format!("{page}?c=d#key=00000000-0000-0000-0000-000000000000")).await;
        browser.sees("This key no longer exists.").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn back_loses_neither_what_was_typed_nor_a_new_key() {
    visit_key(async |browser, service, _| {
        browser.menu("CI deploy", "Edit").await;
        browser.fill("Name", "typed").await;
        browser.client.back().await.unwrap();
        browser.sees("Discard what you entered?").await;
        browser.press("Keep editing").await;
        assert_eq!(browser.value("Name").await, "typed");
        browser.client.back().await.unwrap();
        browser.press("Discard").await;
        browser.no_dialog().await;

        browser.create("new").await;
        browser.sees("Save your key").await;
        for _ in 0..2 {
            browser.client.back().await.unwrap();
        }
        browser.sees("Save your key").await;
        let secret = browser.copied().await;
        assert_eq!(service.whoami(&secret), 200);
        browser.close_with("Done").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_page_whose_script_cannot_be_loaded_says_so() {
    visit_key(async |browser, service, _| {
        browser.cdp("Network.enable", json!({}));
        browser.cdp("Network.setBlockedURLs", json!({ "urls": ["*/page.js*"] }));
        browser.client.goto(&format!("{}?stuck", service.page())).await.unwrap();
        browser.sees("a part of this page could not be loaded. Reload it.").await;
        browser.cdp("Network.setBlockedURLs", json!({ "urls": [] }));
        browser.reload().await;
        browser.sees_rows(&["CI deploy"]).await;
        assert!(!browser.text().await.contains("could not be loaded"));
    });
}
