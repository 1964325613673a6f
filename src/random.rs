//! The random number generator of a manager.

use std::fmt;
use std::sync::{Arc, Mutex};

use getrandom::SysRng;
use rand_core::{TryCryptoRng, TryRng, utils};
use thiserror::Error;

/// The generator that all tasks of a manager share: a clone is the same generator.
#[derive(Clone)]
pub(crate) enum SharedRng {
    /// The operating system's, which needs no lock.
    System,
    /// The host's.
    Given(Arc<Mutex<dyn Fill>>),
}

/// `TryCryptoRng` with one type of error, so that it can be used as `dyn`.
pub(crate) trait Fill: Send {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RandomError>;
}

impl<R> Fill for R
where
    R: TryCryptoRng<Error: std::error::Error + Send + Sync + 'static> + Send,
{
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RandomError> {
        self.try_fill_bytes(bytes).map_err(RandomError::new)
    }
}

impl SharedRng {
    pub(crate) fn given(rng: impl Fill + 'static) -> Self {
        Self::Given(Arc::new(Mutex::new(rng)))
    }
}

impl TryRng for SharedRng {
    type Error = RandomError;

    fn try_next_u32(&mut self) -> Result<u32, RandomError> {
        utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, RandomError> {
        utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RandomError> {
        match self {
            Self::System => SysRng.fill(bytes),
            Self::Given(rng) => match rng.lock() {
                Ok(mut rng) => rng.fill(bytes),
                // Its state may be anything, even one that it had before.
                Err(_) => Err(RandomError::new("the generator panicked in an earlier call")),
            },
        }
    }
}

impl TryCryptoRng for SharedRng {}

/// Does not show the host's generator: its state predicts keys.
impl fmt::Debug for SharedRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Given(_) => "Given",
        })
    }
}

/// The manager's random number generator failed. The source is the generator's own error.
#[derive(Debug, Error)]
#[error("the random number generator failed")]
pub struct RandomError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl RandomError {
    fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::error::Error as _;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Counts, and panics or fails at a certain number.
    struct Counter(u8);

    impl TryRng for Counter {
        type Error = fmt::Error;

        fn try_next_u32(&mut self) -> Result<u32, fmt::Error> {
            utils::next_word_via_fill(self)
        }

        fn try_next_u64(&mut self) -> Result<u64, fmt::Error> {
            utils::next_word_via_fill(self)
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), fmt::Error> {
            for byte in bytes {
                self.0 += 1;
                *byte = self.0;
            }
            match self.0 {
                100 => Err(fmt::Error),
                200.. => panic!("the generator is broken"),
                _ => Ok(()),
            }
        }
    }

    impl TryCryptoRng for Counter {}

    #[test]
    fn clones_are_one_generator() {
        let rng = SharedRng::given(Counter(0));
        let (mut one, mut other) = (rng.clone(), rng);
        let mut bytes = [0; 3];
        one.try_fill_bytes(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3]);
        assert_eq!(other.try_next_u32().unwrap(), u32::from_le_bytes([4, 5, 6, 7]));
        assert_eq!(format!("{one:?}"), "Given");
    }

    #[test]
    fn an_error_has_the_generator_s_own_as_its_source() {
        let error = SharedRng::given(Counter(99)).try_fill_bytes(&mut [0]).unwrap_err();
        assert!(error.source().unwrap().is::<fmt::Error>());
    }

    #[test]
    fn a_generator_that_panicked_is_not_used_again() {
        let mut rng = SharedRng::given(Counter(199));
        let fill = AssertUnwindSafe(|| rng.clone().try_fill_bytes(&mut [0]));
        assert!(catch_unwind(fill).is_err());
        let error = rng.try_fill_bytes(&mut [0]).unwrap_err();
        assert!(error.source().unwrap().to_string().contains("panicked"));
    }

    #[test]
    fn the_system_s_generator_fills_all_bytes() {
        let mut bytes = [0; 64];
        SharedRng::System.try_fill_bytes(&mut bytes).unwrap();
        assert!(bytes.chunks(16).all(|chunk| chunk != [0; 16]));
    }

    /// Every generator of the `rand` crates that cannot fail is taken, too.
    #[test]
    fn an_infallible_generator_is_taken() {
        fn is_taken<R: Fill>() {}
        is_taken::<Box<dyn TryCryptoRng<Error = Infallible> + Send>>();
        is_taken::<SysRng>();
    }
}
