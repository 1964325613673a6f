//! The source of random bytes for keys and ids.

use std::fmt;

use thiserror::Error;

/// Supplies random bytes fit for secrets.
///
/// The default is [`SystemRandom`]. Another implementation is for tests, or for
/// a hardware generator: whoever can predict its bytes can forge keys.
pub trait Random: fmt::Debug + Send + Sync + 'static {
    /// Overwrites all of `bytes`, or fails and nothing is made of them.
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

/// No random bytes were to be had.
#[derive(Debug, Error)]
#[error("the random number generator failed")]
pub struct RandomError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl RandomError {
    /// Wraps the generator's own error.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}
