//! Texts of keys, and prefixes, against a second reading of the documented format:
//! `cargo +nightly fuzz run key_parsing -- -max_total_time=60 -dict=fuzz/dictionaries/key_parsing.dict`.
//!
//! A text is taken exactly where the reference takes it, and its digest is that of its
//! very bytes, so that no two texts are one key. Since chance finds no checksum, the
//! input is also made into a key, which must be taken, and then damaged at one place.
#![no_main]

use std::io::{self, Read};

use keygate::KeyFormat;
use keygate::rand_core::{TryCryptoRng, TryRng, utils};
use keygate::store::KeyDigest;
use libfuzzer_sys::fuzz_target;

const SECRET: usize = 42;

fuzz_target!(|input: &[u8]| {
    let Some((how, rest)) = input.split_first() else { return };
    match how % 4 {
        0 => read(&KeyFormat::default(), rest),
        1 => made_and_damaged(rest),
        2 => prefix(rest),
        _ => drawn(rest),
    }
});

fn read(format: &KeyFormat, text: &[u8]) {
    let taken = format.digest(text);
    assert_eq!(taken.is_ok(), is_key(format.prefix(), text));
    if let Ok(digest) = taken {
        assert_eq!(digest, KeyDigest::of(text));
        assert_eq!(text.len(), format.key_len());
        assert!(text.is_ascii() && text.len() <= KeyFormat::MAX_CREDENTIAL_LEN);
    }
}

fn made_and_damaged(input: &[u8]) {
    let format = KeyFormat::default();
    let secret: String =
        input.iter().cycle().take(SECRET).map(|b| digit(u32::from(*b) % 62)).collect();
    if secret.len() < SECRET {
        return;
    }
    let signed = format!("{}{secret}", format.prefix());
    let mut key = format!("{signed}{}", checksum(signed.as_bytes())).into_bytes();
    assert_eq!(format.digest(&key), Ok(KeyDigest::of(&key)));
    // A burst within four bytes is noticed by any CRC-32.
    if let [place, with, ..] = input {
        let place = usize::from(*place) % key.len();
        let before = std::mem::replace(&mut key[place], *with);
        assert_eq!(format.digest(&key).is_ok(), before == *with);
        read(&format, &key);
    }
}

fn prefix(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (prefix, key) = text.split_once('\n').unwrap_or((text, ""));
    match KeyFormat::new(prefix) {
        Ok(format) => {
            assert!(is_prefix(prefix));
            assert_eq!(format.prefix(), prefix);
            read(&format, key.as_bytes());
            let secret: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
            if secret.len() >= SECRET {
                let signed = format!("{prefix}{}", &secret[..SECRET]);
                read(&format, format!("{signed}{}", checksum(signed.as_bytes())).as_bytes());
            }
        }
        Err(_) => assert!(!is_prefix(prefix)),
    }
}

/// Random bytes that come to an end.
struct Given<'a>(&'a [u8]);

impl TryRng for Given<'_> {
    type Error = io::Error;

    fn try_next_u32(&mut self) -> io::Result<u32> {
        utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> io::Result<u64> {
        utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(bytes)
    }
}

impl TryCryptoRng for Given<'_> {}

/// A drawn key is the first 42 bytes below 248, each the digit of its remainder.
fn drawn(input: &[u8]) {
    let format = KeyFormat::default();
    let Ok(key) = format.generate(&mut Given(input)) else { return };
    let fair = input.iter().filter(|b| **b < 248).take(SECRET);
    let secret: String = fair.map(|b| digit(u32::from(*b) % 62)).collect();
    let signed = format!("{}{secret}", format.prefix());
    assert_eq!(key.expose_secret(), format!("{signed}{}", checksum(signed.as_bytes())));
    assert_eq!(format.digest(key.expose_secret()), Ok(key.digest()));
    assert_eq!(format!("{key} {key:?}"), "[REDACTED] [REDACTED]");
}

fn is_prefix(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.next_back() == Some('_')
        && chars.all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'))
        && text.len() <= 24
}

fn is_key(prefix: &str, text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let Some(rest) = text.strip_prefix(prefix) else { return false };
    rest.len() == SECRET + 6
        && rest.chars().all(|c| c.is_ascii_alphanumeric())
        && text.ends_with(&checksum(&text.as_bytes()[..prefix.len() + SECRET]))
}

fn digit(value: u32) -> char {
    match value {
        0..=9 => char::from(b'0' + value as u8),
        10..=35 => char::from(b'A' + value as u8 - 10),
        _ => char::from(b'a' + value as u8 - 36),
    }
}

/// CRC-32 (IEEE 802.3) bit by bit, in base 62.
fn checksum(text: &[u8]) -> String {
    let mut crc = u32::MAX;
    for byte in text {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    (0..6).rev().map(|place| digit(crc / 62_u32.pow(place) % 62)).collect()
}
