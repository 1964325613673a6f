//! Screenshots of every state of the page, for review:
//! `KEYGATE_SCREENSHOTS=target/screenshots cargo test -p keygate-heavy --test browser screenshots -- --ignored`

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::views::every_state;

#[test]
#[ignore = "makes screenshots: needs chromium, into KEYGATE_SCREENSHOTS"]
fn screenshots() {
    let otherwise = concat!(env!("CARGO_TARGET_TMPDIR"), "/screenshots");
    let folder = std::env::var_os("KEYGATE_SCREENSHOTS").unwrap_or_else(|| otherwise.into());
    let folder = PathBuf::from(folder);
    fs::create_dir_all(&folder).unwrap();
    every_state(async |browser, screen, state| {
        browser.cdp("Emulation.setScrollbarsHidden", json!({ "hidden": true }));
        let picture = browser.client.screenshot().await.unwrap();
        let name = format!("{}-{}-{state}.png", screen.width, screen.theme());
        fs::write(folder.join(name), picture).unwrap();
    });
}
