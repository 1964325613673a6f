//! A tower middleware that admits only requests with a valid key.

pub(crate) mod body;
pub(crate) mod config;
pub(crate) mod future;
pub(crate) mod layer;
pub(crate) mod service;
