//! Bodies as bytes: invalid JSON, too large bodies and random bytes.

use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{Method, Request};
use futures_util::stream;
use http_body::{Frame, SizeHint};
use proptest::prelude::*;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::kit::{Api, creation, deletion, new_key, request, with_header, with_json};

const MAX: usize = 64 * 1024;

/// A request that takes a JSON body, for each route that does.
pub(crate) fn with_body(path: &str) -> [Request<Body>; 3] {
    [
        request(Method::POST, "/keys"),
        request(Method::PATCH, path),
        request(Method::POST, &format!("{path}/rotate")),
    ]
}

#[tokio::test]
async fn case_24_invalid_json_is_400() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let bodies: [&[u8]; 8] = [
        b"",
        b"{\"name\":\"k\",\"expiration\":\"never\"",
        b"{\"name\":\"k\"} {}",
        b"name=k&expiration=never",
        b"\xef\xbb\xbf{}",
        b"{\"name\":\"\\ud800\"}",
        b"{\"x\":{\"\xff\":1}}",
        b"{\"name\":NaN}",
    ];
    let deep = "[".repeat(60_000);
    for body in bodies.into_iter().chain([deep.as_bytes()]) {
        for mut request in with_body(&path) {
            *request.body_mut() = Body::from(Bytes::copy_from_slice(body));
            let reply = api.send(with_header(request, CONTENT_TYPE, "application/json")).await;
            assert_eq!(reply.code(), "malformed_body", "{:?}", String::from_utf8_lossy(body));
        }
    }
}

#[tokio::test]
async fn case_24_only_json_is_accepted() {
    let api = Api::new();
    let path = api.create_path("d").await;
    let body = new_key("k").to_string();
    let send = async |lines: &[&str]| {
        let plain = request(Method::POST, "/keys").map(|_| Body::from(body.clone()));
        let add = |request, line: &&str| with_header(request, CONTENT_TYPE, line);
        api.send(lines.iter().fold(plain, add)).await
    };
    for lines in [
        &[][..],
        &[""],
        &["text/plain"],
        &["application/x-www-form-urlencoded"],
        &["multipart/form-data; boundary=application/json"],
        &["application/jsonx"],
        &["application/problem+json"],
        &["text/json"],
        &["text/plain; application/json"],
        &["application/json, text/plain"],
        &["application/json", "application/json"],
        &["application/json", "text/plain"],
        &["application/json\u{fc}"],
    ] {
        assert_eq!(send(lines).await.code(), "unsupported_media_type", "{lines:?}");
    }
    for line in ["APPLICATION/Json", "application/json; charset=utf-8", " application/json ;x"] {
        assert_eq!(send(&[line]).await.status, 201, "{line}");
    }
    for request in with_body(&path) {
        assert_eq!(api.send(request).await.code(), "unsupported_media_type");
    }
    let delete = deletion(&path, "d").map(|_| Body::from("{}"));
    let with_text = with_header(delete, CONTENT_TYPE, "text/plain");
    assert_eq!(api.send(with_text).await.code(), "unsupported_media_type");
    let ignored = api.send(with_json(deletion(&path, "d"), "not JSON, and not read")).await;
    assert_eq!(ignored.status, 204);
}

#[tokio::test]
async fn case_24_a_body_with_a_content_encoding_is_415() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let send = async |lines: &[&str]| {
        let add = |request, line: &&str| with_header(request, CONTENT_ENCODING, line);
        api.send(lines.iter().fold(creation("k"), add)).await
    };
    for lines in
        [&["gzip"][..], &["br"], &["identity, gzip"], &["identity", "deflate"], &["x"], &["\u{fc}"]]
    {
        let reply = send(lines).await;
        assert_eq!(reply.code(), "unsupported_media_type", "{lines:?}");
        assert!(reply.text().contains("Content-Encoding"), "{}", reply.text());
    }
    for lines in [&["identity"][..], &["Identity"], &[""], &["identity", "identity"]] {
        assert_eq!(send(lines).await.status, 201, "{lines:?}");
    }
    let delete = with_header(with_json(deletion(&path, "k"), "{}"), CONTENT_ENCODING, "gzip");
    assert_eq!(api.send(delete).await.code(), "unsupported_media_type");
    assert_eq!(api.get(&path).await.status, 200);
}

/// A body whose length is unknown until it has been read.
fn chunks(body: &str) -> Body {
    let chunks = body.as_bytes().chunks(1_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
    Body::from_stream(stream::iter(chunks.collect::<Vec<std::io::Result<_>>>()))
}

#[tokio::test]
async fn case_24_a_body_has_at_most_64_kib() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let padded = |len: usize| {
        let body = new_key("k").to_string();
        format!("{body}{}", " ".repeat(len - body.len()))
    };
    let send = async |body: Body| {
        let post = request(Method::POST, "/keys").map(|_| body);
        api.send(with_header(post, CONTENT_TYPE, "application/json")).await
    };
    for (len, code) in [(MAX, ""), (MAX + 1, "payload_too_large"), (1 << 20, "payload_too_large")] {
        assert_eq!(send(Body::from(padded(len))).await.code(), code, "{len}");
        assert_eq!(send(chunks(&padded(len))).await.code(), code, "{len} in chunks");
    }
    let untyped = request(Method::POST, "/keys").map(|_| Body::from(padded(MAX + 1)));
    assert_eq!(api.send(untyped).await.code(), "unsupported_media_type", "checked first");
    for request in with_body(&path) {
        let request = with_json(request, padded(MAX + 1));
        let request = with_header(request, CONTENT_LENGTH, &(MAX + 1).to_string());
        assert_eq!(api.send(request).await.code(), "payload_too_large");
    }
}

/// A body that declares its length and never arrives.
struct Announced(u64);

impl HttpBody for Announced {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        panic!("this body must not be read")
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn case_24_a_body_declared_too_long_is_refused_unread_and_one_that_breaks_off_is_invalid() {
    let api = Api::new();
    let broken = [Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("reset"))];
    for (body, code) in [
        (Body::new(Announced(MAX as u64 + 1)), "payload_too_large"),
        (Body::from_stream(stream::iter(broken)), "malformed_body"),
    ] {
        let post = request(Method::POST, "/keys").map(|_| body);
        let reply = api.send(with_header(post, CONTENT_TYPE, "application/json")).await;
        assert_eq!(reply.code(), code);
    }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static FUZZED: LazyLock<(Api, String)> = LazyLock::new(|| {
    RUNTIME.block_on(async {
        let api = Api::new();
        let path = api.create_path("k").await;
        (api, path)
    })
});

fn any_json() -> impl Strategy<Value = Value> {
    const TEXTS: &[&str] = &["never", "active", "10.0.0.1"];
    const FIELDS: &[&str] = &["name", "status", "expiration", "ip_allowlist", "confirm_name"];
    let text = prop_oneof![
        3 => prop::sample::select(TEXTS).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let field = prop_oneof![
        5 => prop::sample::select(FIELDS).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(field.clone(), inner, 0..6).prop_map(Value::from_iter),
        ]
    })
}

/// Any bytes, or JSON that is whole, truncated or has another byte somewhere.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::option::of((any::<prop::sample::Index>(), any::<Option<u8>>()));
    let json = (any_json(), damage).prop_map(|(json, damage)| {
        let mut body = json.to_string().into_bytes();
        match damage.map(|(at, byte)| (at.index(body.len()), byte)) {
            Some((at, Some(byte))) => body[at] = byte,
            Some((at, None)) => body.truncate(at),
            None => {}
        }
        body
    });
    prop_oneof![1 => any::<Vec<u8>>(), 2 => json]
}

proptest! {
    #[test]
    fn case_24_any_body_gets_a_documented_answer(body in any_body()) {
        let is_json = serde_json::from_slice::<Value>(&body).is_ok();
        let (api, path) = &*FUZZED;
        for request in with_body(path) {
            let request = request.map(|_| Body::from(body.clone()));
            let request = with_header(request, CONTENT_TYPE, "application/json");
            // It also checks that the answer matches the document.
            let reply = RUNTIME.block_on(api.send(request));
            let status = reply.status.as_u16();
            prop_assert!([200, 201, 400, 409, 422].contains(&status), "{}", reply.text());
            prop_assert!(status != 400 || !is_json, "{}", reply.text());
        }
    }
}
