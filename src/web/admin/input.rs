//! Extractors: the key's id, a checked query, a checked body, an idempotency key.

use axum::RequestExt;
use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;

use crate::key::id::KeyId;
use crate::key::idempotency::{IdempotencyKey, IdempotencyKeyError};
use crate::manager::KeyManager;
use crate::web::admin::fields::Fields;
use crate::web::admin::problem::{Code, Problem};

/// The largest body, in bytes: several times the size of the longest allowlist.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// A value parsed from the fields of a body or a query.
pub(super) trait Input: Sized {
    /// Takes the fields that it knows. Returns `None` only after adding an error.
    fn read(fields: &mut Fields, keys: &KeyManager) -> Option<Self>;
}

/// No fields.
impl Input for () {
    fn read(_: &mut Fields, _: &KeyManager) -> Option<Self> {
        Some(())
    }
}

fn finish<T: Input>(mut fields: Fields, keys: &KeyManager) -> Result<T, Problem> {
    let value = T::read(&mut fields, keys);
    fields.finish(value)
}

/// The `{id}` of the path. A malformed id is treated as the id of an unknown key.
pub(super) struct Id(pub(super) KeyId);

impl FromRequestParts<KeyManager> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, keys: &KeyManager) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, keys).await.ok();
        // The last parameter of this name: the path under which the host nests this may
        // have parameters, too.
        let id = params.iter().flatten().filter(|(name, _)| *name == "id").last();
        let id = id.and_then(|(_, text)| text.parse().ok());
        id.map(Self).ok_or_else(Problem::no_such_key)
    }
}

/// The parameters of the query; `()` for a route that has none.
pub(super) struct InQuery<T>(pub(super) T);

impl<T: Input> FromRequestParts<KeyManager> for InQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, keys: &KeyManager) -> Result<Self, Problem> {
        let fields = Fields::of_query(parts.uri.query().unwrap_or_default())?;
        finish(fields, keys).map(Self)
    }
}

/// The header that prevents a creation from being repeated.
pub(super) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The value of this header, if there is one.
pub(super) struct Idempotency(pub(super) Option<IdempotencyKey>);

impl FromRequestParts<KeyManager> for Idempotency {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &KeyManager) -> Result<Self, Problem> {
        let mut lines = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let (Some(line), another) = (lines.next(), lines.next()) else { return Ok(Self(None)) };
        if another.is_some() {
            return Err(Problem::invalid_field(IDEMPOTENCY_KEY, "must be given only once"));
        }
        let key = line.to_str().map_err(|_| IdempotencyKeyError).and_then(str::parse);
        key.map(|key| Self(Some(key)))
            .map_err(|error| Problem::invalid_field(IDEMPOTENCY_KEY, error.to_string()))
    }
}

/// The fields of a JSON body.
pub(super) struct InBody<T>(pub(super) T);

impl<T: Input> FromRequest<KeyManager> for InBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, keys: &KeyManager) -> Result<Self, Problem> {
        require_json(request.headers())?;
        // A declared length is trusted; otherwise the bytes are counted.
        if request.body().size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let body = request.extract::<Bytes, _>().await.map_err(|error| match error {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                too_large()
            }
            _ => Problem::new(Code::MalformedBody, "The body is incomplete."),
        })?;
        finish(Fields::of_body(&body)?, keys).map(Self)
    }
}

/// A body that is not used. It must still be JSON, since pages of other sites can send
/// other types without a preflight request.
pub(super) struct IgnoredBody;

impl FromRequest<KeyManager> for IgnoredBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &KeyManager) -> Result<Self, Problem> {
        if !request.body().is_end_stream() {
            require_json(request.headers())?;
        }
        Ok(Self)
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let plain = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"identity");
    if !codings.all(|coding| coding.trim_ascii().is_empty() || plain(coding)) {
        let detail =
            "Send the body without a `Content-Encoding`: compressed bodies are not accepted.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    let media_type = match (lines.next(), lines.next()) {
        (Some(line), None) => line.to_str().unwrap_or_default(),
        _ => "",
    };
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        let detail = "Send the body as `Content-Type: application/json`.";
        Err(Problem::new(Code::UnsupportedMediaType, detail))
    }
}

fn too_large() -> Problem {
    Problem::new(Code::PayloadTooLarge, format!("The body must have at most {MAX_BODY} bytes."))
}
