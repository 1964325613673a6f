//! The layer on hostile `Authorization` headers, one line of it a line of input:
//! `cargo +nightly fuzz run authorization -- -max_total_time=60 -dict=fuzz/dictionaries/authorization.dict`.
//!
//! A naive second reading says which of the five answers it must be. Only the one key
//! there is, as the only credential, reaches the service; every refusal is byte for
//! byte one of four, so that nothing of a credential comes back; never 5xx.
#![no_main]

use std::convert::Infallible;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Request, Response};
use http_body_util::BodyExt;
use keygate::store::{KeyDigest, OrgLimit, Revision};
use keygate::{
    Allowlist, ApiKey, ApiKeyLayer, KeyFormat, KeyId, KeyManager, KeyName, KeyStore, MemoryStore,
    OrgId, Status, Timestamp, VerifiedKey,
};
use libfuzzer_sys::fuzz_target;
use tower::{Layer, ServiceExt, service_fn};

/// The one key there is; it stands in the dictionary and in the seeds.
const KEY: &str = "vsp_sk_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef2104Jm";

struct Guard {
    layer: ApiKeyLayer,
    /// Runs the manager's own tasks; no request waits for it.
    _runtime: tokio::runtime::Runtime,
}

static GUARD: LazyLock<Guard> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let store = MemoryStore::new();
    let record = ApiKey {
        id: KeyId::from_bytes([1; 16]),
        org: OrgId::new("acme").unwrap(),
        name: KeyName::new("key").unwrap(),
        digest: KeyFormat::default().digest(KEY).unwrap(),
        created_at: Timestamp::MIN,
        ..ApiKey::sample(0)
    };
    ready(store.insert(&record, OrgLimit::NONE)).unwrap();
    let layer = ApiKeyLayer::new(KeyManager::builder(store).build().unwrap());
    drop(_entered);
    Guard { layer, _runtime: runtime }
});

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    LetIn,
    NoCredentials,
    Ambiguous,
    Invalid,
}

fuzz_target!(|input: &[u8]| {
    let lines: Vec<&[u8]> = match input {
        [] => Vec::new(),
        _ => input.split(|b| *b == b'\n').collect(),
    };
    let mut request = Request::new(Body::empty());
    for line in &lines {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        request.headers_mut().append(AUTHORIZATION, value);
    }
    let service = GUARD.layer.layer(service_fn(async |request: Request<Body>| {
        assert!(request.extensions().get::<VerifiedKey>().is_some());
        assert!(request.headers().get_all(AUTHORIZATION).iter().all(HeaderValue::is_sensitive));
        Ok::<_, Infallible>(Response::new(Body::from("let in")))
    }));
    let response = ready(service.oneshot(request)).unwrap();
    let (parts, body) = response.into_parts();
    let body = ready(body.collect()).unwrap().to_bytes();
    let text = |name| parts.headers.get(name).map_or("", |value| value.to_str().unwrap());
    let given = (parts.status.as_u16(), text(WWW_AUTHENTICATE), text(CONTENT_TYPE), &*body);

    let problem = "application/problem+json";
    let expected = expected(&lines);
    let (status, challenge, code): (u16, _, &[u8]) = match expected {
        Answer::LetIn => {
            assert_eq!(given, (200, "", "", &b"let in"[..]));
            return;
        }
        Answer::NoCredentials => (401, "Bearer realm=\"api\"", b"needs an API key"),
        Answer::Ambiguous => {
            (400, "Bearer realm=\"api\", error=\"invalid_request\"", b"invalid_request")
        }
        Answer::Invalid => (401, "Bearer realm=\"api\", error=\"invalid_token\"", b"invalid_token"),
    };
    assert_eq!(given, (status, challenge, problem, fixed(expected)), "{lines:?}");
    assert!(body.windows(code.len()).any(|part| part == code));
    assert_eq!(parts.headers.len(), 3, "content type, cache control, challenge");
});

/// The body of that refusal, as a plain request of its kind gets it.
fn fixed(answer: Answer) -> &'static [u8] {
    static BODIES: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
        [None, Some("Bearer a b"), Some("Bearer x")].map(|header| {
            let mut request = Request::new(Body::empty());
            if let Some(header) = header {
                request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static(header));
            }
            let service = GUARD.layer.layer(service_fn(async |_: Request<Body>| {
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }));
            let body = ready(service.oneshot(request)).unwrap().into_body();
            ready(body.collect()).unwrap().to_bytes().to_vec()
        })
    });
    match answer {
        Answer::NoCredentials => &BODIES[0],
        Answer::Ambiguous => &BODIES[1],
        Answer::Invalid => &BODIES[2],
        Answer::LetIn => b"let in",
    }
}

fn expected(lines: &[&[u8]]) -> Answer {
    let line = match lines {
        [] => return Answer::NoCredentials,
        [line] => line,
        _ => return Answer::Ambiguous,
    };
    // One character a byte; what is not ASCII equals nothing that is looked for.
    let line: String = line.iter().map(|b| char::from(*b)).collect();
    let blank = |c| c == ' ' || c == '\t';
    let is_bearer = |item: &str| {
        item.split(blank).next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"))
    };
    let line = line.trim_matches(blank);
    if !is_bearer(line) {
        let among_others = line.split(',').skip(1).any(|item| is_bearer(item.trim_matches(blank)));
        return if among_others { Answer::Ambiguous } else { Answer::NoCredentials };
    }
    match line["bearer".len()..].trim_start_matches(' ') {
        "" => Answer::Invalid,
        tab if tab.starts_with('\t') => Answer::Invalid,
        // Of a byte each.
        long if long.chars().count() > 256 => Answer::Invalid,
        list if list.contains([' ', '\t', ',']) => Answer::Ambiguous,
        KEY => Answer::LetIn,
        other => {
            let bytes: Vec<u8> = other.chars().map(|c| c as u8).collect();
            assert_ne!(KeyDigest::of(bytes), KeyDigest::of(KEY));
            Answer::Invalid
        }
    }
}

/// A store in memory answers at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it has to wait"),
    }
}
