//! The settings page, on which the members of an organisation manage its keys.

mod files;
mod options;

pub use crate::web::page::options::{SettingsPage, SettingsPageError};
