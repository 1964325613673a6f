//! The SHA-256 digest that is stored in place of a key.

use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

/// The SHA-256 digest (FIPS 180-4) of a whole key: 32 bytes. A store never sees more of a
/// key.
///
/// A random secret of 250 bits needs no slow hash, since it cannot be guessed. `==` on
/// digests compares in constant time.
///
/// ```
/// use keygate::store::KeyDigest;
///
/// let digest = KeyDigest::of("abc");
/// assert_eq!(digest.as_bytes()[..4], [0xba, 0x78, 0x16, 0xbf]);
/// assert_eq!(KeyDigest::from_slice(digest.as_bytes())?, digest);
/// # Ok::<(), keygate::error::KeyDigestError>(())
/// ```
// Aligned, so that it is moved and compared by words.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of this text.
    pub fn of(key: impl AsRef<[u8]>) -> Self {
        Self::of_bytes(key.as_ref())
    }

    // Compiled once, and not with each kind of text.
    fn of_bytes(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// The digest of these parts, one behind the other.
    pub(crate) fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        parts.into_iter().for_each(|part| hash.update(part));
        Self(hash.finalize().into())
    }

    /// Reads a stored digest. Fails for any length other than 32 bytes, and for 32 zero
    /// bytes, which indicate a column that was never filled in.
    pub fn from_slice(stored: &[u8]) -> Result<Self, KeyDigestError> {
        match <[u8; 32]>::try_from(stored) {
            Ok(bytes) if bytes != [0; 32] => Ok(Self(bytes)),
            _ => Err(KeyDigestError),
        }
    }

    /// The digest's bytes, for storage.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first bytes, for choosing a place in a table.
    #[inline]
    pub(crate) fn first_word(&self) -> u64 {
        let [first, ..] = self.words();
        first
    }

    #[inline]
    fn words(&self) -> [u64; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.0.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        words
    }
}

impl ConstantTimeEq for KeyDigest {
    // Combines all differences in one word. `subtle` compares slices byte by byte, which is
    // many times slower.
    #[inline]
    fn ct_eq(&self, other: &Self) -> Choice {
        let pairs = self.words().into_iter().zip(other.words());
        pairs.fold(0, |differences, (a, b)| differences | (a ^ b)).ct_eq(&0)
    }
}

impl PartialEq for KeyDigest {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for KeyDigest {}

impl Hash for KeyDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.first_word());
    }
}

/// Shows only the first four bytes: enough to tell digests apart in a log.
impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "KeyDigest({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// The stored bytes are not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a key digest is 32 bytes, not all of them zero")]
pub struct KeyDigestError;

/// For hash maps keyed by digests or ids of keys.
///
/// No caller can choose these values, so a map cannot be filled with collisions.
pub(crate) type BuildUniformHasher = BuildHasherDefault<UniformHasher>;

/// See [`BuildUniformHasher`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UniformHasher(u64);

impl Hasher for UniformHasher {
    /// Digests are random already.
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    /// Ids are not always random: those of an import may be counters or begin with a time.
    fn write_u128(&mut self, id: u128) {
        let (low, high) = (id as u64, (id >> 64) as u64);
        let product =
            u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xd1b5_4a32_d192_ed03);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    /// Not used.
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u128(u128::from(self.0) << 8 | u128::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use proptest::prelude::*;

    use super::*;
    use crate::key::id::KeyId;

    #[test]
    fn case_09_zero_and_empty_digests_are_refused() {
        assert_eq!(KeyDigest::from_slice(&[0; 32]), Err(KeyDigestError));
        assert_eq!(KeyDigest::from_slice(&[]), Err(KeyDigestError));
        assert_eq!(KeyDigest::from_slice(&[1; 31]), Err(KeyDigestError));
        assert_eq!(KeyDigest::from_slice(&[1; 33]), Err(KeyDigestError));
    }

    #[test]
    fn a_difference_in_any_bit_is_detected() {
        let digest = KeyDigest::of("key");
        for bit in 0..256 {
            let mut bytes = *digest.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(KeyDigest(bytes), digest);
        }
    }

    #[test]
    fn sequential_ids_are_spread_over_the_table() {
        let places = |id: fn(u128) -> u128| {
            let hashes = (0..10_000_u128).map(|n| {
                BuildUniformHasher::default().hash_one(KeyId::from_bytes(id(n).to_be_bytes()))
            });
            // A hash table picks the slot by the lowest bits and compares entries by the
            // highest.
            let [low, high] = [0, 57].map(|shift| {
                hashes.clone().map(|hash| hash >> shift & 0x3fff).collect::<HashSet<_>>().len()
            });
            (low, high)
        };
        // 10,000 random ids use about 7,500 of 16,384 slots. At a third of that, a used slot
        // holds four ids on average.
        for id in [|n| n, |n| n << 48, |n| n << 64, |n| n << 114, |n| n << 64 | n] {
            let (low, high) = places(id);
            assert!(low > 2_500 && high == 128, "{low} places, {high} marks");
        }
    }

    proptest! {
        #[test]
        fn digests_are_equal_when_their_bytes_are(a: [u8; 32], b: [u8; 32]) {
            prop_assert_eq!(KeyDigest(a) == KeyDigest(b), a == b);
            prop_assert_eq!(KeyDigest(a), KeyDigest(a));
        }
    }
}
