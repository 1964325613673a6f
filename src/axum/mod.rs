//! What the layer knows of axum, and the management API.

#[cfg(feature = "admin")]
pub mod admin;
pub(crate) mod extract;
