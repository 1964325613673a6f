//! The characters that a key's name may contain.
//!
//! The ranges are those of Unicode 18; the table of marks is in another crate.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    Hidden(char),
    TooManyMarks,
}

/// The limit of marks on one letter. A Tibetan syllable has up to eight, a Burmese one
/// five.
const MAX_MARKS: usize = 8;
/// The limit of marks on one letter that belong to no script. Vietnamese needs two,
/// phonetic transcription four.
const MAX_DIACRITICS: usize = 4;

/// Whether the text contains no characters that deceive readers.
pub(super) fn check(text: &str) -> Result<(), Flaw> {
    // The last visible character.
    let mut base = None;
    let (mut marks, mut diacritics) = (0, 0);
    let mut before = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == BLACK_FLAG && rest.as_str().starts_with(is_tag) {
            rest = after_tags(rest.as_str())?.chars();
            (base, before) = (Some(BLACK_FLAG), Some(TAG_END));
            continue;
        }
        if c.general_category_group() == GeneralCategoryGroup::Mark && !is_hidden(c) {
            marks += 1;
            diacritics += usize::from(is_diacritic(c));
            if marks > MAX_MARKS || diacritics > MAX_DIACRITICS {
                return Err(Flaw::TooManyMarks);
            }
        } else if !is_hidden(c) {
            (marks, diacritics) = (0, 0);
        }
        if !is_hidden(c) {
            base = Some(c);
        } else if !is_part_of_a_sign(c, base, before, rest.clone().next()) {
            return Err(Flaw::Hidden(c));
        }
        before = Some(c);
    }
    Ok(())
}

/// A character that breaks a line or changes its direction, in any position. No stored name
/// has ever contained one.
pub(super) fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2066}'..='\u{2069}')
}

/// Whether an invisible character changes how its neighbours look. `base` is the last
/// visible character, `before` the previous one, and `after` the next.
fn is_part_of_a_sign(
    c: char,
    base: Option<char>,
    before: Option<char>,
    after: Option<char>,
) -> bool {
    let Some(base) = base else { return false };
    // One selector is enough, directly after its character.
    let is_behind = |is_selected: fn(char) -> bool| before == Some(base) && is_selected(base);
    match c {
        '\u{200C}' | '\u{200D}' => joins(base) && after.is_some_and(joins),
        '\u{FE00}'..='\u{FE0F}' => {
            let is_keycap = |c| matches!(c, '0'..='9' | '#' | '*');
            is_behind(is_picture)
                || is_behind(is_ideograph)
                || is_behind(is_keycap) && after == Some('\u{20E3}')
        }
        '\u{E0100}'..='\u{E01EF}' => is_behind(is_ideograph),
        '\u{180B}'..='\u{180D}' | '\u{180F}' => is_behind(|c| matches!(c, '\u{1820}'..='\u{18AA}')),
        _ => false,
    }
}

const BLACK_FLAG: char = '\u{1F3F4}';
const TAG_END: char = '\u{E007F}';

fn is_tag(c: char) -> bool {
    matches!(c, '\u{E0000}'..='\u{E007F}')
}

/// The tags after a black flag, which make it the flag of a region: its code in three to
/// six letters and digits, and the end tag.
fn after_tags(text: &str) -> Result<&str, Flaw> {
    let is_code = |c: &char| matches!(c, '\u{E0030}'..='\u{E0039}' | '\u{E0061}'..='\u{E007A}');
    let code = text.chars().take_while(is_code).count();
    let rest = text.trim_start_matches(|c| is_code(&c));
    match rest.strip_prefix(TAG_END) {
        Some(rest) if (3..=6).contains(&code) => Ok(rest),
        _ => Err(Flaw::Hidden(text.chars().next().unwrap_or(TAG_END))),
    }
}

/// Marks that combine with letters of any script.
fn is_diacritic(c: char) -> bool {
    matches!(c,
        '\u{0300}'..='\u{036F}' | '\u{0483}'..='\u{0489}' | '\u{1AB0}'..='\u{1AFF}'
        | '\u{1DC0}'..='\u{1DFF}' | '\u{20D0}'..='\u{20FF}' | '\u{302A}'..='\u{302F}'
        | '\u{FE20}'..='\u{FE2F}' | '\u{1D165}'..='\u{1D1AD}')
}

/// Characters that are invisible by themselves: controls, line separators, all of
/// `Default_Ignorable_Code_Point`, and a few more.
fn is_hidden(c: char) -> bool {
    is_control(c)
        || matches!(c,
            '\u{00AD}' | '\u{034F}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}'
            | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200D}' | '\u{2060}'..='\u{206F}'
            | '\u{2800}' | '\u{3164}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}' | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}')
}

/// Whether a joiner next to this character changes how it looks: scripts from Arabic to
/// Mongolian, and pictures.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// DerivedCoreProperties.txt of Unicode 17.
    const DEFAULT_IGNORABLE: &[(u32, u32)] = &[
        (0xAD, 0xAD),
        (0x34F, 0x34F),
        (0x61C, 0x61C),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x200B, 0x200F),
        (0x202A, 0x202E),
        (0x2060, 0x206F),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFEFF, 0xFEFF),
        (0xFFA0, 0xFFA0),
        (0xFFF0, 0xFFF8),
        (0x1BCA0, 0x1BCA3),
        (0x1D173, 0x1D17A),
        (0xE0000, 0xE0FFF),
    ];

    #[test]
    fn case_54_a_default_ignorable_character_alone_is_refused() {
        for c in DEFAULT_IGNORABLE.iter().flat_map(|(first, last)| *first..=*last) {
            let c = char::from_u32(c).unwrap();
            let refused = Err(Flaw::Hidden(c));
            for text in [format!("a{c}b"), format!("{c}b"), format!("a{c}"), format!("鍵鍵🏴 {c}")]
            {
                assert_eq!(check(&text), refused, "{}", c.escape_unicode());
            }
        }
    }

    #[test]
    fn case_54_a_selector_or_joiner_is_accepted_once_and_only_in_its_place() {
        for good in
            ["❤\u{fe0f}", "葛\u{e0100}城", "1\u{fe0f}\u{20e3}", "🏳\u{fe0f}\u{200d}🌈", "ᠠ\u{180b}"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "❤\u{fe0f}\u{fe0f}",
            "葛\u{e0100}\u{e0101}",
            "❤\u{301}\u{fe0f}",
            "👩\u{200d}\u{200d}💻",
            "👩\u{200d}",
            "1\u{fe0f}",
        ] {
            assert!(matches!(check(bad), Err(Flaw::Hidden(_))), "{bad:?}");
        }
    }

    #[test]
    fn case_54_tags_form_a_flag_or_are_refused() {
        let tags = |text: &str| -> String {
            text.chars().map(|c| char::from_u32(0xE0000 + u32::from(c)).unwrap()).collect()
        };
        let flag = |code: &str| format!("🏴{}\u{e007f}", tags(code));
        for code in ["gbeng", "gbsct", "gbwls", "usca", "fr75"] {
            assert_eq!(check(&format!("{} {}", flag(code), flag(code))), Ok(()));
        }
        for bad in [
            format!("🏴{}", tags("gbeng")),
            format!("🏴{} \u{e007f}", tags("gbeng")),
            format!("👩{}\u{e007f}", tags("gbeng")),
            format!("🏴x{}\u{e007f}", tags("gbeng")),
            format!("{}{}\u{e007f}", flag("gbeng"), tags("gbeng")),
            flag(""),
            flag("ignoreallof"),
            flag("GBENG"),
            flag("gb eng"),
            "🏴\u{e0001}".to_owned(),
            tags("gbeng"),
        ] {
            assert!(matches!(check(&bad), Err(Flaw::Hidden(_))), "{bad:?}");
        }
    }

    #[test]
    fn case_54_marks_are_bounded_beyond_what_scripts_need() {
        for real in [
            "Vie\u{302}\u{323}t",            // Vietnamese, decomposed
            "ที่นี่ น้ำ กุญแจ",                    // Thai
            "ཧྐྵྨླྺྼྻྂ",                             // Tibetan, the tallest stack in use
            "လျှို့ဝှက်",                          // Burmese
            "क्ष्म्य़ॄँ",                          // Devanagari
            "בְּרֵאשִׁ֖ית",                        // Hebrew with cantillation
            "ٱلرَّحْمَٰنِ",                        // Arabic with vowels
            "s\u{32a}\u{31a}\u{2b0}\u{302}", // phonetic transcription
        ] {
            assert_eq!(check(real), Ok(()), "{real}");
        }
        let zalgo = |mark: &str, times| format!("a{} b", mark.repeat(times));
        assert_eq!(check(&zalgo("\u{301}", 4)), Ok(()));
        assert_eq!(check(&zalgo("\u{301}", 2).repeat(9)), Ok(()), "on several letters");
        for bad in [
            zalgo("\u{301}", 5),
            zalgo("\u{301}", 40),
            zalgo("\u{301}\u{0e47}", 5),
            zalgo("\u{0e47}", 9),
            zalgo("\u{20dd}", 5),
        ] {
            assert_eq!(check(&bad), Err(Flaw::TooManyMarks), "{bad}");
        }
    }
}
