//! The path of a request as the audit log shows it: visible, bounded, without keys.

use crate::audit::record::RequestEvent;
use crate::text::truncate;

/// Fewer letters and digits behind a prefix are a word, not a key.
const SHORTEST_KEY: usize = 24;
const REDACTED: &str = "[REDACTED]";
const CUT: &str = "…";

/// Shows a path. A segment that holds what looks like a key of this service is
/// blotted out; bytes that are no visible ASCII are percent-encoded, as
/// RFC 3986 wants them; what is too long is cut off.
pub(super) fn endpoint(path: &str, prefix: &str) -> Box<str> {
    let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'%');
    if plain && path.len() <= RequestEvent::MAX_ENDPOINT_LEN && !path.contains(prefix) {
        return path.into();
    }
    let mut shown = String::with_capacity(path.len());
    for (position, segment) in path.split('/').enumerate() {
        if position > 0 {
            shown.push('/');
        }
        if holds_key(segment, prefix) {
            shown.push_str(REDACTED);
        } else {
            push_visible(&mut shown, segment);
        }
    }
    if shown.len() > RequestEvent::MAX_ENDPOINT_LEN {
        truncate(&mut shown, RequestEvent::MAX_ENDPOINT_LEN - CUT.len());
        shown.push_str(CUT);
    }
    shown.into_boxed_str()
}

fn holds_key(segment: &str, prefix: &str) -> bool {
    let decoded = percent_decoded(segment);
    let mut rest = decoded.as_slice();
    loop {
        if let Some(after) = rest.strip_prefix(prefix.as_bytes())
            && after.iter().take_while(|b| b.is_ascii_alphanumeric()).count() >= SHORTEST_KEY
        {
            return true;
        }
        match rest.split_first() {
            Some((_, next)) => rest = next,
            None => return false,
        }
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                decoded.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

fn push_visible(shown: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_graphic() {
            shown.push(char::from(byte));
        } else {
            shown.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(path: &str) -> String {
        endpoint(path, "vsp_sk_").into()
    }

    #[test]
    fn case_39_a_key_in_the_path_is_blotted_out() {
        let key = format!("vsp_sk_{}", "a1".repeat(24));
        assert_eq!(shown(&format!("/v1/{key}/x/{key}")), "/v1/[REDACTED]/x/[REDACTED]");
        let encoded: String = key.bytes().map(|b| format!("%{b:02x}")).collect();
        for hidden in [
            format!("vsp_sk_{key}"),
            format!("x{key}y"),
            key.replace('_', "%5F"),
            encoded,
            key[..31].to_owned(),
        ] {
            assert_eq!(shown(&format!("/{hidden}/z")), "/[REDACTED]/z", "{hidden}");
        }
        assert_eq!(shown("/docs/vsp_sk_example"), "/docs/vsp_sk_example");
        assert_eq!(&*endpoint("/data_export", "a_"), "/data_export");
    }

    #[test]
    fn case_41_what_is_not_visible_is_percent_encoded() {
        assert_eq!(shown("/a\u{9b}31m/\u{202e}é b"), "/a%C2%9B31m/%E2%80%AE%C3%A9%20b");
        assert_eq!(shown("/%0d%0a/%3Cimg%3E"), "/%0d%0a/%3Cimg%3E");
    }

    #[test]
    fn a_long_path_is_cut_off() {
        for path in ["é".repeat(4_000), "/a".repeat(4_000)] {
            let shown = shown(&path);
            assert!(shown.len() <= RequestEvent::MAX_ENDPOINT_LEN && shown.ends_with('…'));
        }
    }

    proptest! {
        #[test]
        fn a_short_visible_path_without_a_key_is_shown_as_it_is(path in "(/[!-.0-~]{0,20}){1,20}") {
            prop_assert_eq!(shown(&path), path);
        }
    }
}
