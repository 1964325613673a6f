//! The client's address, and its check against the allowlist.

use std::net::IpAddr;

use http::StatusCode;
use keygate::ApiKeyLayer;
use keygate::audit::Outcome;
use keygate::guard::{PeerAddr, ProxyHeader};

use crate::support::{log_lines, logs};
use crate::{
    World, XFF, bearer, behind_proxies, forwarded, from_peer, hosts, in_axum, ip, router,
    with_header,
};

/// Sends requests with a key for `192.0.2.0/24` and `2001:db8::/32` only, and returns the
/// results.
async fn decide(
    world: &World,
    layer: &ApiKeyLayer,
    peer: &str,
    header: &'static str,
    lines: &[&str],
) -> (u16, Option<IpAddr>) {
    let (record, key) = world.key_for(&["192.0.2.0/24", "2001:db8::/32"]).await;
    let mut results = Vec::new();
    for (_, ask) in hosts(layer) {
        let answer = ask(forwarded(&key, peer, header, lines)).await;
        let event = world.last_request(record.id).await;
        assert_eq!(event.status, Some(answer.status.as_u16()));
        let allowed = answer.status == StatusCode::OK;
        let outcome = if allowed { Outcome::Allowed } else { Outcome::IpNotAllowed };
        assert_eq!(event.outcome, outcome);
        results.push((answer.status.as_u16(), event.ip));
    }
    world.delete(&record).await;
    assert_eq!(results[0], results[1], "axum and tower agree");
    results[0]
}

#[tokio::test]
async fn case_13_the_address_comes_from_the_configured_header_of_a_trusted_proxy() {
    const PROXY: &str = "10.0.0.1";
    const OTHER: &str = "203.0.113.9";
    const FORWARDED: &str = "forwarded";
    let world = World::new();
    let direct = world.layer();
    let xff = behind_proxies(&world, ProxyHeader::XForwardedFor);
    let rfc = behind_proxies(&world, ProxyHeader::Forwarded);
    for (layer, peer, header, lines, status, address) in [
        // The client claims an allowed address, but the proxy saw another one.
        (&xff, PROXY, XFF, &["192.0.2.1, 203.0.113.9"][..], 403, Some(OTHER)),
        (&xff, PROXY, XFF, &["192.0.2.1", "203.0.113.9, 10.0.0.2"], 403, Some(OTHER)),
        (&xff, PROXY, XFF, &["6.6.6.6", "192.0.2.1", "10.9.9.9"], 200, Some("192.0.2.1")),
        (&xff, PROXY, XFF, &["::ffff:192.0.2.1"], 200, Some("192.0.2.1")),
        (&rfc, PROXY, FORWARDED, &["for=6.6.6.6, for=192.0.2.1"], 200, Some("192.0.2.1")),
        (&rfc, PROXY, FORWARDED, &["FOR=\"[2001:db8::1]:443\""], 200, Some("2001:db8::1")),
        // The address is not known.
        (&xff, PROXY, XFF, &["192.0.2.1, unknown"], 403, None),
        (&xff, PROXY, XFF, &["192.0.2.1, 10.0.0.1%eth0"], 403, None),
        (&xff, PROXY, XFF, &["10.0.0.2, 10.0.0.3"], 403, None),
        (&xff, PROXY, XFF, &[], 403, None),
        (&xff, PROXY, FORWARDED, &["for=192.0.2.1"], 403, None),
        (&rfc, PROXY, FORWARDED, &["for=192.0.2.1", "for=\"10.0.0.3"], 403, None),
        (&rfc, PROXY, XFF, &["192.0.2.1"], 403, None),
        // The peer is no trusted proxy, so its own address counts.
        (&xff, OTHER, XFF, &["192.0.2.1"], 403, Some(OTHER)),
        (&rfc, OTHER, FORWARDED, &["for=192.0.2.1"], 403, Some(OTHER)),
        (&direct, PROXY, XFF, &["192.0.2.1"], 403, Some(PROXY)),
    ] {
        let decision = decide(&world, layer, peer, header, lines).await;
        assert_eq!(decision, (status, address.map(ip)), "{peer}: {header}: {lines:?}");
    }
}

#[tokio::test]
async fn the_log_tells_an_unknown_address_from_one_that_is_not_listed() {
    const UNKNOWN: &str = "the client's address is not known";
    let world = World::new();
    let (_, key) = world.key_for(&["192.0.2.0/24"]).await;
    let ask = in_axum(router().layer(world.layer()));
    assert_eq!(ask(from_peer(bearer(&key), "203.0.113.9")).await.status, StatusCode::FORBIDDEN);
    assert_eq!(log_lines(&["DEBUG", "address is not on the key's allowlist"]), 1, "{}", logs());
    assert_eq!(log_lines(&[UNKNOWN]), 0, "{}", logs());
    for _ in 0..2 {
        let mut request = bearer(&key);
        request.extensions_mut().remove::<PeerAddr>();
        assert_eq!(ask(request).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(log_lines(&["DEBUG", UNKNOWN]), 2, "{}", logs());
    assert_eq!(log_lines(&["WARN", UNKNOWN, "PeerAddr"]), 1, "{}", logs());
    assert_eq!(log_lines(&["address is not on the key's allowlist"]), 1, "{}", logs());
}

#[tokio::test]
async fn case_14_an_unknown_address_is_on_no_allowlist() {
    let world = World::new();
    let layer = behind_proxies(&world, ProxyHeader::XForwardedFor);
    let (everybody, key) = world.key_for(&["0.0.0.0/0", "::/0"]).await;
    let (free, free_key) = world.key().await;
    for layer in [world.layer(), layer] {
        for (host, ask) in hosts(&layer) {
            let no_peer = |key: &str| {
                let mut request = bearer(key);
                request.extensions_mut().remove::<PeerAddr>();
                with_header(request, XFF, "192.0.2.1")
            };
            let answer = ask(no_peer(&key)).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{host}");
            assert_eq!(world.last_request(everybody.id).await.ip, None);
            assert_eq!(ask(no_peer(&free_key)).await.status, StatusCode::OK, "{host}");
            assert_eq!(world.last_request(free.id).await.ip, None);
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{host}");
        }
    }
}

#[tokio::test]
async fn case_15_a_mapped_address_equals_the_ipv4_address() {
    let world = World::new();
    for list in [&["10.0.0.0/8"][..], &["::ffff:10.0.0.0/104"], &["::ffff:10.0.0.1"]] {
        let (record, key) = world.key_for(list).await;
        for (host, ask) in hosts(&world.layer()) {
            for (peer, status) in [
                ("::ffff:10.0.0.1", StatusCode::OK),
                ("10.0.0.1", StatusCode::OK),
                ("::ffff:11.0.0.1", StatusCode::FORBIDDEN),
                ("::10.0.0.1", StatusCode::FORBIDDEN),
            ] {
                let answer = ask(from_peer(bearer(&key), peer)).await;
                assert_eq!(answer.status, status, "{host} {peer} {list:?}");
                let shown = world.last_request(record.id).await.ip;
                assert_eq!(shown, Some(ip(peer).to_canonical()), "{host} {peer}");
            }
        }
        let shown = world.stored(record.id).await.allowlist.entries();
        assert!(shown.iter().all(|entry| entry.starts_with("10.0.0.")), "{shown:?}");
    }
}
