//! The source of random bytes for keys and ids.

use std::fmt;

use thiserror::Error;

/// Supplies random bytes fit for secrets.
///
/// The default is [`SystemRandom`]. Use another implementation in tests, or for a hardware
/// generator. Anyone who can predict its bytes can forge keys.
pub trait Random: fmt::Debug + Send + Sync + 'static {
    /// Overwrites all of `bytes`. If this fails, the bytes are not used.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError>;
}

/// The operating system's random number generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        getrandom::fill(bytes).map_err(RandomError::new)
    }
}

/// The random number generator failed.
#[derive(Debug, Error)]
#[error("the random number generator failed")]
pub struct RandomError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl RandomError {
    /// Wraps the generator's own error.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}
