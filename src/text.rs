//! Bounding a text's length without cutting a character in two.

/// Shortens the text to at most `max` bytes.
pub(crate) fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_character_is_kept_whole_or_not_at_all() {
        for (max, kept) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (9, "aé")] {
            let mut text = String::from("aé");
            super::truncate(&mut text, max);
            assert_eq!(text, kept);
        }
    }
}
