//! The axum side: the extractor, the management API and the settings page.

#[cfg(feature = "admin")]
pub mod admin;
pub(crate) mod extract;
#[cfg(feature = "settings-page")]
pub(crate) mod page;
pub(crate) mod unread;
