//! The name of a key.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::key::characters::{self, Flaw};
use crate::key::format::KeyFormat;

/// A key's name: 1 to 100 characters (Unicode scalar values) in any script. White space at
/// the ends is dropped; the rest is kept exactly. Names need not be unique.
///
/// Invisible characters that make a name look like another one are refused: control
/// characters, line separators, bidirectional controls, and all of
/// `Default_Ignorable_Code_Point`. Joiners, selectors and tags are accepted only as part of
/// a visible letter or picture: between letters of scripts that use them, and within an
/// emoji sequence. A letter may carry only as many combining marks as scripts need. Since
/// names are shown and logged, a name must not contain a whole key with any prefix.
///
/// ```
/// use keygate::error::KeyNameError;
/// use keygate::KeyName;
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

    /// For sample records.
    pub(crate) fn sample() -> Self {
        Self("Deploy".into())
    }

    /// Parses a name typed by a person.
    pub fn new(name: impl AsRef<str>) -> Result<Self, KeyNameError> {
        let name = name.as_ref().trim();
        if name.is_empty() {
            return Err(KeyNameError::Empty);
        }
        if name.chars().nth(Self::MAX_CHARS).is_some() {
            return Err(KeyNameError::TooLong);
        }
        characters::check(name).map_err(|flaw| match flaw {
            Flaw::Hidden(c) => KeyNameError::ForbiddenCharacter(c),
            Flaw::TooManyMarks => KeyNameError::TooManyMarks,
        })?;
        if KeyFormat::any_occurs_in(name.as_bytes()) {
            return Err(KeyNameError::HoldsKey);
        }
        Ok(Self(name.into()))
    }

    /// Reads a stored name. A name that an earlier version accepted is still accepted, even
    /// if [`KeyName::new`] now refuses it. A text that no version accepted is an error.
    pub fn restore(name: impl AsRef<str>) -> Result<Self, KeyNameError> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(KeyNameError::Empty);
        }
        if name.chars().nth(Self::MAX_CHARS).is_some() {
            return Err(KeyNameError::TooLong);
        }
        match name.chars().find(|c| characters::is_control(*c)) {
            Some(c) => Err(KeyNameError::ForbiddenCharacter(c)),
            None => Ok(Self(name.into())),
        }
    }

    /// The name, trimmed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
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

/// Why a text is not a valid name.
// The texts have no subject, since they follow the name of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyNameError {
    /// Nothing is left after trimming.
    #[error("must not be empty")]
    Empty,
    /// There are more than [`KeyName::MAX_CHARS`] characters.
    #[error("must have at most {} characters", KeyName::MAX_CHARS)]
    TooLong,
    /// A character that is invisible and not part of a letter or picture.
    #[error("must not contain the invisible character U+{:04X}", u32::from(*.0))]
    ForbiddenCharacter(char),
    /// More combining marks on one letter than any script needs.
    #[error("must not have that many combining marks on one letter")]
    TooManyMarks,
    /// A whole key.
    #[error("must not contain an API key")]
    HoldsKey,
}

#[cfg(test)]
mod tests {
    use super::*;
    use getrandom::SysRng;
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
    fn case_23_deceptive_characters_are_refused() {
        // `characters` tests the others.
        for c in ['\0', '\n', '\u{1b}', '\u{7f}', '\u{85}', '\u{200b}', '\u{2028}', '\u{202e}'] {
            let name = format!("a{c}b");
            assert_eq!(KeyName::new(name), Err(KeyNameError::ForbiddenCharacter(c)));
        }
        let hidden = KeyName::new("a\u{200b}b").unwrap_err().to_string();
        assert_eq!(hidden, "must not contain the invisible character U+200B");
    }

    #[test]
    fn case_54_a_name_with_a_whole_key_is_refused() {
        for prefix in ["vsp_sk_", "acme_", "a_", "a_prefix_of_24_letters1_"] {
            let key = KeyFormat::new(prefix).unwrap().generate(&mut SysRng).unwrap();
            let key = key.expose_secret();
            for name in
                [key.to_owned(), format!("CI {key}"), format!("x{key}"), format!("é_{key}.")]
            {
                let error = KeyName::new(&name).unwrap_err();
                assert_eq!(error, KeyNameError::HoldsKey, "{prefix}");
                assert!(!format!("{error} {error:?}").contains(&key[9..20]));
            }
            // A part of a key, or a misspelt key, does not reveal the key.
            KeyName::new(&key[..key.len() - 1]).unwrap();
            KeyName::new(key.to_lowercase()).unwrap();
        }
        KeyName::new("deploy_".repeat(14)).unwrap();
    }

    #[test]
    fn a_stored_name_that_is_refused_by_now_can_be_read() {
        let key = KeyFormat::default().generate(&mut SysRng).unwrap();
        let marks = format!("a{}", "\u{301}".repeat(99));
        for name in ["❤\u{fe0f}\u{fe0f}", "🏴\u{e0041}", "\u{1bca0}", &marks, key.expose_secret()]
        {
            KeyName::new(name).unwrap_err();
            assert_eq!(KeyName::restore(name).unwrap().as_str(), name);
        }
        assert_eq!(KeyName::restore(""), Err(KeyNameError::Empty));
        assert_eq!(KeyName::restore("a".repeat(101)), Err(KeyNameError::TooLong));
        for c in ['\0', '\n', '\u{2028}', '\u{202e}', '\u{2066}'] {
            let refused = Err(KeyNameError::ForbiddenCharacter(c));
            assert_eq!(KeyName::restore(format!("a{c}")), refused);
        }
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
        fn an_accepted_name_is_accepted_again_unchanged(text in "\\PC{0,120}|[\\s\\S]{0,8}") {
            if let Ok(name) = KeyName::new(&text) {
                prop_assert_eq!(name.as_str(), text.trim());
                prop_assert_eq!(KeyName::restore(name.as_str()), Ok(name.clone()));
                prop_assert_eq!(KeyName::new(name.as_str()), Ok(name));
            }
        }
    }
}
