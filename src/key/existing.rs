//! Formats of keys that were issued before keygate, and how their digests were made.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::{self, Alphabet};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};
use smallvec::SmallVec;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::key::digest::KeyDigest;
use crate::key::format::KeyFormat;
use crate::key::secret::PlaintextKey;
use crate::org::OrgId;

/// The beginning of what is hashed to look up a key by another digest than the SHA-256 of
/// the whole key. No credential contains U+0000, so no credential has such a digest.
const DOMAIN: &[u8] = b"\0keygate existing key\0";
const OF_DIGEST: &[u8] = &[1];
const OF_REFERENCE: &[u8] = &[2];
const OF_ID: &[u8] = &[3];

/// In a text that is shown, so many characters behind the prefix are taken for a key.
const MOST_OF_A_KEY: usize = 24;
/// So many where there is no prefix. Not more than a key of keygate has, since a path is
/// searched only so far behind the part that is shown.
const MOST_WITHOUT_PREFIX: usize = 64;

/// The format of keys that were issued before keygate: a prefix, and how long the rest is.
/// The characters are visible ASCII, without space and comma.
///
/// A presented credential of such a format is looked up by the SHA-256 of the whole text,
/// like every key. If your digests were made in another way, say so with
/// [`digests`](Self::digests).
///
/// The prefix may be empty. Paths and names are then searched for any word as long as a key,
/// so a name in that form is refused, and the audit log shows `[REDACTED]` in its place.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use keygate::existing::{DigestKind, ExistingFormat};
/// use keygate::{KeyManager, MemoryStore};
///
/// let old = ExistingFormat::new("acme_live_", 32..=32)?
///     .digests(DigestKind::hmac_sha256("the old product's secret"));
/// let keys = KeyManager::builder(MemoryStore::new()).existing(old).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ExistingFormat {
    prefix: Box<str>,
    rest: RangeInclusive<usize>,
    kinds: Vec<DigestKind>,
}

impl ExistingFormat {
    /// The longest prefix, in bytes.
    pub const MAX_PREFIX_LEN: usize = 40;
    /// What follows the prefix has at least so many bytes: a key is not guessed only if it
    /// is random and long enough.
    pub const MIN_LEN: usize = 16;

    /// A prefix, and the length of what follows it, in bytes. A key has at most
    /// [`KeyFormat::MAX_CREDENTIAL_LEN`] bytes.
    pub fn new(prefix: &str, lengths: RangeInclusive<usize>) -> Result<Self, ExistingFormatError> {
        if prefix.len() > Self::MAX_PREFIX_LEN || !prefix.bytes().all(is_token) {
            return Err(ExistingFormatError::Prefix);
        }
        let longest = prefix.len().saturating_add(*lengths.end());
        let is_valid =
            *lengths.start() >= Self::MIN_LEN && longest <= KeyFormat::MAX_CREDENTIAL_LEN;
        if lengths.is_empty() || !is_valid {
            return Err(ExistingFormatError::Lengths);
        }
        Ok(Self { prefix: prefix.into(), rest: lengths, kinds: Vec::new() })
    }

    /// Adds a way in which digests of such keys were made. May be called more than once;
    /// each way other than SHA-256 of the whole key costs another look-up until the key has
    /// been used once.
    pub fn digests(mut self, kind: DigestKind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Whether a credential has this format.
    pub(crate) fn fits(&self, credential: &[u8]) -> bool {
        let Some(rest) = credential.strip_prefix(self.prefix.as_bytes()) else { return false };
        self.rest.contains(&rest.len())
            && credential.iter().all(|b| is_token(*b))
            && self.separators().is_none_or(|mut all| all.any(|one| rest.contains(&one)))
    }

    /// Whether it may be one, mistyped perhaps.
    #[cfg(feature = "tower")]
    pub(crate) fn begins(&self, credential: &[u8]) -> bool {
        match self.prefix.as_bytes() {
            [] => self.fits(credential),
            prefix => credential.starts_with(prefix),
        }
    }

    /// What occurs in every key, if all digests are those of a part behind it: one of these.
    fn separators(&self) -> Option<impl Iterator<Item = u8>> {
        let separator = |kind: &DigestKind| match kind.part {
            Part::Behind(separator) => Some(separator),
            Part::Whole | Part::BehindPrefix => None,
        };
        let all_have_one =
            !self.kinds.is_empty() && self.kinds.iter().all(|k| separator(k).is_some());
        all_have_one.then(|| self.kinds.iter().filter_map(separator))
    }

    /// Whether a key of keygate's own format may have this format, too.
    pub(crate) fn overlaps(&self, own: &KeyFormat) -> bool {
        let (prefix, others) = (&*self.prefix, own.prefix());
        let begins = match prefix.strip_prefix(others) {
            Some(further) => further.bytes().all(|b| b.is_ascii_alphanumeric()),
            None => others.starts_with(prefix),
        };
        let rest = own.key_len().checked_sub(prefix.len());
        let further = others.get(prefix.len()..).unwrap_or_default().as_bytes();
        let may_occur =
            |separator: u8| separator.is_ascii_alphanumeric() || further.contains(&separator);
        begins
            && rest.is_some_and(|rest| self.rest.contains(&rest))
            && self.separators().is_none_or(|mut all| all.any(may_occur))
    }

    pub(crate) fn overlap(&self, own: &KeyFormat) -> ExistingFormatError {
        ExistingFormatError::Overlap { prefix: self.prefix.clone(), own: own.prefix().into() }
    }

    pub(crate) fn check(&self) -> Result<(), ExistingFormatError> {
        let is_separator = |kind: &DigestKind| match kind.part {
            Part::Behind(separator) => is_token(separator),
            Part::Whole | Part::BehindPrefix => true,
        };
        if self.kinds.iter().all(is_separator) {
            Ok(())
        } else {
            Err(ExistingFormatError::Separator)
        }
    }

    /// The digests, other than that of the whole, that a key with this text may be stored
    /// under.
    pub(crate) fn further_digests<'a>(
        &'a self,
        credential: &'a [u8],
    ) -> impl Iterator<Item = KeyDigest> + 'a {
        self.kinds.iter().filter_map(move |kind| kind.derived(credential, self.prefix.len()))
    }

    /// The length of the shortest text that contains what is taken for a key.
    pub(crate) fn shortest_leak(&self) -> usize {
        self.prefix.len() + self.large_part()
    }

    fn large_part(&self) -> usize {
        match &*self.prefix {
            "" if self.separators().is_none() => (*self.rest.start()).min(MOST_WITHOUT_PREFIX),
            _ => (self.rest.start() / 2).min(MOST_OF_A_KEY),
        }
    }

    /// Whether a text contains such a key, or a large part of one. Each byte is read a few
    /// times at most.
    pub(crate) fn occurs_in(&self, text: &[u8]) -> bool {
        let mut words = text.split(|b| !is_token(*b)).filter_map(|word| str::from_utf8(word).ok());
        words.any(|word| {
            let behind = |found: &str| word.find(found).map(|at| word.len() - at - found.len());
            let enough = |len: Option<usize>| len.is_some_and(|len| len >= self.large_part());
            match (&*self.prefix, self.separators()) {
                ("", Some(mut all)) => {
                    all.any(|one| enough(behind(char::from(one).encode_utf8(&mut [0; 4]))))
                }
                // The first place leaves the most behind it.
                (prefix, _) => enough(behind(prefix)),
            }
        })
    }
}

/// Visible ASCII without comma.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b','
}

/// Why a format cannot be that of existing keys.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExistingFormatError {
    /// The prefix is too long or has other characters.
    #[error("the prefix of existing keys is at most 40 of visible ASCII without space and comma")]
    Prefix,
    /// The lengths are not valid.
    #[error("existing keys have 16 bytes or more behind their prefix, and at most 256 in all")]
    Lengths,
    /// The separator cannot occur in a key.
    #[error("the separator in existing keys is visible ASCII other than space and comma")]
    Separator,
    /// A key of one of keygate's formats could have it, too.
    #[error(
        "existing keys with the prefix `{prefix}` may look like keys with keygate's prefix \
         `{own}`: choose another prefix for new keys"
    )]
    Overlap {
        /// The prefix of the existing keys.
        prefix: Box<str>,
        /// The prefix of keygate's format.
        own: Box<str>,
    },
}

/// How digests of existing keys were made: a hash function, applied to the whole key unless
/// [`behind`](Self::behind) or [`behind_prefix`](Self::behind_prefix) says otherwise.
///
/// It reads the digests that you have stored, as hex, base64, base64url or bytes:
///
/// ```
/// use keygate::existing::DigestKind;
///
/// let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
/// let digest = DigestKind::sha256().read(hex)?;
///
/// // Laravel Sanctum has `id|secret`, and stores the SHA-256 of the secret.
/// let digest = DigestKind::sha256().behind('|').read(hex)?.after("12|");
/// # Ok::<(), keygate::error::ExistingDigestError>(())
/// ```
///
/// For a password hash (bcrypt, argon2, PBKDF2), which has a salt for each key, implement
/// [`ExistingKeys`](crate::existing::ExistingKeys).
#[derive(Clone)]
pub struct DigestKind {
    function: Function,
    part: Part,
}

#[derive(Clone)]
enum Function {
    Sha256,
    Sha512,
    Hmac(Secret),
    Peppered { before: Secret, behind: Secret },
}

/// The host's, wiped when dropped.
type Secret = Arc<Zeroizing<Vec<u8>>>;

fn secret(bytes: &[u8]) -> Secret {
    Arc::new(Zeroizing::new(bytes.to_vec()))
}

#[derive(Clone, Copy)]
enum Part {
    Whole,
    BehindPrefix,
    Behind(u8),
}

impl DigestKind {
    fn new(function: Function) -> Self {
        Self { function, part: Part::Whole }
    }

    /// SHA-256. With it, a key costs one look-up from the first request on.
    pub fn sha256() -> Self {
        Self::new(Function::Sha256)
    }

    /// SHA-512.
    pub fn sha512() -> Self {
        Self::new(Function::Sha512)
    }

    /// HMAC-SHA256 with this secret.
    pub fn hmac_sha256(key: impl AsRef<[u8]>) -> Self {
        Self::new(Function::Hmac(secret(key.as_ref())))
    }

    /// SHA-256 of a fixed text (a pepper) and the key, without anything between them.
    pub fn pepper_before(pepper: impl AsRef<[u8]>) -> Self {
        let before = secret(pepper.as_ref());
        Self::new(Function::Peppered { before, behind: Secret::default() })
    }

    /// SHA-256 of the key and a fixed text (a pepper), without anything between them.
    pub fn pepper_behind(pepper: impl AsRef<[u8]>) -> Self {
        let behind = secret(pepper.as_ref());
        Self::new(Function::Peppered { before: Secret::default(), behind })
    }

    /// Of the part behind the format's prefix only.
    pub fn behind_prefix(self) -> Self {
        Self { part: Part::BehindPrefix, ..self }
    }

    /// Of the part behind the first separator that follows the format's prefix only, as in
    /// `id|secret` or `prefix_short_long`.
    pub fn behind(self, separator: char) -> Self {
        // What is not ASCII is refused as a separator when the format is declared.
        Self { part: Part::Behind(u8::try_from(separator).unwrap_or_default()), ..self }
    }

    /// A stored digest in hex, base64 or base64url, with or without padding.
    pub fn read(&self, stored: &str) -> Result<ExistingDigest, ExistingDigestError> {
        let len = self.len();
        let bytes = if stored.len() == len * 2 {
            hex::decode(stored).ok()
        } else {
            [&alphabet::STANDARD, &alphabet::URL_SAFE].into_iter().find_map(|a| base64(a, stored))
        };
        self.read_bytes(&bytes.ok_or(ExistingDigestError::Text { bytes: len })?)
    }

    /// A stored digest in bytes: 64 for SHA-512, 32 otherwise.
    pub fn read_bytes(&self, stored: &[u8]) -> Result<ExistingDigest, ExistingDigestError> {
        let bytes = self.len();
        if stored.len() != bytes || stored.iter().all(|b| *b == 0) {
            return Err(ExistingDigestError::Length { bytes });
        }
        Ok(ExistingDigest(match (&self.function, self.part) {
            (Function::Sha256, Part::Whole) => Stored::Plain(
                KeyDigest::from_slice(stored).map_err(|_| ExistingDigestError::Length { bytes })?,
            ),
            (_, part) => Stored::Other {
                bytes: SmallVec::from_slice(stored),
                head: None,
                is_of_part: !matches!(part, Part::Whole),
            },
        }))
    }

    fn len(&self) -> usize {
        if matches!(self.function, Function::Sha512) { 64 } else { 32 }
    }

    /// The digest that a key with this text is stored under, unless it is the plain one.
    fn derived(&self, credential: &[u8], prefix: usize) -> Option<KeyDigest> {
        let begin = match self.part {
            Part::Whole => 0,
            Part::BehindPrefix => prefix,
            Part::Behind(separator) => {
                let rest = credential.get(prefix..)?;
                prefix + rest.iter().position(|b| *b == separator)? + 1
            }
        };
        let (head, part) = credential.split_at_checked(begin)?;
        Some(match &self.function {
            Function::Sha256 if begin == 0 && matches!(self.part, Part::Whole) => return None,
            Function::Sha256 => other(head, &Sha256::digest(part)),
            Function::Sha512 => other(head, &Sha512::digest(part)),
            Function::Hmac(key) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
                mac.update(part);
                other(head, &mac.finalize().into_bytes())
            }
            Function::Peppered { before, behind } => {
                let parts = [before.as_slice(), part, behind.as_slice()];
                other(head, KeyDigest::of_parts(parts).as_bytes())
            }
        })
    }
}

/// Shows neither an HMAC key nor a pepper.
impl fmt::Debug for DigestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.function {
            Function::Sha256 => "DigestKind(SHA-256)",
            Function::Sha512 => "DigestKind(SHA-512)",
            Function::Hmac(_) => "DigestKind(HMAC-SHA256)",
            Function::Peppered { .. } => "DigestKind(SHA-256 with pepper)",
        })
    }
}

fn base64(alphabet: &Alphabet, text: &str) -> Option<Vec<u8>> {
    let padding =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, padding).decode(text).ok()
}

/// What is stored for a key with this digest of its part behind `head`.
fn other(head: &[u8], digest: &[u8]) -> KeyDigest {
    derived(OF_DIGEST, [head, digest])
}

fn derived(purpose: &[u8], [first, second]: [&[u8]; 2]) -> KeyDigest {
    // The length tells where the first one ends.
    let len = (first.len() as u64).to_be_bytes();
    KeyDigest::of_parts([DOMAIN, purpose, &len, first, second])
}

/// A digest that you have stored for an existing key, made by [`DigestKind::read`]; or the
/// name of a key that only your code can check.
///
/// The SHA-256 of a whole key is stored as it is. Any other digest is hashed together with a
/// fixed text, and the result is stored. Neither can be presented in place of the key.
#[derive(Clone, PartialEq, Eq)]
pub struct ExistingDigest(Stored);

#[derive(Clone, PartialEq, Eq)]
enum Stored {
    Plain(KeyDigest),
    Other { bytes: SmallVec<[u8; 32]>, head: Option<Box<str>>, is_of_part: bool },
    Asked(Box<str>),
}

impl ExistingDigest {
    /// No digest: [`ExistingKeys`](crate::existing::ExistingKeys) is asked for the key, and
    /// answers with this reference, such as the number of its row.
    pub fn asked(reference: impl Into<Box<str>>) -> Self {
        Self(Stored::Asked(reference.into()))
    }

    /// Sets what precedes the hashed part, for a digest of a part of the key: `12|` or
    /// `acme_short_`. A key is found only with exactly that before it.
    pub fn after(self, head: impl Into<Box<str>>) -> Self {
        Self(match self.0 {
            Stored::Other { bytes, is_of_part, .. } => {
                Stored::Other { bytes, is_of_part, head: Some(head.into()) }
            }
            other => other,
        })
    }

    /// What is stored for a key of this organisation.
    pub(crate) fn stored(&self, org: &OrgId) -> Result<KeyDigest, ExistingDigestError> {
        match &self.0 {
            Stored::Plain(digest) => Ok(*digest),
            Stored::Other { head, is_of_part, .. } if head.is_some() != *is_of_part => {
                Err(ExistingDigestError::Head)
            }
            Stored::Other { bytes, head, .. } => {
                Ok(other(head.as_deref().unwrap_or_default().as_bytes(), bytes))
            }
            Stored::Asked(reference) => Ok(of_reference(org, reference)),
        }
    }
}

/// What is stored for a key of this organisation that only the host can check.
pub(crate) fn of_reference(org: &OrgId, reference: &str) -> KeyDigest {
    derived(OF_REFERENCE, [org.as_str().as_bytes(), reference.as_bytes()])
}

/// What the id of a key that is adopted with this digest is derived from.
pub(crate) fn of_id(digest: &KeyDigest) -> KeyDigest {
    derived(OF_ID, [digest.as_bytes(), &[]])
}

/// Shows nothing of a digest, which may be the hash of a weak key.
impl fmt::Debug for ExistingDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExistingDigest(…)")
    }
}

/// A stored digest cannot be read. The error does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExistingDigestError {
    /// The text is neither hex nor base64.
    #[error("a digest of {bytes} bytes is written as {} hex digits, or in base64", bytes * 2)]
    Text {
        /// The length of a digest of this kind.
        bytes: usize,
    },
    /// The length is that of another kind, or all bytes are zero.
    #[error("a digest of this kind has {bytes} bytes, not all of them zero")]
    Length {
        /// The length of a digest of this kind.
        bytes: usize,
    },
    /// The text before the hashed part is missing, or the whole key was hashed.
    #[error("what precedes the hashed part is needed for the digest of a part, and only then")]
    Head,
}

/// What a presented credential is looked up by.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// The SHA-256 of the whole.
    pub(crate) digest: KeyDigest,
    pub(crate) of: Of,
}

/// Whose format a credential has.
#[derive(Debug)]
pub(crate) enum Of {
    /// The service's own, which shows the environment: its position in the configuration.
    Own(usize),
    /// One from before. Only the record tells the environment.
    Existing(Box<Further>),
}

/// What to try if no key has the digest of the whole.
#[derive(Debug)]
pub(crate) struct Further {
    /// The only environment that is admitted, if there is one.
    pub(crate) only: Option<Arc<str>>,
    pub(crate) digests: Vec<KeyDigest>,
    /// The credential, if the host is to be asked.
    pub(crate) credential: Option<PlaintextKey>,
}

impl Further {
    pub(crate) fn is_empty(&self) -> bool {
        self.digests.is_empty() && self.credential.is_none()
    }
}

/// All formats of existing keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExistingFormats {
    all: Arc<[ExistingFormat]>,
    /// Whether the host is asked for keys that are not found.
    are_asked: bool,
    pub(crate) shortest_leak: Option<usize>,
}

impl ExistingFormats {
    pub(crate) fn new(all: Vec<ExistingFormat>, are_asked: bool) -> Self {
        let shortest_leak = all.iter().map(ExistingFormat::shortest_leak).min();
        Self { all: all.into(), are_asked, shortest_leak }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ExistingFormat> {
        self.all.iter()
    }

    /// `None` for a credential of no such format.
    pub(crate) fn further(
        &self,
        credential: &[u8],
        only: Option<Arc<str>>,
    ) -> Option<Box<Further>> {
        let mut fit = self.iter().filter(|one| one.fits(credential)).peekable();
        fit.peek()?;
        let digests: Vec<_> = fit.flat_map(|one| one.further_digests(credential)).collect();
        let held = self.are_asked.then(|| str::from_utf8(credential).ok()).flatten();
        let credential_held = held.map(|text| PlaintextKey::new(Zeroizing::new(text.to_owned())));
        Some(Box::new(Further { only, digests, credential: credential_held }))
    }
}
