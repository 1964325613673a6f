//! Random bytes that can be worked out again.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use keygate::rand_core::{TryCryptoRng, TryRng, utils};
use keygate::store::KeyDigest;

/// A generator with a known seed, so that a test knows the secret of a change that was
/// never acknowledged. A clone is the same generator.
#[derive(Clone, Debug)]
pub(crate) struct Seeded(Arc<Mutex<(u64, u64)>>);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new((seed, 0))))
    }

    pub(crate) fn reset(&self, seed: u64) {
        *self.0.lock().unwrap() = (seed, 0);
    }
}

impl TryRng for Seeded {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        let mut state = self.0.lock().unwrap();
        for chunk in bytes.chunks_mut(32) {
            let digest = KeyDigest::of([state.0.to_be_bytes(), state.1.to_be_bytes()].concat());
            chunk.copy_from_slice(&digest.as_bytes()[..chunk.len()]);
            state.1 += 1;
        }
        Ok(())
    }
}

impl TryCryptoRng for Seeded {}
