//! The path of a request as the audit log shows it: visible, bounded, without keys.

use std::borrow::Cow;

use crate::audit::record::RequestEvent;
use crate::key::format::KeyFormat;
use crate::text::{percent_decoded, truncate};

/// A shorter text has no room for a prefix and a good part of a secret.
const SHORTEST_LEAK: usize = 24;
const REDACTED: &str = "[REDACTED]";
const CUT: &str = "…";

/// Shows a path. A segment that holds what looks like a key of this service is
/// blotted out; bytes that are no visible ASCII are percent-encoded, as
/// RFC 3986 wants them; what is too long is cut off.
pub(super) fn endpoint(path: Box<str>, format: &KeyFormat) -> Box<str> {
    let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'%');
    if plain && path.len() < SHORTEST_LEAK {
        return path;
    }
    let mut shown = String::with_capacity(path.len());
    for (position, segment) in path.split('/').enumerate() {
        if position > 0 {
            shown.push('/');
        }
        if holds_key(segment, format) {
            shown.push_str(REDACTED);
        } else {
            push_visible(&mut shown, segment);
        }
        if shown.len() > RequestEvent::MAX_ENDPOINT_LEN {
            truncate(&mut shown, RequestEvent::MAX_ENDPOINT_LEN - CUT.len());
            shown.push_str(CUT);
            break;
        }
    }
    shown.into_boxed_str()
}

/// Shows a method: bounded, and without a key that was sent in its place.
pub(super) fn method(method: Cow<'static, str>, format: &KeyFormat) -> Cow<'static, str> {
    const LONGEST: usize = 32;
    match method {
        Cow::Borrowed(_) => method,
        Cow::Owned(unknown) if holds_key(&unknown, format) => REDACTED.into(),
        Cow::Owned(mut unknown) => {
            truncate(&mut unknown, LONGEST);
            unknown.into()
        }
    }
}

fn holds_key(text: &str, format: &KeyFormat) -> bool {
    if text.len() < SHORTEST_LEAK {
        return false;
    }
    // Encoded more than once, it is still a key to whoever reads the log.
    let mut decoded = text.as_bytes().to_vec();
    for _ in 0..3 {
        if format.occurs_in(&decoded) {
            return true;
        }
        decoded = percent_decoded(&decoded);
    }
    format.occurs_in(&decoded)
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
        endpoint(path.into(), &KeyFormat::default()).into()
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
            key.replace('v', "%2576"),
        ] {
            assert_eq!(shown(&format!("/{hidden}/z")), "/[REDACTED]/z", "{hidden}");
        }
        assert_eq!(shown("/docs/vsp_sk_example"), "/docs/vsp_sk_example");
        let format = KeyFormat::new("a_").unwrap();
        assert_eq!(&*endpoint("/data_export".into(), &format), "/data_export");
        let hash = format!("/objects/{}", "0a1b".repeat(16));
        assert_eq!(shown(&hash), hash);
    }

    #[test]
    fn case_39_a_secret_without_its_prefix_and_a_key_as_a_method_are_blotted_out() {
        let format = KeyFormat::default();
        let key = format.generate(&crate::random::SystemRandom).unwrap();
        let secret = &key.expose_secret()[7..];
        assert_eq!(shown(&format!("/v1/{secret}")), "/v1/[REDACTED]");
        let sent = Cow::Owned(key.expose_secret().to_owned());
        assert_eq!(method(sent, &format), "[REDACTED]");
        assert_eq!(method(Cow::Owned("A".repeat(50)), &format), "A".repeat(32));
        assert_eq!(method("GET".into(), &format), "GET");
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
