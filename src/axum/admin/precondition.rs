//! `ETag` and `If-Match`: the revision that a change is meant for.

use std::convert::Infallible;

use ::axum::extract::FromRequestParts;
use ::http::header::{HeaderValue, IF_MATCH};
use ::http::request::Parts;

use crate::axum::admin::problem::Problem;
use crate::record::{ApiKey, Revision};

/// The entity tag of a key at that revision.
pub(super) fn etag(revision: Revision) -> HeaderValue {
    // Cannot fail: quotes and digits.
    HeaderValue::try_from(tag(revision)).unwrap_or(HeaderValue::from_static(""))
}

fn tag(revision: Revision) -> String {
    format!("\"{}\"", revision.get())
}

/// The revisions that the key may be at.
pub(super) enum IfMatch {
    /// No header, or `*`: any, as long as there is a key.
    Any,
    /// The entity tags of the header's list, or what stands in their place. A
    /// weak one never matches (RFC 9110 § 13.1.1).
    OneOf(Vec<String>),
}

impl IfMatch {
    pub(super) fn check(&self, key: &ApiKey) -> Result<(), Problem> {
        match self {
            Self::OneOf(tags) if !tags.contains(&tag(key.revision)) => Err(Problem::stale()),
            _ => Ok(()),
        }
    }
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
