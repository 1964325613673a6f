//! Truncation, percent-decoding, and errors with their causes.

use std::error::Error;

/// The text truncated to `max` bytes or fewer, without splitting a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    (0..=max).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Shortens the text to at most `max` bytes.
pub(crate) fn truncate(text: &mut String, max: usize) {
    text.truncate(cut(text, max).len());
}

/// Decodes `%41` to `A`, in place, and returns the decoded length. Invalid escapes are kept.
pub(crate) fn percent_decode(text: &mut [u8]) -> usize {
    let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (mut from, mut to) = (0, 0);
    while let Some(first) = text.get(from).copied() {
        let escaped = match text.get(from + 1..from + 3) {
            Some([high, low]) if first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        let (byte, taken) = escaped.map_or((first, 1), |(high, low)| (high << 4 | low, 3));
        if let Some(place) = text.get_mut(to) {
            *place = byte;
        }
        (from, to) = (from + taken, to + 1);
    }
    to
}

/// An error with all its causes, for operators: `the store is unavailable: db error: …`.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Makes `Debug` print the text with all causes, as `main` does when it returns the error.
macro_rules! debug_with_causes {
    ($error:ty) => {
        impl ::std::fmt::Debug for $error {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&$crate::text::with_causes(self))
            }
        }
    };
}
pub(crate) use debug_with_causes;

#[cfg(test)]
mod tests {
    #[test]
    fn a_character_is_never_split() {
        for (max, kept) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (9, "aé")] {
            let mut text = String::from("aé");
            super::truncate(&mut text, max);
            assert_eq!(text, kept);
        }
    }

    #[test]
    fn escapes_are_decoded_once_and_other_text_is_unchanged() {
        for (text, decoded) in [
            ("", ""),
            ("a%41%6a%6Az", "aAjjz"),
            ("%2541", "%41"),
            ("%", "%"),
            ("%4", "%4"),
            ("%4%41", "%4A"),
            ("%+1%zz%41", "%+1%zzA"),
        ] {
            let mut bytes = text.as_bytes().to_vec();
            let len = super::percent_decode(&mut bytes);
            assert_eq!(&bytes[..len], decoded.as_bytes(), "{text}");
        }
    }
}
