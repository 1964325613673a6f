//! Answers to requests whose body is not read (RFC 9112 § 9.3).
//!
//! What follows on a connection begins behind that body. A server that does not read it
//! closes the connection, and a client that is not told so sends its next request in vain.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Response, Version};

/// Whether a request has a body that holds up what comes behind it on its connection.
/// HTTP/2 has a stream for each request.
pub(crate) fn has_body(version: Version, headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    is_http_1(version) && (length || headers.contains_key(TRANSFER_ENCODING))
}

pub(crate) fn is_http_1(version: Version) -> bool {
    version <= Version::HTTP_11
}

/// Says that no other request is taken on the connection.
pub(crate) fn close<B>(response: &mut Response<B>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}
