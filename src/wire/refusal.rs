//! The responses to refused requests (RFC 6750 § 3, RFC 9457).
//!
//! A response reveals no more than its status: malformed, unknown, revoked and expired keys
//! get the same response, byte for byte.

use std::fmt;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode, Version};

use crate::manager::admission::AdmitError;
use crate::manager::rate::{RateStatus, seconds};
use crate::manager::verify::VerifyError;
use crate::policy::Denial;
use crate::scopes::{MissingScope, Scope};
use crate::wire::grpc::{self, is_grpc};
use crate::wire::unread::{close, has_body};

const INSUFFICIENT_SCOPE: &str = "insufficient_scope";

/// Why a request is refused, as told to its sender. The extensions of the response to a
/// refused request contain it, which tells it from a response of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// 403: the key does not have the scope that the request needs.
    InsufficientScope(MissingScope),
    /// 429: the key has reached its rate limit.
    RateLimited(RateStatus),
    /// 503: the key could not be checked, or the request not recorded.
    Unavailable,
}

impl Refusal {
    /// Those that are the same for all keys and scopes.
    const FIXED: [Self; 5] = [
        Self::NoCredentials,
        Self::InvalidRequest,
        Self::InvalidToken,
        Self::NotAllowed,
        Self::Unavailable,
    ];

    /// The reason, for the operator, why a credential was not looked up.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoCredentials => "no credentials",
            Self::InvalidRequest => "more than one credential",
            Self::InvalidToken => "not a well-formed API key",
            Self::NotAllowed => "not allowed",
            Self::InsufficientScope(_) => "insufficient scope",
            Self::RateLimited(_) => "rate limit",
            Self::Unavailable => "unavailable",
        }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoCredentials | Self::InvalidToken => StatusCode::UNAUTHORIZED,
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::NotAllowed | Self::InsufficientScope(_) => StatusCode::FORBIDDEN,
            Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The error code of RFC 6750 § 3.1, or one like it.
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::NoCredentials => None,
            Self::InvalidRequest => Some("invalid_request"),
            Self::InvalidToken => Some("invalid_token"),
            Self::NotAllowed => Some("forbidden"),
            Self::InsufficientScope(_) => Some(INSUFFICIENT_SCOPE),
            Self::RateLimited(_) => Some("rate_limited"),
            Self::Unavailable => Some("unavailable"),
        }
    }

    /// What the sender can do. `header` is where a key is read from as well.
    fn detail(&self, header: Option<&HeaderName>) -> String {
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
            // A scope's name needs no escapes, in JSON or within quotes.
            Self::InsufficientScope(missing) => match missing.scope() {
                Some(scope) => format!("The API key does not have the scope `{scope}`."),
                None => "The API key does not have the scope that this request needs.".into(),
            },
            Self::RateLimited(rate) => format!(
                "The API key may make {} in {}. Try again in {}.",
                counted(rate.policy.quota().into(), "request"),
                counted(seconds(rate.policy.window()), "second"),
                counted(wait(rate), "second"),
            ),
            Self::Unavailable => "The API key could not be checked. Try again shortly.".into(),
        }
    }

    pub(crate) fn of(error: AdmitError, needed: &[Scope]) -> Self {
        match error {
            AdmitError::Refused(VerifyError::Denied { denial, key, .. }) => match denial {
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
            AdmitError::RateLimited(rate) => Self::RateLimited(rate),
            AdmitError::Refused(VerifyError::Unavailable(_)) | AdmitError::NotRecorded(_) => {
                Self::Unavailable
            }
        }
    }
}

/// For how many seconds the sender should wait. At least one: after none, it would be refused again.
fn wait(rate: &RateStatus) -> u64 {
    seconds(rate.retry_after.unwrap_or_default()).max(1)
}

/// A number of things, in words.
fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Says on a response what is left of a rate limit (draft-ietf-httpapi-ratelimit-headers-11).
pub(crate) fn set_rate(headers: &mut HeaderMap, rate: &RateStatus) {
    for (field, text) in [(RATE_LIMIT_POLICY, rate.policy.header()), (RATE_LIMIT, &rate.header())] {
        // Always valid.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(field, value);
        }
    }
}

/// A problem as JSON (RFC 9457).
fn problem_body(status: StatusCode, code: Option<&str>, detail: &str) -> Bytes {
    // The type is registered by the draft of the rate limit headers.
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => {
            "https://iana.org/assignments/http-problem-types#quota-exceeded"
        }
        _ => "about:blank",
    };
    let title = status.canonical_reason().unwrap_or_default();
    let code = code.map(|code| format!(r#","code":"{code}""#)).unwrap_or_default();
    let status = status.as_u16();
    Bytes::from(format!(
        r#"{{"type":"{kind}","title":"{title}","status":{status}{code},"detail":"{detail}"}}"#
    ))
}

fn problem(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// A text that consists of characters that a header may have.
fn header_value(text: impl TryInto<HeaderValue>) -> HeaderValue {
    text.try_into().unwrap_or(HeaderValue::from_static("Bearer"))
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

    /// The HTTP status that the response corresponds to.
    pub(crate) fn status_of<B>(self, response: &Response<B>) -> u16 {
        if self.is_grpc { grpc::http_status(response) } else { response.status().as_u16() }
    }
}

/// The host's own response to a refusal, made from ours.
type Hook = dyn Fn(&Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static;

/// Writes refusals.
#[derive(Clone)]
pub(crate) struct Refusals {
    /// The challenge without an error: `Bearer`, with the realm if it is known.
    challenge: HeaderValue,
    /// Another header from which keys are read.
    header: Option<HeaderName>,
    /// Those that are the same for all keys and scopes, written once.
    fixed: Arc<[Written]>,
    hook: Option<Arc<Hook>>,
}

/// The parts of the response to a refusal.
#[derive(Clone)]
struct Written {
    refusal: Refusal,
    body: Bytes,
    /// For gRPC.
    message: HeaderValue,
    challenge: Option<HeaderValue>,
}

impl Refusals {
    /// Refusals for this realm. Characters that are not allowed in a quoted header value
    /// are replaced by `_`.
    pub(crate) fn new(realm: &str) -> Self {
        let mut refusals = Self::without_realm();
        refusals.set_realm(realm);
        refusals
    }

    /// For an inner layer or a handler, which do not know the realm; [`Refusals::complete`]
    /// adds it.
    pub(crate) fn without_realm() -> Self {
        let challenge = HeaderValue::from_static("Bearer");
        Self { challenge, header: None, fixed: Arc::default(), hook: None }
    }

    pub(crate) fn set_realm(&mut self, realm: &str) {
        let allowed = |c: char| (c == ' ' || c.is_ascii_graphic()) && c != '"' && c != '\\';
        let realm: String = realm.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
        self.challenge = header_value(format!("Bearer realm=\"{realm}\""));
        self.fixed = Refusal::FIXED.into_iter().map(|refusal| self.write(refusal)).collect();
    }

    /// Names another header from which keys are read.
    pub(crate) fn set_header(&mut self, header: &HeaderName) {
        self.header = Some(header.clone());
        self.fixed = Refusal::FIXED.into_iter().map(|refusal| self.write(refusal)).collect();
    }

    pub(crate) fn set_hook(&mut self, hook: Arc<Hook>) {
        self.hook = Some(hook);
    }

    fn write(&self, refusal: Refusal) -> Written {
        let detail = refusal.detail(self.header.as_ref());
        let body = problem_body(refusal.status(), refusal.code(), &detail);
        let challenge = self.challenge(&refusal);
        Written { refusal, body, message: header_value(detail), challenge }
    }

    /// The challenge of RFC 6750 § 3, if the refusal has one.
    fn challenge(&self, refusal: &Refusal) -> Option<HeaderValue> {
        let error = match refusal {
            Refusal::NoCredentials => return Some(self.challenge.clone()),
            Refusal::NotAllowed | Refusal::RateLimited(_) | Refusal::Unavailable => return None,
            refusal => refusal.code()?,
        };
        let mut challenge = self.challenge.as_bytes().to_vec();
        challenge.extend(if challenge.contains(&b'=') { ", " } else { " " }.bytes());
        challenge.extend(format!("error=\"{error}\"").bytes());
        if let Refusal::InsufficientScope(missing) = refusal
            && let Some(scope) = missing.scope()
        {
            challenge.extend(format!(", scope=\"{scope}\"").bytes());
        }
        Some(header_value(challenge))
    }

    /// The response to a request whose body has not been read.
    pub(crate) fn response(&self, refusal: &Refusal, asked: Asked) -> Response<Bytes> {
        let fixed = self.fixed.iter().find(|written| written.refusal == *refusal).cloned();
        let Written { body, message, challenge, .. } =
            fixed.unwrap_or_else(|| self.write(refusal.clone()));
        let mut response = if asked.is_grpc {
            grpc::refusal(refusal.status(), message)
        } else {
            let mut ours = problem(refusal.status(), body);
            ours.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            if let Some(challenge) = challenge {
                ours.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            }
            match refusal {
                Refusal::Unavailable => {
                    ours.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                }
                Refusal::RateLimited(rate) => {
                    ours.headers_mut().insert(RETRY_AFTER, wait(rate).into());
                }
                _ => {}
            }
            self.hooked(refusal, ours)
        };
        if let Refusal::InsufficientScope(missing) = refusal {
            response.extensions_mut().insert(missing.clone());
        }
        response.extensions_mut().insert(refusal.clone());
        if asked.has_body {
            close(&mut response);
        }
        response
    }

    /// The host's response, which must not look like success.
    fn hooked(&self, refusal: &Refusal, ours: Response<Bytes>) -> Response<Bytes> {
        let Some(hook) = &self.hook else { return ours };
        let mut response = hook(refusal, ours);
        if !(response.status().is_client_error() || response.status().is_server_error()) {
            *response.status_mut() = refusal.status();
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
        if response.status() == StatusCode::FORBIDDEN
            && let Some(challenge) = self.challenge(&Refusal::InsufficientScope(missing.clone()))
        {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if asked.has_body {
            close(response);
        }
        true
    }

    /// The host's own response in place of a refusal of an inner layer or a handler, if the
    /// host writes its own.
    pub(crate) fn rewritten<B>(
        &self,
        response: &mut Response<B>,
        asked: Asked,
    ) -> Option<Response<Bytes>> {
        self.hook.as_ref().filter(|_| response.status() == StatusCode::FORBIDDEN)?;
        let missing = response.extensions().get::<MissingScope>()?.clone();
        let mut own = self.response(&Refusal::InsufficientScope(missing), asked);
        own.extensions_mut().extend(mem::take(response.extensions_mut()));
        Some(own)
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").field("challenge", &self.challenge).finish_non_exhaustive()
    }
}

fn is_challenge(headers: &HeaderMap) -> bool {
    let challenge = headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let error = format!("error=\"{INSUFFICIENT_SCOPE}\"");
    challenge.is_some_and(|text| text.starts_with("Bearer ") && text.contains(&error))
}

/// The response to a request that no layer has seen: a mistake in the service.
pub(crate) fn missing_layer(asked: Asked) -> Response<Bytes> {
    const DETAIL: &str = "No VerifiedKey in the request: is `ApiKeyLayer` installed on this route?";
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let mut response = if asked.is_grpc {
        grpc::refusal(status, HeaderValue::from_static(DETAIL))
    } else {
        problem(status, problem_body(status, None, DETAIL))
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

    #[test]
    fn a_rate_limit_is_told_in_words_and_never_with_a_wait_of_zero() {
        use std::time::Duration;

        use crate::manager::rate::RatePolicy;

        for (quota, window, retry_after, text) in [
            (1, 1, None, "1 request in 1 second. Try again in 1 second."),
            (60, 60, Some(1), "60 requests in 60 seconds. Try again in 1 second."),
            (2, 3_600, Some(1_200), "2 requests in 3600 seconds. Try again in 1200 seconds."),
        ] {
            let policy = RatePolicy::new("default", quota, Duration::from_secs(window)).unwrap();
            let mut rate = RateStatus::new(Arc::new(policy));
            rate.retry_after = retry_after.map(Duration::from_secs);
            let detail = Refusal::RateLimited(rate).detail(None);
            assert_eq!(detail, format!("The API key may make {text}"));
        }
    }

    #[cfg(feature = "admin")]
    #[test]
    fn bodies_are_json_with_the_status_of_the_answer() {
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
