//! What the tower layer and the axum adapters share: credentials, client address, refusals.

pub(crate) mod bearer;
pub(crate) mod client_ip;
pub(crate) mod grpc;
pub(crate) mod refusal;
pub(crate) mod unread;
