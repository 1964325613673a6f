//! Shared by the tower layer and the axum adapters: credentials, client address, refusals.

pub(crate) mod bearer;
pub(crate) mod client_ip;
pub(crate) mod grpc;
pub(crate) mod refusal;
pub(crate) mod unread;
