//! `ETag` and `If-Match`: the revision that a change requires.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::header::{HeaderValue, IF_MATCH};
use http::request::Parts;

use crate::manager::error::ManageError;
use crate::record::{ApiKey, Revision};
use crate::web::admin::problem::{Code, Problem};

/// The entity tag of a key at this revision.
pub(super) fn etag(revision: Revision) -> HeaderValue {
    // Cannot fail, since it consists of quotes and digits.
    HeaderValue::try_from(tag(revision)).unwrap_or(HeaderValue::from_static(""))
}

fn tag(revision: Revision) -> String {
    format!("\"{}\"", revision.get())
}

/// The revisions that the key may have.
pub(super) enum IfMatch {
    /// No header, or `*`: any revision, if the key exists.
    Any,
    /// The entity tags in the header's list, or the malformed members.
    OneOf(Vec<String>),
}

impl IfMatch {
    pub(super) fn check(&self, key: &ApiKey) -> Result<(), Problem> {
        match self {
            Self::OneOf(tags) if !tags.contains(&tag(key.revision)) => Err(Self::mismatch(tags)),
            _ => Ok(()),
        }
    }

    /// The problem to report if the key changed between the check and the change.
    pub(super) fn overtaken(&self, error: ManageError) -> Problem {
        match (self, error) {
            // The caller gave no revision.
            (Self::Any, ManageError::StaleRevision { .. }) => Problem::conflict(),
            (_, error) => error.into(),
        }
    }

    /// Explains what is wrong with the header itself, if that is why no tag matched.
    /// Reading the key again would not help then.
    fn mismatch(tags: &[String]) -> Problem {
        let mut flaws = tags.iter().filter(|tag| !tag.is_empty()).map(|tag| flaw(tag)).peekable();
        let first = flaws.peek().copied().unwrap_or(Some(
            "`If-Match` is empty. It takes the key's `ETag`, such as `\"1\"`, or `*`.",
        ));
        match first {
            Some(detail) if flaws.all(|flaw| flaw.is_some()) => {
                Problem::new(Code::StaleRevision, detail)
            }
            _ => Problem::stale(),
        }
    }
}

/// Why a tag cannot be that of any revision.
fn flaw(text: &str) -> Option<&'static str> {
    let is_quoted = |text: &str| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    if text.strip_prefix("W/").is_some_and(is_quoted) {
        return Some(
            "`If-Match` never matches a weak tag (`W/\"1\"`). Proxies that compress answers weaken tags: send the key's revision in quotes, such as `\"1\"`.",
        );
    }
    if !is_quoted(text) {
        return Some(
            "`If-Match` requires tags in double quotes: send the key's `ETag` unchanged, such as `\"1\"`.",
        );
    }
    let number = text.trim_matches('"').parse().map(Revision::new);
    let is_revision = number.is_ok_and(|revision| tag(revision) == text);
    (!is_revision).then_some(
        "The tag in `If-Match` is not the revision of a key: send the key's `ETag` unchanged, such as `\"1\"`.",
    )
}

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let lines = parts.headers.get_all(IF_MATCH).iter();
        let lines: Vec<&str> = lines.map(|line| line.to_str().unwrap_or_default()).collect();
        Ok(match lines.as_slice() {
            [] => Self::Any,
            [line] if line.trim() == "*" => Self::Any,
            lines => Self::OneOf(
                lines
                    .iter()
                    .flat_map(|line| line.split(','))
                    .map(|t| t.trim().to_owned())
                    .collect(),
            ),
        })
    }
}
