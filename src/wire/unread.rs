//! Responses to requests whose body is not read (RFC 9112 § 9.3).
//!
//! The next request on a connection follows after that body. A server that does not read
//! the body closes the connection, and a client that is not told sends its next request in
//! vain.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Response, Version};

/// Whether a request has a body that blocks the next request on its connection. In HTTP/2
/// each request has its own stream.
pub(crate) fn has_body(version: Version, headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    is_http_1(version) && (length || headers.contains_key(TRANSFER_ENCODING))
}

pub(crate) fn is_http_1(version: Version) -> bool {
    version <= Version::HTTP_11
}

/// Announces that the connection will be closed.
pub(crate) fn close<B>(response: &mut Response<B>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}
