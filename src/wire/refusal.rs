//! The responses to refused requests (RFC 6750 § 3, RFC 9457).
//!
//! A response reveals no more than its status: malformed, unknown, revoked and expired keys
//! get the same response, byte for byte.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode, Version};

use crate::manager::admission::AdmitError;
use crate::manager::verify::VerifyError;
use crate::policy::Denial;
use crate::scopes::{MissingScope, Scope};
use crate::wire::grpc::{self, is_grpc};
use crate::wire::unread::{close, has_body};

const INSUFFICIENT_SCOPE: &str = "insufficient_scope";

/// A problem as JSON, and its detail.
macro_rules! problem {
    ($status:literal $title:literal $($code:literal)?; $detail:literal) => {(
        concat!(
            r#"{"type":"about:blank","title":""#, $title, r#"","status":"#, $status,
            $(r#","code":""#, $code, r#"""#,)? r#","detail":""#, $detail, r#""}"#
        ),
        $detail,
    )};
}

/// Why a request is refused, as told to its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoCredentials,
    InvalidRequest,
    InvalidToken,
    NotAllowed,
    InsufficientScope(MissingScope),
    Unavailable,
}

impl Refusal {
    /// The reason, for the operator, why a credential was not looked up.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoCredentials => "no credentials",
            Self::InvalidRequest => "more than one credential",
            Self::InvalidToken => "not a well-formed API key",
            Self::NotAllowed => "not allowed",
            Self::InsufficientScope(_) => "insufficient scope",
            Self::Unavailable => "unavailable",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoCredentials | Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::NotAllowed | Self::InsufficientScope(_) => StatusCode::FORBIDDEN,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The JSON body, and its `detail`.
    fn text(&self) -> (Bytes, Cow<'static, str>) {
        let (body, detail) = match self {
            Self::NoCredentials => problem! {
                401 "Unauthorized";
                "This resource needs an API key: send it as `Authorization: Bearer <key>`."
            },
            Self::InvalidRequest => problem! {
                400 "Bad Request" "invalid_request";
                "Send exactly one credential, in one Authorization header."
            },
            Self::InvalidToken => problem! {
                401 "Unauthorized" "invalid_token";
                "The API key is not valid. It may be mistyped, revoked, expired or deleted."
            },
            Self::NotAllowed => problem! {
                403 "Forbidden" "forbidden";
                "The request is not allowed."
            },
            Self::InsufficientScope(missing) => return insufficient_scope(missing),
            Self::Unavailable => problem! {
                503 "Service Unavailable" "unavailable";
                "The API key could not be checked. Try again shortly."
            },
        };
        (Bytes::from_static(body.as_bytes()), detail.into())
    }

    pub(crate) fn of(error: AdmitError, needed: &[Scope]) -> Self {
        match error {
            AdmitError::Refused(VerifyError::Denied { denial, key }) => match denial {
                Denial::Revoked | Denial::Expired => Self::InvalidToken,
                Denial::IpNotAllowed | Denial::AllowlistUnreadable => Self::NotAllowed,
                Denial::InsufficientScope => {
                    let missing = key.attributes.scopes.missing(needed);
                    Self::InsufficientScope(MissingScope::named(missing.cloned()))
                }
            },
            AdmitError::Refused(VerifyError::Malformed(_) | VerifyError::Unknown) => {
                Self::InvalidToken
            }
            AdmitError::Refused(VerifyError::Unavailable(_)) | AdmitError::NotRecorded(_) => {
                Self::Unavailable
            }
        }
    }
}

/// A scope's name needs no escapes, in JSON or within quotes.
fn insufficient_scope(missing: &MissingScope) -> (Bytes, Cow<'static, str>) {
    let detail = match missing.scope() {
        Some(scope) => format!("The API key does not have the scope `{scope}`."),
        None => "The API key does not have the scope that this request needs.".to_owned(),
    };
    let body = format!(
        r#"{{"type":"about:blank","title":"Forbidden","status":403,"code":"{INSUFFICIENT_SCOPE}","detail":"{detail}"}}"#
    );
    (body.into(), detail.into())
}

/// The parts of a request that decide how its refusal is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) has_body: bool,
    is_grpc: bool,
}

impl Asked {
    pub(crate) fn with(version: Version, headers: &HeaderMap) -> Self {
        Self { has_body: has_body(version, headers), is_grpc: is_grpc(headers) }
    }
}

/// Writes refusals, with prepared challenges for one realm.
#[derive(Clone, Debug)]
pub(crate) struct Refusals {
    bare: HeaderValue,
    invalid_request: HeaderValue,
    invalid_token: HeaderValue,
}

impl Refusals {
    /// Refusals for this realm. Characters that are not allowed in a quoted header value
    /// are replaced by `_`.
    pub(crate) fn new(realm: &str) -> Self {
        let allowed = |c: char| (c == ' ' || c.is_ascii_graphic()) && c != '"' && c != '\\';
        let realm: String = realm.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
        let challenge = |error: &str| {
            HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{error}"))
                .unwrap_or(HeaderValue::from_static("Bearer"))
        };
        Self {
            bare: challenge(""),
            invalid_request: challenge(", error=\"invalid_request\""),
            invalid_token: challenge(", error=\"invalid_token\""),
        }
    }

    /// For an inner layer or a handler, which do not know the realm; [`Refusals::complete`]
    /// adds it.
    pub(crate) fn without_realm() -> Self {
        let bare = HeaderValue::from_static("Bearer");
        Self { invalid_request: bare.clone(), invalid_token: bare.clone(), bare }
    }

    /// The response to a request whose body has not been read.
    pub(crate) fn response(&self, refusal: &Refusal, asked: Asked) -> Response<Bytes> {
        let (body, detail) = refusal.text();
        let mut response = if asked.is_grpc {
            grpc::refusal(refusal.status(), &detail)
        } else {
            self.problem(refusal, body)
        };
        if let Refusal::InsufficientScope(missing) = refusal {
            response.extensions_mut().insert(missing.clone());
        }
        if asked.has_body {
            close(&mut response);
        }
        response
    }

    /// Completes the refusal of an inner layer or a handler for a missing scope. Returns
    /// whether the response is one.
    pub(crate) fn complete<B>(&self, response: &mut Response<B>, asked: Asked) -> bool {
        let Some(missing) = response.extensions().get::<MissingScope>() else {
            // A middleware in between may have kept the headers only.
            return response.status() == StatusCode::FORBIDDEN && is_challenge(response.headers());
        };
        if response.status() == StatusCode::FORBIDDEN {
            let challenge = self.insufficient_scope(missing);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if asked.has_body {
            close(response);
        }
        true
    }

    fn insufficient_scope(&self, missing: &MissingScope) -> HeaderValue {
        let mut challenge = self.bare.as_bytes().to_vec();
        challenge.extend(if challenge.contains(&b'=') { ", " } else { " " }.bytes());
        challenge.extend(format!("error=\"{INSUFFICIENT_SCOPE}\"").bytes());
        if let Some(scope) = missing.scope() {
            challenge.extend(format!(", scope=\"{scope}\"").bytes());
        }
        HeaderValue::try_from(challenge).unwrap_or(HeaderValue::from_static("Bearer"))
    }

    fn problem(&self, refusal: &Refusal, body: Bytes) -> Response<Bytes> {
        let mut response = Response::new(body);
        *response.status_mut() = refusal.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let challenge = match refusal {
            Refusal::NoCredentials => Some(self.bare.clone()),
            Refusal::InvalidRequest => Some(self.invalid_request.clone()),
            Refusal::InvalidToken => Some(self.invalid_token.clone()),
            Refusal::NotAllowed => None,
            Refusal::InsufficientScope(missing) => Some(self.insufficient_scope(missing)),
            Refusal::Unavailable => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
                None
            }
        };
        if let Some(challenge) = challenge {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

fn is_challenge(headers: &HeaderMap) -> bool {
    let challenge = headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let error = format!("error=\"{INSUFFICIENT_SCOPE}\"");
    challenge.is_some_and(|text| text.starts_with("Bearer ") && text.contains(&error))
}

/// The response to a request that no layer has seen: a mistake in the service.
pub(crate) fn missing_layer(asked: Asked) -> Response<Bytes> {
    let (body, detail) = problem! {
        500 "Internal Server Error";
        "No VerifiedKey in the request: is `ApiKeyLayer` installed on this route?"
    };
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let mut response = if asked.is_grpc {
        grpc::refusal(status, detail)
    } else {
        let mut response = Response::new(Bytes::from_static(body.as_bytes()));
        *response.status_mut() = status;
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, problem);
        response
    };
    if asked.has_body {
        close(&mut response);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { has_body: false, is_grpc: false };

    #[test]
    fn a_realm_cannot_break_out_of_its_quotes() {
        let response = Refusals::new("a\"b\\c\r\nd é").response(&Refusal::NoCredentials, ASKED);
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer realm=\"a_b_c__d _\"");
    }

    #[cfg(feature = "admin")]
    #[test]
    fn bodies_are_json_and_say_the_status_of_the_answer() {
        use Refusal::*;
        let scope =
            |name: Option<&str>| MissingScope::named(name.map(|name| name.parse().unwrap()));
        let lacking = [Some("a:._/-"), None].map(|name| InsufficientScope(scope(name)));
        for refusal in [NoCredentials, InvalidRequest, InvalidToken, NotAllowed, Unavailable]
            .into_iter()
            .chain(lacking)
        {
            let response = Refusals::new("api").response(&refusal, ASKED);
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["status"], response.status().as_u16());
        }
    }
}
