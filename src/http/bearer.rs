//! The credential in an `Authorization` header (RFC 9110 § 11, RFC 6750 § 2.1).

use ::http::header::{AUTHORIZATION, HeaderMap};

use crate::key::format::MAX_CREDENTIAL_LEN;

/// What a request presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presented<'a> {
    /// No credential, or one of another scheme.
    Nothing,
    /// One bearer credential, which may be anything.
    Bearer(&'a [u8]),
    /// A bearer credential that is empty or overlong.
    Malformed,
    /// More than one credential: whoever picks one of them is fooled by the other.
    Ambiguous,
}

/// Finds the credential. A key in the query string or in any other header is none.
pub(crate) fn presented(headers: &HeaderMap) -> Presented<'_> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let Some(line) = lines.next() else { return Presented::Nothing };
    if lines.next().is_some() {
        return Presented::Ambiguous;
    }
    let line = line.as_bytes().trim_ascii();
    let (scheme, credential) = first_word(line);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        // A list of credentials, with one of ours among others.
        let mut further = line.split(|b| *b == b',').skip(1).map(<[u8]>::trim_ascii_start);
        let ours = further.any(|item| first_word(item).0.eq_ignore_ascii_case(b"bearer"));
        return if ours { Presented::Ambiguous } else { Presented::Nothing };
    }
    let spaces = credential.iter().take_while(|b| **b == b' ').count();
    let credential = credential.get(spaces..).unwrap_or_default();
    // A tab there is none of the spaces that belong there.
    if credential.len() > MAX_CREDENTIAL_LEN || matches!(credential, [] | [b'\t', ..]) {
        Presented::Malformed
    // No early exit, so that the loop is a few vector instructions.
    } else if credential.iter().fold(false, |any, b| any | matches!(b, b' ' | b'\t' | b',')) {
        Presented::Ambiguous
    } else {
        Presented::Bearer(credential)
    }
}

fn first_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| matches!(b, b' ' | b'\t')).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;
    use proptest::prelude::*;

    fn of(lines: &[&[u8]]) -> HeaderMap {
        let values = lines.iter().map(|line| HeaderValue::from_bytes(line).unwrap());
        values.map(|value| (AUTHORIZATION, value)).collect()
    }

    #[test]
    fn case_02_the_scheme_is_case_insensitive_and_spaces_are_skipped() {
        for line in ["Bearer k", "bearer k", "BEARER k", "bEaReR    k", " Bearer k "] {
            let headers = of(&[line.as_bytes()]);
            assert_eq!(presented(&headers), Presented::Bearer(b"k"), "{line:?}");
        }
    }

    #[test]
    fn case_03_two_lines_are_ambiguous_whatever_they_say() {
        for lines in
            [["Bearer a", "Bearer a"], ["Bearer a", "Basic b"], ["Basic b", "Bearer a"], ["", ""]]
        {
            let headers = of(&lines.map(str::as_bytes));
            assert_eq!(presented(&headers), Presented::Ambiguous);
        }
    }

    #[test]
    fn case_04_two_credentials_in_one_line_are_ambiguous() {
        for line in [
            "Bearer a,Bearer b",
            "Bearer a, b",
            "Bearer a b",
            "Bearer a,",
            "Bearer a\tb",
            "Basic dTpw, Bearer a",
            "Digest a=\"b\", c=d,\tbearer a",
        ] {
            assert_eq!(presented(&of(&[line.as_bytes()])), Presented::Ambiguous, "{line:?}");
        }
    }

    #[test]
    fn case_05_what_is_no_credential_is_told_from_one_that_is_malformed() {
        for line in ["", " ", "Basic YTpi", "Bearerk", "k", "bear er k"] {
            assert_eq!(presented(&of(&[line.as_bytes()])), Presented::Nothing, "{line:?}");
        }
        assert_eq!(presented(&HeaderMap::new()), Presented::Nothing);
        let huge = [b"Bearer ", &[b','; 65_536][..]].concat();
        for line in [
            &b"Bearer"[..],
            b"Bearer ",
            b"bearer   ",
            b"Bearer\tk",
            b"Bearer \tk",
            b"Bearer\t k",
            b"Bearer \t a, b",
            &huge,
        ] {
            assert_eq!(presented(&of(&[line])), Presented::Malformed);
        }
        let longest = [b"Bearer ", &[b'k'; 256][..]].concat();
        assert_eq!(presented(&of(&[&longest])), Presented::Bearer(&[b'k'; 256]));
        assert_eq!(presented(&of(&[b"Bearer \xff\xfe"])), Presented::Bearer(b"\xff\xfe"));
    }

    proptest! {
        #[test]
        fn a_credential_comes_out_as_it_went_in(key in "[!-+\\--~]{1,256}", spaces in 1usize..9) {
            let headers = of(&[format!("Bearer{}{key}", " ".repeat(spaces)).as_bytes()]);
            prop_assert_eq!(presented(&headers), Presented::Bearer(key.as_bytes()));
        }
    }
}
