//! The responses to refused requests (RFC 6750 § 3, RFC 9457).
//!
//! A response reveals no more than its status: malformed, unknown, revoked and expired keys
//! get the same response, byte for byte.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode, Version};

use crate::manager::admission::AdmitError;
use crate::manager::verify::VerifyError;
use crate::policy::Denial;
use crate::wire::grpc::{self, is_grpc};
use crate::wire::unread::{close, has_body};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoCredentials,
    InvalidRequest,
    InvalidToken,
    NotAllowed,
    Unavailable,
}

impl Refusal {
    /// The reason, for the operator, why a credential was not looked up.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoCredentials => "no credentials",
            Self::InvalidRequest => "more than one credential",
            Self::InvalidToken => "not a well-formed API key",
            Self::NotAllowed => "not allowed",
            Self::Unavailable => "unavailable",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::NoCredentials | Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The JSON body, and its `detail`.
    fn text(self) -> (&'static str, &'static str) {
        match self {
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
            Self::Unavailable => problem! {
                503 "Service Unavailable" "unavailable";
                "The API key could not be checked. Try again shortly."
            },
        }
    }
}

impl From<AdmitError> for Refusal {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Refused(VerifyError::Denied { denial, .. }) => match denial {
                Denial::Revoked | Denial::Expired => Self::InvalidToken,
                Denial::IpNotAllowed | Denial::AllowlistUnreadable => Self::NotAllowed,
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

/// The parts of a request that decide how its refusal is written.
#[derive(Clone, Copy, Debug)]
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

    /// The response to a request whose body has not been read.
    pub(crate) fn response(&self, refusal: Refusal, asked: Asked) -> Response<Bytes> {
        let (body, detail) = refusal.text();
        let mut response = if asked.is_grpc {
            grpc::refusal(refusal.status(), detail)
        } else {
            self.problem(refusal, body)
        };
        if asked.has_body {
            close(&mut response);
        }
        response
    }

    fn problem(&self, refusal: Refusal, body: &'static str) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from_static(body.as_bytes()));
        *response.status_mut() = refusal.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let challenge = match refusal {
            Refusal::NoCredentials => Some(&self.bare),
            Refusal::InvalidRequest => Some(&self.invalid_request),
            Refusal::InvalidToken => Some(&self.invalid_token),
            Refusal::NotAllowed => None,
            Refusal::Unavailable => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
                None
            }
        };
        if let Some(challenge) = challenge {
            headers.insert(WWW_AUTHENTICATE, challenge.clone());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { has_body: false, is_grpc: false };

    #[test]
    fn a_realm_cannot_break_out_of_its_quotes() {
        let response = Refusals::new("a\"b\\c\r\nd é").response(Refusal::NoCredentials, ASKED);
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer realm=\"a_b_c__d _\"");
    }

    #[cfg(feature = "admin")]
    #[test]
    fn bodies_are_json_with_the_status_of_the_answer() {
        use Refusal::*;
        for refusal in [NoCredentials, InvalidRequest, InvalidToken, NotAllowed, Unavailable] {
            let response = Refusals::new("api").response(refusal, ASKED);
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["status"], response.status().as_u16());
        }
    }
}
