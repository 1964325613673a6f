//! Existing keys through the layer.

use std::convert::Infallible;

use http::header::AUTHORIZATION;
use http::{HeaderName, Request, Response, StatusCode};
use keygate::existing::{DigestKind, ExistingFormat};
use keygate::{ApiKeyLayer, KeyFormat, KeyManager, MemoryStore, VerifiedKey};
use tower::{Layer, ServiceExt, service_fn};

use crate::support::org;
use crate::{KEY, adopt, format, key, sha256, sha512};

async fn status(layer: &ApiKeyLayer, header: HeaderName, value: &str) -> StatusCode {
    let service = layer.layer(service_fn(async |request: Request<String>| {
        let known = request.extensions().get::<VerifiedKey>().is_some();
        let status = if known { StatusCode::OK } else { StatusCode::NO_CONTENT };
        let mut response = Response::new(String::new());
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    }));
    let request = Request::builder().header(header, value).body(String::new()).unwrap();
    service.oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn existing_keys_pass_the_layer_in_any_header_and_only_in_their_environment() {
    let keys = KeyManager::builder(MemoryStore::new())
        .environment("live", KeyFormat::default())
        .environment("test", KeyFormat::new("vsp_sk_test_").unwrap())
        .existing(format().digests(DigestKind::sha512()))
        .build()
        .unwrap();
    let other = "acme_live_0123456789abcdef";
    adopt(&keys, key("acme", sha256(KEY))).await;
    adopt(&keys, key("acme", sha512(other)).environment("test")).await;
    let x_api_key = HeaderName::from_static("x-api-key");
    let any = ApiKeyLayer::new(keys.clone()).key_header(x_api_key.clone());
    let live = ApiKeyLayer::new(keys.clone()).environment("live");
    let test = ApiKeyLayer::new(keys.clone()).environment("test");
    let neither = ApiKeyLayer::new(keys.clone()).environment("dev");
    for (text, layer, expected) in [
        (KEY, &any, 200),
        (KEY, &live, 200),
        (KEY, &test, 401),
        (KEY, &neither, 401),
        (other, &test, 200),
        (other, &live, 401),
        (other, &any, 200),
        ("acme_live_0123456789abcdeF", &any, 401),
    ] {
        let bearer = format!("Bearer {text}");
        assert_eq!(status(layer, AUTHORIZATION, &bearer).await, expected, "{text} {layer:?}");
    }
    assert_eq!(status(&any, x_api_key, KEY).await, 200);
    assert_eq!(keys.list(&org("acme")).await.unwrap().len(), 2);
}

#[tokio::test]
async fn existing_keys_are_not_taken_for_foreign_tokens() {
    let keys = KeyManager::builder(MemoryStore::new())
        .existing(format())
        .existing(ExistingFormat::new("", 32..=32).unwrap())
        .build()
        .unwrap();
    adopt(&keys, key("acme", sha256(KEY))).await;
    let layer = ApiKeyLayer::new(keys).optional().ignore_foreign_tokens();
    let long = "a".repeat(32);
    for (text, expected) in [
        (KEY, 200),
        ("acme_live_mistyped", 401),
        (&long, 401),
        (&long[1..], 204),
        ("eyJhbGciOi.J9eyJz.c2lnbmF0dXJl", 204),
    ] {
        let bearer = format!("Bearer {text}");
        assert_eq!(status(&layer, AUTHORIZATION, &bearer).await, expected, "{text}");
    }
}
