//! The settings page: what an organisation's people see of their keys.

mod files;
mod options;
mod shown;

pub use crate::web::page::options::{SettingsPage, SettingsPageError};
