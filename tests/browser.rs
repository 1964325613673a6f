//! The settings page in a browser: a real Chromium clicks and types against the example server.
//!
//! `cargo test --all-features --test browser -- --ignored`, with Debian's packages
//! `chromium` and `chromium-driver`.
#![cfg(all(feature = "settings-page", feature = "sqlite", feature = "postgres", unix))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod browser_support;
mod support;

#[path = "browser_support/accessibility.rs"]
mod accessibility;
#[path = "browser_support/advice.rs"]
mod advice;
#[path = "browser_support/allowlist.rs"]
mod allowlist;
#[path = "browser_support/audit.rs"]
mod audit;
#[path = "browser_support/branding.rs"]
mod branding;
#[path = "browser_support/confirm.rs"]
mod confirm;
#[path = "browser_support/create.rs"]
mod create;
#[path = "browser_support/edit.rs"]
mod edit;
#[path = "browser_support/environments.rs"]
mod environments;
#[path = "browser_support/hostile.rs"]
mod hostile;
#[path = "browser_support/keyboard.rs"]
mod keyboard;
#[path = "browser_support/outage.rs"]
mod outage;
#[path = "browser_support/overlap.rs"]
mod overlap;
#[path = "browser_support/scopes.rs"]
mod scopes;
#[path = "browser_support/screenshots.rs"]
mod screenshots;
#[path = "browser_support/secret.rs"]
mod secret;
#[path = "browser_support/service.rs"]
mod service;
#[path = "browser_support/small.rs"]
mod small;
#[path = "browser_support/smoke.rs"]
mod smoke;
#[path = "browser_support/table.rs"]
mod table;
#[path = "browser_support/tabs.rs"]
mod tabs;
#[path = "browser_support/views.rs"]
mod views;
