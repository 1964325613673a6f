//! The text of a key: `<prefix><secret><checksum>`.
//!
//! The secret is 42 characters of `[0-9A-Za-z]`, each drawn uniformly: 250 bits. The
//! checksum is the CRC-32 (IEEE 802.3) of everything before it, in base 62, most
//! significant digit first, padded with `0` to 6 characters. It lets scanners recognise
//! leaked keys and rejects typing errors before any look-up; it does not add security.

use std::fmt;
use std::sync::Arc;

use rand_core::TryCryptoRng;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::key::digest::KeyDigest;
use crate::key::secret::PlaintextKey;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The value of each byte as a digit; 0 if it is not a digit.
const VALUES: [u8; 256] = {
    let mut values = [0; 256];
    let (mut rest, mut byte) = (values.as_mut_slice(), 0);
    while let [value, further @ ..] = rest {
        *value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'Z' => byte - b'A' + 10,
            b'a'..=b'z' => byte - b'a' + 36,
            _ => 0,
        };
        (rest, byte) = (further, byte.wrapping_add(1));
    }
    values
};
pub(super) const SECRET_LEN: usize = 42;
pub(super) const CHECKSUM_LEN: usize = 6;
pub(super) const DIGITS_LEN: usize = SECRET_LEN + CHECKSUM_LEN;
const LONGEST_PREFIX: usize = 24;
/// The longest key of any format, in bytes.
pub(crate) const LONGEST_KEY: usize = LONGEST_PREFIX + DIGITS_LEN;

/// The format of a service's keys. Formats differ only in their prefix.
///
/// ```
/// use keygate::KeyFormat;
///
/// let format = KeyFormat::new("acme_")?;
/// assert_eq!(format.prefix(), "acme_");
/// assert_eq!(KeyFormat::default().prefix(), "vsp_sk_");
/// # Ok::<(), keygate::error::PrefixError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct KeyFormat {
    prefix: Arc<str>,
}

impl KeyFormat {
    /// The prefix of [`KeyFormat::default`]. A default key has 55 bytes, which SHA-256
    /// hashes as a single block.
    pub const DEFAULT_PREFIX: &'static str = "vsp_sk_";

    /// A credential longer than this, in bytes, is refused without parsing.
    pub const MAX_CREDENTIAL_LEN: usize = 256;

    /// A format with your own prefix: 2 to 24 characters from a-z, 0-9 and `_`, starting with
    /// a letter and ending with `_`.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let valid = (2..=LONGEST_PREFIX).contains(&prefix.len())
            && prefix.bytes().all(known)
            && prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix.ends_with('_');
        if valid { Ok(Self { prefix: prefix.into() }) } else { Err(PrefixError) }
    }

    /// The prefix of every key.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The length of every key, in bytes; 55 with the default prefix.
    pub fn key_len(&self) -> usize {
        self.prefix.len() + DIGITS_LEN
    }

    /// Generates a new key. Anyone who can predict the generator can forge keys.
    ///
    /// ```
    /// use getrandom::SysRng;
    /// use keygate::KeyFormat;
    ///
    /// let key = KeyFormat::default().generate(&mut SysRng)?;
    /// # Ok::<(), getrandom::Error>(())
    /// ```
    pub fn generate<R: TryCryptoRng + ?Sized>(
        &self,
        rng: &mut R,
    ) -> Result<PlaintextKey, R::Error> {
        let mut key = Zeroizing::new(String::with_capacity(self.key_len()));
        key.push_str(&self.prefix);
        let mut bytes = Zeroizing::new([0; 64]);
        while key.len() < self.prefix.len() + SECRET_LEN {
            rng.try_fill_bytes(bytes.as_mut_slice())?;
            let missing = self.prefix.len() + SECRET_LEN - key.len();
            key.extend(bytes.iter().filter_map(uniform_digit).take(missing));
        }
        let checksum = checksum(key.as_bytes());
        key.extend(checksum.map(char::from));
        Ok(PlaintextKey::new(key))
    }

    /// The digest under which a presented credential would be stored, or an error for a
    /// text that cannot be a key of this format. It allocates nothing and looks up nothing.
    pub fn digest(&self, credential: impl AsRef<[u8]>) -> Result<KeyDigest, MalformedKey> {
        let credential = credential.as_ref();
        if self.matches(credential) { Ok(KeyDigest::of(credential)) } else { Err(MalformedKey) }
    }

    /// The part of a key shown to recognise it: the first 12 characters, or prefix + 5 if
    /// the prefix is longer than 7.
    pub(crate) fn display_prefix(&self, key: &PlaintextKey) -> String {
        let len = usize::max(12, self.prefix.len() + 5);
        key.expose_secret().chars().take(len).collect()
    }

    /// Whether a key that is shown by these first characters has this format.
    pub(crate) fn is_of(&self, key_prefix: &str) -> bool {
        let rest = key_prefix.strip_prefix(&*self.prefix);
        rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric()))
    }

    /// Whether a text contains a whole key with any prefix.
    pub(crate) fn any_occurs_in(text: &[u8]) -> bool {
        let in_prefix = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_';
        let ends_in_key = |text: &[u8]| {
            let Some((before, digits)) = text.split_last_chunk::<DIGITS_LEN>() else {
                return false;
            };
            let prefix = before.iter().rev().take(LONGEST_PREFIX).take_while(|b| in_prefix(b));
            let keys = (0..prefix.count()).filter_map(|n| text.get(before.len() - 1 - n..));
            before.ends_with(b"_")
                && keys.skip(1).any(|key| {
                    key.first().is_some_and(u8::is_ascii_lowercase) && is_signed(key, digits)
                })
        };
        (0..=text.len()).filter_map(|end| text.get(..end)).any(ends_in_key)
    }

    fn matches(&self, credential: &[u8]) -> bool {
        let digits = credential.strip_prefix(self.prefix.as_bytes());
        let Some(Ok(digits)) = digits.map(<&[u8; DIGITS_LEN]>::try_from) else {
            return false;
        };
        is_signed(credential, digits)
    }
}

impl Default for KeyFormat {
    fn default() -> Self {
        Self { prefix: Self::DEFAULT_PREFIX.into() }
    }
}

impl fmt::Debug for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFormat({})", self.prefix)
    }
}

/// Whether a credential ends with letters and digits whose checksum is correct.
fn is_signed(credential: &[u8], digits: &[u8; DIGITS_LEN]) -> bool {
    // No early exit, so that it compiles to a few vector instructions.
    if !digits.iter().fold(true, |all, b| all & b.is_ascii_alphanumeric()) {
        return false;
    }
    let (signed, presented) = credential.split_at(credential.len() - CHECKSUM_LEN);
    number(presented) == u64::from(crc32fast::hash(signed))
}

/// The digit for a random byte. Bytes from the last whole multiple of 62 up are rejected,
/// so that every digit is equally likely.
fn uniform_digit(byte: &u8) -> Option<char> {
    const FAIR: u8 = 62 * 4;
    (*byte < FAIR).then(|| digit(u32::from(*byte)).into())
}

fn checksum(signed: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(signed);
    let mut digits = [0; CHECKSUM_LEN];
    for place in digits.iter_mut().rev() {
        *place = digit(rest);
        rest /= 62;
    }
    digits
}

/// The value of a number in base 62.
pub(super) fn number(digits: &[u8]) -> u64 {
    let value = |digit: u8| VALUES.get(usize::from(digit)).copied().unwrap_or_default();
    digits.iter().fold(0, |number, digit| number * 62 + u64::from(value(*digit)))
}

/// The last base-62 digit of a number.
fn digit(number: u32) -> u8 {
    DIGITS.get(number as usize % DIGITS.len()).copied().unwrap_or(b'0')
}

/// The credential cannot be a key: wrong prefix, length, characters or checksum. The error
/// does not say which, and does not contain the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a well-formed API key")]
pub struct MalformedKey;

/// The prefix is not 2 to 24 characters from a-z, 0-9 and `_`, starting with a letter and
/// ending with `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a key prefix has 2 to 24 characters from a-z, 0-9 and _, starting with a letter and ending with _"
)]
pub struct PrefixError;

#[cfg(test)]
mod tests {
    use getrandom::SysRng;
    use proptest::prelude::*;

    use super::*;

    fn key(prefix: &str) -> (KeyFormat, PlaintextKey) {
        let format = KeyFormat::new(prefix).unwrap();
        let key = format.generate(&mut SysRng).unwrap();
        (format, key)
    }

    #[test]
    fn a_default_key_has_the_documented_shape() {
        let (format, key) = key("vsp_sk_");
        let text = key.expose_secret();
        assert_eq!((text.len(), format.key_len()), (55, 55));
        assert!(text.starts_with("vsp_sk_"));
        assert!(text[7..].bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_eq!(format.display_prefix(&key), text[..12]);
    }

    #[test]
    fn the_checksum_is_the_ieee_crc_in_base_62() {
        // CRC-32 of "123456789" is 0xCBF43926 = 3421780262, by its standard check value.
        assert_eq!(&checksum(b"123456789"), b"3jZRME");
        let by_hand = b"3jZRME"
            .iter()
            .fold(0u64, |n, d| n * 62 + DIGITS.iter().position(|x| x == d).unwrap() as u64);
        assert_eq!(by_hand, 0xCBF4_3926);
        assert_eq!(&checksum(b""), b"000000");
    }

    #[test]
    fn the_display_prefix_always_identifies() {
        let (format, key) = key("a_long_prefix_");
        assert_eq!(format.display_prefix(&key).len(), "a_long_prefix_".len() + 5);
        let (format, key) = self::key("a_");
        assert_eq!(format.display_prefix(&key).len(), 12);
    }

    #[test]
    fn every_digit_is_equally_likely() {
        let drawn: Vec<char> = (0..=255).filter_map(|byte| uniform_digit(&byte)).collect();
        for digit in DIGITS {
            let times = drawn.iter().filter(|c| **c == char::from(*digit)).count();
            assert_eq!(times, 4, "{}", char::from(*digit));
        }
        assert_eq!(drawn.len(), 62 * 4);
    }

    #[test]
    fn only_valid_prefixes_are_accepted() {
        for good in ["a_", "vsp_sk_", "a1_", "abcdefghijklmnopqrstuvw_"] {
            assert!(KeyFormat::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "_", "a", "ab", "1a_", "_a_", "A_", "a-_", "é_", "abcdefghijklmnopqrstuvwx_"]
        {
            assert_eq!(KeyFormat::new(bad), Err(PrefixError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_generated_key_parses_under_its_own_format_only(prefix in "[a-z][a-z0-9_]{0,22}_") {
            let (format, key) = key(&prefix);
            let text = key.expose_secret();
            prop_assert_eq!(format.digest(text), Ok(KeyDigest::of(text)));
            let other = KeyFormat::new(&format!("z{}", &prefix[1..])).unwrap();
            prop_assert_eq!(other.digest(text).is_ok(), other == format);
        }

        #[test]
        fn case_06_any_change_to_a_key_is_detected(at in 0usize..55, with in any::<u8>(), cut in 0usize..55) {
            let (format, key) = key("vsp_sk_");
            let mut bytes = key.expose_secret().as_bytes().to_vec();
            prop_assert_eq!(format.digest(&bytes[..cut]), Err(MalformedKey));
            let longer = [&bytes[..], &[with]].concat();
            prop_assert_eq!(format.digest(longer), Err(MalformedKey));
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            prop_assert_eq!(format.digest(bytes), Err(MalformedKey));
        }

        #[test]
        fn no_other_text_is_a_key(text in "\\PC{0,80}|vsp_sk_[0-9A-Za-z]{42}000000") {
            prop_assert_eq!(KeyFormat::default().digest(text), Err(MalformedKey));
        }
    }
}
