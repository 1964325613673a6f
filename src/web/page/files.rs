//! Assembles and serves the page's files.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{OriginalUri, RawPathParams, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{StatusCode, Uri};
use serde::Serialize;
use sha2::{Digest, Sha256};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const INDEX: &str = include_str!("files/index.html");
const TEXT: &str = include_str!("files/text.json");
const STYLE: &str = include_str!("files/style.css");

macro_rules! scripts {
    ($($name:literal,)+) => {
        &[$(($name, include_str!(concat!("files/", $name)))),+]
    };
}

const SCRIPTS: &[(&str, &str)] = scripts! {
    "advice.js",
    "allowlist.js",
    "api.js",
    "audit.js",
    "chart.js",
    "confirm.js",
    "create.js",
    "dialogs.js",
    "edit.js",
    "fields.js",
    "page.js",
    "scopes.js",
    "secret.js",
    "ui.js",
};

/// Allows only the page's own files, and no frames.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The page's texts in English.
pub(super) fn texts() -> BTreeMap<String, String> {
    // The file is part of the crate, and a test reads it.
    serde_json::from_str(TEXT).unwrap_or_default()
}

/// The settings passed to the page's scripts.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    pub(super) title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) back: Option<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) docs: Option<String>,
    pub(super) example: String,
    /// Whether the service tells users their address.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) address: bool,
    pub(super) text: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Link {
    pub(super) label: String,
    pub(super) href: String,
}

/// A colour, and black or white text on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accent {
    rgb: [u8; 3],
}

impl Accent {
    pub(super) fn parse(colour: &str) -> Option<Self> {
        let digits = colour.strip_prefix('#').filter(|digits| digits.len() == 6)?;
        let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
        let [_, rgb @ ..] = number.to_be_bytes();
        Some(Self { rgb })
    }

    /// Its CSS custom properties.
    pub(super) fn css(self) -> String {
        let [r, g, b] = self.rgb;
        let ink = if self.is_light() { "#000000" } else { "#ffffff" };
        format!(":root {{ --accent: #{r:02x}{g:02x}{b:02x}; --on-accent: {ink}; }}\n")
    }

    /// Whether black has more contrast to it than white, by the relative luminance and
    /// contrast of WCAG 2.2.
    fn is_light(self) -> bool {
        let linear = self.rgb.map(|channel| {
            let channel = f64::from(channel) / 255.0;
            if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) }
        });
        let [r, g, b] = linear;
        let luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05)
    }
}

/// The files for one page with its options.
#[derive(Debug)]
pub(super) struct Files {
    /// Complete except for the path to the other files.
    index: String,
    assets: BTreeMap<&'static str, File>,
}

impl Files {
    pub(super) fn new(shown: &Shown, language: &str, accent: Option<Accent>) -> Self {
        // `<` begins markup even within a script element, and `{{` a placeholder.
        let settings = serde_json::to_string(shown).unwrap_or_default();
        let settings = settings.replace('<', "\\u003c").replace("{{", "{\\u007b");
        let text = |name| escaped(shown.text.get(name).map_or("", String::as_str));
        let index = filled(&[
            ("lang", &escaped(language)),
            ("dir", direction(language)),
            ("title", &escaped(&shown.title)),
            ("noscript", &text("noscript")),
            ("stuck", &text("stuck")),
            ("settings", &settings),
        ]);
        let accent = accent.map_or(String::new(), |accent| format!("\n{}", accent.css()));
        let style = File::new(CSS, lean(STYLE) + &accent);
        let scripts = SCRIPTS.iter().map(|(name, script)| (*name, File::new(SCRIPT, lean(script))));
        Self { index, assets: scripts.chain([("style.css", style)]).collect() }
    }
}

/// A script or stylesheet without indentation and comments, each line at its number. A comment
/// has lines of its own.
fn lean(source: &str) -> String {
    let mut is_comment = false;
    let kept = source.lines().map(|line| {
        let line = line.trim_start();
        is_comment |= line.starts_with("/*");
        let is_left_out = is_comment || line.starts_with("//");
        is_comment &= !line.contains("*/");
        if is_left_out { "\n".to_owned() } else { format!("{line}\n") }
    });
    kept.collect()
}

/// The direction of a language, by its script where the tag has one.
fn direction(language: &str) -> &'static str {
    const SCRIPTS: [&str; 6] = ["adlm", "arab", "hebr", "nkoo", "syrc", "thaa"];
    const LANGUAGES: [&str; 12] =
        ["ar", "arc", "ckb", "dv", "fa", "he", "ks", "ps", "sd", "ug", "ur", "yi"];
    let language = language.to_ascii_lowercase();
    let mut parts = language.split('-');
    let name = parts.next().unwrap_or_default();
    let is_rtl = match parts.find(|part| part.len() == 4) {
        Some(script) => SCRIPTS.contains(&script),
        None => LANGUAGES.contains(&name),
    };
    if is_rtl { "rtl" } else { "ltr" }
}

/// The page with its placeholders filled, except for `{{base}}`.
fn filled(values: &[(&str, &str)]) -> String {
    let mut page = String::with_capacity(INDEX.len() + 16 * 1024);
    for (n, part) in INDEX.split("{{").enumerate() {
        let (name, rest) = match part.split_once("}}") {
            Some(split) if n > 0 => split,
            _ => ("", part),
        };
        match values.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => page.push_str(value),
            None if name.is_empty() => {}
            None => page.extend(["{{", name, "}}"]),
        }
        page.push_str(rest);
    }
    page
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '<' | '>' | '"' | '\'' | '{' => {
                // Writing to a string does not fail.
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

pub(super) fn router(files: Files) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/assets/{file}", get(asset))
        .with_state(Arc::new(files))
}

async fn index(
    State(files): State<Arc<Files>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Response {
    let page = files.index.replace("{{base}}", &escaped(&base(&uri)));
    let mut answer = File::new(HTML, page).answer(&headers);
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        // For browsers without `frame-ancestors`.
        (X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`, with which browsers send `Origin: null` to the API.
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// The path from the page to its files. It is relative, so that a proxy may move the page,
/// as long as the path ends the same way.
fn base(uri: &Uri) -> String {
    match uri.path().rsplit('/').next() {
        None | Some("") => "./".to_owned(),
        Some(last) => format!("./{last}/"),
    }
}

async fn asset(
    State(files): State<Arc<Files>>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    headers: HeaderMap,
) -> Response {
    // The last parameter of this name: the path under which the host nests this may have
    // parameters, too.
    let Ok(params) = params else { return StatusCode::NOT_FOUND.into_response() };
    let name = params.iter().filter(|(name, _)| *name == "file").last();
    let name = name.map_or("", |(_, file)| file);
    match files.assets.get(name) {
        Some(file) => file.answer(&headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Debug)]
struct File {
    media_type: &'static str,
    content: Bytes,
    tag: String,
}

impl File {
    fn new(media_type: &'static str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let tag = format!("\"{}\"", hex::encode(Sha256::digest(&content)));
        Self { media_type, content, tag }
    }

    /// The file, or 304 if the browser's copy is current. The browser asks every time, so
    /// that files of different versions are never combined.
    fn answer(&self, request: &HeaderMap) -> Response {
        let known = request.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        let mut known = known.flat_map(|line| line.split(',')).map(str::trim);
        let is_known =
            known.any(|known| known == "*" || known.trim_start_matches("W/") == self.tag);
        let mut answer = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let media_type = HeaderValue::from_static(self.media_type);
            ([(CONTENT_TYPE, media_type)], self.content.clone()).into_response()
        };
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Ok(tag) = HeaderValue::try_from(&self.tag) {
            headers.insert(ETAG, tag);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Outcome;

    /// Otherwise `lean` would leave out the code as well.
    #[test]
    fn a_comment_shares_no_line_with_code() {
        for source in SCRIPTS.iter().map(|(_, script)| *script).chain([STYLE]) {
            for line in source.lines().map(str::trim) {
                let ends = line.find("*/").is_none_or(|at| at + 2 == line.len());
                assert!(ends || !line.starts_with(['/', '*']), "{line}");
            }
        }
        assert_eq!(lean("a\n  // b\n  /*\n * c */\n  d\n"), "a\n\n\n\nd\n");
    }

    #[test]
    fn every_outcome_has_a_text() {
        let texts = texts();
        let missing = Outcome::ALL.iter().filter(|outcome| {
            **outcome != Outcome::Allowed && !texts.contains_key(&format!("outcome.{outcome}"))
        });
        assert_eq!(missing.collect::<Vec<_>>(), [&Outcome::Unknown; 0]);
    }

    #[test]
    fn file_paths_are_relative_to_the_page() {
        for (page, below) in [
            ("/settings", "./settings/"),
            ("/a/b:c", "./b:c/"),
            ("/", "./"),
            ("/a/", "./"),
            ("/s%20p", "./s%20p/"),
        ] {
            assert_eq!(base(&page.parse().unwrap()), below);
        }
    }

    #[test]
    fn a_language_has_the_direction_of_its_script() {
        for language in ["ar", "he-IL", "FA", "ur-PK", "az-Arab", "pa-Arab-PK"] {
            assert_eq!(direction(language), "rtl", "{language}");
        }
        for language in ["en", "de-DE", "ku", "ar-Latn", "ha", "zh-Hant-TW"] {
            assert_eq!(direction(language), "ltr", "{language}");
        }
    }

    #[test]
    fn an_accent_is_six_digits() {
        assert_eq!(Accent::parse("#0B6e4f"), Some(Accent { rgb: [0x0b, 0x6e, 0x4f] }));
        for wrong in
            ["", "#", "0b6e4f", "#0b6e4", "#0b6e4ff", "#0b6e4g", "#+b6e4f", "#é6e4f", "red"]
        {
            assert_eq!(Accent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn text_is_black_on_light_colours_and_white_on_dark_ones() {
        let ink = |colour| Accent::parse(colour).map(Accent::is_light);
        for (colour, light) in
            [("#000000", false), ("#ffffff", true), ("#ffd500", true), ("#0b6e4f", false)]
        {
            assert_eq!(ink(colour), Some(light), "{colour}");
        }
    }
}
