//! Identifiers of keys.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use rand_core::TryCryptoRng;
use thiserror::Error;
use uuid::Uuid;

use crate::key::digest::KeyDigest;

/// Identifies a key for as long as it exists, through renames and rotations.
///
/// A UUID (RFC 9562), written in lower case with hyphens. It is random (version 4), or
/// derived from an [`IdempotencyKey`](crate::manager::IdempotencyKey) (version 8). It is not a
/// secret and authenticates nothing.
///
/// ```
/// use keygate::KeyId;
///
/// let id: KeyId = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse()?;
/// assert_eq!(KeyId::from_bytes(id.to_bytes()), id);
/// # Ok::<(), keygate::error::KeyIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(Uuid);

impl KeyId {
    /// A new, unique identifier.
    pub fn random<R: TryCryptoRng + ?Sized>(rng: &mut R) -> Result<Self, R::Error> {
        let mut bytes = [0; 16];
        rng.try_fill_bytes(&mut bytes)?;
        Ok(Self(uuid::Builder::from_random_bytes(bytes).into_uuid()))
    }

    /// An identifier that is derived from a digest instead of random.
    pub(crate) fn derived(from: &KeyDigest) -> Self {
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(from.as_bytes()).for_each(|(byte, of)| *byte = *of);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The identifier from the bytes that [`KeyId::to_bytes`] returned.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes of the UUID, most significant first.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }
}

/// Hashed as one number: the maps here spread it by one multiplication.
impl Hash for KeyId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.0.as_u128());
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    /// Parses the form that [`Display`](fmt::Display) writes, in upper or lower case (RFC
    /// 9562 § 4).
    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let id = Uuid::try_parse(text).map_err(|_| KeyIdError)?;
        let mut canonical = Uuid::encode_buffer();
        if id.hyphenated().encode_lower(&mut canonical).eq_ignore_ascii_case(text) {
            Ok(Self(id))
        } else {
            Err(KeyIdError)
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The text is not a key id. It may be a key, so the error does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a key id")]
pub struct KeyIdError;

#[cfg(test)]
mod tests {
    use getrandom::SysRng;

    use super::*;

    #[test]
    fn only_the_text_with_hyphens_is_an_id_in_any_case() {
        let id = KeyId::random(&mut SysRng).unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        for other in
            [id.to_string().replace('-', ""), format!("{{{id}}}"), format!(" {id}"), String::new()]
        {
            assert_eq!(other.parse::<KeyId>(), Err(KeyIdError), "{other}");
        }
    }
}
