//! Environments on the page: only where the service has any.

use axum::middleware;
use keygate::{KeyFormat, KeyManager, MemoryAuditLog, MemoryStore, SettingsPage};

use crate::browser_support::{login, serve, visit, visit_at};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_key_is_created_in_the_environment_that_is_chosen() {
    let test = KeyFormat::new("vsp_sk_test_").unwrap();
    let keys = KeyManager::builder(MemoryStore::new())
        .audit(MemoryAuditLog::new())
        .environment("live", KeyFormat::default())
        .environment("test", test);
    let page = SettingsPage::new(keys.build().unwrap()).router();
    let origin = serve(page.layer(middleware::from_fn(login))).await;
    visit_at(&origin, async |browser| {
        for (name, environment) in [("first", None), ("second", Some("test (vsp_sk_test_…)"))] {
            browser.press("Create API key").await;
            browser.fill("Name", name).await;
            if let Some(environment) = environment {
                browser.choose("Environment", environment).await;
            }
            browser.press("Create key").await;
            browser.press("Done").await;
            browser.no_dialog().await;
        }
        let first = browser.cell_text("first", "Key").await;
        assert!(first.starts_with("vsp_sk_") && first.ends_with("live"), "{first}");
        let second = browser.cell_text("second", "Key").await;
        assert!(second.starts_with("vsp_sk_test_") && second.ends_with("test"), "{second}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn without_environments_there_is_nothing_to_choose() {
    visit(async |browser, _| {
        browser.press("Create API key").await;
        assert!(!browser.text().await.contains("Environment"));
    })
    .await;
}
