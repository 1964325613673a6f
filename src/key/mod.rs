//! What a key is: its text, digest, identifier, name and lifetime.

mod characters;
pub(crate) mod digest;
pub(crate) mod existing;
pub(crate) mod expiration;
pub(crate) mod format;
pub(crate) mod formats;
pub(crate) mod id;
pub(crate) mod idempotency;
pub(crate) mod name;
pub(crate) mod scan;
pub(crate) mod secret;
