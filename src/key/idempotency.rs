//! Names the creation of a key, so that a retry does not create a second one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::key::digest::KeyDigest;
use crate::key::id::KeyId;
use crate::org::OrgId;

/// The caller's name for one creation, for [`NewKey::idempotent`](crate::NewKey::idempotent):
/// 1 to 255 characters of visible ASCII, such as a random UUID.
///
/// If a creation is sent again because its response was lost, no second key is created
/// within 24 hours. The text itself is not stored: the ids of the keys are derived from its
/// digest.
///
/// ```
/// use keygate::manager::IdempotencyKey;
///
/// assert!(IdempotencyKey::new("8e03978e-40d5-43e8-bc93-6894a57f9324").is_ok());
/// assert!(IdempotencyKey::new("two words").is_err());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(KeyDigest);

impl IdempotencyKey {
    /// The longest text.
    pub const MAX_LEN: usize = 255;
    /// How long after a creation the same idempotency key creates no other key: 24 hours.
    pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

    /// Takes the caller's text.
    pub fn new(text: impl AsRef<str>) -> Result<Self, IdempotencyKeyError> {
        let text = text.as_ref().as_bytes();
        if !(1..=Self::MAX_LEN).contains(&text.len()) || !text.iter().all(u8::is_ascii_graphic) {
            return Err(IdempotencyKeyError);
        }
        Ok(Self(KeyDigest::of(text)))
    }

    /// The ids of the keys that are created with it in this organisation, in order.
    pub(crate) fn ids(&self, org: &OrgId) -> impl Iterator<Item = KeyId> {
        let org = KeyDigest::of(org.as_str());
        (0_u32..).map(move |number| {
            // The hashed parts have fixed lengths, so that they cannot run together.
            let parts: [&[u8]; 3] = [self.0.as_bytes(), org.as_bytes(), &number.to_be_bytes()];
            KeyId::derived(&KeyDigest::of(parts.concat()))
        })
    }
}

/// The digest is hidden, since it looks like a secret.
impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKey").finish_non_exhaustive()
    }
}

impl FromStr for IdempotencyKey {
    type Err = IdempotencyKeyError;

    fn from_str(text: &str) -> Result<Self, IdempotencyKeyError> {
        Self::new(text)
    }
}

/// The text is not an idempotency key. It may be a key, so the error does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be 1 to {} characters of visible ASCII", IdempotencyKey::MAX_LEN)]
pub struct IdempotencyKeyError;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_depend_on_the_text_the_organisation_and_the_number() {
        let (a, b) = (OrgId::new("a").unwrap(), OrgId::new("b").unwrap());
        let (x, y) = (IdempotencyKey::new("x").unwrap(), IdempotencyKey::new("y").unwrap());
        let ids = |once: &IdempotencyKey, org| once.ids(org).take(50).collect::<Vec<_>>();
        assert_eq!(ids(&x, &a), ids(&x.clone(), &a));
        let all: BTreeSet<KeyId> =
            [ids(&x, &a), ids(&x, &b), ids(&y, &a), ids(&y, &b)].concat().into_iter().collect();
        assert_eq!(all.len(), 200);
        assert!(all.iter().all(|id| id.to_string().as_bytes()[14] == b'8'), "no random id");
    }
}
