//! Accepted credentials, and the refusals of all others.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use getrandom::SysRng;
use http::StatusCode;
use keygate::audit::Outcome;
use keygate::store::{KeyDigest, OrgLimit};
use keygate::{ApiKey, Delivery, Expiration, KeyFormat, KeyStore, NewKey, Timestamp};
use serde_json::Value;

use crate::support::{Find, PATIENCE, base64, unknown_key};
use crate::{
    World, assert_invalid_request, assert_invalid_token, bearer, hosts, request, signed,
    well_formed, with_header,
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
async fn case_02_the_scheme_is_case_insensitive_and_spaces_are_skipped() {
    let world = World::new();
    let (_, key) = world.key().await;
    for (host, ask) in hosts(&world.layer()) {
        for scheme in ["Bearer ", "bearer ", "BEARER ", "bEARER     "] {
            let answer = ask(request("/", &[format!("{scheme}{key}").as_bytes()])).await;
            assert_eq!(
                (answer.status, answer.text()),
                (StatusCode::OK, "key"),
                "{host} {scheme:?}"
            );
        }
    }
}

#[tokio::test]
async fn case_03_two_authorization_lines_are_refused_whatever_their_content() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    let good = format!("Bearer {key}");
    let bad = format!("Bearer {}", unknown_key());
    for lines in [
        [good.as_str(), good.as_str()],
        [&good, &bad],
        [&bad, &good],
        [&good, "Basic dTpw"],
        ["Basic dTpw", &good],
        ["", &good],
        ["Basic dTpw", "Basic dTpw"],
    ] {
        for layer in [world.layer(), world.layer().optional()] {
            for (host, ask) in hosts(&layer) {
                let answer = ask(request("/", &lines.map(str::as_bytes))).await;
                assert_invalid_request(&answer, host);
            }
        }
    }
    assert_eq!(world.store.calls(), before, "refused unseen");
}

#[tokio::test]
async fn case_04_two_credentials_in_one_line_are_refused() {
    let world = World::new();
    let (_, key) = world.key().await;
    let before = world.store.calls();
    for line in [
        format!("Bearer {key},Bearer {key}"),
        format!("Bearer {key}, {}", unknown_key()),
        format!("Bearer {key} {key}"),
        format!("Bearer {key},"),
        format!("Bearer ,{key}"),
        format!("Bearer {key}, Basic dTpw"),
        format!("Bearer {key}\tb"),
        format!("Basic dTpw, Bearer {key}"),
        format!("Digest a=\"b\", c=d,\tbearer {key}"),
    ] {
        for layer in [world.layer(), world.layer().optional()] {
            for (host, ask) in hosts(&layer) {
                assert_invalid_request(&ask(request("/", &[line.as_bytes()])).await, host);
            }
        }
    }
    assert_eq!(world.store.calls(), before, "refused unseen");
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
    for (host, ask) in hosts(&world.layer()) {
        for request in elsewhere() {
            let case = format!("{host} {request:?}");
            assert_eq!(ask(request).await.status, StatusCode::UNAUTHORIZED, "{case}");
        }
    }
    for (host, ask) in hosts(&world.layer().optional()) {
        for request in elsewhere() {
            let case = format!("{host} {request:?}");
            let answer = ask(request).await;
            assert!(
                answer.status == StatusCode::UNAUTHORIZED || answer.text() == "nobody",
                "{case}"
            );
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
    well_formed(&"0".repeat(42));
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
        let (revoked, revoked_key) = world.key().await;
        world.revoke(&revoked).await;
        let day = NewKey::named("day").unwrap().expires(Expiration::OneDay);
        let (expired, expired_key) = world.issue(day).await;
        world.clock.set(expired.expires_at.unwrap());
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
    // A digest whose bytes are all allowed in a header.
    let fits = |b: &u8| (0x21..=0xff).contains(b) && *b != 0x7f && *b != b',';
    let (secret, digest) = loop {
        let secret = KeyFormat::default().generate(&mut SysRng).unwrap();
        let digest = secret.digest();
        if digest.as_bytes().iter().all(fits) {
            break (secret, digest);
        }
    };
    let key = ApiKey { digest, ..ApiKey::sample(0x0123_4567_89ab_cdef) };
    world.store.insert(&key, OrgLimit::NONE).await.unwrap();
    let digest = digest.as_bytes();
    let hex = digest.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    let base64 = base64(digest);
    let texts = [
        hex.clone(),
        hex.to_uppercase(),
        format!("vsp_sk_{hex}"),
        well_formed(&hex[..42]),
        well_formed(&hex[22..]),
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
        let raw = [b"Bearer ", &digest[..]].concat();
        assert_invalid_token(&ask(request("/", &[&raw])).await, host);
        for text in &texts {
            assert_invalid_token(&ask(bearer(text)).await, &format!("{host} {text}"));
        }
        // The same record admits the key itself.
        assert_eq!(ask(bearer(secret.expose_secret())).await.text(), key.name.as_str());
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

#[tokio::test]
async fn case_10_a_key_is_expired_from_the_instant_of_its_expiry() {
    let world = World::new();
    let at = "2026-02-01T00:00:00Z".parse::<Timestamp>().unwrap();
    let micro = Duration::from_micros(1);
    let new = NewKey::named("key").unwrap().expires(Expiration::At(at));
    let (record, key) = world.issue(new).await;
    let before = at.saturating_sub(micro);
    let mut outcomes = Vec::new();
    for (now, allowed) in [
        (before, true),
        (at, false),
        (at.saturating_add(micro), false),
        (Timestamp::MAX, false),
        // The clock steps back: as documented, the key is valid again.
        (before, true),
        (record.created_at.saturating_sub(Duration::from_secs(1)), true),
        (Timestamp::MIN, true),
        (at, false),
    ] {
        world.clock.set(now);
        for (host, ask) in hosts(&world.layer()) {
            let answer = ask(bearer(&key)).await;
            let status = if allowed { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            assert_eq!(answer.status, status, "{host} at {now}");
            outcomes.push(if allowed { Outcome::Allowed } else { Outcome::Expired });
        }
    }
    // The log is ordered by time, which also moved back.
    let mut found: Vec<_> =
        world.requests(record.id).await.iter().map(|r| r.outcome.as_str()).collect();
    let mut expected: Vec<_> = outcomes.into_iter().map(Outcome::as_str).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    // If the clock steps back by years, the earlier uses are in the future.
    assert!(world.keys.shutdown(PATIENCE).await.is_complete());
    assert_eq!(world.stored(record.id).await.last_used_at, Some(Timestamp::MIN));
}
