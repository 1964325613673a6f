//! The integration with axum, and the management API.

#[cfg(feature = "admin")]
pub mod admin;
pub(crate) mod extract;
#[cfg(feature = "settings-page")]
pub(crate) mod page;
pub(crate) mod unread;
