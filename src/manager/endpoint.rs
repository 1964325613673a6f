//! The path and method of a request as shown in the audit log: printable, bounded, without
//! keys.

use std::borrow::Cow;

use crate::audit::record::RequestEvent;
use crate::key::format::LONGEST_KEY;
use crate::key::formats::Formats;
use crate::text::{cut, percent_decode, truncate};

/// A shorter text has no room for a prefix and a large part of a secret.
const SHORTEST_LEAK: usize = 24;
const SHOWN: usize = RequestEvent::MAX_ENDPOINT_LEN;
/// How many bytes of a path are searched for keys. This leaves room behind the part that is
/// shown for the longest key, with each byte percent-encoded three times, so that a key at
/// the cut is seen whole.
const SEEN: usize = SHOWN + LONGEST_KEY * 3 * 3 * 3;
const LONGEST_METHOD: usize = 32;
const REDACTED: &str = "[REDACTED]";
const CUT: &str = "…";

/// The part of a path or method that matters for the audit log.
#[cfg(feature = "tower")]
pub(crate) fn seen(text: &str) -> &str {
    cut(text, SEEN)
}

/// As [`seen`], in place. A sum of refusals keeps the text unprocessed.
pub(super) fn kept(mut text: String) -> String {
    truncate(&mut text, SEEN);
    text
}

/// Shows a path. A segment that contains what looks like a key of this service is redacted;
/// bytes that are not visible ASCII are percent-encoded as in RFC 3986; a long path is
/// truncated.
pub(crate) fn endpoint(path: Box<str>, formats: &Formats) -> Box<str> {
    let path_seen = cut(&path, SEEN);
    let plain = path_seen.bytes().all(|b| b.is_ascii_graphic() && b != b'%');
    if plain && path.len() < shortest_leak(formats) {
        return path;
    }
    let mut shown = String::with_capacity(path_seen.len().min(SHOWN));
    let mut start = 0;
    for segment in path_seen.split('/') {
        if start > SHOWN || shown.len() > SHOWN {
            break;
        }
        if start > 0 {
            shown.push('/');
        }
        if holds_key(segment, formats) {
            shown.push_str(REDACTED);
        } else {
            push_visible(&mut shown, cut(segment, SHOWN - start));
        }
        start += segment.len() + 1;
    }
    if path.len() > SHOWN || shown.len() > SHOWN {
        truncate(&mut shown, SHOWN - CUT.len());
        shown.push_str(CUT);
    }
    shown.into_boxed_str()
}

/// Shows a method: bounded, and without a key sent in its place.
pub(super) fn method(method: Cow<'static, str>, formats: &Formats) -> Cow<'static, str> {
    match method {
        Cow::Borrowed(_) => method,
        Cow::Owned(unknown) if holds_key(cut(&unknown, SEEN), formats) => REDACTED.into(),
        Cow::Owned(mut unknown) => {
            truncate(&mut unknown, LONGEST_METHOD);
            unknown.into()
        }
    }
}

fn shortest_leak(formats: &Formats) -> usize {
    formats.shortest_existing().unwrap_or(SHORTEST_LEAK).min(SHORTEST_LEAK)
}

/// Whether a text of at most `SEEN` bytes contains a key.
fn holds_key(text: &str, formats: &Formats) -> bool {
    if text.len() < shortest_leak(formats) {
        return false;
    }
    if formats.occur_in(text.as_bytes()) {
        return true;
    }
    if !text.contains('%') {
        return false;
    }
    // A key that is encoded more than once can still be read from the log.
    let mut copy = [0; SEEN];
    let mut decoded = copy.as_mut_slice();
    for (place, byte) in decoded.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    let mut len = text.len();
    for _ in 0..3 {
        decoded = decoded.get_mut(..len).unwrap_or_default();
        len = percent_decode(decoded);
        if len == decoded.len() {
            return false;
        }
        if formats.occur_in(decoded.get(..len).unwrap_or_default()) {
            return true;
        }
    }
    false
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
    use crate::key::format::KeyFormat;
    use crate::key::scan::steps;
    use getrandom::SysRng;
    use proptest::prelude::*;

    fn shown(path: &str) -> String {
        endpoint(path.into(), &Formats::single(KeyFormat::default())).into()
    }

    #[test]
    fn case_39_a_key_in_the_path_is_redacted() {
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
        let format = Formats::single(KeyFormat::new("a_").unwrap());
        assert_eq!(&*endpoint("/data_export".into(), &format), "/data_export");
        let hash = format!("/objects/{}", "0a1b".repeat(16));
        assert_eq!(shown(&hash), hash);
    }

    #[test]
    fn case_39_a_secret_without_its_prefix_and_a_key_as_a_method_are_blotted_out() {
        let formats = Formats::single(KeyFormat::default());
        let key = formats.default_format().generate(&mut SysRng).unwrap();
        let secret = &key.expose_secret()[7..];
        assert_eq!(shown(&format!("/v1/{secret}")), "/v1/[REDACTED]");
        let sent = Cow::Owned(key.expose_secret().to_owned());
        assert_eq!(method(sent, &formats), "[REDACTED]");
        assert_eq!(method(Cow::Owned("A".repeat(50)), &formats), "A".repeat(32));
        assert_eq!(method("GET".into(), &formats), "GET");
    }

    #[test]
    fn case_41_invisible_characters_are_percent_encoded() {
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

    /// `text` with each byte percent-encoded `times` times.
    fn escaped(text: &str, times: usize) -> String {
        (0..times)
            .fold(text.to_owned(), |text, _| text.bytes().map(|b| format!("%{b:02x}")).collect())
    }

    #[test]
    fn case_47_the_work_for_a_path_or_method_does_not_grow_with_it() {
        let format = Formats::single(KeyFormat::default());
        let hostile = [
            "a".to_owned(),
            "0".to_owned(),
            ".".to_owned(),
            "%".to_owned(),
            "/".to_owned(),
            "%252561".to_owned(),
            escaped("a", 3),
            "vsp_sk_".to_owned(),
            format!("vsp_sk_{}", "a".repeat(23)),
            escaped("vsp_sk_", 3),
            format!("/{}", "0".repeat(47)),
            format!("/{}%2530", "0".repeat(47)),
        ];
        for text in hostile {
            let long = text.repeat(60_000 / text.len());
            let (shown, steps) = steps::of(|| endpoint(long.as_str().into(), &format));
            assert!(shown.len() <= SHOWN);
            // Once unchanged, and once for each of the three times that it is decoded.
            assert!(steps <= SEEN * 4, "{text}: {steps}");
            let (method, steps) = steps::of(|| method(long.clone().into(), &format));
            assert!(method.len() <= LONGEST_METHOD);
            assert!(steps <= SEEN * 4, "{text}: {steps}");
        }
        // A single escape makes all of it scanned a second time, but not a third.
        let once = format!("/{}%30", "0".repeat(60_000));
        let once = [&once[once.len() - SEEN + 9..], &once[..9]].concat();
        let (_, steps) = steps::of(|| endpoint(once.into(), &format));
        assert!(steps <= SEEN * 2, "{steps}");
    }

    #[test]
    fn case_47_text_after_the_scanned_part_changes_nothing() {
        for text in ["a", "é", "/", "%2561", "/vsp_sk_"] {
            let long = text.repeat(60_000 / text.len());
            assert_eq!(shown(&long), shown(cut(&long, SEEN)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn case_47_a_key_at_the_cut_is_not_shown_in_part(
            prefix in "[a-z][a-z0-9_]{0,22}_",
            start in SHOWN - 2_000..SHOWN + 10,
            times in 0usize..=3,
            bare: bool,
            glued: bool,
        ) {
            let format = Formats::single(KeyFormat::new(&prefix).unwrap());
            let key = format.default_format().generate(&mut SysRng).unwrap();
            let key = key.expose_secret();
            let hidden = escaped(if bare { &key[prefix.len()..] } else { key }, times);
            let before = format!("/{}{}", "-".repeat(start - 2), if glued { '-' } else { '/' });
            let path = format!("{before}{hidden}{}", "-".repeat(60_000));
            let shown = endpoint(path.into(), &format);
            prop_assert!(shown.len() <= SHOWN);
            let part = &hidden[..hidden.len().min(4)];
            prop_assert!(!shown.trim_start_matches(['/', '-']).starts_with(part), "{}", &shown[start - 2..]);
        }

        #[test]
        fn a_path_of_the_maximum_length_is_shown_whole(
            short in "(/[!-.0-~&&[^%]]{0,20}){0,9}", missing in 0usize..5, end in "[/a]{0,3}",
        ) {
            let fill = SHOWN.saturating_sub(short.len() + missing + end.len());
            let path = format!("{short}/{}{end}", "-".repeat(fill.saturating_sub(1)));
            prop_assert_eq!(shown(&path), path);
        }

        #[test]
        fn a_short_visible_path_without_a_key_is_unchanged(path in "(/[!-.0-~]{0,20}){1,20}") {
            prop_assert_eq!(shown(&path), path);
        }
    }
}
