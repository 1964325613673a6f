//! Where keys are kept: the `KeyStore` trait and its implementations.

pub(crate) mod contract;
pub(crate) mod memory;
