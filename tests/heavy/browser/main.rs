//! The settings page in a browser: a real Chromium clicks and types.
//!
//! `cargo test -p keygate-heavy --test browser -- --ignored`, with Debian's packages
//! `chromium` and `chromium-driver`. `KEYGATE_BROWSER_WIDTH=360` runs all of them at that width.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod accessibility;
mod advice;
mod allowlist;
mod audit;
mod branding;
mod confirm;
mod create;
mod edit;
mod environments;
mod hostile;
mod keyboard;
mod kit;
mod links;
mod many;
mod outage;
mod overlap;
#[path = "../../support/port.rs"]
mod port;
mod process;
mod scopes;
mod screenshots;
mod secret;
mod service;
mod small;
#[path = "../../support/mod.rs"]
mod support;
mod table;
mod tabs;
mod views;
