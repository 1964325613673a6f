//! A tower middleware that lets in requests with a good key and no others.

pub(crate) mod body;
pub(crate) mod config;
pub(crate) mod future;
pub(crate) mod layer;
pub(crate) mod service;
