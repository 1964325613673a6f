//! The credential in an `Authorization` header (RFC 9110 § 11, RFC 6750 § 2.1), or in a
//! header of the host's choice.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName};

use crate::key::format::KeyFormat;
use crate::key::formats::Formats;

/// What a request presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presented<'a> {
    /// No credential, or one of another scheme or issuer.
    Nothing,
    /// One bearer credential, which may be anything.
    Bearer(&'a [u8]),
    /// A bearer credential that is empty or too long.
    Malformed,
    /// More than one credential, of which different servers may read different ones.
    Ambiguous,
}

/// Finds the credential in the `Authorization` header, or in the other one if there is one.
/// Keys in the query string or elsewhere are ignored, and so are bearer credentials without
/// the prefix of any format, if formats are given.
pub(crate) fn presented<'a>(
    headers: &'a HeaderMap,
    other: Option<&HeaderName>,
    foreign_to: Option<&Formats>,
) -> Presented<'a> {
    if let Some(name) = other {
        let mut lines = headers.get_all(name).iter();
        if let Some(line) = lines.next() {
            let is_one = lines.next().is_none() && !headers.contains_key(AUTHORIZATION);
            return if is_one { whole(line.as_bytes()) } else { Presented::Ambiguous };
        }
    }
    in_authorization(headers, foreign_to)
}

/// A credential without a scheme.
fn whole(line: &[u8]) -> Presented<'_> {
    let credential = line.trim_ascii();
    if credential.iter().any(|b| matches!(b, b' ' | b'\t' | b',')) {
        Presented::Ambiguous
    } else if credential.is_empty() || credential.len() > KeyFormat::MAX_CREDENTIAL_LEN {
        Presented::Malformed
    } else {
        Presented::Bearer(credential)
    }
}

fn in_authorization<'a>(headers: &'a HeaderMap, foreign_to: Option<&Formats>) -> Presented<'a> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let Some(line) = lines.next() else { return Presented::Nothing };
    if lines.next().is_some() {
        return Presented::Ambiguous;
    }
    let line = line.as_bytes().trim_ascii();
    let (scheme, credential) = first_word(line);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        // A list of credentials that includes a bearer credential.
        let mut further = line.split(|b| *b == b',').skip(1).map(<[u8]>::trim_ascii_start);
        let ours = further.any(|item| first_word(item).0.eq_ignore_ascii_case(b"bearer"));
        return if ours { Presented::Ambiguous } else { Presented::Nothing };
    }
    let spaces = credential.iter().take_while(|b| **b == b' ').count();
    let credential = credential.get(spaces..).unwrap_or_default();
    let is_foreign = foreign_to.is_some_and(|formats| !formats.begins(credential));
    let is_too_long = credential.len() > KeyFormat::MAX_CREDENTIAL_LEN && !is_foreign;
    // A tab is not accepted in place of the spaces.
    if is_too_long || matches!(credential, [] | [b'\t', ..]) {
        Presented::Malformed
    // No early exit, so that the loop compiles to a few vector instructions.
    } else if credential.iter().fold(false, |any, b| any | matches!(b, b' ' | b'\t' | b',')) {
        Presented::Ambiguous
    } else if is_foreign {
        Presented::Nothing
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
    use crate::key::format::KeyFormat;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn of(lines: &[&[u8]]) -> HeaderMap {
        let values = lines.iter().map(|line| HeaderValue::from_bytes(line).unwrap());
        values.map(|value| (AUTHORIZATION, value)).collect()
    }

    #[test]
    fn case_05_a_missing_credential_is_distinguished_from_a_malformed_one() {
        for line in ["", " ", "Basic YTpi", "Bearerk", "k", "bear er k"] {
            assert_eq!(
                presented(&of(&[line.as_bytes()]), None, None),
                Presented::Nothing,
                "{line:?}"
            );
        }
        assert_eq!(presented(&HeaderMap::new(), None, None), Presented::Nothing);
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
            assert_eq!(presented(&of(&[line]), None, None), Presented::Malformed);
        }
        let longest = [b"Bearer ", &[b'k'; 256][..]].concat();
        assert_eq!(presented(&of(&[&longest]), None, None), Presented::Bearer(&[b'k'; 256]));
        assert_eq!(
            presented(&of(&[b"Bearer \xff\xfe"]), None, None),
            Presented::Bearer(b"\xff\xfe")
        );
    }

    #[test]
    fn a_foreign_token_is_no_credential_where_foreign_ones_are_ignored() {
        let format = Formats::single(KeyFormat::default());
        let of = |line: &[u8]| {
            let headers = of(&[line]);
            presented(&headers, None, Some(&format)) == Presented::Nothing
        };
        let long = [b"Bearer eyJ", &[b'a'; 60_000][..]].concat();
        for line in [&b"Bearer eyJh.eyJz.c2ln"[..], b"bearer  vsp_pk_1", b"Bearer x", &long] {
            assert!(of(line));
        }
        let overlong = [b"Bearer vsp_sk_", &[b'a'; 256][..]].concat();
        let list = [&long[..], b", Bearer vsp_sk_1"].concat();
        for line in [
            &b"Bearer vsp_sk_"[..],
            b"Bearer vsp_sk_1",
            b"Bearer",
            b"Bearer \teyJ",
            b"Bearer eyJ,Bearer vsp_sk_1",
            b"Bearer eyJ vsp_sk_1",
            b"Basic dTpw, Bearer eyJ",
            &overlong,
            &list,
        ] {
            assert!(!of(line));
        }
    }

    proptest! {
        #[test]
        fn a_credential_is_extracted_unchanged(key in "[!-+\\--~]{1,256}", spaces in 1usize..9) {
            let headers = of(&[format!("Bearer{}{key}", " ".repeat(spaces)).as_bytes()]);
            prop_assert_eq!(presented(&headers, None, None), Presented::Bearer(key.as_bytes()));
        }
    }
}
