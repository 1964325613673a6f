//! Screenshots of every state of the page, for review:
//! `KEYGATE_SCREENSHOTS=target/screenshots cargo test --all-features --test browser screenshots -- --ignored`

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::browser_support::Browser;
use crate::service::{Service, visit_service};
use crate::views::{Screen, furnish, tour};

fn set(screen: Screen, browser: &Browser) {
    screen.set(browser);
    browser.cdp("Emulation.setScrollbarsHidden", json!({ "hidden": true }));
}

async fn take(browser: &Browser, folder: &Path, screen: Screen, state: &str) {
    let picture = browser.client.screenshot().await.unwrap();
    let name = format!("{}-{}-{state}.png", screen.width, screen.theme());
    fs::write(folder.join(name), picture).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes screenshots: needs chromium, into KEYGATE_SCREENSHOTS"]
async fn screenshots() {
    let otherwise = concat!(env!("CARGO_TARGET_TMPDIR"), "/screenshots");
    let folder = std::env::var_os("KEYGATE_SCREENSHOTS").unwrap_or_else(|| otherwise.into());
    let folder = PathBuf::from(folder);
    fs::create_dir_all(&folder).unwrap();
    for screen in Screen::ALL {
        visit_service(furnish, async |browser, service, ()| {
            browser.expect_console("status of 502");
            set(screen, browser);
            tour(browser, service, async |state| take(browser, &folder, screen, state).await).await;
        })
        .await;
        visit_service(
            |_: &Service| (),
            async |browser, _, ()| {
                set(screen, browser);
                browser.sees("No API keys yet").await;
                take(browser, &folder, screen, "empty").await;
            },
        )
        .await;
    }
}
