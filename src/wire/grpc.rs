//! gRPC: refusals in its format, and the HTTP status that a response corresponds to.
//!
//! gRPC responses have HTTP status 200, and `grpc-status` says how a call ended. If there
//! is no message, that is a header (a trailers-only response).

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
const MEDIA_TYPE: &str = "application/grpc";

/// Whether these are the headers of a gRPC request or response.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // May be followed by `+proto`, `-web` or similar.
    let begins = media_type.get(..MEDIA_TYPE.len());
    begins.is_some_and(|begins| begins.eq_ignore_ascii_case(MEDIA_TYPE.as_bytes()))
}

/// The refusal of a call. The message is visible ASCII without `%`.
pub(crate) fn refusal(status: StatusCode, message: HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(GRPC_STATUS, code(status).into());
    headers.insert(GRPC_MESSAGE, message);
    response
}

/// The gRPC code for a refusal with this HTTP status.
fn code(status: StatusCode) -> u16 {
    match status {
        StatusCode::FORBIDDEN => 7,
        StatusCode::TOO_MANY_REQUESTS => 8,
        StatusCode::INTERNAL_SERVER_ERROR => 13,
        StatusCode::SERVICE_UNAVAILABLE => 14,
        // For a call without exactly one valid credential.
        _ => 16,
    }
}

/// The HTTP status that a response corresponds to. For a call that failed before its first
/// message, it is derived from `grpc-status` as in `google.rpc.Code`.
pub(crate) fn http_status<B>(response: &Response<B>) -> u16 {
    let status = response.status().as_u16();
    let headers = response.headers();
    let Some(code) = headers.get(GRPC_STATUS).filter(|_| is_grpc(headers)) else { return status };
    match code.as_bytes() {
        b"0" => status,
        b"1" => 499,
        b"3" | b"9" | b"11" => 400,
        b"4" => 504,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"7" => 403,
        b"8" => 429,
        b"12" => 501,
        b"14" => 503,
        b"16" => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(media_type: &'static str) -> HeaderMap {
        [(CONTENT_TYPE, HeaderValue::from_static(media_type))].into_iter().collect()
    }

    #[test]
    fn a_grpc_call_is_recognised_by_its_media_type() {
        for media_type in
            ["application/grpc", "Application/gRPC+proto", "application/grpc-web+proto"]
        {
            assert!(is_grpc(&of(media_type)), "{media_type}");
        }
        for media_type in ["", "application/json", "application/grp", "text/application/grpc"] {
            assert!(!is_grpc(&of(media_type)), "{media_type}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn an_answer_has_the_http_status_of_its_grpc_status() {
        let answer = |media_type, code: &'static str| {
            let mut response = Response::new(());
            *response.headers_mut() = of(media_type);
            response.headers_mut().insert(GRPC_STATUS, HeaderValue::from_static(code));
            http_status(&response)
        };
        for (code, status) in [("0", 200), ("5", 404), ("13", 500), ("99", 500), ("x", 500)] {
            assert_eq!(answer(MEDIA_TYPE, code), status, "{code}");
            assert_eq!(answer("application/json", code), 200, "{code}");
        }
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        assert_eq!(http_status(&response), 418);
    }
}
