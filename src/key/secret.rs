//! The full text of a key, on its way to the person who created it.

use std::fmt;

use zeroize::Zeroizing;

use crate::key::digest::KeyDigest;

/// A full key. It exists only from its creation until it has been shown, and cannot be read
/// again afterwards.
///
/// It is wiped from memory when dropped, prints as `[REDACTED]`, and is neither
/// `Clone` nor `Serialize`.
///
/// ```
/// use getrandom::SysRng;
/// use keygate::KeyFormat;
///
/// let key = KeyFormat::default().generate(&mut SysRng)?;
/// assert_eq!(format!("{key} {key:?}"), "[REDACTED] [REDACTED]");
/// assert_eq!(key.expose_secret().len(), 55);
/// # Ok::<(), getrandom::Error>(())
/// ```
///
/// This does not compile:
///
/// ```compile_fail,E0599
/// # let key = keygate::KeyFormat::default().generate(&mut getrandom::SysRng).unwrap();
/// let copy = key.clone();
/// ```
///
/// Nor does this:
///
/// ```compile_fail,E0277
/// # let key = keygate::KeyFormat::default().generate(&mut getrandom::SysRng).unwrap();
/// let text = serde_json::to_string(&key);
/// ```
pub struct PlaintextKey(Zeroizing<String>);

impl PlaintextKey {
    pub(crate) fn new(key: Zeroizing<String>) -> Self {
        Self(key)
    }

    /// The key itself. Show it to its owner once, over TLS, in a response that is not
    /// cached or logged.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    /// The digest under which the key is stored.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(self.0.as_bytes())
    }
}

impl fmt::Display for PlaintextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl fmt::Debug for PlaintextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}
