//! The responses to refused requests (RFC 6750 § 3, RFC 9457).
//!
//! A response reveals no more than its status: malformed, unknown, revoked and expired keys
//! get the same response, byte for byte.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode, Version};

use crate::manager::admission::AdmitError;
use crate::manager::verify::VerifyError;
use crate::policy::Denial;
use crate::wire::grpc::{self, is_grpc};
use crate::wire::unread::{close, has_body};

/// Why a request is refused, as told to its sender. The extensions of the response to a
/// refused request contain it, which tells it from a response of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// 401: the request has no credential.
    NoCredentials,
    /// 400: the request has more than one credential.
    InvalidRequest,
    /// 401: the credential is not a valid key. It may be malformed, unknown, revoked or
    /// expired.
    InvalidToken,
    /// 403: the client's address is not allowed.
    NotAllowed,
    /// 503: the key could not be checked, or the request not recorded.
    Unavailable,
}

impl Refusal {
    const ALL: [Self; 5] = [
        Self::NoCredentials,
        Self::InvalidRequest,
        Self::InvalidToken,
        Self::NotAllowed,
        Self::Unavailable,
    ];

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

    /// The status of the response.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoCredentials | Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The error code of RFC 6750 § 3.1, or one like it.
    fn code(self) -> Option<&'static str> {
        match self {
            Self::NoCredentials => None,
            Self::InvalidRequest => Some("invalid_request"),
            Self::InvalidToken => Some("invalid_token"),
            Self::NotAllowed => Some("forbidden"),
            Self::Unavailable => Some("unavailable"),
        }
    }

    /// What the sender can do. `header` is where a key is read from as well.
    fn detail(self, header: Option<&HeaderName>) -> String {
        let or = |text: String| if header.is_some() { text } else { String::new() };
        let name = header.map_or("", HeaderName::as_str);
        match self {
            Self::NoCredentials => format!(
                "This resource needs an API key: send it as `Authorization: Bearer <key>`{}.",
                or(format!(" or `{name}: <key>`"))
            ),
            Self::InvalidRequest => format!(
                "Send exactly one credential, in one Authorization{} header.",
                or(format!(" or {name}"))
            ),
            Self::InvalidToken => {
                "The API key is not valid. It may be mistyped, revoked, expired or deleted.".into()
            }
            Self::NotAllowed => "The request is not allowed.".into(),
            Self::Unavailable => "The API key could not be checked. Try again shortly.".into(),
        }
    }

    /// A problem as JSON.
    fn body(self, detail: &str) -> Bytes {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or_default();
        let code = self.code().map(|code| format!(r#","code":"{code}""#)).unwrap_or_default();
        let status = status.as_u16();
        Bytes::from(format!(
            r#"{{"type":"about:blank","title":"{title}","status":{status}{code},"detail":"{detail}"}}"#
        ))
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

/// The host's own response to a refusal, made from ours.
type Hook = dyn Fn(Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static;

/// Writes refusals, with prepared challenges for one realm.
#[derive(Clone)]
pub(crate) struct Refusals {
    bare: HeaderValue,
    invalid_request: HeaderValue,
    invalid_token: HeaderValue,
    texts: Texts,
    hook: Option<Arc<Hook>>,
}

/// The body and the gRPC message of each refusal, written once.
type Texts = Arc<[(Refusal, Bytes, HeaderValue)]>;

fn texts(header: Option<&HeaderName>) -> Texts {
    let text = |refusal: Refusal| {
        let detail = refusal.detail(header);
        let message = HeaderValue::try_from(&*detail);
        (refusal, refusal.body(&detail), message.unwrap_or(HeaderValue::from_static("")))
    };
    Refusal::ALL.into_iter().map(text).collect()
}

impl Refusals {
    /// Refusals for this realm. Characters that are not allowed in a quoted header value
    /// are replaced by `_`.
    pub(crate) fn new(realm: &str) -> Self {
        let mut refusals = Self {
            bare: HeaderValue::from_static("Bearer"),
            invalid_request: HeaderValue::from_static("Bearer"),
            invalid_token: HeaderValue::from_static("Bearer"),
            texts: texts(None),
            hook: None,
        };
        refusals.set_realm(realm);
        refusals
    }

    pub(crate) fn set_realm(&mut self, realm: &str) {
        let allowed = |c: char| (c == ' ' || c.is_ascii_graphic()) && c != '"' && c != '\\';
        let realm: String = realm.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
        let challenge = |error: &str| {
            HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{error}"))
                .unwrap_or(HeaderValue::from_static("Bearer"))
        };
        self.bare = challenge("");
        self.invalid_request = challenge(", error=\"invalid_request\"");
        self.invalid_token = challenge(", error=\"invalid_token\"");
    }

    /// Names another header from which keys are read.
    pub(crate) fn set_header(&mut self, header: &HeaderName) {
        self.texts = texts(Some(header));
    }

    pub(crate) fn set_hook(&mut self, hook: Arc<Hook>) {
        self.hook = Some(hook);
    }

    /// The response to a request whose body has not been read.
    pub(crate) fn response(&self, refusal: Refusal, asked: Asked) -> Response<Bytes> {
        let text = self.texts.iter().find(|(of, ..)| *of == refusal).cloned();
        let (_, body, message) = text.unwrap_or((refusal, Bytes::new(), self.bare.clone()));
        let mut response = if asked.is_grpc {
            grpc::refusal(refusal.status(), message)
        } else {
            self.hooked(refusal, self.problem(refusal, body))
        };
        response.extensions_mut().insert(refusal);
        if asked.has_body {
            close(&mut response);
        }
        response
    }

    /// The host's response, which must not look like success.
    fn hooked(&self, refusal: Refusal, ours: Response<Bytes>) -> Response<Bytes> {
        let Some(hook) = &self.hook else { return ours };
        let mut response = hook(refusal, ours);
        if !(response.status().is_client_error() || response.status().is_server_error()) {
            *response.status_mut() = refusal.status();
        }
        response
    }

    fn problem(&self, refusal: Refusal, body: Bytes) -> Response<Bytes> {
        let mut response = Response::new(body);
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

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").field("challenge", &self.bare).finish_non_exhaustive()
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
    fn bodies_are_json_and_say_the_status_of_the_answer() {
        for refusal in Refusal::ALL {
            let response = Refusals::new("api").response(refusal, ASKED);
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["status"], response.status().as_u16());
        }
    }
}
