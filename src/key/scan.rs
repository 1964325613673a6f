//! Finds keys in texts that will be shown, in one pass.

use crate::key::format::{CHECKSUM_LEN, DIGITS_LEN, KeyFormat, SECRET_LEN, number};

/// With fewer letters and digits after a prefix, it is taken for a word.
const GOOD_PART: usize = 24;

/// The contribution of a byte to a CRC-32 (IEEE) of a text that ends with it.
const ENTERS: [u32; 256] = {
    let mut table = [0; 256];
    let (mut rest, mut byte) = (table.as_mut_slice(), 0);
    while let [entry, further @ ..] = rest {
        *entry = after_zeros(byte, 1);
        (rest, byte) = (further, byte + 1);
    }
    table
};
/// Its contribution after a whole secret has followed.
const LEAVES: [u32; 256] = {
    let mut table = ENTERS;
    let mut rest = table.as_mut_slice();
    while let [entry, further @ ..] = rest {
        *entry = after_zeros(*entry, SECRET_LEN);
        rest = further;
    }
    table
};

/// The state of a CRC-32 after this many zero bytes.
const fn after_zeros(mut state: u32, bytes: usize) -> u32 {
    let mut bits = bytes * 8;
    while bits > 0 {
        state = (state >> 1) ^ (0xEDB8_8320 * (state & 1));
        bits -= 1;
    }
    state
}

impl KeyFormat {
    /// Whether a text contains a key of this format, or what was meant to be one: the
    /// prefix with a large part of a secret, or a whole secret with its checksum but
    /// without the prefix.
    ///
    /// Each byte is read once, and nothing is allocated.
    pub(crate) fn occurs_in(&self, text: &[u8]) -> bool {
        // A CRC is linear: the CRC of prefix and secret combines that of the prefix
        // followed by zeros with the contributions of the secret's bytes.
        let mut of_prefix = crc32fast::Hasher::new();
        of_prefix.update(self.prefix().as_bytes());
        of_prefix.update(&[0; SECRET_LEN]);
        let of_prefix = of_prefix.finalize();

        // The length of the run of letters and digits, and the contribution of the last
        // `SECRET_LEN` of them before the checksum.
        let (mut run, mut added) = (0, 0);
        for (at, byte) in text.iter().enumerate() {
            #[cfg(test)]
            steps::count();
            if !byte.is_ascii_alphanumeric() {
                (run, added) = (0, 0);
                continue;
            }
            run += 1;
            // A prefix does not end in a letter or digit, so it can only end where the run
            // begins.
            if run == GOOD_PART && prefixed(text, at + 1 - run, self.prefix()) {
                return true;
            }
            if run > CHECKSUM_LEN {
                added =
                    (added >> 8) ^ of(&ENTERS, added as u8) ^ back(text, at, CHECKSUM_LEN, &ENTERS);
            }
            if run > DIGITS_LEN {
                added ^= back(text, at, DIGITS_LEN, &LEAVES);
            }
            if run >= DIGITS_LEN {
                let checksum = text.get(at + 1 - CHECKSUM_LEN..=at).map(number);
                if checksum == Some(u64::from(of_prefix ^ added)) {
                    return true;
                }
            }
        }
        false
    }
}

fn prefixed(text: &[u8], end: usize, prefix: &str) -> bool {
    text.get(..end).is_some_and(|before| before.ends_with(prefix.as_bytes()))
}

/// The table's entry for the byte this far back.
fn back(text: &[u8], at: usize, distance: usize, table: &[u32; 256]) -> u32 {
    let byte = at.checked_sub(distance).and_then(|at| text.get(at));
    byte.map_or(0, |byte| of(table, *byte))
}

fn of(table: &[u32; 256], byte: u8) -> u32 {
    table.get(usize::from(byte)).copied().unwrap_or_default()
}

/// Counts the bytes that scans read.
#[cfg(test)]
pub(crate) mod steps {
    use std::cell::Cell;

    thread_local!(static STEPS: Cell<usize> = const { Cell::new(0) });

    pub(crate) fn count() {
        STEPS.set(STEPS.get() + 1);
    }

    /// The number of steps that this thread took for the work.
    pub(crate) fn of<T>(work: impl FnOnce() -> T) -> (T, usize) {
        let before = STEPS.get();
        let done = work();
        (done, STEPS.get() - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use getrandom::SysRng;
    use proptest::prelude::*;

    /// A naive version: checks every position for a prefix or a whole secret.
    fn occurs(format: &KeyFormat, text: &[u8]) -> bool {
        let prefix = format.prefix().as_bytes();
        (0..text.len()).any(|start| {
            let rest = &text[start..];
            let behind = rest.strip_prefix(prefix).unwrap_or_default();
            let good = behind.iter().take_while(|b| b.is_ascii_alphanumeric()).count();
            let secret = rest.get(..DIGITS_LEN);
            good >= GOOD_PART || secret.is_some_and(|s| format.digest([prefix, s].concat()).is_ok())
        })
    }

    /// Texts that contain keys, secrets and parts of both.
    fn texts() -> impl Strategy<Value = (KeyFormat, Vec<u8>)> {
        let part = prop_oneof![
            "[0-9A-Za-z]{0,60}",
            "[ -~]{0,9}",
            Just("\u{0}PREFIX".to_owned()),
            (0usize..60, 0usize..60).prop_map(|(from, to)| format!("\u{0}KEY {from} {to}")),
        ];
        ("[a-z][a-z0-9_]{0,22}_", proptest::collection::vec(part, 0..6)).prop_map(
            |(prefix, parts)| {
                let format = KeyFormat::new(&prefix).unwrap();
                let key = format.generate(&mut SysRng).unwrap();
                let key = key.expose_secret();
                let parts = parts.into_iter().map(|part| match part.strip_prefix("\u{0}KEY ") {
                    Some(range) => {
                        let (from, to) = range.split_once(' ').unwrap();
                        let at = |text: &str| text.parse::<usize>().unwrap().min(key.len());
                        key.get(at(from)..at(to)).unwrap_or(key).to_owned()
                    }
                    None => part.replace("\u{0}PREFIX", &prefix),
                });
                let text: String = parts.collect();
                (format, text.into_bytes())
            },
        )
    }

    proptest! {
        #[test]
        fn one_pass_finds_the_same_as_a_check_of_every_position((format, text) in texts()) {
            let (found, steps) = steps::of(|| format.occurs_in(&text));
            prop_assert_eq!(found, occurs(&format, &text), "{}", String::from_utf8_lossy(&text));
            prop_assert!(steps <= text.len());
        }

        #[test]
        fn a_secret_is_found_at_any_position(before in "[0-9A-Za-z]{0,99}", after in "[0-9A-Za-z]{0,99}") {
            let format = KeyFormat::default();
            let key = format.generate(&mut SysRng).unwrap();
            let text = format!("{before}{}{after}", &key.expose_secret()[7..]);
            prop_assert!(format.occurs_in(text.as_bytes()));
        }
    }
}
