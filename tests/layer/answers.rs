//! The answers to refused and admitted requests.

use std::time::Duration;

use axum::Router;
use axum::routing::{any, get};
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{StatusCode, Version};
use keygate::{Delivery, VerifiedKey};

use crate::support::{Find, capture_logs, logs, unknown_key};
use crate::{
    World, assert_invalid_token, assert_unavailable, bearer, bearer_at, hosts, in_axum, request,
    with_header,
};

#[tokio::test]
async fn every_answer_matches_the_table() {
    let world = World::with(|builder| {
        builder.delivery(Delivery::strict()).store_deadline(Duration::from_millis(100))
    });
    let [(_, revoked_key), (_, restricted_key), _] = world.refused_keys().await;
    let (_, key) = world.key().await;
    let realm = "Bearer realm=\"acme\"";
    let good = format!("Bearer {key}");
    let two = [good.as_bytes(), good.as_bytes()];
    for (host, ask) in hosts(&world.layer().realm("acme")) {
        let mut answers = Vec::new();
        for (case, request, status, code) in [
            ("no credentials", request("/", &[]), 401, None),
            ("two lines", request("/", &two), 400, Some("invalid_request")),
            ("two in one", bearer(&format!("{key},{key}")), 400, Some("invalid_request")),
            ("malformed", bearer("x"), 401, Some("invalid_token")),
            ("unknown", bearer(&unknown_key()), 401, Some("invalid_token")),
            ("revoked", bearer(&revoked_key), 401, Some("invalid_token")),
            ("ip not allowed", bearer(&restricted_key), 403, Some("forbidden")),
        ] {
            let answer = ask(request).await;
            assert_eq!(answer.status.as_u16(), status, "{host}: {case}");
            let challenge = match code {
                None => Some(realm.to_owned()),
                Some("forbidden") => None,
                Some(code) => Some(format!("{realm}, error=\"{code}\"")),
            };
            let challenges = answer.headers.get_all(WWW_AUTHENTICATE).iter();
            assert!(challenges.eq(challenge.as_deref()), "{host}: {case}");
            assert_eq!(answer.headers.get(RETRY_AFTER), None, "{host}: {case}");
            assert_eq!(answer.problem()["code"].as_str(), code, "{host}: {case}");
            answers.push((case, answer));
        }
        let bodies = |name| &answers.iter().find(|(case, _)| *case == name).unwrap().1;
        assert_eq!(bodies("malformed"), bodies("unknown"), "{host}");
        assert_eq!(bodies("revoked"), bodies("unknown"), "{host}");
        // Generic: it reveals neither what is allowed nor the caller's address.
        let forbidden = bodies("ip not allowed").text().to_lowercase();
        for word in ["address", "allowlist", "ip", "192", "203", "key"] {
            let mut words = forbidden.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(!words.any(|found| found == word), "{host}: {forbidden}");
        }
        world.store.find(Find::Fails);
        assert_unavailable(&ask(bearer(&key)).await, host);
        world.store.find(Find::Honest);
    }
}

#[tokio::test]
async fn the_reason_of_a_refusal_is_logged() {
    let world = World::new();
    let [(_, revoked_key), (_, restricted_key), (_, expired_key)] = world.refused_keys().await;
    for (host, ask) in hosts(&world.layer()) {
        for (key, reason) in [
            (&*revoked_key, "revoked"),
            (&expired_key, "expired"),
            (&restricted_key, "allowlist"),
            (&unknown_key(), "no such key"),
            ("junk", "well-formed"),
        ] {
            capture_logs();
            assert!(!ask(bearer(key)).await.status.is_success(), "{host}");
            assert!(logs().contains(reason), "{host}: {reason:?} is not in {}", logs());
        }
    }
}

#[tokio::test]
async fn optional_lets_anonymous_requests_through_but_refuses_bad_keys() {
    let world = World::new();
    let (record, key) = world.key().await;
    let [(_, revoked_key), (_, restricted_key), _] = world.refused_keys().await;
    for (host, ask) in hosts(&world.layer().optional()) {
        for anonymous in [request("/", &[]), request("/", &[b"Basic dTpw"])] {
            let answer = ask(anonymous).await;
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, "nobody"), "{host}");
        }
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
        for (bad, status) in [
            ("junk", 401),
            (&*unknown_key(), 401),
            (&revoked_key, 401),
            (&restricted_key, 403),
            ("", 401),
        ] {
            assert_eq!(ask(bearer(bad)).await.status.as_u16(), status, "{host} {bad}");
        }
        world.store.find(Find::Fails);
        assert_unavailable(&ask(bearer(&key)).await, host);
        assert_eq!(ask(request("/", &[])).await.text(), "nobody", "{host}: anonymous");
        world.store.find(Find::Honest);
    }
    assert_eq!(world.requests(record.id).await.len(), 2, "anonymous requests leave no record");
}

#[tokio::test]
async fn a_route_accepts_keys_and_tokens_of_another_issuer() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    let jwt = format!("eyJhbGciOiJIUzI1NiJ9.{}.c2ln", "a".repeat(2_000));
    let both = world.layer().optional().ignore_foreign_tokens();
    for (host, ask) in hosts(&both) {
        for foreign in [&*jwt, "eyJ", "vsp_pk_1", &key["vsp_sk_".len()..]] {
            assert_eq!(ask(bearer(foreign)).await.text(), "nobody", "{host} {foreign}");
        }
        // A token with the key prefix must be a valid key, or it is refused.
        for bad in ["vsp_sk_", "vsp_sk_x", &format!("{key}0"), &format!("vsp_sk_{jwt}")] {
            assert_invalid_token(&ask(bearer(bad)).await, host);
        }
    }
    assert_eq!(world.store.calls(), before, "the store was asked");
    for (host, ask) in hosts(&both) {
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
    }
    // Where a key is required, such a token is no credential.
    for (host, ask) in hosts(&world.layer().ignore_foreign_tokens()) {
        let answer = ask(bearer(&jwt)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{host}");
        assert_eq!(answer.challenge(), Some("Bearer realm=\"api\""), "{host}");
        assert_eq!(ask(bearer(&key)).await.text(), "key", "{host}");
    }
    // Unless foreign tokens are ignored, they are refused as invalid keys.
    for (host, ask) in hosts(&world.layer().optional()) {
        assert_invalid_token(&ask(bearer(&jwt)).await, host);
    }
}

#[tokio::test]
async fn a_handler_that_requires_a_key_refuses_anonymous_requests_like_the_layer() {
    let world = World::new();
    let insist = async |key: VerifiedKey| key.name().to_string();
    let routes = || Router::new().route("/", get(insist));
    for realm in ["api", "acme"] {
        let layer = world.layer().realm(realm);
        let required = in_axum(routes().layer(layer.clone()))(request("/", &[])).await;
        let optional = in_axum(routes().layer(layer.optional()))(request("/", &[])).await;
        assert_eq!(optional.status, StatusCode::UNAUTHORIZED);
        assert_eq!(
            optional.challenge(),
            required.challenge(),
            "the extractor uses the realm of the layer"
        );
        assert_eq!(optional.problem(), required.problem());
    }
}

#[tokio::test]
async fn a_refusal_before_the_body_is_read_closes_the_connection_of_http_1() {
    let world = World::new();
    let (_, key) = world.key().await;
    let good = format!("Bearer {key}");
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    let insist = Router::new().route("/", any(async |_: VerifiedKey| "in"));
    let missing = in_axum(insist.clone());
    let optional = in_axum(insist.layer(world.layer().optional()));
    let later = [("extractor", optional), ("no layer", missing)];
    for (host, ask) in hosts(&world.layer()).into_iter().chain(later) {
        for (name, value) in [("content-length", "10"), ("transfer-encoding", "chunked")] {
            for version in [Version::HTTP_10, Version::HTTP_11] {
                let with_body = |credential: &[&[u8]]| {
                    let mut request = with_header(request("/", credential), name, value);
                    *request.version_mut() = version;
                    request
                };
                for bad in ["", "x", "a b", &unknown_key(), &revoked_key] {
                    let line = format!("Bearer {bad}");
                    let lines = [line.as_bytes()];
                    let lines = if bad.is_empty() { &[][..] } else { &lines };
                    assert_eq!(
                        ask(with_body(lines)).await.headers["connection"],
                        "close",
                        "{host} {bad}"
                    );
                    let mut request = with_body(lines);
                    *request.version_mut() = Version::HTTP_2;
                    assert!(!ask(request).await.headers.contains_key("connection"), "{host}");
                }
                if host == "no layer" {
                    continue;
                }
                world.store.find(Find::Fails);
                let answer = ask(with_body(&[good.as_bytes()])).await;
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{host}");
                assert_eq!(answer.headers["connection"], "close", "{host}: unavailable");
                world.store.find(Find::Honest);
                // How the service treats a body is not changed.
                let answer = ask(with_body(&[good.as_bytes()])).await;
                assert_eq!(answer.status, StatusCode::OK, "{host}");
                assert_eq!(answer.headers.get("connection"), None, "{host}: admitted");
            }
        }
        for request in [request("/", &[]), with_header(bearer("x"), "content-length", "0")] {
            assert_eq!(ask(request).await.headers.get("connection"), None, "{host}");
        }
    }
}

#[tokio::test]
async fn the_extractor_names_the_missing_layer() {
    let world = World::new();
    let (_, key) = world.key().await;
    let routes = Router::new()
        .route("/required", get(async |_: VerifiedKey| "in"))
        .route("/optional", get(async |_: Option<VerifiedKey>| "in"));
    let ask = in_axum(routes);
    for path in ["/required", "/optional"] {
        for request in [bearer_at(path, &key), request(path, &[])] {
            capture_logs();
            let answer = ask(request).await;
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
            assert!(answer.text().contains("ApiKeyLayer"), "{}", answer.text());
            answer.problem();
            assert!(logs().contains("ApiKeyLayer"), "the log names the missing layer too");
        }
    }
}
