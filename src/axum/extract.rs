//! `VerifiedKey` as an axum extractor.

use ::axum::extract::{FromRequestParts, OptionalFromRequestParts};
use ::axum::response::{IntoResponse, Response};
use ::http::StatusCode;
use ::http::header::{CONTENT_TYPE, HeaderValue};
use ::http::request::Parts;
use thiserror::Error;

use crate::http::refusal::{Refusal, Refusals};
use crate::manager::verify::VerifiedKey;
use crate::tower::layer::Anonymous;

/// In a handler behind [`ApiKeyLayer`](crate::ApiKeyLayer):
///
/// ```
/// use keygate::VerifiedKey;
///
/// async fn whoami(key: VerifiedKey) -> String {
///     format!("{} of {}", key.name(), key.org())
/// }
///
/// /// Behind [`ApiKeyLayer::optional`](keygate::ApiKeyLayer::optional).
/// async fn greet(key: Option<VerifiedKey>) -> String {
///     key.map_or("Hello, whoever you are".into(), |key| format!("Hello, {}", key.org()))
/// }
/// ```
impl<S: Send + Sync> FromRequestParts<S> for VerifiedKey {
    type Rejection = KeyRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, KeyRejection> {
        optional(parts)?.ok_or(KeyRejection::Anonymous)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for VerifiedKey {
    type Rejection = KeyRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, KeyRejection> {
        optional(parts)
    }
}

fn optional(parts: &Parts) -> Result<Option<VerifiedKey>, KeyRejection> {
    let key = parts.extensions.get::<VerifiedKey>().cloned();
    if key.is_none() && parts.extensions.get::<Anonymous>().is_none() {
        tracing::error!(path = parts.uri.path(), "{}", KeyRejection::MissingLayer);
        return Err(KeyRejection::MissingLayer);
    }
    Ok(key)
}

/// Why a handler got no [`VerifiedKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyRejection {
    /// The route is not behind a layer: a mistake in the service. 500.
    #[error("no VerifiedKey in the request: is `ApiKeyLayer` installed on this route?")]
    MissingLayer,
    /// Optional authentication let the request through, and the handler insists
    /// on a key. 401.
    #[error("the request carries no API key")]
    Anonymous,
}

impl IntoResponse for KeyRejection {
    fn into_response(self) -> Response {
        match self {
            Self::Anonymous => {
                Refusals::new("api").response(Refusal::NoCredentials).map(Into::into)
            }
            Self::MissingLayer => {
                let body = r#"{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"No VerifiedKey in the request: is `ApiKeyLayer` installed on this route?"}"#;
                let mut response = (StatusCode::INTERNAL_SERVER_ERROR, body).into_response();
                let problem = HeaderValue::from_static("application/problem+json");
                response.headers_mut().insert(CONTENT_TYPE, problem);
                response
            }
        }
    }
}
