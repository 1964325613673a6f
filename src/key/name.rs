//! The name that people know a key by.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// A key's name: 1 to 100 characters (Unicode scalar values) in any script,
/// white space at the ends dropped, otherwise kept exactly. Names need not be
/// unique.
///
/// Refused are characters that nobody can see and that make a name read as
/// another one: control characters, line separators, bidirectional controls
/// and zero-width characters. The joiners U+200C and U+200D pass only where
/// they are part of a visible letter or picture: between letters of scripts that
/// are written with them, and within an emoji sequence.
///
/// ```
/// use keygate::{KeyName, KeyNameError};
///
/// assert_eq!(KeyName::new("  Déploiement 👩‍💻 ")?.as_str(), "Déploiement 👩‍💻");
/// assert_eq!(KeyName::new("CI\u{202e}"), Err(KeyNameError::ForbiddenCharacter('\u{202e}')));
/// # Ok::<(), KeyNameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyName(Arc<str>);

impl KeyName {
    /// The longest name, in characters.
    pub const MAX_CHARS: usize = 100;

    /// Takes a name as a person typed it.
    pub fn new(name: impl AsRef<str>) -> Result<Self, KeyNameError> {
        let name = name.as_ref().trim();
        if name.is_empty() {
            return Err(KeyNameError::Empty);
        }
        if name.chars().nth(Self::MAX_CHARS).is_some() {
            return Err(KeyNameError::TooLong);
        }
        match first_forbidden(name) {
            Some(c) => Err(KeyNameError::ForbiddenCharacter(c)),
            None => Ok(Self(name.into())),
        }
    }

    /// The name, trimmed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn first_forbidden(name: &str) -> Option<char> {
    // The last character that can be seen by itself.
    let mut base = None;
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        if !is_hidden(c) {
            base = Some(c);
        } else if !is_part_of_a_sign(c, base, chars.peek().copied()) {
            return Some(c);
        }
    }
    None
}

/// Whether a character that cannot be seen changes how its neighbours look.
fn is_part_of_a_sign(c: char, base: Option<char>, after: Option<char>) -> bool {
    let Some(base) = base else { return false };
    match c {
        '\u{200C}' | '\u{200D}' => joins(base) && after.is_some_and(joins),
        '\u{FE00}'..='\u{FE0F}' => {
            let keycap = matches!(base, '0'..='9' | '#' | '*') && after == Some('\u{20E3}');
            is_picture(base) || is_ideograph(base) || keycap
        }
        '\u{E0100}'..='\u{E01EF}' => is_ideograph(base),
        '\u{180B}'..='\u{180D}' | '\u{180F}' => matches!(base, '\u{1820}'..='\u{18AA}'),
        // The letters inside the flags of England, Scotland and Wales.
        '\u{E0020}'..='\u{E007F}' => base == '\u{1F3F4}',
        _ => false,
    }
}

/// Characters without a visible form of their own (Unicode 16: `Cc`, `Zl`, `Zp`,
/// `Bidi_Control`, and the format and filler characters of zero width).
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00AD}' | '\u{034F}' | '\u{061C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}'
            | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{2800}' | '\u{3164}' | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}' | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
}

/// Whether a joiner beside this character changes how it looks: scripts from
/// Arabic to Mongolian, and pictures.
fn joins(c: char) -> bool {
    is_picture(c)
        || matches!(c,
            '\u{0600}'..='\u{10FF}' | '\u{1700}'..='\u{18AF}' | '\u{1900}'..='\u{1CFF}'
            | '\u{A800}'..='\u{ABFF}' | '\u{FB50}'..='\u{FDFF}' | '\u{FE70}'..='\u{FEFC}'
            | '\u{10A00}'..='\u{11FFF}' | '\u{1E900}'..='\u{1E95F}')
}

fn is_picture(c: char) -> bool {
    matches!(c,
        '\u{A9}' | '\u{AE}' | '\u{203C}' | '\u{2049}' | '\u{2122}' | '\u{2139}'
        | '\u{2190}'..='\u{27FF}' | '\u{2900}'..='\u{2BFF}' | '\u{3030}' | '\u{303D}' | '\u{3297}'
        | '\u{3299}' | '\u{1F000}'..='\u{1FAFF}')
}

fn is_ideograph(c: char) -> bool {
    matches!(c,
        '\u{3000}'..='\u{303F}' | '\u{3400}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}'
        | '\u{20000}'..='\u{3FFFF}')
}

impl FromStr for KeyName {
    type Err = KeyNameError;

    fn from_str(name: &str) -> Result<Self, KeyNameError> {
        Self::new(name)
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyName({:?})", self.as_str())
    }
}

/// Why a text is no name for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyNameError {
    /// Nothing is left after trimming.
    #[error("must not be empty")]
    Empty,
    /// There are more than [`KeyName::MAX_CHARS`] characters.
    #[error("must have at most {} characters", KeyName::MAX_CHARS)]
    TooLong,
    /// A control, bidirectional or zero-width character.
    #[error("must not contain the invisible character U+{:04X}", u32::from(*.0))]
    ForbiddenCharacter(char),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_23_names_in_any_script_are_kept_exactly() {
        for name in [
            "deploy",
            "Clé n°1",
            "Ключ",
            "مفتاح",
            "می‌خواهم",
            "密钥",
            "鍵",
            "क्‍ष",
            "👩‍💻",
            "🏳️‍🌈",
            "❤️‍🔥",
            "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
            "a  b",
            "<img src=x onerror=alert(1)>",
            "葛󠄀城",
            "👍🏽",
            "e\u{301}",
            "1️⃣",
        ] {
            assert_eq!(KeyName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn case_23_characters_that_deceive_are_refused() {
        for c in [
            '\0',
            '\n',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{202a}',
            '\u{202e}',
            '\u{2028}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{ad}',
            '\u{fe0f}',
            '\u{2800}',
            '\u{61c}',
            '\u{180e}',
            '\u{3164}',
            '\u{e0041}',
        ] {
            let name = format!("a{c}b");
            assert_eq!(KeyName::new(name), Err(KeyNameError::ForbiddenCharacter(c)));
        }
        let hidden = KeyName::new("a\u{200b}b").unwrap_err().to_string();
        assert_eq!(hidden, "must not contain the invisible character U+200B");
    }

    #[test]
    fn length_counts_characters_after_trimming() {
        assert_eq!(KeyName::new(" \u{3000}\t"), Err(KeyNameError::Empty));
        let longest = "é".repeat(100);
        assert_eq!(KeyName::new(format!("  {longest}\n")).unwrap().as_str(), longest);
        assert_eq!(KeyName::new("é".repeat(101)), Err(KeyNameError::TooLong));
        assert_eq!(KeyName::new("a".repeat(10_000)), Err(KeyNameError::TooLong));
    }

    proptest! {
        #[test]
        fn a_name_that_was_taken_is_taken_again_unchanged(text in "\\PC{0,120}|[\\s\\S]{0,8}") {
            if let Ok(name) = KeyName::new(&text) {
                prop_assert_eq!(name.as_str(), text.trim());
                prop_assert_eq!(KeyName::new(name.as_str()), Ok(name));
            }
        }
    }
}
