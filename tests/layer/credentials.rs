//! Accepted credentials, and the refusals of all others.

use std::sync::Arc;

use http::StatusCode;
use keygate::store::KeyDigest;
use keygate::{ApiKey, Delivery, KeyFormat};
use serde_json::Value;

use crate::support::{Find, base64, unknown_key};
use crate::{
    World, assert_invalid_request, assert_invalid_token, bearer, hosts, request, with_header,
};

#[tokio::test]
async fn case_01_a_request_without_the_header_gets_a_bare_challenge() {
    let world = World::new();
    for (host, ask) in hosts(&world.layer()) {
        let answer = ask(request("/", &[])).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{host}");
        assert_eq!(answer.challenge(), Some("Bearer realm=\"api\""), "{host}");
        assert_eq!(answer.problem()["code"], Value::Null, "{host}: no error code");
    }
    assert_eq!(world.store.calls(), 0);
}

#[tokio::test]
async fn case_03_two_credentials_are_refused_in_two_lines_and_in_one() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    let good = &*format!("Bearer {key}");
    let bad = &*format!("Bearer {}", unknown_key());
    for lines in [
        &[good, good][..],
        &[good, bad],
        &[bad, good],
        &[good, "Basic dTpw"],
        &["Basic dTpw", good],
        &["", good],
        &["Basic dTpw", "Basic dTpw"],
        &[&format!("{good},{good}")],
        &[&format!("{good}, {}", unknown_key())],
        &[&format!("{good} {key}")],
        &[&format!("{good},")],
        &[&format!("Bearer ,{key}")],
        &[&format!("{good}, Basic dTpw")],
    ] {
        let lines: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
        for layer in [world.layer(), world.layer().optional()] {
            for (host, ask) in hosts(&layer) {
                assert_invalid_request(&ask(request("/", &lines)).await, host);
            }
        }
    }
    assert_eq!(world.store.calls(), before, "the store was asked");
}

#[tokio::test]
async fn case_04_a_key_anywhere_else_never_authenticates() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    let elsewhere = || {
        let query = ["api_key", "access_token", "key", "Authorization"];
        let queries = query.map(|name| request(&format!("/?{name}={key}"), &[]));
        let bearer = format!("Bearer {key}");
        let mut requests = Vec::from(queries);
        requests.push(request(&format!("/{key}"), &[]));
        for name in ["x-api-key", "api-key", "proxy-authorization", "x-authorization"] {
            requests.push(with_header(request("/", &[]), name, &key));
            requests.push(with_header(request("/", &[]), name, &bearer));
        }
        requests.push(with_header(request("/", &[]), "cookie", &format!("api_key={key}")));
        for scheme in ["", "Basic ", "ApiKey ", "Token ", "Bearer_", "Bearer:"] {
            requests.push(request("/", &[format!("{scheme}{key}").as_bytes()]));
        }
        requests
    };
    for (layer, or) in [(world.layer(), "refused"), (world.layer().optional(), "nobody")] {
        for (host, ask) in hosts(&layer) {
            for request in elsewhere() {
                let case = format!("{host} {request:?}");
                let answer = ask(request).await;
                assert!(answer.status == 401 || answer.text() == or, "{case}");
            }
        }
    }
    assert_eq!(world.store.calls(), before, "the store was asked");
}

#[tokio::test]
async fn case_05_values_that_cannot_be_a_key_are_refused_without_a_look_up() {
    let world = World::new();
    let huge = [b"Bearer ", &[b'a'; 65_536][..]].concat();
    let huge_with_commas = [b"Bearer ", &[b','; 65_536][..]].concat();
    let long = [b"Bearer ", &[b'a'; 257][..]].concat();
    let tab = format!("Bearer\t{}", unknown_key());
    for (host, ask) in hosts(&world.layer()) {
        for line in [&b""[..], b" ", b"Bearer", b"Bearer ", b"Bearer    ", b"bearer\t"] {
            let answer = ask(request("/", &[line])).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{host} {line:?}");
        }
        for line in [
            &huge[..],
            &huge_with_commas,
            &long,
            b"Bearer \xff\xfe\x80",
            "Bearer clé".as_bytes(),
            tab.as_bytes(),
        ] {
            assert_invalid_token(&ask(request("/", &[line])).await, host);
        }
    }
    assert_eq!(world.store.calls(), 0);
}

/// `text` with the prefix of the default format and the right checksum.
fn signed(text: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let signed = format!("vsp_sk_{text}");
    let mut rest = crc32fast::hash(signed.as_bytes()) as usize;
    let mut checksum = [b'0'; 6];
    for place in checksum.iter_mut().rev() {
        *place = DIGITS[rest % 62];
        rest /= 62;
    }
    signed + std::str::from_utf8(&checksum).unwrap()
}

#[tokio::test]
async fn case_06_a_malformed_key_is_refused_like_an_unknown_one_without_a_look_up() {
    let world = World::new();
    let (_, key) = world.key().await;
    let mut typo = key.clone();
    let last = typo.pop().unwrap();
    typo.push(if last == '0' { '1' } else { '0' });
    let malformed = [
        typo,
        key.replacen("vsp_sk_", "vsp_pk_", 1),
        key.replacen("vsp_sk_", "VSP_SK_", 1),
        key["vsp_sk_".len()..].to_owned(),
        key[..key.len() - 1].to_owned(),
        format!("{key}0"),
        format!("{key}="),
        format!("\"{key}\""),
        format!("vsp_sk_{}", "0".repeat(48)),
        key.to_lowercase(),
        // The checksum is right, but nothing else.
        signed(&"0".repeat(41)),
        signed(&"0".repeat(43)),
        signed(&format!("{}-", "0".repeat(41))),
    ];
    KeyFormat::default().digest(signed(&"0".repeat(42))).expect("well-formed");
    for layer in [world.layer(), world.layer().optional()] {
        for (host, ask) in hosts(&layer) {
            let unknown = ask(bearer(&unknown_key())).await;
            assert_invalid_token(&unknown, host);
            let before = world.store.calls();
            for malformed in &malformed {
                assert_eq!(ask(bearer(malformed)).await, unknown, "{host} {malformed}");
            }
            assert_eq!(world.store.calls(), before, "{host}: the store was asked");
        }
    }
}

#[tokio::test]
async fn case_07_unknown_revoked_expired_deleted_and_rotated_keys_cannot_be_distinguished() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let world = World::with(|builder| builder.delivery(delivery));
        let [(_, revoked_key), _, (_, expired_key)] = world.refused_keys().await;
        let (deleted, deleted_key) = world.key().await;
        world.delete(&deleted).await;
        let (rotated, rotated_key) = world.key().await;
        world.keys.rotate(&world.actor, &rotated.id).await.unwrap();

        for layer in [world.layer(), world.layer().optional()] {
            for (host, ask) in hosts(&layer) {
                let before = world.store.calls();
                let unknown = ask(bearer(&unknown_key())).await;
                let calls = world.store.calls() - before;
                assert_invalid_token(&unknown, host);
                assert_eq!(calls, 1, "{host}: one look-up");
                for key in [&revoked_key, &expired_key, &deleted_key, &rotated_key] {
                    let before = world.store.calls();
                    assert_eq!(ask(bearer(key)).await, unknown, "{host}");
                    assert_eq!(world.store.calls() - before, calls, "{host}");
                }
            }
        }
    }
}

#[tokio::test]
async fn case_08_the_stored_parts_of_a_key_are_no_credential() {
    let world = World::new();
    let (key, secret) = world.key().await;
    let digest = key.digest.as_bytes();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let base64 = base64(digest);
    let texts = [
        hex.clone(),
        hex.to_uppercase(),
        format!("vsp_sk_{hex}"),
        signed(&hex[..42]),
        signed(&hex[22..]),
        base64.clone(),
        base64.trim_end_matches('=').to_owned(),
        base64.replace('+', "-").replace('/', "_"),
        format!("vsp_sk_{base64}"),
        format!("sha256:{hex}"),
        key.id.to_string(),
        key.id.to_string().replace('-', ""),
        format!("vsp_sk_{}", key.id),
        key.key_prefix.clone(),
    ];
    for (host, ask) in hosts(&world.layer()) {
        for text in &texts {
            assert_invalid_token(&ask(bearer(text)).await, &format!("{host} {text}"));
        }
        // The same record admits the key itself.
        assert_eq!(ask(bearer(&secret)).await.text(), key.name.as_str());
    }
}

#[tokio::test]
async fn case_09_a_store_that_finds_the_wrong_record_admits_no_request() {
    // A record with a digest of zeros cannot be created at all.
    assert!(KeyDigest::from_slice(&[0; 32]).is_err());
    assert!(KeyDigest::from_slice(&[]).is_err());

    let world = World::new();
    let (other, _) = world.key().await;
    for wrong in [
        ApiKey::clone(&other),
        ApiKey { digest: KeyDigest::of(""), ..ApiKey::sample(1) },
        ApiKey { digest: KeyDigest::from_slice(&[255; 32]).unwrap(), ..ApiKey::sample(1) },
    ] {
        let id = wrong.id;
        world.store.find(Find::Always(Arc::new(wrong)));
        for (host, ask) in hosts(&world.layer()) {
            assert_invalid_token(&ask(bearer(&unknown_key())).await, host);
        }
        assert_eq!(world.requests(id).await, [], "no request is recorded for that key");
    }
}
