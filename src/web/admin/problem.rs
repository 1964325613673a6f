//! Errors of the management API, as in RFC 9457.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use serde::Serialize;

use crate::key::name::KeyNameError;
use crate::manager::error::ManageError;
use crate::text::with_causes;
use crate::throttle::Throttle;

/// The table of codes.
macro_rules! codes {
    ($($code:ident $name:literal $status:ident;)+) => {
        /// Tells programs what went wrong. Since programs depend on them, the names and
        /// statuses of codes never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Code {
            $($code),+
        }

        impl Code {
            pub(super) const ALL: &[Self] = &[$(Self::$code),+];

            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name),+
                }
            }

            pub(super) fn status(self) -> StatusCode {
                match self {
                    $(Self::$code => StatusCode::$status),+
                }
            }
        }
    };
}

codes! {
    MalformedBody "malformed_body" BAD_REQUEST;
    Unauthenticated "unauthenticated" UNAUTHORIZED;
    CrossSite "cross_site" FORBIDDEN;
    NotFound "not_found" NOT_FOUND;
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED;
    KeyLimitReached "key_limit_reached" CONFLICT;
    Conflict "conflict" CONFLICT;
    AlreadyCreated "already_created" CONFLICT;
    StaleRevision "stale_revision" PRECONDITION_FAILED;
    PayloadTooLarge "payload_too_large" PAYLOAD_TOO_LARGE;
    UnsupportedMediaType "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE;
    ValidationFailed "validation_failed" UNPROCESSABLE_ENTITY;
    ConfirmationMismatch "confirmation_mismatch" UNPROCESSABLE_ENTITY;
    Unavailable "unavailable" SERVICE_UNAVAILABLE;
}

/// An error response. It never repeats text that could be a credential.
#[derive(Debug)]
pub(super) struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    location: Option<HeaderValue>,
}

/// An error in one field of a body, one parameter of a query or one header.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct FieldError {
    pub(super) field: Cow<'static, str>,
    pub(super) message: Cow<'static, str>,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), location: None }
    }

    pub(super) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = "The request is invalid; see `errors`.";
        Self { errors, ..Self::new(Code::ValidationFailed, detail) }
    }

    pub(super) fn invalid_field(
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::invalid(vec![FieldError { field: field.into(), message: message.into() }])
    }

    pub(super) fn no_such_key() -> Self {
        Self::new(Code::NotFound, "The organisation has no such key.")
    }

    pub(super) fn stale() -> Self {
        let detail = "The key was changed in the meantime. Read it again before you retry.";
        Self::new(Code::StaleRevision, detail)
    }

    pub(super) fn unauthenticated() -> Self {
        Self::new(Code::Unauthenticated, "Log in first.")
    }

    pub(super) fn conflict() -> Self {
        Self::new(Code::Conflict, "Another change to the key came first and was kept.")
    }

    /// The problem of a request that only reads.
    pub(super) fn reading(error: ManageError) -> Self {
        match Self::from(error) {
            Self { code: Code::Unavailable, .. } => Self::new(
                Code::Unavailable,
                "The keys cannot be read at present. Try again shortly.",
            ),
            other => other,
        }
    }

    /// Adds a `Location` header.
    pub(super) fn at(self, location: Option<HeaderValue>) -> Self {
        Self { location, ..self }
    }
}

static UNAVAILABLE: LazyLock<Throttle> = LazyLock::new(Throttle::default);
static IN_DOUBT: LazyLock<Throttle> = LazyLock::new(Throttle::default);

impl From<ManageError> for Problem {
    fn from(error: ManageError) -> Self {
        match error {
            ManageError::NotFound => Self::no_such_key(),
            ManageError::LimitReached { max } => {
                let detail = format!(
                    "The organisation has reached its limit of {max} keys; revoked and expired ones count. Delete one first."
                );
                Self::new(Code::KeyLimitReached, detail)
            }
            ManageError::AllowlistTooLong { max } => {
                Self::invalid_field("ip_allowlist", format!("must have at most {max} entries"))
            }
            ManageError::NameHoldsKey => {
                Self::invalid_field("name", KeyNameError::HoldsKey.to_string())
            }
            ManageError::UnknownEnvironment => {
                Self::invalid_field("environment", "is not one of the environments")
            }
            ManageError::ExpirationInThePast => {
                Self::invalid_field("expiration", "must be in the future")
            }
            ManageError::ScopesMissing => Self::invalid_field("scopes", "is required"),
            ManageError::ScopeNotOffered { position } => Self::invalid_field(
                "scopes",
                format!("entry {position}: this service does not offer the scope"),
            ),
            ManageError::OverlapTooLong { max } => {
                let message = format!("must be at most {}", max.as_secs());
                Self::invalid_field("overlap_seconds", message)
            }
            ManageError::Conflict => Self::conflict(),
            ManageError::StaleRevision { .. } => Self::stale(),
            ManageError::AlreadyCreated { .. } => {
                let detail = "This `Idempotency-Key` has created a key in the last 24 hours, and its secret is not shown again. Rotate that key if its secret was lost.";
                Self::new(Code::AlreadyCreated, detail)
            }
            ManageError::Unavailable(error) => {
                if let Some(left_out) = UNAVAILABLE.pass() {
                    let error = with_causes(&*error);
                    tracing::error!(error, left_out, "key management is unavailable");
                }
                Self::new(Code::Unavailable, "Nothing was changed. Try again shortly.")
            }
            ManageError::InDoubt(error) => {
                if let Some(left_out) = IN_DOUBT.pass() {
                    let error = with_causes(&*error);
                    tracing::error!(error, left_out, "a change of a key was not confirmed");
                }
                let detail = "The change was not confirmed and may have taken place. Read the key before you retry.";
                Self::new(Code::Unavailable, detail)
            }
        }
    }
}

#[derive(Serialize)]
struct ProblemBody<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let body = ProblemBody {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            code: self.code.name(),
            detail: &self.detail,
            errors: &self.errors,
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(location) = self.location {
            headers.insert(LOCATION, location);
        }
        response
    }
}
