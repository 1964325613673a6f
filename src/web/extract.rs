//! `VerifiedKey` as an axum extractor.

use std::fmt;

use axum::extract::{FromRequestParts, MatchedPath, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;

use crate::guard::config::Anonymous;
use crate::manager::verify::VerifiedKey;
use crate::scopes::MissingScope;
use crate::wire::refusal::{Asked, Refusal, Refusals, missing_layer};

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
///     key.map_or("Hello, stranger".into(), |key| format!("Hello, {}", key.org()))
/// }
/// ```
impl<S: Send + Sync> FromRequestParts<S> for VerifiedKey {
    type Rejection = KeyRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, KeyRejection> {
        match parts.extensions.get::<VerifiedKey>() {
            Some(key) => Ok(key.clone()),
            None => Err(anonymous(parts)?),
        }
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for VerifiedKey {
    type Rejection = KeyRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, KeyRejection> {
        match parts.extensions.get::<VerifiedKey>() {
            Some(key) => Ok(Some(key.clone())),
            None => anonymous(parts).map(|_| None),
        }
    }
}

/// The refusal for a request that optional authentication admitted. Fails if no layer has
/// seen the request.
fn anonymous(parts: &Parts) -> Result<KeyRejection, KeyRejection> {
    let asked = Asked::with(parts.version, &parts.headers);
    if let Some(Anonymous(refusals)) = parts.extensions.get() {
        return Ok(KeyRejection { refusals: Some(Box::new(refusals.clone())), asked });
    }
    // The route as declared, since a path could contain a key.
    let route = parts.extensions.get().map_or("(fallback)", MatchedPath::as_str);
    let rejection = KeyRejection { refusals: None, asked };
    tracing::error!(route, "{rejection}");
    Err(rejection)
}

/// Why a handler got no [`VerifiedKey`]. Either the route is not behind a layer, which is a
/// mistake in the service and answered with 500. Or optional authentication admitted the
/// request but the handler requires a key, which is answered with 401.
#[derive(Clone, Debug)]
pub struct KeyRejection {
    refusals: Option<Box<Refusals>>,
    asked: Asked,
}

impl fmt::Display for KeyRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.refusals {
            None => "no VerifiedKey in the request: is `ApiKeyLayer` installed on this route?",
            Some(_) => "the request carries no API key",
        })
    }
}

impl std::error::Error for KeyRejection {}

impl IntoResponse for KeyRejection {
    fn into_response(self) -> Response {
        let Some(refusals) = self.refusals else {
            return missing_layer(self.asked).map(Into::into);
        };
        refusals.response(&Refusal::NoCredentials, self.asked).map(Into::into)
    }
}

/// In a handler that returns the error of
/// [`VerifiedKey::require_scope`](crate::VerifiedKey::require_scope).
impl IntoResponse for MissingScope {
    fn into_response(self) -> Response {
        let refusal = Refusal::InsufficientScope(self);
        Refusals::without_realm().response(&refusal, Asked::default()).map(Into::into)
    }
}
